"""`from_onnx`: recurrent nodes of a model as layers, wherever they are and whatever their weights are made of."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import assert_near, named

import fastlstm as fl
from fastlstm._onnx_weights import node_attributes, node_tensors
from fastlstm.files import FileError
from fastlstm.onnx.builder import Graph, attribute, model, value_info
from fastlstm.onnx.graphs import recurrent_nodes
from fastlstm.onnx.messages import (
    AttributeProto,
    FunctionProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    StringStringEntryProto,
    read_model,
)

I, H = 3, 5  # noqa: E741
KINDS = {"lstm": fl.LSTM, "gru": fl.GRU, "rnn": fl.RNN}
F32 = np.dtype(np.float32)


def layer(kind: str = "lstm", seed: int = 0, **options: Any) -> Any:
    return KINDS[kind](I, H, seed=seed, **options)


def tensors(of: Any) -> dict[str, Any]:
    """W, R, B and P of a layer's node."""
    params = {name.replace("_l0", ""): p for name, p in of.state_dict().items()}
    ends = ["", "_reverse"][: of._D]
    return node_tensors([{n.removesuffix(e): p for n, p in params.items() if n.endswith(e)} for e in ends], of.kind)


def recurrent_node(g: Graph, of: Any, title: str, inputs: dict[str, str] | None = None, **more: Any) -> str:
    """A node with a layer's weights, those of `inputs` made by other nodes; its first output."""
    given = {
        "X": "x",
        **{n: g.constant(a, n) for n, a in tensors(of).items() if n not in (inputs or {})},
        **(inputs or {}),
    }
    order = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")[: 8 if of.kind == "lstm" else 6]
    names = [given.get(name, "") for name in order]
    attributes = {**node_attributes(of._specs[0]), **more}
    return g.nodes(of.kind.upper(), names, [f"{title}_Y"], title=title, **attributes)[0]


def same(got: Any, expected: Any) -> None:
    """Equal parameters; a layer without a second bias has it as zeros in ONNX."""
    mine = got.state_dict()
    for name, p in expected.state_dict().items():
        np.testing.assert_array_equal(mine.pop(name), p, err_msg=name)
    assert not any(p.any() for p in mine.values())


def graph(name: str = "main") -> Graph:
    g = Graph(name, F32)
    g.input("x", F32, ["T", "B", I])
    return g


# ---------------------------------------------------------------------------------------------------------- round trips
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *itertools.product(KINDS, ({}, {"bias": False}, {"bidirectional": True}, {"reverse": True}, {"clip": 0.5})),
    ("lstm", {"peepholes": True, "bidirectional": True, "input_forget": True}),
    ("lstm", {"activations": (("hard_sigmoid_keras2", 0.25, 0.5), ("elu", 0.75), "softsign"), "single_bias": True}),
    ("gru", {"reset_after": False, "clip": 0.25}),
    ("gru", {"bidirectional": True, "activations": (("sigmoid", "tanh"), (("affine", 0.5, 0.25), "relu"))}),
    ("rnn", {"bidirectional": True, "nonlinearity": ("relu", ("leaky_relu", 0.25))}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_a_layer_written_and_read_is_the_same(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    expected = layer(kind, **options)
    expected.to_onnx(tmp_path / "model.onnx")
    got = fl.from_onnx(tmp_path / "model.onnx")
    same(got, expected)
    assert repr(got) == repr(expected).replace(", single_bias=True", "")
    x = np.random.default_rng(0).standard_normal((6, 4, I)).astype(F32)
    for mine, theirs in zip(got(x, lengths=[6, 1, 3, 2])[1], expected(x, lengths=[6, 1, 3, 2])[1], strict=True):
        assert_near(mine, theirs, 1e-6)


def test_a_reverse_layer_walks_from_the_end(backend: str) -> None:
    """It equals the reverse half of a bidirectional layer: values, states and gradients, whatever the lengths."""
    both = layer(bidirectional=True, backend=backend)
    one = layer(reverse=True, backend=backend)
    one.load_state_dict({n: both.state_dict()[f"{n}_reverse"] for n in one.state_dict()})
    rng, lengths = np.random.default_rng(0), [5, 0, 2]
    x, dy = rng.standard_normal((5, 3, I)).astype(F32), rng.standard_normal((5, 3, H)).astype(F32)
    y, state, tape = one.forward(x, lengths=lengths)
    y_both, state_both, tape_both = both.forward(x, lengths=lengths)
    np.testing.assert_array_equal(y, y_both[..., H:])
    np.testing.assert_array_equal(state[0], state_both[0][1:])
    zeros = np.zeros((2, 3, H), F32)
    dx, _, grads = one.backward(tape, dy)
    dx_both, _, grads_both = both.backward(tape_both, np.concatenate((0 * dy, dy), 2), (zeros, zeros))
    assert_near(dx, dx_both, 1e-6)
    for name, gradient in grads.items():
        assert_near(gradient, grads_both[f"{name}_reverse"], 1e-6, name)
    again = one.forward(x, lengths=lengths, checkpoint_every=2)[0]
    np.testing.assert_array_equal(again, y)


def test_what_a_reverse_layer_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="walks in both directions: leave out reverse=True"):
        layer(reverse=True, bidirectional=True)
    with pytest.raises(ValueError, match="a reverse layer cannot stream"):
        layer(reverse=True).stream()
    with pytest.raises(ValueError, match="it has no place for reverse=True"):
        layer(reverse=True).to_arrays("keras")
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match="no reverse"):
        layer(reverse=True).to_torch()


# ------------------------------------------------------------------------------------------- where nodes are, and names
def test_several_nodes_are_listed_and_found_by_name_and_output(tmp_path: Path) -> None:
    g = graph()
    layers = {"encoder": layer("lstm", bidirectional=True), "decoder": layer("gru", 1), "": layer("rnn", 2)}
    for name, of in layers.items():
        recurrent_node(g, of, name or "plain")
    g.proto.node[-1].name = ""
    path = tmp_path / "model.onnx"
    path.write_bytes(model(g))
    with pytest.raises(ValueError) as error:
        fl.from_onnx(path)
    assert str(error.value) == (
        f"{path}: the model has several recurrent nodes; give name= one of these:\n"
        "  'encoder': LSTM, 3 inputs, 5 units, bidirectional\n  'decoder': GRU, 3 inputs, 5 units\n"
        "  'plain_Y': RNN, 3 inputs, 5 units"
    )
    for name, of in {"encoder": "encoder", "decoder": "decoder", "plain_Y": "", "decoder_Y": "decoder"}.items():
        same(fl.from_onnx(path, name), layers[of])
    with pytest.raises(ValueError, match="the model has no recurrent node 'other'; give name= one of these:\n  'enc"):
        fl.from_onnx(path, "other")


def body(outer: Graph, of: Any, title: str, *inputs: str) -> Graph:
    """The body of an If, Loop or Scan with one recurrent node."""
    g = Graph(title, F32, outer)
    for name in inputs:
        g.proto.input.append(value_info(name, F32, None))
    y = recurrent_node(g, of, title)
    g.output(y, f"{title}_out", F32, None)
    return g


def test_nodes_in_bodies_of_if_loop_and_scan() -> None:
    one, two, three, four = (layer("gru", seed) for seed in range(4))
    g = graph()
    g.input("condition", np.bool_, [])
    then, other = body(g, one, "gru"), body(g, two, "gru")
    other.proto.node[0].name = "gru"  # the same name in both branches
    g.nodes("If", ["condition"], ["of_if"], title="choice", then_branch=then.proto, else_branch=other.proto)
    loop, scan = body(g, three, "looped"), body(g, four, "scanned", "x")
    g.nodes("Loop", ["", "condition"], ["of_loop"], title="loop", body=loop.proto)
    g.nodes("Scan", ["x"], ["of_scan"], title="scan", body=scan.proto, num_scan_inputs=1)
    data = model(g)
    names = ("choice/then_branch/gru", "choice/else_branch/gru", "looped", "scan/body/scanned")
    for name, of in zip(names, (one, two, three, four), strict=True):
        same(fl.from_onnx(data, name), of)
    with pytest.raises(ValueError, match="several recurrent nodes are named 'gru'; give name= one of these") as error:
        fl.from_onnx(data, "gru")
    assert "'choice/then_branch/gru': GRU, 3 inputs, 5 units" in str(error.value)


def test_weights_of_a_body_may_stand_outside_it() -> None:
    of, g = layer(), graph()
    outside = {name: g.constant(a, name) for name, a in tensors(of).items()}
    g.input("condition", np.bool_, [])
    inner = Graph("then", F32, g)
    inner.output(recurrent_node(inner, of, "lstm", outside), "y", F32, None)
    g.nodes("If", ["condition"], ["of_if"], then_branch=inner.proto, else_branch=inner.proto)
    same(fl.from_onnx(model(g), "if/then_branch/lstm"), of)


def function_model(*, twice: bool = True) -> tuple[ModelProto, Any, Any]:
    """A model whose function Pair holds an LSTM; its weights are inputs and its clip an attribute of the function."""
    one, two = layer(clip=0.5), layer(seed=1, clip=0.25)
    node = NodeProto(input=["a", "w", "r", "b"], output=["y"], name="lstm", op_type="LSTM")
    node.attribute = [attribute("hidden_size", H), AttributeProto(name="clip", type=1, ref_attr_name="bound")]
    function = FunctionProto(name="Pair", domain="own", input=["a", "w", "r", "b"], output=["y"], node=[node])
    function.attribute = ["bound"]
    function.opset_import = [OperatorSetIdProto(domain="", version=17)]
    g = graph()
    for k, of in enumerate((one, two) if twice else (one,)):
        values = [g.constant(a, f"{n}{k}") for n, a in tensors(of).items()]
        g.nodes("Pair", ["x", *values], [f"y{k}"], title=f"call{k}", bound=of.clip)
        g.proto.node[-1].domain = "own"
    proto = ModelProto.from_bytes(model(g))
    proto.functions = [function]
    return proto, one, two


def test_nodes_in_functions_have_the_weights_and_attributes_of_each_call() -> None:
    proto, one, two = function_model()
    for name, of in (("call0/lstm", one), ("call1/lstm", two)):
        got = fl.from_onnx(proto.to_bytes(), name)
        same(got, of)
        assert got.clip == of.clip
    proto.graph.node[1].attribute = []  # a call may leave the attribute out
    assert fl.from_onnx(proto.to_bytes(), "call1/lstm").clip is None
    proto.functions[0].attribute_proto = [attribute("bound", 0.125)]  # then the function's default counts
    assert fl.from_onnx(proto.to_bytes(), "call1/lstm").clip == 0.125
    same(fl.from_onnx(function_model(twice=False)[0].to_bytes()), one)


# ------------------------------------------------------------------------------------------------------------ constants
def test_weights_from_constant_nodes_and_expressions() -> None:
    """W sliced, R transposed and unsqueezed, B concatenated of halves, P cast from float64 and added."""
    of = layer(peepholes=True)
    W, R, B, P = (tensors(of)[name] for name in "WRBP")
    g = graph()
    constant = g.node("Constant", value=Graph_tensor(np.concatenate((W, W + 1), axis=1)))
    sliced = g.node("Slice", constant, g.ints(0), g.ints(4 * H), g.ints(1))
    turned = g.node("Unsqueeze", g.transpose(g.constant(R[0].T, "r"), 1, 0), g.ints(0))
    halves = g.node("Concat", *(g.constant(half, "half") for half in np.split(B, 2, axis=1)), axis=1)
    wide = g.cast(g.constant(P - np.float32(0.5), "p", np.float64), np.float32)
    added = g.node("Add", wide, g.constant(0.5, "half_more"))
    recurrent_node(g, of, "lstm", {"W": sliced, "R": turned, "B": halves, "P": added})
    got = fl.from_onnx(model(g))
    assert_near(got.state_dict()["weight_peep_l0"], of.state_dict()["weight_peep_l0"], 1e-6)
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        np.testing.assert_array_equal(got.state_dict()[name], of.state_dict()[name])


def Graph_tensor(array: Any) -> Any:
    from fastlstm.onnx.tensors import from_array

    return from_array(array)


def test_arguments_that_were_attributes_in_old_versions() -> None:
    """Slice, Reshape, Unsqueeze, Squeeze, Split and Cast of their first versions; com.microsoft's DequantizeLinear."""
    of = layer()
    W, R, B = (tensors(of)[name] for name in "WRB")
    g = graph()
    sliced = g.node("Slice", g.constant(np.concatenate((W, W), axis=1), "W"), starts=[0], ends=[4 * H], axes=[1])
    flat = g.node("Reshape", g.constant(R.reshape(-1), "R"), shape=[4 * H, H])
    turned = g.node("Unsqueeze", g.node("Squeeze", g.node("Unsqueeze", flat, axes=[0, 1]), axes=[0, 1]), axes=[0])
    halves = g.nodes("Split", [g.constant(B, "B", np.float64)], ["first", "second"], axis=1, split=[4 * H, 4 * H])
    both = g.node("Cast", g.node("Concat", *halves, axis=1), to="FLOAT32")
    recurrent_node(g, of, "lstm", {"W": sliced, "R": turned, "B": both})
    same(fl.from_onnx(model(g)), of)
    g = graph()
    bits = g.node("DequantizeLinear", g.constant(np.ones(W.shape), "q", np.uint8), g.constant(0.5, "scale"))
    g.proto.node[-1].domain = "com.microsoft"
    recurrent_node(g, of, "lstm", {"W": bits})
    assert (fl.from_onnx(model(g)).state_dict()["weight_ih_l0"] == 0.5).all()


@pytest.mark.parametrize("per_row", [False, True])
def test_weights_that_are_dequantised(per_row: bool) -> None:
    of = layer()
    W = tensors(of)["W"]
    scale = (np.abs(W[0]).max(axis=1) if per_row else np.abs(W).max()) / 127
    zero = np.full(scale.shape, 3, np.int8)
    rows = scale[:, None] if per_row else scale
    stored = np.clip(np.rint(W[0] / rows) + 3, -128, 127).astype(np.int8)
    g = graph()
    values = [g.constant(stored, "q", np.int8), g.constant(scale, "s"), g.constant(zero, "z", np.int8)]
    floats = g.unsqueeze(g.node("DequantizeLinear", *values, axis=0), 0)
    recurrent_node(g, of, "lstm", {"W": floats})
    got = tensors(fl.from_onnx(model(g)))["W"]
    np.testing.assert_array_equal(got[0], ((stored.astype(np.float32) - 3) * rows).astype(np.float32))
    assert np.abs(got - W).max() < 3.6 * np.max(scale), "those at the upper end were cut by 3 steps"


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    of = layer()
    g = graph()
    recurrent_node(g, of, "lstm")
    data = b"before"
    for tensor in g.proto.initializer:
        raw = bytes(tensor.raw_data)
        entries = {"location": "weights.bin", "offset": str(len(data)), "length": str(len(raw))}
        data, tensor.raw_data, tensor.data_location = data + raw, None, 1
        tensor.external_data = [StringStringEntryProto(key=k, value=v) for k, v in entries.items()]
    (tmp_path / "weights.bin").write_bytes(data)
    path = tmp_path / "model.onnx"
    path.write_bytes(model(g))
    same(fl.from_onnx(path), of)
    with pytest.raises(FileError, match="was not read from a file"):
        fl.from_onnx(path.read_bytes())
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "model.onnx").write_bytes(path.read_bytes().replace(b"weights.bin", b"../weights."))
    (tmp_path / "weights.").write_bytes(data)
    with pytest.raises(FileError, match=r"external data outside the model's folder are not read"):
        fl.from_onnx(tmp_path / "inner" / "model.onnx")


def test_weights_known_at_run_time_only_are_refused_by_name() -> None:
    of, g = layer(), graph()
    g.input("W", F32, [1, 4 * H, I])
    recurrent_node(g, of, "lstm", {"W": "W"})
    with pytest.raises(ValueError, match=r"node 'lstm' \(LSTM\) has an input W that is no constant: .*'W' is an input"):
        fl.from_onnx(model(g))
    g = graph()
    random = g.nodes("RandomNormal", [], ["drawn"], title="noise", shape=[1, 4 * H, I])[0]
    recurrent_node(g, of, "lstm", {"W": random})
    with pytest.raises(ValueError, match=r"made by node 'noise' \(RandomNormal\), which is not computed beforehand"):
        fl.from_onnx(model(g))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("layout", [0, 1])
def test_constant_states_and_lengths_come_with_the_layer(kind: str, layout: int, tmp_path: Path) -> None:
    of = layer(kind, bidirectional=True, batch_first=bool(layout))
    rng = np.random.default_rng(0)
    parts = {"initial_h": rng.standard_normal((2, 4, H)).astype(F32)}
    parts |= {"initial_c": rng.standard_normal((2, 4, H)).astype(F32)} if kind == "lstm" else {}
    g = graph()
    given = {n: g.constant(a.swapaxes(0, 1) if layout else a, n) for n, a in parts.items()}
    given["sequence_lens"] = g.constant([5, 1, 2, 3], "lengths", np.int32)
    recurrent_node(g, of, "node", given, layout=layout)
    with pytest.raises(
        ValueError, match=r"has constants that are no part of a layer, lengths and state: layer, inputs = "
    ):
        fl.from_onnx(model(g))
    got, inputs = fl.from_onnx(model(g), return_inputs=True)
    assert got.batch_first is bool(layout)
    x = rng.standard_normal((4, 5, I) if layout else (5, 4, I)).astype(F32)
    state = tuple(parts.values()) if kind == "lstm" else parts["initial_h"]
    expected = of(x, state, [5, 1, 2, 3])
    mine = got(x, **inputs)
    np.testing.assert_array_equal(mine[0], expected[0])
    for name, part in named("{}", expected[1]).items():
        np.testing.assert_array_equal(named("{}", mine[1])[name], part)


def test_a_constant_state_of_zeros_is_as_if_left_out() -> None:
    of, g = layer(), graph()
    zeros = g.node("Expand", g.constant(0, "zero"), g.ints(1, 4, H))
    recurrent_node(g, of, "lstm", {"initial_h": zeros, "initial_c": zeros})
    same(fl.from_onnx(model(g)), of)
    assert fl.from_onnx(model(g), return_inputs=True)[1] == {}


def test_float64_and_half_weights() -> None:
    of = layer(dtype="float64")
    for dtype, expected in ((np.float64, "float64"), (np.float16, "float32")):
        g = graph()
        given = {n: g.constant(a, n, dtype) for n, a in tensors(of).items()}
        recurrent_node(g, of, "lstm", given)
        got = fl.from_onnx(model(g))
        assert got.dtype == expected
        W = of.state_dict()["weight_ih_l0"].astype(dtype)
        np.testing.assert_array_equal(got.state_dict()["weight_ih_l0"], W.astype(expected))
        assert fl.from_onnx(model(g), dtype="float64").dtype == np.float64


# ------------------------------------------------------------------------------------------------------ other libraries
def test_a_layer_of_8_bits_is_dequantised(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    quantization = pytest.importorskip("onnxruntime.quantization")
    of = layer(bidirectional=True)
    of.to_onnx(tmp_path / "model.onnx")
    quantization.quantize_dynamic(tmp_path / "model.onnx", tmp_path / "small.onnx")
    with pytest.raises(
        ValueError, match="'none'; give name= one of these:\n  'lstm_quant': DynamicQuantizeLSTM, 3 inputs, 5"
    ):
        fl.from_onnx(tmp_path / "small.onnx", "none")
    got = fl.from_onnx(tmp_path / "small.onnx")
    for name, p in of.state_dict().items():
        assert_near(got.state_dict()[name], p, 0 if "bias" in name else 0.006, name)
    x = np.random.default_rng(0).standard_normal((6, 2, I)).astype(F32)
    (expected,) = ort.InferenceSession(tmp_path / "small.onnx").run(None, {"x": x})
    assert_near(got(x)[0], expected, 0.03)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "dynamo"), [("lstm", False), ("gru", False), ("rnn", False), ("lstm", True), ("gru", True)]
)
def test_models_that_torch_exports(kind: str, dynamo: bool, tmp_path: Path) -> None:
    """By its old exporter and by the new one, which writes an RNN as operators of single steps."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")
    module = getattr(torch.nn, kind.upper())(I, H, 2, bidirectional=True, batch_first=True).eval()
    x = torch.randn(4, 6, I)
    path = tmp_path / "model.onnx"
    torch.onnx.export(module, (x,), path, dynamo=dynamo, verbose=False)
    names = [found.name for found in recurrent_nodes(read_model(path))]
    first, second = (fl.from_onnx(path, name) for name in names)
    y = second(first(np.ascontiguousarray(x.numpy().swapaxes(0, 1)))[0])[0]
    assert_near(y.swapaxes(0, 1), module(x)[0].detach().numpy(), 1e-6)


def test_models_are_read_without_onnx(tmp_path: Path) -> None:
    layer().to_onnx(tmp_path / "model.onnx")
    script = "import sys; sys.modules['onnx'] = None; import fastlstm as fl; print(fl.from_onnx(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "model.onnx")], capture_output=True, text=True)
    assert done.stdout == "LSTM(3, 5)\n", done.stderr


# --------------------------------------------------------------------------------------------------- what is not valid
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"direction": "sideways"}, "direction='sideways', expected one of forward, reverse, bidirectional"),
        ({"hidden_size": 6}, r"W and R of shapes \(1, 20, 3\) and \(1, 20, 5\), and hidden_size=6"),
        ({"clip": -1.0}, "clip=-1, expected a number above 0"),
        ({"activations": ["Sigmoid", "Tanh"]}, "2 activations, expected 3 for each of 1 directions"),
        ({"activations": ["Sigmoid", "Gelu", "Tanh"]}, "activation 'Gelu'; expected one of Sigmoid, Tanh, Relu"),
        ({"activations": ["Elu"] * 3, "activation_alpha": [float("nan")]}, "alpha nan .* expected finite numbers"),
        ({"layout": 2}, "layout=2, expected 0 or 1"),
        ({"clip": 3}, "attribute clip with a value of another type"),
        ({"linear_before_reset": 1}, "attribute 'linear_before_reset', which the operator does not know"),
        ({"peepholes": 1}, "attribute 'peepholes', which the operator does not know"),
    ],
)
def test_attributes_that_do_not_fit_are_named(change: dict[str, Any], why: str) -> None:
    g = graph()
    recurrent_node(g, layer(), "lstm", **change)
    with pytest.raises(FileError, match=rf"node 'lstm' \(LSTM\) has .*{why}"):
        fl.from_onnx(model(g))


@pytest.mark.parametrize(
    ("name", "shape", "why"),
    [
        ("W", (1, 20), r"has W of shape \(1, 20\), expected three axes"),
        ("W", (2, 20, 3), r"has W of shape \(2, 20, 3\), expected \(1, 20, 3\)"),
        ("R", (1, 20, 4), r"has W of shape|W and R of shapes"),
        ("B", (1, 20), r"has B of shape \(1, 20\), expected \(1, 40\)"),
        ("P", (1, 10), r"has P of shape \(1, 10\), expected \(1, 15\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(name: str, shape: tuple[int, ...], why: str) -> None:
    g = graph()
    recurrent_node(g, layer(), "lstm", {name: g.constant(np.zeros(shape), name)})
    with pytest.raises(FileError, match=why):
        fl.from_onnx(model(g))


def test_a_node_with_too_many_inputs_is_named() -> None:
    g = graph()
    recurrent_node(g, layer("gru"), "gru")
    g.proto.node[0].input += ["", "x"]
    with pytest.raises(FileError, match=r"node 'gru' \(GRU\) has 8 inputs, the operator at most 6"):
        fl.from_onnx(model(g))


def test_files_that_are_none(tmp_path: Path) -> None:
    g = graph()
    g.node("Relu", "x")
    with pytest.raises(ValueError, match="the model has no LSTM, GRU or RNN node"):
        fl.from_onnx(model(g))
    with pytest.raises(TypeError, match=r"an ONNX model is a path, bytes or an onnx\.ModelProto, got int"):
        fl.from_onnx(3)
    for what in (3, None, fl.GRU(3, 4)):  # an int would name an open file
        with pytest.raises(TypeError, match=f"not {type(what).__name__}"):
            fl.onnx.accelerate(what)
    with pytest.raises(TypeError, match="return_inputs must be True or False"):
        fl.from_onnx(model(graph()), return_inputs="no")
    with pytest.raises(FileNotFoundError):
        fl.from_onnx(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="no graph"):
        fl.from_onnx(b"")
    whole = model(graph())
    with pytest.raises(FileError):
        fl.from_onnx(whole[: len(whole) // 2])


# ---------------------------------------------------------------------------------------------------- hostile structure
def test_a_value_made_of_itself_is_refused() -> None:
    of, g = layer(), graph()
    recurrent_node(g, of, "lstm", {"W": "a"})
    g.proto.node += [NodeProto(["b"], ["a"], op_type="Identity"), NodeProto(["a"], ["b"], op_type="Identity")]
    with pytest.raises(FileError, match="'a' is made of itself"):
        fl.from_onnx(model(g))


def test_long_expressions_and_large_results_are_refused() -> None:
    of = layer()
    g = graph()
    value = g.constant(tensors(of)["W"], "W")
    for _ in range(10_000):
        value = g.node("Identity", value)
    recurrent_node(g, of, "lstm", {"W": value})
    with pytest.raises(FileError, match="an expression of more than 64 steps"):
        fl.from_onnx(model(g))
    for grow in ("Expand", "ConstantOfShape", "Concat", "Tile", "Gather"):
        g = graph()
        one = g.constant(np.zeros((1, 1 << 10)), "one")
        shape = g.ints(1 << 40, 1 << 10)
        if grow == "Concat":
            for _ in range(40):
                one = g.node("Concat", one, one, axis=0)
        elif grow == "Gather":
            many = g.node("Expand", g.ints(0), g.ints(1 << 20))
            one = g.node("Gather", g.node("Gather", one, many, axis=0), many, axis=1)
        else:
            one = g.node(grow, *([one] * (grow != "ConstantOfShape")), shape)
        recurrent_node(g, of, "lstm", {"W": one})
        with pytest.raises(FileError, match=r"take too much memory|cannot be computed"):
            fl.from_onnx(model(g))


def test_functions_that_call_themselves_are_refused() -> None:
    proto, _, _ = function_model()
    proto.functions[0].node.append(NodeProto(["a"], ["z"], op_type="Pair", domain="own"))
    with pytest.raises(FileError, match="nested more than 64 deep: damaged, or cyclic"):
        fl.from_onnx(proto.to_bytes())
    # Each function calls the next one twice: 2**40 nodes in a small file.
    functions = []
    for k in range(40):
        calls = [NodeProto(["a"], [f"y{n}"], op_type=f"F{k + 1}", domain="own") for n in range(2)]
        functions.append(FunctionProto(name=f"F{k}", domain="own", input=["a"], output=["y0"], node=calls))
    proto.functions = functions
    proto.graph.node = [NodeProto(["x"], ["y"], op_type="F0", domain="own")]
    with pytest.raises(FileError, match="values, those of a function for each of its calls"):
        fl.from_onnx(proto.to_bytes())


def test_deeply_nested_bodies_are_refused() -> None:
    inner: Any = None
    for _ in range(30):
        g = Graph("body", F32)
        g.proto.node = [NodeProto([], ["y"], op_type="If")]
        if inner is not None:
            g.proto.node[0].attribute = [attribute("then_branch", inner.proto)]
        inner = g
    with pytest.raises(FileError, match=r"nested more than|no LSTM"):
        fl.from_onnx(model(inner))
