"""`forward(checkpoint_every=k)`: the same gradients from less memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from cases import TOLERANCE

import fastlstm as fl
from fastlstm import engine, gradients, memory, packing, spec_layer

LAYERS = {
    "lstm, 2 directions, dropout": lambda **k: fl.LSTM(5, 9, 2, bidirectional=True, dropout=0.3, **k),
    "lstm, projection": lambda **k: fl.LSTM(5, 9, 2, proj_size=3, **k),
    "gru, 2 directions": lambda **k: fl.GRU(5, 9, 2, bidirectional=True, **k),
    "rnn": lambda **k: fl.RNN(5, 9, **k),
}


def flat(*parts: Any) -> list[np.ndarray]:
    """All arrays of nested tuples and dictionaries."""
    arrays: list[np.ndarray] = []
    for part in parts:
        if isinstance(part, dict):
            arrays += flat(*part.values())
        elif isinstance(part, tuple):
            arrays += flat(*part)
        elif part is not None:
            arrays.append(part)
    return arrays


def train(layer: Any, x: Any, lengths: Any, every: int | None) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    y, state, tape = layer.forward(x, None, lengths, checkpoint_every=every)
    dy, *dstate = [rng.standard_normal(a.shape).astype(layer.dtype) for a in flat(y, state)]
    return flat(y, state, *layer.backward(tape, dy, tuple(dstate) if len(dstate) == 2 else dstate[0]))


@pytest.mark.parametrize("every", [1, 4, 17, 100])
@pytest.mark.parametrize("ids", [False, True], ids=["floats", "ids"])
@pytest.mark.parametrize("lengths", [None, [3, 17, 0, 9, 17]], ids=["dense", "lengths"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_same_results(name: str, lengths: Any, ids: bool, every: int, backend: str) -> None:
    def layer() -> Any:
        return LAYERS[name](backend=backend, seed=0, dtype="float32")

    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, (17, 5)) if ids else rng.standard_normal((17, 5, 5)).astype(np.float32)
    for a, b in zip(train(layer(), x, lengths, every), train(layer(), x, lengths, None), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE["gradients"] * np.abs(b).max())


def test_less_memory(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fl.LSTM(8, 64, 2, backend=backend, seed=0)
    x = np.zeros((800, 4, 8), np.float32)

    def peak(every: int | None) -> int:
        for module in (engine, gradients, packing, spec_layer):
            monkeypatch.setattr(module, "buffers", memory.BufferPool())
        tracemalloc.start()
        train(layer, x, None, every)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(None)  # the first call allocates memory that later calls share
    assert peak(40) < 0.5 * peak(None)


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_a_bad_interval_is_refused(every: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="checkpoint_every"):
        fl.LSTM(2, 3).forward(np.zeros((4, 1, 2), np.float32), checkpoint_every=every)
