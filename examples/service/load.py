"""An open-loop load on the service: latencies, streams per core, and the server's processor time beside contenders.

    python load.py [--frame-ms 32] [--rows 1] [--seconds 5] [--kinds fastlstm echo ort-shared ort-each]

Every stream sends a message of `rows` rows in each frame, at times that the clock sets: a late answer does not delay
the next message, and its latency counts from the time when it was due. For each kind the number of streams is doubled
while the 99th percentile stays below a frame. Then all kinds get the same load, in turns, and the server's processor
time for a message is compared. Server and load run in processes of their own, on this machine. The figures depend on
the machine:

Expected output (2 cores of an AMD EPYC, Zen 4), of --rows 1:

    one line for each kind and number of streams, then the processor time for a message
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from statistics import median

import numpy as np
import wire
from client import Client

HERE = Path(__file__).parent
I = 40  # noqa: E741  inputs of the service's default layer
KINDS = ("fastlstm", "echo", "ort-shared", "ort-each")


class Server:
    """A server process of one kind."""

    def __init__(self, kind: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "--log-level", "error"]
        command += ["--port", str(self.port), "--ws-per-message-deflate", "false", "service:app"]
        self.process = subprocess.Popen(command, env={**os.environ, "KIND": kind, "DRAIN_SECONDS": "0"}, cwd="/")
        deadline = time.monotonic() + 60
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server of kind {kind} did not start")
            time.sleep(0.05)

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/stream"

    def cpu_seconds(self) -> float:
        """Processor time of the server so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)


async def one_stream(client: Client, frame: float, rows: int, first: float, until: float, late: list[float]) -> None:
    """Messages at first, first + frame ...; appends the seconds from due to answered."""
    payload = np.random.default_rng(0).uniform(-1, 1, (rows, I)).astype(np.float32).tobytes()
    due: list[float] = []

    async def receive() -> None:
        for at in range(count):
            data = await client.socket.recv()
            if data[1] != wire.OK:
                raise RuntimeError(f"the service refused a message: {bytes(data[8:])!r}")
            late.append(time.perf_counter() - due[at])

    count = max(1, int((until - first) / frame))
    due.extend(first + k * frame for k in range(count))
    receiver = asyncio.create_task(receive())
    for k in range(count):
        wait = due[k] - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        await client.socket.send(wire.request(wire.STEP, k, payload, rows=rows))
    await asyncio.wait_for(receiver, 30)


async def load(server: Server, streams: int, frame: float, rows: int, seconds: float) -> tuple[np.ndarray, float]:
    """(latencies in seconds, the server's processor time of a message in microseconds)."""
    clients = [await Client.open(server.url, "") for _ in range(streams)]
    late: list[float] = []
    begin, before = time.perf_counter() + 0.05, server.cpu_seconds()
    firsts = begin + np.random.default_rng(1).uniform(0, frame, streams)
    await asyncio.gather(
        *(one_stream(c, frame, rows, first, begin + seconds, late) for c, first in zip(clients, firsts, strict=True))
    )
    used = server.cpu_seconds() - before
    for c in clients:
        await c.socket.close()
    return np.array(late), used / len(late) * 1e6


def shown(kind: str, streams: int, late: np.ndarray, us: float) -> str:
    p50, p99, p999 = np.percentile(late, [50, 99, 99.9]) * 1e3
    return (
        f"{kind:11} {streams:5} streams: p50 {p50:6.2f} ms, p99 {p99:6.2f}, p99.9 {p999:6.2f}, longest "
        f"{late.max() * 1e3:6.2f}; {us:5.1f} us of processor time a message"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frame-ms", type=float, default=32)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--streams", type=int, default=16, help="the smallest number of streams")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    frame = options.frame_ms / 1e3
    servers = {kind: Server(kind) for kind in options.kinds}
    try:
        best = {}
        for kind, server in servers.items():
            streams = options.streams
            while True:
                late, us = asyncio.run(load(server, streams, frame, options.rows, options.seconds))
                print(shown(kind, streams, late, us), flush=True)
                if np.percentile(late, 99) >= frame or streams >= 4096:
                    break
                best[kind], streams = streams, 2 * streams
        print(f"most streams with p99 below a frame of {options.frame_ms:g} ms: {best}")
        used: dict[str, list[float]] = {kind: [] for kind in servers}
        same = max(1, min(best.values()) // 2) if len(best) == len(servers) else options.streams
        for _ in range(options.rounds):
            for kind, server in servers.items():
                used[kind].append(asyncio.run(load(server, same, frame, options.rows, options.seconds))[1])
        for kind, all_of in used.items():
            print(f"{kind:11} {same} streams, {options.rows} rows a message: {median(all_of):.1f} us of processor time")
        if {"fastlstm", "echo", "ort-shared"} <= set(used):
            of = {kind: median(all_of) for kind, all_of in used.items()}
            ratio = (of["ort-shared"] - of["echo"]) / max(1e-9, of["fastlstm"] - of["echo"])
            print(f"above echo-only: ONNX Runtime's shared session takes {ratio:.2f} times as much as fastlstm")
    finally:
        for server in servers.values():
            server.end()


if __name__ == "__main__":
    main()
