"""Losses with their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._backends.numpy import cross_entropy
from .layout import Array

REDUCTIONS = ("mean", "sum")


def softmax_cross_entropy(logits: Any, targets: Any, reduction: str = "mean") -> tuple[float, Array]:
    """Cross-entropy of the softmax of `logits`, and its gradient, in one pass.

    With p = softmax(logits) the loss of one row is -log p[target], and its gradient p - onehot(target)
    (Bridle 1990). The row's maximum is taken off first, so no logit overflows.

    Parameters
    ----------
    logits : (..., V) float32 or float64 array
        Not changed.
    targets : (...) integer array
        The right class of every row, 0 to V - 1.
    reduction : {"mean", "sum"}
        Over all rows. The mean of no rows is NaN, as in PyTorch.

    Returns
    -------
    loss : float
        In nats. Exponentials are taken in the logits' dtype, sums and logarithms in float64.
    dlogits : (..., V) array of the logits' dtype
        The only array of that size made here.

    Raises
    ------
    TypeError
        logits hold no floating-point numbers, or targets no integers.
    ValueError
        Shapes do not fit, a target is no class, or the reduction is unknown.
    """
    logits = np.asarray(logits)
    if logits.dtype.newbyteorder("=") not in (np.float32, np.float64):
        raise TypeError(f"logits must be float32 or float64, got dtype {logits.dtype}")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits has shape {logits.shape}, expected (..., V) with at least one class")
    targets = check_targets(targets, logits.shape)
    share = share_of_row(reduction, targets.size)
    dlogits = np.array(logits, logits.dtype.newbyteorder("="), order="C")
    losses = cross_entropy(dlogits.reshape(-1, logits.shape[-1]), targets, share)
    return float(losses.sum()) * share, dlogits


def check_targets(given: Any, shape: tuple[int, ...]) -> Array:
    """The targets of logits of this shape (..., V), flat: (N,), or an error."""
    targets: Array = np.asarray(given)
    if targets.dtype.kind not in "iu" and targets.size:
        raise TypeError(f"targets must be integers (the right class of every row), got dtype {targets.dtype}")
    if targets.shape != shape[:-1]:
        raise ValueError(f"targets has shape {targets.shape}, expected {shape[:-1]}: one class for each row of {shape}")
    if targets.size and (targets.min() < 0 or targets.max() >= shape[-1]):
        raise ValueError(
            f"targets must lie between 0 and {shape[-1] - 1} (logits have shape {shape}), "
            f"got {targets.min()} to {targets.max()}"
        )
    return targets.reshape(-1).astype(np.int64)


def share_of_row(reduction: str, rows: int) -> float:
    """By what a row's loss and gradient are multiplied, or an error."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction {reduction!r} is not known; expected one of {', '.join(REDUCTIONS)}")
    return 1.0 if reduction == "sum" else 1.0 / rows if rows else float("nan")
