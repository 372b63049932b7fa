"""Many streams in one process: `StreamBatch` beside ONNX Runtime and beside itself. ``fastlstm bench --streams``.

Every figure is a ratio with the bound that is wanted. Ratios of times are medians over rounds, in which the two take
turns in random order.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..layout import Array
from ..num_threads import threads as threads_of
from ..recurrent import LSTM
from ..streams import StreamBatch
from ..terminal import load
from . import contenders, lines_page, machine, measure
from .cases import Case
from .lines import ONE, OTHER, Line, Report, chosen, compared, draw, in_turns, opened
from .measure import Contender
from .page import microseconds
from .requests import LARGER, overload, requests, threads_that_hand_over

SHAPES = ((40, 128), (64, 64))  # (I, H)
SHAPES_OF = {"overload": (LARGER,)}  # of parts that have others
BATCHES = (1, 4, 16, 64, 256, 1024)
MANY = 16384  # streams of which random ones are stepped
LARGE, PART = 8192, 256  # rows of one step, and of each of several
RIVAL = "onnxruntime"
LEAST_MORE = 0.6e-6  # seconds that a random step of one stream may take longer, whatever the ratio
OF_MEMORY = 20_000  # streams whose memory is measured
PYTHON_THREADS = 8
THREAD_SECONDS = 1.5
RUNS = 3  # of the threads: the best counts


# ------------------------------------------------------------------------------------------------------------ the parts
def our_batch(case: Case, threads: int) -> Contender:
    """A step of all streams of a StreamBatch."""
    layer, x = case.layer(), case.draw().x
    batch, handles = opened(layer, case.B)

    def values() -> dict[str, Array]:
        fresh, own = opened(layer, case.B)
        return {"y": contenders.stepped(lambda x_t: fresh.step(own, x_t), x)}

    return Contender(lambda: batch.step(handles, x[0]), values)


def beside_rival(shape: tuple[int, int], report: Report, rng: np.random.Generator) -> None:
    """ONNX Runtime's batch, with the states as inputs and outputs, by ours."""
    for B in BATCHES:
        case = Case("step", "lstm", *shape, B=B)
        makers = {ONE: our_batch, RIVAL: contenders.peers()[RIVAL]}
        one, other = measure.measure(case, 1, makers, contenders.reference(case), report.rounds, rng)
        if not (one.rounds and other.rounds):
            report.notes.append(f"{case}: {one.problem or other.problem}")
            continue
        wanted = 3.0 if B == 1 else 1.5 if B <= 16 else 1.1
        report.lines.append(compared("ONNX Runtime's batch / StreamBatch", str(case), one, other, wanted))


def beside_layer(shape: tuple[int, int], report: Report, rng: np.random.Generator) -> None:
    """A call of the layer with one step, by a step of as many streams."""
    layer = LSTM(*shape, seed=0)
    for n in (B for B in BATCHES if B >= 64):
        x, (batch, handles) = draw(n, shape[0]), opened(layer, n)
        calls: dict[str, Callable[[], object]] = {
            ONE: partial(batch.step, handles, x),
            OTHER: partial(layer, x[None]),
        }
        times = in_turns(calls, report.rounds, rng)
        what = f"{shape[0]},{shape[1]} B={n}"
        report.lines.append(compared("layer(x), T=1 / StreamBatch", what, times[ONE], times[OTHER], 0.97))


def in_one_step(shape: tuple[int, int], report: Report, rng: np.random.Generator) -> None:
    """Many rows in one step, by as many in several steps."""
    x, (batch, handles) = draw(LARGE, shape[0]), opened(LSTM(*shape, seed=0), LARGE)

    def parts() -> None:
        for at in range(0, LARGE, PART):
            batch.step(handles[at : at + PART], x[at : at + PART])

    times = in_turns({ONE: lambda: batch.step(handles, x), OTHER: parts}, report.rounds, rng)
    title = f"one step of {LARGE} / {LARGE // PART} steps of {PART}"
    report.lines.append(compared(title, f"{shape[0]},{shape[1]}", times[ONE], times[OTHER], 1.05, at_most=True))


def stepping(batch: StreamBatch, handles: Sequence[Array], x: Array) -> Callable[[], object]:
    """A step of the next of these handles, again and again."""
    each = itertools.cycle(handles)
    return lambda: batch.step(next(each), x)


def random_choice(shape: tuple[int, int], report: Report, rng: np.random.Generator) -> None:
    """A step of random ones of many streams, by a step of all of as few. Handles come in another array each time."""
    layer = LSTM(*shape, seed=0)
    many, every = opened(layer, MANY)
    for n in (B for B in BATCHES if B != 4):
        x, (few, own) = draw(n, shape[0]), opened(layer, n)
        calls: dict[str, Callable[[], object]] = {
            ONE: stepping(many, [rng.permutation(every)[:n] for _ in range(64)], x),
            OTHER: stepping(few, [own.copy() for _ in range(64)], x),
        }
        times = in_turns(calls, report.rounds, rng)
        wanted = 1.08 if n >= 16 else 1.25
        line = compared(
            "random choice / dense step", f"{shape[0]},{shape[1]} n={n}", times[ONE], times[OTHER], wanted, True
        )
        line.allowed = n == 1 and times[ONE].median - times[OTHER].median <= LEAST_MORE
        report.lines.append(line)


MEMORY = """
import resource, sys
import fastlstm as fl
I, H, n = map(int, sys.argv[1:])
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
batch = fl.StreamBatch(fl.LSTM(I, H), capacity=1)
batch.step([batch.open()], __import__("numpy").zeros((1, I), "float32"))
before = rss()
for _ in range(n):
    batch.open()
print((rss() - before) / n)
"""


def memory(shape: tuple[int, int], report: Report, rng: np.random.Generator) -> None:
    """Memory of a stream without key, in a process of its own, by the bytes of its state."""
    if not Path("/proc/self/statm").exists():
        report.notes.append("memory: this system does not tell how much a process has")
        return
    I, H = shape  # noqa: E741
    done = subprocess.run([sys.executable, "-c", MEMORY, *map(str, (I, H, OF_MEMORY))], capture_output=True, check=True)
    state, bytes_of_one = 2 * 4 * H, float(done.stdout)
    wanted = 1.2 if H == 128 else None
    detail = f"{bytes_of_one:.0f} / {state} bytes"
    report.lines.append(
        Line("memory of a stream / bytes of its state", f"{I},{H}", bytes_of_one / state, wanted, True, detail=detail)
    )


# ------------------------------------------------------------------------------------------------------ Python threads
def from_threads(make: Callable[[], Callable[[], object]], seconds: float) -> Array:
    """Seconds of every call of PYTHON_THREADS threads, each of which calls what `make` returned to it."""
    calls, stop, begin = (
        [make() for _ in range(PYTHON_THREADS)],
        threading.Event(),
        threading.Barrier(PYTHON_THREADS + 1),
    )
    found: list[Array] = []

    def work(call: Callable[[], object]) -> None:
        clock, ends = time.perf_counter, []
        call()
        begin.wait()
        ends.append(clock())
        while not stop.is_set():
            call()
            ends.append(clock())
        found.append(np.diff(ends))

    workers = [threading.Thread(target=work, args=(call,)) for call in calls]
    for worker in workers:
        worker.start()
    begin.wait()
    time.sleep(seconds)
    stop.set()
    for worker in workers:
        worker.join()
    return np.concatenate(found)


def python_threads(shape: tuple[int, int], report: Report, rng: np.random.Generator) -> None:
    """Threads that each step a stream of their own: throughput and waits."""
    case, x = Case("step", "lstm", *shape, B=1), draw(1, shape[0])
    layer = case.layer()

    def ours() -> Callable[[], object]:
        batch, handles = opened(layer, 1)
        return lambda: batch.step(handles, x)

    name = f"{PYTHON_THREADS} Python threads, {shape[0]},{shape[1]}"
    try:
        make_rival = contenders.stream_sessions(case)
    except measure.Unsupported as error:
        report.notes.append(f"{name}: {RIVAL} {error}")
        make_rival = None
    runs: dict[str, list[Array]] = {ONE: [], RIVAL: []}
    for _ in range(RUNS):
        runs[ONE].append(from_threads(ours, THREAD_SECONDS))
        if make_rival is not None:
            runs[RIVAL].append(from_threads(make_rival, THREAD_SECONDS))
    interval = PYTHON_THREADS * sys.getswitchinterval()
    waits = [float(np.percentile(times, 99.99)) / interval for times in runs[ONE]]
    longest = max(float(times.max()) for times in runs[ONE])
    detail = f"longest of all {1e3 * longest:.0f} ms, interval {1e3 * interval:.0f} ms"
    report.lines.append(
        Line("99.99 % of waits / (threads x switch interval)", name, min(waits), 2.0, True, detail=detail)
    )
    if runs[RIVAL]:
        steps = {who: np.median([times.size / THREAD_SECONDS for times in some]) for who, some in runs.items()}
        p99 = {who: np.median([np.percentile(times, 99) for times in some]) for who, some in runs.items()}
        of_steps = f"{steps[ONE]:,.0f} / {steps[RIVAL]:,.0f} steps a second"
        of_p99 = f"{microseconds(p99[ONE])} / {microseconds(p99[RIVAL])}"
        report.lines += [
            Line(f"throughput / {RIVAL}'s", name, float(steps[ONE] / steps[RIVAL]), 4.0, detail=of_steps),
            Line(f"p99 / {RIVAL}'s", name, float(p99[ONE] / p99[RIVAL]), 0.05, True, detail=of_p99),
        ]


PARTS: dict[str, Callable[[tuple[int, int], Report, np.random.Generator], None]] = {
    "batch": beside_rival,
    "layer": beside_layer,
    "large": in_one_step,
    "random": random_choice,
    "memory": memory,
    "threads": python_threads,
    "front": threads_that_hand_over,
    "requests": requests,
    "overload": overload,
}


# -------------------------------------------------------------------------------------------------------------- the run
def select(words: Sequence[str]) -> list[str]:
    """The parts with these names; all without any."""
    return chosen(words, PARTS, "streams")


def run(parts: Sequence[str], rounds: int, seed: int = 0) -> Report:
    """Measure the parts, with one thread of the kernels."""
    tqdm = load("tqdm", "TQDM_").tqdm

    each = [(name, shape) for name in parts for shape in SHAPES_OF.get(name, SHAPES)]
    report, before, rng = Report(machine.facts(), rounds), machine.load(), np.random.default_rng(seed)
    with threads_of(1), tqdm(total=len(each), unit="part", leave=False, disable=None) as bar:
        for name, shape in each:
            bar.set_description(f"{name} {shape}")
            PARTS[name](shape, report, rng)
            bar.update()
    report.facts |= {"load before": before, "load after": machine.load(), "command": machine.command()}
    return report


NAME = "streams"
MEANING = """
**Ratio** is that of the part's title, with the 95 % bootstrap interval of the median over {rounds} rounds, in which the
two took turns. **Of** names both figures, in microseconds a call where no unit stands. One thread of the kernels;
values of the batches were compared with the float64 reference before they were timed.
"""


def write(report: Report, out: Path) -> Path:
    """Write streams.json and streams.md into a folder; the page's path."""
    return lines_page.write(report, out, NAME, "Many streams", MEANING)
