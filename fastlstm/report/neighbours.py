"""Latency of calls beside busy processes and beside a busy Python thread. ``fastlstm bench --neighbours``.

Every call is timed by itself, from the end of the call before it, and the 99th percentile stands beside the median: in
a server it counts, not the mean of quiet moments. In every run the surroundings take turns, and within each of them
the contenders, in random order.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..num_threads import threads as threads_of
from ..terminal import load
from . import contenders, machine, measure
from .cases import Case
from .measure import Maker, Result
from .page import microseconds, table
from .page import threads as threads_in_words

RUNS = 5
TURN_SECONDS = 4.0  # a turn ends then, however few its calls
WARM_CALLS = 3
START_SECONDS = 0.1  # a new process needs less to be computing
RIVAL = "onnxruntime"  # 99th percentiles are compared with this one's: the best of the libraries beside busy processes

QUIET = "quiet"
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6): pass"


# -------------------------------------------------------------------------------------------------------- surroundings
@contextmanager
def busy_processes(n: int) -> Iterator[None]:
    """Within this context n other processes compute without pause. They end by themselves if this process is killed."""
    command = [sys.executable, "-I", "-S", "-c", SPIN]
    neighbours = [subprocess.Popen(command) for _ in range(n)]
    try:
        time.sleep(START_SECONDS)
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


@contextmanager
def busy_thread() -> Iterator[None]:
    """Within this context another thread of this process computes in Python, and so competes for Python's lock."""
    done = False

    def spin() -> None:
        while not done:
            pass

    neighbour = threading.Thread(target=spin)
    neighbour.start()
    try:
        yield
    finally:
        done = True
        neighbour.join()


# ------------------------------------------------------------------------------------------------------------- the list
@dataclass(frozen=True)
class Part:
    """Cases that are measured in the same surroundings, with the upper bounds of their ratios there.

    Parameters
    ----------
    title : str
    cases : list of Case
    surroundings : dict
        Name -> function that makes the surroundings as a context; the first is QUIET.
    threads : int
    calls : int
        Calls of a turn, at least: some of them must lie beyond the 99th percentile.
    seconds : float
        Length of a turn, at least: the system must switch between the processes many times.
    wanted : dict
        Name of a ratio (see `ratios`) -> its upper bound.
    """

    title: str
    cases: Sequence[Case]
    surroundings: Mapping[str, Callable[[], AbstractContextManager[object]]]
    threads: int
    calls: int
    seconds: float
    wanted: Mapping[str, float]


GROWTH, TAIL, BY_RIVAL = "median by quiet median", "p99 by quiet median", f"p99 by {RIVAL}'s"

PARTS = [
    Part(
        "Beside busy processes",
        [
            Case("forward", "lstm", 128, 128, T=20),
            Case("forward", "lstm", 256, 256, B=16, T=20),
            Case("train", "lstm", 28, 256, B=32, T=35),
        ],
        {QUIET: nullcontext} | {f"{n} busy": functools.partial(busy_processes, n) for n in (1, 2)},
        threads=2,
        calls=300,
        seconds=0.5,
        wanted={GROWTH: 3, BY_RIVAL: 1.2},
    ),
    # A short step keeps Python's lock and loses it only when its 5 ms are over: one step in hundreds. A longer step
    # releases the lock and may wait 5 ms for it each time.
    Part(
        "Steps beside a Python thread that computes",
        [Case("step", "lstm", H, H) for H in (64, 128, 256, 512)],
        {QUIET: nullcontext, "busy thread": busy_thread},
        threads=1,
        calls=3000,
        seconds=0.05,
        wanted={TAIL: 10},
    ),
    # `run` takes many steps in one call, which waits for the lock once.
    Part(
        "Many steps in one call beside it",
        [Case("run", "lstm", H, H, T=100) for H in (64, 512)],
        {QUIET: nullcontext, "busy thread": busy_thread},
        threads=1,
        calls=300,
        seconds=0.05,
        wanted={},
    ),
]


def select(words: Sequence[str], threads: int | None = None) -> list[Part]:
    """The parts, with only the cases that have one of `words` in their names; with all cases if there are no words.

    `threads` replaces the number of threads of the parts with several threads.

    Raises
    ------
    ValueError
        A word names nothing.
    """
    for word in words:
        if not any(word in str(case) for part in PARTS for case in part.cases):
            raise ValueError(f"no case beside neighbours is called {word!r}: give a part of a case's name")
    chosen = [
        replace(
            part,
            cases=[case for case in part.cases if not words or any(word in str(case) for word in words)],
            threads=threads if threads and part.threads > 1 else part.threads,
        )
        for part in PARTS
    ]
    return [part for part in chosen if part.cases]


# ------------------------------------------------------------------------------------------------------------ measuring
@dataclass
class Entry:
    """One case: the calls of all contenders in all surroundings."""

    part: Part
    case: Case
    results: dict[str, dict[str, Result]]  # surroundings -> contender -> Result; a round is a run

    def ratios(self, surroundings: str, contender: str) -> dict[str, float]:
        """Ratios by name, medians over runs. Ratios to RIVAL are taken within a run, where conditions differ least."""
        one, quiet = self.results[surroundings][contender], self.results[QUIET][contender]
        found = {TAIL: percentile(one, 99) / percentile(quiet, 50)}
        if surroundings != QUIET:
            found[GROWTH] = percentile(one, 50) / percentile(quiet, 50)
        rival = self.results[surroundings].get(RIVAL)
        if rival and rival.rounds and contender != RIVAL:
            pairs = zip(one.rounds, rival.rounds, strict=True)
            found[BY_RIVAL] = float(np.median([np.percentile(a, 99) / np.percentile(b, 99) for a, b in pairs]))
        return found

    def of_ours(self) -> Iterator[tuple[str, dict[str, float]]]:
        """The first contender's ratios in all surroundings but QUIET."""
        ours = next(iter(self.results[QUIET]))
        for surroundings, results in self.results.items():
            if surroundings != QUIET and results[ours].rounds:
                yield surroundings, self.ratios(surroundings, ours)


@dataclass
class Report:
    """A whole run."""

    facts: dict[str, str]
    runs: int
    entries: list[Entry] = field(default_factory=list)


def percentile(result: Result, q: float) -> float:
    """Seconds: the median over runs of each run's percentile."""
    return float(np.median([np.percentile(run, q) for run in result.rounds]))


def run(parts: Iterable[Part], makers: Mapping[str, Maker], runs: int = RUNS, seed: int = 0) -> Report:
    """Measure every part; draw nothing.

    Parameters
    ----------
    parts : iterable of Part
    makers : mapping
        All contenders by name; the report is about the first.
    runs : int
    seed : int
        Seed of the order of turns.
    """
    tqdm = load("tqdm", "TQDM_").tqdm

    each = [(part, case) for part in parts for case in part.cases]
    report, before, rng = Report(machine.facts(), runs), machine.load(), np.random.default_rng(seed)
    with tqdm(total=len(each) * runs, unit="run", leave=False, disable=None) as bar:
        for part, case in each:
            bar.set_description(str(case))
            with machine.blas_threads(part.threads), threads_of(part.threads):
                report.entries.append(Entry(part, case, measured(part, case, makers, runs, rng, bar.update)))
    report.facts |= {"load before": before, "load after": machine.load(), "command": machine.command()}
    return report


def measured(
    part: Part,
    case: Case,
    makers: Mapping[str, Maker],
    runs: int,
    rng: np.random.Generator,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, Result]]:
    """Results by surroundings and contender."""
    checked, right = measure.checked(case, part.threads, makers, contenders.reference(case))
    results = {
        where: {name: Result(name, one.problem, one.error) for name, one in checked.items()}
        for where in part.surroundings
    }
    with measure.undisturbed():
        for _ in range(runs):
            for where in rng.permutation(list(part.surroundings)):
                with part.surroundings[where]():
                    for name in rng.permutation(list(right)):
                        time.sleep(measure.SETTLE_SECONDS)
                        results[where][name].rounds.append(latencies(right[name].call, part.calls, part.seconds))
            tick()
    return results


def latencies(
    call: Callable[[], object], calls: int, seconds: float = 0.0, most_seconds: float = TURN_SECONDS
) -> list[float]:
    """Seconds from the end of each call to the end of the next: a wait for Python's lock may fall between two calls.

    There are at least `calls` calls in at least `seconds`, but the turn ends after `most_seconds`.
    """
    for _ in range(WARM_CALLS):
        call()
    clock = time.perf_counter
    ends = [clock()]
    while ends[-1] - ends[0] < (most_seconds if len(ends) <= calls else seconds):
        call()
        ends.append(clock())
    found: list[float] = np.diff(ends).round(9).tolist()
    return found


# ------------------------------------------------------------------------------------------------------------- the page
MEANING = """
Times are microseconds a call: of {runs} runs the median of their medians, and of their 99th percentiles (p99). Every
call counts, with whatever came between it and the last one. Busy processes, and the busy thread, do nothing but
compute in Python. All have the same weights and threads; values were compared with the float64 reference before.
"""


def write(report: Report, out: Path) -> Path:
    """Write neighbours.json, every single call, and neighbours.md into a folder; the page's path."""
    from ..files import write_atomically

    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "neighbours.json", (json.dumps(as_json(report)) + "\n").encode())
    path = out / "neighbours.md"
    write_atomically(path, markdown(report).encode())
    return path


def as_json(report: Report) -> dict[str, Any]:
    return {
        "facts": report.facts,
        "entries": [
            {
                "part": entry.part.title,
                "name": str(entry.case),
                "case": asdict(entry.case),
                "threads": entry.part.threads,
                "surroundings": surroundings,
                "results": [asdict(one) for one in results.values()],
            }
            for entry in report.entries
            for surroundings, results in entry.results.items()
        ],
    }


def markdown(report: Report) -> str:
    sections = ["# Beside busy neighbours", table(("", ""), report.facts.items()).replace("---:", "---")]
    sections += [textwrap.dedent(MEANING).format(runs=report.runs).strip(), *missed(report)]
    for entry in report.entries:
        title = f"## {entry.part.title}"
        sections += [title] * (title not in sections)
        sections += [f"### {entry.case}, {threads_in_words(entry.part.threads)}", times(entry)]
    return "\n\n".join(sections) + "\n"


def missed(report: Report) -> Iterator[str]:
    """The first contender's ratios that lie above their bounds."""
    wanted = [
        (entry.case, surroundings, name, ratios[name], most)
        for entry in report.entries
        for surroundings, ratios in entry.of_ours()
        for name, most in entry.part.wanted.items()
        if name in ratios
    ]
    rows = [
        (str(case), where, name, f"{got:.2f}", f"{most:g}") for case, where, name, got, most in wanted if got > most
    ]
    yield f"## Missed: {len(rows)} of {len(wanted)}"
    yield table(("case", "surroundings", "what", "is", "wanted at most"), rows) if rows else "None."


def times(entry: Entry) -> str:
    """The percentiles of all contenders in all surroundings of a case."""
    rows = []
    for contender, quiet in entry.results[QUIET].items():
        for surroundings in entry.results if quiet.rounds else ():
            one, ratios = entry.results[surroundings][contender], entry.ratios(surroundings, contender)
            calls = f"{min(map(len, one.rounds))}"
            shown = [microseconds(percentile(one, q)) for q in (50, 99)]
            shown += [f"{ratios[name]:.2f}" if name in ratios else "" for name in (GROWTH, TAIL, BY_RIVAL)]
            rows.append((contender, surroundings, calls, *shown))
    notes = [f"- {one.contender}: {one.problem}" for one in entry.results[QUIET].values() if one.problem]
    head = ("contender", "surroundings", "calls a run", "median", "p99", GROWTH, TAIL, BY_RIVAL)
    return "\n".join([table(head, rows), *[""] * bool(notes), *notes])
