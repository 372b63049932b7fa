"""The machine under the measurements: its hardware and versions, its load, and its peak rates."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from .._backends import backends, module

PEERS = ("torch", "onnxruntime", "openvino", "tensorflow")


# ----------------------------------------------------------------------------------------------------------- what it is
def facts() -> dict[str, str]:
    """Hardware, versions and settings that figures depend on."""
    c, usable = module("c"), backends()  # which chooses the instruction set that FASTLSTM_ISA names
    numbers = {"fastlstm": __version__, "Python": platform.python_version()}
    for name in ("numpy", "numba", *PEERS):
        numbers[name] = version(name) or "not installed"
    found = {
        "machine": f"{platform.machine()}, {platform.platform()}",
        "processor": processor(),
        "caches": caches(),
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not readable",
        "instruction sets": ", ".join(
            name + (" (in use)" if name == c.active_isa() else f" ({why})" if why else "")
            for name, why in c.isas().items()
        ),
        "versions": ", ".join(f"{name} {number}" for name, number in numbers.items()),
        "BLAS of NumPy": blas(),
        "compiler of the extension": "none" if c.lib is None else c.ffi.string(c.lib.fl_compiler()).decode(),
        "backends": ", ".join(name if why is None else f"{name} (not usable: {why})" for name, why in usable.items()),
    }
    tunables = os.environ.get("GLIBC_TUNABLES")
    return found | ({"GLIBC_TUNABLES": tunables} if tunables else {})


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def processor() -> str:
    for line in read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "not known"


def caches() -> str:
    """Sizes of the first core's caches, as the system tells them."""
    found = []
    for at in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if read(f"{at}/type") != "Instruction":
            found.append(f"L{read(f'{at}/level')} {read(f'{at}/size')}")
    return ", ".join(found) or "not known"


def load() -> str:
    """How busy the machine is: the load averages."""
    return " ".join(f"{one:.2f}" for one in os.getloadavg())


def blas() -> str:
    try:
        import numpy as np
        import threadpoolctl
    except ImportError:
        return "not known (threadpoolctl is not installed): its threads are as the environment has them"
    at = str(Path(np.__file__).parent.parent)
    return ", ".join(
        f"{pool['internal_api']} {pool['version']} ({pool.get('architecture', '?')})"
        for pool in threadpoolctl.threadpool_info()
        if pool["user_api"] == "blas" and pool["filepath"].startswith(at)
    )


def blas_threads(n: int) -> AbstractContextManager[Any]:
    """Within this context NumPy's BLAS uses n threads, if threadpoolctl is installed."""
    try:
        import threadpoolctl
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[Any] = threadpoolctl.threadpool_limits(n, user_api="blas")
    return limits


# ----------------------------------------------------------------------------------------------------------- peak rates
LADDER = tuple(2**k for k in range(14, 27))  # bytes a thread reads in turn: 16 KiB (first-level cache) to 64 MiB
FMA_SECONDS, READ_SECONDS = 0.1, 0.03


@dataclass(frozen=True)
class Limits:
    """Peak rates of so many threads together."""

    threads: int
    flops: float  # a second
    bandwidths: dict[int, float]  # bytes each thread reads in turn -> bytes a second, all threads together
    integers: float  # operations on integers of 8 bits a second, two a multiply-add

    def bandwidth(self, footprint: float) -> float:
        """Bytes a second at which `footprint` bytes are read in turn, an equal share by each thread."""
        share = footprint / self.threads
        # The best rate of this size and all larger ones: a larger footprint cannot be quicker but by noise.
        rungs = [rung for rung in self.bandwidths if rung >= share] or [max(self.bandwidths)]
        return max(self.bandwidths[rung] for rung in rungs)

    def seconds(self, flops: float, bytes_read: float, footprint: float, integers: float = 0) -> float:
        """Lower bound of the time in seconds for so many operations and bytes read, and operations on integers."""
        return max(flops / self.flops, integers / self.integers, bytes_read / self.bandwidth(footprint))


def limits(threads: int, seconds: float = FMA_SECONDS) -> Limits | None:
    """Measure the limits of so many threads, with the instruction set in use; None without a usable C extension."""
    c = module("c")
    if c.unusable() is not None:
        return None
    isa = [*c.isas()].index(c.active_isa())
    read_seconds = seconds * READ_SECONDS / FMA_SECONDS
    integers = functools.partial(c.lib.fl_measure_dots, isa, c.lib.FL_INT8, seconds)
    return Limits(
        threads,
        together(threads, functools.partial(c.lib.fl_measure_fma, isa, seconds)),
        {size: together(threads, functools.partial(c.lib.fl_measure_read, isa, size, read_seconds)) for size in LADDER},
        together(threads, integers),
    )


def together(threads: int, rate: Callable[[], float]) -> float:
    """Sum of a rate over so many threads that measure it at the same time."""
    start = threading.Barrier(threads)
    rates: list[float] = []

    def one() -> None:
        start.wait()
        rates.append(rate())

    workers = [threading.Thread(target=one) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(rates)


def command() -> str:
    """The command line of this process."""
    return " ".join(["fastlstm", *sys.argv[1:]])
