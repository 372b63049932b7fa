"""Pointers, aligned memory and reused structs for calls of C."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from ...layout import Array, RowMap, Rows
from ...memory import LARGE, buffers
from .extension import ffi

FLOAT32 = np.dtype(np.float32)

if ffi is not None:  # module-level aliases: cheaper than attribute lookups, of which a short call does dozens
    NULL, new, from_buffer = ffi.NULL, ffi.new, ffi.from_buffer
    FLOATS, INTS, DOUBLES = ffi.typeof("float[]"), ffi.typeof("int64_t[]"), ffi.typeof("double[]")
    BYTES = ffi.typeof("char[]")
    NO_MAP: Any = (0, NULL)  # fl_row_map of packed outputs
else:  # names for imports; they are never called
    NULL = new = from_buffer = FLOATS = INTS = DOUBLES = BYTES = NO_MAP = None


def aligned(floats: int) -> Array:
    """Uninitialised float32 memory that begins at a cache line."""
    return buffers.empty((floats,), FLOAT32) if 4 * floats >= LARGE else of_its_own(floats)


def of_its_own(floats: int) -> Array:
    """Uninitialised float32 memory that is not from the buffer pool, whose pieces may be many times as large.

    For memory that is kept for long. It begins at a cache line.
    """
    memory = np.empty(floats + 16, np.float32)
    skip = -(memory.__array_interface__["data"][0] // 4) % 16
    return memory[skip : skip + floats]


class Call:
    """The structs that C calls take, and their scratch memory, kept between calls.

    New structs would cost a short call their allocations, and fresh memory its page faults. Fields that rarely change
    are set only when they do: `rows`, `row_map`, `second` and `threads` are the values in the struct of `forward`.
    Pointers to arrays of an earlier call stay in the structs, and are never used.
    """

    __slots__ = ("backward", "dense", "forward", "row_map", "rows", "scratch", "second", "threads")

    def __init__(self) -> None:
        self.forward, self.backward = new("fl_call *"), new("fl_backward_call *")
        self.dense = new("fl_dense_call *")
        self.scratch: tuple[Any, int] = (NULL, 0)  # fl_scratch
        self.rows: Rows | None = None
        self.row_map: RowMap | None = None
        self.second: Any = NULL  # fl_block *
        self.threads = 0

    def set_forward(self, second: Any, rows: Rows, row_map: RowMap | None, threads: int) -> None:
        """Set those fields of the struct of `forward` that rarely change."""
        struct = self.forward
        struct.second = second
        struct.rows = (NULL, NULL, sizes_of(rows), rows.T)
        struct.row_map = NO_MAP if row_map is None else (row_map.step, from_buffer(INTS, row_map.sequences))
        struct.threads = threads
        struct.scratch = self.scratch
        self.second, self.rows, self.row_map, self.threads = second, rows, row_map, threads

    def grow(self, floats: int) -> None:
        """Replace the scratch memory by one of `floats` floats."""
        self.scratch = self.forward.scratch = (pointer(of_its_own(floats)), floats)


free_calls: deque[Call] = deque(maxlen=16)  # more calls at the same time are rare; they make new structs


def run(kind: str, function: Any, fields: Any) -> None:
    """Set the fields of the struct `kind`, and call a C function with ever more scratch memory until it is enough."""
    try:
        call = free_calls.pop()
    except IndexError:
        call = Call()
    struct = getattr(call, kind)
    struct[0] = fields
    struct.scratch = call.scratch
    while (need := function(struct)) > call.scratch[1]:
        call.grow(need)
        struct.scratch = call.scratch
    free_calls.append(call)


def pointer(a: Array | None) -> Any:
    """C pointer to a contiguous float32 array, which must outlive it; NULL for None."""
    return NULL if a is None else from_buffer(FLOATS, a)


def sizes_of(rows: Rows) -> Any:
    """C pointer to the batch sizes, cached in `rows`."""
    sizes = rows.handles.get("c")
    if sizes is None:
        sizes = rows.handles["c"] = from_buffer(INTS, rows.batch_sizes)
    return sizes
