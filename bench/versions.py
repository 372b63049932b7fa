"""Two versions of fastlstm, interleaved: is the new one as quick as the old one?

    python bench/versions.py --old OLD/.venv/bin/python --new NEW/.venv/bin/python --runs 3

A process of each version, and a second one of the old version (the A/A comparison), take turns within every round, in
random order: a pause, two calls, then a block of timed calls. For each case the median over the rounds of the times'
ratio is reported, old / new and old / old: above 1 the second is quicker. Values are compared first, by their hashes.

A case counts as slower where it lies under the range of all A/A ratios of its number of threads in every run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import statistics
import subprocess
import sys
import time
from typing import Any

PAUSE, BLOCK = 0.03, 0.02  # seconds
GROUPS = ("inference", "training", "cells")


# ------------------------------------------------------------------------------------------------ a version's process
def worker() -> None:
    """Answer requests, a JSON line each: case and threads -> seconds of a call, and the hash of its values."""
    import numpy as np

    import fastlstm as fl
    from fastlstm.report import cases, contenders

    known = {str(case): case for group in GROUPS for case in cases.GROUPS[group]}
    known["lstm forward 64,64 B=1 T=1"] = cases.Case("forward", "lstm", 64, 64)
    ready: dict[str, Any] = {}
    print(json.dumps([*known]), flush=True)
    for line in sys.stdin:
        name, threads, seconds = json.loads(line)
        fl.set_num_threads(threads)
        if ready.get("name") != (name, threads):
            contender = contenders.ours()["c"](known[name], threads)
            values = contender.values()
            bits = hashlib.sha256(b"".join(np.ascontiguousarray(values[k]).tobytes() for k in sorted(values)))
            ready = {"name": (name, threads), "call": contender.call, "hash": bits.hexdigest()}
        call = ready["call"]
        call()
        call()
        begin = time.perf_counter()
        call()
        once = time.perf_counter() - begin
        repeat = max(1, round(100e-6 / once))
        taken, end = [], time.perf_counter() + seconds
        while not taken or time.perf_counter() < end:
            begin = time.perf_counter()
            for _ in range(repeat):
                call()
            taken.append((time.perf_counter() - begin) / repeat)
        print(json.dumps([statistics.median(taken), ready["hash"]]), flush=True)


class Version:
    """A process that measures one version."""

    def __init__(self, python: str) -> None:
        command = [python, __file__, "--worker"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.cases: list[str] = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def measure(self, name: str, threads: int, seconds: float) -> tuple[float, str]:
        assert self.process.stdin is not None
        print(json.dumps([name, threads, seconds]), file=self.process.stdin, flush=True)
        taken, bits = self._answer()
        return taken, bits


# ------------------------------------------------------------------------------------------------------------ comparing
def compare(versions: dict[str, Version], name: str, threads: int, rounds: int) -> tuple[float, float, float]:
    """(median seconds of the old, median of old / new, median of old / old again) of one case."""
    hashes = {label: version.measure(name, threads, 0)[1] for label, version in versions.items()}
    if hashes["old"] != hashes["new"]:
        print(f"    other bits: {name}, {threads} threads")
    samples: dict[str, list[float]] = {label: [] for label in versions}
    for _ in range(rounds):
        for label in random.sample([*versions], len(versions)):
            time.sleep(PAUSE)
            samples[label].append(versions[label].measure(name, threads, BLOCK)[0])
    new, again = (
        statistics.median(a / b for a, b in zip(samples["old"], samples[label], strict=True))
        for label in ("new", "again")
    )
    return statistics.median(samples["old"]), new, again


def mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--old", metavar="PYTHON", help="with the old version installed")
    options.add_argument("--new", metavar="PYTHON", default=sys.executable, help="with the new one (default: this)")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options.add_argument("--cases", nargs="+", default=[], help="parts of names (default: all)")
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.worker:
        worker()
        return 0
    versions = {"old": Version(given.old), "again": Version(given.old), "new": Version(given.new)}
    names = [n for n in versions["old"].cases if not given.cases or any(part in n for part in given.cases)]
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for run in range(given.runs):
        for threads in given.threads:
            for name in names:
                seconds, new, again = compare(versions, name, threads, given.rounds)
                found.setdefault((name, threads), []).append((new, again))
                measured = f"{seconds * 1e6:>10.1f} us  new {new:.3f}  A/A {again:.3f}"
                print(f"run {run + 1}  {threads} threads  {name:<44}{measured}", flush=True)
    slower = report(found, given.threads)
    return 1 if slower else 0


def report(found: dict[tuple[str, int], list[tuple[float, float]]], threads: list[int]) -> list[str]:
    """Print the geometric means, and the cases that are slower in every run; return these."""
    slower = []
    for n in threads:
        runs = {name: ratios for (name, of), ratios in found.items() if of == n}
        again = [a for ratios in runs.values() for _, a in ratios]
        medians = {name: statistics.median(new for new, _ in ratios) for name, ratios in runs.items()}
        lowest = min(medians, key=medians.__getitem__)
        print(
            f"\n{n} threads: mean of old / new {mean([*medians.values()]):.3f}, of the A/A {mean(again):.3f}; "
            f"A/A from {min(again):.3f} to {max(again):.3f}; lowest {medians[lowest]:.3f} ({lowest})"
        )
        for name, ratios in runs.items():
            if all(new < min(again) for new, _ in ratios):
                slower.append(f"{name}, {n} threads")
                print(f"slower in every run: {name}: {', '.join(f'{new:.3f}' for new, _ in ratios)}")
    return slower


if __name__ == "__main__":
    sys.exit(main())
