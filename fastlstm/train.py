"""The training loop, for whatever can take a step, be judged and be saved."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .layout import Array

SHOWN = 20  # how many of the last steps the progress bar averages


class Diverged(ArithmeticError):
    """The loss or the gradients are no longer finite. Nothing of the failed step has been kept."""


@dataclass
class History:
    """What a training has come through.

    Parameters
    ----------
    losses : list of float
        Mean loss of each step, in nats.
    held_out : list of (int, float)
        (steps taken, mean loss on held-out data), as often as it was measured.
    """

    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.losses)

    def to_arrays(self) -> dict[str, Array]:
        """For a checkpoint: ``losses`` (steps,) and ``held_out`` (measurements, 2), float64."""
        return {
            "losses": np.array(self.losses, np.float64),
            "held_out": np.array(self.held_out, np.float64).reshape(-1, 2),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, Array]) -> History:
        """What `to_arrays` gave."""
        return cls(arrays["losses"].tolist(), [(int(step), loss) for step, loss in arrays["held_out"].tolist()])


class Job(Protocol):
    """What `run` needs of a training."""

    history: History
    tokens_per_step: int

    def step(self) -> float:
        """Take one step; its mean loss in nats. Raise `Diverged`, with nothing changed, where that is not finite."""

    def evaluate(self) -> float:
        """Mean loss on held-out data in nats."""

    def save(self) -> None:
        """Write everything that is needed to go on."""


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def run(job: Job, steps: int, evaluate_every: int = 0, checkpoint_every: int = 0) -> int | None:
    """Train until `steps` steps have been taken in all, or a signal asks to stop; then save.

    Parameters
    ----------
    job : Job
        Its history is continued.
    steps : int
    evaluate_every, checkpoint_every : int
        In steps, counted from the very first one, so that a resumed run keeps the rhythm; 0 for never.

    Returns
    -------
    signal : int or None
        The number of the signal that stopped the run.
    """
    saved = job.history.steps
    with deferred_signals() as signals, progress_bar(job, steps) as show:
        while job.history.steps < steps and not signals:
            job.history.losses.append(job.step())
            done = job.history.steps
            if evaluate_every and done % evaluate_every == 0:
                job.history.held_out.append((done, job.evaluate()))
            if checkpoint_every and done % checkpoint_every == 0:
                job.save()
                saved = done
            show()
        if job.history.steps > saved:
            job.save()
    return signals[0] if signals else None


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Note Ctrl-C and the request to terminate instead of being cut off within a step; a second one cuts."""
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    if threading.current_thread() is not threading.main_thread():  # Python lets only that one handle signals
        yield noted
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_bar(job: Job, steps: int) -> Iterator[Any]:
    """A bar on stderr with loss, perplexity and tokens per second. Yields what to call after each step."""
    from tqdm import tqdm

    each, history = job.tokens_per_step, job.history
    bar = tqdm(initial=history.steps * each, total=steps * each, unit="tok", unit_scale=True, dynamic_ncols=True)

    def describe() -> None:
        recent = history.losses[-SHOWN:] or [math.nan]
        loss = sum(recent) / len(recent)
        shown = {"loss": f"{loss:.3f}", "perplexity": f"{perplexity(loss):.2f}"}
        if history.held_out:
            shown["held-out"] = f"{perplexity(history.held_out[-1][1]):.2f}"
        bar.set_description(f"step {history.steps}/{steps}", refresh=False)
        bar.set_postfix(shown, refresh=False)

    def show() -> None:
        if bar.update(each):  # drawn, as now and then it is: the next drawing says what holds now
            describe()

    with bar:
        yield show
        describe()
