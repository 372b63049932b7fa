"""Metrics over batches. Formulas and sources are in docs/losses.md.

Every metric has one form: ``reset()``, ``update(y, target, mask=None, weights=None)`` for each batch, ``result()``.
A metric keeps sums between batches, so the result is that of all rows at once, however they were cut into batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np

from . import losses
from .layout import Array
from .named import Named, find
from .validation import flag, number
from .weighting import IGNORE_INDEX, Counted, Rows, classes, distributions, elements

AVERAGES = ("binary", "macro", "micro")


def perplexity(loss: float) -> float:
    """exp(loss) for a mean loss in nats; infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf if loss == loss else math.nan


class Predicted(NamedTuple):
    """Predicted classes (K,) and right classes (K,) of the rows that count, the `Rows`, and the number of classes."""

    found: Array
    right: Array
    rows: Rows
    V: int


class Metric(Named):
    """Base of the metrics. A subclass turns a batch into sums, and sums into the result."""

    def __init__(self) -> None:
        self._sums: Array | None = None

    def _batch(self, y: Any, target: Any, mask: Any, weights: Any) -> Array:
        """The sums of one batch, float64; the first is the weight of all rows. Changes nothing."""
        raise NotImplementedError

    def _value(self, sums: Array) -> float:
        """The metric, from sums of at least one row."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget all batches."""
        self._sums = None

    def update(self, y: Any, target: Any, mask: Any = None, weights: Any = None) -> None:
        """Add a batch.

        Parameters
        ----------
        y : float32 or float64 array
            Predictions.
        target : array
        mask : bool array, optional
            True where a row counts: one for each prediction. Values of other rows have no effect.
        weights : array, optional
            At least 0, shaped like the mask. A weight of 2 counts a row twice.

        Raises
        ------
        TypeError, ValueError
            A dtype or shape does not fit, the batch is empty, predictions that count are NaN, or targets are no labels.
            Nothing has been added then.
        """
        self._add(self._batch(y, target, mask, weights))

    def merge(self, other: Metric) -> None:
        """Add all batches of another metric with the same configuration, say of another thread or machine."""
        if type(other) is not type(self) or other.get_config() != self.get_config():
            raise ValueError(f"{other!r} cannot be merged into {self!r}: they must be configured alike")
        if other._sums is not None:
            self._add(other._sums)

    def _add(self, sums: Array) -> None:
        if self._sums is not None and self._sums.shape != sums.shape:
            raise ValueError(
                f"this batch has {sums.shape[-1]} classes, those before had {self._sums.shape[-1]}; reset() begins anew"
            )
        self._sums = sums if self._sums is None else self._sums + sums

    def result(self) -> float:
        """The metric over all batches since the last `reset`; NaN where no row has counted."""
        return math.nan if self._sums is None else self._of(self._sums)

    def __call__(self, y: Any, target: Any, mask: Any = None, weights: Any = None) -> float:
        """The metric of one batch alone. Arguments as `update`; the batches added before stay as they are."""
        return self._of(self._batch(y, target, mask, weights))

    def _of(self, sums: Array) -> float:
        return self._value(sums) if sums.flat[0] else math.nan


class _Mean(Metric):
    """Base of means over rows. Its two sums are those of the weights and of the weighted values."""

    def _value(self, sums: Array) -> float:
        return float(sums[1] / sums[0])


class MeanLoss(_Mean):
    """The mean of a loss over all rows.

    Parameters
    ----------
    loss : str, dict or Loss
        As `fastlstm.losses.get` takes it.
    """

    name: ClassVar[str] = "mean_loss"

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self._loss = losses.get(loss)
        self.loss = self._loss.get_config()

    def _batch(self, y: Any, target: Any, mask: Any, weights: Any) -> Array:
        total, weight = self._loss.total_of(_some(self._loss.take(y, target, mask, weights)))
        return np.array([weight, total])


class MeanSquaredError(MeanLoss):
    """Mean of (y - target)^2, over all numbers."""

    name: ClassVar[str] = "mean_squared_error"

    def __init__(self) -> None:
        super().__init__(losses.MeanSquaredError())


class MeanAbsoluteError(MeanLoss):
    """Mean of abs(y - target), over all numbers."""

    name: ClassVar[str] = "mean_absolute_error"

    def __init__(self) -> None:
        super().__init__(losses.MeanAbsoluteError())


class Perplexity(MeanLoss):
    """exp of the mean cross-entropy in nats, for predictions (..., V) and integer targets (...).

    Parameters
    ----------
    from_logits : bool
        Predictions are scores of any size; else probabilities, as an activation softmax gives them.
    ignore_index : int or None
        Rows with this target do not count.
    """

    name: ClassVar[str] = "perplexity"

    def __init__(self, from_logits: bool = False, ignore_index: int | None = IGNORE_INDEX) -> None:
        super().__init__(losses.SparseCategoricalCrossentropy(from_logits, ignore_index))
        self.from_logits, self.ignore_index = flag(from_logits, "from_logits"), ignore_index

    def _value(self, sums: Array) -> float:
        return perplexity(super()._value(sums))


# ------------------------------------------------------------------------------------------------------------ accuracy
class BinaryAccuracy(_Mean):
    """Share of predictions on the right side of the threshold, for targets 0 and 1.

    Parameters
    ----------
    threshold : float
        A prediction above it says 1. For logits, 0.0 is a probability of 0.5.
    """

    name: ClassVar[str] = "binary_accuracy"

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = number(threshold, "threshold", -math.inf)

    def _batch(self, y: Any, target: Any, mask: Any, weights: Any) -> Array:
        return _hits(_binary(y, target, mask, weights, self.threshold))


class SparseCategoricalAccuracy(_Mean):
    """Share of rows with the highest score at the target, for scores (..., V) and integer targets (...).

    Parameters
    ----------
    ignore_index : int or None
        Rows with this target do not count.
    """

    name: ClassVar[str] = "sparse_categorical_accuracy"

    def __init__(self, ignore_index: int | None = IGNORE_INDEX) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def _batch(self, y: Any, target: Any, mask: Any, weights: Any) -> Array:
        return _hits(_highest(_some(classes(y, target, self.ignore_index, mask, weights))))


class CategoricalAccuracy(_Mean):
    """Share of rows with the highest score at the target's class, for scores and one-hot targets (..., V)."""

    name: ClassVar[str] = "categorical_accuracy"

    def _batch(self, y: Any, target: Any, mask: Any, weights: Any) -> Array:
        return _hits(_highest(_some(distributions(y, target, mask, weights))))


class Accuracy(_Mean):
    """One of the three accuracies, chosen by the shapes as in Keras.

    Targets with an axis less than scores (..., V), V at least 2, are classes (`SparseCategoricalAccuracy`); of the same
    shape (N, ..., V), one-hot (`CategoricalAccuracy`); anything else is binary (`BinaryAccuracy`).

    Parameters
    ----------
    threshold : float
        For the binary form.
    ignore_index : int or None
        For the form of classes: rows with this target do not count.
    """

    name: ClassVar[str] = "accuracy"

    def __init__(self, threshold: float = 0.5, ignore_index: int | None = IGNORE_INDEX) -> None:
        super().__init__()
        self.threshold, self.ignore_index = number(threshold, "threshold", -math.inf), ignore_index

    def _batch(self, y: Any, target: Any, mask: Any, weights: Any) -> Array:
        return _hits(_predicted(y, target, mask, weights, self.threshold, self.ignore_index))


class F1(Metric):
    """F1 = 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall; 0 where that is 0 / 0.

    Parameters
    ----------
    average : {"binary", "macro", "micro"}
        "binary": F1 of class 1 of two classes. "macro": the mean of the classes' F1, over classes that occur in
        predictions or targets. "micro": F1 of the classes' counts added up.
    threshold : float
        For predictions that are single numbers: one above it says 1. For logits, 0.0 is a probability of 0.5.
    ignore_index : int or None
        For integer targets: rows with this one do not count.
    """

    name: ClassVar[str] = "f1"

    def __init__(
        self, average: str = "binary", threshold: float = 0.5, ignore_index: int | None = IGNORE_INDEX
    ) -> None:
        super().__init__()
        if average not in AVERAGES:
            raise ValueError(f"average {average!r} is not known; expected one of {', '.join(AVERAGES)}")
        self.average, self.threshold, self.ignore_index = (
            average,
            number(threshold, "threshold", -math.inf),
            ignore_index,
        )

    def _batch(self, y: Any, target: Any, mask: Any, weights: Any) -> Array:
        """Sums (4, V): the weight of all rows in [0, 0], true positives, false positives, false negatives."""
        found, right, rows, V = _predicted(y, target, mask, weights, self.threshold, self.ignore_index)
        if self.average == "binary" and V != 2:
            raise ValueError(f"F1 with average='binary' is of two classes, y has {V}: take average='macro' or 'micro'")
        weight = np.ones(len(found)) if rows.weights is None else rows.weights
        hit = found == right
        sums: Array = np.zeros((4, V))
        sums[0, 0] = rows.total
        for row, (of, which) in enumerate([(right, hit), (found, ~hit), (right, ~hit)], 1):
            sums[row] = np.bincount(of[which], weight[which], V)
        return sums

    def _value(self, sums: Array) -> float:
        hits, below = sums[1], 2 * sums[1] + sums[2] + sums[3]
        if self.average == "binary":
            hits, below = hits[1:], below[1:]
        elif self.average == "micro":
            hits, below = hits.sum(keepdims=True), below.sum(keepdims=True)
        occur = below > 0
        return float(np.mean(2 * hits[occur] / below[occur])) if occur.any() else 0.0


# --------------------------------------------------------------------------------------------------- predicted classes
def _predicted(y: Any, target: Any, mask: Any, weights: Any, threshold: float, ignore_index: int | None) -> Predicted:
    """Predicted and right classes, in the form chosen by the shapes; see `Accuracy`."""
    scores, same_rank = np.shape(y), np.ndim(y) == np.ndim(target)
    if not scores or scores[-1] < 2 or (same_rank and len(scores) == 1):
        return _binary(y, target, mask, weights, threshold)
    if same_rank:
        return _highest(_some(distributions(y, target, mask, weights)))
    return _highest(_some(classes(y, target, ignore_index, mask, weights)))


def _highest(counted: Counted) -> Predicted:
    """The class of the highest score in scores (K, V), the first one if several are equal; targets (K,) or (K, V)."""
    y, target, rows = counted
    right = target if target.ndim == 1 else target.argmax(axis=-1)
    return Predicted(y.argmax(axis=-1), right, rows, y.shape[-1])


def _binary(y: Any, target: Any, mask: Any, weights: Any, threshold: float) -> Predicted:
    """The classes of single numbers: 1 above the threshold, else 0."""
    y, target, rows = _some(elements(y, target, mask, weights))
    if not ((target == 0) | (target == 1)).all():
        raise ValueError(f"labels of two classes must be 0 and 1, got {target.min()} to {target.max()}")
    return Predicted((y > threshold).astype(np.int64), target.astype(np.int64), rows, 2)


def _hits(predicted: Predicted) -> Array:
    """The sums of an accuracy: weights of all rows, weights of rows with the right class."""
    found, right, rows, _ = predicted
    hit = found == right
    return np.array([rows.total, hit.sum() if rows.weights is None else hit @ rows.weights], np.float64)


def _some(counted: Counted) -> Counted:
    """counted, or an error if there are no rows at all or predictions that count are NaN."""
    if not counted.rows.size:
        raise ValueError("y has no rows: a metric needs at least one prediction in a batch")
    if bad := int(np.isnan(counted.y).sum()):
        raise ValueError(
            f"predictions are NaN in {bad} of {counted.y.size} places that count: the model has diverged, or its input "
            "holds NaN"
        )
    return counted


# The first name of each metric is that of its configuration; the others are Keras's short forms.
METRICS: dict[str, Callable[..., Metric]] = {
    "accuracy": Accuracy,
    "acc": Accuracy,
    "binary_accuracy": BinaryAccuracy,
    "sparse_categorical_accuracy": SparseCategoricalAccuracy,
    "categorical_accuracy": CategoricalAccuracy,
    "perplexity": Perplexity,
    "f1": F1,
    "f1_macro": partial(F1, average="macro"),
    "f1_micro": partial(F1, average="micro"),
    "mean_squared_error": MeanSquaredError,
    "mse": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
    "mae": MeanAbsoluteError,
    "mean_loss": MeanLoss,
}


def get(metric: str | Mapping[str, Any] | Metric) -> Metric:
    """The metric of a name (a key of `METRICS`), of a configuration (`Metric.get_config`), or the metric itself.

    Raises
    ------
    TypeError, ValueError
        The argument is none of these; the message lists the names.
    """
    return find(metric, Metric, METRICS, "metric")
