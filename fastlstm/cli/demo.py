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
from .common import INTERRUPTED, add_json, check_outputs, give
from .train_text import describe, train
from .train_text import left as left

NAME = "demo"
HELP = "train about a minute on Shakespeare, write, and compare the backends"
PRINTS = False
EXAMPLES = ("fastlstm demo", "fastlstm demo --seconds 20 --out demo.safetensors --plot demo.png")

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
    add_json(parser)


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
    reached = [perplexity(loss) for loss in job.history.last("held_out")]
    written = "".join(job.model.sample("", 300, 0.7, seed=1))
    if not options.json:
        console.tell(
            f"\nAfter {job.steps} steps it writes{''.join(f'; held-out perplexity {p:.2f}' for p in reached)}:\n"
        )
        console.tell(f"{written}\n\nloss curve in {options.plot}, model in {options.out}\n")
    if stopped_by is not None:
        return INTERRUPTED + stopped_by
    rows = comparison(text, settings)
    give(
        options,
        table(rows),
        model=options.out,
        picture=options.plot,
        steps=job.steps,
        held_out_perplexity=reached[0] if reached else None,
        text=written,
        backends=[{name: value for name, value in row.items() if name != "losses"} for row in rows],
    )
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


def comparison(text: str, settings: Settings) -> list[dict[str, Any]]:
    """Of every backend tokens/s and perplexity after the same steps, with one thread; or why it is not usable."""
    with threads(1):
        return [compared(name, reason, text, settings) for name, reason in backends().items()]


def compared(name: str, reason: str | None, text: str, settings: Settings) -> dict[str, Any]:
    """The figures of one backend."""
    if reason is not None:
        return {"backend": name, "not usable": reason}
    job = TextTraining(text, replace(settings, backend=name), os.devnull)
    seconds = sorted(timed_steps(job, COMPARED_STEPS))[COMPARED_STEPS // 2]
    losses = job.history["loss"]
    speed = job.tokens_per_step / seconds
    return {"backend": name, "tokens/s": speed, "perplexity": perplexity(losses[-1]), "losses": losses}


def table(rows: list[dict[str, Any]]) -> str:
    """The comparison for people."""
    lines = [f"{'backend':<10}{'tokens/s':>12}{'perplexity':>14}   after the same {COMPARED_STEPS} steps, one thread"]
    for row in rows:
        if "not usable" in row:
            lines.append(f"{row['backend']:<10}not usable here: {row['not usable']}")
        else:
            lines.append(f"{row['backend']:<10}{row['tokens/s']:>12,.0f}{row['perplexity']:>14.4f}")
    losses = [row["losses"] for row in rows if "losses" in row]
    apart = max((max(step) - min(step) for step in zip(*losses, strict=True)), default=0.0)
    lines.append(f"largest difference between the backends' losses at any step: {apart:.1e}")
    return "\n".join(lines)
