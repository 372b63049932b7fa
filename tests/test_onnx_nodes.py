"""Recurrent nodes of ONNX on random weights, over every attribute, against ONNX Runtime.

It has no float64 and no layout=1: such a case is compared with its result in float32 and on swapped axes, and in
float64 with our reference. `FAULTS` are mistakes that these comparisons must notice.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import assert_near

from fastlstm._backends import module
from fastlstm._onnx_weights import ACTIVATION_NAMES
from fastlstm.files import FileError
from fastlstm.onnx import nodes, recurrence
from fastlstm.onnx.builder import attribute
from fastlstm.onnx.messages import NodeProto

T, B, I, H = 5, 4, 3, 6  # noqa: E741
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ROLES = {"LSTM": 3, "GRU": 2, "RNN": 1}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
LETTERS = dict(zip("BLhcP", INPUTS[3:], strict=True))
TWO = {"direction": "bidirectional"}


@dataclass(frozen=True)
class Case:
    """One node.

    Parameters
    ----------
    operator : {"LSTM", "GRU", "RNN"}
    given : str
        The optional inputs, keys of `LETTERS`.
    attributes : dict
    dtype : str
    """

    operator: str
    given: str = "B"
    attributes: dict[str, Any] = field(default_factory=dict, hash=False)
    dtype: str = "float32"

    def __str__(self) -> str:
        words = [self.operator, self.given or "-", *(f"{name}={value}" for name, value in self.attributes.items())]
        return " ".join([*words, *([self.dtype] * (self.dtype != "float32"))]).replace("'", "")

    @property
    def batch_first(self) -> bool:
        return bool(self.attributes.get("layout"))

    @property
    def D(self) -> int:
        return 2 if self.attributes.get("direction") == "bidirectional" else 1

    @property
    def node(self) -> NodeProto:
        names = [name if name in self.arrays() else "" for name in INPUTS[: 8 if self.operator == "LSTM" else 6]]
        attributes = [attribute(name, value) for name, value in {"hidden_size": H, **self.attributes}.items()]
        outputs = ["Y", "Y_h", "Y_c"][: 3 if self.operator == "LSTM" else 2]
        return NodeProto(input=names, output=outputs, op_type=self.operator, name="node", attribute=attributes)

    def arrays(self) -> dict[str, Any]:
        """All inputs, in layout 0; of float16 numbers, so that all dtypes can be compared."""
        rng, D, G = np.random.default_rng(1), self.D, GATES[self.operator]
        shapes = {"X": (T, B, I), "W": (D, G * H, I), "R": (D, G * H, H), "B": (D, 2 * G * H)}
        shapes |= {"initial_h": (D, B, H), "initial_c": (D, B, H), "P": (D, 3 * H)}
        drawn: dict[str, Any] = {n: rng.standard_normal(shape).astype("f2").astype("f4") for n, shape in shapes.items()}
        for name in ("W", "R", "B"):  # unbounded activations grow
            drawn[name] *= np.float32(0.5)
        drawn["sequence_lens"] = np.array([5, 0, 2, 4], np.int32)
        kept = ["X", "W", "R", *(LETTERS[letter] for letter in self.given)]
        return {
            name: a if name == "sequence_lens" else a.astype(self.dtype) for name, a in drawn.items() if name in kept
        }


def _cases() -> Iterator[Case]:
    for operator, roles in ROLES.items():
        every = "BLhcP" if operator == "LSTM" else "BLh"
        for direction in ("forward", "reverse", "bidirectional"):
            way = {"direction": direction}
            for given in ("", "B", "L", "h", every):
                yield Case(operator, given, way)
            yield Case(operator, every, {**way, "clip": 0.4})
            yield Case(operator, every, {**way, "layout": 1})
            yield Case(operator, every, {**way, "clip": 0.6, "layout": 1}, "float64")
        yield Case(operator, every, TWO, "float16")
        own: dict[str, list[dict[str, Any]]] = {
            "LSTM": [{"input_forget": 1}, {"input_forget": 1, "clip": 0.4}],
            "GRU": [{"linear_before_reset": 1}, {"linear_before_reset": 1, "clip": 0.4}],
            "RNN": [],
        }
        for attributes in own[operator]:
            yield Case(operator, every, {**TWO, **attributes})
            yield Case(operator, every, {**attributes, "layout": 1}, "float64")
        yield from _activations(operator, roles)
    yield Case("LSTM", "BhP", TWO)
    yield Case("LSTM", "Bc", TWO)
    yield Case("LSTM", "P", {"clip": 0.5, **TWO})


def _activations(operator: str, roles: int) -> Iterator[Case]:
    """Every activation in every role, with alpha and beta and without; several that consume them in order."""
    plain = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}[operator]
    for name, has_alpha, has_beta in dict.fromkeys(ACTIVATION_NAMES.values()):
        for role in range(roles):
            names = [name if k == role else other for k, other in enumerate(plain)]
            values = {"activation_alpha": [0.3]} if has_alpha else {}
            values |= {"activation_beta": [0.45]} if has_beta else {}
            yield Case(operator, "B", {"activations": names, **values})
            if name in ("LeakyRelu", "HardSigmoid", "Elu") or not has_alpha:  # ONNX Runtime has the defaults of these
                cased = names if operator == "RNN" else [one.upper() for one in names]
                yield Case(operator, "B", {"activations": cased})
    mixed = ["HardSigmoid", "LeakyRelu", "ScaledTanh", "Sigmoid", "Affine", "Elu"][: 2 * roles]
    numbers = {"activation_alpha": [0.3, 0.25, 0.7, 0.9, 0.6], "activation_beta": [0.4, 0.8, 0.15]}
    yield Case(operator, "BLh", {"activations": mixed, **numbers, **TWO})
    yield Case(operator, "BLh", {"activations": mixed, **numbers, **TWO, "clip": 0.5, "layout": 1}, "float64")
    short = {"activation_alpha": [0.3], "activation_beta": [0.35]}  # the others have their defaults
    yield Case(
        operator,
        "B",
        {
            "activations": ["HardSigmoid", "Tanh", "LeakyRelu", "Elu", "HardSigmoid", "Tanh"][: 2 * roles],
            **short,
            **TWO,
        },
    )


CASES = list(dict.fromkeys(_cases()))


@functools.cache
def _session_values(key: str) -> tuple[Any, ...]:
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    case = next(one for one in CASES if str(one) == key)
    arrays = Case(case.operator, case.given, case.attributes).arrays()
    node = onnx.NodeProto.FromString(case.node.to_bytes())
    for one in [one for one in node.attribute if one.name == "layout"]:
        node.attribute.remove(one)
    helper = onnx.helper
    graph = helper.make_graph(
        [node],
        "node",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in arrays.items()
        ],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in node.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return tuple(session.run(None, arrays))


def swapped(name: str, a: Any) -> Any:
    """An input or output of layout 0 as in layout 1, or the reverse."""
    if name == "Y":
        return a.transpose(2, 0, 1, 3)
    return a.swapaxes(0, 1) if name in ("X", "Y_h", "Y_c", "initial_h", "initial_c") else a


def onnx_runtime(case: Case) -> tuple[Any, ...]:
    """The outputs in the case's layout, in float32."""
    values = _session_values(str(case))
    return tuple(swapped(n, a) if case.batch_first else a for n, a in zip(case.node.output, values, strict=True))


def ours(case: Case, backend: str, of_nodes: Any = nodes, of_recurrence: Any = recurrence) -> tuple[Any, ...]:
    arrays = case.arrays()
    backend = backend if case.dtype != "float64" or "float64" in module(backend).DTYPES else "auto"
    run = of_recurrence.Recurrence(of_nodes.equation(case.node), arrays, backend)
    given = {name: swapped(name, a) if case.batch_first else a for name, a in arrays.items()}
    states = [given.get(name) for name in ("initial_h", "initial_c")[: 2 if case.operator == "LSTM" else 1]]
    values = tuple(run(given["X"], given.get("sequence_lens"), *states))
    if len(states) == 1:
        states.append(None)
    # The outputs in the memory of layout 1: the values are the same.
    again = run.views(given["X"], given.get("sequence_lens"), *states, by_batch=True)
    assert all(np.array_equal(a, b.astype(a.dtype)) for a, b in zip(values, again, strict=True))
    return values


def compare(case: Case, got: tuple[Any, ...]) -> None:
    for name, mine, theirs in zip(case.node.output, got, onnx_runtime(case), strict=True):
        assert mine.dtype == case.dtype and mine.flags.c_contiguous
        assert_near(mine, theirs, 1e-3 if case.dtype == "float16" else 1e-5, name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_are_those_of_onnx_runtime(case: Case, backend: str) -> None:
    got = ours(case, backend)
    compare(case, got)
    if case.dtype == "float64":
        for mine, reference in zip(got, ours(case, "numpy"), strict=True):
            assert_near(mine, reference, 1e-10)


# --------------------------------------------------------------------------------------------------- deliberate faults
# (the module, a piece of its text, what stands there with the fault)
FAULTS = [
    ("nodes", 'reorder(p, kind, "onnx", "torch")', 'reorder(p, kind, "keras", "torch")'),
    ("nodes", 'reorder(p, kind, "onnx", "torch")', "p"),
    ("nodes", '"reverse": (True,)', '"reverse": (False,)'),
    ("nodes", '"bidirectional": (False, True)', '"bidirectional": (False, False)'),
    ("nodes", '"bidirectional": (False, True)', '"bidirectional": (True, False)'),
    ("nodes", "name: a[d] for name", "name: a[0] for name"),
    ("nodes", "name: a[d] for name", "name: a[node.D - 1 - d] for name"),
    ("nodes", "found[d * roles : (d + 1) * roles]", "found[:roles]"),
    ("nodes", "found[d * roles : (d + 1) * roles]", "found[d :: D]"),
    ("nodes", "alphas.pop(0) if has_alpha and alphas", "alphas.pop(0) if alphas"),
    ("nodes", "betas.pop(0) if has_beta and betas", "betas.pop(0) if betas"),
    ("nodes", "alphas.pop(0) if has_alpha and alphas", "alphas[0] if has_alpha and alphas"),
    ("nodes", "betas.pop(0) if has_beta and betas", "betas[0] if has_beta and betas"),
    ("nodes", "alphas.pop(0) if", "alphas.pop() if"),
    ("nodes", "betas.pop(0) if", "betas.pop() if"),
    ("nodes", "else default.alpha", "else 1.0"),
    ("nodes", "else default.beta", "else 0.0"),
    ("nodes", 'given.get("activation_alpha", ())', "()"),
    ("nodes", 'given.get("activation_beta", ())', "()"),
    ("nodes", 'given.get("activations") or [*', "[*"),
    ("nodes", "OURS.get(name.lower())", "OURS.get(name)"),
    ("nodes", "Activation(own, alpha, beta)", "Activation(own, beta, alpha)"),
    ("nodes", "for of_one in self.activations", "for of_one in self.activations[::-1]"),
    ("nodes", "clip=self.clip", "clip=None"),
    ("nodes", "clip=self.clip", "clip=self.clip and 2 * self.clip"),
    ("nodes", "input_forget=self.input_forget", "input_forget=False"),
    ("nodes", "reset_after=self.reset_after", "reset_after=True"),
    ("nodes", "reset_after=self.reset_after", "reset_after=False"),
    ("nodes", 'kind != "gru" or bool(', 'kind != "gru" or not bool('),
    ("nodes", "i, o, f = np.split", "i, f, o = np.split"),
    ("nodes", 'arrays.get("B"), arrays.get("P")', 'arrays.get("B"), None'),
    ("nodes", 'arrays.get("B"), arrays.get("P")', 'None, arrays.get("P")'),
    ("nodes", 'params["bias_ih"], params["bias_hh"] =', 'params["bias_hh"], params["bias_ih"] ='),
    ("nodes", 'bool(given.get("layout", 0))', "False"),
    ("nodes", 'bool(given.get("input_forget", 0))', 'not given.get("input_forget", 0)'),
    ("recurrence", "s[:, lengths == 0] = 0", "pass"),
    ("recurrence", "s[:, lengths == 0] = 0", "s[:] = 0"),
    ("recurrence", "Batch.of(T, B, lengths,", "Batch.of(T, B, None,"),
    ("recurrence", 'self._initial(name, state, B)', 'self._initial(name, None, B)'),
    ("recurrence", '("initial_c", initial_c))[', '("initial_c", None))['),
    ("recurrence", '(("initial_h", initial_h), (', '(("initial_h", initial_c), ('),
    ("recurrence", "else y.swapaxes(1, 2)", "else y.reshape(T, D, B, -1)"),
    ("recurrence", "batch = Batch.of(T, B, lengths, by_batch)", "batch = Batch.of(T, B, lengths, False)"),
    ("recurrence", "return y, *(s.swapaxes(0, 1)", "return y, *(s.reshape(B, D, -1)"),
    ("recurrence", "found.swapaxes(0, 1) if self.node.batch_first else found", "found.reshape(D, B, H)"),
    ("recurrence", "x = x.swapaxes(0, 1) if", "x = x.reshape(x.shape[1], x.shape[0], -1) if"),
    ("recurrence", "for a in found)", "for a in (found[0], *found[:0:-1]))"),
    ("recurrence", "params, node.reverse, strict", "params, node.reverse[::-1], strict"),
    ("recurrence", "a.dtype == given else given", "True else given"),
    ("recurrence", "np.ascontiguousarray(a, None", "np.asarray(a, None"),
]  # fmt: skip


def with_fault(name: str, old: str, new: str) -> dict[str, Any]:
    """The modules of nodes and of their calls, one of them with a fault."""
    made: dict[str, Any] = {}
    for source in (nodes, recurrence):
        own = source.__name__.rpartition(".")[2]
        text = Path(str(source.__file__)).read_text(encoding="utf-8")
        if own == name:
            assert text.count(old) == 1, f"the text of the fault stands {text.count(old)} times in {own}: {old}"
            text = text.replace(old, new)
        changed: Any = types.ModuleType(source.__name__)
        changed.__package__, changed.__file__ = source.__package__, source.__file__
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(__import__("sys").modules, source.__name__, changed)
            exec(compile(text, own, "exec"), vars(changed))
        made[own] = changed
    made["recurrence"].weights = made["nodes"].weights
    return made


@pytest.mark.parametrize(("name", "old", "new"), FAULTS, ids=lambda text: text[:40])
def test_a_fault_is_noticed(name: str, old: str, new: str) -> None:
    made = with_fault(name, old, new)
    for case in CASES:
        try:
            compare(case, ours(case, "numpy", made["nodes"], made["recurrence"]))
        except (AssertionError, FileError, ValueError, TypeError, IndexError):
            return
    pytest.fail(f"every case passes with the fault {new!r} in place of {old!r}")


def test_without_a_fault_no_case_fails_in_the_changed_modules() -> None:
    made = with_fault("nodes", "Activation(own, alpha, beta)", "Activation(own, alpha, beta)")
    for case in CASES:
        compare(case, ours(case, "numpy", made["nodes"], made["recurrence"]))
