"""Options of other libraries' layers: clip, input_forget, one bias, activations of each direction.

The cases `cases.EQUATIONS` compare each backend with the reference and the reference with finite differences. This
file has the rules themselves, and the comparison with ONNX Runtime.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from cases import CELLS, LAYERS, TWO, Case, assert_near, assert_same_bits, named
from conftest import ALL

import fastlstm as fl
from fastlstm._backends import backends
from fastlstm._onnx_weights import node_attributes, node_tensors
from fastlstm.layout import suffix

# --------------------------------------------------------------------------------------------------------- ONNX Runtime
BOTH = {"bidirectional": True}
SETS = (("sigmoid", "tanh", "tanh"), (("hard_sigmoid", 0.3, 0.4), ("elu", 0.7), "softsign"))
GRU_SETS = ((("affine", 0.5, 0.1), "tanh"), ("sigmoid", ("leaky_relu", 0.2)))
RAGGED = (5, 1, 4, 3)

# Clips are small: random pre-activations lie beyond them in both directions.
ONNX: list[Case] = [
    *(Case(kind, 5, 4, 3, 6, BOTH, RAGGED) for kind in LAYERS),
    *(Case(kind, 5, 4, 3, 6, {**BOTH, "clip": 0.3}, RAGGED) for kind in LAYERS),
    Case("lstm", 5, 4, 3, 6, {"peepholes": True}),
    Case("lstm", 5, 4, 3, 6, {"clip": 0.3, "peepholes": True, "bias": False}),
    Case("lstm", 5, 4, 3, 6, {"input_forget": True}),
    Case("lstm", 5, 4, 3, 6, {**BOTH, "input_forget": True, "peepholes": True, "clip": 0.4}, RAGGED),
    Case("lstm", 5, 4, 3, 6, {**BOTH, "activations": SETS, "single_bias": True}),
    Case("gru", 5, 4, 3, 6, {"reset_after": False}),
    Case("gru", 5, 4, 3, 6, {"reset_after": False, "clip": 0.3, "single_bias": True}),
    Case("gru", 5, 4, 3, 6, {**BOTH, "activations": GRU_SETS, "clip": 0.5}),
    Case("rnn", 5, 4, 3, 6, {**BOTH, "nonlinearity": ("tanh", ("leaky_relu", 0.2)), "clip": 0.5}),
    *(
        Case("rnn", 4, 4, 3, 6, {"nonlinearity": f})
        for f in (
            ("leaky_relu", -0.5),
            ("leaky_relu", 0.0),
            ("elu", -0.5),
            ("elu", 0.0),
            ("scaled_tanh", 0.0, 1.0),
            ("scaled_tanh", -1.3, 0.8),
            ("affine", -0.5, 0.2),
            ("hard_sigmoid", -0.2, 0.5),
            ("thresholded_relu", 0.3),
            "softplus",
            "identity",
        )
    ),
]


def onnx_values(case: Case, layer: Any, drawn: Any) -> dict[str, Any]:
    """ONNX Runtime's outputs and final states of the layer as one node, in fastlstm's layout."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    D = layer._D
    ends = [suffix(0, d) for d in range(D)]
    params = layer.state_dict()
    tensors = node_tensors(
        [{n.removesuffix(e): p for n, p in params.items() if n == n.removesuffix(e) + e} for e in ends], case.kind
    )
    state = named("{}", drawn.state)
    feeds = {"X": drawn.x, **tensors, **{f"initial_{name}": part for name, part in state.items()}}
    if drawn.lengths is not None:
        feeds["sequence_lens"] = drawn.lengths.astype(np.int32)
    slots = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"][: 8 if case.kind == "lstm" else 6]
    outputs = ["Y", "Y_h", "Y_c"][: 3 if case.kind == "lstm" else 2]
    node = onnx.helper.make_node(
        case.kind.upper(),
        [s if s in feeds else "" for s in slots],
        outputs,
        **node_attributes(layer._specs[0]),
    )
    kinds = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(np.int32): onnx.TensorProto.INT32}
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "layer",
        [info(name, kinds[a.dtype], a.shape) for name, a in feeds.items()],
        [info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, *states = session.run(None, feeds)
    y = y.transpose(0, 2, 1, 3).reshape(*drawn.x.shape[:2], -1)
    return {"y": y, **dict(zip(("h_n", "c_n"), states, strict=False))}


@pytest.mark.parametrize("case", ONNX, ids=str)
def test_values_are_those_of_onnx_runtime(case: Case, backend: str) -> None:
    """In float32, weights three times as large as usual, so that clips and kinks are reached."""
    layer, drawn = case.layer("float32", backend), case.draw()
    layer.load_state_dict({name: 3 * p for name, p in layer.state_dict().items()})
    y, state = layer(drawn.x, drawn.state, drawn.lengths)
    for name, theirs in onnx_values(case, layer, drawn).items():
        assert_near({"y": y, **named("{}_n", state)}[name], theirs, 1e-5, name)


# ----------------------------------------------------------------------------------------------------------------- clip
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_clipped_gate_has_the_value_of_its_bound_and_no_gradient(kind: str, sign: int, backend: str) -> None:
    """Every pre-activation is far beyond the clip: the gradients of x and of the gates' parameters are 0."""
    layer = LAYERS[kind](2, 3, clip=0.7, backend=backend, seed=0)
    with layer.update() as params:
        for name, p in params.items():
            p[...] = 50 * sign if name == "bias_ih_l0" else 0
    x = np.random.default_rng(0).standard_normal((4, 2, 2)).astype(np.float32)
    y, _, tape = layer.forward(x)
    gate, candidate = 1 / (1 + np.exp(-0.7 * sign)), np.tanh(0.7 * sign)
    first = {"lstm": gate * np.tanh(gate * candidate), "gru": (1 - gate) * candidate, "rnn": candidate}[kind]
    np.testing.assert_allclose(y[0], first, rtol=1e-6)
    dx, _, grads = layer.backward(tape, np.ones_like(y))
    assert not dx.any() and not any(g.any() for g in grads.values())


@pytest.mark.parametrize("kind", LAYERS)
def test_a_clip_that_nothing_reaches_changes_no_value(kind: str, backend: str) -> None:
    case = Case(kind, 5, 3, 4, 6, TWO)
    clipped = LAYERS[kind](4, 6, clip=50.0, backend=backend, **TWO)
    clipped.load_state_dict(case.layer().state_dict())
    got, expected = case.draw().run(clipped), case.draw().run(case.layer("float32", backend))
    for name, array in expected.items():
        assert_near(got[name], array, 2e-6, name)


def test_nan_passes_a_clip_and_infinity_is_clipped(backend: str) -> None:
    layer = fl.RNN(1, 1, clip=0.5, bias=False, backend=backend)
    layer.load_state_dict({"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.0]]})
    y, _ = layer(np.array([[[np.nan], [np.inf], [-np.inf], [0.25]]], np.float32))
    np.testing.assert_allclose(y[0, :, 0], np.tanh([np.nan, 0.5, -0.5, 0.25]), rtol=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_clip_below_the_numbers_of_float32_still_clips(kind: str, backend: str) -> None:
    layer = LAYERS[kind](4, 6, clip=1e-60, backend=backend, seed=0)
    y, _ = layer(np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32))
    np.testing.assert_allclose(y, np.zeros_like(y), atol=1e-30)


# --------------------------------------------------------------------------------------------------------- input_forget
def test_the_forget_gates_rows_are_not_read_and_get_no_gradient(backend: str) -> None:
    case = Case("lstm", 5, 3, 4, 6, {"input_forget": True, "peepholes": True})
    layer, drawn, H = case.layer("float32", backend), case.draw(), case.H
    before = drawn.run(layer)
    with layer.update() as params:
        for name, p in params.items():
            p[1 if "peep" in name else slice(H, 2 * H)] = 7
    assert_same_bits(drawn.run(layer), before)
    for name in layer.state_dict():
        rows = before[f"d{name}"][1 if "peep" in name else slice(H, 2 * H)]
        assert not rows.any() and before[f"d{name}"].any(), name


# ------------------------------------------------------------------------------------------------------------- one bias
@pytest.mark.parametrize("kind", LAYERS)
def test_one_bias_is_the_sum_of_two_and_moves_half_as_far(kind: str, backend: str) -> None:
    """A single bias has one gradient, so SGD and Adam move it as far as a library with one bias does."""
    options = {"reset_after": False} if kind == "gru" else {}
    case = Case(kind, 5, 3, 4, 6, {**TWO, **options})
    one = Case(kind, 5, 3, 4, 6, {**TWO, **options, "single_bias": True}).layer("float32", backend)
    two = case.layer("float32", backend)
    params = two.state_dict()
    ends = [suffix(layer, d) for layer in range(2) for d in range(2)]
    assert [n for n in params if n not in one.state_dict()] == [f"bias_hh{end}" for end in ends]
    one.load_state_dict(
        {
            n: p + params[n.replace("_ih", "_hh")] if n.startswith("bias") else p
            for n, p in params.items()
            if "bias_hh" not in n
        }
    )
    got, expected = case.draw().run(one), case.draw().run(two)
    for name, array in got.items():
        assert_near(array, expected[name], 2e-5, name)
    x = case.draw().x
    for layer in (one, two):
        before = layer.state_dict()
        y, _, tape = layer.forward(x)
        fl.SGD(layer, 0.1).step(layer.backward(tape, np.ones_like(y))[2])
        after = layer.state_dict()
        moved = {e: sum(after[n] - before[n] for n in after if n in (f"bias_ih{e}", f"bias_hh{e}")) for e in ends}
        if layer is one:
            single = moved
    for end in ends:
        np.testing.assert_allclose(2 * single[end], moved[end], rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- each direction
@pytest.mark.parametrize("kind", LAYERS)
def test_each_direction_has_its_activations(kind: str, backend: str) -> None:
    """A bidirectional layer equals two layers of one direction, each with its own activations."""
    argument = "nonlinearity" if kind == "rnn" else "activations"
    sets: Any = {"lstm": SETS, "gru": GRU_SETS, "rnn": ("relu", ("elu", 0.5))}[kind]
    both = LAYERS[kind](3, 4, bidirectional=True, backend=backend, seed=0, **{argument: sets})
    params, x = both.state_dict(), np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    y, _ = both(x)
    for d, one in enumerate(sets):
        alone = LAYERS[kind](3, 4, backend=backend, **{argument: one})
        alone.load_state_dict({name: params[name + "_reverse" * d] for name in alone.state_dict()})
        expected = alone(x[::-1] if d else x)[0]
        assert_near(y[:, :, 4 * d : 4 * d + 4], expected[::-1] if d else expected, 2e-6)


# ------------------------------------------------------------------------------------------------------- inference only
@pytest.mark.parametrize("f", [("leaky_relu", -0.1), ("elu", -1.0), ("scaled_tanh", 0.0, 1.0)], ids=str)
def test_an_activation_without_a_derivative_serves_for_inference_only(f: tuple[Any, ...], backend: str) -> None:
    full = (*f, 0.0, 0.0)[:3]
    sets = (("sigmoid", "tanh", "tanh"), ("sigmoid", f, "tanh"))
    layer = fl.LSTM(3, 4, bidirectional=True, activations=sets, backend=backend)
    x = np.ones((2, 1, 3), np.float32)
    assert np.isfinite(layer(x)[0]).all()
    with pytest.raises(ValueError, match=f"activation .*{f[0]}.* cannot be trained") as error:
        layer.forward(x)
    assert str(full[0]) in str(error.value) and "For inference call the layer itself" in str(error.value)
    with pytest.raises(ValueError, match="cannot be trained"):
        fl.RNNCell(3, 4, nonlinearity=f, backend=backend).forward(x[0])


# ------------------------------------------------------------------------------------------------ repr, pickle and copy
CONFIGURED: list[tuple[Any, str]] = [
    (lambda: fl.LSTM(3, 5, clip=2, input_forget=True), "LSTM(3, 5, clip=2.0, input_forget=True)"),
    (lambda: fl.GRU(3, 5, reset_after=False, single_bias=True), "GRU(3, 5, reset_after=False, single_bias=True)"),
    (
        lambda: fl.GRU(3, 5, bidirectional=True, activations=(("sigmoid", "tanh"), ("sigmoid", ("elu", 0.5)))),
        "GRU(3, 5, bidirectional=True, activations=(('sigmoid', 'tanh'), ('sigmoid', ('elu', 0.5, 0.0))))",
    ),
    (
        lambda: fl.RNN(3, 5, bidirectional=True, nonlinearity=("tanh", "relu"), clip=0.5),
        "RNN(3, 5, bidirectional=True, nonlinearity=('tanh', 'relu'), clip=0.5)",
    ),
    (
        lambda: fl.RNN(3, 5, bidirectional=True, nonlinearity=("relu", "relu")),
        "RNN(3, 5, bidirectional=True, nonlinearity='relu')",
    ),
]


@pytest.mark.parametrize(("make", "text"), CONFIGURED, ids=lambda v: v if isinstance(v, str) else "")
def test_a_layer_is_written_as_it_was_made_and_copies_compute_the_same(make: Any, text: str) -> None:
    layer = make()
    assert repr(layer) == text
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    expected = {"y": layer(x)[0]}
    again = eval(text, vars(fl) | {"LSTM": fl.LSTM, "GRU": fl.GRU, "RNN": fl.RNN})
    again.load_state_dict(layer.state_dict())
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), again):
        assert repr(other) == text
        assert_same_bits({"y": other(x)[0]}, expected)


def test_streams_compute_the_same_equation(backend: str) -> None:
    layer = fl.LSTM(3, 5, 2, clip=0.4, input_forget=True, single_bias=True, backend=backend, seed=0)
    x = np.random.default_rng(0).standard_normal((6, 2, 3)).astype(np.float32)
    y, _ = layer(x)
    stream = layer.stream(2)
    steps = np.stack([np.array(stream.step(x_t)) for x_t in x[:3]])
    assert_near(np.concatenate((steps, stream.run(x[3:]))), y, 2e-6)


def test_every_backend_is_tried() -> None:
    assert {p.values[0].backend for p in ALL} == set(backends()) and CELLS.keys() == LAYERS.keys()
