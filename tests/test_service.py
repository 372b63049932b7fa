"""examples/service: a real server process, its messages, its end, and clients and processes that vanish."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl

FOLDER = Path(__file__).parent.parent / "examples" / "service"
missing = [name for name in ("fastapi", "uvicorn", "websockets") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
    pytest.mark.skipif(not FOLDER.exists(), reason="the examples are not installed with the package"),
]
I, T = 5, 40  # noqa: E741


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's modules `client` and `wire`; `load` and `pieces` can be imported, too."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import client
    import wire

    yield client, wire
    for name in ("client", "wire", "load", "pieces"):
        sys.modules.pop(name, None)


class Server:
    """A server process on a free port."""

    def __init__(self, folder: Path, layer: Any, command: list[str] | None = None, **env: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        layer.save(folder / "model.safetensors")
        self.env = {**os.environ, "MODEL": str(folder / "model.safetensors"), "STORE": str(folder / "store"),
                    "SAVE_SECONDS": "0.2", "DRAIN_SECONDS": "0.3", **env}  # fmt: skip
        uvicorn = [sys.executable, "-m", "uvicorn", "--app-dir", str(FOLDER), "--log-level", "warning",
                   "--port", str(self.port), "service:app"]  # fmt: skip
        self.command = [part.replace("PORT", str(self.port)) for part in command] if command else uvicorn
        self.log = (folder / "log.txt").open("a+")
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, env=self.env, cwd="/", stdout=self.log, stderr=self.log, start_new_session=True
        )
        deadline = time.monotonic() + 60
        while self.get("/readyz")[0] != 200:
            assert time.monotonic() < deadline and self.process.poll() is None, self.said()
            time.sleep(0.05)

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""
        except OSError:
            return 0, ""

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/stream"

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            os.killpg(self.process.pid, how)
        return self.process.wait(30)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    """Starts servers, and ends them after the test."""
    made: list[Server] = []

    def start(layer: Any, command: list[str] | None = None, **env: str) -> Server:
        made.append(Server(tmp_path, layer, command, **env))
        return made[-1]

    yield start
    for one in made:
        one.end(signal.SIGKILL)


def inputs(seed: int, T: int = T) -> Any:
    return np.random.default_rng(seed).normal(size=(T, I)).astype(np.float32)


def alone(layer: Any, x: Any) -> Any:
    """The outputs of a stream that is stepped by itself."""
    stream = layer.stream()
    return np.stack([stream.step(row) for row in x])


def metric(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
    assert found is not None, f"{name} is not among\n{text}"
    return float(found[1])


def test_messages_answers_and_metrics(server: Any, modules: Any) -> None:
    client, wire = modules
    layer = fl.GRU(I, 6, seed=0)
    running, x = server(layer), inputs(0)

    async def main() -> None:
        one = await client.Client.open(running.url, "a")
        assert one.steps == 0
        y = [await one.step(x[:1]), await one.step(x[1:17]), await one.step(x[17:])]
        assert np.array_equal(np.concatenate(y), alone(layer, x))
        sound = (x * 1000).astype(np.int16)
        other = await client.Client.open(running.url)
        got = await other.step(sound, wire.INT16)
        assert np.array_equal(got, alone(layer, sound.astype(np.float32) / 32768))
        with pytest.raises(client.Refused, match="15 bytes are not 1 rows of 5 numbers"):
            await other.ask(wire.STEP, bytes(15), wire.FLOAT32, 1)
        with pytest.raises(client.Refused, match="has an open stream"):
            await client.Client.open(running.url, "a")
        assert np.array_equal(await other.step(x[:1]), alone_after(layer, sound, x[:1]))
        text = running.get("/metrics")[1]
        assert metric(text, "fastlstm_streams") == 2 and metric(text, 'fastlstm_rejected_total{reason="key"}') == 1
        assert metric(text, "fastlstm_steps_total") == 2 * T + 1
        assert metric(text, 'fastlstm_batches_total{why="alone"}') == 2
        assert metric(text, 'fastlstm_batch_rows_bucket{le="+Inf"}') == metric(text, "fastlstm_batch_rows_count") == 2
        assert '"a"' not in text, "no label names a stream"
        await one.close()
        await other.close()
        assert metric(running.get("/metrics")[1], "fastlstm_streams") == 0
        assert running.get("/healthz") == (200, "alive\n")

    asyncio.run(asyncio.wait_for(main(), 60))


def alone_after(layer: Any, sound: Any, x: Any) -> Any:
    """The output of x behind all rows of sound."""
    return alone(layer, np.concatenate((sound.astype(np.float32) / 32768, x)))[-1:]


def test_sigterm_drains_and_the_next_process_goes_on(server: Any, modules: Any) -> None:
    client, wire = modules
    layer = fl.LSTM(I, 6, seed=0)
    running = server(layer, DRAIN_SECONDS="0.5")
    x = [inputs(seed) for seed in range(6)]

    async def before() -> tuple[list[Any], list[int | None]]:
        clients = [await client.Client.open(running.url, f"key {i}") for i in range(6)]
        y = [[await c.step(x[i][:3])] for i, c in enumerate(clients)]
        os.kill(running.process.pid, signal.SIGTERM)
        await asyncio.sleep(0.15)
        assert running.get("/readyz")[0] == 503 and running.get("/healthz")[0] == 200
        with pytest.raises(client.Refused, match="the service ends") as refused:
            await client.Client.open(running.url, "late")
        assert refused.value.status == wire.GONE
        for i, c in enumerate(clients):  # steps go on while it drains
            y[i].append(await c.step(x[i][3:7]))
        for c in clients:
            await c.socket.wait_closed()
        return y, [c.socket.close_code for c in clients]

    async def after(y: list[Any]) -> None:
        for i in range(6):
            c = await client.Client.open(running.url, f"key {i}")
            assert c.steps == 7
            y[i].append(await c.step(x[i][7:]))
            assert np.array_equal(np.concatenate(y[i]), alone(layer, x[i]))

    y, codes = asyncio.run(asyncio.wait_for(before(), 60))
    assert codes == [1012] * 6
    assert running.process.wait(20) in (0, -signal.SIGTERM), running.said()
    running.start()
    asyncio.run(asyncio.wait_for(after(y), 60))


def test_chaos(server: Any, modules: Any) -> None:
    """Clients vanish, keys come twice, the process is killed: each stream gets its own outputs.

    Nothing is lost that was acknowledged without a kill after it, or longer before it than the seconds between two
    saves and one second more.
    """
    client, _ = modules
    layer = fl.LSTM(I, 6, seed=0)
    running = server(layer)
    x = [inputs(seed, 400) for seed in range(12)]
    right = [alone(layer, one) for one in x]
    kills, wrong, lost, restored, twice = 2, [], [], 0, 0

    async def one_client(i: int, until: float) -> None:
        nonlocal restored, twice
        rng = np.random.default_rng(i)
        acknowledged = 0
        since: dict[int, float] = {0: time.monotonic()}  # when so many steps were acknowledged
        while time.monotonic() < until:
            try:
                c = await client.Client.open(running.url, f"key {i}")
            except Exception:  # the process was killed, or has not noticed yet that this client had vanished
                await asyncio.sleep(0.05)
                continue
            at = c.steps
            restored += at > 0
            if at < acknowledged:
                first_lost, last_kill = since[at + 1], max(killed, default=0.0)
                if not 0 < last_kill - first_lost < 0.2 + 1.0:
                    lost.append((i, at, acknowledged, last_kill - first_lost))
            try:
                while time.monotonic() < until and at < len(x[i]):
                    n = int(rng.integers(1, 4))
                    n = min(n, len(x[i]) - at)
                    y = await c.step(x[i][at : at + n])
                    if not np.array_equal(y, right[i][at : at + n]):
                        wrong.append((i, at))
                    at += n
                    for step in range(at - n + 1, at + 1):
                        since[step] = time.monotonic()
                    acknowledged = at
                    if rng.random() < 0.05:
                        with pytest.raises((client.Refused, Exception)):
                            await client.Client.open(running.url, f"key {i}")
                        twice += 1
                    if rng.random() < 0.1:
                        c.socket.transport.abort()  # vanishes without a word
                        break
                    await asyncio.sleep(0.01)
                if at >= len(x[i]):
                    return
            except Exception:  # the process was killed
                await asyncio.sleep(0.05)

    killed: list[float] = []

    async def main() -> None:
        begin = time.monotonic()
        clients = [asyncio.create_task(one_client(i, begin + 8)) for i in range(12)]
        for _ in range(kills):
            await asyncio.sleep(1.5)
            killed.append(time.monotonic())
            running.end(signal.SIGKILL)
            await asyncio.to_thread(running.start)
        await asyncio.gather(*clients)

    asyncio.run(asyncio.wait_for(main(), 120))
    assert wrong == [], "a stream has got another one's state, or a wrong one"
    assert lost == [], "more is lost than the window of a save"
    assert restored > 12 and twice > 0


def test_pieces_that_come_together_are_one_call(modules: Any) -> None:
    """Each gets its own rows; those of clients that have vanished are left out, and change nothing."""
    from pieces import Pieces

    layer, x = fl.LSTM(I, 6, seed=0), [inputs(seed, 3 + seed) for seed in range(5)]
    streams = fl.StreamBatch(layer)
    pieces, handles = Pieces(streams, wait_us=5000), [streams.open() for _ in x]

    async def main() -> None:
        asked = [asyncio.create_task(pieces.feed(h, rows)) for h, rows in zip(handles, x, strict=True)]
        await asyncio.sleep(0)
        asked[1].cancel()
        streams.close(handles[3])
        for i in (0, 2, 4):
            assert np.array_equal(await asked[i], alone(layer, x[i]))
        assert streams.steps(handles[1]) == 0 and pieces.rows == 3 + 5 + 7
        assert np.array_equal(await pieces.feed(handles[1], x[1]), alone(layer, x[1]))
        asked[3].cancel()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_twice_the_clients_that_can_be_served(modules: Any, capsys: Any) -> None:
    """The load test's part "overload": those that are taken get all their answers in time, the others are told."""
    import load

    options = argparse.Namespace(seconds=1.0, streams=8)
    goodput = load.overload(8, 0.1, 2, options)
    assert 0.8 <= goodput < 1.2, capsys.readouterr().out
    said = re.search(r"16 clients, 8 streams at most.*; (\d+) times turned away", capsys.readouterr().out)
    assert said and int(said[1]) >= 8


@pytest.mark.skipif(importlib.util.find_spec("gunicorn") is None, reason="gunicorn is not installed")
def test_gunicorn_with_preload(server: Any, modules: Any) -> None:
    """Two workers, packed before the fork: a stream goes on in whichever worker its client meets."""
    client, _ = modules
    layer = fl.LSTM(I, 6, seed=0)
    command = [sys.executable, "-W", "ignore", "-m", "gunicorn", "--chdir", str(FOLDER), "--preload", "--workers", "2",
               "--bind", "127.0.0.1:PORT", "--log-level", "warning", "-k", "uvicorn.workers.UvicornWorker",
               "service:app"]  # fmt: skip
    running, x = server(layer, command), inputs(3)

    async def main() -> None:
        y = []
        for at in range(0, T, 4):
            c = await client.Client.open(running.url, "a")
            assert c.steps == at
            y.append(await c.step(x[at : at + 4]))
            await c.close()
        assert np.array_equal(np.concatenate(y), alone(layer, x))

    asyncio.run(asyncio.wait_for(main(), 60))
    assert running.end() == 0, running.said()
