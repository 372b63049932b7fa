"""`Batcher`: steps of a `StreamBatch` for the clients of an asyncio program."""

from __future__ import annotations

import asyncio
from asyncio import Future, get_running_loop
from collections.abc import Hashable
from contextlib import AbstractAsyncContextManager
from time import perf_counter
from typing import Any

from numpy import ndarray

from ..layout import Array
from ..streams import StreamBatch
from ..validation import number, positive
from .batches import Batches, wake
from .client import ClientStream, client_stream
from .errors import BatcherClosed
from .queue import Answer

LONGEST_HOLD = 1e-3  # seconds for which lone requests, answered at once, keep the event loop from its other work


class Batcher(Batches):
    """Opportunistic batches: what comes in one turn of the event loop is one step.

    A lone request is stepped at once. Results do not depend on what shares a batch. One event loop uses a Batcher, and
    no other code steps its streams. For threads take no Batcher: threads that step their own StreamBatch are several
    times as quick.

    Parameters
    ----------
    streams : StreamBatch
    max_batch : int
        Most rows of a batch.
    max_wait_us : float
        Microseconds that a batch waits for more rows, counted from its first. 0: until the end of the loop's turn.
    max_queue : int
        Most requests that wait.
    overload : {"reject", "wait", "oldest"}
        What happens to a request beyond these: it raises `QueueFull`; it waits for a place; or the oldest one that
        waits raises `QueueFull` in its place.
    inline_us : float
        A batch that is expected to take longer runs in a thread of its own, so that the loop goes on.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit.
    """

    def __init__(
        self,
        streams: StreamBatch,
        *,
        max_batch: int = 256,
        max_wait_us: float = 0,
        max_queue: int = 4096,
        overload: str = "reject",
        inline_us: float = 2000,
    ) -> None:
        super().__init__(streams, max_batch, max_wait_us, max_queue, overload, inline_us)

    # ------------------------------------------------------------------------------------------------------------ steps
    async def step(self, handle: int, x: Any, *, timeout: float | None = None) -> Array:
        """One step of a stream.

        Parameters
        ----------
        handle : int
            Of ``streams.open``.
        x : (I,) array, or a token id
            Copied: the array may be changed at once.
        timeout : float, optional
            Seconds after which the request raises `DeadlineExceeded`.

        Returns
        -------
        y : (U,) array

        Raises
        ------
        StreamClosed, TypeError, ValueError
            The handle is closed, or x does not fit. Other requests of the batch are not affected.
        QueueFull, BatcherClosed, DeadlineExceeded
            The state of the stream is as before, but where DeadlineExceeded has `stepped`.

        A cancelled request is taken out if its batch has not begun, and the state is as before. Later the stream takes
        the step, and the result is dropped.
        """
        # Fast path: all checks in one expression, since they take as long as a row's share of a step.
        if (
            timeout is None
            and type(x) is ndarray
            and x.dtype is self._dtype
            and x.shape == self._shape
            and type(handle) is int
            and get_running_loop() is self._loop
        ):
            if self._lone:
                y = self._step_alone(handle, x)
                return y if self._answered - self._turned < LONGEST_HOLD else await self._turn(y)
            if len(self._queue) < self._plain:
                answer: Any = Future(loop=self._loop)  # quicker than loop.create_future, a function of Python
                self._queue.append((handle, x.tobytes(), answer))
                if self._timer is None and not self._running:
                    self._schedule()
                return await answer  # type: ignore[no-any-return]
        deadline = None if timeout is None else asyncio.get_running_loop().time() + number(timeout, "timeout")
        if self.overload == "wait" and len(self._queue) >= self.max_queue:
            await self._place(deadline)
        answer = self.step_nowait(handle, x)
        if type(answer) is ndarray:
            return answer if self._answered - self._turned < LONGEST_HOLD else await self._turn(answer)
        if deadline is not None:
            self._deadlines.add(answer, deadline)
        return await answer  # type: ignore[no-any-return]

    async def _turn(self, y: Array) -> Array:
        """y, after the loop has come round."""
        await asyncio.sleep(0)
        self._turned = perf_counter()
        return y

    def step_nowait(self, handle: int, x: Any) -> Any:
        """A row (U,) at once where no other request waits, else a Future of it; arguments and errors as `step`."""
        if get_running_loop() is not self._loop:
            self._attach()
        if self._closing:
            raise BatcherClosed(self._closing)
        if type(handle) is not int:
            handle = positive(handle, "handle", 0)
        if type(x) is ndarray and x.dtype is self._dtype and x.shape == self._shape:
            if self._lone:
                return self._step_alone(handle, x)
            x = x.tobytes()
        else:
            x = self.streams.row(x)
            if self._lone:
                return self._step_alone(handle, x)
            x = x if type(x) is int else x.tobytes()
        queue = self._queue
        if len(queue) >= self.max_queue:
            self._make_place()
        assert self._loop is not None
        answer: Answer = self._loop.create_future()
        queue.append((handle, x, answer))
        if not self._running and (self._timer is None or len(queue) == self.max_batch):
            self._schedule()
        return answer

    def _attach(self) -> None:
        """Serve the running loop from now on."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and (self._queue or self._running) and not self._loop.is_closed():
            raise RuntimeError("another event loop uses this Batcher: make one for each loop, over its own StreamBatch")
        self._loop, self._timer, self._running = loop, None, False
        self._queue.clear()
        self._in_turn = self._unwatched = 0

    # ------------------------------------------------------------------------------------------------ streams, the end
    def stream(self, key: Hashable = None, *, store: Any = None) -> AbstractAsyncContextManager[ClientStream]:
        """One client's stream: ``async with batcher.stream(key, store=store) as s: y = await s.step(x)``.

        Parameters
        ----------
        key : hashable, optional
            With a store a str.
        store : Store, optional
            Its methods may be coroutine functions. The stream goes on with the state that the store has under the key,
            and at the end, also if the client vanishes, its state is put there. Without a store it is closed.

        Raises
        ------
        ValueError
            The key has an open stream: another client uses it.
        StreamsFull, StateError
            See `StreamBatch.open`.
        """
        return client_stream(self, key, store)

    async def free(self) -> None:
        """Wait until no batch is in the worker thread: `streams` may then be changed, up to the next await."""
        while self._running:
            waiter = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            await waiter

    async def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait until those that wait are done.

        Parameters
        ----------
        timeout : float, optional
            Seconds; then the rest raises BatcherClosed.

        Returns
        -------
        done : bool
            Whether all requests were done in time.
        """
        self._plain, self._lone = 0, False
        self._closing = self._closing or "the batcher drains, and takes no more requests: connect again"
        wake(list(self._places))
        try:
            await asyncio.wait_for(self._all_done(), timeout)
        except TimeoutError:
            self.close()
            return False
        return True

    async def _all_done(self) -> None:
        while self._queue or self._running:
            waiter = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            await waiter

    def close(self) -> None:
        """Take no more requests; those that wait raise BatcherClosed. The streams stay as they are."""
        self._plain, self._lone, self._closing = 0, False, "the batcher is closed"
        while self._queue:
            *_, answer = self._queue.popleft()
            if not answer.done():
                answer.set_exception(BatcherClosed(self._closing))
        wake(list(self._places))
        if self._worker is not None:
            self._worker.shutdown(wait=False)

    def stats(self) -> dict[str, Any]:
        """Counts since the Batcher was made.

        Returns
        -------
        stats : dict
            rows, and requests that were rejected, displaced (overload="oldest"), cancelled or expired before their
            batch, or dropped, stepped without a receiver; batches: by the reason why they began ("alone", "turn",
            "full", "wait"); sizes: batches of up to 1, 2, 4 ... rows; compute_seconds, queue_seconds (the sum over
            batches of the first row's wait); waiting: requests in the queue now.
        """
        return {**self._counters.shown(), "waiting": len(self._queue)}
