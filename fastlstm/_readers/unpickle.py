"""A reader of pickles that runs nothing: opcodes build plain values, and every name in the stream stays a name.

Python's own `pickle` imports what a stream names and calls it. Here a class or function is a `Global` (two strings),
an object of a class is an `Instance` (its class's name and its state), and a call is made only where the name stands
in the table that the caller hands in, whose functions are the caller's own. Whatever else a stream asks for is an
error. Opcodes: the standard library's `pickletools` describes them.

Memory and time are bounded: a stream has at most `MAX_BYTES` and `MAX_OPCODES`, of which the containers and the
entries of the memo are counted again, and no length in the stream is believed beyond the bytes that are there.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, NamedTuple

from ..files import FileError

MAX_BYTES = 1 << 25  # of one stream: the description, not the weights. A vocabulary of a million words takes 20 MB
MAX_OPCODES = 8_000_000  # some seconds of work
MAX_CONTAINERS = 1_000_000  # the dearest, an empty set, has one byte in the stream and 216 in memory
MAX_MEMO = 2_000_000  # an entry has one byte in the stream and some 130 in memory
MAX_LINE = 1 << 16  # of protocol 0's lines of text
MAX_INTEGER = 256  # bytes. PyTorch's magic number, the longest that a checkpoint holds, has ten

# What damaged bytes raise in plain Python code that handles them.
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, struct.error, RecursionError)

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.<>]{0,511}\Z", re.ASCII)


class PickleError(FileError):
    """A pickle holds what is not read, or is damaged."""


class Global(NamedTuple):
    """The name of a class or function. It is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Instance:
    """An object of a class that is only named: what the class would have been given."""

    __slots__ = ("cls", "state")

    def __init__(self, cls: Global) -> None:
        self.cls = cls
        self.state: Any = None


class Buildable:
    """What a function of the table may return to be given the state that follows (opcode BUILD)."""

    def build(self, state: Any) -> None:
        raise NotImplementedError


Calls = Mapping[tuple[str, str], Callable[..., Any]]


def load(file: BinaryIO, size: int, calls: Calls, persistent: Callable[[Any], Any]) -> Any:
    """Read one pickle; the file then stands behind it.

    Parameters
    ----------
    file : binary file
    size : int
        How many bytes it has from here; no length in the stream may go beyond them.
    calls : dict
        What the stream may call: our function for each (module, name).
    persistent : callable
        Gives the object of a persistent id.

    Raises
    ------
    PickleError
        The stream is damaged, too large, or asks for what is not in the table.
    """
    machine = _Machine(file, size, calls, persistent)
    try:
        return machine.run()
    except FileError:
        raise
    except DAMAGE as error:
        raise PickleError(f"its pickle is damaged near byte {machine.used} ({type(error).__name__})") from error


def check_key(key: Any) -> None:
    """Raise PickleError if a value cannot be a key: text and numbers can.

    Nested tuples take exponential time to hash, and integers that are equal modulo 2^61 - 1 make a dictionary slow.
    """
    if key is None or isinstance(key, (str, float, bytes)) or (isinstance(key, int) and abs(key) < 1 << 60):
        return
    what = str(key) if isinstance(key, Global) else type(key).__name__
    raise PickleError(f"it has a dictionary or set with a key that is neither text nor a number ({what})")


def fill(target: Any, keys: Iterable[Any], values: Iterable[Any]) -> None:
    """Put keys and values into a dictionary that a stream builds."""
    if type(target) is not dict:
        raise PickleError(f"it sets items of {describe(target)}, which is no dictionary")
    for key, value in zip(keys, values, strict=True):
        check_key(key)
        target[key] = value


def say(value: Any) -> str:
    """A value of a stream for a message. (Nested containers that share items can have a text of any length.)"""
    return f"{value!r:.80}" if isinstance(value, (str, int, float, bytes)) or value is None else describe(value)


def describe(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, Global):
        return f"{value}"
    if isinstance(value, Instance):
        return f"an object of the class {value.cls}"
    return f"a value of type {type(value).__name__}"


class _Machine:
    """The state of one reading: the stack of values, the stacks below its marks, and the memo."""

    def __init__(self, file: BinaryIO, size: int, calls: Calls, persistent: Callable[[Any], Any]) -> None:
        self.file, self.left = file, min(size, MAX_BYTES)
        self.cut = size > MAX_BYTES
        self.used = 0
        self.calls, self.persistent = calls, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.containers = 0

    # ---- bytes
    def read(self, n: int) -> bytes:
        if n > self.left:
            raise PickleError(
                f"its pickle has more than {MAX_BYTES} bytes" if self.cut else "its pickle is damaged or cut short"
            )
        data = self.file.read(n)
        if len(data) != n:
            raise PickleError("its pickle is cut short")
        self.left -= n
        self.used += n
        return data

    def line(self, encoding: str = "utf-8") -> str:
        data = self.file.readline(min(self.left, MAX_LINE))
        self.left -= len(data)
        self.used += len(data)
        if not data.endswith(b"\n"):
            raise PickleError(f"its pickle is cut short, or has a line of more than {MAX_LINE} bytes")
        return data[:-1].decode(encoding)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    # ---- stacks
    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.below.pop()
        return items

    def container(self, value: Any) -> None:
        self.containers += 1
        if self.containers > MAX_CONTAINERS:
            raise PickleError(f"it has more than {MAX_CONTAINERS} lists, dictionaries and the like")
        self.stack.append(value)

    def put(self, index: int) -> None:
        if len(self.memo) >= MAX_MEMO:
            raise PickleError(f"its pickle remembers more than {MAX_MEMO} values")
        self.memo[index] = self.stack[-1]

    # ---- the loop
    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            code = self.read(1)
            if code == pickle.STOP:
                if self.below or len(self.stack) != 1:
                    raise PickleError("its pickle ends with values left over")
                return self.stack.pop()
            action = _ACTIONS.get(code)
            if action is None:
                refused = _REFUSED.get(code)
                raise PickleError(f"its pickle {refused or f'is damaged: there is no opcode {code!r}'}")
            action(self)
        raise PickleError(f"its pickle has more than {MAX_OPCODES} opcodes")

    # ---- opcodes that need more than a line
    def make_global(self, module: Any, name: Any) -> None:
        for part in (module, name):
            if not isinstance(part, str) or not NAME.match(part):
                raise PickleError(f"its pickle names {say(part)}, which is no name of a module, class or function")
        self.container(Global(module, name))

    def global_lines(self) -> None:
        module = self.line()
        self.make_global(module, self.line())

    def global_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.make_global(module, name)

    def call(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(args, tuple):
            raise PickleError("its pickle calls something without a tuple of arguments")
        self.container(call(self.calls, function, args))

    def new_object(self) -> None:
        _args, cls = self.stack.pop(), self.stack.pop()
        if not isinstance(cls, Global):
            raise PickleError(f"its pickle makes an object of {describe(cls)}, which is no class")
        # A class of the table (OrderedDict in protocol 4) is made by its function, every other one stays a name.
        self.container(call(self.calls, cls, _args) if tuple(cls) in self.calls else Instance(cls))

    def new_object_with_names(self) -> None:
        if self.stack.pop() != {}:
            raise PickleError("its pickle makes an object with named arguments")
        self.new_object()

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Instance):
            target.state = state
        elif isinstance(target, Buildable):
            target.build(state)
        elif type(target) is not dict:  # attributes of a dictionary, such as a state_dict's _metadata, are left out
            raise PickleError(f"its pickle sets the state of {describe(target)}")

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise PickleError(f"its pickle appends to {describe(target)}, which is no list")
        target.extend(values)

    def add_items(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise PickleError(f"its pickle adds to {describe(self.stack[-1])}, which is no set")
        for item in items:
            check_key(item)
        self.stack[-1].update(items)

    def set_items(self) -> None:
        items = self.pop_mark()
        fill(self.stack[-1], items[::2], items[1::2])

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        fill(self.stack[-1], [key], [value])

    def make_dict(self) -> None:
        items = self.pop_mark()
        self.container({})
        fill(self.stack[-1], items[::2], items[1::2])

    def make_frozenset(self) -> None:
        items = self.pop_mark()
        for item in items:
            check_key(item)
        self.container(frozenset(items))

    def make_tuple(self, n: int) -> None:
        items = tuple(self.stack[-n:])
        if len(items) != n:
            raise PickleError("its pickle makes a tuple of values that are not there")
        del self.stack[-n:]
        self.container(items)

    def mark(self) -> None:
        self.containers += 1
        if self.containers > MAX_CONTAINERS:
            raise PickleError(f"it has more than {MAX_CONTAINERS} lists, dictionaries and the like")
        self.below.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def integer_line(self) -> None:
        text = self.line()
        if len(text) > MAX_INTEGER:
            raise PickleError("its pickle has an integer of absurd size")
        self.stack.append({"00": False, "01": True}[text] if text in ("00", "01") else int(text.rstrip("L")))

    def long(self, n: int) -> None:
        if not 0 <= n <= MAX_INTEGER:
            raise PickleError("its pickle has an integer of absurd size")
        self.stack.append(int.from_bytes(self.read(n), "little", signed=True))

    def text(self, n: int) -> None:
        self.stack.append(self.read(n).decode("utf-8"))

    def old_string(self, data: bytes) -> None:
        """A string of Python 2: text where it can be, else bytes."""
        try:
            self.stack.append(data.decode("utf-8"))
        except UnicodeDecodeError:
            self.stack.append(data)

    def old_string_line(self) -> None:
        text = self.line().strip()
        if len(text) < 2 or text[0] != text[-1] or text[0] not in "\"'" or "\\" in text:
            raise PickleError("its pickle has a quoted string that is damaged, or escaped")
        self.stack.append(text[1:-1])


def call(calls: Calls, function: Any, args: Any) -> Any:
    """Call our own function for a name of the stream, or refuse."""
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise PickleError(f"its pickle calls {describe(function)}, which is no function")
    if tuple(function) not in calls:
        raise PickleError(f"its pickle asks to call {function}, which is refused: it is in no list of what is read")
    try:
        return calls[function](*args)
    except FileError:
        raise
    except Exception as error:  # the arguments are whatever the stream says
        raise PickleError(f"its pickle calls {function} with arguments that it does not take") from error


_REFUSED = {
    pickle.INST: "makes an object by the opcode INST, which is not read",
    pickle.OBJ: "makes an object by the opcode OBJ, which is not read",
    pickle.EXT1: "uses the registry of extensions (EXT1), which is not read",
    pickle.EXT2: "uses the registry of extensions (EXT2), which is not read",
    pickle.EXT4: "uses the registry of extensions (EXT4), which is not read",
    pickle.PERSID: "has a persistent id in text (PERSID), which no version of PyTorch writes",
    pickle.NEXT_BUFFER: "refers to buffers outside of it, which are not in the file",
    pickle.READONLY_BUFFER: "refers to buffers outside of it, which are not in the file",
}

_ACTIONS: dict[bytes, Callable[[_Machine], Any]] = {
    pickle.PROTO: lambda m: m.read(1),
    pickle.FRAME: lambda m: m.read(8),
    pickle.MARK: _Machine.mark,
    pickle.POP: _Machine.pop,
    pickle.POP_MARK: _Machine.pop_mark,
    pickle.DUP: lambda m: m.stack.append(m.stack[-1]),
    pickle.NONE: lambda m: m.stack.append(None),
    pickle.NEWTRUE: lambda m: m.stack.append(True),
    pickle.NEWFALSE: lambda m: m.stack.append(False),
    pickle.INT: _Machine.integer_line,
    pickle.LONG: _Machine.integer_line,
    pickle.BININT: lambda m: m.stack.append(m.number("<i")),
    pickle.BININT1: lambda m: m.stack.append(m.number("<B")),
    pickle.BININT2: lambda m: m.stack.append(m.number("<H")),
    pickle.LONG1: lambda m: m.long(m.number("<B")),
    pickle.LONG4: lambda m: m.long(m.number("<i")),
    pickle.FLOAT: lambda m: m.stack.append(float(m.line())),
    pickle.BINFLOAT: lambda m: m.stack.append(m.number(">d")),
    pickle.STRING: _Machine.old_string_line,
    pickle.BINSTRING: lambda m: m.old_string(m.read(m.number("<I"))),
    pickle.SHORT_BINSTRING: lambda m: m.old_string(m.read(m.number("<B"))),
    pickle.UNICODE: lambda m: m.stack.append(m.line("raw-unicode-escape")),
    pickle.BINUNICODE: lambda m: m.text(m.number("<I")),
    pickle.SHORT_BINUNICODE: lambda m: m.text(m.number("<B")),
    pickle.BINUNICODE8: lambda m: m.text(m.number("<Q")),
    pickle.BINBYTES: lambda m: m.stack.append(m.read(m.number("<I"))),
    pickle.SHORT_BINBYTES: lambda m: m.stack.append(m.read(m.number("<B"))),
    pickle.BINBYTES8: lambda m: m.stack.append(m.read(m.number("<Q"))),
    pickle.BYTEARRAY8: lambda m: m.stack.append(m.read(m.number("<Q"))),
    pickle.EMPTY_LIST: lambda m: m.container([]),
    pickle.LIST: lambda m: m.container(m.pop_mark()),
    pickle.APPEND: lambda m: m.append([m.stack.pop()]),
    pickle.APPENDS: lambda m: m.append(m.pop_mark()),
    pickle.EMPTY_TUPLE: lambda m: m.container(()),
    pickle.TUPLE: lambda m: m.container(tuple(m.pop_mark())),
    pickle.TUPLE1: lambda m: m.make_tuple(1),
    pickle.TUPLE2: lambda m: m.make_tuple(2),
    pickle.TUPLE3: lambda m: m.make_tuple(3),
    pickle.EMPTY_DICT: lambda m: m.container({}),
    pickle.DICT: _Machine.make_dict,
    pickle.SETITEM: _Machine.set_item,
    pickle.SETITEMS: _Machine.set_items,
    pickle.EMPTY_SET: lambda m: m.container(set()),
    pickle.ADDITEMS: _Machine.add_items,
    pickle.FROZENSET: _Machine.make_frozenset,
    pickle.GET: lambda m: m.stack.append(m.memo[int(m.line())]),
    pickle.BINGET: lambda m: m.stack.append(m.memo[m.number("<B")]),
    pickle.LONG_BINGET: lambda m: m.stack.append(m.memo[m.number("<I")]),
    pickle.PUT: lambda m: m.put(int(m.line())),
    pickle.BINPUT: lambda m: m.put(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.put(m.number("<I")),
    pickle.MEMOIZE: lambda m: m.put(len(m.memo)),
    pickle.GLOBAL: _Machine.global_lines,
    pickle.STACK_GLOBAL: _Machine.global_stack,
    pickle.REDUCE: _Machine.call,
    pickle.NEWOBJ: _Machine.new_object,
    pickle.NEWOBJ_EX: _Machine.new_object_with_names,
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: lambda m: m.container(m.persistent(m.stack.pop())),
}
