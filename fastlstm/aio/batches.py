"""Batches of a `Batcher`: when they begin, where they run, and how requests get their rows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

from numpy import ndarray

from ..layout import Array
from ..streams import StreamBatch
from ..validation import number, positive
from .counters import Counters
from .deadlines import Deadlines
from .errors import DeadlineExceeded, QueueFull
from .queue import Answer, Request, Taken, done, stacked, take

OVERLOAD = ("reject", "wait", "oldest")
QUIET_TURNS = 4  # batches of one row, one after the other, after which a request is taken for a lone one
UNWATCHED = 8  # lone requests after a turn of the loop that had one of them, before another turn is watched


class Batches:
    """The requests that wait, and the batches made of them: see `Batcher`."""

    def __init__(
        self,
        streams: StreamBatch,
        max_batch: int,
        max_wait_us: float,
        max_queue: int,
        overload: str,
        inline_us: float,
    ) -> None:
        if not isinstance(streams, StreamBatch):
            raise TypeError(f"streams must be a StreamBatch, got {type(streams).__name__}: fl.StreamBatch(layer)")
        if overload not in OVERLOAD:
            raise ValueError(f"overload must be one of {', '.join(OVERLOAD)}, got {overload!r}")
        self.streams = streams
        self.max_batch, self.max_queue = positive(max_batch, "max_batch"), positive(max_queue, "max_queue")
        self.max_wait_us, self.inline_us = number(max_wait_us, "max_wait_us"), number(inline_us, "inline_us")
        self.overload = overload
        self._dtype, self._shape = streams.dtype, (streams.input_size,)
        self._counters = Counters(self.max_batch)
        self._queue: deque[Request] = deque()
        # A queue that has fewer requests than this takes another one without more checks.
        self._plain = min(self.max_batch - 1, self.max_queue) if self.max_wait_us else self.max_queue
        self._since = 0.0  # when the first request of the next batch came, by the loop's clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lone = self.max_wait_us == 0  # whether requests are answered at once
        self._in_turn = 0  # lone requests in this turn of the loop, if it is watched
        self._unwatched = 0  # lone requests to come before a turn is watched
        self._turned = 0.0  # when the loop was last known to come round, by time.perf_counter
        self._answered = 0.0  # when the last lone request was answered
        self._quiet = 0  # batches of one row, one after the other
        self._timer: Any = None  # the call that will make the batch
        self._running = False  # a batch is in the worker thread
        self._worker: ThreadPoolExecutor | None = None
        self._places: deque[asyncio.Future[None]] = deque()  # requests that wait for a place in the queue
        self._deadlines = Deadlines(self._counters)
        self._idle: list[asyncio.Future[None]] = []  # waiters of `drain` and of changes to the streams
        self._closing: str | None = None
        self._task: asyncio.Task[None] | None = None

    # --------------------------------------------------------------------------------------------------- lone requests
    def _step_alone(self, handle: int, x: Any) -> Array:
        """A step at once. Two in one turn of the loop are the sign that requests come together."""
        begin = perf_counter()
        y = self.streams.step(handle, x)
        counters, self._answered = self._counters, perf_counter()
        counters.alone += 1
        counters.alone_seconds += self._answered - begin
        if self._in_turn:
            self._in_turn += 1
        elif self._unwatched:  # a call in every turn would cost a tenth of a short step
            self._unwatched -= 1
        else:
            self._in_turn = 1
            assert self._loop is not None
            self._loop.call_soon(self._end_turn)
        return y

    def _end_turn(self) -> None:
        if self._in_turn > 1:
            self._lone, self._quiet = False, 0
        else:
            self._unwatched = UNWATCHED
        self._in_turn, self._turned = 0, perf_counter()

    # --------------------------------------------------------------------------------------------------------- batches
    def _schedule(self) -> None:
        """Let the batch begin at the turn's end or, while it is not full, when its first row has waited long enough."""
        assert self._loop is not None
        if len(self._queue) == 1:
            self._since = self._loop.time()
        if self._timer is not None:
            self._timer.cancel()
        if self.max_wait_us and len(self._queue) < self.max_batch:
            left = self._since + self.max_wait_us * 1e-6 - self._loop.time()
            self._timer = self._loop.call_later(max(0.0, left), self._make_batch, "wait")
        else:
            self._timer = self._loop.call_soon(self._make_batch, "turn")

    def _make_batch(self, why: str) -> None:
        """Step the rows that have come, here or in the worker thread."""
        loop, queue, counters = self._loop, self._queue, self._counters
        assert loop is not None
        self._timer = None
        if self._running:
            return
        why, now = "full" if len(queue) >= self.max_batch else why, loop.time()
        if self._deadlines.timers:
            self._deadlines.expire_until(now)
        batch, cancelled = take(queue, self.max_batch)
        counters.counts["cancelled"] += cancelled
        waited, self._since = now - self._since, now
        rows = len(batch.answers)
        if not rows:
            self._next()
            return
        if self._deadlines.timers:
            for answer in batch.answers:
                self._deadlines.begun(answer)
        if counters.expected(rows) * 1e6 > self.inline_us:
            self._running = True
            self._task = loop.create_task(self._in_worker(batch, why, waited))
            return
        y, seconds = self._compute(batch)
        self._deliver(batch, y, why, seconds, waited, type(y) is ndarray)

    def _compute(self, batch: Taken) -> tuple[Any, float]:
        """(the rows (n, U) or, where a request is refused, a row or an error for each; seconds)."""
        handles, x = stacked(batch, self._dtype)
        begin = perf_counter()
        try:
            try:
                y: Any = self.streams.step(handles, x)
            except (LookupError, TypeError, ValueError, OverflowError):
                y = [self._alone_or_error(handle, row) for handle, row in zip(handles, x, strict=True)]
        except BaseException as error:  # of no single request
            y = [error] * len(batch.answers)
        return y, perf_counter() - begin

    def _alone_or_error(self, handle: Any, x: Any) -> Any:
        try:
            return self.streams.step(int(handle), x)
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            return error

    async def _in_worker(self, batch: Taken, why: str, waited: float) -> None:
        """A batch in the worker thread, which lets go of Python's lock while it computes."""
        assert self._loop is not None
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "fastlstm-batcher")
        y, seconds = await self._loop.run_in_executor(self._worker, self._compute, batch)
        self._running = False
        self._deliver(batch, y, why, seconds, waited, type(y) is ndarray and not any(map(done, batch.answers)))

    def _deliver(self, batch: Taken, y: Any, why: str, seconds: float, waited: float, plain: bool) -> None:
        """Give every request its row or its error, and let the next batch begin. plain: all wait, and no row failed."""
        answers = batch.answers
        self._counters.batch(why, len(answers), seconds, waited)
        if plain:
            any(map(asyncio.Future.set_result, answers, y))  # each gives None; the quickest loop over short calls
        else:
            self._deliver_singly(answers, y)
        self._quiet = self._quiet + 1 if len(answers) == 1 and not self._queue else 0
        if self._quiet >= QUIET_TURNS and not self.max_wait_us and not self._closing:
            self._lone, self._unwatched = True, 0
        if self._queue or self._places or self._idle:
            self._next()

    def _deliver_singly(self, answers: Sequence[Answer], y: Any) -> None:
        for answer, row in zip(answers, y, strict=True):
            if answer.done():  # cancelled or past its deadline while the batch was under way
                self._counters.add("dropped", 1)
            elif isinstance(row, BaseException):
                answer.set_exception(row)
            else:
                answer.set_result(row)

    def _next(self) -> None:
        """After a batch: places for requests that wait for one, the next batch, or the end of all work."""
        room = self.max_queue - len(self._queue)
        while self._places and room > 0:
            place = self._places.popleft()
            if not place.done():
                place.set_result(None)
                room -= 1
        if self._queue:
            if self._timer is None:
                self._schedule()
        elif not self._running:
            wake(self._idle)

    # ------------------------------------------------------------------------------------------------ room in the queue
    def _make_place(self) -> None:
        """Room for one more request, or QueueFull."""
        waiting, most = len(self._queue), self.max_queue
        retry_after = self._counters.expected(waiting)
        if self.overload != "oldest":
            self._counters.counts["rejected"] += 1
            raise QueueFull(waiting, most, retry_after)
        while self._queue:
            *_, answer = self._queue.popleft()
            if not answer.done():
                answer.set_exception(QueueFull(waiting, most, retry_after, displaced=True))
                self._counters.add("displaced", 1)
                return

    async def _place(self, deadline: float | None) -> None:
        """Wait until the queue has a place."""
        while len(self._queue) >= self.max_queue and not self._closing:
            place = asyncio.get_running_loop().create_future()
            self._places.append(place)
            left = None if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())
            try:
                await asyncio.wait_for(place, left)
            except TimeoutError:
                self._counters.add("expired", 1)
                raise DeadlineExceeded("the time was over before the queue had a place", False) from None
            finally:
                if place in self._places:
                    self._places.remove(place)


def wake(waiters: list[asyncio.Future[None]]) -> None:
    """Let all waiters go on, and empty the list."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()
