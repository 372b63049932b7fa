"""The messages between clients and service: binary WebSocket frames of a header and rows, little-endian.

A header is 8 bytes:

    u8   what: OPEN, STEP, SNAPSHOT or CLOSE; an answer has that of its request
    u8   of a request the numbers' format, FLOAT32 or INT16 (of sound: / 32768); of an answer the status
    u16  rows
    u32  number of the request, which the answer repeats

An OPEN request is followed by the stream's key (UTF-8); its answer by the steps that the stream has done (u64), from
which the client goes on. A STEP request is followed by rows of inputs, its answer by as many rows of float32 outputs.
SNAPSHOT is answered when the state is in the store. Where the status is not OK, a text follows.
"""

from __future__ import annotations

import struct

import numpy as np

HEADER = struct.Struct("<BBHI")
OPEN, STEP, SNAPSHOT, CLOSE = range(4)
FLOAT32, INT16 = range(2)
OK, WRONG, BUSY, GONE = range(4)  # BUSY: come again later; GONE: the service ends, connect again
STEPS = struct.Struct("<Q")


def rows_of(payload: memoryview, form: int, rows: int, size: int) -> np.ndarray:
    """The inputs (rows, size) of a STEP request.

    Raises
    ------
    ValueError
        The payload has another size, or the format is not known.
    """
    if form not in (FLOAT32, INT16):
        raise ValueError(f"format {form} is not known: 0 is float32, 1 is int16")
    if len(payload) != rows * size * (4 if form == FLOAT32 else 2):
        raise ValueError(f"{len(payload)} bytes are not {rows} rows of {size} numbers")
    if form == FLOAT32:
        return np.frombuffer(payload, "<f4").reshape(rows, size)
    return np.frombuffer(payload, "<i2").reshape(rows, size).astype(np.float32) / 32768


def request(what: int, number: int, payload: bytes = b"", form: int = FLOAT32, rows: int = 0) -> bytes:
    """A request's frame."""
    return HEADER.pack(what, form, rows, number) + payload
