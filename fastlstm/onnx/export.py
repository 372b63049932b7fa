"""ONNX models from our layers, modules and models: `to_onnx`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import files
from .._onnx_weights import node_attributes, node_tensors
from ..layout import Array, suffix
from ..nn.base import Module
from ..quantise import check_floats
from ..recurrent import Recurrent
from ..spec import Spec
from ..validation import flag
from . import scan
from .builder import Graph, model


def to_onnx(layer: Any, path: str | os.PathLike[str], stateful: bool = False, *, lengths: bool = False) -> None:
    """Write a layer, module or model as an ONNX model, atomically. Needs no other package.

    The file has opset 17 and runs in ONNX Runtime 1.12 and later. Axes of time and batch may have any size. It computes
    what a call does: without dropout.

    Parameters
    ----------
    layer : LSTM, GRU, RNN, a built module of `fastlstm.nn`, or Sequential
        The model's input is ``x``, shaped as for a call, its output ``y``.
    path : path
    stateful : bool
        The states are inputs and outputs: of a layer ``h_0`` and ``h_n`` (L*D, B, R), for LSTM also ``c_0`` and ``c_n``
        (L*D, B, H); of a module in a Sequential with its name before them, ``lstm_h_0``. A step of a stream is then a
        call with T = 1. Without it, states begin with zeros.
    lengths : bool
        For layers: ``lengths`` (B,), int32, is an input: the steps of each sequence.

    Raises
    ------
    ValueError
        ONNX has no operators for something (the message names it), a module is not built, weights are in a reduced
        storage, or the model is larger than 2 GiB. Nothing is written.
    TypeError
        It is no such layer.
    OSError
        The file cannot be written; an old one is untouched.

    Notes
    -----
    Layers are nodes LSTM, GRU and RNN, which `from_onnx` reads. Projections and float64 are Scan nodes, since the
    operators have no projection, and ONNX Runtime's have no float64. Masks become lengths of sequences that are packed
    by their valid steps.
    """
    stateful, lengths = flag(stateful, "stateful"), flag(lengths, "lengths")
    if isinstance(layer, (Recurrent, Module)):
        check_floats(layer, "to_onnx")
    if isinstance(layer, Recurrent):
        data = model(of_layer(layer, stateful, lengths))
    elif isinstance(layer, Module):
        from .modules import of_module

        if lengths:
            raise ValueError("lengths=True is for layers; a Sequential makes masks itself, by Masking or mask_zero")
        data = model(of_module(layer, stateful))
    else:
        raise TypeError(
            f"to_onnx takes an LSTM, GRU or RNN, a module of fastlstm.nn or a Sequential, got {type(layer).__name__}"
        )
    files.write_atomically(path, data)


def of_layer(layer: Recurrent, stateful: bool, lengths: bool) -> Graph:
    """The graph of a layer, with its inputs and outputs."""
    spec = layer._specs[0][0]
    g = Graph(layer.name, layer.dtype)
    axes = ["B", "T"] if layer.batch_first else ["T", "B"]
    x = g.input("x", layer.dtype, [*axes, layer.input_size])
    given = g.input("lengths", np.int32, ["B"]) if lengths else None
    states = state_inputs(g, layer, "") if stateful else None
    x = g.transpose(x, 1, 0, 2) if layer.batch_first else x
    y, after = recurrent(g, layer, x, states, given)
    y = g.transpose(y, 1, 0, 2) if layer.batch_first else y
    g.output(y, "y", layer.dtype, [*axes, layer._D * spec.R])
    if stateful:
        state_outputs(g, layer, after, "")
    return g


def state_inputs(g: Graph, layer: Recurrent, prefix: str) -> list[str]:
    """Inputs for the states of a layer."""
    widths = layer._specs[0][0].initial.items()
    return [g.input(f"{prefix}{name[0]}_0", layer.dtype, [layer._LD, "B", width]) for name, width in widths]


def state_outputs(g: Graph, layer: Recurrent, states: Sequence[str], prefix: str) -> None:
    """Outputs for the states of a layer."""
    for (name, width), value in zip(layer._specs[0][0].initial.items(), states, strict=True):
        g.output(value, f"{prefix}{name[0]}_n", layer.dtype, [layer._LD, "B", width])


def recurrent(
    g: Graph, layer: Recurrent, x: str, states: Sequence[str] | None, lengths: str | None, title: str = ""
) -> tuple[str, list[str]]:
    """The nodes of all layers of a recurrent layer.

    Parameters
    ----------
    x : str
        (T, B, I)
    states : list of str, optional
        (L*D, B, R) and, for LSTM, (L*D, B, H); None: zeros.
    lengths : str, optional
        (B,) int32.
    title : str
        The nodes' name; that of the layer by default.

    Returns
    -------
    y : str
        (T, B, D*R), zeros past a sequence's length.
    states : list of str
        As `states`, after each sequence's last step.
    """
    L, params = layer.num_layers, {name: np.asarray(p) for name, p in layer.state_dict().items()}
    title = title or layer.name
    scanned = layer.dtype == np.float64 or any(spec.proj_size for spec in layer._specs[0])
    parts: list[list[str]] = [[] for _ in range(L)]
    for name, whole in zip("hc", states or (), strict=False):
        split = [whole]
        if L > 1:
            split = g.nodes("Split", [whole, g.ints(*[layer._D] * L)], [f"{name}_of_layer"] * L, axis=0)
        for of_layer, part in zip(parts, split, strict=True):
            of_layer.append(part)
    ends: list[list[str]] = []
    for at, (specs, before) in enumerate(zip(layer._specs, parts, strict=True)):
        own = [{name: params[name + suffix(at, d)] for name in spec.parameters} for d, spec in enumerate(specs)]
        back = [layer._walks_back(d) for d in range(layer._D)]
        name = f"{title}_l{at}" if L > 1 else title
        make = _scanned if scanned else _operator
        x, after = make(g, specs, own, back, x, before, lengths, name)
        ends.append(after)
    if L == 1:
        return x, ends[0]
    return x, [g.node("Concat", *of_state, axis=0) for of_state in zip(*ends, strict=True)]


def _operator(
    g: Graph,
    specs: Sequence[Spec],
    params: Sequence[dict[str, Array]],
    back: Sequence[bool],
    x: str,
    before: list[str],
    lengths: str | None,
    title: str,
) -> tuple[str, list[str]]:
    """One layer as a node LSTM, GRU or RNN."""
    spec, D = specs[0], len(specs)
    tensors = {name: g.constant(value, f"{title}_{name}") for name, value in node_tensors(params, spec.kind).items()}
    given = {"X": x, **tensors, "sequence_lens": lengths or "", **dict(zip(("initial_h", "initial_c"), before))}  # noqa: B905
    names = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    inputs = [given.get(name, "") for name in names]
    while not inputs[-1]:
        inputs.pop()
    attributes = node_attributes(specs)
    if back == [True]:
        attributes["direction"] = "reverse"
    states = ["Y_h", "Y_c"][: len(spec.initial)]
    y, *after = g.nodes(
        spec.kind.upper(), inputs, [f"{title}_{name}" for name in ("Y", *states)], title=title, **attributes
    )
    if D == 1:
        y = g.node("Squeeze", y, g.ints(1))
    else:
        y = g.node("Reshape", g.transpose(y, 0, 2, 1, 3), g.ints(0, 0, D * spec.H))
    if lengths is not None and before:  # ONNX Runtime's states after a length of 0 are 0
        none = g.unsqueeze(g.node("Equal", lengths, g.constant(0, "none", np.int32)), 1)
        after = [g.where(none, old, new) for old, new in zip(before, after, strict=True)]
    return y, after


def _scanned(
    g: Graph,
    specs: Sequence[Spec],
    params: Sequence[dict[str, Array]],
    back: Sequence[bool],
    x: str,
    before: list[str],
    lengths: str | None,
    title: str,
) -> tuple[str, list[str]]:
    """One layer as a Scan for each direction."""
    spec, valid = specs[0], None
    if lengths is not None:  # (T, B, 1): t < length
        one = g.constant(1, "one", np.int64)
        steps = g.node("Range", g.constant(0, "first", np.int64), g.node("Squeeze", g.length(x, 0)), one)
        valid = g.node("Less", g.unsqueeze(steps, 1), g.unsqueeze(g.cast(lengths, np.int64), 0))
        valid = g.unsqueeze(valid, 2)
    outputs, ends = [], []
    for d, (of_one, own) in enumerate(zip(specs, params, strict=True)):
        if before:
            states = [g.node("Gather", whole, g.constant(d, "place", np.int64), axis=0) for whole in before]
        else:
            B = g.length(x, 1)
            shapes = [g.node("Concat", B, g.ints(width), axis=0) for width in spec.initial.values()]
            states = [g.node("Expand", g.constant(0, "number"), shape) for shape in shapes]
        y, after = scan.direction(g, of_one, own, x, states, valid, back[d])
        outputs.append(y)
        ends.append([g.unsqueeze(state, 0) for state in after])
    if len(specs) == 1:
        return outputs[0], ends[0]
    y = g.node("Concat", *outputs, axis=-1)
    return y, [g.node("Concat", *of_state, axis=0) for of_state in zip(*ends, strict=True)]
