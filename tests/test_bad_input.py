"""Bad calls and their messages, on every backend."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import Case, assert_same_bits
from small import F32, B, H, I, T, normal

import fastlstm as fl
from fastlstm import packing, validation
from fastlstm.validation import check_ids

X, HN = np.zeros((T, B, I), F32), np.zeros((1, B, H), F32)
BAD_CALLS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (
        np.zeros((T, B, 5), F32),
        {},
        ValueError,
        "x has shape (5, 6, 5), expected (T, B, 4), or (T, 4) without a batch: its last axis must be input_size = 4",
    ),
    (np.zeros((T, B, I, 1), F32), {}, ValueError, "x has shape (5, 6, 4, 1), expected (T, B, 4), or (T, 4)"),
    (np.zeros(I, F32), {}, ValueError, "x has shape (4,), expected (T, B, 4)"),
    (F32(1), {}, ValueError, "x has shape ()"),
    (
        np.zeros((T, B, I)),
        {},
        ValueError,
        "x has dtype float64, the layer float32. Convert it with x.astype('float32')",
    ),
    (np.zeros((T, B, I), np.float16), {}, ValueError, "x has dtype float16, the layer float32"),
    (np.zeros((T, B, I), int), {}, TypeError, "x of dtype int64 has shape (5, 6, 4): integers are token ids"),
    (np.zeros((T, B, I), bool), {}, TypeError, "got dtype bool"),
    (np.zeros((T, B), bool), {}, TypeError, "got dtype bool"),
    (np.zeros((T, B, I), object), {}, TypeError, "got dtype object"),
    (np.zeros((T, B, I), complex), {}, TypeError, "got dtype complex128"),
    ("text", {}, TypeError, "got dtype <U4"),
    (None, {}, TypeError, "got dtype object"),
    (np.zeros((T, B, I, 1), int), {}, ValueError, "x has shape (5, 6, 4, 1), expected (T, B)"),
    (np.full((T, B), 4), {}, ValueError, "token ids must lie between 0 and input_size - 1 = 3, got 4 to 4"),
    (np.full((T, B), -1), {}, ValueError, "got -1 to -1"),
    (np.full((T, B), 2**64 - 1, np.uint64), {}, ValueError, "token ids must lie between 0 and input_size - 1 = 3"),
    (
        X,
        {"lengths": [5] * 5},
        ValueError,
        "lengths has shape (5,), expected (6,): one entry for each of the 6 sequences",
    ),
    (X, {"lengths": [5] * 7}, ValueError, "lengths has shape (7,), expected (6,)"),
    (X, {"lengths": 5}, ValueError, "lengths has shape (), expected (6,)"),
    (X, {"lengths": [6, 1, 1, 1, 1, 1]}, ValueError, "lengths must lie between 0 and T = 5, got 1 to 6"),
    (X, {"lengths": [-1, 1, 1, 1, 1, 1]}, ValueError, "lengths must lie between 0 and T = 5, got -1 to 1"),
    (X, {"lengths": [1.0] * 6}, TypeError, "lengths must be integers, got dtype float64"),
    (X, {"lengths": [True] * 6}, TypeError, "lengths must be integers, got dtype bool"),
    (X[:, 0], {"lengths": [3]}, ValueError, "lengths goes with a batch"),
    (X, {"state": HN}, TypeError, "state of LSTM is a pair (h, c), got ndarray"),
    (X, {"state": (HN,)}, TypeError, "state of LSTM is a pair (h, c)"),
    (X, {"state": (HN, HN, HN)}, TypeError, "state of LSTM is a pair (h, c)"),
    (X, {"state": (HN, None)}, TypeError, "state's c"),
    (X, {"state": (HN[:, :5], HN)}, ValueError, "state's h has shape (1, 5, 7), expected (1, 6, 7)"),
    (X, {"state": (HN, HN[0])}, ValueError, "state's c has shape (6, 7), expected (1, 6, 7)"),
    (X, {"state": (HN, HN.astype(float))}, ValueError, "state's c has dtype float64, the layer float32"),
    (X[:, 0], {"state": (HN, HN)}, ValueError, "state's h has shape (1, 6, 7), expected (1, 7)"),
]


@pytest.mark.parametrize(("x", "arguments", "error", "message"), BAD_CALLS, ids=[m for *_, m in BAD_CALLS])
def test_a_bad_call_says_what_was_expected(
    x: Any, arguments: dict[str, Any], error: type[Exception], message: str, backend: str
) -> None:
    layer = fl.LSTM(I, H, backend=backend, seed=1)
    good = normal(T, B, I)
    before = layer(good)[0]
    for call in (layer, layer.forward):
        with pytest.raises(error, match=re.escape(message)):
            call(x, **arguments)
    assert layer.version == 0
    np.testing.assert_array_equal(layer(good)[0], before)


def test_states_of_other_kinds_are_refused() -> None:
    for layer in (fl.GRU(I, H), fl.RNN(I, H)):
        with pytest.raises(TypeError, match=r"state of \w+ is one array h, got a tuple"):
            layer(X, (HN, HN))


def test_batch_first_says_so_in_its_errors() -> None:
    with pytest.raises(ValueError, match=re.escape("expected (B, T, 4), or (T, 4) without a batch")):
        fl.LSTM(I, H, batch_first=True)(np.zeros(3, F32))


BAD_GRADIENTS: list[tuple[Any, Any, type[Exception], str]] = [
    (np.zeros((T, B, H + 1), F32), None, ValueError, "dy has shape (5, 6, 8), expected (5, 6, 7): the shape of y"),
    (np.zeros((B, T, H), F32), None, ValueError, "dy has shape (6, 5, 7), expected (5, 6, 7)"),
    (np.zeros((T, B, H)), None, ValueError, "dy has dtype float64, the layer float32"),
    (np.zeros((T, B, H), complex), None, TypeError, "dy must hold real numbers"),
    (None, HN, TypeError, "dstate of LSTM is a pair (h, c)"),
    (None, (HN[0], HN), ValueError, "dstate's h has shape (6, 7), expected (1, 6, 7)"),
    (None, (None, HN[:, :3]), ValueError, "dstate's c has shape (1, 3, 7), expected (1, 6, 7)"),
    (None, (HN.astype(float), None), ValueError, "dstate's h has dtype float64"),
]


@pytest.mark.parametrize(("dy", "dstate", "error", "message"), BAD_GRADIENTS, ids=[m for *_, m in BAD_GRADIENTS])
def test_a_bad_gradient_does_not_cost_the_tape(
    dy: Any, dstate: Any, error: type[Exception], message: str, backend: str
) -> None:
    case = Case("lstm", T, B, I, H)
    layer, drawn = case.layer("float32", backend), case.draw()
    expected = drawn.run(layer)
    values, tape = drawn.forward(layer)
    with pytest.raises(error, match=re.escape(message)):
        layer.backward(tape, dy, dstate)
    assert_same_bits(values | drawn.backward(layer, tape), expected)


BAD_LAYERS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: fl.LSTM(0, 5), ValueError, "input_size must be at least 1, got 0"),
    (lambda: fl.LSTM(3, -1), ValueError, "hidden_size must be at least 1, got -1"),
    (lambda: fl.GRU(3, 5, 0), ValueError, "num_layers must be at least 1, got 0"),
    (lambda: fl.GRU(3, 5.0), TypeError, "hidden_size must be an integer, got 5.0"),
    (lambda: fl.RNN("3", 5), TypeError, "input_size must be an integer, got '3'"),
    (lambda: fl.RNN(3, True), TypeError, "hidden_size must be an integer, got True"),
    (lambda: fl.LSTM(3, 5, dropout=1.5), ValueError, "dropout must be a number between 0 and 1, got 1.5"),
    (lambda: fl.LSTM(3, 5, dropout=-0.1), ValueError, "dropout must be a number between 0 and 1"),
    (lambda: fl.LSTM(3, 5, dropout=float("nan")), ValueError, "dropout must be a number between 0 and 1"),
    (lambda: fl.LSTM(3, 5, proj_size=5), ValueError, "proj_size must be smaller than hidden_size, got 5 and 5"),
    (lambda: fl.LSTM(3, 5, proj_size=-1), ValueError, "proj_size must be at least 0, got -1"),
    (lambda: fl.GRU(3, 5, proj_size=2), TypeError, "proj_size"),
    (lambda: fl.RNN(3, 5, peepholes=True), TypeError, "peepholes"),
    (lambda: fl.LSTM(3, 5, activations=("sigmoid", "tanh")), ValueError, "activations needs 3 entries for LSTM"),
    (lambda: fl.GRU(3, 5, activations="tanh"), ValueError, "activations needs 2 entries for GRU, got 'tanh'"),
    (lambda: fl.RNN(3, 5, nonlinearity="sine"), ValueError, "activation 'sine' is not known. Give a name"),
    (lambda: fl.RNN(3, 5, nonlinearity=("elu", 1, 2, 3)), ValueError, "is not known"),
    (lambda: fl.RNN(3, 5, nonlinearity=("tanh", "relu")), ValueError, "nonlinearity names two directions, but the lay"),
    (lambda: fl.LSTM(3, 5, clip=0), ValueError, "clip must be a finite number above 0, or None, got 0"),
    (lambda: fl.LSTM(3, 5, clip="1"), TypeError, "clip must be a number, got '1'"),
    (lambda: fl.LSTM(3, 5, bias=False, single_bias=True), ValueError, "single_bias is one of the biases"),
    (lambda: fl.GRU(3, 5, single_bias=True), ValueError, "a GRU with reset_after=True has two biases"),
    (lambda: fl.LSTM(3, 5, dtype="float16"), ValueError, "dtype 'float16' is not supported; expected one of float32"),
    (lambda: fl.LSTM(3, 5, dtype=int), ValueError, "is not supported; expected one of float32, float64"),
    (lambda: fl.LSTM(3, 5, backend="cuda"), ValueError, "backend 'cuda' is not known; expected auto, c, "),
    (lambda: fl.LSTMCell(3, 0), ValueError, "hidden_size must be at least 1, got 0"),
    (lambda: fl.LSTM(3, 5).stream(0), ValueError, "batch_size must be at least 1, got 0"),
    (lambda: fl.LSTM(3, 5, bidirectional=True).stream(), ValueError, "a bidirectional layer cannot stream"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), BAD_LAYERS, ids=[m for *_, m in BAD_LAYERS])
def test_a_bad_layer_says_what_was_expected(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


BAD_CELL_CALLS: list[tuple[Any, Any, type[Exception], str]] = [
    (np.zeros((B, 5), F32), None, ValueError, "x has shape"),
    (np.zeros((1, B, I), F32), None, ValueError, "x has shape (1, 6, 4), expected (B, 4), or (4,) without a batch"),
    (np.zeros((B, I)), None, ValueError, "x has dtype float64"),
    (np.zeros((B, I), F32), np.zeros((B, H), F32), TypeError, "is a pair (h, c)"),
    (np.zeros((B, I), F32), (np.zeros((B, H), F32),) * 3, TypeError, "is a pair (h, c)"),
    (
        np.zeros((B, I), F32),
        (np.zeros(H, F32),) * 2,
        ValueError,
        "state's h has shape (7,), expected (6, 7): (batch, hidden_size)",
    ),
    (
        np.zeros(I, F32),
        (np.zeros((B, H), F32),) * 2,
        ValueError,
        "state's h has shape (6, 7), expected (7,): (hidden_size,)",
    ),
    (np.zeros((B, I), F32), (np.zeros((5, H), F32),) * 2, ValueError, "state's h has shape (5, 7), expected (6, 7)"),
    (np.full(B, 9), None, ValueError, "token ids must lie between 0 and input_size - 1 = 3, got 9 to 9"),
]


@pytest.mark.parametrize(("x", "state", "error", "message"), BAD_CELL_CALLS, ids=[m for *_, m in BAD_CELL_CALLS])
def test_a_bad_call_of_a_cell_says_what_was_expected(x: Any, state: Any, error: type[Exception], message: str) -> None:
    cell = fl.LSTMCell(I, H)
    for call in (cell, cell.forward):
        with pytest.raises(error, match=re.escape(message)):
            call(x, state)


@pytest.mark.parametrize("call", ["inference", "training", "run", "step"])
def test_checked_ids_are_those_used(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes of another thread to the caller's ids after the check have no effect; ids are memory offsets."""
    layer = fl.LSTM(5, 4, backend="numpy", seed=0)
    ids = np.array([[1], [2], [3]])
    stream = layer.stream()
    calls: dict[str, Any] = {
        "inference": lambda: layer(ids)[0],
        "training": lambda: layer.forward(ids)[0],
        "run": lambda: stream.run(ids),
        "step": lambda: stream.step(ids[0]),
    }
    right = calls[call]().copy()
    stream.reset()

    def check_then_write(given: Any, *rest: Any) -> None:
        check_ids(given, *rest)
        ids[...] = 1 << 40

    for module in (packing, validation):
        monkeypatch.setattr(module, "check_ids", check_then_write)
    np.testing.assert_array_equal(calls[call](), right)
