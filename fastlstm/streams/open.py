"""Which streams are open, by which handle and key, and which are idle. A base of `StreamBatch`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, KeysView
from typing import Any

import numpy as np

from ..layout import Array
from ..validation import as_array, number, positive
from .errors import StreamsFull
from .model import Packed, packed_of
from .records import encode
from .slabs import SLAB, Slabs

Evicted = Callable[[Any, bytes], object]
AT_ONCE = 16  # streams that `open` evicts, at most, where it finds no room
INT64 = np.dtype(np.int64)


def as_handles(given: Any) -> Array:
    """(n,) int64 handles from one handle, a sequence or an array, or an error."""
    handles = as_array(given, "handles")
    if handles.size == 0 and handles.ndim < 2:
        return np.zeros(0, np.int64)
    if handles.dtype.kind not in "iu":
        raise TypeError(f"handles are integers, as open and handle_of return them, got dtype {handles.dtype}")
    if handles.ndim > 1:
        raise ValueError(f"handles has shape {handles.shape}, expected one handle or (n,) handles")
    if handles.dtype == np.uint64 and handles.max() > np.iinfo(np.int64).max:
        raise ValueError(f"handles are below 2^63, got {handles.max()}")
    return np.ascontiguousarray(handles.reshape(-1), np.int64)


class OpenStreams:
    """The open streams of a model: see `StreamBatch`."""

    def __init__(
        self,
        model: Any,
        capacity: int,
        max_streams: int | None,
        idle_seconds: float | None,
        on_evict: Evicted | None,
        clock: Callable[[], float],
    ) -> None:
        self._packed: Packed = packed_of(model)
        self.max_streams = None if max_streams is None else positive(max_streams, "max_streams")
        self.idle_seconds = None if idle_seconds is None else number(idle_seconds, "idle_seconds")
        if on_evict is not None and not callable(on_evict):
            raise TypeError(f"on_evict must be a function of (key, state), got {on_evict!r}")
        self.on_evict, self._clock = on_evict, clock
        self._slabs = Slabs(sum(self._packed.widths), self._packed.dtype)
        self._handles: dict[Hashable, int] = {}  # by key
        self._keys: dict[int, Hashable] = {}  # by handle
        self._busy = False  # a step is under way that has let go of Python's lock
        self._counts = dict.fromkeys(("opened", "closed", "evicted", "exported", "restored"), 0)
        capacity = positive(capacity, "capacity")
        self._capacity = min(capacity, self.max_streams or capacity)

    # ----------------------------------------------------------------------------------------------------------- basics
    def _grown(self) -> None:
        """Called after each new slab."""

    def _check_free(self) -> None:
        """Raise RuntimeError while another thread is in a step."""
        if self._busy:
            raise RuntimeError(
                "another thread is in the midst of a step of this StreamBatch, which serves one thread at a time: "
                "give each thread a StreamBatch of its own, or take a lock around every call"
            )

    def reserve(self, n: int) -> None:
        """Make room for n streams in all, so that `open` need not.

        Raises
        ------
        StreamsFull
            n is above max_streams.
        """
        self._check_free()
        n = positive(n, "n")
        if self.max_streams is not None and n > self.max_streams:
            raise StreamsFull(f"there cannot be room for {n} streams: max_streams is {self.max_streams}")
        self._reserve(n)

    def _reserve(self, slots: int) -> None:
        while self._slabs.capacity < slots:
            self._slabs.grow(wanted=-(-(slots - self._slabs.capacity) // SLAB))
            self._grown()

    def __len__(self) -> int:
        return self._slabs.taken

    def __contains__(self, handle: object) -> bool:
        return (
            isinstance(handle, (int, np.integer)) and not isinstance(handle, bool) and self._slabs.is_open(int(handle))
        )

    def keys(self) -> KeysView[Hashable]:
        """The keys of the open streams that have one."""
        return self._handles.keys()

    def handles(self) -> Array:
        """(n,) int64 handles of all open streams."""
        return self._slabs.handles()

    def handle_of(self, key: Hashable) -> int:
        """The handle of the stream with this key.

        Raises
        ------
        KeyError
            No open stream has it.
        """
        return self._handles[key]

    def key_of(self, handle: int) -> Any:
        """The key of a stream; None where it has none."""
        return self._keys.get(self._slabs.handle(self._slot(handle)))

    def steps(self, handle: int) -> int:
        """The steps that a stream has done since its beginning, those before a restore included.

        Raises
        ------
        StreamClosed
        """
        return int(self._slabs.info(self._slot(handle))["steps"])

    def _slot(self, handle: Any) -> int:
        (slot,) = self._slabs.find(as_handles([handle]).tolist())
        return slot

    # ------------------------------------------------------------------------------------------------- opening, closing
    def _check_key(self, key: Hashable) -> None:
        if key is not None and key in self._handles:
            raise ValueError(
                f"key {key!r} has an open stream, {self._handles[key]}: close it first, or go on with handle_of(key)"
            )

    def _take(self, key: Hashable) -> int:
        handle = self._slabs.take(self._clock())
        if key is not None:
            self._handles[key] = handle
            self._keys[handle] = key
        self._counts["opened"] += 1
        return handle

    def _make_room(self, n: int) -> None:
        """Room for n more streams, or StreamsFull."""
        most = self.max_streams
        if most is not None and len(self) + n > most:
            if self.idle_seconds is not None:
                self.evict_idle(at_most=max(AT_ONCE, len(self) + n - most))
            if len(self) + n > most:
                idle = "none has been idle for so long" if self.idle_seconds is not None else "idle_seconds is not set"
                raise StreamsFull(
                    f"{len(self)} streams are open and max_streams is {most}; {idle}. Close streams, evict some "
                    "(evict_idle), or turn the client away"
                )
        self._reserve(self._slabs.fresh + max(0, n - self._slabs.free))

    def close(self, handles: Any) -> None:
        """End streams; their handles name nothing from now on.

        Parameters
        ----------
        handles : int, or (n,) integers

        Raises
        ------
        StreamClosed, ValueError
            A handle is closed or comes twice; all streams stay open then.
        """
        self._check_free()
        slots = self._slabs.find(as_handles(handles).tolist())
        self._close(slots)
        self._counts["closed"] += len(slots)

    def _close(self, slots: Iterable[int]) -> None:
        for slot in slots:
            key = self._keys.pop(self._slabs.handle(slot), None)
            if key is not None:
                del self._handles[key]
            self._slabs.give_back(slot)

    def reset(self, handles: Any) -> None:
        """Set the states of streams to zero. Errors as `close`."""
        self._check_free()
        for slot in self._slabs.find(as_handles(handles).tolist()):
            self._slabs.record(slot)[...] = 0
            self._slabs.info(slot)["steps"] = 0

    def copy(self, handle: int, key: Hashable = None) -> int:
        """Begin a stream with the state of another one; returns its handle. Errors as `open` and `close`."""
        self._check_free()
        self._check_key(key)
        self._slot(handle)
        self._make_room(1)
        slot = self._slot(handle)  # not evicted to make room
        new = self._take(key)
        to = self._slot(new)
        self._slabs.record(to)[...] = self._slabs.record(slot)
        self._slabs.info(to)["steps"] = self._slabs.info(slot)["steps"]
        return new

    # ----------------------------------------------------------------------------------------------------- idle streams
    def _encoded(self, slot: int) -> bytes:
        p = self._packed
        return encode(self._slabs.record(slot), p.widths, int(self._slabs.info(slot)["steps"]), p.weights_id)

    def evict_idle(self, seconds: float | None = None, at_most: int = 1024) -> list[tuple[Any, bytes]]:
        """Close streams that have done no step for some time.

        Parameters
        ----------
        seconds : float, optional
            idle_seconds where None.
        at_most : int

        Returns
        -------
        evicted : list of (key, state)
            Each was given to on_evict, if there is one, before its stream was closed: a stream for which on_evict
            raises stays open.
        """
        self._check_free()
        seconds = self.idle_seconds if seconds is None else number(seconds, "seconds")
        if seconds is None:
            raise ValueError("evict_idle needs a time: give seconds, or make the StreamBatch with idle_seconds")
        at_most, evicted = positive(at_most, "at_most", 0), []
        slots = self._slabs.idle(self._clock() - seconds)
        for _, slot in zip(range(at_most), slots, strict=False):
            key, state = self._keys.get(self._slabs.handle(slot)), self._encoded(slot)
            if self.on_evict is not None:
                self.on_evict(key, state)
            self._close([slot])
            self._counts["evicted"] += 1
            evicted.append((key, state))
        return evicted
