"""What optimisers and clipping take as gradients, and clipping, with PyTorch's arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from .._backends import choose, provides
from ..gradients import SparseGradient
from ..layout import Array
from ..validation import is_real, number

Grads = Mapping[str, Array] | Sequence[Mapping[str, Array]]


def describe(value: Any) -> str:
    return f"shape {value.shape} and dtype {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def as_list(grads: Any) -> list[Mapping[str, Array]]:
    """The gradients of each layer, or TypeError."""
    given = [grads] if isinstance(grads, Mapping) else grads
    if isinstance(given, (list, tuple)) and all(isinstance(g, Mapping) for g in given):
        return list(given)
    got = [type(g).__name__ for g in given] if isinstance(given, (list, tuple)) else type(given).__name__
    raise TypeError(f"gradients must be the dict that backward gives, or a list of such dicts by layer; got {got}")


def writable_arrays(grads: Any) -> list[Array]:
    """All gradients, which must be floating-point arrays that can be changed in place."""
    arrays = []
    for of_layer in as_list(grads):
        for name, given in of_layer.items():
            g = given.rows if isinstance(given, SparseGradient) else given
            if not isinstance(g, np.ndarray) or g.dtype.kind != "f":
                cure = ": convert it with g.astype('float32')" if is_real(getattr(g, "dtype", np.dtype(object))) else ""
                raise TypeError(f"gradient {name} must be an array of floating-point numbers, got {describe(g)}{cure}")
            if not g.flags.writeable:
                raise ValueError(
                    f"gradient {name} of shape {g.shape} is read-only and cannot be clipped in place: copy it"
                )
            arrays.append(g)
    return arrays


def compiled(backend: ModuleType) -> ModuleType | None:
    """The backend, if it has functions of its own that update, sum and scale float32 arrays."""
    return backend if provides(backend, "optimisers") else None


def fits_compiled(a: Array) -> bool:
    return a.dtype == np.float32 and a.flags.c_contiguous and a.dtype.isnative


def clip_by_value(grads: Grads, limit: float) -> None:
    """Bring every entry into [-limit, limit], in place. NaN stays NaN.

    Parameters
    ----------
    grads : dict of arrays, or list of such dicts
    limit : float
        Not negative.
    """
    limit = number(limit, "limit")
    for g in writable_arrays(grads):
        np.clip(g, -limit, limit, out=g)


def clip_by_norm(grads: Grads, max_norm: float) -> float:
    """Scale all gradients together, in place, so that their global norm is at most `max_norm` (Pascanu et al. 2013).

    The factor is PyTorch's, max_norm / (norm + 1e-6), where that is below 1.

    Parameters
    ----------
    grads : dict of arrays, or list of such dicts
    max_norm : float
        Not negative; infinite to measure only.

    Returns
    -------
    norm : float
        Euclidean norm of all gradients together before clipping, summed in float64. Where it is NaN or infinite the
        gradients are left as they are, since no factor helps: check the norm and skip that step.
    """
    measures_only = isinstance(max_norm, (float, np.floating)) and max_norm == math.inf
    max_norm = math.inf if measures_only else number(max_norm, "max_norm")
    arrays = writable_arrays(grads)
    c = compiled(choose("auto", "float32"))
    if c and all(map(fits_compiled, arrays)):
        norm = math.sqrt(c.square_sum(arrays))
    else:
        c, norm = None, math.sqrt(square_sum(arrays))
    factor = max_norm / (norm + 1e-6)
    if math.isfinite(norm) and factor < 1:
        if c:
            c.scale(arrays, factor)
        else:
            for g in arrays:
                g *= g.dtype.type(factor)
    return norm


SUMMED = 16384  # numbers of a block, which stay in the cache; FL_SPAN_BLOCK in csrc/tuning.h


def square_sum(arrays: Sequence[Array]) -> float:
    """Sum of squares in float64: eight sums for each block, and these one after another, in C's order."""
    total = 0.0
    for a in arrays:
        flat = a.reshape(-1)
        for at in range(0, flat.size, SUMMED):
            squares = np.zeros(-(-min(SUMMED, flat.size - at) // 8) * 8)
            np.square(flat[at : at + SUMMED], out=squares[: flat.size - at], dtype=np.float64)
            s = squares.reshape(-1, 8).sum(axis=0).tolist()
            total += ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]))
    return total
