"""Sequences to packed rows, sorted by their number of valid steps, and back."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy import ndarray  # a global name is found sooner than np.ndarray

from .layout import Array, RowMap, Rows
from .memory import buffers
from .validation import check_ids, checked_input, checked_lengths, checked_step_mask

INT64 = np.dtype(np.int64)  # the dtype of token ids in the engine and below


def compact_ids(ids: Array, size: int) -> tuple[Array, Array]:
    """np.unique of ids below `size`: (the ids seen, sorted, each once; the index of each id among them)."""
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
    batch_first: bool  # the caller's arrays are (B, T, .); otherwise (T, B, .)
    rows: Rows
    row_map: RowMap | None  # destination row of every packed row; None: already in order, or a mask has gaps
    order: Array | None = None  # (alive,) indices of the sequences that have steps, longest first; None: dense batch
    absent: Array | None = None  # (B - alive,) indices of the sequences without steps
    at: Array | None = None  # (N,) the caller's row of each packed row; None: dense batch
    axes: tuple[int, int] = field(init=False)  # leading axes of the caller's arrays: (B, T) with batch_first, or (T, B)
    regular: bool = field(init=False)  # a backend can write the outputs to their rows, packed or by the row map

    def __post_init__(self) -> None:
        self.axes = (self.B, self.T) if self.batch_first else (self.T, self.B)
        self.regular = self.row_map is not None or self.at is None

    @classmethod
    def of(cls, T: int, B: int, lengths: Array | None, batch_first: bool = False) -> Batch:
        if lengths is None or (lengths == T).all():
            if T <= 1024 and B <= 1024:
                return cls.dense(T, B, batch_first)
            return cls.dense.__wrapped__(cls, T, B, batch_first)  # not cached: large batches are rare, and large
        ranked = np.argsort(-lengths, kind="stable").astype(np.int64, copy=False)
        alive = np.count_nonzero(lengths)
        order = ranked[:alive]
        rows = Rows.of_lengths(lengths[order])
        row_map = RowMap(1, order * T) if batch_first else RowMap(B, order)
        return cls(T, B, batch_first, rows, row_map, order, ranked[alive:], row_map.of_rows(rows))

    @classmethod
    def of_mask(cls, mask: Array, batch_first: bool = False) -> Batch:
        """Sequences with valid steps where `mask` (T, B) is True: only these become rows."""
        T, B = mask.shape
        counts = np.count_nonzero(mask, axis=0)
        if (mask[1:] <= mask[:-1]).all():  # padding on the right only
            return cls.of(T, B, counts, batch_first)
        ranked = np.argsort(-counts, kind="stable").astype(np.int64, copy=False)
        alive = np.count_nonzero(counts)
        order, n = ranked[:alive], counts[ranked[:alive]]
        rows = Rows.of_lengths(n)
        which, t = np.nonzero(mask.T[order])  # (sequence, step) of all valid steps, sequence by sequence
        earlier = np.arange(rows.N) - np.repeat(np.cumsum(n) - n, n)  # number of the sequence's earlier valid steps
        at = np.empty(rows.N, np.int64)
        at[rows.offsets[earlier] + which] = order[which] * T + t if batch_first else t * B + order[which]
        return cls(T, B, batch_first, rows, None, order, ranked[alive:], at)

    @classmethod
    @functools.lru_cache(maxsize=32)  # an entry has up to 24 KiB, so the cache stays below 1 MiB
    def dense(cls, T: int, B: int, batch_first: bool) -> Batch:
        """B sequences of T steps each. Cached: making it takes longer than a short call."""
        moves = batch_first and T > 1 and B > 1
        row_map = RowMap(1, np.arange(B, dtype=np.int64) * T) if moves else None
        return cls(T, B, batch_first, Rows.dense(T if B else 0, B), row_map)

    def pack(self, x: Array, dtype: np.dtype[Any]) -> Array:
        """(T, B, ...) -> (N, ...) or, if dense, (T, B, ...), contiguous; x itself if it is so already."""
        if self.at is None:
            if x.dtype is not dtype or not x.flags.c_contiguous:
                given, x = x, buffers.empty(x.shape, dtype)
                x[...] = given
            return x
        given = x.swapaxes(0, 1) if self.batch_first else x
        if given.flags.c_contiguous:
            rows = given.reshape(self.T * self.B, *x.shape[2:]).take(self.at, axis=0)
        else:
            rows = given[np.divmod(self.at, self.axes[1])]
        return np.ascontiguousarray(rows, dtype)

    def room(self, width: int, dtype: np.dtype[Any]) -> Array:
        """(*axes, width) array for the outputs: zeros beyond the longest sequence and for sequences without steps."""
        y = buffers.empty((*self.axes, width), dtype)
        by_time = y.swapaxes(0, 1) if self.batch_first else y
        if self.rows.T < self.T:
            by_time[self.rows.T :] = 0
        if self.rows.B < self.B:
            by_time[: self.rows.T, self.absent] = 0
        return y

    def unpack(self, rows: Array) -> Array:
        """(N, W) -> (*axes, W), zeros at steps that do not count; the same memory if the rows are in order."""
        W = rows.shape[-1]
        if self.row_map is None and self.at is None:
            return rows.reshape(*self.axes, W)
        if self.at is None:
            x = buffers.empty((*self.axes, W), rows.dtype)
            x.swapaxes(0, 1)[...] = rows.reshape(self.T, self.B, W)
        else:
            x = buffers.zeros((*self.axes, W), rows.dtype)
            x.reshape(-1, W)[self.at] = rows
        return x

    def last(self, rows: Array) -> Array:
        """Packed rows (N, W) of every sequence's last valid step: (B, W), zeros for a sequence without any."""
        if self.order is None and self.T:
            last: Array = rows.reshape(self.T, self.B, rows.shape[-1])[-1].copy()
            return last
        r = self.rows
        y = np.zeros((self.B, rows.shape[-1]), rows.dtype)
        if r.N:
            lengths = np.searchsorted(-r.batch_sizes, -np.arange(r.B), side="left")
            y[self.order] = rows[r.offsets[lengths - 1] + np.arange(r.B)]
        return y

    def pack_states(self, states: tuple[Array, ...]) -> tuple[Array, ...]:
        """(L*D, B, .) each -> (L*D, rows.B, .): the same memory where the batch is dense, else copies."""
        if self.order is None:
            return states
        return tuple(s.take(self.order, axis=1) for s in states)

    def unpack_states(self, states: tuple[Array, ...], packed: tuple[Array, ...]) -> None:
        """Write packed states back over (L*D, B, .); sequences without steps keep what they have."""
        if self.order is not None:
            for s, rows in zip(states, packed, strict=True):
                s[:, self.order] = rows


_dense = Batch.dense  # bound once: an access through the class binds it anew at every call


def enter(
    x: Any, lengths: Any, mask: Any, size: int, dtype: np.dtype[Any], batch_first: bool
) -> tuple[Array, Batch, bool]:
    """Check and pack the arguments of a call over sequences.

    Parameters
    ----------
    x, lengths, mask
        As `LSTM` takes them.
    size, dtype, batch_first
        The layer's input_size, dtype and batch_first.

    Returns
    -------
    x : (T, B, I) array in any memory layout, or packed token ids (N,) int64
        Numbers may share memory with the argument; token ids do not.
    batch : Batch
    unbatched : bool
        Whether x came without a batch axis.
    """
    # Fast path: the checks below take longer than a short call.
    if type(x) is ndarray and x.dtype is dtype and lengths is mask is None and x.flags.c_contiguous:
        shape = x.shape
        if len(shape) == 3 and shape[2] == size and not batch_first:
            T, B = shape[0], shape[1]
            if T <= 1024 and B <= 1024:  # the bounds in `Batch.of`
                return x, _dense(T, B, False), False
            return x, Batch.of(T, B, None), False
        if len(shape) == 2 and shape[1] == size:
            return x[:, None], Batch.of(shape[0], 1, None), True
    x, ids, unbatched = checked_input(x, ("B", "T") if batch_first else ("T", "B"), size, dtype)
    batch_first = batch_first and not unbatched
    x = x[:, None] if unbatched else x.swapaxes(0, 1) if batch_first else x
    T, B = x.shape[:2]
    if mask is None:
        lengths = None if lengths is None else checked_lengths(lengths, T, B, unbatched)
        batch = Batch.of(T, B, lengths, batch_first)
    else:
        batch = Batch.of_mask(checked_step_mask(mask, lengths, T, B, unbatched, batch_first), batch_first)
    if not ids:
        return x, batch, unbatched
    rows = batch.pack(x, INT64).reshape(batch.rows.N)
    if np.may_share_memory(rows, x):
        rows = rows.copy()  # ids are memory offsets: another thread must not change them after the check
    check_ids(rows, size, dtype)
    return rows, batch, unbatched
