"""Callbacks of the training loop: the hooks, and those callbacks that every training wants."""

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
        """However a run has ended; `loop.error` is the exception, if one ended it."""

    def on_epoch_begin(self, loop: Loop) -> None:
        """Before the first batch of an epoch, or the first one after a resumption within an epoch."""

    def on_epoch_end(self, loop: Loop) -> None:
        """After the last batch of an epoch; not where the run ends within one."""

    def on_batch_begin(self, loop: Loop) -> None:
        """Before the gradients of a batch are computed."""

    def on_gradients(self, loop: Loop, gradients: Any) -> None:
        """Between gradients and step: they may be changed in place."""

    def on_batch_end(self, loop: Loop) -> None:
        """After a step, which `loop.steps` counts already; `loop.figures` are those of its batch."""

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs of this callback: arrays, and what JSON can hold."""
        return {}

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """Take up a `state_dict`."""


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
        In steps, counted from the very first one, so that a resumed run keeps the rhythm; 0 for never.
    at_end : bool
        Whether a run that reaches its end measures once more there. A checkpoint has been written by then, so that no
        continuation finds a measurement that an uninterrupted run would not have made.
    """

    def __init__(self, measure: Callable[[], Mapping[str, float]], every: int, at_end: bool = False) -> None:
        self.measure, self.every, self.at_end = measure, every, at_end
        self._measured: int | None = None  # the step after which it was done last

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
    """The last save of a run failed: what was trained since the last good file is lost."""


class Checkpoint(Callback):
    """Saves in regular intervals and at the end of a run, also one that a signal or an error ends.

    A save that fails is reported, and training goes on with the last good file in place. Weights are not saved within a
    step that was cut off, nor at a divergence, since a run with a lower learning rate begins better at the last
    checkpoint.

    Parameters
    ----------
    save : function
        Writes a file, atomically.
    path : path
        That file, for messages.
    every : int
        In steps, counted from the very first one, so that a resumed run keeps the rhythm; 0 for the end alone.
    report : function, optional
        Takes the message on a save that failed; a warning unless given.
    """

    def __init__(
        self,
        save: Callable[[], None],
        path: str | os.PathLike[str],
        every: int = 0,
        report: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.save, self.path, self.every, self.report = save, path, every, report
        self.saved: int | None = None  # the step whose weights the file has

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
    """Ends a run after the step at hand when a signal asks to stop, instead of being cut off within it.

    The signals are those of Ctrl-C, of a request to terminate, of a terminal that closes and of a spent CPU time limit,
    except those that are ignored, as by nohup. A second one, a second later or more, is an exception of the kind of
    Ctrl-C wherever that leaves weights that can be saved.
    """

    SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU")
    PAUSE = 1.0  # seconds; a process and its parent may each send the same signal to a group

    def __init__(self) -> None:
        self.number: int | None = None  # of the signal that came first
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def on_train_begin(self, loop: Loop) -> None:
        """See `Callback`."""
        self.number = None
        if threading.current_thread() is not threading.main_thread():  # Python lets only that one handle signals
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
