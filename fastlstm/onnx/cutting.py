"""A model's graph in steps: pieces for another runtime, and between them the nodes that are computed here.

A value has a level: even ones are made by pieces, odd ones by the nodes between them. A node's level is the least one
of its sort that its inputs allow, so that the nodes of a level form one piece. Nodes of which all inputs are constants
belong to no level: every piece that needs their results has a copy of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ..files import FileError
from .messages import GraphProto, ModelProto, NodeProto, TensorProto

# Operators with results that differ from call to call: never copied, whatever their inputs.
RANDOM = {
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


@dataclass
class Step:
    """What is run at once.

    Attributes
    ----------
    level : int
        Even: a piece. Odd: one node that is computed here.
    nodes : list of NodeProto
    inputs : list of str
        The values that it takes: of earlier steps, or the model's inputs.
    outputs : list of str
        The values of it that later steps take, or that the model gives.
    """

    level: int
    nodes: list[NodeProto]
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    @property
    def made(self) -> list[str]:
        """All values that it makes."""
        return [name for node in self.nodes for name in node.output if name]

    @property
    def here(self) -> bool:
        return self.level % 2 == 1


class Graph:
    """The main graph of a model, checked: each value is made once, and before it is used.

    Parameters
    ----------
    model : ModelProto

    Attributes
    ----------
    proto : GraphProto
    inputs : dict of str to None
        The names that a caller gives; those of `defaults` may be left out.
    defaults : dict of TensorProto
        Inputs with an initial value, which a caller may replace (since IR version 4).
    constants : dict
        Names of constants: their initialiser, or None for a sparse one.
    makers, users : dict
        The node that makes a value; the nodes that use it, those with bodies that use it included.

    Raises
    ------
    FileError
        The graph is damaged or has a cycle.
    """

    def __init__(self, model: ModelProto) -> None:
        if model.graph is None:
            raise FileError("it has no graph: it is no ONNX model")
        self.model, self.proto = model, model.graph
        tensors = {tensor.name: tensor for tensor in self.proto.initializer}
        self.sparse = {one.values.name: one for one in self.proto.sparse_initializer if one.values is not None}
        given = [value.name for value in self.proto.input]
        self.defaults = {name: tensors[name] for name in given if name in tensors} if model.ir_version >= 4 else {}
        self.constants: dict[str, TensorProto | None] = {
            **{name: tensor for name, tensor in tensors.items() if name not in self.defaults},
            **dict.fromkeys(self.sparse),
        }
        self.inputs = dict.fromkeys(name for name in given if name not in self.constants)
        self.outputs = [value.name for value in self.proto.output]
        self.makers: dict[str, NodeProto] = {}
        self.users: dict[str, list[NodeProto]] = {}
        self.uses: dict[NodeProto, list[str]] = {}
        self._walk()
        self.constant_nodes = self._constant_nodes()

    def _walk(self) -> None:
        known = {*self.inputs, *self.constants}
        for node in self.proto.node:
            self.uses[node] = used = list(dict.fromkeys(used_by(node)))
            for name in used:
                if name not in known:
                    raise FileError(
                        f"its {node.title} uses the value {name!r:.80} before it is made: damaged, or a cycle of nodes"
                    )
                self.users.setdefault(name, []).append(node)
            for name in filter(None, node.output):
                if name in known:
                    raise FileError(f"its value {name!r:.80} is made twice, the second time by {node.title}")
                known.add(name)
                self.makers[name] = node
        for name in self.outputs:
            if name not in known:
                raise FileError(f"its output {name!r:.80} is made by no node")

    def _constant_nodes(self) -> set[NodeProto]:
        """The nodes with nothing but constants as inputs."""
        found: set[NodeProto] = set()
        functions = {(of.domain, of.name) for of in self.model.functions}
        for node in self.proto.node:
            plain = node.standard and node.op_type not in RANDOM and not any(a.inner() for a in node.attribute)
            if not plain or (node.domain, node.op_type) in functions or not (node.input or node.op_type == "Constant"):
                continue
            if all(self.is_constant(name, found) for name in self.uses[node]):
                found.add(node)
        return found

    def is_constant(self, name: str, nodes: set[NodeProto] | None = None) -> bool:
        """Whether a value is the same in every call."""
        maker, known = self.makers.get(name), self.constant_nodes if nodes is None else nodes
        return name in self.constants or (maker is not None and maker in known)


def used_by(node: NodeProto) -> Iterator[str]:
    """The names of the values that a node takes, those that its bodies take from outside included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for body in attribute.inner():
            yield from used_outside(body)


def used_outside(body: GraphProto) -> Iterator[str]:
    """The names that a body uses and does not make itself."""
    own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    own |= {one.values.name for one in body.sparse_initializer if one.values is not None}
    own |= {name for node in body.node for name in node.output}
    used = [name for node in body.node for name in used_by(node)] + [value.name for value in body.output]
    yield from (name for name in used if name not in own)


def steps(graph: Graph, here: Callable[[NodeProto], bool]) -> list[Step]:
    """The steps of a graph in order.

    Parameters
    ----------
    graph : Graph
    here : function
        Whether a node is computed here and not in a piece. Not asked for constant nodes.
    """
    levels: dict[str, int] = dict.fromkeys(graph.inputs, 0)
    pieces: dict[int, Step] = {}
    found: list[Step] = []
    for node in graph.proto.node:
        if node in graph.constant_nodes:
            continue
        lowest = max((levels[name] for name in graph.uses[node] if name in levels), default=0)
        own = here(node)
        level = lowest + (lowest % 2 != own)
        if own or level not in pieces:
            found.append(Step(level, []))
            if not own:
                pieces[level] = found[-1]
        step = found[-1] if own else pieces[level]
        step.nodes.append(node)
        levels.update(dict.fromkeys(filter(None, node.output), level))
    constant = [name for name in graph.outputs if graph.is_constant(name)]
    if constant and 0 not in pieces:
        pieces[0] = Step(0, [])
        found.append(pieces[0])
    found.sort(key=lambda step: step.level)  # stable: nodes of one level stay in the model's order
    _connect(graph, found)
    if constant:
        pieces[0].outputs += dict.fromkeys(constant)
    return found


def _connect(graph: Graph, found: list[Step]) -> None:
    """Set what each step takes and gives."""
    at = {name: step for step in found for name in step.made}
    wanted = dict.fromkeys(graph.outputs)
    for step in found:
        taken = dict.fromkeys(name for node in step.nodes for name in graph.uses[node] if not graph.is_constant(name))
        step.inputs = [name for name in taken if at.get(name) is not step]
        wanted |= dict.fromkeys(step.inputs)
    for step in found:
        step.outputs = [name for name in step.made if name in wanted]


def with_constants(graph: Graph, step: Step) -> tuple[list[NodeProto], list[str]]:
    """(the nodes of a piece and the constant nodes that it needs, in order; the names of the constants they need)."""
    needed: set[NodeProto] = set(step.nodes)
    constants: dict[str, None] = {}
    open_names = [name for node in step.nodes for name in graph.uses[node]] + step.outputs
    while open_names:
        name = open_names.pop()
        if name in graph.constants:
            constants[name] = None
        elif graph.is_constant(name) and graph.makers[name] not in needed:
            needed.add(graph.makers[name])
            open_names += graph.uses[graph.makers[name]]
    return [node for node in graph.proto.node if node in needed], list(constants)


def needed(
    found: Sequence[Step], outputs: Sequence[str], always: Callable[[Step], bool]
) -> list[tuple[Step, list[str]]]:
    """The steps that some outputs need, with the values that each has to give.

    Parameters
    ----------
    found : list of Step
    outputs : names
    always : function
        Whether a step is run even if nothing of it is needed.
    """
    wanted = set(outputs)
    kept = []
    for step in reversed(found):
        given = [name for name in step.outputs if name in wanted]
        if given or always(step):
            kept.append((step, given))
            wanted |= set(step.inputs)
    return kept[::-1]
