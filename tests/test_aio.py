"""`fl.aio.Batcher`: values, batches, overload, deadlines, cancellation, the end."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm.aio import Batcher, BatcherClosed, DeadlineExceeded, QueueFull
from fastlstm.streams import MemoryStore, StateError, StreamClosed

LAYERS: dict[str, Callable[[], Any]] = {
    "lstm": lambda: fl.LSTM(5, 7, 2, seed=0),
    "gru": lambda: fl.GRU(5, 7, seed=0),
    "rnn": lambda: fl.RNN(5, 7, seed=0),
}


def made(layer: Any = None, **options: Any) -> Batcher:
    return Batcher(fl.StreamBatch(layer or fl.LSTM(5, 7, seed=0)), **options)


def rows(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, 5)).astype(np.float32)


def alone(layer: Any, x: Any) -> Any:
    """The outputs of a stream that is stepped by itself."""
    stream = layer.stream()
    return np.stack([stream.step(row) for row in x])


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function; an exception of a future that is never looked at is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = asyncio.run(asyncio.wait_for(main(), 60))  # type: ignore[arg-type]
        gc.collect()
    return result


class Slow:
    """A StreamBatch whose steps take some time, as those of a large model do."""

    def __init__(self, batcher: Batcher, seconds: float) -> None:
        self.inner, self.calls = batcher.streams.step, 0
        self.seconds = seconds
        batcher.streams.step = self  # type: ignore[method-assign]

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        time.sleep(self.seconds)
        return self.inner(*args)


# --------------------------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "options", [{}, {"max_batch": 3}, {"max_wait_us": 300}, {"inline_us": 0}, {"overload": "wait", "max_queue": 4}]
)
def test_every_stream_gets_the_bits_that_it_gets_alone(kind: str, options: dict[str, Any]) -> None:
    layer, clients, T = LAYERS[kind](), 9, 12
    batcher = made(layer, **options)
    x = rows(clients * T).reshape(clients, T, 5)

    async def client(i: int) -> Any:
        handle = batcher.streams.open()
        y = []
        for t in range(T):
            y.append(await batcher.step(handle, x[i, t]))
            if (i + t) % 3 == 0:
                await asyncio.sleep(0)
            if i == 2 and t % 4 == 0:
                await asyncio.sleep(0.002)
        return np.stack(y)

    async def main() -> Any:
        return await asyncio.gather(*(client(i) for i in range(clients)))

    for i, got in enumerate(run(main)):
        assert np.array_equal(got, alone(layer, x[i]))
    stats = batcher.stats()
    assert stats["rows"] == clients * T and stats["waiting"] == 0
    assert sum(stats["batches"].values()) == sum(stats["sizes"].values()) < clients * T


def test_a_lone_client_is_stepped_at_once_without_a_future() -> None:
    layer, batcher, x = fl.LSTM(5, 7, seed=0), made(), rows(20)

    async def main() -> Any:
        handle = batcher.streams.open()
        y = []
        for row in x:
            got = batcher.step_nowait(handle, row)
            assert type(got) is np.ndarray
            y.append(got)
            await asyncio.sleep(0)
        return np.stack(y)

    assert np.array_equal(run(main), alone(layer, x))
    assert batcher.stats()["batches"] == {"alone": 20, "turn": 0, "full": 0, "wait": 0}


def test_a_lone_client_lets_the_loop_do_its_other_work() -> None:
    batcher = made()
    longest = 0.0

    async def heart() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - before)

    async def main() -> None:
        beat = asyncio.create_task(heart())
        await asyncio.sleep(0)
        handle, x = batcher.streams.open(), rows(1)[0]
        for _ in range(20_000):
            await batcher.step(handle, x)
        beat.cancel()

    run(main)
    assert longest < 0.05, f"the loop was held for {longest:.3f} s"


def test_batches_form_and_go_again() -> None:
    """Many clients share steps; when one is left, it is stepped at once again."""
    batcher = made()

    async def client(T: int) -> None:
        handle, x = batcher.streams.open(), rows(1)[0]
        for _ in range(T):
            await batcher.step(handle, x)

    async def main() -> None:
        await asyncio.gather(*(client(50) for _ in range(8)), client(100))
        await asyncio.sleep(0)

    run(main)
    stats = batcher.stats()
    assert stats["sizes"][16] >= 45, "nine rows each"
    assert stats["batches"]["alone"] >= 30


def test_rows_of_one_stream_keep_their_order_and_share_no_batch() -> None:
    layer, x = fl.LSTM(5, 7, seed=0), rows(30)
    batcher = made(layer)

    async def main() -> Any:
        handle, other = batcher.streams.open(), batcher.streams.open()
        batcher.step_nowait(other, x[0])
        batcher.step_nowait(other, x[0])  # two in one turn: from now on requests are batched
        await asyncio.sleep(0)
        return np.stack(await asyncio.gather(*(batcher.step(handle, row) for row in x)))

    assert np.array_equal(run(main), alone(layer, x))
    assert batcher.stats()["sizes"][1] == 32, "no batch has two rows"


def test_the_row_may_be_changed_at_once() -> None:
    layer, x = fl.LSTM(5, 7, seed=0), rows(8)
    batcher, shared = made(layer, max_wait_us=100), np.empty(5, np.float32)

    async def client(row: Any) -> Any:
        shared[:] = row
        return await batcher.step(batcher.streams.open(), shared)

    async def main() -> Any:
        return await asyncio.gather(*map(client, x))

    for row, y in zip(x, run(main), strict=True):
        assert np.array_equal(y, alone(layer, row[None])[0])


def test_token_ids_and_rows() -> None:
    layer = fl.GRU(5, 7, seed=0)
    batcher, x = made(layer), rows(4)

    async def main() -> Any:
        handles = [batcher.streams.open() for _ in range(8)]
        given = [*x, 0, 4, np.int64(2), 1]
        return await asyncio.gather(*(batcher.step(h, row) for h, row in zip(handles, given, strict=True)))

    got = run(main)
    expected = [alone(layer, row[None])[0] for row in [*x, *np.eye(5, dtype=np.float32)[[0, 4, 2, 1]]]]
    np.testing.assert_allclose(got, expected, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- bad rows
@pytest.mark.parametrize("options", [{}, {"inline_us": 0}])
def test_a_bad_row_fails_alone(options: dict[str, Any]) -> None:
    layer, x = fl.LSTM(5, 7, seed=0), rows(6)
    batcher = made(layer, max_wait_us=100, **options)

    async def main() -> Any:
        handles = [batcher.streams.open() for _ in range(6)]
        batcher.streams.close(handles[2])
        given: list[Any] = list(x)
        given[4] = x[4][:3]
        given[5] = np.full(5, np.nan, np.float32)
        asked = (batcher.step(h, row) for h, row in zip(handles, given, strict=True))
        return await asyncio.gather(*asked, batcher.step("x", x[0]), return_exceptions=True)  # type: ignore[arg-type]

    got = run(main)
    assert isinstance(got[2], StreamClosed) and isinstance(got[4], ValueError) and isinstance(got[6], TypeError)
    assert np.isnan(got[5]).all()
    for i in (0, 1, 3):
        assert np.array_equal(got[i], alone(layer, x[i : i + 1])[0])


@pytest.mark.parametrize("inline_us", [2000, 0])
def test_a_handle_beyond_64_bits_is_refused_and_delays_no_other_request(inline_us: float) -> None:
    batcher, x = made(inline_us=inline_us), rows(3)

    async def main() -> Any:
        handle = batcher.streams.open()
        for wrong in ("a key", 1.5, None, True, [handle], np.array([handle])):
            with pytest.raises(TypeError, match="handle must be an integer"):
                await batcher.step(wrong, x[0])  # type: ignore[arg-type]
        for _ in range(2):
            requests = [batcher.step(handle, x[0]), batcher.step(1 << 70, x[1]), batcher.step(-(1 << 70), x[2])]
            got = await asyncio.gather(*requests, return_exceptions=True)
            assert got[0].shape == (7,) and isinstance(got[1], TypeError) and isinstance(got[2], TypeError), got
        return batcher.streams.steps(handle)

    assert run(main) == 2


def test_a_stream_that_is_closed_while_its_row_waits() -> None:
    batcher, x = made(max_wait_us=1000), rows(2)

    async def main() -> Any:
        handles = [batcher.streams.open(), batcher.streams.open()]
        asked = [asyncio.ensure_future(batcher.step(h, row)) for h, row in zip(handles, x, strict=True)]
        await asyncio.sleep(0)
        batcher.streams.close(handles[0])
        return await asyncio.gather(*asked, return_exceptions=True)

    closed, fine = run(main)
    assert isinstance(closed, StreamClosed)
    assert np.array_equal(fine, alone(fl.LSTM(5, 7, seed=0), x[1:])[0])


# --------------------------------------------------------------------------------------------- cancellation, deadlines
def test_a_request_cancelled_before_its_batch_changes_nothing() -> None:
    batcher, x = made(max_wait_us=2000), rows(2)

    async def main() -> None:
        a, b = batcher.streams.open(), batcher.streams.open()
        first = asyncio.create_task(batcher.step(a, x[0]))
        second = asyncio.create_task(batcher.step(b, x[1]))
        await asyncio.sleep(0)
        before = batcher.streams.export(a)
        first.cancel()
        await second
        with pytest.raises(asyncio.CancelledError):
            await first
        assert batcher.streams.export(a) == before
        assert batcher.stats()["cancelled"] == 1 and batcher.stats()["rows"] == 1

    run(main)


def test_a_request_cancelled_in_its_batch_is_stepped_and_dropped() -> None:
    layer, x = fl.LSTM(5, 7, seed=0), rows(2)
    batcher = made(layer, max_wait_us=10, inline_us=0)

    async def main() -> None:
        a = batcher.streams.open()
        await batcher.step(a, x[0])  # gives the batcher a mean time, above inline_us
        slow = Slow(batcher, 0.05)
        task = asyncio.create_task(batcher.step(a, x[1]))
        while not slow.calls:
            await asyncio.sleep(0.001)
        task.cancel()
        await batcher.free()
        assert batcher.stats()["dropped"] == 1
        stream = layer.stream()
        stream.step(x[0]), stream.step(x[1])
        after = batcher.streams.open(state=batcher.streams.export(a)[0])
        batcher.streams.step = slow.inner  # type: ignore[method-assign]
        assert np.array_equal(await batcher.step(after, x[0]), stream.step(x[0]))

    run(main)


def test_a_deadline_before_the_batch_leaves_the_state() -> None:
    batcher, x = made(max_wait_us=50_000), rows(1)[0]

    async def main() -> None:
        a = batcher.streams.open()
        before = batcher.streams.export(a)
        with pytest.raises(DeadlineExceeded, match="the state is as before") as caught:
            await batcher.step(a, x, timeout=0.005)
        assert caught.value.stepped is False
        await asyncio.sleep(0.08)
        assert batcher.streams.export(a) == before
        assert batcher.stats()["expired"] == 1 and batcher.stats()["rows"] == 0
        assert (await batcher.step(a, x, timeout=10)).shape == (7,)

    run(main)


def test_a_deadline_in_the_batch_says_that_the_stream_is_stepped() -> None:
    batcher, x = made(max_wait_us=10, inline_us=0), rows(1)[0]

    async def main() -> None:
        a = batcher.streams.open()
        await batcher.step(a, x)
        Slow(batcher, 0.2)
        before = batcher.streams.export(a)
        with pytest.raises(DeadlineExceeded, match="the stream takes the step") as caught:
            await batcher.step(a, x, timeout=0.03)
        assert caught.value.stepped is True
        await batcher.free()
        assert batcher.streams.export(a) != before

    run(main)


# ------------------------------------------------------------------------------------------------------------- overload
def asked(batcher: Batcher, n: int) -> Any:
    """n requests of streams of their own, in one turn."""
    handles = [batcher.streams.open() for _ in range(n)]
    return asyncio.gather(*(batcher.step(h, x) for h, x in zip(handles, rows(n), strict=True)), return_exceptions=True)


def test_overload_reject() -> None:
    batcher = made(max_wait_us=1000, max_queue=3)

    async def main() -> Any:
        return await asked(batcher, 5)

    got = run(main)
    assert [isinstance(y, QueueFull) for y in got] == [False, False, False, True, True]
    assert "3 requests wait and max_queue is 3: come again in" in str(got[3]) and got[3].retry_after >= 0
    assert batcher.stats()["rejected"] == 2


def test_a_turn_of_the_loop_computes_one_batch_and_refuses_what_the_queue_cannot_hold() -> None:
    """Requests that come more quickly than they are served are refused at once: no batch is made in their midst."""
    layer, x = fl.LSTM(5, 7, seed=0), rows(200)
    batcher = made(layer, max_batch=8, max_queue=32)

    async def main() -> Any:
        handles = [batcher.streams.open() for _ in x]
        batcher.step_nowait(handles[0], x[0]), batcher.step_nowait(handles[1], x[1])  # from now on there are batches
        await asyncio.sleep(0)
        waiting, refused = [], 0
        for handle, row in zip(handles[2:], x[2:], strict=True):
            try:
                waiting.append(batcher.step_nowait(handle, row))
            except QueueFull as error:
                refused += 1
                assert "32 requests wait and max_queue is 32" in str(error)
        sizes = []
        while not waiting[-1].done():
            await asyncio.sleep(0)
            sizes.append(batcher.stats()["waiting"])
        return refused, sizes, np.stack(await asyncio.gather(*waiting))

    refused, sizes, y = run(main)
    assert refused == 198 - 32 and sizes == [24, 16, 8, 0]
    assert batcher.stats()["batches"] == {"alone": 2, "turn": 0, "full": 4, "wait": 0}
    assert np.array_equal(y, np.concatenate([alone(layer, row[None]) for row in x[2:34]]))


def test_overload_oldest() -> None:
    batcher = made(max_wait_us=1000, max_queue=3, overload="oldest")

    async def main() -> Any:
        return await asked(batcher, 5)

    got = run(main)
    assert [isinstance(y, QueueFull) for y in got] == [True, True, False, False, False]
    assert "a newer request took the place" in str(got[0])
    assert batcher.stats()["displaced"] == 2


def test_overload_wait() -> None:
    batcher = made(max_wait_us=500, max_queue=3, overload="wait")

    async def main() -> Any:
        return await asked(batcher, 20)

    got = run(main)
    assert all(isinstance(y, np.ndarray) for y in got)
    assert batcher.stats()["rejected"] == 0 and batcher.stats()["sizes"][4] >= 6


def test_a_deadline_while_waiting_for_a_place() -> None:
    batcher = made(max_wait_us=100_000, max_queue=1, overload="wait")

    async def main() -> Any:
        first = asyncio.ensure_future(batcher.step(batcher.streams.open(), rows(1)[0]))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded, match="before the queue had a place"):
            await batcher.step(batcher.streams.open(), rows(1)[0], timeout=0.01)
        return await first

    assert run(main).shape == (7,)


def test_the_queue_does_not_grow_while_a_batch_is_under_way() -> None:
    batcher = made(max_queue=5, inline_us=0, max_wait_us=1)

    async def main() -> None:
        await batcher.step(batcher.streams.open(), rows(1)[0])
        Slow(batcher, 0.05)
        got = await asked(batcher, 40)
        assert sum(isinstance(y, QueueFull) for y in got) >= 30

    run(main)


# ---------------------------------------------------------------------------------------------------- clients, the end
def test_a_client_goes_on_from_the_store() -> None:
    layer, x, store = fl.LSTM(5, 7, seed=0), rows(10), MemoryStore()
    batcher = made(layer)

    async def main() -> Any:
        async with batcher.stream("a", store=store) as s:
            assert not s.restored
            y = [await s.step(row) for row in x[:4]]
        with pytest.raises(RuntimeError, match="gone"):
            async with batcher.stream("a", store=store) as s:
                y += [await s.step(row) for row in x[4:7]]
                raise RuntimeError("gone")
        assert len(batcher.streams) == 0
        other = made(layer)
        async with other.stream("a", store=store) as s:
            assert s.restored
            y += [await s.step(row) for row in x[7:]]
        return np.stack(y)

    assert np.array_equal(run(main), alone(layer, x))


def test_a_store_that_fails_loses_no_state() -> None:
    layer, x, kept = fl.LSTM(5, 7, seed=0), rows(4), MemoryStore()
    batcher = made(layer)

    class Full(MemoryStore):
        def put_many(self, states: Any) -> None:
            raise OSError("no space is left")

    async def main() -> None:
        with pytest.raises(OSError, match="no space is left"):
            async with batcher.stream("a", store=Full()) as s:
                for row in x[:3]:
                    await s.step(row)
        handle = batcher.streams.handle_of("a")  # still open under its key
        kept.put_many({"a": batcher.streams.export(handle)[0]})
        batcher.streams.close(handle)
        async with batcher.stream("a", store=kept) as s:
            assert np.array_equal(await s.step(x[3]), alone(layer, x)[3])

    run(main)


def test_a_client_that_vanishes_while_its_state_is_put_away() -> None:
    """Cancelled, or evicted, while an asynchronous store writes: the state is kept and the key is free again."""
    layer, x, kept = fl.LSTM(5, 7, seed=0), rows(2), MemoryStore()
    batcher = made(layer)

    class Slow:
        def get_many(self, keys: Any) -> Any:
            return kept.get_many(keys)

        async def put_many(self, states: Any) -> None:
            putting.set()
            await asyncio.sleep(0.01)
            kept.put_many(states)

    async def client(key: str) -> None:
        async with batcher.stream(key, store=Slow()) as s:
            await s.step(x[0])

    async def main() -> None:
        task = asyncio.create_task(client("a"))
        await putting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        putting.clear()
        task = asyncio.create_task(client("b"))
        await putting.wait()
        assert batcher.streams.evict_idle(0.0)
        await task
        assert len(batcher.streams) == 0
        for key in ("a", "b"):
            async with batcher.stream(key, store=kept) as s:
                assert np.array_equal(await s.step(x[1]), alone(layer, x)[1])

    putting = asyncio.Event()
    run(main)


def test_a_key_serves_one_client_at_a_time() -> None:
    batcher, store = made(), MemoryStore()

    async def main() -> None:
        async with batcher.stream("a", store=store):
            with pytest.raises(ValueError, match="has an open stream"):
                async with batcher.stream("a", store=store):
                    pass
            assert list(batcher.streams.keys()) == ["a"]
        with pytest.raises(TypeError, match="a stream with a store has a key, a str"):
            async with batcher.stream(3, store=store):
                pass

    run(main)


def test_a_client_that_vanishes_leaves_its_state() -> None:
    """The task of a client is cancelled in the midst of a request; an asynchronous store keeps the state."""
    layer, x = fl.LSTM(5, 7, seed=0), rows(4)
    kept: dict[str, bytes] = {}

    class Remote:
        async def get_many(self, keys: Any) -> Any:
            await asyncio.sleep(0.001)
            return [kept.get(key) for key in keys]

        async def put_many(self, states: Any) -> None:
            await asyncio.sleep(0.001)
            kept.update(states)

    batcher = made(layer, max_wait_us=5000)

    async def client() -> None:
        async with batcher.stream("a", store=Remote()) as s:
            for row in x:
                await s.step(row)

    async def main() -> None:
        task = asyncio.create_task(client())
        while batcher.stats()["rows"] < 2:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(batcher.streams) == 0
        streams = fl.StreamBatch(layer)
        after, stream = streams.open(state=kept["a"]), layer.stream()
        for row in x[: batcher.stats()["rows"]]:
            stream.step(row)
        assert np.array_equal(streams.step(after, x[3]), stream.step(x[3]))

    run(main)


def test_a_damaged_state_is_refused_and_no_stream_opened() -> None:
    batcher, store = made(), MemoryStore()
    store.put_many({"a": b"damaged"})

    async def main() -> None:
        with pytest.raises(StateError):
            async with batcher.stream("a", store=store):
                pass
        assert len(batcher.streams) == 0

    run(main)


def test_drain_finishes_what_waits_and_refuses_the_rest() -> None:
    batcher = made(max_wait_us=20_000)

    async def main() -> None:
        waiting = asyncio.ensure_future(asked(batcher, 4))
        await asyncio.sleep(0)
        assert await batcher.drain(timeout=5)
        assert all(isinstance(y, np.ndarray) for y in await waiting)
        with pytest.raises(BatcherClosed, match="drains"):
            await batcher.step(batcher.streams.open(), rows(1)[0])

    run(main)


def test_drain_ends_in_time() -> None:
    batcher = made(max_wait_us=10_000_000)

    async def main() -> None:
        waiting = asyncio.ensure_future(asked(batcher, 2))
        await asyncio.sleep(0)
        assert not await batcher.drain(timeout=0.02)
        assert all(isinstance(y, BatcherClosed) for y in await waiting)

    run(main)


def test_close_and_waiters_for_a_place() -> None:
    batcher = made(max_wait_us=10_000_000, max_queue=1, overload="wait")

    async def main() -> None:
        waiting = asyncio.ensure_future(asked(batcher, 3))
        for _ in range(3):
            await asyncio.sleep(0)
        batcher.close()
        assert all(isinstance(y, BatcherClosed) for y in await waiting)

    run(main)


def test_no_thread_is_made_by_short_batches() -> None:
    import threading

    batcher, before = made(), threading.active_count()

    async def main() -> None:
        for _ in range(10):
            await asked(batcher, 20)
        assert threading.active_count() == before

    run(main)


def test_another_loop_may_follow_but_not_share() -> None:
    batcher = made(max_wait_us=1000)

    async def main() -> Any:
        return (await asked(batcher, 2))[0]

    assert np.array_equal(run(main), run(main)), "each with new streams"

    async def leave() -> None:
        task = asyncio.ensure_future(asked(batcher, 2))
        await asyncio.sleep(0)
        loop = asyncio.new_event_loop()
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(lambda: loop.run_until_complete(batcher.step(0, rows(1)[0])))
            with pytest.raises(RuntimeError, match="another event loop uses this Batcher"):
                other.result()
        loop.close()
        await task

    run(leave)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch"),
        ({"max_queue": 0}, "max_queue"),
        ({"max_wait_us": -1}, "max_wait_us"),
        ({"inline_us": "x"}, "inline_us"),
        ({"overload": "block"}, "overload must be one of reject, wait, oldest"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        made(**options)
    with pytest.raises(TypeError, match=r"streams must be a StreamBatch, got LSTM: fl.StreamBatch\(layer\)"):
        Batcher(fl.LSTM(2, 3))  # type: ignore[arg-type]
