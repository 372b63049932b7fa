"""The thread pool under stress, from Python: eight threads, changing thread counts, forks in between; and gunicorn.

`make test-stress` runs it for a minute; otherwise it takes five seconds (FASTLSTM_STRESS_SECONDS).
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from cases import Case, assert_same_bits

import fastlstm as fl
from fastlstm._backends import backends

SECONDS = float(os.environ.get("FASTLSTM_STRESS_SECONDS", 5))
THREADS = 8
ENVIRONMENT = {
    **os.environ,
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, Path(fl.__file__).parent.parent))),
}
HUNG = 30  # seconds after which a child or thread without an answer counts as hung

pytestmark = [
    pytest.mark.skipif(backends()["c"] is not None, reason=f"c: {backends()['c']}"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]

# A case for one thread, and cases that are split by rows, hidden units and directions.
CASES = (
    Case("gru", 3, 2, 5, 9),
    Case("lstm", 6, 64, 64, 128),
    Case("lstm", 20, 1, 128, 256),
    Case("lstm", 6, 33, 40, 65, {"bidirectional": True, "num_layers": 2}, tuple(b % 7 for b in range(33))),
    Case("gru", 6, 40, 64, 100, {"reset_after": False}),
)


class Work:
    """Layers, their inputs and the results that every call must have bit for bit, with any number of threads."""

    def __init__(self) -> None:
        self.tasks = [(case.layer("float32", "c"), case.draw()) for case in CASES]
        with fl.threads(1):
            self.expected = [drawn.run(layer) for layer, drawn in self.tasks]

    def check(self, rng: random.Random) -> None:
        """One call forward and backward, or a few steps of a stream."""
        i = rng.randrange(len(self.tasks))
        layer, drawn = self.tasks[i]
        if rng.random() < 0.2:
            fl.set_num_threads(rng.randint(1, 6))
        if rng.random() < 0.5:
            assert_same_bits(drawn.run(layer), self.expected[i])
        else:
            with fl.threads(rng.randint(1, 6)):
                assert_same_bits(drawn.run(layer), self.expected[i])

    def keep_checking(self, seed: int, until: float) -> None:
        rng = random.Random(seed)
        while time.monotonic() < until:
            self.check(rng)


def fork_and_check(work: Work, seed: int) -> None:
    """A child and its own child use the pool, while other threads of this process use it too."""
    child = os.fork()
    if child == 0:
        signal.alarm(HUNG)  # a hung child prints its stack and dies
        code = 1
        try:
            work.keep_checking(seed, time.monotonic() + 0.05)
            if seed % 4 == 0:
                fork_and_check(work, seed + 1)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"the child hung, or its results are wrong (status {status})"


def stress(seconds: float) -> None:
    """Run the threads and forks for so many seconds; raise the first error of any thread."""
    faulthandler.register(signal.SIGALRM, chain=True)
    work = Work()
    until = time.monotonic() + seconds
    wrong: list[BaseException] = []

    def guarded(seed: int) -> None:
        try:
            work.keep_checking(seed, until)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=guarded, args=(seed,), daemon=True) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    forks = 0
    while time.monotonic() < until and not wrong:
        fork_and_check(work, 1000 + forks)
        forks += 1
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()) + HUNG)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if wrong:
        raise wrong[0]
    work.check(random.Random(0))
    print(f"right results from {THREADS} threads and {forks} forks in {seconds:g} seconds")


def run_this(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this file as a program in a process of its own, without pytest's threads."""
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", __file__, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=SECONDS + 3 * HUNG,
    )


def test_threads_and_forks() -> None:
    done = run_this(str(SECONDS))
    assert done.returncode == 0 and "right results" in done.stdout, done.stderr[-3000:]
    print(done.stdout)


# ------------------------------------------------------------------------------------------------------------ gunicorn
# An application that uses the pool at import, before gunicorn forks its workers, and again in each request.
APPLICATION = """
import os
import numpy as np
import fastlstm as fl

layer = fl.LSTM(64, 128, 2, bidirectional=True, backend="c", seed=0)
x = np.random.default_rng(0).standard_normal((10, 32, 64)).astype(np.float32)

def answer():
    with fl.threads(2):
        y, _, tape = layer.forward(x)
        dx, _, _ = layer.backward(tape, np.ones_like(y))
    return y.tobytes() + dx.tobytes()

expected = answer()

def application(environ, start_response):
    body = f"{os.getpid()} {'right' if answer() == expected else 'wrong'}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of the application in gunicorn, with two workers that are forked after the import."""
    (tmp_path / "application.py").write_text(APPLICATION, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--timeout", "20", "--bind", address]
    log = tmp_path / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [*command, "application"],
            cwd=tmp_path,
            env={**ENVIRONMENT, "HOME": str(tmp_path)},
            stdout=file,
            stderr=file,
        )
    try:
        yield address
    finally:
        server.terminate()
        server.wait(30)
        print(log.read_text())


def get(address: str, patience: float) -> str:
    """The answer of a server that may still be starting."""
    until = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/", timeout=20) as response:
                return str(response.read().decode())
        except urllib.error.URLError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


@pytest.mark.skipif(find_spec("gunicorn") is None, reason="gunicorn is not installed")
def test_gunicorn_with_a_warm_pool(served: str) -> None:
    """Libraries on OpenMP hang here: their pool does not survive the fork."""
    answers = [get(served, 30).split() for _ in range(20)]
    assert {word for _, word in answers} == {"right"}
    assert len({pid for pid, _ in answers}) <= 2


if __name__ == "__main__":
    stress(float(sys.argv[1]))
