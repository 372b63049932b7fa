"""Dropout between layers: what it drops, when, and its gradient, on every backend."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import TOLERANCE, TWO, Case, named
from small import LENGTHS, B, H, I, T, near, normal

import fastlstm as fl


def constant(p: float, backend: str, layers: int = 2, H: int = 8) -> Any:
    """Layers that make 1 of an input of 0 and pass their input on otherwise, so that the output is dropout's mask."""
    rnn = fl.RNN(H, H, layers, nonlinearity="identity", dropout=p, backend=backend, seed=5)
    one = {"weight_ih": np.eye(H), "weight_hh": np.zeros((H, H)), "bias_ih": np.zeros(H), "bias_hh": np.zeros(H)}
    rnn.load_state_dict({name: one[name.rpartition("_l")[0]] for name in rnn.state_dict()})
    return rnn


def test_dropout_drops_between_layers_and_scales(backend: str) -> None:
    layer, x = constant(0.3, backend), np.ones((40, 25, 8), np.float32)
    y, _, _ = layer.forward(x)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    assert abs((y == 0).mean() - 0.3) < 0.02  # 8000 draws: four standard deviations
    assert not np.array_equal(y, layer.forward(x)[0]), "the mask must be fresh in every call"
    y, _, _ = constant(0.3, backend, layers=3).forward(x)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7) * np.float32(1 / 0.7)}


@pytest.mark.filterwarnings("ignore:dropout=0.5 has no effect")
def test_dropout_spares_inference_and_the_last_layer(backend: str) -> None:
    x = np.ones((4, 3, 8), np.float32)
    layer = constant(0.5, backend)
    np.testing.assert_array_equal(layer(x)[0], x)
    assert layer.eval() is layer
    np.testing.assert_array_equal(layer.forward(x)[0], x)
    assert layer.train() is layer
    assert not np.array_equal(layer.forward(x)[0], x)
    np.testing.assert_array_equal(constant(0.5, backend, layers=1).forward(x)[0], x)


def test_dropout_is_seeded(backend: str) -> None:
    x = normal(T, B, I)
    make: Callable[[int], Any] = lambda seed: fl.LSTM(I, H, 2, dropout=0.5, backend=backend, seed=seed)  # noqa: E731
    a, b, other = make(3), make(3), make(4)
    for _ in range(3):
        y = a.forward(x)[0]
        np.testing.assert_array_equal(y, b.forward(x)[0])
    other.load_state_dict(a.state_dict())
    assert not np.array_equal(a.forward(x)[0], other.forward(x)[0])


def test_dropout_of_everything_gives_zeros(backend: str) -> None:
    case = Case("lstm", T, B, I, H, {"num_layers": 2, "dropout": 1.0}, state=False, given="y")
    layer, drawn = case.layer("float32", backend), case.draw()
    y, (h, _), tape = layer.forward(drawn.x)
    second = fl.LSTM(H, H, backend=backend)
    second.load_state_dict({f"{n[:-1]}0": p for n, p in layer.state_dict().items() if n.endswith("_l1")})
    y_alone, (h_alone, _) = second(np.zeros((T, B, H), np.float32))
    near({"y": y, "h": h[1:]}, {"y": y_alone, "h": h_alone})
    dx, _, grads = layer.backward(tape, drawn.dy)
    assert not dx.any() and not any(g.any() for name, g in grads.items() if name.endswith("_l0"))
    assert not grads["weight_ih_l1"].any() and grads["weight_hh_l1"].any()


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_dropout_backward_has_forwards_mask(lengths: Any) -> None:
    """Gradients agree with finite differences, for which a copy of the layer draws the same mask again."""
    case = Case("lstm", T, B, 3, 4, {**TWO, "dropout": 0.4}, lengths)
    layer, drawn = case.layer("float64", "numpy"), case.draw("float64")

    def loss() -> float:
        values, _ = drawn.forward(copy.deepcopy(layer))
        weights = {"y": drawn.dy, **named("{}_n", drawn.dstate)}
        return sum(float((values[name] * w).sum()) for name, w in weights.items())

    gradient = drawn.run(copy.deepcopy(layer))["dx"]
    rng = np.random.default_rng(0)
    for _ in range(30):
        at = tuple(int(rng.integers(n)) for n in drawn.x.shape)
        kept, sides = drawn.x[at], []
        for step in (1e-5, -1e-5):
            drawn.x[at] = kept + step
            sides.append(loss())
        drawn.x[at] = kept
        difference = (sides[0] - sides[1]) / 2e-5
        assert abs(gradient[at] - difference) < TOLERANCE["finite differences"] * np.abs(gradient).max()
