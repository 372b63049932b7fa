"""The base of all losses: rows that count, reduction, gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..layout import Array
from ..named import Named
from ..weighting import Counted, Rows

REDUCTIONS = ("mean", "sum")


def check_reduction(reduction: Any) -> None:
    """Raise ValueError unless the reduction is known."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction {reduction!r} is not known; expected one of {', '.join(REDUCTIONS)}")


def share_of_row(reduction: str, rows: Rows) -> float:
    """The factor of a row's weighted loss and gradient: NaN without rows, 0 if no row counts."""
    check_reduction(reduction)
    if reduction == "sum":
        return 1.0
    return 1.0 / rows.total if rows.total else 0.0 if rows.size else float("nan")


class Loss(Named):
    """Base of the losses. A subclass turns predictions and targets into rows, and computes their losses and gradients.

    Parameters
    ----------
    reduction : {"mean", "sum"}
        Over the rows that count; with weights, the mean divides by their sum.
    """

    def __init__(self, reduction: str = "mean") -> None:
        check_reduction(reduction)
        self.reduction = reduction

    def take(self, y: Any, target: Any, mask: Any, weights: Any) -> Counted:
        """The rows of predictions and targets that count, checked; arguments as `__call__` takes them."""
        raise NotImplementedError

    def _rows(self, y: Array, target: Array, factor: float) -> Array:
        """Losses of rows, (K,) float64. y (K, ...) is overwritten with `factor` times its gradient."""
        raise NotImplementedError

    def __call__(self, y: Any, target: Any, mask: Any = None, weights: Any = None) -> tuple[float, Array]:
        """Loss and gradient.

        Parameters
        ----------
        y : float32 or float64 array
            Predictions; not changed. NaN in them passes into the loss, so that training detects divergence.
        target : array
            Checked before anything is computed.
        mask : bool array, optional
            True where a row counts: one for each prediction. An axis whose rows share a value may have length 1; if
            predictions are single numbers the last axis may be missing. Values of other rows have no effect.
        weights : array, optional
            At least 0, shaped like the mask. A weight of 0 leaves a row out; one of 2 counts it twice.

        Returns
        -------
        value : float
            0 if no row counts.
        dy : array
            The gradient, shaped like y and of its dtype; exactly 0 where rows do not count.

        Raises
        ------
        TypeError, ValueError
            A dtype or shape does not fit, there are no rows, or targets that count are NaN or are no labels.
        """
        return self._reduced(y, self._some(self.take(y, target, mask, weights)))

    def values(self, y: Any, target: Any, mask: Any = None, weights: Any = None) -> Array:
        """Each row's loss times its weight, float64 in the shape of the rows; 0 where a row does not count."""
        y, target, rows = self._some(self.take(y, target, mask, weights))
        values = self._losses(np.array(y), target, 1.0)
        return rows.spread(values if rows.weights is None else values * rows.weights).reshape(rows.shape)

    def total(self, y: Any, target: Any, mask: Any = None, weights: Any = None) -> tuple[float, float]:
        """The weighted sum of the rows' losses, and the sum of the weights.

        Added up over batches they give the mean over all rows, also where batches differ in size.
        """
        return self.total_of(self._some(self.take(y, target, mask, weights)))

    def total_of(self, counted: Counted) -> tuple[float, float]:
        """`total` of rows that `take` gave."""
        y, target, rows = counted
        values = self._losses(np.array(y), target, 1.0)
        return float(values.sum() if rows.weights is None else values @ rows.weights), rows.total

    def _some(self, counted: Counted) -> Counted:
        """counted, or an error if there are no rows at all."""
        if not counted.rows.size:
            raise ValueError("y has no rows: a loss needs at least one prediction")
        return counted

    def _losses(self, y: Array, target: Array, factor: float) -> Array:
        """`_rows` without warnings: NaN and infinity pass."""
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            return self._rows(y, target, factor)

    def _reduced(self, like: Any, counted: Counted) -> tuple[float, Array]:
        """The reduced loss and the gradient, shaped like the predictions."""
        y, target, rows = counted
        share = share_of_row(self.reduction, rows)
        dy = np.array(y, order="C")
        if rows.weights is None:
            value = float(self._losses(dy, target, share).sum()) * share
        else:
            value = float(self._losses(dy, target, 1.0) @ rows.weights) * share
            dy *= (rows.weights * share).astype(dy.dtype).reshape(-1, *[1] * (dy.ndim - 1))
        return value, rows.spread(dy).reshape(np.shape(like))
