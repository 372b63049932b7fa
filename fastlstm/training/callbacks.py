"""Callbacks of the training loop: the base with its hooks, and callbacks that record, evaluate, save and stop."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .loop import Diverged

if TYPE_CHECKING:
    from .loop import Loop


class Callback:
    """Base of the callbacks: seven hooks that do nothing, and a state that is empty."""

    def on_train_begin(self, loop: Loop) -> None:
        """Before the first batch of a run."""

    def on_train_end(self, loop: Loop) -> None:
        """After the run, however it has ended; `loop.error` is the exception, if one ended it."""

    def on_epoch_begin(self, loop: Loop) -> None:
        """Before the first batch of an epoch or, if a run resumes within an epoch, before its first batch."""

    def on_epoch_end(self, loop: Loop) -> None:
        """After the last batch of an epoch; not called if the run ends within the epoch."""

    def on_batch_begin(self, loop: Loop) -> None:
        """Before the gradients of a batch are computed."""

    def on_gradients(self, loop: Loop, gradients: Any) -> None:
        """Between gradients and step. The hook may change the gradients in place."""

    def on_batch_end(self, loop: Loop) -> None:
        """After a step; `loop.steps` counts it, and `loop.figures` are the figures of its batch."""

    def state_dict(self) -> dict[str, Any]:
        """The state from which a later run continues: arrays and values of JSON's types."""
        return {}

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""


class Record(Callback):
    """Writes the figures of every batch into the history."""

    def on_batch_end(self, loop: Loop) -> None:
        """See `Callback`."""
        loop.history.record(loop.steps, **loop.figures)


class Evaluation(Callback):
    """Measures on held-out data and records it in the history.

    Parameters
    ----------
    measure : function
        Returns the figures, by column.
    every : int
        Steps between measurements, counted from the first step of all runs, so that a resumed run measures at the same
        steps; 0: never.
    at_end : bool
        Whether a complete run measures once more at its end. The checkpoint is written before that: a continuation must
        not contain a measurement that an uninterrupted run would not have made.
    """

    def __init__(self, measure: Callable[[], Mapping[str, float]], every: int, at_end: bool = False) -> None:
        self.measure, self.every, self.at_end = measure, every, at_end
        self._measured: int | None = None  # the step of the last measurement

    def on_batch_end(self, loop: Loop) -> None:
        """See `Callback`."""
        if self.every and loop.steps % self.every == 0:
            self._do(loop)

    def on_train_end(self, loop: Loop) -> None:
        """See `Callback`."""
        if self.at_end and loop.error is None and not loop.stopping and self._measured != loop.steps:
            self._do(loop)

    def _do(self, loop: Loop) -> None:
        loop.history.record(loop.steps, **self.measure())
        self._measured = loop.steps


class SaveError(RuntimeError):
    """The last save of a run failed: the training since the last good file is lost."""


class Checkpoint(Callback):
    """Saves at regular intervals and at the end of a run, also if a signal or an error ends it.

    A save that fails is reported, and training goes on with the last good file in place. Weights are not saved within
    an interrupted step, nor after a divergence: a run with a lower learning rate begins better at the last checkpoint.

    Parameters
    ----------
    save : function
        Writes a file, atomically.
    path : path
        The file's path, for messages.
    every : int
        Steps between saves, counted from the first step of all runs, so that a resumed run saves at the same steps;
        0: at the end only.
    report : function, optional
        Called with the message of a failed save; None: a warning.
    """

    def __init__(
        self,
        save: Callable[[], None],
        path: str | os.PathLike[str],
        every: int = 0,
        report: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.save, self.path, self.every, self.report = save, path, every, report
        self.saved: int | None = None  # the step of the weights in the file

    def on_train_begin(self, loop: Loop) -> None:
        """See `Callback`."""
        self.saved = loop.steps or None

    def on_batch_end(self, loop: Loop) -> None:
        """See `Callback`."""
        if self.every and loop.steps % self.every == 0:
            try:
                self._save(loop)
            except OSError as error:
                self.report(f"step {loop.steps} was not saved: {error}. Training goes on; {self.state_of_file()}")

    def on_train_end(self, loop: Loop) -> None:
        """See `Callback`."""
        if loop.steps == (self.saved or 0) or not loop.whole or isinstance(loop.error, Diverged):
            return
        try:
            self._save(loop)
        except OSError as error:
            raise SaveError(f"step {loop.steps} was not saved: {error}. {self.state_of_file()}") from error

    def _save(self, loop: Loop) -> None:
        self.save()
        self.saved = loop.steps

    def state_of_file(self) -> str:
        """What the file holds, in words."""
        return f"{self.path} is that of step {self.saved}" if self.saved else f"{self.path} was never written"


class StopOnSignal(Callback):
    """Ends a run after the present step when a signal arrives, instead of within the step.

    The signals are SIGINT (Ctrl-C), SIGTERM, SIGHUP (the terminal closes) and SIGXCPU, except those that are ignored,
    as by nohup. A second signal, a second later or more, raises KeyboardInterrupt unless the run is within a step.
    """

    SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU")
    PAUSE = 1.0  # seconds in which a repeated signal does not count: one event may send it to the group and the process

    def __init__(self) -> None:
        self.number: int | None = None  # number of the first signal
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def on_train_begin(self, loop: Loop) -> None:
        """See `Callback`."""
        self.number = None
        if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
            return

        def note(number: int, frame: Any) -> None:
            if self.number is None:
                self.number, self._since = number, time.monotonic()
                loop.stop(f"signal {signal.Signals(number).name}")
            elif loop.whole and time.monotonic() - self._since >= self.PAUSE:
                raise KeyboardInterrupt

        for name in self.SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, note)

    def on_train_end(self, loop: Loop) -> None:
        """See `Callback`."""
        while self._before:
            signal.signal(*self._before.popitem())
