"""The base of all layers: versions, children, configurations, gradients in one array. And bounds of the code's size."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cases import CASES, CELLS, Case, assert_same_bits

import fastlstm as fl
from fastlstm._backends import EXTRAS, NAMES, module, provides
from fastlstm.layer import Layer

PACKAGE = Path(fl.__file__).parent


# ------------------------------------------------------------------------------------------------------------- versions
class Borrowed(fl.LSTM):
    """A layer whose weights are owned elsewhere; the owner counts their changes."""

    changes = 0

    @property
    def version(self) -> int:
        return self.changes


def test_weights_owned_elsewhere_can_say_that_they_changed(backend: str) -> None:
    layer, x = Borrowed(4, 5, backend=backend, seed=1), np.ones((3, 2, 4), np.float32)
    before = layer(x)[0]
    _, _, tape = layer.forward(x)
    for p in layer._params.values():  # behind the layer's back
        p *= 2
    np.testing.assert_array_equal(layer(x)[0], before)
    layer.changes += 1
    fresh = fl.LSTM(4, 5, backend=backend)
    fresh.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(layer(x)[0], fresh(x)[0])
    assert not np.array_equal(layer(x)[0], before)
    with pytest.raises(RuntimeError, match="version 0, now 1"):
        layer.backward(tape, None)


class BorrowedDense(fl.Dense):
    changes = 0

    @property
    def version(self) -> int:
        return self.changes


def test_weights_of_a_dense_layer_owned_elsewhere_can_say_that_they_changed(backend: str) -> None:
    layer, x = BorrowedDense(4, 5, backend=backend, seed=1), np.ones((3, 4), np.float32)
    before, tape = layer.forward(x)
    for p in layer._params.values():
        p *= 2
    layer.changes += 1
    np.testing.assert_allclose(layer(x), 2 * before, rtol=1e-6)
    with pytest.raises(RuntimeError, match="version 0, now 1"):
        layer.backward(tape, before)


# ------------------------------------------------------------------------------------------------------------- children
class Pair(Layer):
    """A layer with two layers as children."""

    def __init__(self, backend: str = "auto") -> None:
        super().__init__("float32", backend, {"lstm": fl.LSTM(4, 5, seed=1), "head": fl.Dense(5, 2, seed=2)})
        self._connect()


def test_a_layer_has_its_childrens_parameters() -> None:
    pair = Pair()
    lstm, head = pair.children.values()
    assert list(pair.state_dict()) == [f"lstm.{n}" for n in lstm.state_dict()] + ["head.weight", "head.bias"]
    assert pair.version == 0
    with pair.update() as params:
        params["head.bias"] += 1
        params["lstm.bias_ih_l0"] = np.zeros(20, np.float32)
    np.testing.assert_array_equal(head.state_dict()["bias"], fl.Dense(5, 2, seed=2).state_dict()["bias"] + 1)
    assert not lstm.state_dict()["bias_ih_l0"].any()
    assert lstm.version == head.version == 1
    known = pair.version
    head.load_state_dict(head.state_dict())
    assert pair.version > known, "a child that changes alone changes the whole"
    with pytest.raises(RuntimeError, match=r"head\.weight has shape"):
        pair.load_state_dict(pair.state_dict() | {"head.weight": np.zeros((3, 3))})
    pair.eval()
    assert not lstm.training and not head.training


def test_an_optimiser_takes_a_layer_with_children() -> None:
    pair = Pair()
    before = pair.state_dict()
    fl.SGD(pair, 0.5).step({name: np.ones_like(p) for name, p in before.items()})
    assert_same_bits(pair.state_dict(), {name: p - np.float32(0.5) for name, p in before.items()})


def test_parameters_are_views_that_cannot_be_written_to() -> None:
    layer = fl.GRU(4, 5, seed=1)
    views = layer.parameters()
    with pytest.raises(ValueError, match="read-only"):
        views["weight_ih_l0"][...] = 0
    with layer.update() as params:
        params["weight_ih_l0"][...] = 3
    assert (views["weight_ih_l0"] == 3).all() and layer.version == 1


# ------------------------------------------------------------------------------------------------------- configurations
CONFIGURED: list[Any] = [case.layer(backend="numpy") for case in CASES] + [
    fl.LSTMCell(3, 5),
    fl.GRUCell(3, 5, bias=False, dtype="float64"),
    fl.RNNCell(3, 5, nonlinearity="relu"),
    fl.Dense(3, 5, bias=False),
]


@pytest.mark.filterwarnings("ignore:dropout=")
@pytest.mark.parametrize("layer", CONFIGURED, ids=repr)
def test_a_layer_is_made_again_from_its_configuration(layer: Any) -> None:
    config = json.loads(json.dumps(layer.to_config()))
    again = Layer.from_config(config, backend="numpy")
    assert type(again) is type(layer) and repr(again) == repr(layer)
    assert {n: p.shape for n, p in again.parameters().items()} == {n: p.shape for n, p in layer.parameters().items()}
    if getattr(layer, "_specs", None):
        assert again._specs == layer._specs  # type: ignore[attr-defined]


def test_a_configuration_of_something_else_is_refused() -> None:
    config = fl.GRU(3, 5).to_config()
    with pytest.raises(ValueError, match="the configuration is of class 'GRU', expected one of LSTM"):
        fl.LSTM.from_config(config)
    for name in ("SGD", "os", "Pair2", None, 3):
        with pytest.raises(ValueError, match="the configuration is of class"):
            Layer.from_config({**config, "class": name})
    with pytest.raises(TypeError, match="gates"):
        fl.GRU.from_config({**config, "gates": 7})


# ------------------------------------------------------------------------------------------------------------ gradients
@pytest.mark.parametrize("case", [
    Case("lstm", 5, 3, 4, 7, {"num_layers": 2, "bidirectional": True, "proj_size": 3}),
    Case("gru", 5, 3, 9, 7, ids=True),
], ids=str)  # fmt: skip
def test_gradients_are_views_of_one_array(case: Case, backend: str) -> None:
    layer, drawn = case.layer("float32", backend), case.draw()
    _, tape = drawn.forward(layer)
    _, _, grads = layer.backward(tape, drawn.dy, drawn.dstate)
    assert list(grads) == list(layer.state_dict())
    total = sum(float(np.square(g, dtype=np.float64).sum()) for g in grads.values())
    np.testing.assert_allclose(np.square(grads.flat, dtype=np.float64).sum(), total)
    before = {name: g.copy() for name, g in grads.items()}
    grads.flat *= 2
    assert_same_bits(grads, {name: 2 * g for name, g in before.items()})
    starts = [g.__array_interface__["data"][0] - grads.flat.__array_interface__["data"][0] for g in grads.values()]
    assert all(at % 64 == 0 for at in starts) and starts == sorted(starts)


def test_gradients_of_dense_layers_and_cells_are_views_of_one_array(backend: str) -> None:
    dense, x = fl.Dense(4, 5, backend=backend, seed=1), np.ones((3, 4), np.float32)
    y, tape = dense.forward(x)
    for grads in (dense.backward(tape, y)[1], dense.cross_entropy(x, np.array([0, 1, 4]))[2]):
        assert all(np.shares_memory(g, grads.flat) for g in grads.values()) and grads["weight"].any()
    cell = CELLS["lstm"](4, 5, backend=backend, seed=1)
    state, cell_tape = cell.forward(x)
    grads = cell.backward(cell_tape, state)[2]
    assert list(grads) == list(cell.state_dict()) and all(np.shares_memory(g, grads.flat) for g in grads.values())


def test_a_sparse_gradient_is_asked_for(backend: str) -> None:
    layer = fl.GRU(9, 7, bidirectional=True, backend=backend, seed=1)
    ids = np.array([[1, 4], [4, 4], [7, 1]])
    y, _, tape = layer.forward(ids)
    _, _, whole = layer.backward(tape, np.ones_like(y))
    _, _, tape = layer.forward(ids)
    with pytest.raises(TypeError, match="sparse must be True or False"):
        layer.backward(tape, np.ones_like(y), sparse="yes")
    _, _, grads = layer.backward(tape, np.ones_like(y), sparse=True)  # the tape still serves
    assert list(grads) == list(layer.state_dict())
    for name in ("weight_ih_l0", "weight_ih_l0_reverse"):
        assert isinstance(grads[name], fl.SparseGradient) and grads[name].ids.tolist() == [1, 4, 7]
        np.testing.assert_array_equal(grads[name].dense(), whole[name])


def test_the_generators_state_can_be_taken_and_given() -> None:
    layer, x = fl.LSTM(4, 5, 2, dropout=0.5, seed=1), np.ones((3, 2, 4), np.float32)
    kept = json.loads(json.dumps(layer.rng_state))
    first = layer.forward(x)[0]
    assert not np.array_equal(layer.forward(x)[0], first)
    layer.rng_state = kept
    np.testing.assert_array_equal(layer.forward(x)[0], first)


# ------------------------------------------------------------------------------------------------- extras of a backend
@pytest.mark.parametrize("group", EXTRAS)
@pytest.mark.parametrize("name", NAMES)
def test_extra_functions_are_those_of_the_table(name: str, group: str) -> None:
    backend: ModuleType = module(name)
    for function, parameters in EXTRAS[group].items():
        if provides(backend, group):
            assert ", ".join(inspect.signature(getattr(backend, function)).parameters) == parameters, function
        else:
            assert not hasattr(backend, function), f"{name} has {function}, but does not list {group!r} in EXTRAS"
    assert set(backend.EXTRAS) <= set(EXTRAS)


# ---------------------------------------------------------------------------------------------------- sizes of the code
LARGEST_CLASS = 250  # lines, docstrings included
LARGEST_FILE = 400
# Files that are larger, with their bounds. The bounds only shrink.
OVER = {"_readers/unpickle.py": 408}


def test_no_class_is_too_large() -> None:
    sizes = {
        f"{path.relative_to(PACKAGE)}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    assert {name: n for name, n in sizes.items() if n >= LARGEST_CLASS} == {}


def test_no_file_is_too_large() -> None:
    sizes = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: n for name, n in sizes.items() if n > OVER.get(name, LARGEST_FILE)} == {}
