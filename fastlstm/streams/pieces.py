"""The input of a step, checked; and pieces of unequal length: many steps of some streams in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray  # a global name is found sooner than an attribute

from ..layout import Array
from ..packing import Batch
from ..validation import as_array
from .model import Packed
from .slabs import Slabs


def checked_lengths(lengths: Any, n: int) -> list[int]:
    """Rows of each of n streams, or an error."""
    given = as_array(lengths, "lengths")
    if given.dtype.kind not in "iu" and given.size:
        raise TypeError(f"lengths must be integers, got dtype {given.dtype}")
    if given.shape != (n,):
        raise ValueError(f"lengths has shape {given.shape}, expected ({n},): one entry for each handle")
    counts: list[int] = given.tolist()
    if counts and min(counts) < 0:
        raise ValueError(f"lengths must be 0 or more, got {min(counts)}")
    return counts


def is_one_piece(handles: Any, x: Any, lengths: Any, dtype: np.dtype[Any], row: tuple[int]) -> bool:
    """Whether the arguments are one stream's rows of numbers and two lists of one int each, which need no check."""
    return (
        type(x) is ndarray
        and type(handles) is list
        and type(lengths) is list
        and len(handles) == 1 == len(lengths)
        and type(handles[0]) is int
        and type(lengths[0]) is int
        and x.dtype is dtype
        and x.shape == (lengths[0], *row)
        and lengths[0] > 0
    )


def checked_step(x: Any, n: int, single: bool, packed: Packed) -> tuple[Array, bool, bool]:
    """The input of one step of n streams, or an error.

    Parameters
    ----------
    x : array
    n : int
    single : bool
        Whether x may come without its axis of streams.
    packed : Packed

    Returns
    -------
    rows : array
        As `validation.checked_input` returns it; token ids are checked copies.
    ids : bool
        Whether x is token ids.
    alone : bool
        Whether x has no axis of streams.
    """
    array = as_array(x, "x")
    if array.ndim and not single and len(array) != n:
        raise ValueError(f"x has {len(array)} rows for {n} handles: give one row for each handle, in their order")
    return packed.checked(x, (n,), single)


def feed(packed: Packed, slabs: Slabs, slots: list[int], rows: Array, counts: list[int], y: Array, now: float) -> None:
    """Run streams over their rows, and keep the states after them.

    Parameters
    ----------
    packed : Packed
    slabs : Slabs
    slots : list of n ints
        Where the streams lie.
    rows : (N, I) array, or (N,) int64 token ids
        Stream by stream.
    counts : list of n ints
        Rows of each stream, at least 1.
    y : (N, U) array
        Overwritten.
    now : float
        The time that counts as the streams' last use.
    """
    if len(slots) == 1:
        packed.forward_one(np.ascontiguousarray(rows), slabs.record(slots[0]), y)
    else:
        run_some(packed, [slabs.record(slot) for slot in slots], rows, np.array(counts), y)
    for slot, n in zip(slots, counts, strict=True):
        info = slabs.info(slot)
        info["steps"] += n
        info["used"] = now


def run_some(packed: Packed, records: list[Array], rows: Array, counts: Array, y: Array) -> None:
    """Run several streams over their rows, as sequences of one batch."""
    n, longest = len(records), int(counts.max())
    batch, states = Batch.of(longest, n, counts), packed.gather(records)
    if batch.order is None:  # pieces of one length: the rows need no more than two axes exchanged
        by_time = rows.reshape(n, longest, *rows.shape[1:]).swapaxes(0, 1)
        out = packed.forward(np.ascontiguousarray(by_time).reshape(rows.shape), batch, states)
        y.reshape(n, longest, -1)[...] = out.reshape(longest, n, -1).swapaxes(0, 1)
    else:
        steps = np.repeat(np.arange(batch.rows.T), batch.rows.batch_sizes)
        of_step = np.arange(batch.rows.N) - batch.rows.offsets[steps]  # number among the sequences of the step
        at = (np.cumsum(counts) - counts)[batch.order[of_step]] + steps  # the row of x of each packed row
        y[at] = packed.forward(np.ascontiguousarray(rows[at]), batch, states)
    packed.scatter(states, records)
