"""The number of threads of a call, and its origin.

The first of these that is set decides:

1. ``with threads(n):``, for the code inside it (in this Python thread only);
2. ``set_num_threads(n)``, for the whole process;
3. the environment variable ``FASTLSTM_NUM_THREADS``;
4. the environment variable ``OMP_NUM_THREADS`` (of a list for nested levels, the first number);
5. the machine: the cores that this process may run on, or its cgroup's CPU quota (containers), whichever is less.

A value of 1 to 3 that is no number of threads is an error. ``OMP_NUM_THREADS`` is often set for another program, by an
image or a scheduler: a value that is no number of threads (``all``, ``0``, ``1.0``) is ignored with one warning.
Nothing is read at import. The environment and the machine are read once, at the first call that needs the number.
"""

from __future__ import annotations

import functools
import math
import operator
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import SupportsIndex

__all__ = ["get_num_threads", "origin", "set_num_threads", "threads"]

MOST = 1 << 16  # no machine has more cores; C takes 32-bit numbers, of which it uses at most 256 threads

_in_process: int | None = None
_in_context: ContextVar[int | None] = ContextVar("fastlstm_threads", default=None)


def set_num_threads(n: int) -> None:
    """Let calls use up to `n` threads, the caller's own included. Results do not depend on it.

    Parameters
    ----------
    n : int
        1 to 65536. More threads than cores make no call quicker.

    Raises
    ------
    ValueError
        n is no whole number from 1 to 65536.
    """
    global _in_process
    _in_process = _checked(n, "set_num_threads(n)")


def get_num_threads() -> int:
    """The number of threads that a call may use now, in this Python thread; small calls use fewer."""
    return _in_context.get() or _in_process or _from_surroundings()[0]


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Within the ``with`` block, and in this Python thread or asyncio task only, use up to `n` threads.

    Raises
    ------
    ValueError
        n is no whole number from 1 to 65536.

    Examples
    --------
    >>> with threads(1):
    ...     get_num_threads()
    1
    """
    token = _in_context.set(_checked(n, "threads(n)"))
    try:
        yield
    finally:
        _in_context.reset(token)


def origin() -> str:
    """The origin of the number of threads, for ``show_config``."""
    if n := _in_context.get():
        return f"threads({n})"
    if _in_process:
        return f"set_num_threads({_in_process})"
    return _from_surroundings()[1]


def _checked(n: SupportsIndex, what: str) -> int:
    """`n` as an int, or ValueError unless it is a whole number from 1 to `MOST`."""
    try:
        if isinstance(n, bool):  # an int to Python, but True is hardly meant as one thread
            raise TypeError
        value = operator.index(n)
    except TypeError:
        value = 0
    if value < 1:
        raise ValueError(f"{what}: n must be a whole number of at least 1, got {n!r}")
    if value > MOST:
        raise ValueError(f"{what}: n must be at most {MOST}, got {n!r}")
    return value


def _whole(text: str, most: int) -> int:
    """The number in a text, if it is a whole one from 1 to `most`; else 0."""
    text = text.strip()
    # int() raises for texts of some thousand digits.
    value = int(text) if text.isdecimal() and len(text) <= 18 else 0
    return value if value <= most else 0


@functools.cache
def _from_surroundings() -> tuple[int, str]:
    """(number of threads, its origin) from the environment or the machine."""
    if own := os.environ.get("FASTLSTM_NUM_THREADS", "").strip():
        if n := _whole(own, MOST):
            return n, "FASTLSTM_NUM_THREADS"
        raise ValueError(
            f"the environment variable FASTLSTM_NUM_THREADS must be a whole number from 1 to {MOST}, got {own!r}"
        )
    others = os.environ.get("OMP_NUM_THREADS", "").strip()
    first, comma, _ = others.partition(",")
    if n := _whole(first, MOST):
        return n, "OMP_NUM_THREADS" + (" (first number)" if comma else "")
    n, source = _from_machine()
    if others:
        warnings.warn(
            f"the environment variable OMP_NUM_THREADS is {others!r}, which is no number of threads: fastlstm passes "
            f"it over and uses {n} ({source}). FASTLSTM_NUM_THREADS sets another number",
            RuntimeWarning,
            stacklevel=3,
        )
    return n, source


def _from_machine(root: Path = Path("/")) -> tuple[int, str]:
    """(number of cores that this process can keep busy, the limit that it comes from)."""
    total = os.cpu_count() or 1
    usable, text = total, f"{total} cores"
    try:
        usable = len(os.sched_getaffinity(0)) or total
        text = f"affinity {usable} of {total} cores"
    except (AttributeError, OSError):  # not on macOS; some sandboxes refuse it
        pass
    quota = cgroup_quota(root)
    if quota is not None and math.ceil(quota) < usable:
        # Rounded up: 1.5 cores are better used by two threads that are stopped at times than by one.
        usable = max(1, math.ceil(quota))
        text = f"cgroup quota {quota:g} -> {usable}"
    return usable, text


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """The CPU time that the control groups of this process grant it, in cores, or None without a limit.

    Python's own functions know only the affinity. Any group above the process's own may have a limit, so the path is
    walked up. In a container the path may be the host's; only its end, the mount itself, is visible then.

    Parameters
    ----------
    root : Path
        The folder of ``proc`` and ``sys``; tests give another one.
    """
    quotas = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # version 2: one tree for all controllers
            folder = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):  # version 1: a tree for each, named "cpu" or "cpu,cpuacct"
            folder = root / "sys/fs/cgroup" / controllers
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for group in (folder / level for level in (inner, *inner.parents)):
            limit = _read(group / "cpu.max").split() or [
                _read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
            ]
            # No limit reads as "max" in version 2 and as -1 in version 1.
            if len(limit) == 2 and all(numbers := [_whole(number, 10**18) for number in limit]):
                quotas.append(numbers[0] / numbers[1])
    return min(quotas, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):  # no such group, no permission, not Linux; no text, or a name with a NUL character
        return ""
