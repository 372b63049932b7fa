"""Cross-entropies, of several classes and of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from .._backends.numpy import cross_entropy
from ..layout import Array
from ..validation import as_array, flag
from ..weighting import IGNORE_INDEX, Counted, check_distributions, check_unit, classes, distributions, elements, labels
from .base import Loss

LOGITS_HINT = "scores that are no probabilities are handed to a loss with from_logits=True"
# As in PyTorch's BCELoss: a probability of 0 for the target costs 100 nats, and its gradient stays finite.
LEAST_LOG, LEAST_PROBABILITY = -100.0, 1e-12


def softmax_cross_entropy(
    logits: Any,
    targets: Any,
    reduction: str = "mean",
    *,
    ignore_index: int | None = IGNORE_INDEX,
    mask: Any = None,
    weights: Any = None,
) -> tuple[float, Array]:
    """Cross-entropy of the softmax of `logits`, and its gradient, in one pass.

    With p = softmax(logits) the loss of one row is -log p[target], and its gradient p - onehot(target)
    (Bridle 1990). The row's maximum is taken off first, so no logit overflows.

    Parameters
    ----------
    logits : (..., V) float32 or float64 array
        Not changed.
    targets : (...) integer array
        The right class of every row, 0 to V - 1, or `ignore_index`.
    reduction : {"mean", "sum"}
        Over the rows that count. The mean of no rows is NaN, as in PyTorch; where there are rows and none counts, loss
        and gradient are 0.
    ignore_index : int or None
        Rows with this target do not count.
    mask : (...) bool array, optional
        True where a row counts.
    weights : (...) array, optional
        Multiply the rows' losses; the mean is then the weighted one, divided by the sum of the weights.

    Returns
    -------
    loss : float
        In nats. Exponentials are taken in the logits' dtype, sums and logarithms in float64.
    dlogits : (..., V) array of the logits' dtype
        0 in rows that do not count. No other array of that size is made.

    Raises
    ------
    TypeError
        logits are not float32 or float64, targets are not integers, or the mask is not bool.
    ValueError
        Shapes do not fit, a target that counts is no class, or the reduction is unknown.
    """
    loss = SparseCategoricalCrossentropy(True, ignore_index, reduction)
    return loss._reduced(logits, loss.take(logits, targets, mask, weights))


def label_weights(
    targets: Any, weights: Mapping[int, float] | Sequence[float] | Array, ignore_index: int | None = IGNORE_INDEX
) -> Array:
    """Weights of rows by their label, to be handed to a loss or a metric as ``weights``.

    Parameters
    ----------
    targets : (...) integer array
        Classes, or `ignore_index`.
    weights : dict or (V,) array
        The weight of each class. A class that a dict lacks has the weight 1.
    ignore_index : int or None
        Rows with this target have the weight 0.

    Returns
    -------
    weights : (...) float64 array

    Raises
    ------
    TypeError, ValueError
        targets are no integers; a weight is negative or not finite; a target has no weight.
    """
    target = as_array(targets, "targets")
    if target.dtype.kind not in "iub":
        raise TypeError(f"targets must be integers (the right class of every row), got dtype {target.dtype}")
    if isinstance(weights, Mapping):
        V = 1 + max([int(target.max(initial=0)), *(int(label) for label in weights)])
        table: Array = np.ones(V)
        for label, weight in weights.items():
            if label != int(label) or label < 0:
                raise ValueError(f"labels must be integers from 0, got {label!r} among the label weights")
            table[int(label)] = weight
    else:
        table = np.asarray(weights, np.float64)
    if table.ndim != 1 or not (np.isfinite(table) & (table >= 0)).all():
        raise ValueError(f"label weights must be one finite number, at least 0, for each label; got {weights!r}")
    flat, rows = labels(target.astype(np.int64), (*target.shape, len(table)), ignore_index)
    return rows.spread(table[flat]).reshape(target.shape)


class SparseCategoricalCrossentropy(Loss):
    """-log p[target] for integer targets (...), with p (..., V) the predictions or, from logits, their softmax.

    Parameters
    ----------
    from_logits : bool
        Predictions are scores of any size; else probabilities, as an activation softmax gives them.
    ignore_index : int or None
        Rows with this target do not count.
    reduction : {"mean", "sum"}
    """

    name: ClassVar[str] = "sparse_categorical_crossentropy"

    def __init__(
        self, from_logits: bool = False, ignore_index: int | None = IGNORE_INDEX, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.from_logits, self.ignore_index = flag(from_logits, "from_logits"), ignore_index

    def take(self, y: Any, target: Any, mask: Any, weights: Any) -> Counted:
        counted = classes(y, target, self.ignore_index, mask, weights, "logits" if self.from_logits else "y")
        if not self.from_logits:
            check_distributions(counted.y, "probabilities", LOGITS_HINT)
        return counted

    def _rows(self, y: Array, target: Array, factor: float) -> Array:
        if self.from_logits:
            return cross_entropy(y, target, factor)
        each = np.arange(len(y))
        right = y[each, target]
        y[...] = 0
        y[each, target] = -factor / np.maximum(right, LEAST_PROBABILITY)
        return -_log(right)


class CategoricalCrossentropy(Loss):
    """-sum of target * log p over the classes, for targets (..., V) that are one-hot or distributions.

    Parameters
    ----------
    from_logits : bool
        Predictions are scores of any size; else probabilities, as an activation softmax gives them.
    reduction : {"mean", "sum"}
    """

    name: ClassVar[str] = "categorical_crossentropy"

    def __init__(self, from_logits: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.from_logits = flag(from_logits, "from_logits")

    def take(self, y: Any, target: Any, mask: Any, weights: Any) -> Counted:
        counted = distributions(y, target, mask, weights, "logits" if self.from_logits else "y")
        if not self.from_logits:
            check_distributions(counted.y, "probabilities", LOGITS_HINT)
        return counted

    def _rows(self, y: Array, target: Array, factor: float) -> Array:
        used = target != 0  # 0 * log 0 is 0
        if not self.from_logits:
            logs, right = _log(y), target.astype(np.float64)
            y[...] = -factor * target / np.maximum(y, LEAST_PROBABILITY)
            losses: Array = -np.multiply(right, logs, where=used, out=np.zeros(y.shape)).sum(axis=-1)
            return losses
        y -= y.max(axis=-1, keepdims=True)
        scores = np.multiply(target, y, where=used, out=np.zeros_like(y)).sum(axis=-1, dtype=np.float64)
        np.exp(y, out=y)
        total, mass = y.sum(axis=-1, dtype=np.float64), target.sum(axis=-1, dtype=np.float64)
        y *= (factor * mass / total).astype(y.dtype)[:, None]
        y -= y.dtype.type(factor) * target
        losses = mass * np.log(total) - scores
        return losses


class BinaryCrossentropy(Loss):
    """-t log p - (1 - t) log(1 - p) for targets t from 0 to 1, with p the predictions or, from logits, their sigmoid.

    Parameters
    ----------
    from_logits : bool
        Predictions are scores of any size; else probabilities, as an activation sigmoid gives them.
    reduction : {"mean", "sum"}
    """

    name: ClassVar[str] = "binary_crossentropy"

    def __init__(self, from_logits: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.from_logits = flag(from_logits, "from_logits")

    def take(self, y: Any, target: Any, mask: Any, weights: Any) -> Counted:
        counted = elements(y, target, mask, weights, "logits" if self.from_logits else "y")
        check_unit(counted.target, "labels", "two classes are 0 and 1, more are for a categorical cross-entropy")
        if not self.from_logits:
            check_unit(counted.y, "probabilities", LOGITS_HINT)
        return counted

    def _rows(self, y: Array, target: Array, factor: float) -> Array:
        p, t = y.astype(np.float64), target.astype(np.float64)
        if not self.from_logits:
            y[...] = factor * (p - t) / np.maximum(p * (1 - p), LEAST_PROBABILITY)
            losses: Array = -(t * _log(p) + (1 - t) * _log(1 - p))
            return losses
        small = np.exp(-np.abs(p))
        y[...] = factor * (np.where(p >= 0, 1.0, small) / (1 + small) - t)
        losses = np.maximum(p, 0) - p * t + np.log1p(small)
        return losses


def _log(p: Array) -> Array:
    """log p in float64, at least `LEAST_LOG`."""
    logs: Array = np.maximum(np.log(p.astype(np.float64)), LEAST_LOG)
    return logs
