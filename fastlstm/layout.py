"""The layout of packed rows, outputs, tapes and parameters, and initialisation.

Rows come *packed*, as in PyTorch's PackedSequence: sequences sorted by length, longest first, time-major. Row
``offsets[t] + b`` is step t of the b-th longest sequence; ``batch_sizes[t]`` sequences are at least t + 1 steps long.
A dense batch (T, B, I) is packed already: its reshape to (T * B, I). Padding has no rows, so it costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .spec import Spec

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """The packed rows of a batch: the step and the sequence of each.

    Parameters
    ----------
    batch_sizes : (T,) int64 array, non-increasing, every entry at least 1
        The number of sequences that have each step.
    """

    batch_sizes: Array
    offsets: Array = field(init=False)  # (T + 1,) first row of each step, then N
    T: int = field(init=False)
    B: int = field(init=False)  # number of sequences: the rows of every state array
    N: int = field(init=False)
    handles: dict[str, Any] = field(init=False, compare=False)  # backends cache here what they derive from the rows

    def __post_init__(self) -> None:
        sizes = self.batch_sizes
        known = {
            "offsets": np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
            "T": len(sizes),
            "B": int(sizes[0]) if len(sizes) else 0,
            "N": int(sizes.sum()),
            "handles": {},
        }
        for name, value in known.items():
            object.__setattr__(self, name, value)

    @classmethod
    def dense(cls, T: int, B: int) -> Rows:
        """Rows of B sequences of T steps each."""
        return cls(np.full(T, B, np.int64))

    @classmethod
    def of_lengths(cls, lengths: Array) -> Rows:
        """Rows of sequences with these lengths: (B,), sorted, longest first, none of length 0."""
        T = lengths[0] if len(lengths) else 0
        return cls(np.searchsorted(-lengths, -np.arange(T), side="left").astype(np.int64))

    def cut(self, every: int) -> list[tuple[Rows, slice]]:
        """Stretches of `every` steps (the last may be shorter): (its rows, their slice of all rows) each."""
        starts = range(0, self.T, every)
        bounds = [(t, min(t + every, self.T)) for t in starts]
        return [(Rows(self.batch_sizes[a:b]), slice(int(self.offsets[a]), int(self.offsets[b]))) for a, b in bounds]

    def steps(self, reverse: bool) -> range:
        """The steps in the order in which a direction walks them."""
        return range(self.T - 1, -1, -1) if reverse else range(self.T)


@dataclass(frozen=True)
class RowMap:
    """The rows of outputs that are not packed: step t of the b-th longest sequence has row ``t * step + sequences[b]``.

    Parameters
    ----------
    step : int
        Rows from one step of a sequence to the next.
    sequences : (B,) int64 array
        The first step's row of each sequence.
    """

    step: int
    sequences: Array

    def of_rows(self, rows: Rows) -> Array:
        """(N,) the output row of each packed row."""
        steps = np.repeat(np.arange(rows.T), rows.batch_sizes)
        at: Array = steps * self.step + self.sequences[np.arange(rows.N) - rows.offsets[steps]]
        return at


def parts_of_tape(spec: Spec, tape: Array, rows: Rows) -> dict[str, Array]:
    """Views of a tape by name: the parts of ``spec.tape`` (N, width), then those of ``spec.initial`` (B, width)."""
    parts: dict[str, Array] = {}
    at = 0
    for count, widths in ((rows.N, spec.tape), (rows.B, spec.initial)):
        for name, width in widths.items():
            parts[name] = tape[at : at + count * width].reshape(count, width)
            at += count * width
    return parts


def begin_tape(spec: Spec, tape: Array, rows: Rows, states: tuple[Array, ...]) -> dict[str, Array]:
    """`parts_of_tape`, after copying the initial states (B, width) to their parts."""
    parts = parts_of_tape(spec, tape, rows)
    for name, state in zip(spec.initial, states, strict=True):
        parts[name][...] = state
    return parts


def suffix(layer: int, direction: int) -> str:
    """PyTorch's ending of the parameter names of one direction of one layer."""
    return f"_l{layer}_reverse" if direction else f"_l{layer}"


def uniform(shape: tuple[int, ...], hidden_size: int, rng: np.random.Generator, dtype: Any) -> Array:
    """PyTorch's default initialisation: uniform in +-1/sqrt(H)."""
    k = 1.0 / np.sqrt(hidden_size) if hidden_size > 0 else 0.0
    return rng.uniform(-k, k, shape).astype(dtype)


def draw(spec: Spec, rng: np.random.Generator, dtype: Any) -> dict[str, Array]:
    """Initial parameters of one direction, in ``spec.parameters``' order."""
    return {name: uniform(shape, spec.H, rng, dtype) for name, shape in spec.parameters.items()}
