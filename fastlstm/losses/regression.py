"""Losses of numbers: squared, absolute, Huber's, quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..layout import Array
from ..validation import as_array, number
from ..weighting import Counted, check_finite, elements, floats, weigh
from .base import Loss


class Regression(Loss):
    """Base of losses of single numbers; predictions and targets have the same shape."""

    def take(self, y: Any, target: Any, mask: Any, weights: Any) -> Counted:
        return elements(y, target, mask, weights)

    def _rows(self, y: Array, target: Array, factor: float) -> Array:
        error = y.astype(np.float64) - target
        losses, slopes = self._of_errors(error)
        y[...] = factor * slopes
        return losses

    def _of_errors(self, error: Array) -> tuple[Array, Array]:
        """Losses of errors y - target (K,), and their derivatives."""
        raise NotImplementedError


class MeanSquaredError(Regression):
    """(y - target)^2."""

    name: ClassVar[str] = "mean_squared_error"

    def _of_errors(self, error: Array) -> tuple[Array, Array]:
        return error * error, 2 * error


class MeanAbsoluteError(Regression):
    """abs(y - target); the derivative is 0 where they are equal."""

    name: ClassVar[str] = "mean_absolute_error"

    def _of_errors(self, error: Array) -> tuple[Array, Array]:
        return np.abs(error), np.sign(error)


class Huber(Regression):
    """Half the square of an error up to `delta`, beyond it a line of that slope (Huber 1964).

    Parameters
    ----------
    delta : float
        Above 0, in the target's unit.
    reduction : {"mean", "sum"}
    """

    name: ClassVar[str] = "huber"

    def __init__(self, delta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.delta = number(delta, "delta")
        if not self.delta:
            raise ValueError("delta must be above 0, got 0: mean_absolute_error has no rounded part")

    def _of_errors(self, error: Array) -> tuple[Array, Array]:
        slopes = np.clip(error, -self.delta, self.delta)
        return slopes * (error - 0.5 * slopes), slopes


class Quantile(Loss):
    """Pinball loss max(q u, (q - 1) u) of u = target - y, which the q-quantile minimises (Koenker and Bassett 1978).

    The derivative is 0 where y equals the target. Several quantiles are the last axis of y; a row's loss is their mean.

    Parameters
    ----------
    quantiles : float, or Q floats
        Between 0 and 1. For one number, y is shaped like the target; for Q numbers, even a list of one, y is (..., Q)
        and the target (...).
    reduction : {"mean", "sum"}
    """

    name: ClassVar[str] = "quantile"

    def __init__(self, quantiles: float | Sequence[float] = 0.5, reduction: str = "mean") -> None:
        super().__init__(reduction)
        values: Array = np.asarray(quantiles, np.float64)
        if values.ndim > 1 or not values.size or not ((values > 0) & (values < 1)).all():
            raise ValueError(f"quantiles must be one or several numbers between 0 and 1, got {quantiles!r}")
        self.quantiles: float | tuple[float, ...] = float(values) if values.ndim == 0 else tuple(values.tolist())

    def take(self, y: Any, target: Any, mask: Any, weights: Any) -> Counted:
        if isinstance(self.quantiles, float):
            return elements(y, target, mask, weights)
        y, target, Q = floats(y, "y"), as_array(target, "targets"), len(self.quantiles)
        if target.dtype.kind not in "fiub":
            raise TypeError(f"targets must be real numbers, got dtype {target.dtype}")
        if y.shape != (*target.shape, Q):
            raise ValueError(
                f"y has shape {y.shape}, expected {(*target.shape, Q)}: {Q} quantiles for each target of {target.shape}"
            )
        rows = weigh(target.shape, mask, weights, numbers=True)
        kept = rows.take(target.reshape(-1)).astype(y.dtype, copy=False)
        check_finite(kept, "targets")
        return Counted(rows.take(y.reshape(-1, Q)), kept, rows)

    def _rows(self, y: Array, target: Array, factor: float) -> Array:
        q = np.array(self.quantiles)
        under = (target if q.ndim == 0 else target[:, None]) - y.astype(np.float64)
        y[...] = factor / q.size * (np.where(under < 0, 1.0, 0.0) - q) * (under != 0)
        y[np.isnan(under)] = np.nan
        losses: Array = np.maximum(q * under, (q - 1) * under)
        return losses if q.ndim == 0 else losses.mean(axis=-1)
