"""Large arrays whose memory is used again once nothing refers to it.

Fresh memory costs a page fault for every 4 KiB at its first use: half of the time of a training step whose tape is
some 50 MB. So large results and tapes come from here. What a caller received belongs to the caller: memory is used
again only after the last array, view or buffer that refers to it is gone, which its reference count tells.
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

LARGE = 1 << 17  # bytes; below, NumPy's own memory is quick enough: malloc keeps what is given back
LINE = 64  # bytes of a cache line: every array from here begins with one
MOST = 64  # pieces of memory that are watched; what goes beyond comes from NumPy
MOST_FREE = 16  # pieces that wait for use

Piece = tuple[int, int, Array]  # its bytes from the first cache line on, those before it, and the memory


class BufferPool:
    """Memory for large arrays; any number of threads may ask."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []  # smallest first
        self._lock = Lock()
        self._unused = _references((0, 0, np.empty(1)))  # what memory counts that only its piece refers to

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An uninitialised C-contiguous array."""
        size = prod(shape) * dtype.itemsize
        if size < LARGE:
            return empty(shape, dtype)
        with self._lock:
            _, skip, memory = self._piece(size)
            return ndarray(shape, dtype, memory, skip)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """The same, filled with zeros."""
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
        """The smallest unused piece that is large enough, or a new one, in place of the largest unused smaller one."""
        pieces, unused = self._pieces, self._unused
        at = bisect_left(pieces, (size,))
        if at < len(pieces) and _references(pieces[at]) == unused:  # mostly so
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
