"""Thousands of streams that are opened, fed, exported and closed for a while: memory, threads and values stay."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fastlstm as fl
from fastlstm._backends import backends

STREAMS = 10_000
SHORT = float(os.environ.get("FASTLSTM_SOAK_SECONDS", "60"))
LONG = 600.0
ROOM = 24 << 20  # bytes that the process may grow by meanwhile

STATM = Path("/proc/self/statm")
pytestmark = [
    pytest.mark.skipif(backends()["c"] is not None, reason=f"c: {backends()['c']}"),
    pytest.mark.skipif(not STATM.exists(), reason="this system does not tell how much memory a process has"),
]


def resident() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Clients:
    """Clients that come and go. What a stream must give is computed again from its seed, by a stream of its own."""

    def __init__(self) -> None:
        self.layer = fl.GRU(8, 24, seed=1)
        self.batch = fl.StreamBatch(self.layer, max_streams=STREAMS)
        self.rng = np.random.default_rng(0)
        self.done: dict[int, int] = {}  # steps of each open stream, by its key
        self.kept: dict[int, bytes] = {}  # states of streams that are away
        self.steps: dict[int, int] = {}  # their steps
        self.next = 0
        self.table = np.random.default_rng(1).standard_normal((4096, 8)).astype(np.float32)

    def rows(self, keys: list[int], steps: list[int]) -> np.ndarray:
        """The input (n, 8) of each stream at one of its steps."""
        return self.table[(np.array(keys, int) * 31 + np.array(steps, int)) % len(self.table)]

    def fill(self) -> None:
        while len(self.batch) < STREAMS:
            if self.kept and self.rng.random() < 0.5:
                key, state = self.kept.popitem()
                self.batch.open(key, state=state)
                self.done[key] = self.steps.pop(key)
            else:
                self.batch.open(self.next)
                self.done[self.next] = 0
                self.next += 1

    def turn(self) -> None:
        """Some streams step, some get pieces, some leave for good, some leave with their states."""
        keys = self.rng.choice(np.array(list(self.done)), 600, replace=False).tolist()
        step, piece, leave, away = keys[:300], keys[300:400], keys[400:500], keys[500:]
        handle = self.batch.handle_of
        self.batch.step([handle(k) for k in step], self.rows(step, [self.done[k] for k in step]))
        for key in step:
            self.done[key] += 1
        lengths = self.rng.integers(0, 5, len(piece)).tolist()
        rows = [
            self.rows([k] * n, list(range(self.done[k], self.done[k] + n))) for k, n in zip(piece, lengths, strict=True)
        ]
        self.batch.feed([handle(k) for k in piece], np.concatenate(rows), lengths)
        for key, n in zip(piece, lengths, strict=True):
            self.done[key] += n
        self.batch.close([handle(k) for k in leave])
        for key, state in zip(away, self.batch.export([handle(k) for k in away], drop=True), strict=True):
            self.kept[key], self.steps[key] = state, self.done.pop(key)
        for key in leave:
            del self.done[key]
        while len(self.kept) > 1000:
            gone = next(iter(self.kept))
            del self.kept[gone], self.steps[gone]
        self.fill()

    def check(self, n: int) -> None:
        """The states of some streams are those of streams alone that got the same rows."""
        for key in self.rng.choice(np.array(list(self.done)), n, replace=False).tolist():
            stream = self.layer.stream()
            steps = self.done[key]
            if steps:
                stream.run(self.rows([key] * steps, list(range(steps))))
            (state,) = self.batch.export(self.batch.handle_of(key))
            assert state[40:-4] == stream.state.tobytes(), f"stream {key} after {steps} steps"


def soak(seconds: float) -> None:
    clients = Clients()
    clients.fill()
    for _ in range(30):
        clients.turn()
    before, threads, capacity = resident(), threading.active_count(), clients.batch.stats()["capacity"]
    until, turns = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        clients.turn()
        turns += 1
        if turns % 20 == 0:
            clients.check(20)
    clients.check(200)
    stats = clients.batch.stats()
    assert stats["streams"] == STREAMS and stats["capacity"] == capacity, "closed streams' places are taken again"
    assert stats["opened"] - stats["closed"] == STREAMS and stats["rows"] > 300 * turns
    assert threading.active_count() == threads
    assert resident() - before < ROOM, f"the process grew by {(resident() - before) >> 20} MiB in {turns} turns"


def test_streams_come_and_go() -> None:
    soak(SHORT)


@pytest.mark.slow
def test_streams_come_and_go_for_long() -> None:
    soak(LONG)
