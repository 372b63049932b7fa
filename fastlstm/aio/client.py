"""One client's stream, from its beginning or the store to its end."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..layout import Array

if TYPE_CHECKING:
    from .batcher import Batcher


class ClientStream:
    """A stream of one client; see `Batcher.stream`.

    Parameters
    ----------
    batcher : Batcher
    handle : int
    key : hashable or None
    restored : bool
        Whether the store had a state.
    """

    def __init__(self, batcher: Batcher, handle: int, key: Hashable, restored: bool) -> None:
        self._batcher = batcher
        self.handle, self.key, self.restored = handle, key, restored

    async def step(self, x: Any, *, timeout: float | None = None) -> Array:
        """One step; see `Batcher.step`."""
        return await self._batcher.step(self.handle, x, timeout=timeout)

    async def reset(self) -> None:
        """Set the state to zero."""
        await self._batcher.free()
        self._batcher.streams.reset(self.handle)

    async def export(self) -> bytes:
        """The state as bytes."""
        await self._batcher.free()
        return self._batcher.streams.export(self.handle)[0]


async def finished(result: Any) -> Any:
    """The result of a store's method, which may be a coroutine function."""
    return await result if inspect.isawaitable(result) else result


async def to_its_end(result: Any) -> asyncio.CancelledError | None:
    """Wait for a store's method, also where the task is cancelled meanwhile: the error is returned then."""
    if not inspect.isawaitable(result):
        return None
    task = asyncio.ensure_future(result)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError as cancelled:
        if task.cancelled():
            raise
        await task
        return cancelled
    return None


@asynccontextmanager
async def client_stream(batcher: Batcher, key: Hashable, store: Any) -> AsyncIterator[ClientStream]:
    """See `Batcher.stream`."""
    streams, state = batcher.streams, None
    if store is not None:
        if not isinstance(key, str):
            raise TypeError(f"a stream with a store has a key, a str; got {key!r}")
        (state,) = await finished(store.get_many([key]))
    await batcher.free()
    stream = ClientStream(batcher, streams.open(key, state=state), key, state is not None)
    try:
        yield stream
    finally:
        await batcher.free()
        if stream.handle in streams:  # else it was evicted, and its state given to on_evict
            if store is None:
                streams.close(stream.handle)
            else:
                (state,) = streams.export(stream.handle)
                cancelled = await to_its_end(store.put_many({key: state}))  # where this raises, no state is lost
                if stream.handle in streams:
                    streams.close(stream.handle)
                if cancelled is not None:
                    raise cancelled
