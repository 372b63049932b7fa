"""`StreamBatch`: many independent streams over one set of weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy import empty, ndarray  # global names are found sooner than attributes

from ..layout import Array
from ..num_threads import get_num_threads
from ..num_threads import threads as limited_to
from ..validation import as_array, check_out, flag, positive
from .gathered import Gathered
from .kept import KeptStreams
from .model import packed_of
from .open import INT64, Evicted, as_handles
from .pieces import checked_lengths, checked_step, feed, is_one_piece

NO_LIMIT = nullcontext()  # `limited_to` takes a microsecond


class StreamBatch(KeptStreams):
    """Many independent streams over one set of weights: a state each, stepped together in any choice.

    Each stream gets the bits that it would get alone (backend "c"). NaN stays in its stream. An error is raised before
    any state changes. One thread at a time may use a StreamBatch; each thread may have its own.

    Parameters
    ----------
    model : LSTM, GRU or RNN; list of layers and activations, such as ``[lstm, dense, "sigmoid"]``; or Sequential
        Of one direction. Its weights of this moment are taken; later changes to the layers do not reach the streams.
    capacity : int
        Streams for which there is room at once. More room is made when it is needed, without a copy of any state.
    max_streams : int, optional
        Most streams that may be open. None: no limit but memory.
    idle_seconds : float, optional
        Where max_streams are open, `open` closes streams that have done no step for so long. `evict_idle` does so at
        any time.
    on_evict : function of (key, state), optional
        Gets each stream's key and state bytes before it is closed for being idle. Without it such states are lost.
    threads : int
        Most threads of a step; each short step uses one whatever the number.
    clock : function
        The time in seconds.

    Attributes
    ----------
    dtype : dtype
    input_size, output_size : int
        Numbers of a row of x, I, and of y, U.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; a bidirectional layer has no stream, and a list is of float32.
    """

    def __init__(
        self,
        model: Any,
        *,
        capacity: int = 256,
        max_streams: int | None = None,
        idle_seconds: float | None = None,
        on_evict: Evicted | None = None,
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(model, capacity, max_streams, idle_seconds, on_evict, clock)
        self.threads = positive(threads, "threads")
        self._bind()
        self.reserve(self._capacity)

    def _bind(self) -> None:
        """Take the packed weights into use."""
        p = self._packed
        self.dtype, self.input_size, self.output_size = p.dtype, p.input_size, p.output_size
        self._size = p.input_size if p.takes_numbers else -1  # width of a row of numbers
        self._row = (self._size,)
        self._rows: Any = (
            Gathered(p, self._slabs, self.threads)
            if p.rows is None
            else p.module.bind_rows(p.rows, self._slabs, self.threads)
        )

    def _grown(self) -> None:
        self._rows.add()

    # ------------------------------------------------------------------------------------------------------------ step
    def step(self, handles: Any, x: Any, out: Array | None = None) -> Array:
        """One step of some streams.

        Parameters
        ----------
        handles : (n,) int64 array; or any integers (n,), or one
            Each at most once, in any order.
        x : (n, I) array of the model's dtype, one row for each handle; (I,) for one handle; token ids (n,), or a scalar
            A recurrent layer takes numbers or ids; a model that begins with an Embedding takes ids.
        out : (n, U) array, optional
            Written and returned; (U,) where x is (I,) or a scalar. Without it a fresh array is returned.

        Returns
        -------
        y : (n, U) or (U,) array

        Raises
        ------
        StreamClosed, ValueError, TypeError
            A handle is closed or comes twice, or x or out do not fit; all states are as before.
        """
        # Fast path: all checks of arrays in a few lines, since they may cost more than a small step.
        if (
            type(handles) is ndarray
            and handles.ndim == 1
            and handles.size
            and type(x) is ndarray
            and handles.dtype is INT64
            and x.dtype is self.dtype
            and x.shape == (handles.size, self._size)
            and out is None
        ):
            y: Array = empty((handles.size, self.output_size), self.dtype)
            rows = self._rows
            if handles.size <= rows.most_locked and not self._busy:
                if rows.step(handles, x, y, self._clock()):
                    return y
            elif self._step(handles, x, y):
                return y
        elif type(handles) is int and out is None and (one := self._step_one(handles, x)) is not None:
            return one
        return self._step_any(handles, x, out)

    def _step(self, handles: Array, x: Array, y: Array) -> bool:
        """A step with checked arrays; False where a handle is refused or an array is not contiguous."""
        if self._busy:
            self._check_free()
        rows = self._rows
        if handles.size <= rows.most_locked:
            done: bool = rows.step(handles, x, y, self._clock())
            return done
        self._busy = True
        try:
            done = rows.step(handles, x, y, self._clock())
        finally:
            self._busy = False
        return done

    def _step_one(self, handle: int, x: Any) -> Array | None:
        """A short step of one stream; None where an argument is refused or takes another way."""
        if type(x) is ndarray and x.dtype is self.dtype and x.shape == self._row and not self._busy:
            y = empty(self.output_size, self.dtype)
            if self._rows.most_locked and self._rows.step_one(handle, x, y, self._clock()):
                return y
        return None

    def _step_any(self, handles: Any, x: Any, out: Array | None) -> Array:
        """`step` with all checks, for every kind of input and output."""
        given, single = as_handles(handles), np.ndim(handles) == 0
        rows, ids, alone = checked_step(x, len(given), single, self._packed)
        shape = (self.output_size,) if alone else (len(given), self.output_size)
        if out is not None:
            check_out(out, shape, self.dtype)
        y = empty(shape, self.dtype) if out is None or np.may_share_memory(out, rows) else out
        rows = rows.reshape(len(given)) if ids else np.ascontiguousarray(rows, self.dtype).reshape(-1, self._size)
        self._check_free()
        if len(given) and not self._step(given, rows, y.reshape(len(given), self.output_size)):
            self._slabs.find(given.tolist())  # raises the error that says which handle is refused
            raise AssertionError("a step refused handles that are open")
        if out is None or y is out:
            return y
        out[...] = y
        return out

    def row(self, x: Any) -> Any:
        """What `step` takes for one handle, checked: a row (I,) of the dtype, or a token id as an int.

        Raises
        ------
        ValueError, TypeError
            x is neither.
        """
        rows, ids, _ = checked_step(x, 1, True, self._packed)
        return int(np.reshape(rows, ())) if ids else np.asarray(rows, self.dtype).reshape(self._row)

    def feed(self, handles: Any, x: Any, lengths: Any, out: Array | None = None) -> Array:
        """Pieces of unequal length, one of each stream: the same as step after step.

        Parameters
        ----------
        handles : (n,) integers, each at most once
        x : (N, I) array, or (N,) token ids
            The rows of the first stream in their order, then those of the second one, and so on.
        lengths : (n,) integers
            Rows of each stream, 0 or more; their sum is N.
        out : (N, U) array, optional

        Returns
        -------
        y : (N, U) array
            In the order of x.

        Raises
        ------
        StreamClosed, ValueError, TypeError
            As `step`, or the lengths do not fit; all states are as before.
        """
        if out is None and is_one_piece(handles, x, lengths, self.dtype, self._row):
            self._check_free()
            slots, y = self._slabs.find(handles), empty((len(x), self.output_size), self.dtype)
            self._feed(slots, x, lengths, y)
            return y
        given = as_handles(handles)
        counts = checked_lengths(lengths, len(given))
        total = sum(counts)
        array = as_array(x, "x")
        if array.ndim and len(array) != total:
            raise ValueError(f"x has {len(array)} rows, and lengths say {total}: the rows of all streams together")
        rows, _, _ = self._packed.checked(x, (total,))
        if out is not None:
            check_out(out, (total, self.output_size), self.dtype)
        self._check_free()
        slots = self._slabs.find(given.tolist())
        y = empty((total, self.output_size), self.dtype) if out is None or np.may_share_memory(out, rows) else out
        if total:
            fed = [slot for slot, n in zip(slots, counts, strict=True) if n]
            self._feed(fed, rows, [n for n in counts if n], y)
        if out is None or y is out:
            return y
        out[...] = y
        return out

    def _feed(self, slots: list[int], rows: Array, counts: list[int], y: Array) -> None:
        self._busy = True
        try:
            with NO_LIMIT if get_num_threads() == self.threads else limited_to(self.threads):
                feed(self._packed, self._slabs, slots, rows, counts, y, self._clock())
        finally:
            self._busy = False

    # ----------------------------------------------------------------------------------------------- weights, snapshots
    def swap(self, model: Any, *, keep_states: bool = True) -> None:
        """Go on with other weights, between two steps.

        Parameters
        ----------
        model : layer
            With the equation, sizes and dtype of the present one.
        keep_states : bool
            False sets the states of all streams to zero.

        Raises
        ------
        TypeError, ValueError
            The model does not fit; everything is as before.
        """
        self._check_free()
        keep_states, new = flag(keep_states, "keep_states"), packed_of(model)
        if new.equation != self._packed.equation:
            raise ValueError(
                f"the new model is {new.name}, and the streams are of {self._packed.name}: swap takes other weights of "
                "the same equation, sizes and dtype; for another model make another StreamBatch"
            )
        self._packed = new
        self._bind()
        if not keep_states:
            self.reset(self.handles())
