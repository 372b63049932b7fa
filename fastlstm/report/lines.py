"""Figures with their bounds, and calls that take turns: ``fastlstm bench --streams`` and ``--embedded``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..layout import Array
from ..streams import StreamBatch
from . import measure
from .measure import Ratio, Result, Turn
from .page import microseconds

ONE, OTHER = "ours", "other"


@dataclass
class Line:
    """One figure.

    Parameters
    ----------
    part : str
    what : str
    ratio : float
    wanted : float, optional
        Its bound: at least so much, or, where `at_most`, at most. None: the figure is only reported.
    low, high : float, optional
        95 % interval of the ratio.
    detail : str
        The two figures that the ratio is of.
    allowed : bool
        Whether the figure counts as reached although the ratio misses its bound.
    """

    part: str
    what: str
    ratio: float
    wanted: float | None
    at_most: bool = False
    low: float | None = None
    high: float | None = None
    detail: str = ""
    allowed: bool = False

    @property
    def reached(self) -> bool:
        if self.allowed or self.wanted is None:
            return True
        return self.ratio <= self.wanted if self.at_most else self.ratio >= self.wanted


@dataclass
class Report:
    """A whole run."""

    facts: dict[str, str]
    rounds: int
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def chosen(words: Sequence[str], parts: Iterable[str], of: str) -> list[str]:
    """The parts with these names; all without any."""
    every = list(parts)
    for word in words:
        if word not in every:
            raise ValueError(f"no part of the {of} is called {word!r}; there are {', '.join(every)}")
    return [name for name in every if not words or name in words]


# ------------------------------------------------------------------------------------------------------------ in turns
def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int, rng: np.random.Generator) -> dict[str, Result]:
    """Times of calls that take turns."""
    turns = {name: Turn.fitted(call) for name, call in calls.items()}
    results = {name: Result(name) for name in calls}
    with measure.undisturbed():
        for _ in range(rounds):
            for name in rng.permutation(list(turns)):
                results[name].rounds.append(turns[name].take())
    return results


def compared(
    part: str, what: str, one: Result, other: Result, wanted: float | None = None, at_most: bool = False
) -> Line:
    """other's time by ours, at least `wanted`; with `at_most` ours by other's, at most `wanted`."""
    upper, lower = (one, other) if at_most else (other, one)
    r: Ratio = measure.ratio(upper, lower, np.random.default_rng(0))
    detail = f"{microseconds(upper.median)} / {microseconds(lower.median)}"
    return Line(part, what, r.value, wanted, at_most, r.low, r.high, detail)


def opened(layer: Any, n: int) -> tuple[StreamBatch, Array]:
    batch = StreamBatch(layer, capacity=n)
    return batch, np.array([batch.open() for _ in range(n)])


def draw(n: int, width: int) -> Array:
    return np.random.default_rng(n).standard_normal((n, width)).astype(np.float32)
