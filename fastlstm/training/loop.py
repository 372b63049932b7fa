"""The training loop: epochs, batches, hooks at their beginnings and ends, and a way out that callbacks always see.

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
        """The batches from where training stands to the end of its epoch.

        The next one is asked for after the step on the last one. A task that is resumed within an epoch goes on there.
        """

    def gradients(self, batch: Any) -> tuple[Mapping[str, float], Any]:
        """Figures of a batch (``loss`` and the like) and gradients; changes nothing.

        Raises
        ------
        Diverged
            They are not finite.
        """

    def update(self, gradients: Any) -> None:
        """Take the step."""


class Loop:
    """Trains a task until a number of steps or epochs is reached, or a stop is requested.

    Parameters
    ----------
    task : Task
    callbacks : sequence of Callback
        Hooks at the beginning of something are called in this order, those at its end too; `on_train_end` is called in
        the reverse order, so that the first callback encloses all others.
    history : History, optional
        Is continued.
    steps, epochs : int
        Taken before, by a run that this one continues.

    Attributes
    ----------
    steps, epochs : int
        Batches trained on, and epochs completed, in all.
    figures : dict
        Of the last batch.
    stopping : bool
        Whether a stop was requested.
    reason : str
        Why, in words.
    error : BaseException or None
        What ended the run, for `on_train_end`.
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
        """Request an end after the step at hand; any callback or thread may. The first reason counts."""
        if not self.stopping:
            self.stopping, self.reason = True, reason

    def run(self, *, steps: int | None = None, epochs: int | None = None) -> Loop:
        """Train until so many steps or epochs have been completed in all, the earlier of both.

        However the run ends, `on_train_end` is called for every callback whose `on_train_begin` was.

        Raises
        ------
        Diverged
            And whatever the task or a callback raises.
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
        """Call `on_train_end` of all, whatever some of them raise; then raise the first of that."""
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
        """Take up a `state_dict`.

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
