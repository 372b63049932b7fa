"""Live objects of Keras 2 (the package tf_keras, on TensorFlow) as modules of ours. No other test needs TensorFlow."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest

import fastlstm as fl

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("tf_keras", reason="tf_keras, which is Keras 2, needs TensorFlow and is not installed")
L = keras.layers

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 9, 5)).astype("float32")
IDS = RNG.integers(0, 20, (4, 9))
OPTIONS: list[dict[str, Any]] = [
    {},
    {"return_sequences": True},
    {"use_bias": False},
    {"activation": "relu"},
    {"return_sequences": True, "go_backwards": True},
    {"recurrent_activation": "hard_sigmoid"},
    {"reset_after": False},
    {"dropout": 0.3},
]


def drawn(model: Any) -> Any:
    rng = np.random.default_rng(1)
    model.set_weights([(0.5 * rng.standard_normal(w.shape)).astype("float32") for w in model.get_weights()])
    return model


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_layers(kind: str, options: dict[str, Any]) -> None:
    """A live layer, and a model that holds one."""
    options = {k: v for k, v in options.items() if k != "recurrent_activation" or kind != "SimpleRNN"}
    options = {k: v for k, v in options.items() if k != "reset_after" or kind == "GRU"}
    layer = getattr(L, kind)(6, **options)
    layer.build((None, None, 5))
    drawn(layer)
    for one in (layer, drawn(keras.Sequential([keras.Input((None, 5)), getattr(L, kind)(6, **options)]))):
        np.testing.assert_allclose(fl.from_keras(one)(X), np.asarray(one(X)), atol=2e-6, rtol=1e-6)


def test_a_model_with_a_mask() -> None:
    model = keras.Sequential(
        [
            L.Embedding(20, 5, mask_zero=True),
            L.Bidirectional(L.LSTM(6, return_sequences=True)),
            L.GRU(4),
            L.Dense(3, activation="softmax"),
        ]
    )
    model(IDS)
    np.testing.assert_allclose(fl.from_keras(drawn(model))(IDS), np.asarray(model(IDS)), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("merge", ["sum", "mul", "ave", "concat"])
def test_both_directions(merge: str) -> None:
    both = L.Bidirectional(L.GRU(6, return_sequences=True), merge_mode=merge)
    model = drawn(keras.Sequential([keras.Input((None, 5)), both]))
    np.testing.assert_allclose(fl.from_keras(model)(X), np.asarray(model(X)), atol=2e-6, rtol=1e-6)


def test_stacked_cells_and_layers_without_a_state() -> None:
    layers = [L.Masking(0.0), L.RNN([L.LSTMCell(6), L.LSTMCell(4)]), L.Dropout(0.2), L.LeakyReLU(), L.Dense(2)]
    model = drawn(keras.Sequential([keras.Input((None, 5)), *layers]))
    np.testing.assert_allclose(fl.from_keras(model)(X), np.asarray(model(X)), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("ending", [".h5", ".keras"])
def test_files(ending: str, tmp_path: Any) -> None:
    model = drawn(keras.Sequential([keras.Input((None, 5)), L.LSTM(6), L.Dense(2)]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older form
        model.save(tmp_path / f"model{ending}")
    np.testing.assert_allclose(
        fl.from_keras(tmp_path / f"model{ending}")(X), np.asarray(model(X)), atol=2e-6, rtol=1e-6
    )


def test_accelerate_refuses_it() -> None:
    with pytest.raises(
        RuntimeError, match=r"accelerate serves Keras 3, and this model is of Keras 2: .*from_keras\(mod"
    ):
        fl.keras.accelerate(keras.Sequential([keras.Input((None, 5)), L.LSTM(6)]))
