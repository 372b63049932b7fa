"""Numba itself: importing it late, its threading layers, and forks."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType

from ...forksafe import Lock
from ...num_threads import get_num_threads

# Multiply-adds of a call from which several threads take part: some 30 us of one core. (A parallel region costs 3 us
# with tbb and a free core.)
SHARED = 2_000_000


class Gate:
    """A gate that calls pass, each within its context; a fork closes it and waits until all calls have ended.

    A child has only the thread that forked. Work of other threads at that moment, in a threading layer, in BLAS or in
    Numba's compiler, would stay half done in the child for ever, locks included.
    """

    PATIENCE = (
        10.0  # seconds of a fork's wait; a signal handler that forks may have interrupted a call of its own thread
    )

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0  # calls under way
        self._closed = 0  # forks under way

    def __enter__(self) -> None:
        with self._changed:
            if self._closed:
                self._changed.wait_for(lambda: not self._closed)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._inside -= 1
            if self._closed:
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed += 1
            self._changed.wait_for(lambda: not self._inside, self.PATIENCE)

    def open(self) -> None:
        with self._changed:
            self._closed -= 1
            self._changed.notify_all()


# Of Numba's threading layers only tbb supports both a fork and several callers at once: without it, calls take turns.
# In a forked child, GNU's OpenMP kills the process and Numba's workqueue has lost its threads. tbb's threads cannot be
# joined before a fork while tbb knows of other Python threads (Numba prints "Unable to join threads"). So a forked
# child stays on one thread, unless the layer is tbb and the parent had one Python thread at the fork.
_gate = Gate()
_turn = Lock()
_forked = _had_others = False  # this process is a forked child with numba loaded; its parent had several Python threads


def _before_fork() -> None:
    global _had_others
    _gate.close()
    _had_others = threading.active_count() > 1


def _after_fork_in_child() -> None:
    global _gate, _forked
    _gate = Gate()
    _forked = "numba" in sys.modules


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before_fork, after_in_parent=lambda: _gate.open(), after_in_child=_after_fork_in_child)


def _load_tbb() -> None:
    """Load the library of the package tbb: it lies in a venv's lib, where the dynamic linker does not look."""
    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name == "libtbb.so.12":
            try:
                ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
            except OSError:  # a damaged library: Numba takes another layer
                return


@functools.cache
def kernels() -> ModuleType:
    """The jitted functions; imports numba."""
    _load_tbb()
    try:
        return importlib.import_module(".jitted", __package__)
    except ImportError as error:  # the installed numba does not fit this NumPy or Python
        from .. import BackendError

        raise BackendError(
            f"backend 'numba' cannot be used: {error}. Install versions that fit (pip install --upgrade "
            "\"fastlstm[numba]\"), or take backend='numpy'."
        ) from error


def alone() -> Gate:
    """The context of a call of less than `SHARED` multiply-adds, which one thread does."""
    return _gate


@contextmanager
def team(work: int) -> Iterator[int | None]:
    """The number of threads that may share a call of so many multiply-adds in this context; None: one does all."""
    with _gate:
        threads = get_num_threads() if work >= SHARED else 1
        if threads == 1:
            yield None
            return
        import numba

        before = numba.get_num_threads()  # the setting of this Python thread; the call starts the threading layer
        safe = numba.threading_layer() == "tbb"
        if _forked and (_had_others or not safe):
            yield None
            return
        with nullcontext() if safe else _turn:
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
            try:
                available = numba.get_num_threads()
                yield available if available > 1 else None
            finally:
                numba.set_num_threads(before)
