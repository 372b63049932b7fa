"""A layer of ours from a recurrent node of an ONNX model: `from_onnx`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..files import FileError
from ..layout import Array, suffix
from ..recurrent import GRU, LSTM, RNN, Recurrent
from ..spec import Kind
from ..spec_layer import named_activations
from ..validation import flag
from .graphs import Found, NotConstant, recurrent_nodes
from .messages import ModelProto, read_model
from .nodes import WEIGHTS, Equation, Weights, weights

LAYERS: dict[Kind, Any] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
LISTED = 50  # nodes in a message


def from_onnx(
    path: Any, name: str | None = None, *, return_inputs: bool = False, dtype: Any = None, backend: str = "auto"
) -> Any:
    """A layer with the equation and the weights of an LSTM, GRU or RNN node of an ONNX model.

    Parameters
    ----------
    path : path, bytes, or onnx.ModelProto
        A file, which is read without the onnx package and can run nothing; its external data must be in its folder.
    name : str, optional
        The node: its name, or that of one of its outputs; where several have it, behind the names of the nodes round
        it (``"if/then_branch/lstm"``). May be left out where the model has one recurrent node.
    return_inputs : bool
        Return the layer and the constants that the node gives to it at every call.
    dtype : {"float32", "float64"}, optional
        None: float64 for weights of float64, else float32, which holds all other types exactly.
    backend : str
        As in `LSTM`.

    Returns
    -------
    layer : LSTM, GRU or RNN
        batch_first where the node has layout=1. ``layer(x, state, lengths)`` has the values of the node with
        initial_h, initial_c and sequence_lens: y (T, B, D*H) is Y (T, D, B, H) with the directions side by side. After
        a length of 0 the layer's state is the initial one, where ONNX Runtime has zeros.
    inputs : dict
        With return_inputs: ``state`` and ``lengths``, those of them that are constants of the model;
        ``layer(x, **inputs)`` is what the node computes.

    Raises
    ------
    ValueError
        There is no such node, or a name is needed (the message lists the nodes); its weights are no constants; it
        begins with a constant state or has constant lengths, and return_inputs is not given. `FileError`, a
        ValueError, for files.
    TypeError
        `path` is of another kind.
    OSError
        The file or its external data cannot be read.

    Notes
    -----
    Constants are initialisers, Constant nodes, external data, and what operators make of them alone (Slice, Concat,
    Unsqueeze, Transpose, Cast, DequantizeLinear and the like). Of com.microsoft's DynamicQuantizeLSTM the layer has the
    dequantised weights; the node also rounds its inputs to 8 bits, which the layer does not.
    """
    return_inputs, model = flag(return_inputs, "return_inputs"), model_of(path)
    try:
        found = chosen(recurrent_nodes(model), name)
        node = found.equation
        constants = weights(node, weights_of(found), dtype)
        inputs = _inputs(found, node, constants)
    except FileError as error:
        raise FileError(f"{_shown(path)}{error}") from error
    if inputs and not return_inputs:
        raise ValueError(
            f"{_shown(path)}{node.title} has constants that are no part of a layer, {' and '.join(inputs)}: "
            "layer, inputs = from_onnx(..., return_inputs=True), then call layer(x, **inputs)"
        )
    layer = _layer(node, constants, backend)
    return (layer, inputs) if return_inputs else layer


def model_of(given: Any) -> ModelProto:
    """A model from a path, from bytes, or from a message of the onnx package."""
    if isinstance(given, ModelProto):
        return given
    if isinstance(given, (str, os.PathLike)):
        return read_model(given)
    if hasattr(given, "SerializeToString"):
        given = given.SerializeToString()
    if not isinstance(given, (bytes, bytearray, memoryview)):
        raise TypeError(f"an ONNX model is a path, bytes or an onnx.ModelProto, got {type(given).__name__}")
    model = ModelProto.from_bytes(bytes(given))
    if model.graph is None:
        raise FileError("the bytes hold no graph: they are no ONNX model")
    return model


def _shown(path: Any) -> str:
    return f"{os.fspath(path)}: " if isinstance(path, (str, os.PathLike)) else ""


def chosen(nodes: list[Found], name: str | None) -> Found:
    """The node that is asked for."""
    if not nodes:
        raise FileError("the model has no LSTM, GRU or RNN node")
    found = nodes if name is None else [one for one in nodes if name in one.names]
    whole = [one for one in found if one.name == name]
    found = whole if len(whole) == 1 else found
    if len(found) == 1:
        return found[0]
    several = "the model has several recurrent nodes" if name is None else f"several recurrent nodes are named {name!r}"
    asked = several if found else f"the model has no recurrent node {name!r}"
    listed = "".join(f"\n  {describe(one, nodes)}" for one in (found or nodes)[:LISTED])
    more = f"\n  and {len(found or nodes) - LISTED} more" if len(found or nodes) > LISTED else ""
    raise FileError(f"{asked}; give name= one of these:{listed}{more}")


def unique_name(one: Found, nodes: list[Found]) -> str:
    """The shortest name that only this node has."""
    names = sorted(one.names, key=lambda name: (name != one.path[-1], name != one.name, name))
    return next((name for name in names if sum(name in other.names for other in nodes) == 1), one.name)


def describe(one: Found, nodes: list[Found]) -> str:
    """A node's name, operator and sizes, for a message or a list."""
    text = f"{unique_name(one, nodes)!r:.120}: {one.node.op_type}"
    try:
        node = one.equation
        way = ", bidirectional" if node.D == 2 else ", reverse" if node.reverse[0] else ""
        W, R = (one.scope.constant(one.inputs()[name]) for name in ("W", "R"))
        I = W.shape[1 if node.quantised else -1]  # noqa: E741
        return f"{text}, {I} inputs, {R.shape[-1] // (4 if node.quantised else 1)} units{way}"
    except (FileError, OSError, LookupError) as error:
        return f"{text} ({error})"


def weights_of(found: Found) -> dict[str, Array]:
    """The arrays of a node's weights, by the operator's names.

    Raises
    ------
    NotConstant
        One of them is known when the model runs only.
    FileError
        One is missing or damaged.
    """
    arrays: dict[str, Array] = {}
    given = found.inputs()
    for name in ("X", "W", "R"):
        if name not in given:
            raise FileError(f"{found.equation.title} has no input {name}")
    for name in WEIGHTS:
        if name in given:
            try:
                arrays[name] = found.scope.constant(given[name])
            except NotConstant as error:
                raise NotConstant(f"{found.equation.title} has an input {name} that is no constant: {error}") from error
    return arrays


def _constant(found: Found, name: str) -> Array | None:
    """An input that is a constant, None where it is left out or known when the model runs only."""
    given = found.inputs().get(name)
    if given is None:
        return None
    try:
        return found.scope.constant(given)
    except NotConstant:
        return None


def _inputs(found: Found, node: Equation, constants: Weights) -> dict[str, Any]:
    """The constants besides the weights, as a layer's call takes them: those that are not as if left out."""
    inputs: dict[str, Any] = {}
    lengths = _constant(found, "sequence_lens")
    if lengths is not None:
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
            raise FileError(f"{node.title} has sequence_lens of type {lengths.dtype} and shape {lengths.shape}")
        inputs["lengths"] = lengths.astype(np.int64)
    names = ("initial_h", "initial_c")[: 2 if node.kind == "lstm" else 1]
    parts = {name: part for name in names if (part := _constant(found, name)) is not None}
    if any(part.any() for part in parts.values()):
        H, dtype = constants.specs[0].H, constants.params[0]["weight_hh"].dtype
        for name in names:
            if name not in parts and name in found.inputs():
                raise FileError(f"{node.title} has one constant initial state, and {name}, known when it runs only")
        whole = next(iter(parts.values()))
        for name, part in parts.items():
            if part.ndim != 3 or part.shape != whole.shape or part.shape[2] != H or part.dtype.kind != "f":
                raise FileError(f"{node.title} has {name} of type {part.dtype} and shape {part.shape}")
        states = tuple(parts.get(name, np.zeros_like(whole)).astype(dtype) for name in names)
        states = tuple(np.ascontiguousarray(s.swapaxes(0, 1) if node.batch_first else s) for s in states)
        if states[0].shape[0] != node.D:
            raise FileError(f"{node.title} has an initial state of shape {whole.shape} for {node.D} directions")
        inputs["state"] = states if len(states) > 1 else states[0]
    return inputs


def _layer(node: Equation, constants: Weights, backend: str) -> Recurrent:
    spec, named = constants.specs[0], named_activations(constants.specs)
    options: dict[str, Any] = {"nonlinearity": named} if node.kind == "rnn" else {"activations": named}
    if node.kind == "lstm":
        options |= {"peepholes": spec.peepholes, "input_forget": spec.input_forget}
    if node.kind == "gru":
        options["reset_after"] = spec.reset_after
    layer: Recurrent = LAYERS[node.kind](
        spec.I,
        spec.H,
        bias=spec.biases > 0,
        batch_first=node.batch_first,
        bidirectional=node.D == 2,
        reverse=node.reverse == (True,),
        clip=spec.clip,
        dtype=constants.params[0]["weight_hh"].dtype,
        backend=backend,
        **options,
    )
    layer.load_state_dict({n + suffix(0, d): p for d, of_one in enumerate(constants.params) for n, p in of_one.items()})
    return layer
