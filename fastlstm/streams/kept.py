"""The states of streams as bytes and in files. A base of `StreamBatch`."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..layout import Array
from ..validation import flag
from .open import OpenStreams, as_handles
from .records import decode
from .snapshots import read, write

if TYPE_CHECKING:
    from typing_extensions import Self


class KeptStreams(OpenStreams):
    """Streams whose states can be taken out and put back: see `StreamBatch`."""

    def open(self, key: Hashable = None, *, state: bytes | None = None) -> int:
        """Begin a stream.

        Parameters
        ----------
        key : hashable, optional
            A name of your own, by which `handle_of` finds the stream.
        state : bytes, optional
            What `export` returned; None begins with a state of zeros.

        Returns
        -------
        handle : int
            Names this stream and no later one: after `close` it is never given out again.

        Raises
        ------
        StreamsFull
            max_streams are open, and none has been idle for idle_seconds.
        StateError
            The bytes do not fit; see `restore`.
        ValueError
            The key has an open stream.
        """
        if state is not None:
            return int(self.restore([state], keys=[key])[0])
        self._check_free()
        self._check_key(key)
        self._make_room(1)
        return self._take(key)

    @property
    def weights_id(self) -> bytes:
        """16 bytes that tell equation and weights from all others; state bytes carry them."""
        return self._packed.weights_id

    def export(self, handles: Any, drop: bool = False) -> list[bytes]:
        """The states of streams as bytes, which `open` and `restore` take, in this process or another.

        Parameters
        ----------
        handles : int, or (n,) integers
        drop : bool
            Close the streams.

        Returns
        -------
        states : list of n bytes
            A header with version, sizes and the number of the weights, the numbers, and a checksum.

        Raises
        ------
        StreamClosed, ValueError
            As `close`.
        """
        self._check_free()
        drop, slots = flag(drop, "drop"), self._slabs.find(as_handles(handles).tolist())
        states = [self._encoded(slot) for slot in slots]
        self._counts["exported"] += len(states)
        if drop:
            self._close(slots)
            self._counts["closed"] += len(slots)
        return states

    def restore(
        self, states: Iterable[bytes], *, keys: Sequence[Hashable] | None = None, other_weights: bool = False
    ) -> Array:
        """Begin streams with states that `export` returned.

        Parameters
        ----------
        states : list of n bytes
        keys : list of n keys, optional
        other_weights : bool
            Take states that were made with other weights of the same equation, such as those before more training.

        Returns
        -------
        handles : (n,) int64 array

        Raises
        ------
        StateError
            A state is damaged, cut short, or of another version, other sizes or other weights.
        StreamsFull, ValueError, TypeError
            No room for all; a key has an open stream or comes twice. No stream is opened then.
        """
        self._check_free()
        if isinstance(states, (bytes, bytearray, memoryview)):
            raise TypeError(f"states is a list, got {type(states).__name__}: for one stream give [state]")
        states, p, other_weights = list(states), self._packed, flag(other_weights, "other_weights")
        names: Sequence[Hashable] = [None] * len(states) if keys is None else list(keys)
        if len(names) != len(states):
            raise ValueError(f"there are {len(names)} keys for {len(states)} states: give one for each, or None")
        named = [name for name in names if name is not None]
        for name in named:
            self._check_key(name)
        if len(set(named)) < len(named):
            raise ValueError(f"key {next(n for n in named if named.count(n) > 1)!r} comes twice")
        expected = None if other_weights else p.weights_id
        read = [
            decode(state, p.widths, p.dtype, expected, f"state {i}" if len(states) > 1 else "state")
            for i, state in enumerate(states)
        ]
        self._make_room(len(read))
        return np.array([self._opened(*one, name) for one, name in zip(read, names, strict=True)], np.int64)

    def _opened(self, numbers: Array, steps: int, key: Hashable) -> int:
        """Begin a stream with a state, for which there is room."""
        handle = self._take(key)
        (slot,) = self._slabs.find([handle])
        self._slabs.record(slot)[...] = numbers
        self._slabs.info(slot)["steps"] = steps
        self._counts["restored"] += 1
        return handle

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Write all streams to one file, atomically: states, handles and keys; `load` reads it.

        Raises
        ------
        OSError
            The file cannot be written; an old one is untouched.
        TypeError
            A key is no str, bytes or int, which alone a file can hold.
        """
        self._check_free()
        write(self, path)

    @classmethod
    def load(cls, model: Any, path: str | os.PathLike[str], **options: Any) -> Self:
        """The streams of a `snapshot`, with their handles and keys.

        Parameters
        ----------
        model : layer
            With the weights that the states were made with.
        path : path
        options
            As for `StreamBatch`; `capacity` and `max_streams` grow to hold all.

        Raises
        ------
        OSError
            The file cannot be read.
        FileError, StateError
            It is damaged or no snapshot; or it belongs to another model or to other weights.
        """
        batch = cls(model, **options)
        read(batch, path)
        return batch

    def stats(self) -> dict[str, Any]:
        """Counts since the StreamBatch was made, and its present size.

        Returns
        -------
        stats : dict
            streams, capacity, max_streams; opened, closed, evicted, exported, restored; calls of `step` and rows
            of these calls; state_bytes, the numbers of one stream; memory_bytes, all slabs without keys.
        """
        return {
            "streams": len(self),
            "capacity": self._slabs.capacity,
            "max_streams": self.max_streams,
            **self._counts,
            "calls": int(self._slabs.counted[0]),
            "rows": int(self._slabs.counted[1]),
            "state_bytes": self._slabs.width * self._slabs.dtype.itemsize,
            "memory_bytes": self._slabs.nbytes,
        }
