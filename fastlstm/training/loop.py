"""The training loop: epochs, batches, hooks at their beginnings and ends, and an end of the run for every callback.

The loop knows no layers. A `Task` supplies batches and takes steps; callbacks do everything else: record, evaluate,
save, show, stop. `fastlstm.text.TextTraining` is such a task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .history import History

if TYPE_CHECKING:
    from .callbacks import Callback


class Diverged(ArithmeticError):
    """The loss or the gradients are no longer finite. Nothing of the failed step has been kept."""


class Task(Protocol):
    """What is trained."""

    def batches(self) -> Iterator[Any]:
        """The batches from the present place in the epoch to its end.

        The loop takes a batch after the step on the batch before. A task that was resumed within an epoch continues
        there.
        """

    def gradients(self, batch: Any) -> tuple[Mapping[str, float], Any]:
        """Figures of a batch (``loss`` and the like) and gradients; changes nothing.

        Raises
        ------
        Diverged
            The loss or the gradients are not finite.
        """

    def update(self, gradients: Any) -> None:
        """Take the optimiser's step."""


class Loop:
    """Trains a task until a number of steps or epochs is reached, or a stop is requested.

    Parameters
    ----------
    task : Task
    callbacks : sequence of Callback
        Hooks are called in this order, but `on_train_end` in the reverse order: the first callback begins first and
        ends last.
    history : History, optional
        The history to continue.
    steps, epochs : int
        Steps and epochs of the runs that this one continues.

    Attributes
    ----------
    steps, epochs : int
        Batches trained on, and epochs completed, in all.
    figures : dict
        Figures of the last batch.
    stopping : bool
        Whether a stop was requested.
    reason : str
        The reason of the stop.
    error : BaseException or None
        The exception that ended the run, for `on_train_end`.
    whole : bool
        False within a step: weights and optimiser do not belong together then, and must not be saved.
    """

    def __init__(
        self,
        task: Task,
        callbacks: Sequence[Callback] = (),
        history: History | None = None,
        *,
        steps: int = 0,
        epochs: int = 0,
    ) -> None:
        self.task, self.callbacks = task, list(callbacks)
        self.history = History() if history is None else history
        self.steps, self.epochs = steps, epochs
        self.last_step: int | None = None
        self.figures: Mapping[str, float] = {}
        self.stopping, self.reason, self.whole = False, "", True
        self.error: BaseException | None = None

    def stop(self, reason: str = "") -> None:
        """Request an end after the present step, from any callback or thread. The first reason is kept."""
        if not self.stopping:
            self.stopping, self.reason = True, reason

    def run(self, *, steps: int | None = None, epochs: int | None = None) -> Loop:
        """Train until `steps` steps or `epochs` epochs have been completed in all, whichever is earlier.

        However the run ends, `on_train_end` is called for every callback whose `on_train_begin` was called.

        Raises
        ------
        Diverged
            The loss or the gradients are no longer finite. Exceptions of the task and of callbacks pass too.
        """
        self.last_step, self.stopping, self.reason, self.error = steps, False, "", None
        begun: list[Callback] = []
        try:
            for callback in self.callbacks:
                begun.append(callback)
                callback.on_train_begin(self)
            while not self._finished() and (epochs is None or self.epochs < epochs):
                self._epoch()
        except BaseException as error:
            self.error = error
            raise
        finally:
            self._end(begun)
        return self

    def _finished(self) -> bool:
        return self.stopping or (self.last_step is not None and self.steps >= self.last_step)

    def _epoch(self) -> None:
        self._call("on_epoch_begin")
        nothing = object()
        batches = self.task.batches()
        batch = next(batches, nothing)
        if batch is nothing:
            raise ValueError("there is nothing to train on: an epoch without a batch")
        while batch is not nothing and not self._finished():
            self._batch(batch)
            batch = next(batches, nothing)
        if batch is nothing:
            self.epochs += 1
            self._call("on_epoch_end")

    def _batch(self, batch: Any) -> None:
        self._call("on_batch_begin")
        self.figures, gradients = self.task.gradients(batch)
        for callback in self.callbacks:
            callback.on_gradients(self, gradients)
        self.whole = False
        self.task.update(gradients)
        self.steps += 1
        self.whole = True
        self._call("on_batch_end")

    def _call(self, hook: str) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self)

    def _end(self, begun: list[Callback]) -> None:
        """Call `on_train_end` of all callbacks, even if some raise; then raise the first exception."""
        first: BaseException | None = None
        for callback in reversed(begun):
            try:
                callback.on_train_end(self)
            except BaseException as error:
                first = first or error
                self.error = self.error or error
        if first is not None:
            raise first

    # ---------------------------------------------------------------------------------------------------- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Counts and the callbacks' states, for a run that continues this one with the same callbacks."""
        states = [callback.state_dict() for callback in self.callbacks]
        return {"steps": self.steps, "epochs": self.epochs, "callbacks": states}

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises
        ------
        ValueError
            It has the states of another number of callbacks; nothing has changed then.
        """
        if len(d["callbacks"]) != len(self.callbacks):
            raise ValueError(
                f"the state has those of {len(d['callbacks'])} callbacks, but the loop has {len(self.callbacks)}: "
                "continue with the same callbacks in the same order"
            )
        for callback, state in zip(self.callbacks, d["callbacks"], strict=True):
            callback.load_state_dict(state)
        self.steps, self.epochs = int(d["steps"]), int(d["epochs"])
