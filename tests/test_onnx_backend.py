"""fastlstm as a backend of the onnx package: its official tests of recurrent operators and of those on constants."""

from __future__ import annotations

import functools
import io
import re
import unittest
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm.onnx.folding import OPERATORS
from fastlstm.onnx.nodes import KINDS

onnx = pytest.importorskip("onnx")

from onnx.backend.test import BackendTest  # noqa: E402
from onnx.backend.test.loader import load_model_tests  # noqa: E402

H = onnx.helper
RECURRENT = {operator for domain, operator in KINDS if not domain}
RUN_HERE = RECURRENT | set(OPERATORS)
# What our reader widens to float32 or int8 is of another type than the tests want.
OTHER_TYPES = re.compile(r"INT[24]|FLOAT[48]|BFLOAT16|_e4m3|_e5m2|_u?int[24]|_string|FLOAT_to_STRING|_sequence|_opt$")


def operators(model: Any) -> set[str]:
    return {node.op_type for node in model.graph.node}


@functools.cache
def cases() -> list[Any]:
    """The official tests of models that are run here. They are made when this is called, which takes some seconds."""
    found = load_model_tests(kind="node")
    return [case for case in found if operators(case.model) <= RUN_HERE and not OTHER_TYPES.search(case.name)]


@functools.cache
def of_recurrent() -> list[str]:
    return sorted(case.name for case in cases() if operators(case.model) & RECURRENT)


def test_the_official_suite_has_its_tests_of_recurrent_operators() -> None:
    assert len(of_recurrent()) >= 18 and len(cases()) > 150
    assert {re.split("_", name)[1] for name in of_recurrent()} == {"lstm", "gru", "rnn", "simple"}


def test_the_official_tests_of_recurrent_operators_pass(backend: str) -> None:
    """As onnx runs them, with the tolerances that they have."""

    class Chosen(fl.onnx.Backend):  # type: ignore[misc, name-defined]
        @classmethod
        def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> Any:
            return super().prepare(model, device, backend=backend, **kwargs)

    suite = BackendTest(Chosen, __name__)
    for name in of_recurrent():
        suite.include(f"^{name}_cpu$")
    tests = suite.test_cases["OnnxBackendNodeModelTest"]
    result = unittest.TextTestRunner(io.StringIO()).run(unittest.TestLoader().loadTestsFromTestCase(tests))
    assert result.wasSuccessful(), [text for _, text in result.failures + result.errors]
    assert result.testsRun - len(result.skipped) == len(of_recurrent())


def numbers(given: Any) -> Any:
    return onnx.numpy_helper.to_array(given) if isinstance(given, onnx.TensorProto) else np.asarray(given)


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_the_official_tests_of_operators_on_constants_pass(operator: str) -> None:
    of_operator = [case for case in cases() if operator in operators(case.model)]
    for case in of_operator:
        prepared = fl.onnx.prepare(case.model)
        for given, expected in case.data_sets:
            got = prepared.run([numbers(a) for a in given])
            for mine, theirs in zip(got, map(numbers, expected), strict=True):
                assert mine.dtype == theirs.dtype and mine.shape == theirs.shape, case.name
                np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7, err_msg=case.name)
    assert of_operator or operator == "Constant"


# ----------------------------------------------------------------------------------------------------------- interface
def recurrent_model(*, constant: bool) -> tuple[Any, dict[str, Any]]:
    """A bidirectional GRU whose weights are inputs or initialisers, and arrays for all of them."""
    rng = np.random.default_rng(0)
    shapes = {"X": (5, 3, 4), "W": (2, 18, 4), "R": (2, 18, 6), "B": (2, 36)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    inputs = ["X"] if constant else list(shapes)
    node = H.make_node("GRU", list(shapes), ["Y", "Y_h"], direction="bidirectional", hidden_size=6)
    graph = H.make_graph(
        [node],
        "g",
        [H.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shapes[name]) for name in inputs],
        [
            H.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * rank)
            for name, rank in (("Y", 4), ("Y_h", 3))
        ],
        [onnx.numpy_helper.from_array(arrays[name], name) for name in shapes if name not in inputs],
    )
    return H.make_model(graph, opset_imports=[H.make_opsetid("", 14)], ir_version=8), arrays


def test_weights_may_be_inputs(backend: str) -> None:
    fixed, arrays = recurrent_model(constant=True)
    free, _ = recurrent_model(constant=False)
    expected = fl.onnx.run_model(fixed, [arrays["X"]], backend=backend)
    assert expected["Y"].shape == (5, 2, 3, 6)
    prepared = fl.onnx.prepare(free, backend=backend)
    for given in (arrays, list(arrays.values())):
        got = prepared.run(given)
        np.testing.assert_array_equal(got["Y"], expected["Y"])
        np.testing.assert_array_equal(got[1], expected[1])
    of_node = fl.onnx.run_node(free.graph.node[0], list(arrays.values()), backend=backend)
    np.testing.assert_array_equal(of_node.Y, expected["Y"])
    other = prepared.run(arrays | {"R": arrays["R"] + 1})
    assert np.abs(other["Y"] - expected["Y"]).max() > 0.01, "the second call's weights count"


def test_what_does_not_fit_is_named() -> None:
    model, arrays = recurrent_model(constant=False)
    prepared = fl.onnx.prepare(model)
    with pytest.raises(ValueError, match=r"W and R of shapes \(2, 18, 4\) and \(2, 18, 5\), and hidden_size=6"):
        prepared.run(arrays | {"R": arrays["R"][..., :5]})
    with pytest.raises(ValueError, match=r"takes X of shape \(T, B, I\) with I = 4, got \(5, 3, 3\)"):
        prepared.run(arrays | {"X": arrays["X"][..., :3]})
    with pytest.raises(ValueError, match=r"the model has 4 inputs \(X, W, R, B\), got 1"):
        prepared.run(arrays["X"])
    with pytest.raises(ValueError, match=r"the inputs X, W, R, B; missing: W, R, B"):
        prepared.run({"X": arrays["X"]})
    with pytest.raises(ValueError, match="device 'CUDA' is not supported; expected 'CPU'"):
        fl.onnx.prepare(model, "CUDA")
    assert fl.onnx.supports_device("CPU:0") and not fl.onnx.supports_device("CUDA:1")


def test_operators_that_are_not_run_here_are_named() -> None:
    model, _ = recurrent_model(constant=True)
    assert fl.onnx.is_compatible(model)
    model.graph.node.append(H.make_node("Softmax", ["Y"], ["Z"], name="last"))
    assert not fl.onnx.is_compatible(model)
    with pytest.raises(ValueError, match=r"node 'last' \(Softmax\) is not run here.*fastlstm\.onnx\.accelerate runs"):
        fl.onnx.prepare(model)


def test_functions_are_run() -> None:
    model, arrays = recurrent_model(constant=False)
    node = model.graph.node[0]
    function = H.make_function("own", "Twice", list(node.input), ["Y", "Y_h"], [node], [H.make_opsetid("", 14)])
    called = H.make_node("Twice", list(node.input), ["Y", "Y_h"], domain="own")
    expected = fl.onnx.run_model(model, arrays)
    del model.graph.node[:]
    model.graph.node.append(called)
    model.functions.append(function)
    model.opset_import.append(H.make_opsetid("own", 1))
    got = fl.onnx.run_model(model, arrays)
    np.testing.assert_array_equal(got["Y"], expected["Y"])
