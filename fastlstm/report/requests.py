"""Requests to a `Batcher`, beside bare futures and at twice the load that it can serve; threads that hand rows over.

Parts of ``fastlstm bench --streams``.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..aio import Batcher, QueueFull
from ..layout import Array
from ..recurrent import LSTM
from . import measure
from .lines import ONE, Line, Report, compared, draw, in_turns, opened
from .measure import Result

CLIENTS = (1, 16, 64, 256, 1024)
REQUESTS = 4000  # of one timed call, at least
LEAST_EACH = 10  # requests of a client in a timed call
HANDING_THREADS = 8
HANDING_SECONDS = 0.5
LARGER = (256, 256)  # (I, H) of the streams under overload: a step of a row costs several times a refused request
STREAMS = 1024  # under overload
QUEUE, BATCH = 256, 64  # rows that wait, and rows of a batch, at most
DEADLINE = 0.02  # seconds within which an answer counts
SECONDS = 1.0  # of a load
LOADS = (0.7, 0.8, 0.9, 1.0, 1.1)  # of what the clients get that wait for their answers: the best is looked for here

Client = Callable[[int], Coroutine[Any, Any, None]]


# ------------------------------------------------------------------------------------------------------ asyncio clients
@contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that is kept over several runs."""
    loop = asyncio.new_event_loop()
    try:
        yield loop
    finally:
        loop.close()


def requests(shape: tuple[int, int], report: Report, rng: np.random.Generator) -> None:
    """A request by a bare future and a row's share of a step; a lone client's request by a lone step."""
    with event_loop() as loop:
        for n in CLIENTS:
            each = max(LEAST_EACH, REQUESTS // n)
            calls = calls_alone(shape, each, loop) if n == 1 else calls_together(shape, n, each, loop)
            times = {name: scaled(one, n * each) for name, one in in_turns(calls, report.rounds, rng).items()}
            what, title = f"{shape[0]},{shape[1]}", "one asyncio client: request / lone step, and a turn of the loop"
            if n == 1:
                report.lines.append(compared(title, what, times[ONE], times["step"], 1.25, at_most=True))
                continue
            pairs = zip(times["future"].rounds, times["step"].rounds, strict=True)
            both = Result("", rounds=[[float(np.median(a) + np.median(b))] for a, b in pairs])
            title = "asyncio clients: request / (bare future + row of a step)"
            report.lines.append(compared(title, f"{what} {n} clients", times[ONE], both, 1.2, at_most=True))


def scaled(result: Result, requests: int) -> Result:
    """Times of one request, from those of a call that makes so many."""
    return Result(result.contender, rounds=[[one / requests for one in some] for some in result.rounds])


def calls_alone(
    shape: tuple[int, int], requests: int, loop: asyncio.AbstractEventLoop
) -> dict[str, Callable[[], object]]:
    """Requests of one client, and steps without a Batcher; a turn of the loop after each."""
    streams, handles = opened(LSTM(*shape, seed=0), 1)
    batcher, handle, x = Batcher(streams), int(handles[0]), draw(1, shape[0])

    async def asks() -> None:
        for _ in range(requests):
            await batcher.step(handle, x[0])
            await asyncio.sleep(0)

    async def steps() -> None:
        for _ in range(requests):
            streams.step(handles, x)
            await asyncio.sleep(0)

    return {ONE: lambda: loop.run_until_complete(asks()), "step": lambda: loop.run_until_complete(steps())}


def calls_together(
    shape: tuple[int, int], n: int, each: int, loop: asyncio.AbstractEventLoop
) -> dict[str, Callable[[], object]]:
    """`each` requests of each of n clients; as many futures that nothing is computed for; and steps of all streams."""
    streams, handles = opened(LSTM(*shape, seed=0), n)
    batcher, x = Batcher(streams), draw(n, shape[0])
    row = x[0].copy()

    async def asks(handle: int) -> None:
        for _ in range(each):
            await batcher.step(handle, row)

    async def waits(handle: int) -> None:
        for _ in range(each):
            future = loop.create_future()
            loop.call_soon(future.set_result, None)
            await future

    def steps() -> None:
        for _ in range(each):
            streams.step(handles, x)

    async def all_of(client: Client) -> None:
        await asyncio.gather(*map(client, handles.tolist()))

    return {
        ONE: lambda: loop.run_until_complete(all_of(asks)),
        "future": lambda: loop.run_until_complete(all_of(waits)),
        "step": steps,
    }


# ------------------------------------------------------------------------------------------------------------- overload
@dataclass
class Load:
    """What came of requests at a fixed rate.

    Parameters
    ----------
    seconds : float
    late : list of float
        Seconds from the moment when each answered request was due to its answer.
    waiting : list of int
        Requests in the queue, turn after turn of the loop.
    refused : int
    """

    seconds: float = 0.0
    late: list[float] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    refused: int = 0

    @property
    def goodput(self) -> float:
        """Answers a second within the deadline."""
        return sum(one <= DEADLINE for one in self.late) / self.seconds

    @property
    def p99(self) -> float:
        return float(np.percentile(self.late, 99))


async def offer(batcher: Batcher, handles: list[int], x: Array, rate: float, seconds: float) -> Load:
    """Requests that come by the clock, `rate` a second, whatever happens to them."""
    load, clock = Load(), time.perf_counter
    due: deque[float] = deque()  # of the requests that wait: they are answered in their order
    begin, sent, n = clock(), 0, len(handles)

    def answered(future: asyncio.Future[Array]) -> None:
        load.late.append(clock() - due.popleft())

    while (now := clock()) < begin + seconds:
        for k in range(sent, int((now - begin) * rate)):
            try:
                answer = batcher.step_nowait(handles[k % n], x)
            except QueueFull:
                load.refused += 1
                continue
            if isinstance(answer, asyncio.Future):
                due.append(begin + k / rate)
                answer.add_done_callback(answered)
            else:
                load.late.append(clock() - begin - k / rate)
        sent = max(sent, int((now - begin) * rate))
        load.waiting.append(batcher.stats()["waiting"])
        await asyncio.sleep(0)
    load.seconds = clock() - begin
    while due:
        await asyncio.sleep(0)
    return load


async def served(batcher: Batcher, handles: list[int], x: Array, seconds: float) -> float:
    """Requests a second of clients that wait for their answers."""
    until, count = time.perf_counter() + seconds, 0

    async def client(handle: int) -> None:
        nonlocal count
        while time.perf_counter() < until:
            await batcher.step(handle, x)
            count += 1

    await asyncio.gather(*map(client, handles[:QUEUE]))
    return count / seconds


def overload(shape: tuple[int, int], report: Report, rng: np.random.Generator) -> None:
    """Answers in time at twice the load that gives most of them, by those at that load."""
    streams, handles = opened(LSTM(*shape, seed=0), STREAMS)
    batcher, own, x = Batcher(streams, max_batch=BATCH, max_queue=QUEUE), handles.tolist(), draw(1, shape[0])[0]
    with event_loop() as loop, measure.undisturbed():
        most = loop.run_until_complete(served(batcher, own, x, SECONDS))
        found = {
            rate: loop.run_until_complete(offer(batcher, own, x, rate, SECONDS))
            for rate in (most * load for load in LOADS)
        }
        rate = max(found, key=lambda rate: found[rate].goodput)
        best, twice = found[rate], loop.run_until_complete(offer(batcher, own, x, 2 * rate, 3 * SECONDS))
    what = f"{shape[0]},{shape[1]}, {2 * rate:,.0f} requests a second"
    detail = f"{twice.goodput:,.0f} / {best.goodput:,.0f} a second within {1e3 * DEADLINE:.0f} ms"
    late = f"{1e3 * twice.p99:.1f} ms, longest {1e3 * max(twice.late):.1f}; at the best load {1e3 * best.p99:.1f}"
    wait = np.array_split(np.array(twice.waiting), 3)
    report.lines += [
        Line("overload: goodput / the best", what, twice.goodput / best.goodput, 0.8, detail=detail),
        Line("overload: p99 / deadline", what, twice.p99 / DEADLINE, None, at_most=True, detail=late),
        Line(
            "overload: queue in the last third / in the first",
            what,
            float(wait[2].mean() / max(1.0, wait[0].mean())),
            1.2,
            at_most=True,
            detail=f"{wait[2].mean():.0f} / {wait[0].mean():.0f} rows, {max(twice.waiting)} at most",
        ),
    ]


# ------------------------------------------------------------------------------------ threads that hand over their rows
def threads_that_hand_over(shape: tuple[int, int], report: Report, rng: np.random.Generator) -> None:
    """Steps of threads that each step their own stream, by those of threads with one more thread that steps for all."""
    each = [
        (run_threads(*own_streams(shape), HANDING_SECONDS), run_threads(*one_for_all(shape), HANDING_SECONDS))
        for _ in range(report.rounds)
    ]
    own, front = np.median(np.array(each), axis=0)
    ratio = float(np.median([a / b for a, b in each]))
    what, detail = f"{shape[0]},{shape[1]}, {HANDING_THREADS} threads", f"{own:,.0f} / {front:,.0f} steps a second"
    report.lines.append(
        Line("threads: streams of their own / one thread steps for all", what, ratio, None, detail=detail)
    )


Make = Callable[[], Callable[[], object]]  # a call of one step, for each thread


def own_streams(shape: tuple[int, int]) -> tuple[Make, Callable[[], None]]:
    layer, x = LSTM(*shape, seed=0), draw(1, shape[0])

    def make() -> Callable[[], object]:
        batch, handles = opened(layer, 1)
        return lambda: batch.step(handles, x)

    return make, lambda: None


def one_for_all(shape: tuple[int, int]) -> tuple[Make, Callable[[], None]]:
    """The rows go through a queue to a thread that steps what has come, and wakes the threads that wait."""
    streams, handles = opened(LSTM(*shape, seed=0), HANDING_THREADS)
    x, own = draw(1, shape[0])[0], iter(handles.tolist())
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def steps() -> None:
        while (first := asked.get()) is not None:
            batch = [first]
            while not asked.empty() and len(batch) < HANDING_THREADS:
                batch.append(asked.get())
            some, rows, answers = zip(*[one for one in batch if one is not None], strict=True)
            for answer, row in zip(answers, streams.step(np.array(some), np.array(rows)), strict=True):
                answer.put(row)

    thread = threading.Thread(target=steps)
    thread.start()

    def make() -> Callable[[], object]:
        handle, answer = next(own), queue.SimpleQueue()  # type: ignore[var-annotated]

        def step() -> object:
            asked.put((handle, x, answer))
            return answer.get()

        return step

    def end() -> None:
        asked.put(None)
        thread.join()

    return make, end


def run_threads(make: Make, end: Callable[[], None], seconds: float) -> float:
    """Steps a second of all threads."""
    stop, counts = threading.Event(), []

    def work(call: Callable[[], object]) -> None:
        count = 0
        while not stop.is_set():
            call()
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=work, args=(make(),)) for _ in range(HANDING_THREADS)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    end()
    return sum(counts) / seconds
