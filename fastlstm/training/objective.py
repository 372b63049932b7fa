"""A loss and metrics on a model's output, and what they need of its last module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import losses, metrics
from ..layout import Array
from ..nn.activation import activate
from ..nn.base import Module
from ..nn.dense import Dense
from ..sequential import Sequential
from ..weighting import check_finite, check_unit, labels
from .data import Batch, Data

# Losses that are computed from the logits of the last Dense: exact where probabilities round to 0 or 1.
FUSED = {
    "softmax": (losses.SparseCategoricalCrossentropy, losses.CategoricalCrossentropy),
    "sigmoid": (losses.BinaryCrossentropy,),
}


class Step(NamedTuple):
    """Results of one training step: the mean loss, the sum of its weights, and a gradient dict for each module."""

    loss: float
    counted: float
    grads: list[dict[str, Array]]


class Objective:
    """A loss and metrics of a model.

    Parameters
    ----------
    model : Sequential
    loss : name, configuration or Loss
    metric : sequence of names, configurations or Metric
        Kept up to date by `step` (of training) and `evaluate`.
    """

    def __init__(self, model: Sequential, loss: Any, metric: Sequence[Any] = ()) -> None:
        self.model, self.loss = model, losses.get(loss)
        self.metrics = [metrics.get(m) for m in metric]
        last = model.modules[-1]
        fitting: tuple[Any, ...] = FUSED.get(last.activation, ()) if isinstance(last, Dense) else ()
        self.fused = (
            isinstance(self.loss, fitting) and not getattr(self.loss, "from_logits", True) if fitting else False
        )
        self._of_logits = losses.get({**self.loss.get_config(), "from_logits": True}) if self.fused else self.loss

    def names(self) -> list[str]:
        """Columns of the history: the loss and the metrics."""
        return ["loss", *(m.name for m in self.metrics)]

    # -------------------------------------------------------------------------------------------------------- training
    def step(self, batch: Batch) -> Step:
        """Loss and gradients of a batch, penalties included."""
        y, mask, d, tapes = np.asarray(batch.x), batch.mask, None, []
        y = self.model._enter(y)
        for module in self.model.modules[: -1 if self.fused else None]:
            before = y
            y, tape = module.forward(before, mask)
            mask = module.output_mask(before, mask)
            tapes.append(tape)
        if self.fused:
            head = self.model.modules[-1]
            assert isinstance(head, Dense)
            logits, of_head = head.forward_logits(y)
            loss, counted, d = self._loss(logits, batch, mask)
            if self.metrics:
                self._update(activate(head.activation, logits), batch, mask)
            d, own = head.backward_logits(of_head, d)
            grads = [own]
        else:
            loss, counted, d = self._loss(y, batch, mask)
            self._update(y, batch, mask)
            grads = []
        for module, tape in zip(reversed(self.model.modules[: len(tapes)]), reversed(tapes), strict=True):
            if d is None:
                break
            d, own = module.backward(tape, d)
            grads.insert(0, own)
        penalty = sum(m.penalty(g) for m, g in zip(self.model.modules, grads, strict=True))
        return Step(loss + penalty, counted, grads)

    def _loss(self, y: Array, batch: Batch, mask: Array | None) -> tuple[float, float, Array]:
        """(mean loss, how much counted, gradient) of a model's output or, where they are fused, of its logits."""
        counted = self._of_logits._some(self._of_logits.take(y, batch.y, *self._weighted(y, batch, mask)))
        loss, dy = self._of_logits._reduced(y, counted)
        return loss, counted.rows.total, dy

    def _weighted(self, y: Array, batch: Batch, mask: Array | None) -> tuple[Array | None, Array | None]:
        """The mask and the weights of the loss: of steps where the model's output has them, else of samples."""
        weights = batch.weights
        if y.ndim < 3:
            return None, weights
        return mask, weights[:, None] if weights is not None and weights.ndim == 1 else weights

    def _update(self, y: Array, batch: Batch, mask: Array | None) -> None:
        for metric in self.metrics:
            metric.update(y, batch.y, *self._weighted(y, batch, mask))

    # ------------------------------------------------------------------------------------------------------ evaluation
    def reset(self) -> None:
        """Reset the metrics."""
        for metric in self.metrics:
            metric.reset()

    def results(self) -> dict[str, float]:
        """The metrics' values since `reset`."""
        return {m.name: m.result() for m in self.metrics}

    def total(self, batch: Batch) -> tuple[float, float]:
        """(sum of the losses, sum of the weights) of a batch in inference; updates the metrics."""
        y, mask = self.model._enter(batch.x), batch.mask
        for module in self.model.modules[: -1 if self.fused else None]:
            y, mask = module(y, mask), module.output_mask(y, mask)
        out = y
        if self.fused:
            head = self.model.modules[-1]
            assert isinstance(head, Dense)
            y = head.logits(y)
            out = activate(head.activation, y) if self.metrics else y
        if self.metrics:
            self._update(out, batch, mask)
        return self._of_logits.total(y, batch.y, *self._weighted(y, batch, mask))

    # ---------------------------------------------------------------------------------------------------------- checks
    def check(self, data: Data, name: str = "y") -> None:
        """Raise, before training, if targets do not fit the model's output.

        Raises
        ------
        TypeError, ValueError
            Labels outside the classes, probabilities outside [0, 1], NaN, or another shape.
        """
        if data.y is None:
            raise ValueError(f"{name} is missing: a target for each sample is needed")
        for begin in range(0, data.count, 1024):
            part = data.part(slice(begin, begin + 1024))
            batch = part.take(np.arange(part.count))
            self._check(batch)

    def _check(self, batch: Batch) -> None:
        after = self.model.output_shape(batch.x.shape[1:])
        shape = (len(batch.x), *(n if n is not None else batch.x.shape[1] for n in after))
        target = np.asarray(batch.y)
        if isinstance(self.loss, losses.SparseCategoricalCrossentropy):
            labels(target, shape, self.loss.ignore_index)
            return
        if target.shape not in (shape, shape[:-1] if shape[-1] == 1 else shape):
            raise ValueError(
                f"y has shape {target.shape}, the model's output {shape}: they must agree for the loss {self.loss!r}"
            )
        check_finite(target, "y")
        if isinstance(self.loss, losses.BinaryCrossentropy):
            check_unit(target, "labels", "two classes are 0 and 1; for more take 'sparse_categorical_crossentropy'")


def class_weights(given: Mapping[Any, float] | None, data: Data) -> None:
    """Multiply the samples' weights in `data` by the weights of their classes.

    Raises
    ------
    ValueError
        The targets are no single class for each sample, or a class has no weight.
    """
    if given is None:
        return
    y = np.asarray(data.y)
    if isinstance(data.y, list) or y.reshape(len(y), -1).shape[1] != 1:
        raise ValueError(f"class_weight needs one class for each sample, y has shape {y.shape}: use sample_weight")
    classes = y.reshape(-1)
    missing = sorted({c.item() for c in np.unique(classes)} - set(given))
    if missing:
        raise ValueError(f"class_weight has no weight for {', '.join(map(str, missing))}")
    own = np.array([given[c.item()] for c in classes], np.float64)
    if not (np.isfinite(own).all() and (own >= 0).all()):
        raise ValueError(f"class_weight must be finite and at least 0, got {dict(given)}")
    data.weights = (
        own if data.weights is None else np.asarray(data.weights) * own.reshape(-1, *[1] * (np.ndim(data.weights) - 1))
    )


def stateful(model: Sequential) -> list[Module]:
    """The modules that carry their state from batch to batch."""
    return [m for m in model.modules if getattr(m, "stateful", False)]
