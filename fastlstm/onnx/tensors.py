"""The numbers of ONNX's tensors as NumPy arrays, from every form in which a file may hold them, and back."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files import FileError
from ..layout import Array
from .messages import TensorProto

MAX_AXES = 32  # NumPy's limit before version 2
EXTERNAL = 1  # TensorProto.data_location


class Small(NamedTuple):
    """A float of at most 16 bits: sign, exponent, mantissa, from the highest bit down.

    Parameters
    ----------
    exponent, mantissa : int
        Bits of each.
    bias : int
        Of the exponent.
    signed : bool
    special : {"ieee", "nan", "negative zero", "none"}
        What is not a number: infinities and NaN at the greatest exponent; NaN where all bits are set; NaN in place of
        -0; nothing.
    """

    exponent: int
    mantissa: int
    bias: int
    signed: bool = True
    special: str = "none"

    def values(self, bits: Array) -> Array:
        """The numbers as float32; subnormal ones have the exponent 1 - bias."""
        code = bits.astype(np.int64)
        most = (1 << self.exponent) - 1
        fraction, power = code & ((1 << self.mantissa) - 1), code >> self.mantissa & most
        negative = (code >> (self.mantissa + self.exponent) & 1).astype(bool) & self.signed
        whole = np.where(power > 0, fraction + (1 << self.mantissa), fraction)
        found = np.ldexp(whole.astype(np.float64), np.maximum(power, 1) - self.bias - self.mantissa)
        if self.mantissa == 0:  # float8e8m0: powers of two alone, without 0 and subnormals
            found = np.ldexp(1.0, power - self.bias)
        if self.special == "ieee":
            found = np.where(power == most, np.where(fraction > 0, np.nan, np.inf), found)
        elif self.special == "nan":
            found[(power == most) & (fraction == (1 << self.mantissa) - 1)] = np.nan
        found = np.where(negative, -found, found)
        if self.special == "negative zero":
            found[negative & (found == 0)] = np.nan
        numbers: Array = found.astype(np.float32)
        return numbers


class DataType(NamedTuple):
    """A type of TensorProto.DataType.

    Parameters
    ----------
    name : str
    field : str
        Where the numbers are if not in raw_data.
    dtype : str
        How they are stored in raw_data; small numbers of `bits` bits are packed into bytes, the first lowest.
    bits : int
        0 unless packed.
    small : Small or None
        Floats that NumPy does not have; they become float32.
    """

    name: str
    field: str
    dtype: str
    bits: int = 0
    small: Small | None = None


TYPES = {
    1: DataType("float32", "float_data", "<f4"),
    2: DataType("uint8", "int32_data", "u1"),
    3: DataType("int8", "int32_data", "i1"),
    4: DataType("uint16", "int32_data", "<u2"),
    5: DataType("int16", "int32_data", "<i2"),
    6: DataType("int32", "int32_data", "<i4"),
    7: DataType("int64", "int64_data", "<i8"),
    8: DataType("string", "string_data", "O"),
    9: DataType("bool", "int32_data", "?"),
    10: DataType("float16", "int32_data", "<f2"),
    11: DataType("float64", "double_data", "<f8"),
    12: DataType("uint32", "uint64_data", "<u4"),
    13: DataType("uint64", "uint64_data", "<u8"),
    14: DataType("complex64", "float_data", "<c8"),
    15: DataType("complex128", "double_data", "<c16"),
    16: DataType("bfloat16", "int32_data", "<u2", 0, Small(8, 7, 127, True, "ieee")),
    17: DataType("float8e4m3fn", "int32_data", "u1", 0, Small(4, 3, 7, True, "nan")),
    18: DataType("float8e4m3fnuz", "int32_data", "u1", 0, Small(4, 3, 8, True, "negative zero")),
    19: DataType("float8e5m2", "int32_data", "u1", 0, Small(5, 2, 15, True, "ieee")),
    20: DataType("float8e5m2fnuz", "int32_data", "u1", 0, Small(5, 2, 16, True, "negative zero")),
    21: DataType("uint4", "int32_data", "u1", 4),
    22: DataType("int4", "int32_data", "i1", 4),
    23: DataType("float4e2m1", "int32_data", "u1", 4, Small(2, 1, 1)),
    24: DataType("float8e8m0", "int32_data", "u1", 0, Small(8, 0, 127, False, "nan")),
    25: DataType("uint2", "int32_data", "u1", 2),
    26: DataType("int2", "int32_data", "i1", 2),
}
NUMBERS = {np.dtype(of.dtype): number for number, of in TYPES.items() if not of.bits and not of.small}


def to_array(tensor: TensorProto, folder: Path | None = None) -> Array:
    """The numbers of a tensor, as a view of the file's bytes where that is possible.

    Parameters
    ----------
    tensor : TensorProto
    folder : Path, optional
        The folder of the model's file (`ModelProto.folder`), for external data.

    Returns
    -------
    array : of dims
        Of the tensor's type; float32 for the floats that NumPy does not have; objects (bytes) for strings.

    Raises
    ------
    FileError
        The type is not known, the size is another than that of the shape, or external data are outside the folder.
    OSError
        The file of external data is missing or cannot be read.
    """
    of = TYPES.get(tensor.data_type)
    if of is None:
        raise FileError(f"its tensor {tensor.name!r:.80} has the type {tensor.data_type}, which is not read")
    shape = shape_of(tensor)
    count = math.prod(shape)
    if of.dtype == "O":
        if len(tensor.string_data) != count:
            raise _wrong(tensor, f"{len(tensor.string_data)} texts", f"{count}")
        flat: Array = np.empty(count, object)
        flat[:] = [bytes(one) for one in tensor.string_data]
        return flat.reshape(shape)
    if tensor.data_location == EXTERNAL or tensor.raw_data is not None or count == 0:
        return _raw(tensor, of, count, folder).reshape(shape)
    return _typed(tensor, of, count).reshape(shape)


def shape_of(tensor: TensorProto) -> tuple[int, ...]:
    """The axes, checked."""
    shape = tuple(tensor.dims)
    if len(shape) > MAX_AXES or any(n < 0 for n in shape):
        raise FileError(f"its tensor {tensor.name!r:.80} has the shape {shape!s:.80}")
    if math.prod(max(n, 1) for n in shape) > 1 << 40:
        raise FileError(f"its tensor {tensor.name!r:.80} has the shape {shape!s:.80}, which is too large")
    return shape


def size_in_bytes(tensor: TensorProto) -> int:
    """How many bytes the numbers of a tensor have, by its type and shape; 0 of a type that is not known."""
    of = TYPES.get(tensor.data_type)
    return 0 if of is None else _size(of, math.prod(shape_of(tensor)))


def _size(of: DataType, count: int) -> int:
    return -(-count * of.bits // 8) if of.bits else count * np.dtype(of.dtype).itemsize


def _wrong(tensor: TensorProto, given: str, expected: str) -> FileError:
    return FileError(
        f"its tensor {tensor.name!r:.80} has {given}, where the shape {tuple(tensor.dims)!s:.80} of type "
        f"{TYPES[tensor.data_type].name} takes {expected}: damaged, or cut short"
    )


def _raw(tensor: TensorProto, of: DataType, count: int, folder: Path | None) -> Array:
    """The numbers of raw_data or of an external file, flat."""
    stored, size = np.dtype(of.dtype), _size(of, count)
    if tensor.data_location == EXTERNAL and count:
        data = external(tensor, size, folder)
    else:
        data = np.frombuffer(tensor.raw_data if tensor.raw_data is not None else b"", np.uint8)
    if data.size != size:
        raise _wrong(tensor, f"{data.size} bytes", f"{size}")
    if of.bits:
        return _unpacked(data, of, count)
    if stored == np.dtype("?"):
        return data.astype(bool)
    return _widened(data.view(stored), of)


def _unpacked(data: Array, of: DataType, count: int) -> Array:
    """Numbers of 2 or 4 bits, the first in the lowest bits of a byte."""
    shifts = np.arange(0, 8, of.bits, dtype=np.uint8)
    codes = (data[:, None] >> shifts & ((1 << of.bits) - 1)).reshape(-1)[:count]
    if of.dtype == "i1":
        sign = 1 << (of.bits - 1)
        return ((codes ^ sign).astype(np.int16) - sign).astype(np.int8)
    return _widened(codes, of)


def _widened(stored: Array, of: DataType) -> Array:
    if of.name == "bfloat16":  # the upper half of a float32
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored if of.small is None else of.small.values(stored)


def _typed(tensor: TensorProto, of: DataType, count: int) -> Array:
    """The numbers of one of the `*_data` fields, flat."""
    data = b"".join(getattr(tensor, of.field))
    stored = np.dtype(of.dtype)
    if of.field in ("float_data", "double_data"):
        if len(data) != count * stored.itemsize:
            raise _wrong(tensor, f"{len(data)} bytes", f"{count * stored.itemsize}")
        return np.frombuffer(data, stored)
    numbers = varints(data)
    expected = -(-count * of.bits // 8) if of.bits else count  # packed ones: a byte in each number
    if numbers.size != expected:
        raise _wrong(tensor, f"{numbers.size} numbers", f"{expected}")
    if of.bits:
        return _unpacked(numbers.astype(np.uint8), of, count)
    if stored == np.dtype("?"):
        return numbers.astype(bool)
    if stored == np.dtype("<f2"):
        return numbers.astype(np.uint16).view(stored)
    return _widened(numbers.astype(stored), of)


def varints(data: bytes) -> Array:
    """The numbers of a packed field of varints, as uint64: eight passes over all numbers at once, not a loop.

    Raises
    ------
    FileError
        The last number has no end, or one has more than ten bytes.
    """
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 128)
    if (raw.size and raw[-1] > 127) or not raw.size:
        if raw.size:
            raise FileError("it has a number without an end: damaged, or cut short")
        return np.zeros(0, np.uint64)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise FileError("it has a number without an end: damaged, or cut short")
    values = np.zeros(ends.size, np.uint64)
    for place in range(int(lengths.max())):
        long = lengths > place
        values[long] |= (raw[starts[long] + place] & np.uint8(127)).astype(np.uint64) << np.uint64(7 * place)
    return values


def external(tensor: TensorProto, size: int, folder: Path | None) -> Array:
    """The bytes of a tensor that are in a file of their own.

    Raises
    ------
    FileError
        The file is outside the model's folder, is no regular file, or is too short.
    OSError
        It is missing or cannot be read.
    """
    path, offset = external_place(tensor, size, folder)
    with open(path, "rb") as file:
        data = np.fromfile(file, np.uint8, size, offset=offset)
    if data.size != size:
        raise _wrong(tensor, f"{data.size} bytes in {path}", f"{size}")
    return data


def external_place(tensor: TensorProto, size: int, folder: Path | None) -> tuple[Path, int]:
    """(the file of a tensor's external data, the first byte in it), checked as `external` says."""
    title = f"its tensor {tensor.name!r:.80}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise FileError(f"{title} is in another file, {location!r:.80}, but the model was not read from a file")
    sound = location and "\0" not in location
    path = Path(os.path.realpath(folder / location.replace("\\", "/"))) if sound else folder
    if not sound or not path.is_relative_to(os.path.realpath(folder)):
        raise FileError(f"{title} is in {location!r:.80}: external data outside the model's folder are not read")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"{title} is in {location!r:.80}, which is no regular file")
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or size)
    except ValueError as error:
        raise FileError(f"{title} has an offset or a length that is no number") from error
    if length != size:
        raise _wrong(tensor, f"{length} bytes in {location!r:.80}", f"{size}")
    if offset < 0 or offset + size > status.st_size:
        raise _wrong(
            tensor, f"bytes {offset} to {offset + size} of {location!r:.80}, which has {status.st_size}", f"{size}"
        )
    return path, offset


def from_array(array: Any, name: str = "") -> TensorProto:
    """A tensor with an array's numbers as raw_data.

    Raises
    ------
    TypeError
        ONNX has no such type.
    """
    array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
    stored = array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype
    number = NUMBERS.get(np.dtype(stored))
    if number is None or array.dtype == object:
        raise TypeError(f"ONNX has no tensors of {array.dtype}")
    return TensorProto(dims=list(array.shape), data_type=number, name=name, raw_data=array.astype(stored).tobytes())
