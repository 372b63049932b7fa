"""Products with a matrix in any storage: the only products of a step. `fastlstm.storage` has their definition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...layout import Array
from ...storage import STORAGES, STRETCHES, Form, Storage


@dataclass(frozen=True)
class Matrix:
    """A weight matrix in a storage.

    Parameters
    ----------
    values : (K, M) array
        The numbers as the storage keeps them, for products of rows (b, K); a token id reads one row.
    storage : Storage
    scales : (M,) float32 array, optional
        For a storage of integers.
    form : Form, optional
        Likewise: how the other operand is rounded.
    """

    values: Array
    storage: Storage
    scales: Array | None = None
    form: Form | None = None

    @classmethod
    def of(cls, params: Mapping[str, Array], name: str, storage: str, form: Form | None = None) -> Matrix:
        """The transpose of a parameter (M, K) in a storage."""
        kept = STORAGES[storage].matrix(params, name)
        scales = None if kept.scales is None else kept.scales.copy()
        return cls(np.array(kept.values.T, order="C"), STORAGES[storage], scales, form)

    def columns(self, begin: int, end: int) -> Matrix:
        """The outputs from `begin` to `end`, as a view."""
        scales = None if self.scales is None else self.scales[begin:end]
        return Matrix(self.values[:, begin:end], self.storage, scales, self.form)

    def floats(self, dtype: np.dtype[np.floating]) -> Array:
        """(K, M) the numbers that the matrix stands for."""
        values: Array = self.values.astype(dtype, copy=False)
        return values if self.scales is None else values * self.scales.astype(dtype)


def fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c, rounded once where the numbers are float32; twice where they are float64.

    A product of two float32 numbers is exact in float64. The sum with c is rounded to odd there: where it is inexact,
    the last bit is 1. Its rounding to float32 is then that of the exact sum (Boldo and Melquiond 2008).
    """
    if c.dtype != np.float32:
        result: Array = a * b + c
        return result
    with np.errstate(invalid="ignore", over="ignore"):
        product, c = a.astype(np.float64) * b, c.astype(np.float64)
        total = np.asarray(product + c)
        of_c = total - product
        error = (product - (total - of_c)) + (c - of_c)  # Knuth's two-sum: exact
        even = np.isfinite(total) & (error != 0) & (total.view(np.int64) & 1 == 0)
        total = np.where(even, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
        rounded: Array = total.astype(np.float32)
        return rounded


def times(x: Array, w: Matrix, start: Array) -> Array:
    """start + x @ w: (b, K), (K, M) and (b, M) or (M,) give (b, M), in x's dtype."""
    if w.scales is None or w.form is None:
        y: Array = start + x @ w.values.astype(x.dtype, copy=False)
        return y
    whole, scales = w.form.rounded(x)
    factors = scales[:, None] * w.scales.astype(x.dtype)  # (b, M)
    y = np.broadcast_to(start, factors.shape).astype(x.dtype)
    every = STRETCHES[int(w.storage.largest), w.form.largest]
    for k in range(0, x.shape[1], every):
        stretch = slice(k, k + every)
        # float64 holds these sums of integers exactly, in any order.
        total = whole[:, stretch].astype(np.float64) @ w.values[stretch].astype(np.float64)
        y = fma(factors, total.astype(x.dtype), y)
    return y


def times_transposed(d: Array, w: Matrix) -> Array:
    """d @ w.T, the gradient of the operand of `times`: (b, M), (K, M) give (b, K), in d's dtype."""
    dx: Array = d @ w.floats(d.dtype).T
    return dx


def rows_of(ids: Array, w: Matrix, start: Array) -> Array:
    """start (M,) + the stored rows of token ids (b,): (b, M), in start's dtype; `times` for one-hot rows."""
    rows = w.values[ids].astype(start.dtype, copy=False)
    if w.scales is None:
        y: Array = rows + start
        return y
    return fma(w.scales.astype(start.dtype), rows, start)
