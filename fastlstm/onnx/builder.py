"""A graph that is written node by node: `Graph`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..layout import Array
from .messages import (
    ATTRIBUTE_TYPES,
    AttributeProto,
    Dimension,
    GraphProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    TensorProto,
    TensorShapeProto,
    TensorType,
    TypeProto,
    ValueInfoProto,
)
from .tensors import NUMBERS, from_array

OPSET, IR = 17, 8  # of 2022: ONNX Runtime 1.12 and later
Axis = int | str | None  # a size, a name for a size that the model does not fix, or neither


def attribute(name: str, value: Any) -> AttributeProto:
    """An attribute from an int, a float, a text, a graph, a tensor, or a list of ints, floats or texts."""
    if isinstance(value, GraphProto):
        kind = "g"
    elif isinstance(value, TensorProto):
        kind = "t"
    elif isinstance(value, (list, tuple)):
        kind = {int: "ints", float: "floats", str: "strings"}[type(value[0])]
        value = [one.encode() for one in value] if kind == "strings" else list(value)
    else:
        kind = {int: "i", float: "f", str: "s"}[type(value)]
        value = value.encode() if kind == "s" else value
    return AttributeProto(name=name, type=ATTRIBUTE_TYPES[kind], **{kind: value})


def value_info(name: str, dtype: Any, shape: Sequence[Axis] | None) -> ValueInfoProto:
    """A name with its type and, where it is known, its shape."""
    axes = None
    if shape is not None:
        axes = TensorShapeProto(
            dim=[
                Dimension(dim_value=axis) if isinstance(axis, int) else Dimension(dim_param=axis or None)
                for axis in shape
            ]
        )
    kind = NUMBERS[np.dtype(dtype)]
    return ValueInfoProto(name=name, type=TypeProto(tensor_type=TensorType(elem_type=kind, shape=axes)))


class Graph:
    """A graph in the making. Every method that adds a node returns the name of its first output.

    Parameters
    ----------
    name : str
    dtype : dtype
        Of the numbers that it computes with.
    outer : Graph, optional
        The graph round a body: a name is used once in both.
    """

    def __init__(self, name: str, dtype: np.dtype[Any], outer: Graph | None = None) -> None:
        self.name, self.dtype, self._inner = name, dtype, outer is not None
        self.proto = GraphProto(name=name)
        # Of values and of nodes: the names that are taken, and how often each was asked for.
        self._names: dict[str, int] = {} if outer is None else outer._names
        self._titles: dict[str, int] = {} if outer is None else outer._titles
        self._constants: dict[tuple[Any, ...], str] = {}

    def fresh(self, name: str) -> str:
        """A name for a value that is not taken yet."""
        return _fresh(name, self._names)

    def _exact(self, name: str) -> str:
        """The name of an input or output: as it is, but for that of a body, which its node does not use."""
        own = self.fresh(name)
        assert self._inner or own == name, f"the model's input or output {name!r} has the name of another value"
        return own

    def input(self, name: str, dtype: Any, shape: Sequence[Axis] | None) -> str:
        own = self._exact(name)
        self.proto.input.append(value_info(own, dtype, shape))
        return own

    def output(self, value: str, name: str, dtype: Any, shape: Sequence[Axis] | None) -> None:
        """Make a value an output of the graph, by this name."""
        own = self.fresh(name)
        self.proto.node.append(
            NodeProto(input=[value], output=[own], op_type="Identity", name=_fresh("give", self._titles))
        )
        self.proto.output.append(value_info(own, dtype, shape))

    def constant(self, value: Any, name: str = "constant", dtype: Any = None) -> str:
        """An initialiser; numbers have the graph's dtype unless one is given. Equal small ones are stored once."""
        array: Array = np.asarray(value, self.dtype if dtype is None else dtype)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 8 else None
        if key is not None and key in self._constants:
            return self._constants[key]
        own = self.fresh(name)
        self.proto.initializer.append(from_array(array, own))
        if key is not None:
            self._constants[key] = own
        return own

    def ints(self, *values: int) -> str:
        """A vector of int64."""
        return self.constant(values, "shape", np.int64)

    def nodes(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> list[str]:
        """Add a node and return the names of its outputs; "" leaves an output out."""
        made = [self.fresh(name) if name else "" for name in outputs]
        title = attributes.pop("title", None) or operator.lower()
        self.proto.node.append(
            NodeProto(
                input=list(inputs),
                output=made,
                name=_fresh(title, self._titles),
                op_type=operator,
                attribute=[attribute(name, value) for name, value in attributes.items()],
            )
        )
        return made

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        return self.nodes(operator, inputs, [f"{operator.lower()}_out"], **attributes)[0]

    def transpose(self, x: str, *perm: int) -> str:
        return self.node("Transpose", x, perm=list(perm))

    def where(self, condition: str, x: str, y: str) -> str:
        return self.node("Where", condition, x, y)

    def unsqueeze(self, x: str, axis: int) -> str:
        return self.node("Unsqueeze", x, self.ints(axis))

    def cast(self, x: str, dtype: Any) -> str:
        return self.node("Cast", x, to=NUMBERS[np.dtype(dtype)])

    def length(self, x: str, axis: int) -> str:
        """The size of an axis, a vector of one int64."""
        return self.node("Shape", x, start=axis, end=axis + 1)


def _fresh(name: str, taken: dict[str, int]) -> str:
    found = name
    while found in taken:
        found = f"{name}_{taken[name]}"
        taken[name] += 1
    taken[found] = 1
    return found


def model(graph: Graph) -> bytes:
    """The bytes of a model with a finished graph."""
    from .. import __version__

    proto = ModelProto(
        ir_version=IR,
        producer_name="fastlstm",
        producer_version=__version__,
        graph=graph.proto,
        opset_import=[OperatorSetIdProto(domain="", version=OPSET)],
    )
    return proto.to_bytes()
