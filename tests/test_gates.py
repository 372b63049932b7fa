"""Orders of gates: the table, `reorder`, and the weight arrays of Keras and ONNX."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import pytest
from cases import LAYERS

import fastlstm as fl
from fastlstm._keras_weights import from_keras, to_keras
from fastlstm._onnx_weights import ACTIVATION_NAMES, node_attributes, node_tensors
from fastlstm.gates import ORDERS, order, reorder
from fastlstm.spec import ACTIVATIONS, GATES, Spec, activation


def stacked(gates: str, H: int = 2) -> Any:
    """(G*H,) the letters of the gates, each with the number of the unit."""
    return np.array([f"{gate}{unit}" for gate in gates for unit in range(H)])


def test_the_orders_are_those_of_the_libraries() -> None:
    """The orders of the libraries' documentation, in their names for the gates."""
    assert order("torch", "lstm").gates == "ifgo" and order("torch", "gru").gates == "rzn"
    assert order("keras", "lstm").names == "ifco" and order("keras", "gru").names == "zrh"
    assert order("onnx", "lstm").names == "iofc" and order("onnx", "gru").names == "zrh"
    for library, kinds in ORDERS.items():
        for kind, (gates, names) in kinds.items():
            assert sorted(gates) == sorted(GATES[kind]) and len(names) == len(gates), (library, kind)


def test_reorder_moves_gates_and_keeps_units() -> None:
    for kind in GATES:
        known = [library for library, kinds in ORDERS.items() if kind in kinds]
        for source, target in itertools.product(known, known):
            got = reorder(stacked(order(source, kind).gates), kind, source, target)
            assert got.tolist() == stacked(order(target, kind).gates).tolist(), (kind, source, target)


def test_reorder_goes_along_any_axis() -> None:
    w = np.arange(24).reshape(3, 8)
    for axis in (1, -1):
        got = reorder(w, "lstm", "torch", "onnx", axis)
        assert got.flags.c_contiguous and got[0].tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
        np.testing.assert_array_equal(got[1] - got[0], 8)
    np.testing.assert_array_equal(reorder(w.T, "lstm", "torch", "onnx").T, got)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("lstm", "torch", "theano"), "no order of gates is known by the name 'theano'; known: torch, keras, onnx"),
        (("gru", "stacked", "torch"), "stacked has no 'gru'; it has lstm"),
        (("gru", "torch", "onnx"), r"an array of shape \(8,\) does not hold the 3 gates of gru along axis 0"),
    ],
)
def test_what_cannot_be_reordered_is_refused(arguments: tuple[Any, ...], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        reorder(np.zeros(8), *arguments)


# --------------------------------------------------------------------------------------------------------------- Keras
KERAS: list[tuple[str, dict[str, Any]]] = [
    ("lstm", {"single_bias": True}),
    ("lstm", {"bias": False}),
    ("gru", {}),
    ("gru", {"reset_after": False, "single_bias": True}),
    ("rnn", {"single_bias": True}),
]


@pytest.mark.parametrize(("kind", "options"), KERAS, ids=str)
def test_keras_weights_there_and_back(kind: str, options: dict[str, Any]) -> None:
    layer = LAYERS[kind](3, 4, seed=0, **options)
    params = {name.removesuffix("_l0"): p for name, p in layer.state_dict().items()}
    back = from_keras(to_keras(params, kind, options.get("reset_after", True)), kind)
    assert back.keys() == params.keys()
    for name, p in params.items():
        np.testing.assert_array_equal(back[name], p, name)


@pytest.mark.parametrize(("kind", "options"), KERAS, ids=str)
def test_a_keras_layer_with_our_weights_gives_our_values(kind: str, options: dict[str, Any]) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    pytest.importorskip("torch")
    keras = pytest.importorskip("keras")
    layer = LAYERS[kind](3, 4, seed=0, batch_first=True, **options)
    params = {name.removesuffix("_l0"): p for name, p in layer.state_dict().items()}
    make = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}[kind]
    given = {"reset_after": options.get("reset_after", True)} if kind == "gru" else {}
    theirs = make(4, return_sequences=True, use_bias=options.get("bias", True), **given)
    x = np.random.default_rng(1).standard_normal((2, 5, 3)).astype(np.float32)
    theirs.build(x.shape)
    theirs.set_weights(to_keras(params, kind, options.get("reset_after", True)))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(theirs(x)), layer(x)[0], atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------- ONNX
def test_onnx_tensors_are_in_onnx_order() -> None:
    """Peepholes are i o f in ONNX, i f o in fastlstm; a single bias is the first half of B."""
    layer = fl.LSTM(3, 2, peepholes=True, single_bias=True, seed=0)
    params = {name.removesuffix("_l0"): p for name, p in layer.state_dict().items()}
    tensors = node_tensors([params], "lstm")
    assert {name: t.shape for name, t in tensors.items()} == {
        "W": (1, 8, 3),
        "R": (1, 8, 2),
        "B": (1, 16),
        "P": (1, 6),
    }
    i, f, o = params["weight_peep"]
    np.testing.assert_array_equal(tensors["P"][0], np.concatenate((i, o, f)))
    b_i, b_f, b_g, b_o = params["bias_ih"].reshape(4, 2)
    np.testing.assert_array_equal(tensors["B"][0], np.concatenate((b_i, b_o, b_f, b_g, np.zeros(8))))


def test_onnx_attributes_say_what_differs_from_the_default() -> None:
    assert node_attributes([Spec("lstm", 3, 4)]) == {"hidden_size": 4, "direction": "forward"}
    assert ACTIVATION_NAMES.keys() == ACTIVATIONS.keys()
    sets = [("hard_sigmoid", "tanh", ("leaky_relu", 0.2)), ("sigmoid", ("affine", 2, 1), "relu")]
    specs = [Spec("lstm", 3, 4, activations=tuple(map(activation, one)), clip=2.0, input_forget=True) for one in sets]
    assert node_attributes(specs) == {
        "hidden_size": 4,
        "direction": "bidirectional",
        "clip": 2.0,
        "input_forget": 1,
        "activations": ["HardSigmoid", "Tanh", "LeakyRelu", "Sigmoid", "Affine", "Relu"],
        "activation_alpha": [1 / 6, 0.2, 2.0],
        "activation_beta": [0.5, 1.0],
    }
