"""`to_onnx`: models that pass the full check of onnx and have our values in ONNX Runtime."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, LAYERS, SIZES, Case, assert_near, named

import fastlstm as fl
from fastlstm import nn
from fastlstm.onnx.messages import read_model
from fastlstm.spec import ACTIVATIONS

# The cases of layers but for token ids, which a layer's ONNX model does not take, and empty arrays; three of the sizes.
LAYER_CASES = [
    case for case in CASES if not case.ids and case.B and case.T and (case.B * case.I * case.H < 600) and case.H < 40
]
STEPS = [3, 7]


def session(path: Path) -> Any:
    """ONNX Runtime's session of a model that has passed onnx's full check."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    onnx.checker.check_model(path, full_check=True)
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def close(got: Any, expected: Any, name: str = "") -> None:
    """To 1e-5, and to 1e-4 of the largest entry where all are small: ONNX Runtime has rougher activations."""
    largest = np.abs(expected).max(initial=0)
    assert_near(got, expected, min(1e-4, 1e-5 / largest) if 0 < largest < 1 else 1e-5, name)


@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_layers_have_our_values_in_onnx_runtime(case: Case, tmp_path: Path) -> None:
    for dtype in ("float32",) if case in SIZES else ("float32", "float64"):
        layer, drawn = case.layer(dtype), case.draw(dtype)
        feeds = {"x": drawn.x} | ({} if case.lengths is None else {"lengths": drawn.lengths.astype(np.int32)})
        layer.to_onnx(tmp_path / "plain.onnx", lengths=case.lengths is not None)
        (y,) = session(tmp_path / "plain.onnx").run(None, feeds)
        close(y, layer(drawn.x, lengths=drawn.lengths)[0])
        if drawn.state is None:
            continue
        layer.to_onnx(tmp_path / "states.onnx", True, lengths=case.lengths is not None)
        run = session(tmp_path / "states.onnx")
        feeds |= named("{}_0", drawn.state)
        expected, state = layer(drawn.x, drawn.state, drawn.lengths)
        wanted = {"y": expected, **named("{}_n", state)}
        assert [one.name for one in run.get_outputs()] == list(wanted)
        for got, (name, theirs) in zip(run.run(None, feeds), wanted.items(), strict=True):
            close(got, theirs, name)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_stateful_model_is_fed_piece_by_piece(kind: str, tmp_path: Path) -> None:
    """The states of one call given to the next equal one call over everything; T and B may differ from call to call."""
    layer = LAYERS[kind](4, 6, 2, batch_first=True, seed=0)
    layer.to_onnx(tmp_path / "model.onnx", stateful=True)
    run = session(tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((3, 10, 4)).astype(np.float32)
    names = [one.name for one in run.get_inputs()][1:]
    state = {name: np.zeros((2, 3, 6), np.float32) for name in names}
    pieces = []
    for piece in np.split(x, STEPS, axis=1):
        y, *after = run.run(None, {"x": piece, **state})
        state = dict(zip(names, after, strict=True))
        pieces.append(y)
    expected, final = layer(x)
    close(np.concatenate(pieces, axis=1), expected)
    for name, part in named("{}_0", final).items():
        close(state[name], part, name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", LAYERS)
def test_reverse_layers(kind: str, dtype: str, tmp_path: Path) -> None:
    case = Case(kind, 5, 3, 3, 4, {"num_layers": 2, "reverse": True}, (0, 5, 2))
    layer, drawn = case.layer(dtype), case.draw(dtype)
    layer.to_onnx(tmp_path / "model.onnx", lengths=True)
    feeds = {"x": drawn.x, "lengths": drawn.lengths.astype(np.int32)}
    close(session(tmp_path / "model.onnx").run(None, feeds)[0], layer(drawn.x, lengths=drawn.lengths)[0])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_length_of_0_keeps_the_initial_state(kind: str, bidirectional: bool, tmp_path: Path) -> None:
    layer = LAYERS[kind](3, 4, bidirectional=bidirectional, seed=0)
    layer.to_onnx(tmp_path / "model.onnx", True, lengths=True)
    case = Case(kind, 5, 3, 3, 4, {"bidirectional": bidirectional}, (0, 5, 2))
    drawn = case.draw()
    got = session(tmp_path / "model.onnx").run(
        None, {"x": drawn.x, "lengths": np.array([0, 5, 2], np.int32), **named("{}_0", drawn.state)}
    )
    for mine, (name, part) in zip(got[1:], named("{}", drawn.state).items(), strict=True):
        np.testing.assert_array_equal(mine[:, 0], part[:, 0], err_msg=name)
        assert np.abs(mine[:, 1] - part[:, 1]).max() > 0.01


# --------------------------------------------------------------------------------------------------- modules and models
RNG = np.random.default_rng(0)
# Padding on the right and on the left, a gap, nothing but padding, none.
IDS = np.array([[3, 1, 4, 1, 0, 0], [0, 0, 5, 8, 2, 6], [5, 0, 3, 0, 0, 8], [0] * 6, [7, 2, 3, 8, 4, 6]])
X = RNG.standard_normal((5, 6, 4)).astype(np.float32) * (IDS != 0)[..., None]
KINDS = (nn.LSTM, nn.GRU, nn.SimpleRNN)


def check(model: Any, x: Any, path: Path) -> None:
    """Build the model by a call, write it, and compare."""
    expected = model(x)
    model.to_onnx(path)
    got = session(path).run(None, {"x": x})
    for mine, theirs in zip(got, expected if isinstance(expected, tuple) else (expected,), strict=True):
        close(mine, theirs)
    shorter = x[:2, :4]  # other sizes than those that it was built for
    if model.modules[0]._shape is not None and len(model._shape) == len(x.shape) - 1:
        got = session(path).run(None, {"x": shorter})[0]
        expected = model(shorter)
        close(got, expected[0] if isinstance(expected, tuple) else expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_recurrent_modules_with_masks_and_without(kind: Any, masked: bool, dtype: str, tmp_path: Path) -> None:
    for sequences, backwards, zeros in itertools.product((True, False), repeat=3):
        options = {"return_sequences": sequences, "go_backwards": backwards, "zero_output_for_mask": zeros}
        recurrent = {**options, "dtype": dtype}
        ids = [nn.Embedding(9, 4, mask_zero=masked, dtype=dtype), kind(5, **recurrent), nn.Dense(3, dtype=dtype)]
        check(fl.Sequential(ids, seed=0), IDS, tmp_path / "ids.onnx")
        numbers = [nn.Masking(dtype=dtype)] * masked + [kind(5, **recurrent), nn.Dropout(0.5, dtype=dtype)]
        check(fl.Sequential(numbers, seed=0), X.astype(dtype), tmp_path / "numbers.onnx")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave", None])
def test_bidirectional_modules(kind: Any, mode: str | None, tmp_path: Path) -> None:
    for sequences in (True, False):
        both = nn.Bidirectional(kind(5, return_sequences=sequences), mode)
        check(fl.Sequential([nn.Masking(), both], seed=0), X, tmp_path / "model.onnx")


def test_residual_and_stacked_modules(tmp_path: Path) -> None:
    stack = [
        nn.Masking(),
        nn.Residual(nn.LSTM(4, return_sequences=True)),
        nn.Bidirectional(nn.GRU(3, return_sequences=True)),
        nn.LSTM(4, "softsign", "hard_sigmoid"),
        nn.Dense(2, "softmax"),
    ]
    check(fl.Sequential(stack, seed=0), X, tmp_path / "model.onnx")


def test_masked_steps_are_0_for_modules_that_take_no_mask(tmp_path: Path) -> None:
    x = np.where((IDS == 0)[..., None], np.float32(2.5), X)
    check(fl.Sequential([nn.Masking(2.5), nn.Dense(3)], seed=0), x, tmp_path / "model.onnx")


@pytest.mark.parametrize("name", [*ACTIVATIONS, "softmax", "linear", ("elu", 0.5), ("scaled_tanh", 1.5, 0.5)], ids=str)
def test_activations_and_dense_modules(name: Any, tmp_path: Path) -> None:
    for x in (X, X[:, 0], X.astype(np.float64)):
        dtype = x.dtype.name
        model = fl.Sequential([nn.Dense(6, name, dtype=dtype), nn.Activation(name, dtype=dtype)], seed=0)
        model(x)
        model.to_onnx(tmp_path / "model.onnx")
        close(session(tmp_path / "model.onnx").run(None, {"x": x})[0], model(x))


def test_every_module_is_exported() -> None:
    from fastlstm.onnx.modules import METHODS

    classes = [getattr(nn, name) for name in nn.__all__]
    modules = [c for c in classes if isinstance(c, type) and issubclass(c, nn.Module) and c is not nn.Module]
    assert len(modules) >= 10
    for module in modules:
        assert any(base in METHODS for base in module.__mro__), module


def test_the_states_of_a_model_are_inputs_and_outputs(tmp_path: Path) -> None:
    model = fl.Sequential([nn.Embedding(9, 4), nn.LSTM(5, return_sequences=True), nn.GRU(6)], seed=0)
    model(IDS)
    model.to_onnx(tmp_path / "model.onnx", stateful=True)
    run = session(tmp_path / "model.onnx")
    names = [one.name for one in run.get_inputs()]
    assert names == ["x", "lstm_h_0", "lstm_c_0", "gru_h_0"]
    assert [one.name for one in run.get_outputs()] == ["y", "lstm_h_n", "lstm_c_n", "gru_h_n"]
    state = {name: np.zeros((1, 5, 6 if "gru" in name else 5), np.float32) for name in names[1:]}
    stream = model.stream(5)
    for t in range(6):
        y, *after = run.run(None, {"x": IDS[:, t : t + 1], **state})
        state = dict(zip(state, after, strict=True))
        close(y, stream.step(IDS[:, t]))


# ------------------------------------------------------------------------------------------------------ what is refused
def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"LSTM\(3\).* is not built yet: call it once"):
        fl.Sequential([nn.LSTM(3)]).to_onnx(path)
    stateful = fl.Sequential([nn.LSTM(3, stateful=True)])
    stateful(X)
    with pytest.raises(ValueError, match=r"keeps nothing between its runs: write it with stateful=True"):
        stateful.to_onnx(path)
    with pytest.raises(
        TypeError, match=r"to_onnx takes an LSTM, GRU or RNN, a module of fastlstm\.nn or a Sequential, got Dense"
    ):
        fl.onnx.to_onnx(fl.Dense(2, 3), path)
    with pytest.raises(ValueError, match="lengths=True is for layers"):
        fl.onnx.to_onnx(stateful, path, lengths=True)

    class Own(nn.Module):
        def __call__(self, x: Any, mask: Any = None) -> Any:
            return self._enter(x)

    own = fl.Sequential([nn.Dense(2), Own()])
    own(X)
    with pytest.raises(ValueError, match=r"to_onnx has no operators for the module Own\(\)"):
        own.to_onnx(path)
    assert path.read_bytes() == b"old"
    stateful.to_onnx(path, stateful=True)
    assert read_model(path).producer_name == "fastlstm"


def test_models_are_written_without_onnx(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['onnx'] = sys.modules['onnxruntime'] = None; import fastlstm as fl\n"
        "fl.LSTM(3, 5, 2, bidirectional=True).to_onnx(sys.argv[1]); print(fl.from_onnx(sys.argv[1], 'lstm_l1'))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "m.onnx")], capture_output=True, text=True)
    assert done.stdout == "LSTM(10, 5, bidirectional=True)\n", done.stderr


@pytest.mark.parametrize("name", ["stateful", "lengths"])
def test_a_word_is_no_flag(name: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=f"{name} must be True or False, got 'no'"):
        fl.GRU(3, 4).to_onnx(tmp_path / "model.onnx", **{name: "no"})
    assert not list(tmp_path.iterdir())
