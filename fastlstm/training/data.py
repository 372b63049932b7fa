"""The data of `fit`, `evaluate` and `predict`: arrays, lists of ragged sequences, or an iterable of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..layout import Array
from ..validation import positive

CHECKED_AT_ONCE = 1 << 22  # numbers of an array that are checked at once: bounds the memory of a check
WINDOW = 32  # batches of ragged sequences that are sorted by length together: each batch has about equal lengths


class Batch(NamedTuple):
    """One batch: the model's input, targets, mask and weights.

    Parameters
    ----------
    x : (B, ...) array
    y : (B, ...) array, or None
    mask : (B, T) bool array, or None
        True at the steps of a ragged batch that exist.
    weights : (B,) or (B, T) array, or None
    """

    x: Array
    y: Any = None
    mask: Array | None = None
    weights: Array | None = None


class Data:
    """Samples with their targets, in memory or in a memory-mapped file.

    Parameters
    ----------
    x : (N, ...) array, or list of N sequences (T_i, ...)
    y : array or list of N targets, optional
    weights : (N,) array, or for targets per step (N, T) or a list of N, optional
    mask : (N, T) bool array, optional
        True at the steps that count; for arrays only.

    Raises
    ------
    TypeError, ValueError
        The parts do not fit together, are empty, or hold NaN; the message names the first place.
    """

    def __init__(self, x: Any, y: Any = None, weights: Any = None, mask: Any = None) -> None:
        self.ragged = isinstance(x, (list, tuple))
        self.x: Any = sequences(x, "x") if self.ragged else _array(x, "x")
        self.count = len(self.x)
        if not self.count:
            raise ValueError("x is empty: at least one sample is needed")
        self.y = None if y is None else self._beside(y, "y")
        self.weights = None if weights is None else self._beside(weights, "sample_weight")
        if mask is not None and self.ragged:
            raise ValueError("a mask goes with padded arrays; a list of sequences has its lengths already")
        self.mask: Any = None if mask is None else np.asarray(mask)
        if self.mask is not None and (self.mask.dtype != np.bool_ or self.mask.shape != np.shape(self.x)[:2]):
            raise ValueError(
                f"mask has shape {self.mask.shape} and dtype {self.mask.dtype}, expected bools {np.shape(self.x)[:2]}"
            )
        self.lengths = np.array([len(one) for one in self.x]) if self.ragged else None
        self._check_steps()
        self._check_weights()

    def _check_weights(self) -> None:
        """Raise TypeError or ValueError unless weights are finite, at least 0, and one for each sample or step."""
        if self.weights is None:
            return
        for at, one in enumerate(self.weights if isinstance(self.weights, list) else [self.weights]):
            name = f"sample_weight[{at}]" if isinstance(self.weights, list) else "sample_weight"
            axes = (1,) if isinstance(self.weights, list) else (1, 2)
            if one.ndim not in axes or (one.ndim == 2 and (self.ragged or one.shape[1] != np.shape(self.x)[1])):
                form = "a list of (T_i,)" if self.ragged else f"({self.count}, T) for targets per step"
                raise ValueError(f"{name} has shape {one.shape}, expected ({self.count},) or {form}")
            if one.size and one.min() < 0:
                raise ValueError(f"{name} must be at least 0, got {one.min()}: 0 leaves a sample out")

    def _beside(self, given: Any, name: str) -> Any:
        """Targets or weights, or an error unless there is one for each sample."""
        ragged = self.ragged and isinstance(given, (list, tuple)) and len(given) > 0 and np.ndim(given[0]) > 0
        values: Any = sequences(given, name) if ragged else _array(given, name)
        if len(values) != self.count:
            raise ValueError(f"x has {self.count} samples, {name} has {len(values)}: give one for each")
        return values

    def _check_steps(self) -> None:
        """Raise ValueError where ragged targets or weights have another number of steps than their sequence."""
        for name in ("y", "weights"):
            values = getattr(self, name)
            if isinstance(values, list) and self.lengths is not None:
                for at, (one, length) in enumerate(zip(values, self.lengths, strict=True)):
                    if len(one) != length:
                        raise ValueError(f"{name}[{at}] has {len(one)} steps, x[{at}] has {length}")

    def order(self, batch_size: int, rng: np.random.Generator | None) -> list[Array]:
        """The indices of each batch's samples: in order, or in random order if `rng` is given.

        Ragged sequences of about equal length share a batch, so that there is little padding.
        """
        at = np.arange(self.count) if rng is None else rng.permutation(self.count)
        if self.lengths is not None and rng is not None:
            window = WINDOW * batch_size
            parts = [at[i : i + window] for i in range(0, self.count, window)]
            at = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in parts])
        batches = [at[i : i + batch_size] for i in range(0, self.count, batch_size)]
        if self.lengths is not None and rng is not None:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def by_length(self, batch_size: int) -> list[Array]:
        """The samples of each batch, ragged ones sorted by length, so that hardly anything is padded."""
        if self.lengths is None:
            return self.order(batch_size, None)
        at = np.argsort(self.lengths, kind="stable")
        return [at[i : i + batch_size] for i in range(0, self.count, batch_size)]

    def take(self, at: Array) -> Batch:
        """The batch of these samples."""
        if not self.ragged:
            y, mask, weights = (None if a is None else np.asarray(a[at]) for a in (self.y, self.mask, self.weights))
            return Batch(np.asarray(self.x[at]), y, mask, weights)
        lengths = np.array([len(self.x[i]) for i in at])
        T = max(1, int(lengths.max()))
        mask = np.arange(T) < lengths[:, None]
        y, weights = (
            padded([values[i] for i in at], T) if isinstance(values, list) else None if values is None else values[at]
            for values in (self.y, self.weights)
        )
        return Batch(padded([self.x[i] for i in at], T), y, None if mask.all() else mask, weights)

    def split(self, share: float) -> tuple[Data, Data]:
        """(the first samples, the last ones): the last ones are `share` of all."""
        kept = self.count - round(self.count * share)
        if not 0 < kept < self.count:
            raise ValueError(f"validation_split={share:g} of {self.count} samples leaves one side empty")
        return self.part(slice(None, kept)), self.part(slice(kept, None))

    def part(self, at: slice) -> Data:
        """The samples of a slice."""
        new = object.__new__(Data)
        new.ragged = self.ragged
        for name in ("x", "y", "weights", "mask", "lengths"):
            value = getattr(self, name)
            setattr(new, name, None if value is None else value[at])
        new.count = len(new.x)
        return new


class Feed:
    """Batches that an iterable makes: (x, y) or (x, y, weights), anew for each epoch, or one endless iterator.

    Parameters
    ----------
    batches : iterable
    steps : int, optional
        Batches of an epoch; None: all. An iterator, which cannot begin again, needs it for several epochs.
    """

    def __init__(self, batches: Iterable[Any], steps: int | None = None) -> None:
        self.batches = batches
        self.steps = None if steps is None else positive(steps, "steps_per_epoch")
        self._running: Iterator[Any] | None = iter(batches) if isinstance(batches, Iterator) else None
        self._ahead: list[Any] = []  # the next batch of an iterator, where it was taken to see whether there is one
        self.exhausted = False  # an iterator that has no further batch

    def check(self, epochs: int) -> None:
        """Raise ValueError where the batches cannot last for so many epochs."""
        if self._running is not None and self.steps is None and epochs > 1:
            raise ValueError(
                f"an iterator of batches cannot begin again, and epochs={epochs}: say with steps_per_epoch how many "
                "batches an epoch has, or give an iterable that begins anew for each epoch (a class with __iter__)"
            )

    def epoch(self) -> Iterator[Batch]:
        """The batches of one epoch."""
        source = self._running if self._running is not None else iter(self.batches)
        taken = 0
        while self.steps is None or taken < self.steps:
            try:
                given = self._ahead.pop() if self._ahead else next(source)
            except StopIteration:
                break
            taken += 1
            yield self._batch(given)
        if self._running is not None and not self._ahead:
            try:
                self._ahead.append(next(source))
            except StopIteration:
                self.exhausted = True

    @staticmethod
    def _batch(given: Any) -> Batch:
        if not isinstance(given, (tuple, list)) or not 2 <= len(given) <= 3:
            raise TypeError(f"a batch is a tuple (x, y) or (x, y, weights), got {type(given).__name__}")
        data = Data(*given)
        return data.take(np.arange(data.count))


def sequences(given: Sequence[Any], name: str) -> list[Array]:
    """A list of arrays with steps first, of one dtype and one width, without NaN; or an error."""
    arrays = [np.asarray(one) for one in given]
    for at, one in enumerate(arrays):
        if one.ndim == 0:
            raise ValueError(f"{name}[{at}] is a single number: a list holds one sequence for each sample")
        if one.shape[1:] != arrays[0].shape[1:] or (one.dtype != arrays[0].dtype and one.size):
            raise ValueError(
                f"{name}[{at}] has shape {one.shape} and dtype {one.dtype}, {name}[0] {arrays[0].shape} and "
                f"{arrays[0].dtype}: sequences may differ in their number of steps only"
            )
        _check_finite(one, f"{name}[{at}]")
    return arrays


def padded(arrays: Sequence[Array], T: int) -> Array:
    """Arrays (T_i, ...) as one (B, T, ...), padded with zeros at the end."""
    whole = np.zeros((len(arrays), T, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, one in zip(whole, arrays, strict=True):
        row[: len(one)] = one
    return whole


def _array(given: Any, name: str) -> Any:
    """An array of numbers without NaN, not copied; or an error."""
    array = given if isinstance(given, np.ndarray) else np.asarray(given)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold numbers, got dtype {array.dtype}")
    if array.ndim == 0:
        raise ValueError(f"{name} is a single number, expected an array with one entry for each sample")
    _check_finite(array, name)
    return array


def _check_finite(array: Array, name: str) -> None:
    """Raise ValueError with the place of the first NaN or infinity; a memory-mapped array is read in pieces."""
    if array.dtype.kind != "f" or not array.size:
        return
    rows = max(1, CHECKED_AT_ONCE // max(1, array[0].size))
    for begin in range(0, len(array), rows):
        fine = np.isfinite(array[begin : begin + rows])
        if not fine.all():
            at = np.argwhere(~fine)[0]
            place = ", ".join(map(str, (int(at[0]) + begin, *at[1:].tolist())))
            raise ValueError(
                f"{name} holds NaN or infinity, first at [{place}]: leave such samples out, "
                "or put a number there and say with mask= that the step does not count"
            )
