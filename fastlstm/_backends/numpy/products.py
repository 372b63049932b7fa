"""Products with a matrix that is kept in some storage: the only products of a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...layout import Array
from ...storage import STORAGES, Storage


@dataclass(frozen=True)
class Matrix:
    """A weight matrix as it is kept.

    Parameters
    ----------
    values : (K, M) array
        What multiplies rows (b, K), in the storage's numbers; a row is what a token id reads.
    storage : Storage
    """

    values: Array
    storage: Storage

    @classmethod
    def of(cls, w: Array, storage: str, name: str) -> Matrix:
        """From a parameter (M, K), called `name` in messages."""
        kept = STORAGES[storage]
        return cls(kept.keep(w.T, name), kept)

    def columns(self, begin: int, end: int) -> Matrix:
        """The outputs from `begin` to `end`, as a view."""
        return Matrix(self.values[:, begin:end], self.storage)


def times(x: Array, w: Matrix) -> Array:
    """x @ w: (b, K), (K, M) give (b, M), in x's dtype."""
    y: Array = x @ w.values.astype(x.dtype, copy=False)
    return y


def times_transposed(d: Array, w: Matrix) -> Array:
    """d @ w.T, the gradient of the operand of `times`: (b, M), (K, M) give (b, K), in d's dtype."""
    dx: Array = d @ w.values.astype(d.dtype, copy=False).T
    return dx


def rows_of(ids: Array, w: Matrix, dtype: np.dtype[np.floating]) -> Array:
    """What `times` gives for one-hot rows: the stored rows of token ids (b,), as (b, M)."""
    rows: Array = w.values[ids].astype(dtype, copy=False)
    return rows
