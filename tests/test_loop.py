"""The training loop: order of hooks, ends of runs, history; with a task that counts instead of computing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm import files
from fastlstm.schedules import LambdaLR
from fastlstm.training import Callback, Checkpoint, Diverged, Evaluation, History, Loop, Record, SaveError, StopOnSignal

HOOKS = [name for name in vars(Callback) if name.startswith("on_")]


class Count:
    """A task of `size` batches an epoch, whose figures are the numbers of its steps."""

    def __init__(self, size: int = 3, fails_at: int = 0, error: BaseException | None = None) -> None:
        self.size, self.fails_at, self.error, self.at, self.done = size, fails_at, error, 0, 0

    def batches(self) -> Iterator[int]:
        while self.at < self.size:
            yield self.at
        self.at = 0

    def gradients(self, batch: int) -> tuple[dict[str, float], Any]:
        assert batch == self.at
        if self.error is not None and self.done + 1 == self.fails_at:
            raise self.error
        return {"loss": float(self.done + 1)}, [1.0]

    def update(self, gradients: Any) -> None:
        self.at, self.done = self.at + 1, self.done + gradients[0]


class Log(Callback):
    """Records the name of every hook that is called."""

    def __init__(self, name: str, log: list[str]) -> None:
        for hook in HOOKS:
            setattr(self, hook, lambda *arguments, hook=hook: log.append(f"{name}{hook.removeprefix('on')}"))


def test_seven_hooks_in_order() -> None:
    assert len(HOOKS) == 7
    log: list[str] = []
    Loop(Count(2), [Log("", log)]).run(epochs=1)
    batch = ["_batch_begin", "_gradients", "_batch_end"]
    assert log == ["_train_begin", "_epoch_begin", *batch, *batch, "_epoch_end", "_train_end"]


def test_the_first_callback_encloses_the_others() -> None:
    log: list[str] = []
    Loop(Count(1), [Log("a", log), Log("b", log)]).run(steps=1)
    assert log[:2] == ["a_train_begin", "b_train_begin"] and log[-2:] == ["b_train_end", "a_train_end"]
    assert log[2:4] == ["a_epoch_begin", "b_epoch_begin"] and log[-4:-2] == ["a_epoch_end", "b_epoch_end"]


@pytest.mark.parametrize(
    ("limits", "steps", "epochs"),
    [
        ({"steps": 4}, 4, 1),
        ({"steps": 3}, 3, 1),
        ({"epochs": 2}, 6, 2),
        ({"steps": 5, "epochs": 1}, 3, 1),
        ({"steps": 0}, 0, 0),
    ],
)
def test_steps_and_epochs(limits: dict[str, int], steps: int, epochs: int) -> None:
    task = Count(3)
    loop = Loop(task).run(**limits)
    assert (loop.steps, loop.epochs, task.done) == (steps, epochs, steps)


def test_a_run_that_goes_on_within_an_epoch() -> None:
    task, log = Count(3), []
    loop = Loop(task, [Record(), Log("", log)])
    loop.run(steps=2)
    assert "_epoch_end" not in log
    loop.run(steps=6)
    assert (loop.steps, loop.epochs) == (6, 2)
    assert loop.history.points("loss") == [(n, float(n)) for n in range(1, 7)]
    later = Loop(task, [Record()], loop.history, steps=loop.steps, epochs=loop.epochs).run(steps=7)
    assert later.history["loss"][-1] == 7.0 and later.epochs == 2


def test_gradients_may_be_changed_between() -> None:
    class Double(Callback):
        def on_gradients(self, loop: Loop, gradients: Any) -> None:
            gradients[0] *= 2

    task = Count()
    Loop(task, [Double()]).run(steps=3)
    assert task.done == 6


def test_a_stop_is_requested_by_callbacks_and_threads() -> None:
    class Stop(Callback):
        def on_batch_end(self, loop: Loop) -> None:
            if loop.steps == 4:
                loop.stop("enough")
                loop.stop("more than enough")

    loop = Loop(Count(), [Stop()]).run(epochs=10)
    assert (loop.steps, loop.stopping, loop.reason) == (4, True, "enough")

    endless = Loop(Count())
    thread = threading.Thread(target=endless.run)
    thread.start()
    while not endless.steps:
        pass
    endless.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_an_epoch_without_batches_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        Loop(Count(0)).run(steps=5)


@pytest.mark.parametrize("error", [RuntimeError("r"), KeyboardInterrupt(), Diverged("d")])
def test_on_train_end_is_called_for_all_callbacks_that_began(error: BaseException) -> None:
    """Also if one of them raises there; the loop raises the first error."""
    seen: list[Any] = []

    class Sees(Callback):
        def on_train_end(self, loop: Loop) -> None:
            seen.append(loop.error)

    class Fails(Callback):
        def on_train_end(self, loop: Loop) -> None:
            raise OSError("a picture cannot be drawn")

    with pytest.raises(type(error)):
        Loop(Count(3, 2, error), [Sees(), Sees()]).run(steps=5)
    assert seen == [error, error]
    with pytest.raises(OSError, match="picture") as caught:
        Loop(Count(3, 2, error), [Sees(), Fails()]).run(steps=5)
    assert caught.value.__context__ is error and seen[-1] is error
    seen.clear()

    class FailsLater(Callback):
        def on_train_end(self, loop: Loop) -> None:
            raise OSError("the same once more")

    with pytest.raises(OSError, match="picture"):
        Loop(Count(), [Sees(), FailsLater(), Fails()]).run(steps=5)
    assert isinstance(seen[0], OSError)


# ------------------------------------------------------------------------------------------------------- callbacks
def test_evaluations_keep_the_rhythm_and_end_with_one() -> None:
    def measured(at_end: bool, *stops: int) -> list[int]:
        loop = Loop(Count(), [Evaluation(lambda: {"held_out": 0.5}, 4, at_end)])
        for steps in stops:
            loop.run(steps=steps)
        return [at for at, _ in loop.history.points("held_out")]

    assert measured(False, 3, 5, 10) == [4, 8]
    assert measured(True, 10) == [4, 8, 10]
    assert measured(True, 8) == [4, 8]


def test_checkpoints_and_what_is_saved_at_the_end() -> None:
    def saves(every: int, task: Count, steps: int = 7) -> list[int]:
        saved: list[int] = []
        loop = Loop(task)
        loop.callbacks.append(Checkpoint(lambda: saved.append(loop.steps), "m", every))
        try:
            loop.run(steps=steps)
        except BaseException as error:
            assert error is task.error
        return saved

    assert saves(3, Count()) == [3, 6, 7] and saves(3, Count(), 6) == [3, 6] and saves(0, Count()) == [7]
    assert saves(3, Count(3, 6, RuntimeError())) == [3, 5]
    assert saves(3, Count(3, 6, KeyboardInterrupt())) == [3, 5]
    assert saves(3, Count(3, 6, Diverged())) == [3]
    assert saves(0, Count(3, 1, RuntimeError())) == []


def test_a_save_that_fails_is_reported_and_tried_again() -> None:
    said: list[str] = []
    full = {2, 4, 6}

    def save() -> None:
        if loop.steps in full:
            raise OSError("full")

    loop = Loop(Count())
    loop.callbacks.append(Checkpoint(save, "the file", 2, said.append))
    loop.run(steps=5)
    assert ["step 2" in said[0], "never written" in said[0], "step 4" in said[1]] == [True] * 3 and len(said) == 2
    with pytest.raises(SaveError, match=r"step 6 was not saved: full\. the file is that of step 5"):
        loop.run(steps=6)


def test_states_of_callbacks_go_into_a_checkpoint() -> None:
    class Patience(Callback):
        waited = 0

        def on_batch_end(self, loop: Loop) -> None:
            self.waited += 1

        def state_dict(self) -> dict[str, Any]:
            return {"waited": self.waited}

        def load_state_dict(self, d: Any) -> None:
            self.waited = d["waited"]

    one = Loop(Count(), [Record(), Patience()]).run(steps=5)
    other = Loop(Count(), [Record(), Patience()])
    other.load_state_dict(one.state_dict())
    assert (other.steps, other.epochs, other.callbacks[1].state_dict()) == (5, 1, {"waited": 5})
    with pytest.raises(ValueError, match="2 callbacks, but the loop has 1"):
        Loop(Count(), [Record()]).load_state_dict(one.state_dict())


def test_signals_are_left_alone_in_other_threads() -> None:
    loop, failed = Loop(Count(), [StopOnSignal()]), []

    def run() -> None:
        try:
            loop.run(steps=2)
        except ValueError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert loop.steps == 2 and not failed


# --------------------------------------------------------------------------------------------------------- history
def test_history_has_columns_and_rows() -> None:
    history = History()
    history.record(1, loss=2.0)
    history.record(2, loss=1.5, accuracy=0.5)
    history.record(2, held_out=1.75)
    assert history.columns == ["loss", "accuracy", "held_out"]
    assert history["loss"] == [2.0, 1.5] and history.points("accuracy") == [(2, 0.5)]
    assert history.rows() == [{"at": 1, "loss": 2.0}, {"at": 2, "loss": 1.5, "accuracy": 0.5, "held_out": 1.75}]
    assert history.last("loss") == [1.5] and history.last("loss", 5) == [2.0, 1.5] and history.last("none") == []
    assert "loss" in history and "none" not in history and history.points("none") == []
    with pytest.raises(KeyError):
        history["none"]
    with pytest.raises(ValueError, match="value at 2; 1 lies before"):
        history.record(1, other=1.0, loss=1.0)
    assert "other" not in history


def test_history_in_files(tmp_path: Path) -> None:
    history = History()
    for step in range(1, 50):
        history.record(step, loss=1 / step)
    history.record(49, held_out=float("nan"))
    files.save(tmp_path / "f", history.to_arrays(), {})
    again = History.from_arrays(files.load(tmp_path / "f")[0])
    assert again.points("loss") == history.points("loss") and np.isnan(again["held_out"][0])
    assert History.from_arrays(History().to_arrays()) == History()


@pytest.mark.parametrize("column", [np.zeros(3), np.zeros((2, 3)), [[2, 0], [1, 0]], [[0.5, 0]], [[np.nan, 0]]])
def test_a_false_history_is_refused(column: Any) -> None:
    with pytest.raises(ValueError, match="column loss"):
        History.from_arrays({"loss": np.array(column)})


def test_lambda_lr_is_torch_s() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    ours = fl.SGD([fl.Dense(1, 1, seed=0)], lr=0.3)
    schedules = LambdaLR(ours, lambda n: 0.9**n), torch.optim.lr_scheduler.LambdaLR(theirs, lambda n: 0.9**n)
    for _ in range(6):
        assert ours.lr == theirs.param_groups[0]["lr"]
        theirs.step()
        for schedule in schedules:
            schedule.step()
