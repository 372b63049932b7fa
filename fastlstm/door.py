"""The input door: what users hand in is checked here, once, and packed into rows sorted by length.

Errors say what was given, what was expected, and the cure.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arena import arena
from .layout import Array, Rows


def as_numbers(given: Any, name: str, dtype: np.dtype[Any]) -> Array:
    """given as a native array of the layer's dtype (any order, any strides), or a ValueError that says the cure."""
    x: Array = np.asarray(given)
    if x.dtype is not dtype and x.dtype.newbyteorder("=") != dtype:
        if x.dtype.kind not in "fiu":
            raise TypeError(f"{name} must hold real numbers, got dtype {x.dtype}")
        raise ValueError(
            f"{name} has dtype {x.dtype}, the layer {dtype}. Convert it with {name}.astype('{dtype}'), "
            f"or make the layer with dtype='{x.dtype if x.dtype.kind == 'f' else dtype}'"
        )
    return x


def positive(value: Any, name: str, least: int = 1) -> int:
    """value as an int that is at least `least`, or an error."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def check_ids(ids: Array, size: int) -> None:
    """Raise ValueError unless every token id is a row of the input matrix."""
    if ids.size and (ids.min() < 0 or ids.max() >= size):
        raise ValueError(
            f"token ids must lie between 0 and input_size - 1 = {size - 1}, got {ids.min()} to {ids.max()}"
        )


def check_shape(x: Array, shape: tuple[int, ...], name: str, meaning: str) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} has shape {x.shape}, expected {shape}: {meaning}")


def places(ids: Array, size: int) -> tuple[Array, Array]:
    """(the ids seen, sorted, each once; for every id its place among them): np.unique, without sorting where it can."""
    if size > 4 * len(ids):
        seen, place = np.unique(ids, return_inverse=True)
        return seen, place.reshape(-1)
    there = np.zeros(size, bool)
    there[ids] = True
    return np.flatnonzero(there), (np.cumsum(there) - 1)[ids]


@dataclass
class Batch:
    """How one call's sequences became packed rows, and the way back."""

    T: int
    B: int
    rows: Rows
    order: Array | None  # (alive,) the sequences that have steps, longest first; None for a dense batch
    steps: Array | None = None  # (N,) which step, and
    which: Array | None = None  # (N,) which sequence each packed row is; None for a dense batch
    shape: tuple[int, ...] = field(init=False)  # of the packed rows: (N,) or, as it lies the same, (T, B) if dense

    def __post_init__(self) -> None:
        self.shape = (self.T, self.B) if self.order is None else (self.rows.N,)

    @classmethod
    def of(cls, T: int, B: int, lengths: Array | None) -> Batch:
        if lengths is None or (lengths == T).all():
            return cls.dense(T, B) if T <= 1024 else cls.dense.__wrapped__(cls, T, B)  # long ones are rare, and large
        order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
        rows = Rows.of_lengths(lengths[order])
        steps = np.repeat(np.arange(rows.T), rows.batch_sizes)
        return cls(T, B, rows, order, steps, order[np.arange(rows.N) - rows.offsets[steps]])

    @classmethod
    @functools.lru_cache(maxsize=32)  # of up to 16 KiB each: a process with ever new shapes stays as large as it is
    def dense(cls, T: int, B: int) -> Batch:
        """B sequences of T steps each. Remembered: making it takes longer than a short call."""
        return cls(T, B, Rows.dense(T if B else 0, B), None)

    def pack(self, x: Array, dtype: Any) -> Array:
        """(T, B, ...) -> (*shape, ...), contiguous; x itself where nothing has to move."""
        if self.order is None:
            if x.dtype is not dtype or not x.flags.c_contiguous:
                given, x = x, arena.empty(x.shape, dtype)
                x[...] = given
            return x
        return np.ascontiguousarray(x[self.steps, self.which], dtype)

    def unpack(self, rows: Array, batch_first: bool = False) -> Array:
        """(*shape, W) or (N, W) -> (T, B, W) or, at once, (B, T, W), zeros where no sequence is.

        The same memory where nothing moves.
        """
        if self.order is None and rows.ndim == 3 and not batch_first:
            return rows
        T, B, W = self.T, self.B, rows.shape[-1]
        if self.order is None and (not batch_first or min(T, B) == 1):
            return rows.reshape((B, T, W) if batch_first else (T, B, W))
        room = arena.empty if self.order is None else arena.zeros
        x = room((B, T, W) if batch_first else (T, B, W), rows.dtype)
        by_time = x.swapaxes(0, 1) if batch_first else x
        if self.order is None:
            by_time[...] = rows.reshape(T, B, W)
        else:
            by_time[self.steps, self.which] = rows
        return x

    def pack_states(self, h: Array, c: Array | None) -> tuple[Array, Array | None]:
        """(L*D, B, .) -> (L*D, rows.B, .): the same memory where the batch is dense, else copies."""
        if self.order is None:
            return h, c
        return h.take(self.order, axis=1), None if c is None else c.take(self.order, axis=1)

    def unpack_states(self, h: Array, c: Array | None, h_rows: Array, c_rows: Array | None) -> None:
        """Write packed states back over (L*D, B, .); sequences without steps keep what they have."""
        if self.order is not None:
            h[:, self.order] = h_rows
            if c is not None:
                c[:, self.order] = c_rows
