"""A stream's state as bytes: versioned, checked, and refused by name where it does not fit.

    4 bytes   "FLST"
    u16       version, 1
    u16       dtype: 1 float32, 2 float64
    u16       parts: for each layer h and, for LSTM, c
    u16       0
    u64       steps that the stream has done
    16 bytes  the weights' number (`fastlstm.streams.model.weights_id`)
    u32 each  width of each part
    numbers   the parts, one after the other
    u32       CRC-32 of all bytes before it

All numbers are little-endian.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

from ..layout import Array
from .errors import StateError

MAGIC, VERSION = b"FLST", 1
HEAD = struct.Struct("<4sHHHHQ16s")
CRC = struct.Struct("<I")
DTYPES = {"float32": 1, "float64": 2}


def encode(record: Array, widths: tuple[int, ...], steps: int, weights_id: bytes) -> bytes:
    """The bytes of a state from its numbers (sum of widths,)."""
    head = HEAD.pack(MAGIC, VERSION, DTYPES[record.dtype.name], len(widths), 0, steps, weights_id)
    sizes = struct.pack(f"<{len(widths)}I", *widths)
    body = head + sizes + record.astype(record.dtype.newbyteorder("<"), copy=False).tobytes()
    return body + CRC.pack(zlib.crc32(body))


def decode(
    data: Any, widths: tuple[int, ...], dtype: np.dtype[Any], weights_id: bytes | None, name: str = "state"
) -> tuple[Array, int]:
    """(numbers (sum of widths,), steps) from the bytes of a state.

    Parameters
    ----------
    data : bytes, or what has them
    widths : tuple of int
        The expected widths of the parts.
    dtype : dtype
        The expected one.
    weights_id : bytes, optional
        The expected number; None takes any.
    name : str
        What the messages call the bytes.

    Raises
    ------
    TypeError
        `data` is no bytes.
    StateError
        The bytes are damaged, cut short, or of another version, dtype, size or other weights.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"{name} must be the bytes that export returned, got {type(data).__name__}")
    data = bytes(data)
    if len(data) < HEAD.size + CRC.size or not data.startswith(MAGIC):
        what = f"only {len(data)} bytes" if data.startswith(MAGIC[: len(data)]) else f"{data[:4]!r} at its beginning"
        raise StateError(f"{name} is no state of a stream: it has {what}")
    _, version, kind, parts, _, steps, of_weights = HEAD.unpack_from(data)
    if version != VERSION:
        raise StateError(f"{name} has version {version} of the format, and this fastlstm reads version {VERSION}")
    found = struct.unpack_from(f"<{parts}I", data, HEAD.size) if len(data) >= HEAD.size + 4 * parts else ()
    at = HEAD.size + 4 * parts
    size = next((np.dtype(one).itemsize for one, number in DTYPES.items() if number == kind), 0)
    expected = at + sum(found) * size + CRC.size
    if len(data) < expected or len(found) < parts:
        raise StateError(f"{name} is cut short: it has {len(data)} bytes of {max(expected, at)}")
    if len(data) > expected or CRC.unpack_from(data, len(data) - CRC.size)[0] != zlib.crc32(data[: -CRC.size]):
        raise StateError(f"{name} is damaged: its bytes do not have the checksum that was written with them")
    if kind != DTYPES[dtype.name] or found != widths:
        word = next(one for one, number in DTYPES.items() if number == kind)
        raise StateError(
            f"{name} is of another model: it has parts of {', '.join(map(str, found))} numbers of {word}, and this "
            f"model's state has {', '.join(map(str, widths))} of {dtype.name}"
        )
    if weights_id is not None and of_weights != weights_id:
        raise StateError(
            f"{name} belongs to other weights: to those with number {of_weights.hex()}, and these have "
            f"{weights_id.hex()}. To go on with it nevertheless, give restore other_weights=True"
        )
    numbers = np.frombuffer(data, dtype.newbyteorder("<"), sum(widths), at)
    return numbers.astype(dtype), steps
