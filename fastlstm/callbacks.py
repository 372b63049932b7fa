"""Callbacks of `fastlstm.Sequential.fit`: early stopping, the best model, resuming, learning rates, logs, pictures.

A callback of one's own derives from `Callback` and fills the hooks that it needs; see docs/training.md.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import files
from .training.callbacks import Callback
from .training.history import History
from .validation import flag, number, positive

if TYPE_CHECKING:
    from .sequential import Sequential
    from .training.loop import Loop

__all__ = ["Backup", "BestModel", "CSVLog", "Callback", "EarlyStopping", "LearningRate", "LossCurve"]

MODES = ("min", "max")


class _Watching(Callback):
    """What the callbacks share that compare a column of the history with its best value."""

    WATCHES = True  # `fit` refuses a column of a validation that it was not given

    def __init__(self, monitor: str, mode: str, min_delta: float) -> None:
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is not known; expected one of {', '.join(MODES)}")
        self.monitor, self.mode, self.min_delta = monitor, mode, number(min_delta, "min_delta")
        self.best = math.inf if mode == "min" else -math.inf

    def _improved(self, loop: Loop) -> bool:
        """Whether this epoch's value is the best so far; it is then kept."""
        if self.monitor not in loop.history:
            known = ", ".join(loop.history.columns)
            raise ValueError(f"the history has no column {self.monitor!r} to watch; it has {known}")
        value = loop.history.last(self.monitor)[0]
        better = value < self.best - self.min_delta if self.mode == "min" else value > self.best + self.min_delta
        if better:
            self.best = value
        return better

    def state_dict(self) -> dict[str, Any]:
        """See `Callback`."""
        return {"best": self.best}

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """See `Callback`."""
        self.best = float(d["best"])


class EarlyStopping(_Watching):
    """Stops when a figure has not improved for some epochs.

    Parameters
    ----------
    monitor : str
        A column of the history.
    patience : int
        Epochs without improvement that are waited for.
    min_delta : float
        What counts as an improvement.
    mode : {"min", "max"}
    restore_best : bool
        Give the model the parameters of the best epoch at the end; not where a signal interrupts the run.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 3,
        *,
        min_delta: float = 0.0,
        mode: str = "min",
        restore_best: bool = True,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience, self.restore_best = positive(patience, "patience", 0), flag(restore_best, "restore_best")
        self.waited = 0
        self._parameters: dict[str, Any] | None = None

    def on_epoch_end(self, loop: Loop) -> None:
        """See `Callback`."""
        if self._improved(loop):
            self.waited = 0
            self._parameters = _model(loop).state_dict() if self.restore_best else None
            return
        self.waited += 1
        if self.waited > self.patience:
            loop.stop(f"{self.monitor} has not improved for {self.waited} epochs")

    def on_train_end(self, loop: Loop) -> None:
        """See `Callback`."""
        interrupted = loop.error is not None or (loop.stopping and loop.reason.startswith("signal"))
        if self._parameters is not None and not interrupted:  # an interrupted run goes on from where it stopped
            _model(loop).load_state_dict(self._parameters)

    def state_dict(self) -> dict[str, Any]:
        """See `Callback`."""
        best = {f"best.{name}": a for name, a in (self._parameters or {}).items()}
        return {**super().state_dict(), "waited": self.waited, **best}

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """See `Callback`."""
        super().load_state_dict(d)
        self.waited = int(d["waited"])
        self._parameters = {
            n.removeprefix("best."): np.asarray(a) for n, a in d.items() if n.startswith("best.")
        } or None


class BestModel(_Watching):
    """Saves the model whenever a figure is the best so far; `fastlstm.load` reads it.

    Parameters
    ----------
    path : path
        Written atomically: a full disk or a kill leaves the last good file.
    monitor, mode, min_delta
        As in `EarlyStopping`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        monitor: str = "val_loss",
        *,
        mode: str = "min",
        min_delta: float = 0.0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.path = path
        files.check_writable(path)

    def on_epoch_end(self, loop: Loop) -> None:
        """See `Callback`."""
        if self._improved(loop):
            _model(loop).save(self.path)


class Backup(Callback):
    """Saves everything that a continued training needs, after each epoch and when a run is interrupted.

    Where the file exists when `fit` begins, training goes on from it: parameters, optimiser, dropout, the order of the
    samples and the history are what they were, so that the end is bit for bit that of a run that was never interrupted.
    Give `fit` the same data, options and callbacks.

    Parameters
    ----------
    path : path
        Written atomically.
    """

    LAST = True  # among a run's callbacks: it saves what the others have come to

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        files.check_writable(path)
        self._saved: int | None = None

    def on_train_begin(self, loop: Loop) -> None:
        """See `Callback`."""
        if os.path.exists(self.path) and os.path.getsize(self.path):
            arrays, config = files.load(self.path)
            try:
                self._restore(loop, arrays, config)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise files.FileError(f"{self.path} is no backup of this training: {files.one_line(error)}") from error

    def on_epoch_end(self, loop: Loop) -> None:
        """See `Callback`."""
        self._save(loop)

    def on_train_end(self, loop: Loop) -> None:
        """See `Callback`."""
        if loop.whole and loop.steps != self._saved:
            self._save(loop)

    def _save(self, loop: Loop) -> None:
        task: Any = loop.task
        model = task.model
        carried = {f"carried.{at}.{i}": a for at, m in enumerate(model.modules) for i, a in enumerate(_carried(m))}
        sums = {f"metric.{at}": m._sums for at, m in enumerate(task.objective.metrics) if m._sums is not None}
        optimizer = {f"optimizer.{n}": a for n, a in task.optimizer.state_dict().items()}
        history = {f"history.{n}": a for n, a in loop.history.to_arrays().items()}
        parts: dict[str, Any] = {f"model.{n}": a for n, a in model.state_dict().items()} | optimizer | history
        parts |= carried | sums
        states = []
        for at, callback in enumerate(self._others(loop)):
            state = callback.state_dict()
            parts |= {f"callback.{at}.{n}": a for n, a in state.items() if isinstance(a, np.ndarray)}
            states.append({n: v for n, v in state.items() if not isinstance(v, np.ndarray)})
        config = {
            "kind": "backup of fit",
            "steps": loop.steps,
            "epochs": loop.epochs,
            "position": task.position,
            "sums": [task.loss_sum, task.counted],
            "order": task.order_state(),
            "dropout": [module.rng_state for module in model.modules],
            "callbacks": states,
        }
        files.save(self.path, {n: np.asarray(a) for n, a in parts.items()}, config)
        self._saved = loop.steps

    def _others(self, loop: Loop) -> list[Callback]:
        """The callbacks that have a state."""
        mine = type(self).state_dict
        return [c for c in loop.callbacks if type(c).state_dict is not mine and c is not self]

    def _restore(self, loop: Loop, arrays: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        if config.get("kind") != "backup of fit":
            raise ValueError("it holds something else")
        task: Any = loop.task
        states = config["callbacks"]
        if len(states) != len(self._others(loop)):
            raise ValueError(f"it has the states of {len(states)} callbacks, this run {len(self._others(loop))}")
        task.model.load_state_dict(_below(arrays, "model."))
        task.optimizer.load_state_dict(_below(arrays, "optimizer."))
        loop.history = History.from_arrays(_below(arrays, "history."))
        loop.steps, loop.epochs, task.position = int(config["steps"]), int(config["epochs"]), int(config["position"])
        task.loss_sum, task.counted = map(float, config["sums"])
        task.restore_order(config["order"])
        for module, state in zip(task.model.modules, config["dropout"], strict=True):
            module.rng_state = state
        for at, module in enumerate(task.model.modules):
            own = _below(arrays, f"carried.{at}.")
            if own:
                module._states = tuple(own[str(i)] for i in range(len(own)))
        for at, metric in enumerate(task.objective.metrics):
            metric._sums = arrays.get(f"metric.{at}")
        for at, (callback, state) in enumerate(zip(self._others(loop), states, strict=True)):
            if state or _below(arrays, f"callback.{at}."):
                callback.load_state_dict({**state, **_below(arrays, f"callback.{at}.")})
        self._saved = loop.steps


def _carried(module: Any) -> tuple[Any, ...]:
    """The state that a stateful module carries to the next batch."""
    return getattr(module, "_states", None) or ()


def _below(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


class LearningRate(Callback):
    """Changes the learning rate by a schedule, after each epoch.

    Parameters
    ----------
    schedule : function
        From the optimiser to a schedule of `fastlstm`: ``lambda optimizer: fl.StepLR(optimizer, step_size=10)``. One
        that wants a figure, as ReduceLROnPlateau does, gets the monitored one.
    monitor : str
        A column of the history, for such schedules.
    """

    def __init__(self, schedule: Callable[[Any], Any], monitor: str = "val_loss") -> None:
        self.schedule, self.monitor = schedule, monitor
        self._made: Any = None
        self._state: Mapping[str, Any] | None = None

    def on_train_begin(self, loop: Loop) -> None:
        """See `Callback`."""
        task: Any = loop.task
        self._made = self.schedule(task.optimizer)
        if self._state is not None:
            self._made.load_state_dict(self._state)
            self._state = None

    def on_epoch_end(self, loop: Loop) -> None:
        """See `Callback`."""
        if type(self._made).__name__ == "ReduceLROnPlateau":
            self._made.step(loop.history.last(self.monitor)[0])
        else:
            self._made.step()

    def state_dict(self) -> dict[str, Any]:
        """See `Callback`."""
        return {} if self._made is None else dict(self._made.state_dict())

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """See `Callback`."""
        if self._made is None:
            self._state = dict(d)
        else:
            self._made.load_state_dict(d)


class CSVLog(Callback):
    """Writes the history as a CSV file, a row for each epoch; rewritten atomically after each.

    Parameters
    ----------
    path : path
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        files.check_writable(path)

    def on_epoch_end(self, loop: Loop) -> None:
        """See `Callback`."""
        text = io.StringIO()
        columns = ["epoch", *loop.history.columns]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in loop.history.rows():
            writer.writerow({"epoch": row.pop("at"), **row})
        files.write_atomically(self.path, text.getvalue().encode())


class LossCurve(Callback):
    """Draws loss and validation loss over the epochs, at the end of a run.

    Parameters
    ----------
    path : path
        A picture; its ending says the format: .png, .svg, .pdf and others. Checked before the training.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from . import plot

        self.path = path
        plot.check_kind(path)  # what would fail after the training is to fail before it
        files.check_writable(path)

    def on_train_end(self, loop: Loop) -> None:
        """See `Callback`."""
        if "loss" not in loop.history:
            return
        from . import plot

        figure = plot.figure()
        axes = figure.add_subplot()
        for name in ("loss", "val_loss"):
            points = loop.history.points(name)
            if points:
                axes.plot(*zip(*points, strict=True), label=name)
        axes.set(xlabel="epoch", ylabel="loss")
        axes.legend()
        memory = io.BytesIO()
        figure.savefig(memory, format=os.path.splitext(os.fspath(self.path))[1].lstrip(".") or "png")
        files.write_atomically(self.path, memory.getvalue())


def _model(loop: Loop) -> Sequential:
    task: Any = loop.task
    model: Sequential = task.model
    return model
