"""Messages of many rows, joined: what comes within some milliseconds is one call of `StreamBatch.feed`."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

import fastlstm as fl

MOST_ROWS = 1024  # of a call: it keeps the event loop for about two milliseconds


class Pieces:
    """The pieces that wait, at most one of each stream: a connection asks again when it has its answer.

    Rows of several streams in one call take two thirds of the time, and their answers leave together.
    """

    def __init__(self, streams: fl.StreamBatch, wait_us: float) -> None:
        self.streams, self.wait_us, self.rows = streams, wait_us, 0  # rows: of all calls
        self.waiting: list[tuple[int, np.ndarray, asyncio.Future[np.ndarray]]] = []
        self.waiting_rows = 0
        self.timer: asyncio.TimerHandle | None = None

    async def feed(self, handle: int, x: np.ndarray) -> Any:
        """Outputs (rows, U) of rows (rows, I) of one stream."""
        if not self.wait_us:
            self.rows += len(x)
            return self.streams.feed([handle], x, [len(x)])
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        self.waiting.append((handle, x, answer))
        self.waiting_rows += len(x)
        if self.waiting_rows >= MOST_ROWS:
            self.flush()
        elif self.timer is None:
            self.timer = loop.call_later(self.wait_us * 1e-6, self.flush)
        return await answer

    def flush(self) -> None:
        """Answer the pieces that wait, but those of clients that have vanished."""
        if self.timer is not None:
            self.timer.cancel()
        waiting, self.waiting, self.waiting_rows, self.timer = self.waiting, [], 0, None
        waiting = [one for one in waiting if not one[2].done() and one[0] in self.streams]
        if not waiting:
            return
        handles, pieces, answers = zip(*waiting, strict=True)
        lengths = [len(x) for x in pieces]
        self.rows += sum(lengths)
        try:
            y = self.streams.feed(handles, np.concatenate(pieces), lengths)
        except Exception as error:  # each client is told; else all of them would wait for ever
            for answer in answers:
                answer.set_exception(error)
            return
        for answer, rows in zip(answers, np.split(y, np.cumsum(lengths)[:-1]), strict=True):
            answer.set_result(rows)
