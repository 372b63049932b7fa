"""Advice in messages is tried: the code that an error names is run, and the call that failed then succeeds."""

from __future__ import annotations

import ast
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastlstm as fl

PACKAGE = Path(fl.__file__).parent
F32, F64 = np.float32, np.float64
ONES = np.ones((2, 2, 3), F32)
HN = np.zeros((1, 2, 4), F32)


class Bad(NamedTuple):
    """A call with one wrong argument and a message that names a cure."""

    call: Callable[..., Any]
    given: dict[str, Any]


def lstm(x: Any, dtype: str = "float32", **options: Any) -> Any:
    return fl.LSTM(3, 4, dtype=dtype)(x, **options)


def with_state(h: Any, c: Any = HN, dtype: str = "float32") -> Any:
    """Input and c have the layer's dtype; only h may be wrong."""
    return fl.LSTM(3, 4, dtype=dtype)(ONES.astype(dtype), (h, c if c is not HN else c.astype(dtype)))


def set_state(h: Any, dtype: str = "float32") -> None:
    s = fl.RNN(3, 4, dtype=dtype).stream(2)
    s.state = h


def backward(dy: Any, dtype: str = "float32") -> Any:
    layer = fl.GRU(3, 4, dtype=dtype)
    *_, tape = layer.forward(ONES.astype(dtype))
    return layer.backward(tape, dy)


def reset(rows: Any, B: int = 4) -> None:
    fl.GRU(3, 4).stream(B).reset(rows)


def step(x: Any, dtype: str = "float32", B: int = 2) -> Any:
    return fl.GRU(3, 4, dtype=dtype).stream(B).step(x)


def into(out: Any) -> Any:
    return fl.GRU(3, 4).stream(2).step(ONES[0], out=out)


def from_arrays(dtype: Any = None, of: Any = np.float16) -> Any:
    return fl.from_arrays({k: a.astype(of) for k, a in fl.RNN(3, 4).to_arrays("waa").items()}, "rnn", dtype=dtype)


def with_head(dtype: Any = None) -> Any:
    arrays = fl.RNN(3, 4).to_arrays("waa", fl.Dense(4, 2))
    return fl.from_arrays({k: a.astype(np.float16) for k, a in arrays.items()}, "rnn", dtype=dtype)


def restore(other_weights: bool) -> Any:
    """A stream's state, given to streams of other weights."""
    old, new = (fl.StreamBatch(fl.GRU(3, 4, seed=seed)) for seed in (1, 2))
    return new.restore(old.export(old.open()), other_weights=other_weights)


def clip(g: Any) -> Any:
    return fl.clip_by_norm({"w": g}, 1.0)


def read_only() -> Any:
    out = np.zeros((2, 4), F32)
    out.flags.writeable = False
    return out


def conversions() -> Iterator[tuple[str, Bad]]:
    """Arrays of the wrong dtype, wherever arrays are taken."""
    for dtype in ("float16", "float64", "longdouble", "int64", "bool", ">f8", "complex64", "<U4", "O"):
        x = ONES.astype(dtype)
        yield f"a layer, {dtype}", Bad(lstm, {"x": x})
        yield f"Dense, {dtype}", Bad(lambda x, dtype="float32": fl.Dense(3, 4, dtype=dtype)(x), {"x": x})
        yield f"a step, {dtype}", Bad(step, {"x": x[0]})
        if dtype != "int64":  # integers of a run are token ids
            yield (
                f"a run, {dtype}",
                Bad(lambda x, dtype="float32": fl.RNN(3, 4, dtype=dtype).stream(2).run(x), {"x": x}),
            )
        yield f"a state, {dtype}", Bad(with_state, {"h": HN.astype(dtype)})
        yield f"an assigned state, {dtype}", Bad(set_state, {"h": HN.astype(dtype)})
        yield f"dy, {dtype}", Bad(backward, {"dy": np.ones((2, 2, 4), dtype)})
        if dtype not in ("float64", ">f8"):
            yield f"a layer of float64, {dtype}", Bad(lambda x: fl.GRU(3, 4, dtype="float64")(x), {"x": x})
    for dtype in ("float64", "int64", "float16"):
        yield (
            f"a list of {dtype}",
            Bad(lambda x, dtype="float32": fl.Dense(3, 4, dtype=dtype)(x), {"x": ONES.astype(dtype).tolist()}),
        )


CASES: dict[str, Bad] = {
    **dict(conversions()),
    "a single bias without any": Bad(
        lambda bias: fl.LSTM(3, 4, bias=bias, single_bias=True), {"bias": False}
    ),
    "activations of two directions for one": Bad(
        lambda bidirectional: fl.LSTM(
            3, 4, bidirectional=bidirectional, activations=(("sigmoid", "tanh", "tanh"), ("sigmoid", "tanh", "relu"))
        ),
        {"bidirectional": False},
    ),
    "a calibration for float32": Bad(
        lambda weights: fl.LSTM(3, 4).to_c(Path(tempfile.mkdtemp()) / "model.c", weights=weights, calibrate=ONES[:, 0]),
        {"weights": "float32"},
    ),
    "a masked array": Bad(lstm, {"x": np.ma.array(ONES, mask=ONES > 0)}),
    "samples of sound for a layer of one": Bad(
        lambda x: fl.LSTM(1, 4)(x), {"x": np.array([[-5], [300], [7]], np.int16)}
    ),
    "the same without a batch": Bad(lambda x: fl.LSTM(1, 4)(x), {"x": np.array([[-5], [300]], np.int16)}),
    "the same in float64": Bad(
        lambda x: fl.LSTM(1, 4, dtype="float64")(x), {"x": np.array([[-5], [300], [7]], np.int16)}
    ),
    "integers of rank 3": Bad(lstm, {"x": ONES.astype(int)}),
    "a step of integers": Bad(lambda x: step(x, B=1), {"x": np.array([1, 2, 0])}),
    "a step of integers, batch": Bad(step, {"x": ONES[0].astype(int)}),
    "a step of large integers": Bad(lambda x: fl.GRU(1, 4).stream(1).step(x), {"x": np.array([300])}),
    "a run of integers": Bad(lambda x: fl.GRU(3, 4).stream(2).run(x), {"x": ONES.astype(int)}),
    "a cell of integers": Bad(lambda x: fl.GRUCell(1, 4)(x), {"x": np.array([300])}),
    "ids as floats": Bad(lambda x: fl.GRU(9, 4)(x), {"x": np.array([[1, 8], [0, 3]], F32)}),
    "ids as floats, batch of one": Bad(lambda x: fl.GRU(9, 4)(x), {"x": np.array([1, 8, 3], F32)}),
    "a mask of integers": Bad(lambda mask: lstm(ONES, mask=mask), {"mask": np.array([[1, 0], [1, 1]])}),
    "a mask of floats": Bad(lambda mask: lstm(ONES, mask=mask), {"mask": np.array([[1, 0], [1, 1]], F32)}),
    "a mask as a list": Bad(lambda mask: lstm(ONES, mask=mask), {"mask": [[1, 0], [1, 1]]}),
    "lengths of floats": Bad(lambda lengths: lstm(ONES, lengths=lengths), {"lengths": np.array([2.0, 1.0])}),
    "lengths of floats, a list": Bad(lambda lengths: lstm(ONES, lengths=lengths), {"lengths": [2.0, 1.0]}),
    "a cell's mask": Bad(lambda mask: fl.GRUCell(3, 4)(ONES[0], mask=mask), {"mask": np.array([1, 0])}),
    **{
        f"dones of {rows!r}": Bad(reset, {"rows": rows})
        for rows in (
            np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1], F32), [0, 0, 1, 1], [0.0, 0.0, 1.0, 0.0],
            np.array([[0], [1], [1], [0]], np.uint8), np.array([[0.0], [1.0], [1.0], [0.0]]),
        )
    },
    "dones of two": Bad(lambda rows: reset(rows, 2), {"rows": np.array([0, 1], np.uint8)}),
    "dones of one": Bad(lambda rows: reset(rows, 1), {"rows": np.array([1])}),
    "out that is turned": Bad(into, {"out": np.zeros((4, 2), F32).T}),
    "out that is read-only": Bad(into, {"out": read_only()}),
    "hand-written arrays": Bad(from_arrays, {"dtype": None}),
    "hand-written arrays of integers": Bad(lambda dtype=None: from_arrays(dtype, int), {"dtype": None}),
    "hand-written arrays with a head": Bad(with_head, {"dtype": None}),
    "gradients of integers": Bad(clip, {"g": np.ones(3, int)}),
    "a dtype that backend c has not": Bad(
        lambda dtype="float64", backend="c": fl.LSTM(3, 4, dtype=dtype, backend=backend), {}
    ),
    "a state of other weights": Bad(restore, {"other_weights": False}),
    "nesterov": Bad(lambda nesterov: fl.SGD(fl.RNN(3, 4), momentum=0.9, nesterov=nesterov), {"nesterov": "no"}),
    "bias": Bad(lambda bias: fl.LSTM(3, 4, bias=bias), {"bias": "False"}),
    "a loss": Bad(lambda y: fl.losses.MeanSquaredError()(y, np.ones(3)), {"y": np.ones(3, np.float16)}),
    "a loss's mask": Bad(
        lambda mask: fl.losses.MeanSquaredError()(np.ones(3), np.ones(3), mask=mask), {"mask": np.array([1, 0, 1])}
    ),
}  # fmt: skip

# Code that a message may hold: an expression of arrays, or an argument with its value.
EXPRESSION = r"(?:numpy\.)?[a-z_]\w*(?:\.\w+)*\.?\w*\((?:[^()]|\([^()]*\))*\)(?:\.\w+\([^()]*\))*"
ARGUMENT = r"\b([a-z_]\w*)=('\w+'|True|False|\d+)"


def advised(message: str, given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(argument, what the message says to give for it)."""
    for name, value in re.findall(ARGUMENT, message):
        yield name, ast.literal_eval(value)
    for code in re.findall(EXPRESSION, message):
        names = [name for name in given if re.search(rf"\b{name}\b", code)]
        if names or code.startswith("numpy."):
            yield (names or list(given))[0], eval(code, {"numpy": np, **given})


def fails(bad: Bad) -> tuple[str, TracebackType | None]:
    with pytest.raises((TypeError, ValueError, RuntimeError)) as told:
        bad.call(**bad.given)
    return str(told.value), told.value.__traceback__


@pytest.mark.parametrize("bad", CASES.values(), ids=CASES)
def test_advice_that_is_followed_works(bad: Bad) -> None:
    message, _ = fails(bad)
    found = list(advised(message, bad.given))
    assert found, f"no advice in: {message}"
    for name, value in found:
        bad.call(**{**bad.given, name: value})


@pytest.mark.parametrize(
    "x", [None, np.array([None]), "text", np.array(["a"]), [[1], [1, 2]], np.zeros(2, "V4")], ids=repr
)
def test_no_advice_where_none_works(x: Any) -> None:
    message, _ = fails(Bad(lstm, {"x": x}))
    assert not list(advised(message, {"x": x})) and "astype" not in message


# ----------------------------------------------------------------------------------------------- half precision
def test_bfloat16_is_taken_where_float16_is(backend: str) -> None:
    """Weights in bfloat16 load as those in float16 do; an input in either gets an error with the same cure."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: make test-peers")
    for layer in (fl.LSTM(3, 4, backend=backend, seed=0), fl.Dense(3, 4, seed=0), fl.GRUCell(3, 4, seed=0)):
        for dtype in (np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
            half = {name: p.astype(dtype) for name, p in layer.state_dict().items()}
            layer.load_state_dict(half)
            for name, p in layer.state_dict().items():
                np.testing.assert_array_equal(p, half[name].astype(F32))
        for dtype in (np.float16, ml_dtypes.bfloat16):
            x = ONES[0].astype(dtype)[None] if isinstance(layer, fl.LSTM) else ONES[0].astype(dtype)
            with pytest.raises(
                ValueError, match=rf"x has dtype {np.dtype(dtype)}, the layer float32. Convert .*32'\)$"
            ):
                layer(x)
    arrays = fl.RNN(3, 4, seed=0).to_arrays("waa", fl.Dense(4, 2, seed=0))
    rounded = {key: a.astype(ml_dtypes.bfloat16) for key, a in arrays.items()}
    layer, head = fl.from_arrays(rounded, "rnn", dtype="float32")
    np.testing.assert_array_equal(layer.to_arrays("waa", head)["Wya"], rounded["Wya"].astype(F32))


def test_bfloat16_of_torch() -> None:
    """NumPy has no bfloat16. Weights load by way of float32; an input gets an error with that conversion."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-peers")
    theirs, layer = torch.nn.LSTM(3, 4).bfloat16(), fl.LSTM(3, 4)
    layer.load_state_dict(theirs.state_dict())
    for name, p in layer.state_dict().items():
        np.testing.assert_array_equal(p, theirs.state_dict()[name].float().numpy())
    for x in (torch.ones(2, 2, 3).bfloat16(), torch.ones(2, 2, 3, requires_grad=True)):
        message, _ = fails(Bad(lstm, {"x": x}))
        assert message.startswith("x cannot be made an array: ") and message.endswith(
            "Convert it with x.detach().float()"
        )
        np.testing.assert_array_equal(layer(x.detach().float())[0], layer(ONES)[0])


@pytest.mark.parametrize("given", [None, [1, 2], "weights", {1, 2}], ids=repr)
def test_what_is_no_state_dict(given: Any) -> None:
    for layer in (fl.LSTM(3, 4), fl.Dense(3, 4), fl.GRUCell(3, 4)):
        with pytest.raises(TypeError, match=r"^a state_dict is a mapping from names to arrays, got "):
            layer.load_state_dict(given)


def test_a_ragged_list_is_no_weight() -> None:
    layer = fl.GRU(3, 4, seed=0)
    before = layer.state_dict()
    with pytest.raises(RuntimeError, match=r"no array: bias_ih_l0 \(.*inhomogeneous"):
        layer.load_state_dict(before | {"bias_ih_l0": [[1.0], [1.0, 2.0]]})
    assert layer.version == 0


# ------------------------------------------------------------------------------------------------- every text with code
LOOKS_LIKE_CODE = re.compile(r"\.(astype|asarray|empty|filled|detach|real|tolist|reshape|copy)\b|=(True|False)\b|='")

# Texts that name code without advising it, or advice that cannot be followed here, and why.
NOT_TRIED = {
    # Messages of modules and models: tests/test_modules.py and tests/test_sequential.py make such calls.
    "Embedding takes token ids": "says the conversion",
    "Residual adds a module's output": "says two things at once",
    "cannot stream": "has no cure",
    "the model is not built yet": "needs the shape of the user's samples",
    "a loss is needed": "the loss is the user's to choose",
    "no module of the model is trainable": "which one is the user's to choose",
    "an optimiser is made for layers": "names several ways",
    "the model is not compiled": "the optimiser and the loss are the user's to choose",
    "a module stands in the list twice": "has no code",
    "Sequential takes modules of fastlstm.nn": "names modules for layers",
    "has no parameters yet": "needs the shape of the user's samples",
    "is stateful and remembers": "names two ways",
    "validation_split cuts arrays": "names what was given",
    "a model that is fed by an iterable": "needs the shape of the user's samples",
    "cannot be saved: files hold": "names the way to the parameters",
    "a GRU with reset_after=True has two biases": "names what was given",
    "needs X entries for X": "says when two tuples are taken; tests/test_equations.py gives them",
    "nesterov=True needs": "names what was given",
    "F1 with average='binary'": "names what was given; tests/test_metrics.py follows the advice",
    "PyTorch has no module for": "names what PyTorch lacks",
    "do not say its nonlinearity": "tests/test_from_torch.py follows the advice",
    "Install versions that fit": "needs a Numba that does not fit NumPy",
    "needs all samples at once": "the weights are the user's to choose; tests/test_sklearn.py gives them",
    "has no counterpart here": "names what Keras alone computes; tests/test_from_keras.py gives such layers",
    "that are no part of a layer": "tests/test_from_onnx.py follows the advice",
    "stateful=True: ": "names what was given; tests/test_onnx_accelerate.py gives such models",
    "this session keeps no states": "tests/test_onnx_accelerate.py follows the advice",
    "give it as .astype": "tests/test_onnx_accelerate.py follows the advice",
    "an ONNX model keeps nothing between its runs": "tests/test_to_onnx.py follows the advice",
    "the input X takes X, got X: give it as": "tests/test_onnx_accelerate.py gives such arrays",
    "walks in both directions": "says what to leave out",
    "lengths=True is for layers": "has no code",
    "cannot be differentiated twice": "names three ways; tests/test_accelerate.py raises it",
}


def texts(node: ast.AST) -> str:
    """The literal text of a statement, with X for formatted values."""
    parts = []
    for inner in ast.walk(node):
        if isinstance(inner, ast.JoinedStr):
            parts.append("".join(v.value if isinstance(v, ast.Constant) else "X" for v in inner.values))
    inside = {id(v) for inner in ast.walk(node) if isinstance(inner, ast.JoinedStr) for v in inner.values}
    parts += [
        n.value
        for n in ast.walk(node)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in inside
    ]
    return " ".join(parts)


def raises_with_code() -> dict[tuple[str, int, int], str]:
    """(file, first line, last line) of every raise whose text holds code."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            text = texts(node) if isinstance(node, ast.Raise) else ""
            if LOOKS_LIKE_CODE.search(text) and not any(known in text for known in NOT_TRIED):
                found[str(path.relative_to(PACKAGE)), node.lineno, node.end_lineno or node.lineno] = text
    return found


def test_every_text_with_code_is_tried() -> None:
    """A new message that names code needs a case above."""
    passed = set()
    for bad in CASES.values():
        _, trace = fails(bad)
        while trace is not None:
            passed.add((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next
    untried = {
        f"{file}:{first}": text
        for (file, first, last), text in raises_with_code().items()
        if not any((str(PACKAGE / file), line) in passed for line in range(first, last + 1))
    }
    assert not untried
