"""Benchmark reports, ``fastlstm bench``: times of every backend and library here, and the share of the machine's limit.

cases       what is measured, as data            contenders  the backends and libraries that are measured
measure     values first, turns interleaved      machine     what it is, and its peak rates
page        the report in Markdown, with charts  neighbours  latency beside busy processes and a busy thread
streams     many streams in one process          embedded    C sources and the C library, without Python
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..files import check_writable, write_atomically
from ..num_threads import threads as threads_of
from ..outputs import holds_something
from ..terminal import load
from . import contenders, machine, measure, quantised
from .cases import Case
from .measure import Maker, Ratio, Result

BASE_LINE = "numpy"
SAMPLES = "samples.json"
ROOM = 1 << 20  # approximate bytes of a report's largest file
AMONG_OURSELVES = ("cells", "tokens")  # groups that compare cells or forms of input, not libraries

# glibc told to keep freed memory: without it a large part of torch's training is page faults of fresh buffers.
TUNED = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"


@dataclass
class Entry:
    """One case with one number of threads: the result of every contender, and the ratio of the best two."""

    group: str
    case: Case
    threads: int
    results: dict[str, Result]
    rivals: tuple[str, ...]  # names of the contenders that the first one is compared with

    @property
    def ours(self) -> Result:
        return next(iter(self.results.values()))

    @cached_property
    def rival(self) -> Result | None:
        """The quickest of the rivals."""
        return measure.best(self.results[name] for name in self.rivals)

    @cached_property
    def ratio(self) -> Ratio | None:
        """The best rival's time divided by the first contender's."""
        if self.rival is None or not self.ours.rounds:
            return None
        return measure.ratio(self.rival, self.ours, np.random.default_rng(0))


@dataclass
class Report:
    """A whole run."""

    facts: dict[str, str]
    limits: dict[int, machine.Limits | None]  # by number of threads
    rounds: int
    entries: list[Entry] = field(default_factory=list)
    tuned: dict[tuple[str, int], float] | None = None  # (case, threads) -> ratio with glibc told to keep memory

    def share(self, entry: Entry) -> float | None:
        """The least time that the machine needs, divided by the first contender's."""
        limits, case = self.limits[entry.threads], entry.case
        if limits is None or not entry.ours.rounds:
            return None
        if entry.group == "quantised":
            return quantised.least_seconds(case, limits) / entry.ours.median
        # A step of a stream needs all of its weights again; else only those of the layer at hand.
        footprint = case.bytes_read if case.mode == "step" else case.recurrent_bytes
        return limits.seconds(case.flops, case.bytes_read, footprint) / entry.ours.median


def run(
    cases: Mapping[str, Iterable[Case]],
    makers: Mapping[str, Maker],
    rivals: Iterable[str],
    threads: Iterable[int],
    rounds: int,
    seed: int = 0,
) -> Report:
    """Measure every case; draw nothing.

    Parameters
    ----------
    cases : mapping
        Cases by group.
    makers : mapping
        All contenders by name; the report is about the first.
    rivals : names
        Contenders; the first one is compared with the best of these.
    threads : ints
        Every case is measured once for each of these numbers of threads.
    rounds : int
        Turns of each contender.
    seed : int
        Seed of the order of turns.
    """
    tqdm = load("tqdm", "TQDM_").tqdm

    each = [(n, group, case) for n in threads for group, some in cases.items() for case in some]
    before = machine.load()
    report = Report(machine.facts(), {n: machine.limits(n) for n in dict.fromkeys(n for n, *_ in each)}, rounds)
    rng, rivals = np.random.default_rng(seed), list(rivals)
    with tqdm(total=len(each) * rounds, unit="round", leave=False, disable=None) as bar:
        for n, group, case in each:
            bar.set_description(f"{case}, {n} thread{'s' * (n > 1)}")
            some = taking_part(group, makers)
            with machine.blas_threads(n), threads_of(n):
                results = measure.measure(case, n, some, contenders.reference(case), rounds, rng, bar.update)
            present = tuple(name for name in rivals if name in some and group not in AMONG_OURSELVES)
            report.entries.append(Entry(group, case, n, {one.contender: one for one in results}, present))
    report.facts |= {"load before": before, "load after": machine.load(), "command": machine.command()}
    return report


def taking_part(group: str, makers: Mapping[str, Maker]) -> Mapping[str, Maker]:
    """The contenders that are measured in a group."""
    if group == "cells":
        return dict(list(makers.items())[:1])
    return contenders.in_both_forms(makers) if group == "tokens" else makers


# ------------------------------------------------------------------------------------------------------------ the files
def check_folder(out: Path, groups: Iterable[str] | None, threads: Iterable[int] = (), replace: bool = False) -> None:
    """Make the folder of a report, and raise before any measurement what writing the report would raise after it.

    Parameters
    ----------
    out : path
    groups : names, or None for a report beside neighbours
    threads : ints
    replace : bool
        Whether any files may be replaced. Without it only those of an earlier report.

    Raises
    ------
    OSError
        A file cannot be written, or its disk has no room.
    ValueError
        The folder has files that are not of a report, and `replace` is false.
    """
    out.mkdir(parents=True, exist_ok=True)
    charts = [f"{group}-{n}.svg" for group in groups or () for n in threads]
    samples, page = (SAMPLES, "report.md") if groups is not None else ("neighbours.json", "neighbours.md")
    for name in (samples, page, *charts):
        check_writable(out / name, ROOM)
    existing = [name for name in (samples, page, *charts) if holds_something(out / name)]
    if existing and not replace and not is_ours(out / samples):
        raise ValueError(
            f"{out} has files that are not of a report made here and would be lost: {', '.join(existing)}. "
            "Give another folder, or --force to replace them"
        )


def is_ours(samples: Path) -> bool:
    """Whether a file of samples is one that `write` has written."""
    try:
        return "fastlstm" in json.loads(samples.read_bytes())["facts"]["versions"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write(report: Report, out: Path) -> Path:
    """Write the samples and the page with its charts into a folder; the page's path."""
    from . import page

    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / SAMPLES, (json.dumps(as_json(report), indent=1) + "\n").encode())
    charts = page.charts(report)
    for name, picture in charts.items():
        write_atomically(out / name, picture)
    path = out / "report.md"
    write_atomically(path, page.markdown(report, list(charts)).encode())
    return path


def as_json(report: Report) -> dict[str, Any]:
    """Everything that was measured, with every sample."""
    return {
        "facts": report.facts,
        "limits": [asdict(one) for one in report.limits.values() if one is not None],
        "entries": [
            {
                "group": entry.group,
                "name": str(entry.case),
                "case": asdict(entry.case),
                "threads": entry.threads,
                "flops": entry.case.flops,
                "recurrent_bytes": entry.case.recurrent_bytes,
                "ratio": None if entry.ratio is None else asdict(entry.ratio),
                "results": [asdict(one) for one in entry.results.values()],
            }
            for entry in report.entries
        ],
    }


def tuned_ratios(arguments: list[str], out: Path) -> dict[tuple[str, int], float] | None:
    """Run the same command in a process whose glibc keeps freed memory; its ratios. None where there is no glibc.

    The whole of it, report and all, goes to `out`. In that process itself: None.
    """
    if platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return None
    command = [sys.executable, "-m", "fastlstm", "bench", *arguments, "--out", str(out)]
    subprocess.run(command, check=True, env={**os.environ, "GLIBC_TUNABLES": TUNED}, stdout=subprocess.DEVNULL)
    entries = json.loads((out / SAMPLES).read_text())["entries"]
    return {(one["name"], one["threads"]): one["ratio"]["value"] for one in entries if one["ratio"]}
