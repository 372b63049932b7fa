"""The public layers, cells and head reproduce the results of well-known NumPy exercises.

The file's arrays are (features, batch[, time]), the layers' are (time, batch, features): transposes of each other.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CELLS, LAYERS, TOLERANCE, assert_near

import fastlstm as fl
from fastlstm._backends import module

EXERCISES = json.loads((Path(__file__).parent / "golden" / "exercises.json").read_text())
# Shapes of arrays that the file names without one.
SHAPES = {
    **{"xt": (3, 10), "a_prev": (5, 10), "c_prev": (5, 10), "a0": (5, 10)},
    **{"Waa": (5, 5), "Wax": (5, 3), "ba": (5, 1), "Wya": (2, 5), "Wy": (2, 5), "by": (2, 1)},
}
KEYS = {"rnn": ("Waa", "Wax", "ba", "Wya", "by"), "lstm": ("Wf", "bf", "Wi", "bi", "Wc", "bc", "Wo", "bo", "Wy", "by")}
FORM = {"rnn": "waa", "lstm": "stacked"}


def drawn(exercise: str) -> dict[str, Any]:
    """The inputs of an exercise, drawn by its seed as its text `draws` says: "seed(1); randn: xt(3,10), ..."."""
    seed, names = re.match(r"seed\((\d+)\); randn:?([^;]*)", EXERCISES[exercise]["draws"].split(" - ")[0]).groups()
    np.random.seed(int(seed))
    shapes = re.findall(r"(\w+)(?:\(([\d,]+)\))?", names)
    return {name: np.random.randn(*(map(int, shape.split(",")) if shape else SHAPES[name])) for name, shape in shapes}


class Run:
    """One kind's layer, cell and head on one backend and in one dtype, with an exercise's inputs."""

    def __init__(self, exercise: str, inputs: dict[str, Any], dtype: str, backend: str) -> None:
        self.exercise, self.dtype = EXERCISES[exercise], dtype
        self.kind = "lstm" if exercise.startswith("lstm") else "rnn"
        self.inputs = {name: a.astype(dtype) for name, a in inputs.items()}
        given = {key: self.inputs[key] for key in KEYS[self.kind] if key in self.inputs}
        made = fl.from_arrays(given, self.kind, backend=backend)
        self.layer, self.head = made if isinstance(made, tuple) else (made, None)
        assert isinstance(self.layer, LAYERS[self.kind]) and self.layer.dtype == dtype
        self.cell = CELLS[self.kind](3, 5, dtype=dtype, backend=backend)
        self.cell.load_state_dict(self.with_two_biases(self.layer.state_dict(), ""))

    def __getitem__(self, name: str) -> Any:
        """An input in the layers' layout."""
        return self.inputs[name].T

    @property
    def first(self) -> Any:
        """The initial state of a whole sequence; the exercises have c = 0."""
        a = self["a0"][None]
        return (a, np.zeros_like(a)) if self.kind == "lstm" else a

    def cell_states(self, x: Any) -> Any:
        """c of every step, by a stream: a layer returns the last one only."""
        stream = self.layer.stream(x.shape[1])
        stream.state = self.first
        c = []
        for x_t in x:
            stream.step(x_t)
            c.append(stream.state[1][0])
        return np.array(c)

    def probabilities(self, y: Any) -> Any:
        logits = self.head(y)
        e = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    @staticmethod
    def with_two_biases(arrays: dict[str, Any], ending: str) -> dict[str, Any]:
        """The arrays of a layer or cell under names with this ending, where bias_hh is 0."""
        named = {name.removesuffix("_l0") + ending: a for name, a in arrays.items()}
        return named | {"bias_hh" + ending: np.zeros_like(named["bias_ih" + ending])}

    def written_by_hand(self, grads: dict[str, Any]) -> dict[str, Any]:
        """Gradients of the layer or cell in the exercise's form, which has one of the two equal bias gradients."""
        holder = LAYERS[self.kind](3, 5, dtype=self.dtype, backend="numpy")
        holder.load_state_dict(self.with_two_biases(grads, "_l0"))
        return {f"d{key}": g for key, g in holder.to_arrays(FORM[self.kind]).items()}

    def check(self, got: dict[str, Any], expected: dict[str, Any] | None = None) -> None:
        """Compare with all arrays of the exercise, by name."""
        expected = self.exercise["outputs"] if expected is None else expected
        assert got.keys() == expected.keys()
        for name, array in expected.items():
            assert_near(got[name], np.array(array), TOLERANCE["golden" if self.dtype == "float64" else "values"], name)


@pytest.fixture(params=["float64", "float32"])
def dtype(request: pytest.FixtureRequest, backend: str) -> str:
    if request.param not in module(backend).DTYPES:
        pytest.skip(f"backend {backend} has no {request.param}")
    return request.param


def test_rnn_cell_forward(backend: str, dtype: str) -> None:
    run = Run("rnn_cell_forward", drawn("rnn_cell_forward"), dtype, backend)
    a = run.cell(run["xt"], run["a_prev"])
    run.check({"a_next": a.T, "yt_pred": run.probabilities(a).T})


def test_lstm_cell_forward(backend: str, dtype: str) -> None:
    run = Run("lstm_cell_forward", drawn("lstm_cell_forward"), dtype, backend)
    a, c = run.cell(run["xt"], (run["a_prev"], run["c_prev"]))
    run.check({"a_next": a.T, "c_next": c.T, "yt": run.probabilities(a).T})


def test_rnn_forward(backend: str, dtype: str) -> None:
    run = Run("rnn_forward", drawn("rnn_forward"), dtype, backend)
    y, a = run.layer(run["x"], run.first)
    np.testing.assert_array_equal(a[0], y[-1])
    run.check({"a": y.T, "y_pred": run.probabilities(y).T})


def test_lstm_forward(backend: str, dtype: str) -> None:
    run = Run("lstm_forward", drawn("lstm_forward"), dtype, backend)
    y, (_, c_n) = run.layer(run["x"], run.first)
    c = run.cell_states(run["x"])
    np.testing.assert_array_equal(c[-1], c_n[0])
    run.check({"a": y.T, "y": run.probabilities(y).T, "c": c.T})


def test_rnn_cell_backward(backend: str, dtype: str) -> None:
    run = Run("rnn_cell_backward", drawn("rnn_cell_backward"), dtype, backend)
    _, tape = run.cell.forward(run["xt"], run["a_prev"])
    dx, da, grads = run.cell.backward(tape, run["da_next"])
    run.check({"dxt": dx.T, "da_prev": da.T, **run.written_by_hand(grads)})


def test_lstm_cell_backward(backend: str, dtype: str) -> None:
    run = Run("lstm_cell_backward", drawn("lstm_cell_backward"), dtype, backend)
    _, tape = run.cell.forward(run["xt"], (run["a_prev"], run["c_prev"]))
    dx, (da, dc), grads = run.cell.backward(tape, (run["da_next"], run["dc_next"]))
    run.check({"dxt": dx.T, "da_prev": da.T, "dc_prev": dc.T, **run.written_by_hand(grads)})


@pytest.mark.parametrize("exercise", ["rnn_backward", "lstm_backward"])
def test_backward(exercise: str, backend: str, dtype: str) -> None:
    run = Run(exercise, drawn(exercise), dtype, backend)
    da = run["da"]
    # lstm_backward's x is longer than its da: only the first steps count.
    _, _, tape = run.layer.forward(run["x"][: len(da)], run.first)
    dx, dstate, grads = run.layer.backward(tape, da)
    da0 = dstate[0] if run.kind == "lstm" else dstate
    run.check({"dx": dx.T, "da0": da0[0].T, **run.written_by_hand(grads)})


def test_lstm_with_softmax_head(backend: str, dtype: str) -> None:
    e = EXERCISES["lstm_with_softmax_head"]
    given = {name: np.array(array) for name, array in {**e["parameters"], "X": e["X"], "a0": e["a0"]}.items()}
    run = Run("lstm_with_softmax_head", given, dtype, backend)
    y, _, tape = run.layer.forward(run["X"], run.first)
    loss, dy, head_grads = run.head.cross_entropy(y, np.array(e["Y"]).T.argmax(axis=-1), reduction="sum")
    c = run.cell_states(run["X"])
    run.check({"A": y.T, "C": c.T, "Y_hat": run.probabilities(y).T, "loss_sum": loss})

    dx, (da, _), grads = run.layer.backward(tape, dy)
    head = {"dWy": head_grads["weight"], "dby": head_grads["bias"][:, None]}
    run.check({**run.written_by_hand(grads), **head}, e["gradients"])
    run.check({"dx": dx.T, "da0": da[0].T}, {"dx": e["dx"], "da0": e["da0"]})


def test_given_inputs_are_those_drawn() -> None:
    """Inputs that the file holds equal those drawn by its seed, so `drawn` reads the texts correctly."""
    e = EXERCISES["lstm_with_softmax_head"]
    np.random.seed(3)
    expected = {name: np.random.randn(*np.shape(e[name])) for name in ("X", "a0")}
    expected |= {name: 0.5 * np.random.randn(*np.shape(array)) for name, array in e["parameters"].items()}
    for name, array in expected.items():
        np.testing.assert_array_equal(e[name] if name in e else e["parameters"][name], array, name)
    np.testing.assert_array_equal(np.sum(e["Y"], axis=0), 1)


def test_a_wrong_number_is_seen() -> None:
    """The comparison can fail: it notices one weight off by a millionth."""
    inputs = drawn("lstm_backward")
    inputs["Wf"][0, 0] += 1e-6
    run = Run("lstm_backward", inputs, "float64", "numpy")
    _, _, tape = run.layer.forward(run["x"][:4], run.first)
    _, _, grads = run.layer.backward(tape, run["da"])
    with pytest.raises(AssertionError, match="dW"):
        run.check({"dWf": run.written_by_hand(grads)["dWf"]}, {"dWf": run.exercise["outputs"]["dWf"]})
