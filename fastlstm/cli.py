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
import importlib.resources
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from . import __version__
from ._backends import BackendError, backends
from .files import check_writable
from .num_threads import threads
from .text import CharModel, Settings, TextTraining
from .train import Diverged, perplexity, run
from .validation import number

FAILED, WRONG = 1, 2  # exit statuses: the work failed; what was given is wrong
INTERRUPTED = 128  # plus the number of the signal, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors are one line on stderr."""
    options = parser().parse_args(argv)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, say `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED + 2)
    except Diverged as error:
        return complain(f"{error}. Lower lr or clip. The last checkpoint, if any, is in {options.out}", FAILED)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return complain(f"{name}{error.strerror or error}", WRONG)
    except (ValueError, BackendError, ImportError) as error:
        return complain(str(error), WRONG)


def complain(message: str, status: int) -> int:
    print(f"fastlstm: {' '.join(message.split())}", file=sys.stderr)
    return status


def parser() -> argparse.ArgumentParser:
    """All commands and their options. Those of training come from `Settings`."""
    top = argparse.ArgumentParser(prog="fastlstm", description="Fast LSTM, GRU and RNN layers on CPUs.")
    top.add_argument("--version", action="version", version=f"fastlstm {__version__}")
    commands = top.add_subparsers(required=True, metavar="command")

    train = commands.add_parser("train-text", help="train a character-level language model on a text")
    train.add_argument("file", metavar="FILE", help="the text, in UTF-8")
    train.add_argument("--out", default="model.safetensors", metavar="MODEL", help="model file (default: %(default)s)")
    train.add_argument("--resume", action="store_true", help="go on where MODEL stands")
    train.add_argument("--plot", metavar="PICTURE", help="draw the loss curve, e.g. loss.png")
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
    bench_.set_defaults(run=bench)
    return top


# ------------------------------------------------------------------------------------------------------------ commands
def train_text(options: argparse.Namespace) -> int:
    """Train, or go on training."""
    text = read_text(options.file)
    given = {f.name: getattr(options, f.name) for f in fields(Settings) if hasattr(options, f.name)}
    check_outputs(options.out, options.plot)
    if options.resume:
        if not os.path.exists(options.out):
            raise ValueError(f"there is no {options.out} to resume: leave --resume out to begin")
        job = TextTraining.resume(text, options.out, given)
        print(f"resuming {options.out} at step {job.history.steps}", file=sys.stderr)
    else:
        job = TextTraining(text, Settings(**given), options.out)
    describe(job)
    stopped_by = train(job, options.plot)
    if stopped_by is not None:
        again = f"fastlstm train-text {options.file} --out {options.out} --resume"
        return complain(f"stopped at step {job.history.steps} and saved; to go on: {again}", INTERRUPTED + stopped_by)
    print(f"held-out perplexity {perplexity(job.history.held_out[-1][1]):.3f}; model in {options.out}")
    return 0


def sample(options: argparse.Namespace) -> int:
    """Write text, character by character as it is drawn."""
    model = CharModel.load(options.model, options.backend)
    drawn = model.sample(options.prefix, options.length, options.temperature, options.seed)
    write(options.prefix, drawn)
    return 0


def show_config(options: argparse.Namespace) -> int:
    from .info import show_config

    show_config()
    return 0


def demo(options: argparse.Namespace) -> int:
    """Train about a minute, write 300 characters, draw the loss, compare the backends."""
    check_outputs(options.out, options.plot)
    text = (importlib.resources.files("fastlstm") / "data" / "shakespeare.txt").read_text(encoding="utf-8")
    settings = Settings(**DEMO)
    job = TextTraining(text, settings, options.out)
    describe(job)
    job.settings = replace(settings, steps=steps_within(options.seconds, job))
    stopped_by = train(job, options.plot)
    reached = f"; held-out perplexity {perplexity(job.history.held_out[-1][1]):.2f}" if job.history.held_out else ""
    print(f"\nAfter {job.history.steps} steps it writes{reached}:\n")
    write("", job.model.sample("", 300, 0.7, seed=1))
    print(f"\nloss curve in {options.plot}, model in {options.out}\n")
    if stopped_by is not None:
        return INTERRUPTED + stopped_by
    print(comparison(text, settings))
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
    out.mkdir(parents=True, exist_ok=True)
    ours = contenders.ours(options.isas)
    peers = contenders.peers() if options.peers else {}
    rivals = [*peers] or [name for name in [*ours][1:] if name == report.BASE_LINE]
    done = report.run(chosen, ours | peers, rivals, threads, rounds)
    if options.training and options.peers:
        arguments = ["--training", "--peers", *(["--cases", *options.cases] if options.cases else [])]
        arguments += ["--threads", *map(str, threads), "--rounds", str(rounds)]
        done.tuned = report.tuned_ratios(arguments, out / "tuned")
    print(f"report in {report.write(done, out)}")
    return FAILED if any(one.wrong for entry in done.entries for one in entry.results.values()) else 0


def bench_neighbours(options: argparse.Namespace) -> int:
    """Measure the first backend, and peers, beside busy neighbours, and write a report with every call's time."""
    from .report import contenders, neighbours

    if options.training or options.cells or len(options.threads or [2]) > 1:
        raise ValueError("--neighbours has cases of its own, and takes one number of threads at a time")
    parts = neighbours.select(options.cases, *(options.threads or ()))
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    ours = dict([*contenders.ours().items()][:1])
    peers = contenders.peers() if options.peers else {}
    done = neighbours.run(parts, ours | peers, options.rounds or neighbours.RUNS)
    print(f"report in {neighbours.write(done, out)}")
    wrong = any(one.wrong for entry in done.entries for one in entry.results[neighbours.QUIET].values())
    return FAILED if wrong else 0


# --------------------------------------------------------------------------------------------------------------- parts
def read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error


def check_outputs(model: str, picture: str | None) -> None:
    """Find out before the training what would fail after it."""
    check_writable(model)
    if picture:
        from . import plot

        plot.check(picture)


def describe(job: TextTraining) -> None:
    model = job.model
    size = sum(p.size for p in model.to_arrays().values())
    print(
        f"{model.lstm!r} on backend {model.lstm.backend}, {size:,} parameters, {len(model.vocabulary)} characters",
        file=sys.stderr,
    )


def train(job: TextTraining, picture: str | None) -> int | None:
    """Train to the end of the settings' steps; the signal that stopped it, if one did."""
    s = job.settings
    stopped_by = run(job, s.steps, s.evaluate_every, s.checkpoint_every)
    history = job.history
    if stopped_by is None and (not history.held_out or history.held_out[-1][0] < history.steps):
        # For the reader and the picture only: a later continuation must not find it in the file.
        history.held_out.append((history.steps, job.evaluate()))
    if picture:
        from . import plot

        plot.loss_curve(history, picture, f"{job.model.lstm!r}")
    return stopped_by


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


def steps_within(seconds: float, job: TextTraining) -> int:
    """How many steps the time allows, measured on the first few, which count."""
    seconds = number(seconds, "seconds")
    taken = [timed_step(job) for _ in range(10)]
    return max(len(taken) + 1, round(seconds / (sum(taken[2:]) / len(taken[2:]))))


def timed_step(job: TextTraining) -> float:
    """Take one step; its seconds."""
    begin = time.perf_counter()
    job.history.losses.append(job.step())
    return time.perf_counter() - begin


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
        seconds = sorted(timed_step(job) for _ in range(COMPARED_STEPS))[COMPARED_STEPS // 2]
        losses[name] = job.history.losses
        shown = perplexity(job.history.losses[-1])
        rows.append(f"{name:<10}{job.tokens_per_step / seconds:>12,.0f}{shown:>14.4f}")
    apart = max(max(step) - min(step) for step in zip(*losses.values(), strict=True))
    rows.append(f"largest difference between the backends' losses at any step: {apart:.1e}")
    return rows
