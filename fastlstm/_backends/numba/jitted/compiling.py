"""How the kernels are compiled: the options of Numba, and a cache on disk that sees changes in any of their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba

# Division by zero gives infinity, as in NumPy, and costs no branch; a product and a sum may become one fused
# multiply-add. No other freedom: NaN and infinity pass as in NumPy.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def _stamp() -> tuple[float, int]:
    """(time of the last change, total size) of the kernels' files."""
    files = [path.stat() for path in Path(__file__).parent.glob("*.py")]
    return max(file.st_mtime for file in files), sum(file.st_size for file in files)


STAMP = _stamp()


def jit(function: Any, **options: Any) -> Any:
    """`numba.njit`, cached on disk; without a writeable folder, compiled anew in every process.

    Numba's cache checks the file of a function, but not the files of the functions that it calls. So every function
    gets the stamp of all files.
    """
    try:
        compiled = numba.njit(cache=True, **OPTIONS, **options)(function)
    except RuntimeError:
        return numba.njit(**OPTIONS, **options)(function)
    if hasattr(getattr(compiled._cache, "_cache_file", None), "_source_stamp"):
        compiled._cache._cache_file._source_stamp = STAMP
    return compiled


def jit_inner(function: Any) -> Any:
    """`jit` of a function that only jitted functions call: without what Python and C would call it by."""
    return jit(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def jit_parallel(function: Any) -> Any:
    return jit(function, parallel=True)
