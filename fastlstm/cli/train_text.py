"""``fastlstm train-text``: train a language model on a text, or go on training it."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import fields

from .. import console, files, outputs
from ..corpus import read_text
from ..metrics import perplexity
from ..text import Settings, TextTraining, size_of_file
from ..training import Callback, Loop, Progress, StopOnSignal
from ..training.progress import SHOWN, mean_of_last
from .common import INTERRUPTED, add_json, check_outputs, complain, give

NAME = "train-text"
HELP = "train a language model of characters or words on a text"
PRINTS = False
EXAMPLES = (
    "fastlstm train-text book.txt --hidden 256 --steps 3000 --out book.safetensors --plot loss.png",
    "fastlstm train-text book.txt --out book.safetensors --resume --steps 6000",
    "fastlstm train-text book.txt --level word --words 5000 --out words.safetensors",
    "zcat book.gz | fastlstm train-text - --encoding cp1252",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command; those of training come from `Settings`."""
    parser.add_argument("file", metavar="FILE", help="the text; - for standard input")
    parser.add_argument("--encoding", metavar="NAME", help="of FILE, say cp1252 (default: by its mark, else UTF-8)")
    parser.add_argument("--out", default="model.safetensors", metavar="MODEL", help="model file (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on where MODEL stands")
    parser.add_argument("--plot", metavar="PICTURE", help="draw the loss curve, e.g. loss.png")
    parser.add_argument("--force", action="store_true", help="replace a MODEL or PICTURE that exists")
    for f in fields(Settings):
        flag, kind, meaning = "--" + f.name.replace("_", "-"), f.metadata["type"], f.metadata["help"]
        shown = "" if f.default is None else f" (default: {f.default})"
        # Only what is given appears, so that --resume can tell a choice from a default.
        parser.add_argument(
            flag, type=kind, default=argparse.SUPPRESS, metavar=kind.__name__.upper(), help=meaning + shown
        )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Train, or go on training."""
    check_outputs({"--out": options.out, "--plot": options.plot}, {"the text": options.file}, options.force)
    if options.resume and not os.path.exists(options.out):
        raise ValueError(f"there is no {options.out} to resume: leave --resume out to begin")
    if not (options.resume or options.force) and outputs.holds_something(options.out):
        raise ValueError(
            f"{options.out} exists: --resume goes on with its training, --force replaces it, another --out keeps it"
        )
    text = read_text(options.file, options.encoding)
    given = {f.name: getattr(options, f.name) for f in fields(Settings) if hasattr(options, f.name)}
    if options.resume:
        job = TextTraining.resume(text, options.out, given)
        console.say(f"resuming {options.out} at step {job.steps}")
    else:
        job = TextTraining(text, Settings(**given), options.out)
    del text  # its token ids are enough
    files.check_writable(options.out, size_of_file(job))
    describe(job)
    stopped_by = train(job, options.plot)
    if stopped_by is not None:
        again = shlex.join(["fastlstm", "train-text", options.file, "--out", options.out, "--resume"])
        again += f" --encoding {shlex.quote(options.encoding)}" if options.encoding else ""
        return complain(f"stopped at step {job.steps} and saved; to go on: {again}", INTERRUPTED + stopped_by)
    reached = perplexity(job.history.last("held_out")[0])
    give(
        options,
        f"held-out perplexity {reached:.3f}; model in {options.out}",
        model=options.out,
        steps=job.steps,
        held_out_perplexity=reached,
    )
    return 0


def left(options: argparse.Namespace) -> str:
    """What the model file of a command that trains holds by now."""
    try:
        steps = int(files.load(options.out)[0]["optimizer.steps"])
        return f"{options.out} has the model of step {steps}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"no model was written to {options.out}"


def describe(job: TextTraining) -> None:
    model = job.model
    size = sum(p.size for p in model.to_arrays().values())
    console.say(
        f"{model.lstm!r} on backend {model.lstm.backend}, {size:,} parameters, {len(model.tokens)} {model.tokens.unit}s"
    )


def train(job: TextTraining, picture: str | None) -> int | None:
    """Train to the end of the settings' steps; the signal that stopped it, if one did."""
    signals = StopOnSignal()
    callbacks: list[Callback] = [signals]
    if picture:
        from ..plot import LossCurve

        callbacks.append(LossCurve(picture, f"{job.model.lstm!r}", job.model.tokens.unit))
    callbacks.append(Progress(figures, job.tokens_per_step, "tok"))
    job.run(callbacks=callbacks, evaluate_at_end=True, report=lambda text: console.say(f"fastlstm: {text}"))
    return signals.number


def figures(loop: Loop) -> dict[str, str]:
    """What is shown while a text is trained on."""
    loss = mean_of_last(loop.history.last("loss", SHOWN))
    shown = {"loss": f"{loss:.3f}", "perplexity": f"{perplexity(loss):.2f}"}
    if held_out := loop.history.last("held_out"):
        shown["held-out"] = f"{perplexity(held_out[0]):.2f}"
    return shown
