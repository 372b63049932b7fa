"""How exact the C backend's activations are, over float32's whole range."""

from __future__ import annotations

import numpy as np
import pytest

import fastlstm as fl


def values(low: int = 0, high: int = 0x7F800000, count: int = 400_000) -> np.ndarray:
    """Floats of both signs, infinities included, equally spaced by their bits: every exponent is equally frequent."""
    bits = np.linspace(low, high, count, dtype=np.uint64).astype(np.uint32)
    return np.concatenate((bits, bits | np.uint32(1 << 31))).view(np.float32)


def through_a_layer(name: str, x: np.ndarray) -> np.ndarray:
    """act(x), by an RNN of one unit with input weight 1 and all other parameters 0."""
    layer = fl.RNN(1, 1, nonlinearity=name, backend="c")
    shapes = {key: p.shape for key, p in layer.state_dict().items()}
    layer.load_state_dict({key: np.full(shape, float(key == "weight_ih_l0")) for key, shape in shapes.items()})
    return layer(x.reshape(1, -1, 1))[0].ravel()


def test_tanh_is_within_3_units_in_the_last_place(compiled: str) -> None:
    x = values()
    y, exact = through_a_layer("tanh", x), np.tanh(x.astype(np.float64))
    nearest = np.abs(exact).astype(np.float32)
    unit = np.where(nearest >= 1, 2.0**-24, np.nextafter(nearest, np.float32(2)) - nearest)
    normal = np.abs(x) >= np.finfo(np.float32).tiny  # denormals are flushed to zero
    assert (np.abs(y - exact)[normal] / unit[normal]).max() <= 3
    assert np.abs(y[~normal]).max() == 0 and np.abs(y).max() == 1


def test_sigmoid_is_within_1e_7_and_between_0_and_1(compiled: str) -> None:
    x = values()
    with np.errstate(over="ignore"):
        exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    y = through_a_layer("sigmoid", x)
    assert np.abs(y - exact).max() <= 1e-7
    assert y.min() == 0 and y.max() == 1


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_nan_stays_nan(name: str, compiled: str) -> None:
    assert np.isnan(through_a_layer(name, np.array([np.nan], np.float32))).all()
