"""The recurrent nodes of a model, wherever they are, and the constants that they take.

A node may be in the graph, in a body of If, Loop or Scan, or in a function that the model defines; a function that is
called twice has its nodes twice. `Scope` knows the values that are visible at one of these places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..files import FileError
from ..layout import Array
from .folding import Arguments, Room, fold, foldable
from .messages import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto
from .nodes import Equation, equation, kind_of
from .tensors import to_array

MAX_DEPTH = 64  # of graphs and functions within each other, and of expressions
MAX_VALUES = 1 << 18  # visited in all: those of a function count as often as it is called

FunctionKey = tuple[str, str, str]  # domain, name, overload


class NotConstant(FileError):
    """A value is known when the model runs only; the message says why."""


class Model:
    """What all places of a model share: its functions, and the memory for computed constants."""

    def __init__(self, proto: ModelProto) -> None:
        self.proto = proto
        self.room = Room()
        self.visited = 0
        self.functions: dict[FunctionKey, FunctionProto] = {(f.domain, f.name, f.overload): f for f in proto.functions}

    def function(self, node: NodeProto) -> FunctionProto | None:
        """The function that a node calls, None of an operator."""
        return self.functions.get((node.domain, node.op_type, node.overload))

    def visit(self, values: int) -> None:
        self.visited += values
        if self.visited > MAX_VALUES:
            raise FileError(f"its graphs have more than {MAX_VALUES} values, those of a function for each of its calls")


class Scope:
    """The values visible in a graph or in one call of a function, by name.

    Parameters
    ----------
    model : Model
    outer : Scope, optional
        The graph round a body, whose values are visible too; the caller of a function, whose values are not.
    depth : int
    """

    def __init__(self, model: Model, outer: Scope | None = None, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise FileError(f"its graphs and functions are nested more than {MAX_DEPTH} deep: damaged, or cyclic")
        self.model, self.outer, self.depth = model, outer, depth
        self.tensors: dict[str, TensorProto] = {}
        self.makers: dict[str, tuple[NodeProto, int]] = {}  # node and number of the output
        self.inputs: set[str] = set()  # known when the model runs
        self.bound: dict[str, str] = {}  # a function's inputs: the caller's names
        self.attributes: dict[str, AttributeProto] = {}  # a function's attributes at this call
        self.of_function = False
        self._known: dict[str, Array | FileError] = {}
        self._open: set[str] = set()  # values that are being computed

    @classmethod
    def of_graph(cls, model: Model, graph: GraphProto, outer: Scope | None = None) -> Scope:
        scope = cls(model, outer, 0 if outer is None else outer.depth + 1)
        model.visit(len(graph.initializer) + len(graph.input))
        scope.tensors = {tensor.name: tensor for tensor in graph.initializer}
        scope.inputs = {value.name for value in graph.input}
        scope._take(graph.node)
        if outer is not None:
            scope.attributes = outer.attributes
        return scope

    @classmethod
    def of_call(cls, model: Model, function: FunctionProto, node: NodeProto, outer: Scope) -> Scope:
        scope = cls(model, outer, outer.depth + 1)
        model.visit(len(function.input) + len(node.attribute) + len(function.attribute_proto))
        scope.of_function = True
        scope.bound = dict(zip(function.input, node.input, strict=False))
        scope.inputs = set(function.input)
        given = {a.name: outer.resolved(a) for a in node.attribute}
        defaults = {a.name: a for a in function.attribute_proto}
        scope.attributes = {name: a for name, a in {**defaults, **given}.items() if a is not None}
        scope._take(function.node)
        return scope

    def _take(self, nodes: list[NodeProto]) -> None:
        for node in nodes:
            self.model.visit(1 + len(node.output))
            for number, name in enumerate(node.output):
                if name:
                    self.makers[name] = node, number

    # ------------------------------------------------------------------------------------------------------ attributes
    def resolved(self, attribute: AttributeProto) -> AttributeProto | None:
        """An attribute as it stands, or that of the function to which it refers; None where the call leaves it out."""
        return self.attributes.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute

    def attributes_of(self, node: NodeProto) -> dict[str, Any]:
        """The values of a node's attributes, references to the function's resolved."""
        found = {a.name: self.resolved(a) for a in node.attribute}
        return {name: a.value for name, a in found.items() if a is not None}

    # ------------------------------------------------------------------------------------------------------- constants
    def constant(self, name: str, depth: int = 0) -> Array:
        """The value of a name.

        Raises
        ------
        NotConstant
            It is known when the model runs only.
        FileError
            It is damaged, or cannot be computed.
        """
        known = self._known.get(name)
        if known is None:
            if name in self._open:
                raise FileError(f"its value {name!r:.80} is made of itself")
            if depth > MAX_DEPTH:
                raise FileError(f"its value {name!r:.80} is an expression of more than {MAX_DEPTH} steps")
            self._open.add(name)
            try:
                known = self._compute(name, depth)
            except FileError as error:
                known = error
            finally:
                self._open.discard(name)
            self._known[name] = known
        if isinstance(known, FileError):
            raise type(known)(str(known))
        return known

    def _compute(self, name: str, depth: int) -> Array:
        if name in self.tensors:
            return self.model.room.read(to_array(self.tensors[name], self.model.proto.folder))
        if name in self.makers:
            node, number = self.makers[name]
            if not foldable(node):
                raise NotConstant(f"the value {name!r:.80} is made by {node.title}, which is not computed beforehand")
            inputs = [self.constant(one, depth + 1) if one else None for one in node.input]
            folder = self.model.proto.folder
            found = fold(node, Arguments(node, self.attributes_of(node), inputs, self.model.room, folder))
            for made, array in zip(node.output, found, strict=False):
                self._known[made] = array
            if number >= len(found):
                raise FileError(f"{node.title} has {len(node.output)} outputs, expected {len(found)}")
            return found[number]
        if self.of_function:
            if self.bound.get(name) and self.outer is not None:
                return self.outer.constant(self.bound[name], depth + 1)
        elif name not in self.inputs and self.outer is not None:
            return self.outer.constant(name, depth + 1)
        where = "is an input" if name in self.inputs else "is not in the model"
        raise NotConstant(f"the value {name!r:.80} {where}")

    def absent(self, name: str) -> bool:
        """Whether an optional input is left out: it has no name, or is a function's input that the call leaves out."""
        if not name:
            return True
        if self.of_function and name in self.inputs and self.outer is not None:
            bound = self.bound.get(name, "")
            return self.outer.absent(bound)
        return False


@dataclass
class Found:
    """A recurrent node at one place.

    Parameters
    ----------
    node : NodeProto
    scope : Scope
    path : tuple of str
        The names of the nodes round it, outermost first, and its own.
    """

    node: NodeProto
    scope: Scope
    path: tuple[str, ...]
    _equation: list[Equation] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name with those of the nodes round it, joined with "/"."""
        return "/".join(self.path)

    @property
    def names(self) -> set[str]:
        """All names by which it may be asked for."""
        outputs = [one for one in self.node.output if one]
        return {self.name, self.path[-1], *outputs, *("/".join((*self.path[:-1], one)) for one in outputs)}

    @property
    def equation(self) -> Equation:
        if not self._equation:
            self._equation.append(equation(self.node, self.scope.attributes_of(self.node)))
        return self._equation[0]

    def inputs(self) -> Mapping[str, str]:
        """The names of the inputs that are there, by the operator's names."""
        if len(self.node.input) > len(self.equation.inputs):
            most = len(self.equation.inputs)
            raise FileError(f"{self.equation.title} has {len(self.node.input)} inputs, the operator at most {most}")
        return {
            own: name
            for own, name in zip(self.equation.inputs, self.node.input, strict=False)
            if not self.scope.absent(name)
        }


def name_of(node: NodeProto) -> str:
    """A node's name or, where it has none, that of its first output."""
    return node.name or next(filter(None, node.output), "") or node.op_type


def recurrent_nodes(proto: ModelProto) -> list[Found]:
    """All recurrent nodes of a model, in its order.

    Raises
    ------
    FileError
        The model is damaged, or its functions call each other in a circle.
    """
    if proto.graph is None:
        raise FileError("it has no graph: it is no ONNX model")
    model = Model(proto)
    return list(_walk(proto.graph.node, Scope.of_graph(model, proto.graph), ()))


def _walk(nodes: list[NodeProto], scope: Scope, path: tuple[str, ...]) -> Iterator[Found]:
    model = scope.model
    for node in nodes:
        own = (*path, name_of(node))
        function = model.function(node)
        if function is not None:
            yield from _walk(function.node, Scope.of_call(model, function, node, scope), own)
        elif kind_of(node) is not None:
            yield Found(node, scope, own)
        for attribute in node.attribute:
            held = scope.resolved(attribute)
            for graph in () if held is None else held.inner():
                yield from _walk(graph.node, Scope.of_graph(model, graph, scope), (*own, attribute.name))
