"""Steps of a `StreamBatch` by copies, for every backend: the reference of the extra functions "rows"."""

from __future__ import annotations

import numpy as np

from ..layout import Array
from ..num_threads import threads
from ..packing import Batch
from .model import Packed
from .slabs import Slabs


class Gathered:
    """Rows that are copied out of their slabs before a step and back after it.

    Parameters
    ----------
    packed : Packed
    slabs : Slabs
    most_threads : int
    """

    most_locked = 0  # rows of a step in whose midst no other Python thread runs

    def __init__(self, packed: Packed, slabs: Slabs, most_threads: int) -> None:
        self._packed, self._slabs, self._threads = packed, slabs, most_threads

    def add(self) -> None:
        """Called after the slabs have grown."""

    def step(self, handles: Array, x: Array, y: Array, now: float) -> bool:
        """One step of streams, each once; see `_backends.c.bind_rows`."""
        slots = self._slabs.find(handles.tolist())
        records = [self._slabs.record(slot) for slot in slots]
        states = self._packed.gather(records)
        with threads(self._threads):
            y[...] = self._packed.forward(np.ascontiguousarray(x), Batch.of(1, len(slots), None), states)
        self._packed.scatter(states, records)
        for slot in slots:
            info = self._slabs.info(slot)
            info["steps"] += 1
            info["used"] = now
        self._slabs.counted += np.array((1, len(slots), 1), np.uint64)
        return True
