"""Training a `Sequential`: the task that the loop runs, and `fit`, `evaluate` and `predict`."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import losses
from .. import metrics as metrics_
from ..layout import Array
from ..nn.embedding import Embedding
from ..optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop, clip_by_norm, clip_by_value
from ..sequential import Sequential
from ..validation import flag, number, positive
from .callbacks import Callback, StopOnSignal
from .data import Batch, Data, Feed
from .epochs import EpochProgress
from .history import History
from .loop import Diverged, Loop
from .objective import Objective, class_weights, stateful

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
}
VALIDATION = "val_"  # prefix of the names of validation columns


@dataclass
class Compiled:
    """The arguments of `Sequential.compile`, checked."""

    optimizer: Callable[..., Optimizer]
    objective: Objective
    clip_norm: float | None
    clip_value: float | None
    made: Optimizer | None = None  # the optimiser; None before the model has parameters

    def optimizer_of(self, model: Sequential) -> Optimizer:
        """The optimiser of the model's trainable parameters; a new one after modules were frozen or unfrozen."""
        layers = [module.core for module in model.trained_modules]
        if self.made is None or [id(one) for one in self.made.layers] != [id(one) for one in layers]:
            if not layers:
                raise ValueError("no module of the model is trainable: set trainable=True on one")
            self.made = self.optimizer(layers)
        return self.made


def optimizer_maker(given: Any) -> Callable[..., Optimizer]:
    """A function from layers to their optimiser.

    Parameters
    ----------
    given : name, dict with "name" and options, class of an optimiser, or function of the layers

    Raises
    ------
    TypeError, ValueError
        The argument is none of these; the message lists the names.
    """
    known = ", ".join(OPTIMIZERS)
    if isinstance(given, str):
        given = {"name": given}
    if isinstance(given, Mapping):
        options = dict(given)
        name = options.pop("name", None)
        if name not in OPTIMIZERS:
            raise ValueError(f"optimizer {name!r} is not known; expected one of {known}")
        options_known = [option for option in inspect.signature(OPTIMIZERS[name]).parameters if option != "layers"]
        if unknown := [option for option in options if option not in options_known]:
            raise ValueError(
                f"optimizer {name!r} has no option {unknown[0]!r}; its options are {', '.join(options_known)}"
            )
        return functools.partial(OPTIMIZERS[name], **options)
    if isinstance(given, Optimizer):
        raise TypeError(
            "an optimiser is made for layers that exist, and a model's parameters are made at the first call: "
            f"give its name ({known}), a dict such as {{'name': 'adam', 'lr': 1e-3}}, "
            "or functools.partial(fl.Adam, lr=1e-3)"
        )
    if not callable(given):
        raise TypeError(f"optimizer must be one of {known}, a dict with that name, or a class, got {given!r}")
    return given  # type: ignore[no-any-return]


def compiled(
    model: Sequential, optimizer: Any, loss: Any, metrics: Sequence[Any], clip_norm: Any, clip_value: Any
) -> Compiled:
    """The arguments of `compile` in the form that `fit` needs, or an error."""
    if isinstance(metrics, (str, Mapping)):
        metrics = [metrics]
    loss = losses.get(loss)
    return Compiled(
        optimizer_maker(optimizer),
        Objective(model, loss, [aligned(metric, loss) for metric in metrics]),
        None if clip_norm is None else number(clip_norm, "clip_norm"),
        None if clip_value is None else number(clip_value, "clip_value"),
    )


def aligned(metric: Any, loss: losses.Loss) -> Any:
    """A metric that is given by its name, for the predictions that the loss takes: logits or probabilities."""
    if not isinstance(metric, str) or metric not in metrics_.METRICS or not getattr(loss, "from_logits", False):
        return metric
    options = metrics_.get(metric).options()
    if "from_logits" in options:
        return metrics_.METRICS[metric](from_logits=True)
    if "threshold" in options and isinstance(loss, losses.BinaryCrossentropy):
        return metrics_.METRICS[metric](threshold=0.0)  # the logit of the probability 0.5
    return metric


class Fit:
    """The training of a model on data: a `fastlstm.training.Task`.

    Parameters
    ----------
    model : Sequential
        Compiled and built.
    source : Data or Feed
    batch_size : int
    shuffle : bool
    """

    def __init__(self, model: Sequential, source: Data | Feed, batch_size: int, shuffle: bool) -> None:
        self.model, self.source, self.batch_size, self.shuffle = model, source, batch_size, shuffle
        self.compiled: Compiled = model._compiled
        self.objective = self.compiled.objective
        self.optimizer = self.compiled.optimizer_of(model)
        self.rng = np.random.default_rng(np.random.SeedSequence(model.seed).spawn(3)[2])
        self.position = 0  # number of this epoch's batches that were trained on
        self._order_rng: Any = None  # the generator's state before this epoch's order was drawn
        self._trained = {id(module) for module in model.trained_modules}
        self.loss_sum = self.counted = 0.0  # sums over this epoch: losses, weights of the rows that count

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches of an epoch; None if unknown before its end."""
        if isinstance(self.source, Feed):
            return self.source.steps
        return math.ceil(self.source.count / self.batch_size)

    def batches(self) -> Iterator[Batch]:
        """The batches from `position` to the end of the epoch."""
        if self.position == 0:
            self.loss_sum = self.counted = 0.0
            self.objective.reset()
            for module in stateful(self.model):
                module.reset_state()  # type: ignore[attr-defined]
        if isinstance(self.source, Feed):
            for batch in self.source.epoch():
                yield batch
                self.position += 1
        else:
            if self._order_rng is None:
                self._order_rng = self.rng.bit_generator.state
            else:
                self.rng.bit_generator.state = self._order_rng
            order = self.source.order(self.batch_size, self.rng if self.shuffle else None)
            while self.position < len(order):
                at = order[self.position]
                yield self.source.take(at)
                self.position += 1
        self.position, self._order_rng = 0, None

    def order_state(self) -> dict[str, Any]:
        """State of the generator before this epoch's order was drawn; between epochs, its present state."""
        state: dict[str, Any] = {**(self._order_rng or self.rng.bit_generator.state)}
        return state

    def restore_order(self, state: dict[str, Any]) -> None:
        """Restore an `order_state`, after `position` was restored."""
        self.rng.bit_generator.state = state
        self._order_rng = state if self.position else None

    def gradients(self, batch: Batch) -> tuple[dict[str, float], list[dict[str, Array]]]:
        """The loss of a batch, and the clipped gradients of the trainable modules."""
        step = self.objective.step(batch)
        grads = [g for m, g in zip(self.model.modules, step.grads, strict=True) if id(m) in self._trained]
        norm = clip_by_norm(grads, math.inf if self.compiled.clip_norm is None else self.compiled.clip_norm)
        if not (math.isfinite(step.loss) and math.isfinite(norm)):
            raise Diverged(f"training diverged: loss {step.loss}, gradients of norm {norm}. Lower the learning rate")
        if self.compiled.clip_value is not None:
            clip_by_value(grads, self.compiled.clip_value)
        self.loss_sum, self.counted = self.loss_sum + step.loss * step.counted, self.counted + step.counted
        return {"loss": step.loss}, grads

    def update(self, gradients: list[dict[str, Array]]) -> None:
        """Take the optimiser's step."""
        self.optimizer.step(gradients)

    def results(self) -> dict[str, float]:
        """Mean loss and metrics of the epoch so far."""
        results: dict[str, float] = self.objective.results()
        return {"loss": self.loss_sum / self.counted if self.counted else math.nan} | results


class Epochs(Callback):
    """Records each epoch's figures in the history, on the training and the validation data."""

    def __init__(self, task: Fit, validation: Data | None, epochs: int) -> None:
        self.task, self.validation, self.epochs = task, validation, epochs

    def on_epoch_end(self, loop: Loop) -> None:
        """See `Callback`."""
        values = self.task.results()
        if self.validation is not None:
            objective = self.task.objective
            found = evaluated(self.task.model, objective, self.validation, self.task.batch_size)
            values |= {VALIDATION + name: value for name, value in found.items()}
        loop.history.record(loop.epochs, lr=self.task.optimizer.lr, **values)
        source = self.task.source
        if isinstance(source, Feed) and source.exhausted and loop.epochs < self.epochs:
            warnings.warn(
                f"the iterator of batches ended in epoch {loop.epochs} of {self.epochs}, and so does the training",
                stacklevel=2,
            )
            loop.stop("the iterator of batches has ended")


def fit(
    model: Sequential,
    x: Any,
    y: Any,
    epochs: int,
    batch_size: int,
    callbacks: Sequence[Callback],
    verbose: bool,
    **options: Any,
) -> History:
    """See `fastlstm.Sequential.fit`."""
    source = data_of(x, y, options)
    epochs, batch_size = positive(epochs, "epochs"), positive(batch_size, "batch_size")
    shuffle = flag(options["shuffle"], "shuffle") and not stateful(model)
    validation = options["validation_data"]
    if validation is not None:
        if not isinstance(validation, (tuple, list)) or not 2 <= len(validation) <= 3:
            raise TypeError("validation_data is a tuple (x, y) or (x, y, sample_weight)")
        validation = Data(*validation)
    if options["validation_split"]:
        share = number(options["validation_split"], "validation_split", below=1.0)
        if validation is not None or isinstance(source, Feed):
            raise ValueError("validation_split cuts arrays x and y, and goes without validation_data: give one of them")
        source, validation = source.split(share)
    if isinstance(source, Data):
        prepare(model, source, batch_size, options["class_weight"])
    elif not model.built:
        raise ValueError(
            "a model that is fed by an iterable must be built before: model.build(shape of a sample), "
            "or call it on a batch"
        )
    else:
        source.check(epochs)
    if validation is not None:
        check_inputs(model, validation, batch_size, "validation_data's x")
        model._compiled.objective.check(validation, "validation_data's y")
    task = Fit(model, source, batch_size, shuffle)
    given = sorted(checked_callbacks(callbacks, model, validation), key=lambda c: getattr(c, "LAST", False))
    own: list[Callback] = [Epochs(task, validation, epochs), *given]
    if flag(verbose, "verbose"):
        own.append(EpochProgress(task.results, task.steps_per_epoch, epochs))
    signals = StopOnSignal()
    loop = Loop(task, [signals, *own])
    training = model.training
    model.train()
    try:
        loop.run(epochs=epochs)
    finally:
        model._set_training(training)
    model.stopped_by = signals.number
    return loop.history


def data_of(x: Any, y: Any, options: Mapping[str, Any]) -> Data | Feed:
    """The samples of `fit`, or the iterable that makes its batches."""
    is_data = isinstance(x, (np.ndarray, list, tuple)) or hasattr(x, "__array__")
    if is_data or not isinstance(x, Iterable):
        if options["steps_per_epoch"] is not None:
            raise ValueError("steps_per_epoch goes with an iterable of batches; arrays know their number of samples")
        return Data(x, y, options["sample_weight"], options["mask"])
    if y is not None or options["sample_weight"] is not None or options["mask"] is not None:
        raise ValueError(
            "x is an iterable of batches (x, y) or (x, y, weights): y, sample_weight and mask come from it"
        )
    if options["class_weight"] is not None:
        raise ValueError("class_weight goes with arrays; an iterable of batches gives weights itself")
    return Feed(x, options["steps_per_epoch"])


def prepare(model: Sequential, data: Data, batch_size: int, class_weight: Any) -> None:
    """Build the model for the data and check the targets, before training."""
    first = data.take(np.arange(min(1, data.count)))
    model.build(first.x.shape[1:])
    states = begin_anew(model)
    try:
        model(first.x, first.mask)  # raises unless x fits the first module
    finally:
        restore(states)
    check_inputs(model, data, batch_size, "x")
    for module in stateful(model):
        module.reset_state()  # type: ignore[attr-defined]
    model._compiled.objective.check(data)
    class_weights(class_weight, data)


def check_inputs(model: Sequential, data: Data, batch_size: int, name: str) -> None:
    """Raise ValueError where samples have token ids outside the table, or make no full batches of a stateful model."""
    if stateful(model) and data.count % batch_size:
        raise ValueError(
            f"a stateful model takes batches of one size: in {name}, {data.count} samples are no multiple "
            f"of {batch_size}"
        )
    first = model.modules[0]
    if isinstance(first, Embedding):
        for begin in range(0, data.count, 1024):
            part = data.x[begin : begin + 1024]
            first.check_ids(np.concatenate([np.asarray(one).reshape(-1) for one in part]))


def checked_callbacks(given: Any, model: Sequential, validation: Data | None) -> list[Callback]:
    """The callbacks as a list, or an error where one is no callback or watches validation data that were not given."""
    callbacks = [given] if isinstance(given, Callback) else list(given)
    watched = [VALIDATION + name for name in model._compiled.objective.names()]
    for one in callbacks:
        if not isinstance(one, Callback):
            raise TypeError(f"callbacks must be objects of fastlstm.callbacks.Callback, got {one!r}")
        monitor = getattr(one, "monitor", "")
        if validation is None and monitor in watched and getattr(one, "WATCHES", False):
            raise ValueError(
                f"{type(one).__name__} watches {monitor}, and there is no validation: give validation_data, "
                f"validation_split or monitor={monitor.removeprefix(VALIDATION)!r}"
            )
    return callbacks


def evaluated(model: Sequential, objective: Objective, data: Data, batch_size: int) -> dict[str, float]:
    """Mean loss and metrics over all samples, in inference."""
    own = Objective(model, objective.loss, [type(m)(**_options(m)) for m in objective.metrics])
    states = begin_anew(model)
    total = counted = 0.0
    for at in data.order(batch_size, None) if states else data.by_length(batch_size):
        one, of_one = own.total(data.take(at))
        total, counted = total + one, counted + of_one
    restore(states)
    return {"loss": total / counted if counted else math.nan} | own.results()


def begin_anew(model: Sequential) -> list[tuple[Any, Any]]:
    """Reset the modules that carry a state; what `restore` takes to give it back to them."""
    modules: list[Any] = stateful(model)
    states = [(module, module._states) for module in modules]
    for module in modules:
        module.reset_state()
    return states


def restore(states: list[tuple[Any, Any]]) -> None:
    """Give the modules the states that `begin_anew` found."""
    for module, state in states:
        module._states = state


def _options(metric: Any) -> dict[str, Any]:
    return {name: value for name, value in metric.get_config().items() if name != "name"}


def predict(model: Sequential, x: Any, batch_size: int, mask: Any) -> Any:
    """See `fastlstm.Sequential.predict`."""
    data, batch_size = Data(x, mask=mask), positive(batch_size, "batch_size")
    outputs: Any = None
    for at in data.order(batch_size, None) if stateful(model) else data.by_length(batch_size):
        batch = data.take(at)
        y = model(batch.x, batch.mask)
        per_step = data.ragged and y.ndim == 3
        if outputs is None:
            outputs = [None] * data.count if per_step else np.empty((data.count, *y.shape[1:]), y.dtype)
        if per_step:
            for row, i in zip(y, at, strict=True):
                outputs[i] = row[: len(data.x[i])].copy()
        else:
            outputs[at] = y
    return outputs
