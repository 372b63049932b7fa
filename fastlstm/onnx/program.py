"""Models of recurrent nodes alone, and of what is computed of constants, run without ONNX Runtime: `Program`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..files import FileError
from ..layout import Array
from .convert import weights_of
from .folding import Arguments, Room, fold, foldable
from .graphs import Found, Model, NotConstant, Scope, name_of
from .messages import FunctionProto, ModelProto, NodeProto
from .nodes import WEIGHTS, kind_of
from .recurrence import Recurrence
from .tensors import to_array

Values = dict[str, Array]
Step = Callable[[Values], None]  # computes values of others


class Program:
    """A model that is run node by node: recurrent nodes on our kernels, a few others with NumPy.

    Parameters
    ----------
    proto : ModelProto
    backend : str
        As in `LSTM`.

    Attributes
    ----------
    inputs, outputs : list of str
        The names of the inputs that have no initialiser, and of the outputs.

    Raises
    ------
    FileError
        The model is damaged, or has a node that is not run here; the message names it.
    """

    def __init__(self, proto: ModelProto, backend: str = "auto") -> None:
        if proto.graph is None:
            raise FileError("it has no graph: it is no ONNX model")
        self.backend, self._folder = backend, proto.folder
        graph, self._model = proto.graph, Model(proto)
        self._constants = {t.name: to_array(t, proto.folder) for t in graph.initializer}
        self.inputs = [value.name for value in graph.input if value.name not in self._constants]
        self.outputs = [value.name for value in graph.output]
        self._steps = self._compile(graph.node, Scope.of_graph(self._model, graph))

    def run(self, feeds: Mapping[str, Any]) -> list[Array]:
        """The outputs, in order.

        Parameters
        ----------
        feeds : mapping
            Arrays for all inputs, by name.

        Raises
        ------
        ValueError
            An input is missing, or its shape does not fit a node; the message names the input or the node.
        """
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise ValueError(f"the model has the inputs {', '.join(self.inputs)}; missing: {', '.join(missing)}")
        values = self._constants | {name: np.asarray(value) for name, value in feeds.items()}
        for step in self._steps:
            step(values)
        return [values[name] for name in self.outputs]

    def _compile(self, nodes: list[NodeProto], scope: Scope) -> list[Step]:
        return [self._step(node, scope) for node in nodes]

    def _step(self, node: NodeProto, scope: Scope) -> Step:
        function = self._model.function(node)
        if function is not None:
            return self._call(function, node, scope)
        if kind_of(node) is not None:
            return self._recurrence(Found(node, scope, (name_of(node),)))
        if not foldable(node):
            raise FileError(
                f"{node.title} is not run here: this backend has LSTM, GRU and RNN, and what is computed of constants. "
                "fastlstm.onnx.accelerate runs a whole model, with ONNX Runtime"
            )
        attributes, folder = scope.attributes_of(node), self._folder

        def step(values: Values) -> None:
            inputs = [values[name] if name else None for name in node.input]
            made = fold(node, Arguments(node, attributes, inputs, Room(), folder))
            values.update(zip(node.output, made, strict=False))

        return step

    def _call(self, function: FunctionProto, node: NodeProto, scope: Scope) -> Step:
        steps = self._compile(function.node, Scope.of_call(self._model, function, node, scope))

        def step(values: Values) -> None:
            own = {inner: values[name] for inner, name in zip(function.input, node.input, strict=False) if name}
            for one in steps:
                one(own)
            values.update({name: own[inner] for inner, name in zip(function.output, node.output, strict=False) if name})

        return step

    def _recurrence(self, found: Found) -> Step:
        node, given = found.equation, found.inputs()
        if node.quantised:
            raise FileError(f"{node.title} rounds its inputs to 8 bits, which is not done here: see from_onnx")
        try:
            fixed: Recurrence | None = Recurrence(node, weights_of(found), self.backend)
        except NotConstant:
            fixed = None
        own = found.node.output

        def step(values: Values) -> None:
            run = fixed
            if run is None:
                arrays = {name: values[given[name]] for name in WEIGHTS if name in given}
                run = Recurrence(node, arrays, self.backend)
            others = [
                values[given[name]] if name in given else None for name in OTHERS[: 3 if node.kind == "lstm" else 2]
            ]
            made = run(values[given["X"]], *others)
            values.update({name: array for name, array in zip(own, made, strict=False) if name})

        return step


OTHERS = ("sequence_lens", "initial_h", "initial_c")  # besides X and the weights
