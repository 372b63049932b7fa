"""The commands: ``fastlstm train-text``, ``sample``, ``config``, ``demo``, ``bench``."""

# ruff: noqa: E402

from __future__ import annotations

import os

# NumPy's BLAS is left one thread; to be said before NumPy is loaded. Backend C does without BLAS; beside the others,
# its threads spin when they have nothing to do and take the cores from the recurrent layers' own: a step that takes
# 16 ms with one took 25 ms with two on a quiet machine of two cores, and 112 ms beside another busy process.
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import errno
import importlib.resources
import shlex
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from . import __version__, console, files, outputs
from ._backends import BackendError, backends
from .corpus import read_text
from .metrics import perplexity
from .num_threads import threads
from .terminal import shown, typed
from .text import Settings, TextModel, TextTraining, size_of_file
from .training import Callback, Diverged, Loop, Progress, Record, SaveError, StopOnSignal
from .training.progress import SHOWN, mean_of_last
from .validation import number

FAILED, WRONG = 1, 2  # exit statuses: the work failed; what was given is wrong
INTERRUPTED = 128  # plus the number of the signal, as shells have it
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # errors of writing


@shown()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors are one line on stderr."""
    console.fill_closed_descriptors()
    options = parser().parse_args(argv)
    try:
        if sys.stdout is None and options.run in PRINTING:
            raise OSError("standard output is closed, and there the result would go")
        status: int = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, say `head`, has had enough
        console.discard(sys.stdout)
        return 0 if options.run in PRINTING else INTERRUPTED + 13
    except KeyboardInterrupt:
        return complain(f"interrupted{state_of(options)}", INTERRUPTED + 2)
    except Diverged as error:
        return complain(f"{error}. Lower lr or clip{state_of(options)}", FAILED)
    except SaveError as error:
        return complain(str(error), FAILED)
    except MemoryError as error:
        return complain(f"there is not enough memory{f': {error}' if str(error) else ''}{state_of(options)}", FAILED)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else "standard output: " if error.errno in FULL else ""
        return complain(f"{name}{error.strerror or error}", WRONG)
    except (ValueError, BackendError, ImportError, Warning) as error:  # a warning where PYTHONWARNINGS says so
        return complain(str(error), WRONG)
    finally:
        flush_or_discard()


def flush_or_discard() -> None:
    """Empty the buffer of standard output, which Python would else do at its end with an error text of its own."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        console.discard(sys.stdout)


def state_of(options: argparse.Namespace) -> str:
    """What the model file of a command that trains holds by now, as the end of a message."""
    if options.run not in (train_text, demo):
        return ""
    try:
        steps = int(files.load(options.out)[0]["optimizer.steps"])
        return f"; {options.out} has the model of step {steps}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"; no model was written to {options.out}"


def complain(message: str, status: int) -> int:
    console.say(f"fastlstm: {' '.join(message.split())}")
    return status


def parser() -> argparse.ArgumentParser:
    """All commands and their options. Those of training come from `Settings`."""
    top = argparse.ArgumentParser(prog="fastlstm", description="Fast LSTM, GRU and RNN layers on CPUs.")
    top.add_argument("--version", action="version", version=f"fastlstm {__version__}")
    commands = top.add_subparsers(required=True, metavar="command")

    train = commands.add_parser("train-text", help="train a character-level language model on a text")
    train.add_argument("file", metavar="FILE", help="the text; - for standard input")
    train.add_argument("--encoding", metavar="NAME", help="of FILE, say cp1252 (default: by its mark, else UTF-8)")
    train.add_argument("--out", default="model.safetensors", metavar="MODEL", help="model file (default: %(default)s)")
    train.add_argument("--resume", action="store_true", help="go on where MODEL stands")
    train.add_argument("--plot", metavar="PICTURE", help="draw the loss curve, e.g. loss.png")
    train.add_argument("--force", action="store_true", help="replace a MODEL or PICTURE that exists")
    for f in fields(Settings):
        flag, kind, meaning = "--" + f.name.replace("_", "-"), f.metadata["type"], f.metadata["help"]
        shown = "" if f.default is None else f" (default: {f.default})"
        # Only what is given appears, so that --resume can tell a choice from a default.
        train.add_argument(
            flag, type=kind, default=argparse.SUPPRESS, metavar=kind.__name__.upper(), help=meaning + shown
        )
    train.set_defaults(run=train_text)

    sample_ = commands.add_parser("sample", help="write text with a trained model")
    sample_.add_argument("model", metavar="MODEL")
    sample_.add_argument("--prefix", default="", help="text to go on from")
    sample_.add_argument("--length", type=int, default=300, help="characters to write (default: %(default)s)")
    sample_.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest (default: %(default)s)")
    sample_.add_argument("--seed", type=int, default=None, help="of the draws; a fresh one unless given")
    sample_.add_argument("--backend", default="auto", help="see `fastlstm config` (default: %(default)s)")
    sample_.set_defaults(run=sample)

    config = commands.add_parser("config", help="show version, backends, instruction sets and threads")
    config.set_defaults(run=show_config)

    demo_ = commands.add_parser("demo", help="train about a minute on Shakespeare, write, and compare the backends")
    demo_.add_argument("--out", default="demo-model.safetensors", metavar="MODEL", help="(default: %(default)s)")
    demo_.add_argument("--plot", default="demo-loss.png", metavar="PICTURE", help="(default: %(default)s)")
    demo_.add_argument("--force", action="store_true", help="replace files that an earlier demo has not made")
    demo_.add_argument("--seconds", type=float, default=60.0, help="of training (default: %(default)s)")
    demo_.set_defaults(run=demo)

    bench_ = commands.add_parser("bench", help="measure the backends, and other libraries, and write a report")
    bench_.add_argument("--cases", nargs="+", default=[], metavar="NAME", help="a group, or a part of a case's name")
    bench_.add_argument("--peers", action="store_true", help="beside PyTorch, ONNX Runtime, OpenVINO where installed")
    bench_.add_argument("--isas", action="store_true", help="backend c with its other instruction sets too")
    bench_.add_argument("--training", action="store_true", help="forward and backward, instead of inference")
    bench_.add_argument("--cells", action="store_true", help="what LSTM, GRU and RNN cost, instead of inference")
    bench_.add_argument("--neighbours", action="store_true", help="beside busy processes and threads, instead of alone")
    bench_.add_argument("--threads", nargs="+", type=int, metavar="N", help="(default: 1; beside processes 2)")
    bench_.add_argument("--rounds", type=int, metavar="N", help="turns of each (default: 15; beside neighbours 5)")
    bench_.add_argument("--out", default="bench-report", metavar="FOLDER", help="(default: %(default)s)")
    bench_.add_argument("--force", action="store_true", help="replace files in FOLDER that are of no earlier report")
    bench_.set_defaults(run=bench)
    return top


# ------------------------------------------------------------------------------------------------------------ commands
def train_text(options: argparse.Namespace) -> int:
    """Train, or go on training."""
    check_outputs(options, {"the text": options.file})
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
    console.tell(f"held-out perplexity {perplexity(job.history.last('held_out')[0]):.3f}; model in {options.out}")
    return 0


def sample(options: argparse.Namespace) -> int:
    """Write text, character by character as it is drawn."""
    model = TextModel.load(options.model, options.backend)
    prefix = typed(options.prefix)
    drawn = model.sample(prefix, options.length, options.temperature, options.seed)
    if options.temperature == 0 and options.seed is not None:
        warnings.warn("--seed has no effect at --temperature 0, which always takes the likeliest character")
    write(prefix, drawn)
    return 0


def show_config(options: argparse.Namespace) -> int:
    from .info import show_config

    show_config()
    return 0


def demo(options: argparse.Namespace) -> int:
    """Train about a minute, write 300 characters, draw the loss, compare the backends."""
    check_outputs(options, {})
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


def bench(options: argparse.Namespace) -> int:
    """Measure, and write a report with charts and raw samples."""
    from . import plot, report
    from .report import cases, contenders

    if min(options.threads or [1]) < 1 or (options.rounds or 1) < 1:
        raise ValueError("--threads and --rounds must be at least 1")
    if options.neighbours:
        return bench_neighbours(options)
    threads, rounds = options.threads or [1], options.rounds or 15
    groups = ["training"] * options.training + ["cells"] * options.cells
    chosen = cases.select(groups or ["inference", "odd", "lengths", "tokens", "others"], options.cases)
    plot.figure()  # what would fail after the measuring is to fail before it
    out = Path(options.out)
    report.check_folder(out, chosen, threads, options.force)
    ours = contenders.ours(options.isas)
    peers = contenders.peers() if options.peers else {}
    rivals = [*peers] or [name for name in [*ours][1:] if name == report.BASE_LINE]
    done = report.run(chosen, ours | peers, rivals, threads, rounds)
    if options.training and options.peers:
        arguments = ["--training", "--peers", *(["--cases", *options.cases] if options.cases else [])]
        arguments += ["--threads", *map(str, threads), "--rounds", str(rounds), *["--force"] * options.force]
        done.tuned = report.tuned_ratios(arguments, out / "tuned")
    console.tell(f"report in {report.write(done, out)}")
    return FAILED if any(one.wrong for entry in done.entries for one in entry.results.values()) else 0


def bench_neighbours(options: argparse.Namespace) -> int:
    """Measure the first backend, and peers, beside busy neighbours, and write a report with every call's time."""
    from . import report
    from .report import contenders, neighbours

    if options.training or options.cells or options.isas or len(options.threads or [2]) > 1:
        raise ValueError(
            "--neighbours has cases of its own, so leave --training, --cells and --isas out; "
            "and it takes one number of threads at a time"
        )
    parts = neighbours.select(options.cases, *(options.threads or ()))
    out = Path(options.out)
    report.check_folder(out, None, replace=options.force)
    ours = dict([*contenders.ours().items()][:1])
    peers = contenders.peers() if options.peers else {}
    done = neighbours.run(parts, ours | peers, options.rounds or neighbours.RUNS)
    console.tell(f"report in {neighbours.write(done, out)}")
    wrong = any(one.wrong for entry in done.entries for one in entry.results[neighbours.QUIET].values())
    return FAILED if wrong else 0


PRINTING = (sample, show_config)  # commands whose result is what they print


# --------------------------------------------------------------------------------------------------------------- parts
def check_outputs(options: argparse.Namespace, inputs: dict[str, str]) -> None:
    """Find out before the training what would fail after it, and what would be lost by it."""
    written = {"--out": options.out} | ({"--plot": options.plot} if options.plot else {})
    outputs.check_distinct(written, inputs)
    files.check_writable(options.out)
    if options.plot:
        from . import plot

        plot.check(options.plot, options.force)


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
        from .plot import LossCurve

        callbacks.append(LossCurve(picture, f"{job.model.lstm!r}"))
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


def write(prefix: str, characters: Iterable[str]) -> None:
    print(prefix, end="")
    for character in characters:
        print(character, end="", flush=sys.stdout.isatty())
    print()


# ---------------------------------------------------------------------------------------------------------------- demo
# Tried on two cores: of 2e-3, 4e-3 and 8e-3 the last leaves the lowest perplexity after 600 and after 2000 steps, and
# letting it fall at the end takes held-out perplexity after 2000 steps from 4.26 to 4.06.
DEMO: dict[str, Any] = {"hidden": 256, "seq_len": 64, "batch": 32, "lr": 8e-3, "decay": 0.3}
DEMO |= {"evaluate_every": 500, "checkpoint_every": 0}
COMPARED_STEPS = 20


MADE_BY = "fastlstm demo"  # in the file of its model, which the next demo may replace


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
