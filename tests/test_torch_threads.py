"""Calls from PyTorch run on PyTorch's threads."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm._backends import module

torch = pytest.importorskip("torch")
c = module("c")
pytestmark = pytest.mark.skipif(c.unusable() is not None, reason="the compiled backend cannot be used here")


@pytest.fixture
def two_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with fl.threads(2):
            yield
    finally:
        torch.set_num_threads(before)


def model_and_input() -> tuple[Any, Any]:
    torch.manual_seed(0)
    layer = torch.nn.LSTM(64, 256)
    fl.torch.accelerate(layer)
    return layer, torch.randn(20, 16, 64)


def output(layer: Any, x: Any) -> Any:
    with torch.no_grad():
        return layer(x)[0].numpy()


def test_pytorch_s_openmp_is_found() -> None:
    if sys.platform != "linux" or "parallel backend: OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("PyTorch runs on other threads here")
    from fastlstm.torch.threads import _parallel

    assert _parallel() != c.ffi.NULL


def test_only_calls_from_pytorch_use_its_threads(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward; with one of its threads as with two the bits are the same."""
    layer, x = model_and_input()
    expected = output(layer, x)
    asked: list[int] = []

    @c.ffi.callback("void(void(*)(void *), void *, unsigned, unsigned)")  # type: ignore[untyped-decorator]
    def parallel(fn: Any, data: Any, threads: int, flags: int) -> None:
        asked.append(threads)
        fn(data)

    monkeypatch.setattr("fastlstm.torch.threads._parallel", lambda: parallel)
    for _ in range(20):  # beside a busy neighbour the threads rest for up to 0.1 s
        time.sleep(0.12)
        np.testing.assert_array_equal(output(layer, x), expected)
        forward = len(asked)
        y = layer(x)[0]
        time.sleep(0.12)
        before = len(asked)
        y.sum().backward()
        if forward and len(asked) > before:
            break
        asked.clear()
    assert set(asked) == {2}
    asked.clear()
    time.sleep(0.12)
    fl.from_torch(layer)(x.numpy())
    torch.set_num_threads(1)
    output(layer, x)
    assert asked == []


def test_threads_are_given_back_after_an_error(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastlstm.torch.threads import torch_threads

    given = []
    monkeypatch.setattr(
        "fastlstm.torch.threads.c.lib", type("Lib", (), {"flq_host": lambda *of: given.append(of[-1])})()
    )
    with pytest.raises(ValueError, match="inside"), torch_threads():
        raise ValueError("inside")
    assert given == [2, 0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_computes(two_threads: None) -> None:
    """OpenMP's threads do not survive a fork: PyTorch's own operations hang there."""
    layer, x = model_and_input()
    expected = output(layer, x)
    torch.nn.functional.linear(torch.randn(512, 512), torch.randn(512, 512))  # PyTorch's threads exist
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if np.array_equal(output(layer, x), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
