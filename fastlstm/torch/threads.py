"""Kernels on PyTorch's threads.

PyTorch's threads stay awake for some milliseconds after each of its operations. A second pool would find its cores
taken, so calls from PyTorch run on PyTorch's own threads where these are OpenMP's.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch

from .._backends import c
from ..num_threads import get_num_threads, threads


@functools.cache
def _parallel() -> Any:
    """OpenMP's GOMP_parallel of the library that PyTorch uses, for `flq_host`; NULL where there is none."""
    if "parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return c.ffi.NULL
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    for where in (None, library):  # a library that is loaded for the whole process comes first, as for PyTorch itself
        try:
            found = ctypes.CDLL(None if where is None else str(where)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return c.ffi.cast("fl_parallel_fn", ctypes.cast(found, ctypes.c_void_p).value)
    return c.ffi.NULL


class torch_threads:
    """Within this context calls use PyTorch's threads, and no more than it has: a DataLoader's worker has one."""

    __slots__ = ("limit",)

    def __enter__(self) -> None:
        n = torch.get_num_threads()
        self.limit = threads(n) if n < get_num_threads() else None
        if self.limit is not None:
            self.limit.__enter__()
        if n > 1:
            c.lib.flq_host(_parallel(), n)

    def __exit__(self, *exception: object) -> None:
        c.lib.flq_host(c.ffi.NULL, 0)
        if self.limit is not None:
            self.limit.__exit__(None, None, None)
