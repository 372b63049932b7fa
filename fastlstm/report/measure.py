"""Measuring fairly: values first, contenders interleaved, intervals by bootstrap.

In every round each contender has its turn, in random order, so that a busy neighbour or a warm processor falls on all
alike. Ratios are taken within a round, where conditions were most alike, and only then summed up.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from ..layout import Array
from .cases import Case

# How far a contender's values may lie from the float64 reference, as a share of the reference's largest entry. The
# bounds only tell wrong from right, for every library; the tests hold fastlstm to tighter ones.
TOLERANCE = {"values": 1e-5, "gradients": 5e-5}

LEAST_SAMPLE = 100e-6  # seconds: shorter calls are repeated within a sample, so that the clock's 50 ns do not count
ROUND_SECONDS = 5e-3  # a contender's turn, unless ROUND_SAMPLES take less
ROUND_SAMPLES = 20  # samples of a turn, at most

# Calls shorter than a turn first run untimed for this long: their weights come back into the caches, and some caches
# need 5 to 20 ms to adapt to the pattern of reads (a step at H=256 on Zen 5 after another contender's turn: 20.2 us,
# and from one moment to the next 16.6).
WARM_SECONDS = 25e-3

# Idle worker threads of other libraries go on spinning after a call (OpenMP's for some 10 ms, ONNX Runtime's 40,
# OpenBLAS' 100): they would take the next contender's core, and fastlstm's pool would rest for a while.
SETTLE_SECONDS = 0.15

RESAMPLES = 2000


class Unsupported(Exception):
    """A contender cannot compute the case, or its library is not installed; the message says which."""


@dataclass
class Contender:
    """A backend or library, ready to compute one case.

    Parameters
    ----------
    call : callable
        The call that is timed.
    values : callable
        Returns the results of the call by name, as arrays; names that begin with d are gradients.
    tolerance : float, optional
        How far values may lie from the right ones, in place of `TOLERANCE`.
    """

    call: Callable[[], object]
    values: Callable[[], Mapping[str, Array]]
    tolerance: float | None = None


# Makes a contender for a case and a number of threads, or raises Unsupported.
Maker = Callable[[Case, int], Contender]


@dataclass
class Result:
    """Times of one contender in one case with one number of threads."""

    contender: str
    problem: str | None = None  # why the contender was not timed
    error: float | None = None  # its largest error, where values were compared
    rounds: list[list[float]] = field(default_factory=list)  # seconds a call: the samples of every round

    @property
    def wrong(self) -> bool:
        return self.problem is not None and self.problem.startswith(WRONG)

    @property
    def median(self) -> float:
        return float(np.median(np.concatenate(self.rounds))) if self.rounds else math.nan

    @property
    def p99(self) -> float:
        return float(np.percentile(np.concatenate(self.rounds), 99)) if self.rounds else math.nan


WRONG = "wrong values"


def largest_error(got: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """The largest difference of any value."""
    return max((float(np.max(np.abs(got[name] - right), initial=0)) for name, right in expected.items()), default=0.0)


def difference(got: Mapping[str, Array], expected: Mapping[str, Array], allowed: float | None = None) -> str | None:
    """What is wrong with a contender's values; None where they are right, within `allowed` or `TOLERANCE`."""
    if got.keys() != expected.keys():
        return f"{WRONG}: it computes {', '.join(got)}, expected {', '.join(expected)}"
    for name, right in expected.items():
        tolerance = allowed or TOLERANCE["gradients" if name.startswith("d") else "values"]
        if got[name].shape != right.shape:
            return f"{WRONG}: {name} has shape {got[name].shape}, expected {right.shape}"
        off = float(np.max(np.abs(got[name] - right), initial=0) / max(np.max(np.abs(right), initial=0), 1e-30))
        if not off <= tolerance:  # NaN is not
            return f"{WRONG}: {name} is off by {off:.2g} of its largest entry, allowed {tolerance:g}"
    return None


# ------------------------------------------------------------------------------------------------------------ measuring
def measure(
    case: Case,
    threads: int,
    makers: Mapping[str, Maker],
    expected: Mapping[str, Array],
    rounds: int,
    rng: np.random.Generator,
    tick: Callable[[], object] = lambda: None,
) -> list[Result]:
    """Check every contender's values, then time those that are right.

    Parameters
    ----------
    case : Case
    threads : int
        Threads of each contender.
    makers : mapping
        The contenders by name.
    expected : mapping
        The right values by name.
    rounds : int
    rng : Generator
        Draws the order of turns.
    tick : callable
        Called after every round.
    """
    results, right = checked(case, threads, makers, expected)
    for name, timed in in_turns({n: one.call for n, one in right.items()}, threads, rounds, rng, tick).items():
        results[name].rounds = timed.rounds
    return list(results.values())


def checked(
    case: Case, threads: int, makers: Mapping[str, Maker], expected: Mapping[str, Array]
) -> tuple[dict[str, Result], dict[str, Contender]]:
    """(the results of all contenders, not timed yet; the contenders without a problem)."""
    results: dict[str, Result] = {}
    right: dict[str, Contender] = {}
    for name, make in makers.items():
        one = results[name] = Result(name)
        try:
            contender = make(case, threads)
            values = contender.values()
            one.problem = difference(values, expected, contender.tolerance)
        except Unsupported as error:
            one.problem = str(error)
        except Exception as error:  # one library's failure must not cost the others' figures
            one.problem = f"{WRONG}: none, {type(error).__name__}: {error}"
        if one.problem is None:
            right[name], one.error = contender, largest_error(values, expected)
    return results, right


@dataclass
class Turn:
    """How one contender is timed in every round: `samples` samples of `calls` calls each."""

    call: Callable[[], object]
    calls: int
    samples: int
    warm: bool

    @classmethod
    def fitted(cls, call: Callable[[], object]) -> Turn:
        """A turn as long as the constants above ask for. (The first calls are warm-up: they are often slower.)"""
        once = min(seconds(call, 1) for _ in range(3))
        once = min(seconds(call, max(1, int(LEAST_SAMPLE / once))) for _ in range(2))
        calls = max(1, math.ceil(LEAST_SAMPLE / once))
        return cls(call, calls, min(ROUND_SAMPLES, max(1, round(ROUND_SECONDS / (calls * once)))), once < ROUND_SECONDS)

    def take(self) -> list[float]:
        """One turn: seconds a call, of every sample."""
        until = time.perf_counter() + WARM_SECONDS * self.warm
        while time.perf_counter() < until:
            seconds(self.call, self.calls)
        return [seconds(self.call, self.calls) for _ in range(self.samples)]


def seconds(call: Callable[[], object], calls: int) -> float:
    """Mean seconds of a call, over `calls` of them."""
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within this context there is no garbage collection."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# ----------------------------------------------------------------------------------------------------------- summing up
@dataclass(frozen=True)
class Ratio:
    """A time divided by another: the median over rounds and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio(other: Result, ours: Result, rng: np.random.Generator) -> Ratio:
    """other's time / ours, round by round. The interval is a percentile bootstrap over rounds (Efron 1979)."""
    each = np.array([np.median(a) / np.median(b) for a, b in zip(other.rounds, ours.rounds, strict=True)])
    drawn = np.median(rng.choice(each, (RESAMPLES, len(each))), axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Ratio(float(np.median(each)), float(low), float(high))


def best(results: Iterable[Result]) -> Result | None:
    """The quickest result, of those that were timed; None without any."""
    timed = [one for one in results if one.rounds]
    return min(timed, key=lambda one: one.median) if timed else None


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    threads: int,
    rounds: int,
    rng: np.random.Generator | None = None,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Result]:
    """Time each call in its turn, in random order, `rounds` times, with a pause before a turn of several threads.

    `rng` draws the order; `tick` is called after every round.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    turns = {name: Turn.fitted(call) for name, call in calls.items()}
    results = {name: Result(name) for name in calls}
    with undisturbed():
        for _ in range(rounds):
            for name in rng.permutation(list(turns)):
                if threads > 1:
                    time.sleep(SETTLE_SECONDS)
                results[name].rounds.append(turns[name].take())
            tick()
    return results
