"""An open-loop load on the service: latencies, streams per core, processor time beside contenders, overload.

    python load.py [--part search compare overload] [--frame-ms 32] [--rows 1 32] [--seconds 5] [--streams 16]

Every stream sends a message of `rows` rows in each frame, at times that the clock sets: a late answer does not delay
the next message, and its latency counts from the time when it was due. Server and load run in processes of their own,
on this machine.

    search    for each kind of server the number of streams is doubled while the 99th percentile stays below a frame
    compare   all kinds get the load of `streams` streams, in turns; the server's processor time for a message, in all
              and above that of a server that computes nothing
    overload  the service takes as many streams as the search found (MAX_STREAMS), and twice as many clients come: what
              those get that it takes, and how often the others are turned away

The figures depend on the machine:

Expected output (2 cores of an AMD EPYC, Zen 4), of --rows 1:

    one line for each kind and number of streams; the processor time for a message; what overload leaves
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
from client import Client, Refused

HERE = Path(__file__).parent
I = 40  # noqa: E741  inputs of the service's default layer
KINDS = ("fastlstm", "echo", "ort-shared", "ort-each")
QUIET = {"DRAIN_SECONDS": "0", "SAVE_SECONDS": "3600", "FASTLSTM_NUM_THREADS": "1"}  # of the server's environment
MOST = 4096  # streams of a search
AGAIN = 0.5  # seconds after which a client that was turned away comes again


class Server:
    """A server process of one kind."""

    def __init__(self, kind: str, **env: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "--log-level", "error"]
        command += ["--port", str(self.port), "--ws-per-message-deflate", "false", "service:app"]
        self.process = subprocess.Popen(command, env={**os.environ, "KIND": kind, **QUIET, **env}, cwd="/")
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
        """Processor time of all threads of the server so far."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

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
    late, used = await all_of(server, clients, frame, rows, seconds)
    for c in clients:
        await c.socket.close()
    return late, used / len(late) * 1e6


async def all_of(
    server: Server, clients: list[Client], frame: float, rows: int, seconds: float
) -> tuple[np.ndarray, float]:
    """(latencies in seconds in the order of the answers, the server's processor time in seconds)."""
    late: list[float] = []
    begin, before = time.perf_counter() + 0.05, server.cpu_seconds()
    firsts = begin + np.random.default_rng(1).uniform(0, frame, len(clients))
    await asyncio.gather(
        *(one_stream(c, frame, rows, first, begin + seconds, late) for c, first in zip(clients, firsts, strict=True))
    )
    return np.array(late), server.cpu_seconds() - before


def shown(late: np.ndarray) -> str:
    p50, p99, p999 = np.percentile(late, [50, 99, 99.9]) * 1e3
    return f"p50 {p50:6.2f} ms, p99 {p99:6.2f}, p99.9 {p999:6.2f}, longest {late.max() * 1e3:6.2f}"


# ------------------------------------------------------------------------------------------------------------ the parts
def search(kind: str, frame: float, rows: int, options: argparse.Namespace) -> int:
    """The most streams, doubled from the first number on, with a p99 below a frame; 0 where even those are too many."""
    server, best, streams = Server(kind), 0, options.streams
    try:
        while streams <= MOST:
            late, us = asyncio.run(load(server, streams, frame, rows, options.seconds))
            print(f"{kind:11} {streams:5} streams: {shown(late)}; {us:5.1f} us of processor time a message", flush=True)
            if np.percentile(late, 99) >= frame:
                break
            best, streams = streams, 2 * streams
    finally:
        server.end()
    print(f"{kind:11} most streams with p99 below a frame of {1e3 * frame:g} ms: {best}", flush=True)
    return best


def compare(frame: float, rows: int, options: argparse.Namespace) -> None:
    """The server's processor time of a message, of all kinds in turns."""
    used: dict[str, list[float]] = {kind: [] for kind in options.kinds}
    servers: dict[str, Server] = {}
    try:
        for kind in options.kinds:
            servers[kind] = Server(kind)
        for _ in range(options.rounds):
            for kind, server in servers.items():
                used[kind].append(asyncio.run(load(server, options.streams, frame, rows, options.seconds))[1])
    finally:
        for server in servers.values():
            server.end()
    of = {kind: median(each) for kind, each in used.items()}
    for kind, us in of.items():
        each = ", ".join(f"{one:.1f}" for one in used[kind])
        above = f", {us - of['echo']:.1f} above echo" if "echo" in of else ""
        print(f"{kind:11} {options.streams} streams, {rows} rows a message: {us:.1f} us of the server's processor time "
              f"({each}){above}; {1e6 / us:.0f} messages for each of its seconds", flush=True)  # fmt: skip
    for kind in ("ort-shared", "ort-each"):
        if {kind, "fastlstm", "echo"} <= set(of) and of["fastlstm"] > of["echo"]:
            ratio = (of[kind] - of["echo"]) / (of["fastlstm"] - of["echo"])
            print(f"above echo, {rows} rows a message: {kind} / fastlstm {ratio:.2f}", flush=True)


async def overloaded(server: Server, most: int, frame: float, rows: int, seconds: float) -> tuple[np.ndarray, int]:
    """(latencies of the streams that were taken, number of refusals), where twice as many clients come."""
    taken: list[Client] = []
    refused = 0

    async def come() -> None:
        nonlocal refused
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                taken.append(await Client.open(server.url, ""))
                return
            except Refused:
                refused += 1
            await asyncio.sleep(AGAIN)

    coming = [asyncio.create_task(come()) for _ in range(2 * most)]
    while len(taken) < most:
        await asyncio.sleep(0.01)
    late, _ = await all_of(server, list(taken), frame, rows, seconds)
    await asyncio.gather(*coming)
    for c in taken:
        await c.socket.close()
    return late, refused


def overload(best: int, frame: float, rows: int, options: argparse.Namespace) -> float:
    """Goodput with twice the clients by that with as many as the service can serve; prints both."""
    server = Server("fastlstm", MAX_STREAMS=str(best))
    try:
        alone, _ = asyncio.run(load(server, best, frame, rows, options.seconds))
        late, refused = asyncio.run(overloaded(server, best, frame, rows, options.seconds))
    finally:
        server.end()
    goodput = [int((each < frame).sum()) / options.seconds for each in (late, alone)]
    thirds = [1e3 * median(part) for part in np.array_split(late, 3)]
    print(f"{2 * best} clients, {best} streams at most: {goodput[0]:.0f} / {goodput[1]:.0f} answers a second within "
          f"a frame, {goodput[0] / goodput[1]:.2f} of the best; {refused} times turned away\n  {shown(late)}; p50 of "
          f"each third of the time {', '.join(f'{one:.2f}' for one in thirds)} ms", flush=True)  # fmt: skip
    return goodput[0] / goodput[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=("search", "compare", "overload"), default=["search", "compare"])
    parser.add_argument("--frame-ms", type=float, default=32)
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--streams", type=int, default=16, help="of the comparison, and at first of the search")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    frame = options.frame_ms / 1e3
    for rows in options.rows:
        best = {}
        if "search" in options.part:
            best = {kind: search(kind, frame, rows, options) for kind in options.kinds}
        if "compare" in options.part:
            compare(frame, rows, options)
        if "overload" in options.part:
            most = best.get("fastlstm") or search("fastlstm", frame, rows, options)
            overload(max(1, most), frame, rows, options)


if __name__ == "__main__":
    main()
