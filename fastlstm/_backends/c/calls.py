"""What every call of C needs: pointers, aligned memory, and structs that are kept from call to call."""

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
else:  # the names exist, for imports; nothing calls them
    NULL = new = from_buffer = FLOATS = INTS = DOUBLES = BYTES = NO_MAP = None


def aligned(floats: int) -> Array:
    """Uninitialised float32 memory that begins at a cache line."""
    return buffers.empty((floats,), FLOAT32) if 4 * floats >= LARGE else of_its_own(floats)


def of_its_own(floats: int) -> Array:
    """The same, never from the arena: what is kept for long would keep a piece that may be many times as large."""
    memory = np.empty(floats + 16, np.float32)
    skip = -(memory.__array_interface__["data"][0] // 4) % 16
    return memory[skip : skip + floats]


class Call:
    """The structs that C calls take, and their scratch memory, kept between calls.

    New structs would cost a short call their allocations, and fresh memory its page faults. Fields that rarely change
    are set only when they do: `rows`, `row_map`, `second` and `threads` are what `forward` has. Pointers to arrays of a
    call that is over stay in the structs, and are never used.
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
        """Set the fields of the struct for forward that rarely change."""
        struct = self.forward
        struct.second = second
        struct.rows = (NULL, NULL, sizes_of(rows), rows.T)
        struct.row_map = NO_MAP if row_map is None else (row_map.step, from_buffer(INTS, row_map.sequences))
        struct.threads = threads
        struct.scratch = self.scratch
        self.second, self.rows, self.row_map, self.threads = second, rows, row_map, threads

    def grow(self, floats: int) -> None:
        """Scratch memory of so many floats."""
        self.scratch = self.forward.scratch = (pointer(of_its_own(floats)), floats)


free_calls: deque[Call] = deque(maxlen=16)  # calls of more threads at the same time are rare, and made anew


def run(kind: str, function: Any, fields: Any) -> None:
    """Set all fields of the struct `kind` but the scratch memory, and call a C function until that is large enough."""
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
    """C pointer to the batch sizes, made once."""
    sizes = rows.handles.get("c")
    if sizes is None:
        sizes = rows.handles["c"] = from_buffer(INTS, rows.batch_sizes)
    return sizes
