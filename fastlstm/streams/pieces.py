"""The input of a step, checked; and pieces of unequal length: many steps of some streams in one call."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..layout import Array
from ..packing import Batch
from ..validation import as_array
from .model import Packed
from .slabs import Slabs


def checked_lengths(lengths: Any, n: int) -> Array:
    """Rows of each of n streams as (n,) int64, or an error."""
    counts = as_array(lengths, "lengths")
    if counts.dtype.kind not in "iu" and counts.size:
        raise TypeError(f"lengths must be integers, got dtype {counts.dtype}")
    if counts.shape != (n,):
        raise ValueError(f"lengths has shape {counts.shape}, expected ({n},): one entry for each handle")
    if counts.size and counts.min() < 0:
        raise ValueError(f"lengths must be 0 or more, got {counts.min()}")
    return counts.astype(np.int64)


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


def feed(packed: Packed, slabs: Slabs, slots: list[int], rows: Array, counts: Array, y: Array, now: float) -> None:
    """Run streams over their rows, and keep the states after them.

    Parameters
    ----------
    packed : Packed
    slabs : Slabs
    slots : list of n ints
        Where the streams lie.
    rows : (N, I) array, or (N,) int64 token ids
        Stream by stream.
    counts : (n,) int64 array
        Rows of each stream, at least 1.
    y : (N, U) array
        Overwritten.
    now : float
        The time that counts as the streams' last use.
    """
    batch = Batch.of(int(counts.max()), len(slots), counts)
    steps = np.repeat(np.arange(batch.rows.T), batch.rows.batch_sizes)
    of_step = np.arange(batch.rows.N) - batch.rows.offsets[steps]  # number among the sequences of the step
    order = np.arange(len(slots)) if batch.order is None else batch.order
    at = (np.cumsum(counts) - counts)[order[of_step]] + steps  # the row of x of each packed row
    records = [slabs.record(slot) for slot in slots]
    states = packed.gather(records)
    y[at] = packed.forward(np.ascontiguousarray(rows[at]), batch, states)
    packed.scatter(states, records)
    for slot, n in zip(slots, counts, strict=True):
        info = slabs.info(slot)
        info["steps"] += n
        info["used"] = now
