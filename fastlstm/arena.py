"""Large arrays whose memory is used again once nobody refers to it.

Fresh memory costs a page fault for every 4 KiB at its first use: half of the time of a training step whose tape is
some 50 MB. So large results and tapes come from here. What a caller received belongs to the caller: memory is used
again only after the last array, view or buffer that refers to it is gone, which its reference count tells.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from .layout import Array
from .locks import Lock

LARGE = 1 << 16  # bytes; below, NumPy's own memory is quick enough
LINE = 64  # bytes of a cache line: every array from here begins with one
MOST = 64  # pieces of memory that are watched; what goes beyond comes from NumPy
MOST_FREE = 16  # pieces that wait for use


class Arena:
    """Memory for large arrays; any number of threads may ask."""

    def __init__(self) -> None:
        self._pieces: list[Array] = []
        self._lock = Lock()
        self._unused = _references([np.empty(1)], 0)  # what a piece counts that only the list refers to

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised C-contiguous array."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < LARGE:
            return np.empty(shape, dtype)
        with self._lock:
            piece = self._piece(size + LINE)
            skip = -piece.__array_interface__["data"][0] % LINE
            array: Array = piece[skip : skip + size].view(dtype).reshape(shape)
            del piece
        return array

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """The same, filled with zeros."""
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def copy(self, a: Array) -> Array:
        """A C-contiguous copy."""
        array = self.empty(a.shape, a.dtype)
        array[...] = a
        return array

    def _piece(self, size: int) -> Array:
        """The smallest unused piece that is large enough, or a new one, in place of the largest unused smaller one."""
        pieces = self._pieces
        free = sorted((pieces[i].nbytes, i) for i in range(len(pieces)) if _references(pieces, i) == self._unused)
        for nbytes, i in free:
            if nbytes >= size:
                return pieces[i]
        new = np.empty(size, np.uint8)
        superfluous = {i for _, i in free[: max(0, len(free) - MOST_FREE)]} | {i for _, i in free[-1:]}
        self._pieces = [piece for i, piece in enumerate(pieces) if i not in superfluous]
        if len(self._pieces) < MOST:
            self._pieces.append(new)
        return new


def _references(pieces: list[Array], i: int) -> int:
    return sys.getrefcount(pieces[i])


arena = Arena()
