"""The rows that count in a loss or a metric: predictions and targets as rows, without those that a mask leaves out.

A row has one loss: it is the scores of one prediction (..., V), or a single number of a regression. Only rows that
count are read: the values of other rows, NaN and labels outside the classes included, have no effect.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .layout import Array
from .validation import as_array, conversion

IGNORE_INDEX = -100  # the label of a row that does not count, as in PyTorch
SUM_TOLERANCE = 1e-3  # allowed distance of a sum of probabilities from 1: labels with three digits pass


class Rows(NamedTuple):
    """The rows that count, and their weights.

    Parameters
    ----------
    shape : tuple of int
        Shape of all rows; R is their number.
    keep : (R,) bool array, optional
        True for the K rows that count; None: all.
    weights : (K,) float64 array, optional
        None: 1 each.
    total : float
        The sum of the weights, the divisor of means.
    """

    shape: tuple[int, ...]
    keep: Array | None
    weights: Array | None
    total: float

    @property
    def size(self) -> int:
        """R, the number of all rows."""
        return math.prod(self.shape)

    def take(self, x: Array) -> Array:
        """(R, ...) -> (K, ...). A copy only where some rows do not count."""
        return x if self.keep is None else x[self.keep]

    def spread(self, taken: Array) -> Array:
        """(K, ...) -> (R, ...), with zeros in the rows that do not count."""
        if self.keep is None:
            return taken
        x: Array = np.zeros((self.size, *taken.shape[1:]), taken.dtype)
        x[self.keep] = taken
        return x


class Counted(NamedTuple):
    """Predictions (K, ...) and targets (K, ...) of the rows that count, and the `Rows`."""

    y: Array
    target: Array
    rows: Rows


def weigh(
    shape: tuple[int, ...], mask: Any = None, weights: Any = None, dropped: Array | None = None, numbers: bool = False
) -> Rows:
    """The rows that count by a mask, weights and `dropped`.

    Parameters
    ----------
    shape : tuple of int
        Shape of all rows.
    mask : bool array, optional
        True where a row counts. It has the rows' shape, or 1 along an axis whose rows share a value.
    weights : array of real numbers, at least 0, optional
        Shaped like the mask. A weight of 0 leaves a row out.
    dropped : (R,) bool array, optional
        Further rows that do not count.
    numbers : bool
        Rows are single numbers: a mask and weights may then lack the last axis, whose numbers share a value.
    """
    keep = None if dropped is None else ~dropped
    if mask is not None:
        given = as_array(mask, "mask")
        if given.dtype != np.bool_:
            cure = conversion(mask, given, "mask", bool)
            raise TypeError(f"mask must hold bools, True where a row counts, got dtype {given.dtype}{cure}")
        valid = _over_rows(given, shape, "mask", numbers)
        keep = valid if keep is None else keep & valid
    if weights is not None:
        w = _checked_weights(weights, shape, keep, numbers)
        keep = w != 0 if keep is None else keep & (w != 0)
        w = w[keep]
        uniform = bool((w == 1).all())  # all kept weights are 1: they are a mask only
        return Rows(shape, None if keep.all() else keep, None if uniform else w, float(w.sum()))
    if keep is None or keep.all():
        return Rows(shape, None, None, float(math.prod(shape)))
    return Rows(shape, keep, None, float(np.count_nonzero(keep)))


def _checked_weights(given: Any, shape: tuple[int, ...], keep: Array | None, numbers: bool) -> Array:
    """Weights of all rows, (R,) float64. Weights of rows that do not count are not checked."""
    weights = as_array(given, "weights")
    if weights.dtype.kind not in "fiu":
        hint = ": a mask is handed in as mask=" if weights.dtype == np.bool_ else ""
        raise TypeError(f"weights must be real numbers, got dtype {weights.dtype}{hint}")
    flat = _over_rows(weights, shape, "weights", numbers).astype(np.float64)
    used = flat if keep is None else flat[keep]
    if not (np.isfinite(used) & (used >= 0)).all():
        raise ValueError(f"weights must be finite and at least 0, got {used.min()} to {used.max()}")
    return flat


def _over_rows(given: Array, shape: tuple[int, ...], name: str, numbers: bool) -> Array:
    """given (a mask, weights) for every row, flat: (R,)."""
    full = given[..., None] if numbers and given.ndim == len(shape) - 1 else given
    if full.ndim != len(shape) or not all(n in (1, rows) for n, rows in zip(full.shape, shape, strict=True)):
        raise ValueError(
            f"{name} has shape {given.shape}, expected {shape}, or 1 along an axis whose rows share a value: one for "
            f"each sequence is {name}[:, None] where the batch is the first axis, {name}[None, :] where time is"
        )
    return np.broadcast_to(full, shape).reshape(-1)


def floats(given: Any, name: str) -> Array:
    """given as a native float32 or float64 array (not copied where it is one), or an error."""
    y = as_array(given, name)
    if y.dtype.newbyteorder("=") not in (np.float32, np.float64):
        raise TypeError(
            f"{name} must be float32 or float64, got dtype {y.dtype}{conversion(given, y, name, np.float32)}"
        )
    return y.astype(y.dtype.newbyteorder("="), copy=False)


def _scores(given: Any, name: str) -> Array:
    """given as (..., V) with at least one class."""
    y = floats(given, name)
    if y.ndim == 0 or y.shape[-1] == 0:
        raise ValueError(f"{name} has shape {y.shape}, expected (..., V) with at least one class")
    return y


def labels(
    given: Any, shape: tuple[int, ...], ignore_index: int | None = None, mask: Any = None, weights: Any = None
) -> tuple[Array, Rows]:
    """The classes of the rows that count, (K,) int64, and the `Rows`, for scores of this shape (..., V).

    A row whose class is `ignore_index` does not count.
    """
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, np.integer))):
        raise TypeError(f"ignore_index must be an integer or None, got {ignore_index!r}")
    target = as_array(given, "targets")
    if target.dtype.kind not in "iu" and target.size:
        hint = ": one-hot targets are for CategoricalCrossentropy" if target.shape == shape else ""
        raise TypeError(f"targets must be integers (the right class of every row), got dtype {target.dtype}{hint}")
    if target.shape != shape[:-1]:
        hint = ". One-hot targets are for CategoricalCrossentropy" if target.shape == shape else ""
        raise ValueError(
            f"targets has shape {target.shape}, expected {shape[:-1]}: one class for each row of {shape}{hint}"
        )
    flat, V = target.reshape(-1), shape[-1]
    outside = bool(flat.size) and bool(flat.min() < 0 or flat.max() >= V)
    may_ignore = ignore_index is not None and (outside or 0 <= ignore_index < V)
    if mask is None and weights is None and not may_ignore:  # fast path, without a pass over the rows
        rows = Rows(shape[:-1], None, None, float(flat.size))
    else:
        rows = weigh(shape[:-1], mask, weights, flat == ignore_index if may_ignore else None)
        flat = rows.take(flat)
    if outside and flat.size and (flat.min() < 0 or flat.max() >= V):
        left_out = "" if ignore_index is None else f"; a row that does not count has the target {ignore_index}"
        raise ValueError(
            f"targets must lie between 0 and {V - 1} (scores have shape {shape}), "
            f"got {flat.min()} to {flat.max()}{left_out}"
        )
    return flat.astype(np.int64, copy=False), rows


def classes(y: Any, target: Any, ignore_index: int | None, mask: Any, weights: Any, name: str = "y") -> Counted:
    """Scores (..., V) and integer targets (...): y (K, V), target (K,) int64."""
    y = _scores(y, name)
    kept, rows = labels(target, y.shape, ignore_index, mask, weights)
    return Counted(rows.take(y.reshape(-1, y.shape[-1])), kept, rows)


def distributions(y: Any, target: Any, mask: Any, weights: Any, name: str = "y") -> Counted:
    """Scores (..., V) and targets of the same shape, each row of which is one-hot or a distribution: both (K, V)."""
    y, target = _scores(y, name), as_array(target, "targets")
    if target.shape != y.shape:
        hint = ". Class numbers are for SparseCategoricalCrossentropy" if target.shape == y.shape[:-1] else ""
        raise ValueError(f"targets has shape {target.shape}, expected that of {name}, {y.shape}{hint}")
    if target.dtype.kind not in "fiub":
        raise TypeError(f"targets must be real numbers, got dtype {target.dtype}")
    rows = weigh(y.shape[:-1], mask, weights)
    kept = rows.take(target.reshape(-1, y.shape[-1])).astype(y.dtype, copy=False)
    check_finite(kept, "targets")
    check_distributions(kept, "targets", "several labels at once are binary, for BinaryCrossentropy and BinaryAccuracy")
    return Counted(rows.take(y.reshape(-1, y.shape[-1])), kept, rows)


def elements(y: Any, target: Any, mask: Any, weights: Any, name: str = "y") -> Counted:
    """Numbers and targets of the same shape, but for a last axis of length 1: y and target (K,), of y's dtype."""
    y, target = floats(y, name), as_array(target, "targets")
    if target.dtype.kind not in "fiub":
        raise TypeError(f"targets must be real numbers, got dtype {target.dtype}")
    if target.shape != y.shape and target.shape != (*y.shape, 1) and y.shape != (*target.shape, 1):
        raise ValueError(f"targets has shape {target.shape}, expected that of {name}, {y.shape}")
    rows = weigh(y.shape, mask, weights, numbers=True)
    kept = rows.take(target.reshape(-1)).astype(y.dtype, copy=False)
    check_finite(kept, "targets")
    return Counted(rows.take(y.reshape(-1)), kept, rows)


def check_finite(x: Array, name: str) -> None:
    """Raise ValueError where a row that counts holds NaN or infinity."""
    if bad := int(np.count_nonzero(~np.isfinite(x))):
        raise ValueError(
            f"{name} hold NaN or infinity in {bad} of {x.size} places that count; rows without a value are left out by "
            "mask=, False there"
        )


def check_unit(x: Array, name: str, cure: str) -> None:
    """Raise ValueError unless all lie between 0 and 1. NaN passes."""
    if x.size and (x.min() < 0 or x.max() > 1):
        raise ValueError(f"{name} must lie between 0 and 1, got {x.min()} to {x.max()}: {cure}")


def check_distributions(x: Array, name: str, cure: str) -> None:
    """Raise ValueError unless every row (K, V) is a distribution. NaN passes."""
    check_unit(x, name, cure)
    sums = x.sum(axis=-1, dtype=np.float64)
    if len(sums) and np.abs(sums - 1).max() > SUM_TOLERANCE:
        raise ValueError(f"{name} must add up to 1 in every row, got {sums.min():.6g} to {sums.max():.6g}: {cure}")
