"""A client of the service: one stream, as a coroutine each for opening, stepping and closing."""

from __future__ import annotations

from typing import Any

import numpy as np
import wire
from websockets.asyncio.client import connect


class Refused(RuntimeError):
    """The service has answered with a status other than OK: ``status``, one of `wire`."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Client:
    """One stream of the service, over a connection of its own."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.number = socket, 0
        self.steps = 0  # that the stream had done when it was opened

    @classmethod
    async def open(cls, url: str, key: str = "") -> Client:
        """Connect, and begin the stream or go on with it."""
        client = cls(await connect(url, compression=None, max_size=None, ping_interval=None))
        (client.steps,) = wire.STEPS.unpack(await client.ask(wire.OPEN, key.encode()))
        return client

    async def ask(self, what: int, payload: bytes = b"", form: int = wire.FLOAT32, rows: int = 0) -> bytes:
        """What follows the header of the answer.

        Raises
        ------
        Refused
        """
        self.number += 1
        await self.socket.send(wire.request(what, self.number, payload, form, rows))
        data = await self.socket.recv()
        _, status, _, number = wire.HEADER.unpack_from(data)
        if status != wire.OK:
            raise Refused(status, bytes(data[wire.HEADER.size :]).decode())
        if number != self.number:
            raise RuntimeError(f"the answer is to request {number}, not {self.number}")
        return bytes(data[wire.HEADER.size :])

    async def step(self, x: np.ndarray, form: int = wire.FLOAT32) -> np.ndarray:
        """Outputs (rows, U) of rows (rows, I)."""
        answer = await self.ask(wire.STEP, x.tobytes(), form, len(x))
        return np.frombuffer(answer, "<f4").reshape(len(x), -1)

    async def snapshot(self) -> None:
        """Let the service put the state into its store."""
        await self.ask(wire.SNAPSHOT)

    async def close(self) -> None:
        """End the stream."""
        await self.ask(wire.CLOSE)
        await self.socket.close()
