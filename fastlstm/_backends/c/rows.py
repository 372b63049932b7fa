"""Steps of some of many streams, whose states lie in slabs."""

from __future__ import annotations

from typing import Any

from ...layout import Array
from .calls import FLOATS, INTS, NULL, from_buffer, new, of_its_own, pointer
from .extension import ffi, lib
from .recurrent import Block

if ffi is not None:
    SLOTS = ffi.typeof("fl_slot[]")
    UNSIGNED = ffi.typeof("uint64_t[]")


class BoundRows:
    """Packed weights and slabs, bound to C; see `bind_rows`."""

    def __init__(self, blocks: list[Block], slabs: Any, threads: int) -> None:
        self._slabs, self._known, self._room = slabs, 0, 0
        self._blocks = blocks, new("fl_block *[]", [k.handle for k in blocks])
        self._alive: list[Any] = []  # the arrays that the pointers point to
        self._records, self._slots = new("float *[]", 1), new("fl_slot *[]", 1)
        self._struct = new(
            "fl_streams *",
            {
                "blocks": self._blocks[1],
                "L": len(blocks),
                "threads": threads,
                "stride": slabs.stride,
                "counted": from_buffer(UNSIGNED, slabs.counted),
            },
        )
        self.most_locked = max(0, (lib.fl_locked_work - 1) // sum(k.work for k in blocks))
        self.add()
        self.reserve(1)

    def add(self) -> None:
        """Bind the slabs that are new; called after the slabs have grown."""
        have = len(self._slabs.records)
        if have > self._known:
            if have > len(self._records):
                room = 2 * have
                records, slots = new("float *[]", room), new("fl_slot *[]", room)
                size = ffi.sizeof("float *") * self._known
                ffi.memmove(records, self._records, size)
                ffi.memmove(slots, self._slots, size)
                self._records, self._slots = records, slots
            for i in range(self._known, have):
                record, slot = pointer(self._slabs.records[i]), from_buffer(SLOTS, self._slabs.slots[i])
                self._records[i], self._slots[i] = record, slot
                self._alive.append((record, slot))
            self._struct.records, self._struct.slots = self._records, self._slots
            self._known = self._struct.slabs = have

    def reserve(self, n: int) -> None:
        """Scratch memory for steps of at most n rows."""
        self._memory = of_its_own(lib.fl_rows_scratch(self._struct, n))
        self._struct.scratch = pointer(self._memory)
        self._room = n

    def step(self, handles: Array, x: Array, y: Array, now: float) -> bool:
        """One step of streams; see `bind_rows`."""
        n = handles.size
        if n == 1 and x.ndim == 2 and self.most_locked:
            return self.step_one(handles.item(), x, y, now)
        if n > self._room:
            self.reserve(max(n, 2 * self._room))
        function = lib.flq_step_rows if n <= self.most_locked else lib.fl_step_rows
        try:
            rows = (from_buffer(FLOATS, x), NULL) if x.ndim == 2 else (NULL, from_buffer(INTS, x))
            done = function(self._struct, from_buffer(INTS, handles), n, *rows, from_buffer(FLOATS, y), now)
        except ValueError:  # an array is not contiguous
            return False
        return bool(done)

    def step_one(self, handle: int, x: Array, y: Array, now: float) -> bool:
        """The same for one stream, x (I,) and y (R,), where most_locked is not 0."""
        try:
            done = lib.flq_step_row(self._struct, handle, from_buffer(FLOATS, x), from_buffer(FLOATS, y), now)
        except (ValueError, OverflowError):
            return False
        return bool(done)


def bind_rows(blocks: list[Block], slabs: Any, threads: int) -> BoundRows:
    """One step of some of many streams, with weights and slabs bound.

    Parameters
    ----------
    blocks : list of L blocks, one direction each
    slabs : fastlstm.streams.slabs.Slabs
        The states. After they have grown, ``add`` is called.
    threads : int
        Most threads of a step.

    Returns
    -------
    rows : object
        Its ``step(handles, x, y, now)`` takes handles (n,), x (n, I) or token ids (n,), y (n, R), which is overwritten,
        and the time; it returns False, with no state changed, where a handle is not that of an open stream or comes
        twice, or an array is not contiguous. ``step_one`` is the same for one stream. Steps of at most ``most_locked``
        rows keep Python's lock.
    """
    return BoundRows(blocks, slabs, threads)
