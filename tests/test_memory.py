"""The compiled backend stays within its memory: every array ends, or begins, at an inaccessible page.

Each case runs in a forked child, which an access to such a page kills.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import signal
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case

import fastlstm as fl
from fastlstm._backends import module
from fastlstm._backends.c import calls, recurrent
from fastlstm.layout import Rows

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# One layer in one direction, in all sizes. The activation has no influence on memory accesses.
GUARDED = [
    case
    for case in CASES
    if case.T and case.B and not case.options.keys() & {"num_layers", "bidirectional", "activations", "nonlinearity"}
]


def fence(nbytes: int, at_end: bool, align: int = 1) -> Any:
    """nbytes of memory (bytes array) that end just before, or begin just after, a page without access."""
    page = mmap.PAGESIZE
    pages = -(-max(nbytes, 1) // page) + 1
    memory = mmap.mmap(-1, (pages + 1) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for edge in (0, pages):
        assert libc.mprotect(ctypes.c_void_p(start + edge * page), page, 0) == 0, os.strerror(ctypes.get_errno())
    begin = (pages * page - nbytes) // align * align if at_end else page
    return np.frombuffer(memory, np.uint8, nbytes, begin)


def guarded(a: Any, at_end: bool) -> Any:
    """A copy of an array between fences."""
    copy = fence(a.nbytes, at_end).view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


def exercise(case: Case, at_end: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack, forward, backward and a step, with fences round every array, packed weights and scratch memory too."""
    c = module("c")
    # The contract promises that scratch memory begins at a cache line.
    for place, name in ((recurrent, "aligned"), (calls, "of_its_own")):
        monkeypatch.setattr(place, name, lambda floats: fence(4 * floats, at_end, align=64).view(np.float32))
    calls.free_calls.clear()  # cached calls have scratch memory without fences

    def guard(a: Any) -> Any:
        return guarded(a, at_end)

    spec = case.layer()._specs[0][0]
    params = {name.removesuffix("_l0"): guard(p) for name, p in case.layer().state_dict().items()}
    drawn = case.draw()
    lengths = np.sort([n for n in case.lengths or [case.T] * case.B if n])[::-1].astype(np.int64)
    rows = Rows.of_lengths(lengths)
    object.__setattr__(rows, "batch_sizes", guard(rows.batch_sizes))
    x = guard(drawn.x.reshape(-1, *drawn.x.shape[2:])[: rows.N].astype(np.int64 if case.ids else np.float32))

    def state() -> tuple[Any, ...]:
        return tuple(guard(np.ones((1, rows.B, width), np.float32)) for width in spec.initial.values())

    for reverse in (False, True):
        block = c.pack(spec, params, "float32", reverse)
        states = state()
        tape = guard(np.zeros((1, spec.tape_size(rows.N, rows.B)), np.float32))
        y = guard(np.zeros((rows.N, spec.R), np.float32))
        c.forward([block], x, rows, state(), y)
        c.forward([block], x, rows, states, y, tape)
        grads = {name: guard(np.zeros_like(p)) for name, p in params.items()}
        if case.ids:
            grads["weight_ih"] = guard(np.zeros(params["weight_ih"].shape[::-1], np.float32))
        dx = None if case.ids else guard(np.zeros_like(x))
        dy = guard(np.ones((rows.N, spec.R), np.float32))
        c.backward(block, x, rows, tuple(s[0] for s in states), tape[0], dy, dx, grads)
        assert y.any() and all(np.isfinite(g).all() and g.any() for g in grads.values())
    block = c.pack(spec, params, "float32")
    states = tuple(guard(np.zeros((1, rows.B, width), np.float32)) for width in spec.initial.values())
    c.bind([block], guard(x[: rows.B]), states)()
    assert states[0].any()


def in_child(work: Callable[[], None]) -> int:
    """Exit status of `work` in a forked child: 0, 1 for an exception, or minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            faulthandler.disable()  # the parent says what happened
            signal.alarm(60)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(("at_end", "threads"), [(True, 1), (True, 3), (False, 1)])
def test_no_access_beyond_the_arrays(
    at_end: bool, threads: int, compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        with fl.threads(threads):
            for case in GUARDED:
                exercise(case, at_end, monkeypatch)

    if in_child(work):  # some case failed: run each in a child of its own
        with fl.threads(threads):
            failed = [str(case) for case in GUARDED if in_child(lambda case=case: exercise(case, at_end, monkeypatch))]
        pytest.fail("access beyond an array, or an exception, in:\n" + "\n".join(failed))


def test_scratch_memory_grows_until_there_is_enough(compiled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size that a call needs may change from one attempt to the next, since its plan may."""
    given: list[int] = []

    def function(call: Any) -> int:
        given.append(call.scratch.size)
        return (5, 9, 9)[len(given) - 1]

    free: deque[Any] = deque()
    monkeypatch.setattr(calls, "free_calls", free)
    calls.run("dense", function, {})
    assert given == [0, 5, 9]
    (call,) = free
    assert call.scratch[1] == 9 and call.scratch[0] == call.dense.scratch.memory


@pytest.mark.parametrize("offset", [-1, 8])
def test_the_fence_stands(offset: int) -> None:
    """The check can fail: an access one byte beyond the memory kills the child."""

    def stray() -> None:
        a = fence(8, at_end=offset > 0)
        ctypes.memset(a.__array_interface__["data"][0] + offset, 0, 1)

    assert in_child(stray) == -signal.SIGSEGV
    assert in_child(lambda: None) == 0
