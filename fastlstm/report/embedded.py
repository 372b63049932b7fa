"""Recurrent layers in programs without Python: ``fastlstm bench --embedded``.

The C that `to_c` writes beside that of others, the C library beside a step from Python, sizes, and a whole model of
speech detection on the native step that Python and C share. Every figure is a ratio, with its bound where it has one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .. import library
from ..num_threads import threads as threads_of
from ..recurrent import LSTM
from ..terminal import load
from . import c_sources, lines_page, machine, measure, silero
from .c_library import InC
from .lines import ONE, OTHER, Line, Report, chosen, compared, in_turns
from .measure import Result, Unsupported

SHAPES = ((40, 128), (64, 64), (16, 32))  # (I, H) of the sources
OF_LIBRARY = ((40, 128), (64, 64))  # (I, H) of steps of the C library
STREAMS = 256
OF_SILERO = {1: 1.5, 64: 3.0}  # the bound by the number of streams
CHUNKS = 20  # of Silero, which are compared
CALL = 100  # steps in one timed call: calling C from Python costs little of it
ALLOWED, ALLOWED_INT8 = 1e-5, 3e-2  # largest error of outputs


@dataclass
class Run:
    """What every part gets."""

    report: Report
    rng: np.random.Generator
    folder: Path
    keras2c: str | None = None

    def left_out(self, what: str, why: object) -> None:
        self.report.notes.append(f"{what}: {why}")

    @contextmanager
    def noted(self, what: str) -> Iterator[None]:
        """`Unsupported` in the block becomes a note that `what` was left out, with the reason."""
        try:
            yield
        except Unsupported as error:
            self.left_out(what, error)


def of_one(result: Result, calls: int) -> Result:
    """Times of one step, from those of calls that make several."""
    return Result(result.contender, rounds=[[time / calls for time in some] for some in result.rounds])


# ----------------------------------------------------------------------------------------------------------------- to_c
def sources(run: Run) -> None:
    """A step of keras2c's and of emx-onnx-cgen's C by one of `to_c`'s, at -O2 of one compiler."""
    for shape in SHAPES:
        layer, folder, what = LSTM(*shape, seed=0), run.folder / f"sources-{shape[1]}", f"{shape[0]},{shape[1]}"
        made = {"to_c": c_sources.own(layer, folder / "own")}
        if not agrees(run, f"to_c {what}", made["to_c"].error()):
            continue
        for name, make in (
            ("keras2c", partial(c_sources.keras2c, include=run.keras2c)),
            ("emx-onnx-cgen", c_sources.emx_onnx_cgen),
        ):
            with run.noted(f"{name} {what}"):
                made[name] = make(layer, folder / name)
        right = {
            name: one for name, one in made.items() if name == "to_c" or agrees(run, f"{name} {what}", one.error())
        }
        times = in_turns({name: one.steps(CALL) for name, one in right.items()}, run.report.rounds, run.rng)
        for name in list(right)[1:]:
            ours, other = (of_one(times[who], CALL) for who in ("to_c", name))
            run.report.lines.append(
                compared("C sources at -O2: the other's step / to_c's", f"{name} {what}", ours, other, 3.0)
            )


def agrees(run: Run, what: str, error: float, allowed: float = ALLOWED) -> bool:
    """Whether outputs are right; if not, that is noted."""
    if not error <= allowed:  # NaN is not
        run.left_out(what, f"{measure.WRONG}: off by {error:.2g}, allowed {allowed:g}")
    return error <= allowed


def int8(run: Run) -> None:
    """Code and constants of `to_c` in int8 by those in float32."""
    for shape in SHAPES:
        layer, what, sizes = LSTM(*shape, seed=0), f"{shape[0]},{shape[1]}", []
        for weights, allowed in (("int8", ALLOWED_INT8), ("float32", ALLOWED)):
            folder = run.folder / f"{weights}-{shape[1]}"
            error = c_sources.own(layer, folder, weights).error()
            if agrees(run, f"to_c {weights} {what}", error, allowed):
                sizes.append(c_sources.flash(folder / "own.c"))
        if len(sizes) == 2:
            (small, by), (large, _) = sizes
            detail, ratio = f"{small:,} / {large:,} bytes by {by}", small / large
            run.report.lines.append(Line("to_c: flash of int8 / float32", what, ratio, 0.33, True, detail=detail))


# ----------------------------------------------------------------------------------------------------------- C library
def steps_in_c(run: Run) -> None:
    """A step of a stream in C by one from Python."""
    for shape in OF_LIBRARY:
        layer, what = LSTM(*shape, seed=0), f"{shape[0]},{shape[1]}"
        in_c = InC(layer, STREAMS, run.folder / f"step-{shape[1]}")
        stream, rows, out = layer.stream(), list(in_c.x[:CALL]), np.empty(shape[1], np.float32)

        def in_python() -> None:
            for row in rows:  # noqa: B023
                stream.step(row, out=out)  # noqa: B023

        c = in_c.call("one", CALL)
        c()
        in_python()
        if agrees(run, f"step in C {what}", float(np.abs(in_c.y[0] - out).max())):
            times = in_turns({ONE: c, OTHER: in_python}, run.report.rounds, run.rng)
            ours, other = (of_one(times[name], CALL) for name in (ONE, OTHER))
            run.report.lines.append(compared("a step in C / from Python", what, ours, other, 0.75, at_most=True))
        in_c.end()


def batch_in_c(run: Run) -> None:
    """Steps of streams one by one, in C and from Python, by a step of a batch in C."""
    for shape in OF_LIBRARY:
        layer, what = LSTM(*shape, seed=0), f"{shape[0]},{shape[1]} {STREAMS} streams"
        in_c = InC(layer, STREAMS, run.folder / f"batch-{shape[1]}")
        own = [(layer.stream(), row, np.empty(shape[1], np.float32)) for row in in_c.x]

        def in_python() -> None:
            for stream, row, out in own:  # noqa: B023
                stream.step(row, out=out)

        if agrees(run, f"batch in C {what}", float(np.abs(in_c.outputs("singles") - in_c.outputs("batched")).max())):
            calls = {ONE: in_c.call("batched"), OTHER: in_c.call("singles"), "Python": in_python}
            times = in_turns(calls, run.report.rounds, run.rng)
            line = compared("in C: single steps / a batch's step", what, times[ONE], times[OTHER], 2.5)
            from_python = compared(
                "single steps from Python / a batch's step in C", what, times[ONE], times["Python"], 2.5
            )
            from_python.wanted = None
            run.report.lines += [line, from_python]
        in_c.end()


def library_size(run: Run) -> None:
    """Code and constants of the C library by those of the extension, which trains too."""
    extension = find_spec("fastlstm._fastlstm_c")
    try:
        ours = library.get_library()
    except FileNotFoundError as error:
        raise Unsupported(str(error)) from error
    if extension is None or extension.origin is None:
        raise Unsupported("the C extension is not in this installation")
    sizes = c_sources.text_bytes(ours), c_sources.text_bytes(extension.origin)
    detail = f"{sizes[0]:,} / {sizes[1]:,} bytes of code and constants"
    run.report.lines.append(Line("C library / extension", "size", sizes[0] / sizes[1], 0.5, True, detail=detail))


# ------------------------------------------------------------------------------------------------------------- Silero
def whole_silero(run: Run) -> None:
    """A chunk of silero-vad's whole model: ONNX Runtime, which carries contexts and states, by a `StreamBatch`."""
    for n, wanted in OF_SILERO.items():
        try:
            ours, rival = silero.ours(n), silero.reference(n)
        except ImportError as error:
            raise Unsupported(f"not installed ({error})") from error
        what, sound = f"{n} stream{'s' * (n > 1)}", silero.noise(n)
        chunks = [next(sound) for _ in range(CHUNKS)]
        off = max(float(np.abs(ours(x) - rival(x)).max()) for x in chunks)
        if agrees(run, f"silero {what}", off):
            calls = {ONE: partial(ours, chunks[0]), OTHER: partial(rival, chunks[0])}
            times = in_turns(calls, run.report.rounds, run.rng)
            part = "Silero VAD, whole: ONNX Runtime / StreamBatch"
            run.report.lines.append(compared(part, what, times[ONE], times[OTHER], wanted))


PARTS: dict[str, Callable[[Run], None]] = {
    "sources": sources,
    "int8": int8,
    "step": steps_in_c,
    "batch": batch_in_c,
    "size": library_size,
    "silero": whole_silero,
}


# -------------------------------------------------------------------------------------------------------------- the run
def select(words: Sequence[str]) -> list[str]:
    """The parts with these names; all without any."""
    return chosen(words, PARTS, "embedded figures")


def run(parts: Sequence[str], rounds: int, keras2c: str | None = None, seed: int = 0) -> Report:
    """Measure the parts, with one thread of the kernels."""
    tqdm = load("tqdm", "TQDM_").tqdm

    report, before = Report(machine.facts(), rounds), machine.load()
    with (
        tempfile.TemporaryDirectory() as folder,
        threads_of(1),
        tqdm(parts, unit="part", leave=False, disable=None) as bar,
    ):
        each = Run(report, np.random.default_rng(seed), Path(folder), keras2c)
        for name in bar:
            bar.set_description(name)
            with each.noted(name):
                PARTS[name](each)
    report.facts |= {"load before": before, "load after": machine.load(), "command": machine.command()}
    try:
        report.facts["C compiler"] = c_sources.compiler_version()
    except Unsupported as error:
        report.facts["C compiler"] = str(error)
    return report


MEANING = """
**Ratio** is that of the part's title: of times, with the 95 % bootstrap interval of the median over {rounds} rounds, in
which the two took turns; of sizes, as `size` of binutils counts code and constants. **Of** names both figures, in
microseconds a step where no unit stands. One thread. All C is compiled here by one compiler with the same options, and
its outputs were compared with the layer's before it was timed.
"""
NAME, TITLE = "embedded", "Without Python"


def write(report: Report, out: Path) -> Path:
    """Write embedded.json and embedded.md into a folder; the page's path."""
    return lines_page.write(report, out, NAME, TITLE, MEANING)


def wrong(report: Report) -> bool:
    """Whether a contender's outputs were wrong."""
    return any(measure.WRONG in note for note in report.notes)
