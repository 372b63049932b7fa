"""Memory for slabs: zeros, in large pages where there is much of it.

A step of streams that lie anywhere touches a page for each of them. A processor knows the places of some thousand
pages. With pages of 4 KiB that is some 10 MB of states, and random steps of more took 5 % longer; with pages of 2 MiB
it is gigabytes.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from ..layout import Array

PAGE = 2 << 20  # bytes of a large page
LINE = 64  # bytes of a cache line
MOST_WASTE = 0.05  # share of a region that no slab fills
SMALL = 8  # large pages' worth of slabs that a StreamBatch fills one by one before it takes whole regions
HAS_LARGE_PAGES = hasattr(mmap, "MADV_HUGEPAGE")  # Linux


def zeros(size: int, dtype: np.dtype[Any]) -> Array:
    """(size,) zeros that begin at a cache line. The system gives each page when it is first used."""
    line = LINE // dtype.itemsize
    memory = np.zeros(size + line, dtype)
    skip = -(memory.__array_interface__["data"][0] // dtype.itemsize) % line
    return memory[skip : skip + size]


def large(size: int, dtype: np.dtype[Any]) -> Array:
    """(size,) zeros that begin at a large page, of which the system is asked to make large pages."""
    length = size * dtype.itemsize + PAGE
    # Private: after a fork the child's states are its own.
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(memory, np.uint8)
    skip = -whole.__array_interface__["data"][0] % PAGE
    memory.madvise(mmap.MADV_HUGEPAGE, 0, length)
    array: Array = whole[skip : skip + size * dtype.itemsize].view(dtype)
    return array


class Regions:
    """Slabs of equal size.

    Parameters
    ----------
    size : int
        Numbers of a slab.
    dtype : dtype
    """

    def __init__(self, size: int, dtype: np.dtype[Any]) -> None:
        self._size, self._dtype = size, dtype
        self._slabs: list[Array] = []  # of the present region that are not given out
        self._given = 0
        slab = size * dtype.itemsize
        pages = next((n for n in range(1, 9) if n * PAGE // slab * slab >= (1 - MOST_WASTE) * n * PAGE), 0)
        self.of_region = pages * PAGE // slab if HAS_LARGE_PAGES else 0  # slabs of a region; 0: no regions
        self._small = SMALL * PAGE // slab

    def slab(self, wanted: int) -> Array:
        """A slab, the first of so many that are wanted now."""
        if not self._slabs and self.of_region and (wanted >= self.of_region or self._given >= self._small):
            region = large(self.of_region * self._size, self._dtype)
            self._slabs = [region[i * self._size : (i + 1) * self._size] for i in range(self.of_region)][::-1]
        self._given += 1
        return self._slabs.pop() if self._slabs else zeros(self._size, self._dtype)
