"""Protocol Buffers' wire format, read and written without a library: `Message`, the base of the ONNX messages.

Source: https://protobuf.dev/programming-guides/encoding. A message keeps the fields that its class does not declare, so
that a file read and written again is complete. Bytes are views of the file's, and copied only where they are used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

from ..files import FileError

Bytes: TypeAlias = bytes | memoryview
M = TypeVar("M", bound="Message")

MAX_BYTES = (1 << 31) - 1  # of a message: the limit of Protocol Buffers
MAX_DEPTH = 100  # messages within messages: the limit of Google's libraries
MAX_ITEMS = 1 << 20  # messages, texts and numbers in all: each takes some 50 to 700 bytes of memory, and 2 in the file
MAX_VARINT = 10  # bytes

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4 are groups, which ONNX has not
# The kinds of fields and the wire type of an element. Any other kind is the name of a message's class.
KINDS = {"int": VARINT, "float": FIXED32, "text": LENGTH, "bytes": LENGTH}
# Numbers of tensors, which stay bytes: a list of pieces, the concatenation of which is the packed form.
PACKED = {"packed_varint": VARINT, "packed_float": FIXED32, "packed_double": FIXED64}


class Field(NamedTuple):
    """A field of a message.

    Parameters
    ----------
    name : str
        The attribute, and the name in the definition of the format.
    number : int
    kind : str
        One of `KINDS` or `PACKED`, or the name of a class of message.
    many : bool
        Whether it is repeated.
    default
        The value of a field that is absent.
    """

    name: str
    number: int
    kind: str
    many: bool
    default: Any


def one(number: int, kind: str, default: Any = None) -> Any:
    """A field with at most one value. A value equal to the default is written only if it has been read (`held`)."""
    return field(default=default, metadata={"wire": (number, kind, False, default)})


def many(number: int, kind: str) -> Any:
    """A repeated field: a list."""
    return field(default_factory=list, metadata={"wire": (number, kind, True, None)})


class _Budget:
    """How many more values may be made of one file."""

    def __init__(self) -> None:
        self.left = MAX_ITEMS

    def take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise FileError(f"it has more than {MAX_ITEMS} messages, texts and numbers outside of tensors")


@dataclass(slots=True, eq=False)
class Message:
    """The base of messages: dataclasses with fields made by `one` and `many`.

    Attributes
    ----------
    unknown : list of bytes
        Whole fields, tag included, that the class does not declare.
    held : int
        Bit n: the field with number n was read and has at most one value.
    """

    CLASSES: ClassVar[dict[str, type[Message]]] = {}
    unknown: list[Bytes] = field(default_factory=list, kw_only=True, repr=False)
    held: int = field(default=0, kw_only=True, repr=False)

    def __init_subclass__(cls) -> None:
        Message.CLASSES[cls.__name__] = cls  # dataclass(slots=True) makes a second class, which takes the first's place

    @classmethod
    def from_bytes(cls: type[M], data: Bytes) -> M:
        """A message of its wire format. What it holds are views of the data.

        Raises
        ------
        FileError
            The data are damaged, or exceed a limit of depth or number.
        """
        message = cls()
        message._read(memoryview(data), _Budget(), 0)
        return message

    def to_bytes(self) -> bytes:
        """The wire format: declared fields by number, then the others.

        Raises
        ------
        ValueError
            It would have 2 GiB or more, which no reader takes.
        """
        pieces: list[Bytes] = []
        size = self._write(pieces)
        if size > MAX_BYTES:
            raise ValueError(f"the message has {size} bytes; Protocol Buffers allow {MAX_BYTES}: keep tensors outside")
        return b"".join(pieces)

    def _read(self, data: memoryview, budget: _Budget, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise FileError(f"its messages are nested more than {MAX_DEPTH} deep")
        declared, at, end = _by_number(type(self)), 0, len(data)
        while at < end:
            start = at
            tag, at = _varint(data, at)
            wire = tag & 7
            if wire == VARINT:
                first, at = at, _varint(data, at)[1]
            elif wire == LENGTH:
                length, first = _varint(data, at)
                at = first + length
            elif wire in (FIXED32, FIXED64):
                first, at = at, at + (4 if wire == FIXED32 else 8)
            else:
                raise FileError(f"it has a field of wire type {wire}: damaged, or no ONNX file")
            if at > end or tag < 8:
                raise FileError("it has a field that reaches beyond its end: damaged, cut short, or no ONNX file")
            budget.take()
            known = declared.get(tag >> 3)
            if known is None or not self._take(known, wire, data[first:at], budget, depth):
                self.unknown.append(data[start:at])

    def _take(self, known: Field, wire: int, data: memoryview, budget: _Budget, depth: int) -> bool:
        """Store the bytes of a field's value, and tell whether its wire type is one that the field may have."""
        name, kind = known.name, known.kind
        if kind in PACKED:
            if wire in (LENGTH, PACKED[kind]):
                getattr(self, name).append(data)
                return True
            return False
        if known.many and wire == LENGTH and kind in ("int", "float"):
            getattr(self, name).extend(_packed(data, kind, budget))
            return True
        if wire != KINDS.get(kind, LENGTH):
            return False
        value: Any
        if kind == "text":
            value = str(data, "utf-8", "surrogateescape")
        elif kind == "int":
            value = _signed(_varint(data, 0)[0])
        elif kind == "float":
            value = struct.unpack("<f", data)[0]
        elif kind == "bytes":
            value = data
        else:  # a message that comes in two parts is the two, merged
            value = (None if known.many else getattr(self, name)) or Message.CLASSES[kind]()
            value._read(data, budget, depth + 1)
        if known.many:
            getattr(self, name).append(value)
        else:
            setattr(self, name, value)
            self.held |= 1 << known.number
        return True

    def _write(self, pieces: list[Bytes]) -> int:
        """Append the wire format to pieces, and return how many bytes it has."""
        size = 0
        for name, number, kind, repeated, default in _declared(type(self)):
            value = getattr(self, name)
            if kind in PACKED:
                values = [b"".join(value)] if value else []
            elif repeated:
                values = value
            else:
                values = [value] if value is not None and (value != default or self.held >> number & 1) else []
            for element in values:
                size += _write_field(pieces, number, kind, element)
        pieces += self.unknown
        return size + sum(map(len, self.unknown))


def _write_field(pieces: list[Bytes], number: int, kind: str, value: Any) -> int:
    tag = _to_varint(number << 3 | (LENGTH if kind in PACKED else KINDS.get(kind, LENGTH)))
    if kind == "int":
        pieces += (tag, content := _to_varint(value & 0xFFFF_FFFF_FFFF_FFFF))
        return len(tag) + len(content)
    if kind == "float":
        pieces += (tag, struct.pack("<f", value))
        return len(tag) + 4
    place = len(pieces)
    pieces += (tag, b"")  # the length, once it is known
    if kind == "text":
        pieces.append(value.encode("utf-8", "surrogateescape"))
        size = len(pieces[-1])
    elif kind in KINDS or kind in PACKED:
        pieces.append(value)
        size = memoryview(value).nbytes
    else:
        size = value._write(pieces)
    pieces[place + 1] = length = _to_varint(size)
    return len(tag) + len(length) + size


def _declared(cls: type[Message]) -> tuple[Field, ...]:
    """The fields of a class by number."""
    found = _DECLARED.get(cls.__name__)
    if found is None:
        made = [Field(f.name, *f.metadata["wire"]) for f in fields(cls) if "wire" in f.metadata]
        found = _DECLARED[cls.__name__] = tuple(sorted(made, key=lambda known: known.number))
        _BY_NUMBER[cls.__name__] = {known.number: known for known in found}
    return found


def _by_number(cls: type[Message]) -> dict[int, Field]:
    _declared(cls)
    return _BY_NUMBER[cls.__name__]


_DECLARED: dict[str, tuple[Field, ...]] = {}
_BY_NUMBER: dict[str, dict[int, Field]] = {}


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """(an unsigned number of 64 bits, the place behind it)."""
    value = shift = 0
    for byte in data[at : at + MAX_VARINT]:
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise FileError("it has a number without an end: damaged, cut short, or no ONNX file")


def _to_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _packed(data: memoryview, kind: str, budget: _Budget) -> list[Any]:
    """The numbers of a packed field."""
    values: list[Any] = []
    at = 0
    if kind == "float" and len(data) % 4:
        raise FileError("it has packed numbers that are cut short")
    while at < len(data):
        budget.take()
        if kind == "float":
            values.append(struct.unpack_from("<f", data, at)[0])
            at += 4
        else:
            value, at = _varint(data, at)
            values.append(_signed(value))
    return values
