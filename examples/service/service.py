"""Streams of a recurrent layer behind a WebSocket: FastAPI, asyncio, one process a core.

    pip install fastlstm fastapi uvicorn websockets gunicorn
    uvicorn --app-dir examples/service --port 8000 service:app
    gunicorn --chdir examples/service --preload --workers 2 --bind :8000 -k uvicorn.workers.UvicornWorker service:app

Environment: MODEL, a file of `layer.save` (default: LSTM(40, 128), random weights); STORE, a folder for states
(default: none are kept); SAVE_SECONDS, how often all states are put there (default 5); DRAIN_SECONDS, how long steps
go on after SIGTERM (default 2); MAX_STREAMS (default 10000); WAIT_US, microseconds for which a message waits for
others, to share a step with them (default 0). KIND compares: "echo" computes nothing, "ort-shared" and
"ort-each" run ONNX Runtime.

`wire` describes the messages. /healthz answers while the process lives, /readyz only while new streams are taken,
/metrics is Prometheus's text. With --preload the weights are packed before the fork, and all workers share their
memory.

SIGTERM: not ready, no new streams; steps go on for DRAIN_SECONDS; every state is put into the store; the connections
are closed with code 1012 (service restart). The next process goes on by the keys. A process that is killed loses at
most what came after the last SAVE_SECONDS; the answer to OPEN tells a client from which step to send again.

Expected output: that of the server, and no more.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import metrics
import models
import wire
from fastapi import FastAPI, Response, WebSocket
from pieces import Pieces
from starlette.websockets import WebSocketDisconnect

import fastlstm as fl
from fastlstm.aio import Batcher, BatcherClosed, QueueFull
from fastlstm.streams import FileStore, StateError, StreamsFull

RESTART = 1012  # WebSocket's code for a service that comes again
LAYER = models.layer_of(os.environ.get("MODEL"))
LAYER.stream()  # packs the weights: before gunicorn's fork with --preload


class Service:
    """The streams of one process."""

    def __init__(self, layer: Any) -> None:
        env = os.environ.get
        self.layer = layer
        self.streams = fl.StreamBatch(layer, max_streams=int(env("MAX_STREAMS", "10000")))
        wait_us = float(env("WAIT_US", "0"))
        # All steps run in the event loop (inline_us): pieces use the streams between two batches.
        self.batcher = Batcher(self.streams, max_wait_us=wait_us, inline_us=1e9)
        self.pieces = Pieces(self.streams, wait_us)
        folder = env("STORE")
        self.store = FileStore(folder) if folder else None
        self.kind = env("KIND", "fastlstm")
        if self.kind not in models.KINDS:
            raise ValueError(f"KIND must be one of {', '.join(models.KINDS)}, got {self.kind!r}")
        self.save_seconds, self.drain_seconds = float(env("SAVE_SECONDS", "5")), float(env("DRAIN_SECONDS", "2"))
        self.ready = True
        self.clients: set[WebSocket] = set()
        self.closed = Counter(client=0, drain=0)
        self.refused = Counter(full=0, drain=0, key=0)
        self.restores = Counter(ok=0, none=0, error=0)

    # ------------------------------------------------------------------------------------------------------- one client
    async def serve(self, socket: WebSocket) -> None:
        """Answer the messages of one connection until it ends."""
        await socket.accept()
        self.clients.add(socket)
        try:
            if self.kind == "fastlstm":
                await self.serve_stream(socket)
            else:
                await self.serve_other(socket)
        except WebSocketDisconnect:
            pass
        finally:
            self.clients.discard(socket)

    async def serve_stream(self, socket: WebSocket) -> None:
        """OPEN, then steps of that stream."""
        data = await socket.receive_bytes()
        if len(data) < wire.HEADER.size or data[0] != wire.OPEN:
            await refuse(socket, 0, 0, wire.WRONG, "a connection begins with OPEN")
            return
        _, _, _, number = wire.HEADER.unpack_from(data)
        key = data[wire.HEADER.size :].decode("utf-8", "replace") or None
        if not self.ready:
            self.refused["drain"] += 1
            await refuse(socket, wire.OPEN, number, wire.GONE, "the service ends: connect again")
            return
        try:
            handle = self.open(key)
        except StreamsFull as error:
            self.refused["full"] += 1
            await refuse(socket, wire.OPEN, number, wire.BUSY, str(error))
            return
        except StateError as error:
            self.restores["error"] += 1
            await refuse(socket, wire.OPEN, number, wire.WRONG, str(error))
            return
        except ValueError as error:  # another connection has the key
            self.refused["key"] += 1
            await refuse(socket, wire.OPEN, number, wire.BUSY, str(error))
            return
        try:
            steps = wire.STEPS.pack(self.streams.steps(handle))
            await socket.send_bytes(wire.HEADER.pack(wire.OPEN, wire.OK, 0, number) + steps)
            while await self.answer(socket, handle, key):
                pass
        finally:
            self.close(handle, key)

    def open(self, key: str | None) -> int:
        """A stream, with the state that the store has under the key. No await: nothing comes in between."""
        state = self.store.get_many([key])[0] if self.store and key else None
        handle = self.streams.open(key, state=state)
        self.restores["ok" if state else "none"] += 1
        return handle

    def close(self, handle: int, key: str | None) -> None:
        """End a stream; its state goes to the store. No await, so that a cancelled connection does it too."""
        if handle not in self.streams:
            return
        if self.store and key:
            (state,) = self.streams.export(handle)
            self.store.put_many({key: state})  # where this raises, the stream stays open: no state is lost
        self.streams.close(handle)
        self.closed["client" if self.ready else "drain"] += 1

    async def answer(self, socket: WebSocket, handle: int, key: str | None) -> bool:
        """Answer one message; False at the end of the stream."""
        data = await socket.receive_bytes()
        if len(data) < wire.HEADER.size:
            await refuse(socket, wire.CLOSE, 0, wire.WRONG, f"{len(data)} bytes are no header")
            return True
        what, form, rows, number = wire.HEADER.unpack_from(data)
        if what == wire.STEP:
            try:
                x = wire.rows_of(memoryview(data)[wire.HEADER.size :], form, rows, self.layer.input_size)
                y = await self.batcher.step(handle, x[0]) if rows == 1 else await self.pieces.feed(handle, x)
            except ValueError as error:
                await refuse(socket, what, number, wire.WRONG, str(error))
            except QueueFull as error:
                await refuse(socket, what, number, wire.BUSY, f"{error.retry_after:.3f}")
            except BatcherClosed as error:
                await refuse(socket, what, number, wire.GONE, str(error))
            else:
                await socket.send_bytes(wire.HEADER.pack(what, wire.OK, rows, number) + y.tobytes())
            return True
        if what == wire.SNAPSHOT and self.store and key:
            self.store.put_many({key: self.streams.export(handle)[0]})
        elif what != wire.CLOSE:
            await refuse(socket, what, number, wire.WRONG, "this message is not known, or there is no store")
            return True
        await socket.send_bytes(wire.HEADER.pack(what, wire.OK, 0, number))
        return what != wire.CLOSE

    async def serve_other(self, socket: WebSocket) -> None:
        """The same messages for a contender, without a store."""
        other = models.Other(self.kind, self.layer)
        while True:
            data = await socket.receive_bytes()
            what, form, rows, number = wire.HEADER.unpack_from(data)
            head = wire.HEADER.pack(what, wire.OK, rows, number)
            if what == wire.STEP:
                x = wire.rows_of(memoryview(data)[wire.HEADER.size :], form, rows, self.layer.input_size)
                await socket.send_bytes(head + other.run(x).tobytes())
            else:
                await socket.send_bytes(head + (wire.STEPS.pack(0) if what == wire.OPEN else b""))

    # ------------------------------------------------------------------------------------------------------ the process
    def save(self) -> None:
        """Put the states of all streams with a key into the store."""
        keys = [str(key) for key in self.streams.keys()]  # noqa: SIM118
        if self.store and keys:
            handles = [self.streams.handle_of(key) for key in keys]
            self.store.put_many(dict(zip(keys, self.streams.export(handles), strict=True)))

    async def save_often(self) -> None:
        """`save` for ever."""
        while True:
            await asyncio.sleep(self.save_seconds)
            await self.batcher.free()
            self.save()

    async def drain(self) -> None:
        """The end by SIGTERM: not ready, steps for a while, states to the store, connections closed."""
        self.ready = False
        await asyncio.sleep(self.drain_seconds)
        await self.batcher.drain(timeout=self.drain_seconds)
        self.pieces.flush()
        self.save()
        for socket in list(self.clients):
            with suppress(RuntimeError):  # it has ended by itself
                await socket.close(RESTART, "the service ends: connect again")


async def refuse(socket: WebSocket, what: int, number: int, status: int, why: str) -> None:
    """Answer a request with a status other than OK, and a text."""
    await socket.send_bytes(wire.HEADER.pack(what, status, 0, number) + why.encode())


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The service of this process, from its start to its end."""
    service = app.state.service = Service(LAYER)
    saving = asyncio.create_task(service.save_often())
    before = signal.getsignal(signal.SIGTERM)  # the server's
    loop, ends = asyncio.get_running_loop(), []

    async def end() -> None:
        await service.drain()
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)
        os.kill(os.getpid(), signal.SIGTERM)  # the server ends in its own way

    loop.add_signal_handler(signal.SIGTERM, lambda: ends or ends.append(loop.create_task(end())))
    yield
    saving.cancel()
    service.save()


app = FastAPI(lifespan=lifespan)


@app.websocket("/stream")
async def stream(socket: WebSocket) -> None:
    await app.state.service.serve(socket)


@app.get("/healthz")
async def healthz() -> Response:
    return Response("alive\n")


@app.get("/readyz")
async def readyz() -> Response:
    ready = app.state.service.ready
    return Response("ready\n" if ready else "draining\n", status_code=200 if ready else 503)


@app.get("/metrics")
async def metrics_text() -> Response:
    return Response(metrics.text(app.state.service), media_type="text/plain; version=0.0.4")
