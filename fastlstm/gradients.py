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

# Numbers from which gradients come from the buffer pool. Below, malloc is quicker (I=H=64: by 2 of 87 us).
POOLED = 1 << 16


@dataclass(frozen=True)
class SparseGradient:
    """The gradient of an input matrix (G*H, V) by token ids: 0 except in the columns of the ids seen.

    Optimisers and clipping accept it in place of an array of that shape; plain SGD and clipping touch only its columns.

    Parameters
    ----------
    ids : (n,) int64 array
        The ids seen, sorted, each once.
    rows : (n, G*H) array
        The columns of these ids.
    shape : (int, int)
        Shape of the whole gradient, (G*H, V).
    """

    ids: Array
    rows: Array
    shape: tuple[int, int]

    def dense(self, out: Array | None = None) -> Array:
        """The whole matrix (G*H, V). `out`, if given, is an array of zeros to write it to."""
        whole = np.zeros(self.shape, self.rows.dtype) if out is None else out
        whole[:, self.ids] = self.rows.T
        return whole


class Gradients(dict[str, Any]):
    """The gradients of a layer's parameters by name: arrays, or a `SparseGradient` with ``backward(..., sparse=True)``.

    Attributes
    ----------
    flat : (P,) array
        The memory of all arrays one after the other, so that one call can zero, scale or sum them. Each array begins
        at a cache line of its own, with zeros between them.
    """

    flat: Array


class GradientLayout:
    """The place of each gradient of a layer in the flat array.

    Parameters
    ----------
    shapes : dict of shapes
    dtype : dtype
    without : names
        Parameters without an array in the flat one: their gradients are sparse.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any], without: Sequence[str] = ()
    ) -> None:
        line, at = LINE // dtype.itemsize, 0
        self.dtype = dtype
        self.places: list[tuple[str, tuple[int, ...] | None, int]] = []  # (name, shape, first byte) of each
        for name, shape in shapes.items():
            self.places.append((name, None if name in without else shape, at * dtype.itemsize))
            at += 0 if name in without else -(-math.prod(shape) // line) * line
        self.size = at

    def zeros(self) -> Gradients:
        """Gradients of all parameters, zeros."""
        grads = Gradients()
        make = np.zeros if self.size < POOLED else buffers.zeros
        flat = grads.flat = make((self.size,), self.dtype)
        for name, shape, offset in self.places:
            grads[name] = None if shape is None else ndarray(shape, self.dtype, flat, offset)
        return grads
