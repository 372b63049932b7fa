"""The gradients of a layer's parameters: views of one array, and the sparse ones of token ids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray  # a global name is found sooner than np.ndarray

from .layout import Array
from .memory import LINE, buffers

# Numbers from which gradients come from the pool: below, zeros of malloc are as quick (I=H=64: 2 us of 87 less).
POOLED = 1 << 16


@dataclass(frozen=True)
class SparseGradient:
    """The gradient of an input matrix (G*H, V) that token ids went through: zeros but in the columns of the ids seen.

    Optimisers and clipping take it for an array of that shape, and touch only what is in it.

    Parameters
    ----------
    ids : (n,) int64 array
        The ids seen, sorted, each once.
    rows : (n, G*H) array
        Their columns.
    shape : (int, int)
        Of the whole.
    """

    ids: Array
    rows: Array
    shape: tuple[int, int]

    def dense(self, out: Array | None = None) -> Array:
        """The whole matrix; written to `out`, zeros of its shape, where that is given."""
        whole = np.zeros(self.shape, self.rows.dtype) if out is None else out
        whole[:, self.ids] = self.rows.T
        return whole


class Gradients(dict[str, Any]):
    """The gradients of a layer's parameters by name: arrays, or `SparseGradient` where asked for.

    Attributes
    ----------
    flat : (P,) array
        The memory of all arrays one after the other, so that one call can zero, scale or sum them. Each array begins
        at a cache line of its own; what lies between them is zeros.
    """

    flat: Array


class GradientLayout:
    """Where each gradient of a layer lies in the flat array of all.

    Parameters
    ----------
    shapes : dict of shapes
    dtype : dtype
    without : names
        These have no array: something else takes their places in the dictionary.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any], without: Sequence[str] = ()
    ) -> None:
        line, at = LINE // dtype.itemsize, 0
        self.dtype = dtype
        self.places: list[tuple[str, tuple[int, ...] | None, int]] = []  # name, shape, byte where it begins
        for name, shape in shapes.items():
            self.places.append((name, None if name in without else shape, at * dtype.itemsize))
            at += 0 if name in without else -(-math.prod(shape) // line) * line
        self.size = at

    def zeros(self) -> Gradients:
        """Gradients of all parameters, which are zeros."""
        grads = Gradients()
        make = np.zeros if self.size < POOLED else buffers.zeros
        flat = grads.flat = make((self.size,), self.dtype)
        for name, shape, offset in self.places:
            grads[name] = None if shape is None else ndarray(shape, self.dtype, flat, offset)
        return grads
