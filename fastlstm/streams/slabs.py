"""The memory of many states: slabs of equal size, slots in them, and handles that name a slot's present owner."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..layout import Array
from .errors import StreamClosed, StreamsFull
from .regions import LINE, Regions

SLAB = 256  # streams of a slab (FL_SLAB in csrc/api.h)
SLOT_BITS = 26  # lowest bits of a handle: the slot; the bits above are the generation (FL_SLOT_BITS)
MOST = 1 << SLOT_BITS  # slots that a handle can name
SLOT_MASK = MOST - 1
LAST_GENERATION = (1 << 63 - SLOT_BITS) - 1

# What is kept of a slot beside its record (fl_slot in csrc/api.h). The generation rises when the slot is taken and when
# it is given back, so it is odd while the slot is taken. `stamp` is the number of the last step that named the slot.
SLOT = np.dtype([("generation", "i8"), ("used", "f8"), ("steps", "u8"), ("stamp", "u8")])


class Slabs:
    """Records of equal width in slabs: a new slab moves no record and copies none.

    Parameters
    ----------
    width : int
        Numbers of a record, which is zero when its slot is taken.
    dtype : dtype
    """

    def __init__(self, width: int, dtype: np.dtype[Any]) -> None:
        self.width, self.dtype = width, dtype
        whole = LINE // dtype.itemsize
        self.stride = -(-width // whole) * whole  # numbers from one record to the next: whole cache lines
        self._regions = Regions(SLAB * self.stride, dtype)
        self.records: list[Array] = []  # (SLAB, stride) each
        self.slots: list[Array] = []  # (SLAB,) of SLOT each
        self.taken = 0
        self.counted = np.zeros(3, np.uint64)  # calls of steps; rows of these calls; number of the last call
        self._free: list[int] = []  # heap of the slots that were given back
        self.fresh = 0  # the first slot that was never taken; all above it are fresh too

    @property
    def capacity(self) -> int:
        return SLAB * len(self.records)

    @property
    def nbytes(self) -> int:
        """Bytes of all slabs."""
        return sum(a.nbytes for a in (*self.records, *self.slots))

    # ---------------------------------------------------------------------------------------------------------- slots
    def grow(self, wanted: int = 1) -> None:
        """Add a slab, the first of `wanted`; StreamsFull unless there can be so many."""
        if self.capacity + wanted * SLAB > MOST:
            raise StreamsFull(f"{MOST:,} streams are the most that a StreamBatch can hold: use several")
        self.records.append(self._regions.slab(wanted).reshape(SLAB, self.stride))
        self.slots.append(np.zeros(SLAB, SLOT))

    @property
    def free(self) -> int:
        """Slots that were given back and can be taken again."""
        return len(self._free)

    def take(self, now: float) -> int:
        """Take the lowest free slot, whose record becomes zero; returns its handle. There must be room."""
        slot = heapq.heappop(self._free) if self._free else self.fresh
        self.fresh = max(self.fresh, slot + 1)
        info = self.info(slot)
        generation = int(info["generation"]) + 1
        self.record(slot)[...] = 0
        info["used"], info["steps"], info["stamp"], info["generation"] = now, 0, 0, generation
        self.taken += 1
        return generation << SLOT_BITS | slot

    def give_back(self, slot: int) -> None:
        info = self.info(slot)
        info["generation"] += 1
        self.taken -= 1
        if info["generation"] < LAST_GENERATION:  # else the slot rests for ever: a handle is never given out twice
            heapq.heappush(self._free, slot)

    def put(self, generations: Array) -> None:
        """Set the generations of the first slots, in slabs that have them and of which no slot was ever taken."""
        for slot, generation in enumerate(generations.tolist()):
            self.info(slot)["generation"] = generation
        free = np.flatnonzero((generations % 2 == 0) & (generations < LAST_GENERATION))
        self.fresh, self.taken, self._free = len(generations), int((generations % 2).sum()), free.tolist()

    def record(self, slot: int) -> Array:
        """(width,) the numbers of a slot; a view."""
        view: Array = self.records[slot // SLAB][slot % SLAB, : self.width]
        return view

    def info(self, slot: int) -> Any:
        """The fields of `SLOT` of a slot; a view."""
        return self.slots[slot // SLAB][slot % SLAB]

    # -------------------------------------------------------------------------------------------------------- handles
    def find(self, handles: Iterable[int], once: bool = True) -> list[int]:
        """The slots of handles.

        Parameters
        ----------
        handles : integers
        once : bool
            Refuse a handle that comes twice.

        Raises
        ------
        StreamClosed
            A handle does not name a taken slot.
        ValueError
            A handle comes twice.
        """
        slots = []
        for handle in handles:
            slot = handle & SLOT_MASK
            if not self.is_open(handle):
                raise StreamClosed(self._why_closed(handle, slot))
            slots.append(slot)
        if once and len(set(slots)) < len(slots):
            twice = next(slot for slot in slots if slots.count(slot) > 1)
            raise ValueError(f"handle {self.handle(twice)} comes twice: a call takes each stream once, in any order")
        return slots

    def _why_closed(self, handle: int, slot: int) -> str:
        generation = handle >> SLOT_BITS
        given = slot < self.fresh and generation % 2 == 1 and 0 < generation <= self.info(slot)["generation"]
        if handle < 0 or not given:
            return f"handle {handle} was never given out by this StreamBatch: take handles from open or restore"
        return (
            f"the stream of handle {handle} is closed: close, export(drop=True) or an eviction gave its place back. "
            "Open a stream for further steps, with its state if that was kept: open(key, state=state)"
        )

    def is_open(self, handle: int) -> bool:
        slot, generation = handle & SLOT_MASK, handle >> SLOT_BITS
        return bool(
            generation > 0
            and generation % 2
            and slot < self.capacity
            and self.slots[slot // SLAB]["generation"][slot % SLAB] == generation
        )

    def handle(self, slot: int) -> int:
        """The handle of a taken slot."""
        return int(self.info(slot)["generation"]) << SLOT_BITS | slot

    def handles(self) -> Array:
        """(taken,) int64 handles of all taken slots, lowest slot first."""
        if not self.slots:
            return np.zeros(0, np.int64)
        generations = np.concatenate([slots["generation"] for slots in self.slots])
        at = np.flatnonzero(generations % 2)
        taken: Array = generations[at] << SLOT_BITS | at
        return taken

    def idle(self, before: float) -> Iterator[int]:
        """The taken slots that were last used before a moment, lowest first."""
        for i, slots in enumerate(self.slots):
            for row in np.flatnonzero((slots["used"] < before) & (slots["generation"] % 2 == 1)):
                yield i * SLAB + int(row)
