"""``fastlstm demo``: train about a minute on Shakespeare, write, and compare the backends."""

from __future__ import annotations

import argparse
import importlib.resources
import os
import time
from dataclasses import replace
from typing import Any

from .. import console, files, outputs
from .._backends import backends
from ..metrics import perplexity
from ..num_threads import threads
from ..text import Settings, TextTraining, size_of_file
from ..training import Callback, Loop, Record
from ..validation import number
from .common import INTERRUPTED, check_outputs
from .train_text import describe, train
from .train_text import left as left

NAME = "demo"
HELP = "train about a minute on Shakespeare, write, and compare the backends"
PRINTS = False
EXAMPLES = ("fastlstm demo", "fastlstm demo --seconds 20 --out /tmp/demo.safetensors --plot /tmp/demo.png")

# Tried on two cores: of 2e-3, 4e-3 and 8e-3 the last leaves the lowest perplexity after 600 and after 2000 steps, and
# letting it fall at the end takes held-out perplexity after 2000 steps from 4.26 to 4.06.
DEMO: dict[str, Any] = {"hidden": 256, "seq_len": 64, "batch": 32, "lr": 8e-3, "decay": 0.3}
DEMO |= {"evaluate_every": 500, "checkpoint_every": 0}
COMPARED_STEPS = 20
MADE_BY = "fastlstm demo"  # in the file of its model, which the next demo may replace


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--out", default="demo-model.safetensors", metavar="MODEL", help="(default: %(default)s)")
    parser.add_argument("--plot", default="demo-loss.png", metavar="PICTURE", help="(default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace files that an earlier demo has not made")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Train about a minute, write 300 characters, draw the loss, compare the backends."""
    check_outputs({"--out": options.out, "--plot": options.plot}, {}, options.force)
    if not options.force and outputs.holds_something(options.out) and not made_by_demo(options.out):
        raise ValueError(f"{options.out} exists and is not of an earlier demo: give another --out, or --force")
    text = (importlib.resources.files("fastlstm") / "data" / "shakespeare.txt").read_text(encoding="utf-8")
    settings = Settings(**DEMO)
    job = TextTraining(text, settings, options.out)
    job.made_by = MADE_BY
    files.check_writable(options.out, size_of_file(job))
    describe(job)
    job.plan(steps_within(options.seconds, job))
    stopped_by = train(job, options.plot)
    reached = "".join(f"; held-out perplexity {perplexity(loss):.2f}" for loss in job.history.last("held_out"))
    console.tell(f"\nAfter {job.steps} steps it writes{reached}:\n")
    console.tell("".join(job.model.sample("", 300, 0.7, seed=1)))
    console.tell(f"\nloss curve in {options.plot}, model in {options.out}\n")
    if stopped_by is not None:
        return INTERRUPTED + stopped_by
    console.tell(comparison(text, settings))
    return 0


def made_by_demo(path: str) -> bool:
    """Whether a file holds the model of an earlier demo, and nothing that was trained since."""
    try:
        training = files.load(path)[1]["training"]
    except (OSError, ValueError, KeyError):
        return False
    return isinstance(training, dict) and training.get("made_by") == MADE_BY


class StepTimes(Callback):
    """Notes how many seconds each step takes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_batch_begin(self, loop: Loop) -> None:
        """See `Callback`."""
        self._began = time.perf_counter()

    def on_batch_end(self, loop: Loop) -> None:
        """See `Callback`."""
        self.seconds.append(time.perf_counter() - self._began)


def timed_steps(job: TextTraining, count: int) -> list[float]:
    """Take so many steps, without saving; the seconds of each."""
    times = StepTimes()
    Loop(job, [Record(), times], job.history, steps=job.steps).run(steps=job.steps + count)
    return times.seconds


def steps_within(seconds: float, job: TextTraining) -> int:
    """How many steps the time allows, measured on the first few, which count."""
    seconds = number(seconds, "seconds")
    taken = timed_steps(job, 10)
    return max(len(taken) + 1, round(seconds / (sum(taken[2:]) / len(taken[2:]))))


def comparison(text: str, settings: Settings) -> str:
    """A table of tokens/s and perplexity after the same steps on every usable backend, with one thread each."""
    with threads(1):
        return "\n".join(compared(text, settings))


def compared(text: str, settings: Settings) -> list[str]:
    losses: dict[str, list[float]] = {}
    rows = [f"{'backend':<10}{'tokens/s':>12}{'perplexity':>14}   after the same {COMPARED_STEPS} steps, one thread"]
    for name, reason in backends().items():
        if reason is not None:
            rows.append(f"{name:<10}not usable here: {reason}")
            continue
        job = TextTraining(text, replace(settings, backend=name), os.devnull)
        seconds = sorted(timed_steps(job, COMPARED_STEPS))[COMPARED_STEPS // 2]
        losses[name] = job.history["loss"]
        shown = perplexity(losses[name][-1])
        rows.append(f"{name:<10}{job.tokens_per_step / seconds:>12,.0f}{shown:>14.4f}")
    apart = max(max(step) - min(step) for step in zip(*losses.values(), strict=True))
    rows.append(f"largest difference between the backends' losses at any step: {apart:.1e}")
    return rows
