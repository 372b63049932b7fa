"""Large arrays whose memory is used again once nothing refers to it.

Fresh memory costs a page fault for every 4 KiB at its first use: half of the time of a training step with a tape of
some 50 MB. So large results and tapes come from this pool. A caller's array belongs to the caller: its memory is used
again only after the last array, view or buffer that refers to it is gone, by its reference count.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from math import prod
from typing import Any

import numpy as np
from numpy import empty, ndarray  # global names are found sooner than attributes

from .forksafe import Lock
from .layout import Array

LARGE = 1 << 17  # bytes of an array from which the pool serves it; malloc reuses smaller memory by itself
LINE = 64  # bytes of a cache line: every array of the pool begins at one
MOST = 64  # pieces in the pool, at most; further arrays come from NumPy
MOST_FREE = 16  # unused pieces that the pool keeps, at most

Piece = tuple[int, int, Array]  # (bytes from its first cache line on, bytes before that, the memory)


class BufferPool:
    """Memory for large arrays; any number of threads may use one pool."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []  # sorted by size, smallest first
        self._lock = Lock()
        self._unused = _references((0, 0, np.empty(1)))  # the reference count of memory that only its piece refers to

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An uninitialised C-contiguous array."""
        size = prod(shape) * dtype.itemsize
        if size < LARGE:
            return empty(shape, dtype)
        with self._lock:
            _, skip, memory = self._piece(size)
            return ndarray(shape, dtype, memory, skip)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A C-contiguous array of zeros."""
        if prod(shape) * dtype.itemsize < LARGE:
            return np.zeros(shape, dtype)
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def copy(self, a: Array) -> Array:
        """A C-contiguous copy."""
        if a.nbytes < LARGE:
            return a.copy()
        array = self.empty(a.shape, a.dtype)
        array[...] = a
        return array

    def _piece(self, size: int) -> Piece:
        """The smallest unused piece that is large enough; else a new one, which replaces the largest unused piece."""
        pieces, unused = self._pieces, self._unused
        at = bisect_left(pieces, (size,))
        if at < len(pieces) and _references(pieces[at]) == unused:  # the usual case
            return pieces[at]
        for i in range(at + 1, len(pieces)):
            if _references(pieces[i]) == unused:
                return pieces[i]
        memory = np.empty(size + LINE, np.uint8)
        new = size, -memory.__array_interface__["data"][0] % LINE, memory
        del memory
        free = [i for i in range(at) if _references(pieces[i]) == unused]
        superfluous = {*free[: max(0, len(free) - MOST_FREE)], *free[-1:]}
        smaller = [piece for i, piece in enumerate(pieces[:at]) if i not in superfluous]
        if len(smaller) + len(pieces) - at < MOST:
            self._pieces = [*smaller, new, *pieces[at:]]
        return new


def _references(piece: Piece) -> int:
    return sys.getrefcount(piece[2])


buffers = BufferPool()
