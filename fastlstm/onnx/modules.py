"""The nodes of every module of `fastlstm.nn`, and of a Sequential: a method for each class.

A mask is compiled away: the valid steps of each sequence are moved to its beginning, the recurrent node gets their
number as its length, and its outputs are moved back. So gaps and padding on the left are skipped as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import nn
from ..nn.base import Module
from ..nn.chain import Chain
from ..nn.recurrent import Recurrent
from ..spec import activation
from . import scan
from .builder import Axis, Graph
from .export import recurrent, state_inputs, state_outputs


class Value(NamedTuple):
    """A value in the graph, batch-first, and its mask."""

    name: str
    mask: str | None = None  # (B, T) bools: the steps that count


def of_module(module: Module, stateful: bool) -> Graph:
    """The graph of a module or of a Sequential, with its inputs and outputs.

    Raises
    ------
    ValueError
        The module is not built, or ONNX has no operators for one inside it.
    """
    chain = module if isinstance(module, Chain) else None
    first = module if chain is None else chain.modules[0]
    if not module.built or module._shape is None:
        raise ValueError(f"{module!r} is not built yet: call it once, or build(shape of a sample)")
    g = Graph(type(module).__name__.lower(), module.dtype)
    ids = isinstance(first, nn.Embedding)
    shape = module._shape
    axes: list[Axis] = ["B", *(("T", "S", "U")[k] if k < 3 else None for k in range(len(shape) - 1))]
    axes += ["T"] if ids else [shape[-1]]
    writer = Writer(g, stateful)
    x = Value(g.input("x", np.int64 if ids else module.dtype, axes))
    y: Any = writer.chain(chain, x) if chain is not None else writer.write(module, x, first.name)
    out = module.output_shape(shape)
    pairs = isinstance(y, tuple) and not isinstance(y, Value)
    for name, value in zip(("y", "y_reverse"), y if pairs else (y,), strict=False):
        g.output(value.name, name, module.dtype, ["B", *(None for _ in out[:-1]), out[-1]])
    for layer, states, prefix in writer.ends:
        state_outputs(g, layer, states, prefix)
    return g


class Writer:
    """Writes modules into a graph.

    Parameters
    ----------
    g : Graph
    stateful : bool
        Whether the states of recurrent modules are inputs and outputs.
    """

    def __init__(self, g: Graph, stateful: bool) -> None:
        self.g, self.stateful = g, stateful
        self.ends: list[tuple[Any, list[str], str]] = []  # layer, final states, and the beginning of their names

    def chain(self, chain: Chain, x: Any) -> Any:
        for name, module in chain.named.items():
            if isinstance(x, tuple) and not isinstance(x, Value):
                raise ValueError(f"{module!r} follows Bidirectional(..., merge_mode=None), whose output is a pair")
            x = self.write(module, x, name)
        return x

    def write(self, module: Module, x: Value, name: str) -> Any:
        """The nodes of a module; `name` is that of its nodes and states."""
        for cls in type(module).__mro__:
            method = METHODS.get(cls)
            if method is not None:
                return method(self, module, x, name)
        raise ValueError(f"to_onnx has no operators for the module {module!r}")

    def dense(self, module: nn.Dense, x: Value, name: str) -> Value:
        g, p = self.g, module.core._live()
        y = g.node("MatMul", x.name, g.constant(p["weight"].T, f"{name}_weight"))
        if "bias" in p:
            y = g.node("Add", y, g.constant(p["bias"], f"{name}_bias"))
        return x._replace(name=self.activate(module.activation, y))

    def embedding(self, module: nn.Embedding, x: Value, name: str) -> Value:
        g = self.g
        y = g.node("Gather", g.constant(module.core._live()["weight"], f"{name}_weight"), x.name, axis=0)
        if not module.mask_zero:
            return x._replace(name=y)
        return Value(y, g.node("Not", g.node("Equal", x.name, g.constant(0, "padding", np.int64))))

    def masking(self, module: nn.Masking, x: Value, name: str) -> Value:
        g = self.g
        other = g.node("Not", g.node("Equal", x.name, g.constant(module.mask_value, "mask_value")))
        count = g.node("ReduceSum", g.cast(other, np.int32), g.ints(-1), keepdims=1)
        there = g.node("Greater", count, g.constant(0, "none", np.int32))  # (B, T, 1)
        return Value(g.where(there, x.name, g.constant(0, "number")), g.node("Squeeze", there, g.ints(2)))

    def activation(self, module: nn.Activation, x: Value, name: str) -> Value:
        return x._replace(name=self.activate(module.activation, x.name))

    def nothing(self, module: Module, x: Value, name: str) -> Value:
        return x

    def residual(self, module: nn.Residual, x: Value, name: str) -> Value:
        y: Value = self.write(module.module, x, name)
        return y._replace(name=self.g.node("Add", x.name, y.name))

    def activate(self, given: Any, x: str) -> str:
        if given == "linear":
            return x
        return self.g.node("Softmax", x, axis=-1) if given == "softmax" else scan.activate(self.g, activation(given), x)

    # ------------------------------------------------------------------------------------------------ recurrent modules
    def one_way(self, module: Recurrent, x: Value, name: str) -> Value:
        y, mask = self.recurrent(module, x, name)
        return Value(y, mask)

    def both_ways(self, module: nn.Bidirectional, x: Value, name: str) -> Any:
        g = self.g
        y, mask = self.recurrent(module._both, x, name)
        if module.merge_mode == "concat":
            return Value(y, mask)
        sizes = g.ints(*[module._both.units] * 2)
        one, other = g.nodes("Split", [y, sizes], ["ahead", "back"], axis=-1)
        if module.merge_mode is None:
            return Value(one, mask), Value(other, mask)
        if module.merge_mode == "mul":
            return Value(g.node("Mul", one, other), mask)
        total = g.node("Add", one, other)
        return Value(g.node("Mul", total, g.constant(0.5, "half")) if module.merge_mode == "ave" else total, mask)

    def recurrent(self, module: Recurrent, x: Value, name: str) -> tuple[str, str | None]:
        """(the outputs, the mask after the module) of a recurrent module in one direction or two."""
        g, core = self.g, module.core
        if module.stateful and not self.stateful:
            raise ValueError(
                f"{module!r} begins each batch with the state that the last one ended with, and an ONNX model keeps "
                "nothing between its runs: write it with stateful=True, and hand its states on"
            )
        given, mask = x.name, x.mask
        if module.go_backwards:
            given, mask = self.backwards(given), None if mask is None else self.backwards(mask)
        lengths = None
        if mask is not None:
            given, lengths = self.packed(given, mask)
        layer: Any = core
        prefix = f"{name}_"
        states = state_inputs(g, layer, prefix) if self.stateful else None
        y, after = recurrent(g, layer, g.transpose(given, 1, 0, 2), states, lengths, name)
        if self.stateful:
            self.ends.append((layer, after, prefix))
        if not module.return_sequences:
            h = after[0]  # (D, B, H)
            if layer._D == 1:
                return g.node("Squeeze", h, g.ints(0)), None
            return g.node("Reshape", g.transpose(h, 1, 0, 2), g.ints(0, layer._D * module.units)), None
        y = g.transpose(y, 1, 0, 2)
        return y if mask is None else self.placed(y, mask, module.zero_output_for_mask), mask

    def backwards(self, x: str) -> str:
        """The steps in the opposite order."""
        g = self.g
        return g.node("Slice", x, g.ints(-1), g.ints(-(2**63)), g.ints(1), g.ints(-1))

    def packed(self, x: str, mask: str) -> tuple[str, str]:
        """(x with the valid steps of each sequence at its beginning, in order; their number (B,) int32)."""
        g = self.g
        count, T = g.cast(mask, np.int64), g.length(mask, 1)
        left = g.node("Range", g.node("Squeeze", T), g.constant(0, "first", np.int64), g.constant(-1, "one", np.int64))
        order = g.nodes("TopK", [g.node("Mul", count, left), T], ["rank", "order"], axis=1)[1]  # T, ..., 1; then 0
        lengths = g.cast(g.node("ReduceSum", count, g.ints(1), keepdims=0), np.int32)
        return g.node("GatherND", x, g.unsqueeze(order, 2), batch_dims=1), lengths

    def placed(self, y: str, mask: str, zeros: bool) -> str:
        """Outputs of packed steps at their places; elsewhere zeros, or the outputs of the valid step before."""
        g = self.g
        seen = g.node("CumSum", g.cast(mask, np.int64), g.constant(1, "axis", np.int64))  # valid steps so far
        at = g.node("Max", g.node("Sub", seen, g.constant(1, "one", np.int64)), g.constant(0, "first", np.int64))
        moved = g.node("GatherND", y, g.unsqueeze(at, 2), batch_dims=1)
        there = mask if zeros else g.node("Greater", seen, g.constant(0, "first", np.int64))
        return g.where(g.unsqueeze(there, 2), moved, g.constant(0, "number"))


METHODS: dict[type, Callable[[Writer, Any, Value, str], Any]] = {
    nn.Dense: Writer.dense,
    nn.Embedding: Writer.embedding,
    nn.Masking: Writer.masking,
    nn.Activation: Writer.activation,
    nn.Dropout: Writer.nothing,
    nn.Residual: Writer.residual,
    nn.Bidirectional: Writer.both_ways,
    Recurrent: Writer.one_way,
}
