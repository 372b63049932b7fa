"""Products with a matrix in any storage: the only products of a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...layout import Array
from ...storage import STORAGES, Storage


@dataclass(frozen=True)
class Matrix:
    """A weight matrix in a storage.

    Parameters
    ----------
    values : (K, M) array
        The numbers as the storage keeps them, for products of rows (b, K); a token id reads one row.
    storage : Storage
    """

    values: Array
    storage: Storage

    @classmethod
    def of(cls, w: Array, storage: str, name: str) -> Matrix:
        """The transpose of a parameter (M, K) in a storage; messages call it `name`."""
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
    """The stored rows of token ids (b,): (b, M), the result of `times` for one-hot rows."""
    rows: Array = w.values[ids].astype(dtype, copy=False)
    return rows
