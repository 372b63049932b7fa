"""`accelerate`: a whole ONNX model, its recurrent nodes on our kernels and the rest on ONNX Runtime."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import num_threads
from .._backends import choose
from ..files import FileError
from ..taken import Taken
from ..validation import flag
from .cutting import Graph, Step, steps
from .graphs import Found, Model, NotConstant, Scope, recurrent_nodes
from .messages import NodeProto, TypeProto, read_model
from .nodes import WEIGHTS
from .pieces import (
    FOLDER,
    CannotCutError,
    Piece,
    Rearranged,
    Recurrent,
    check_external,
    constants_of,
    depends_on_input,
    inference_session,
    onnxruntime,
)
from .recurrence import Recurrence
from .session import LEAST_WORK, Part, Session, Whole
from .views import View, view_of


@dataclass
class Entry:
    """One recurrent node of a model.

    Attributes
    ----------
    name : str
        The node's name or, where it has none, its first output; for a node in a body of If, Loop or Scan or in a
        function with the names of the nodes round it.
    operator : str
    why : str or None
        Why it was left on ONNX Runtime; None where it is on the kernels.
    storage : str or None
        How the kernels keep its weights, where that was asked for.
    """

    name: str
    operator: str
    why: str | None
    storage: str | None = None

    def __str__(self) -> str:
        kept = f", weights kept as {self.storage}" if self.storage else ""
        return f"{self.name}: {self.operator}: " + (f"left: {self.why}" if self.why else f"on the kernels{kept}")


@dataclass
class Summary(Taken[Entry]):
    """What `accelerate` did, node by node.

    Attributes
    ----------
    entries : list of Entry
    pieces : int
        In how many pieces the rest of the model runs on ONNX Runtime.
    """

    entries: list[Entry]
    pieces: int = 1

    def __str__(self) -> str:
        lines = [str(entry) for entry in self.entries] or ["no recurrent node: the model has no LSTM, GRU or RNN"]
        return "\n".join([*lines, f"the rest: {self.pieces} pieces on ONNX Runtime"])


def accelerate(
    path: str | os.PathLike[str],
    stateful: bool = False,
    storage: str | None = None,
    *,
    threads: int | None = None,
    session_options: Any = None,
    backend: str = "auto",
) -> Session:
    """A session of an ONNX model like ONNX Runtime's, with its LSTM, GRU and RNN nodes on fastlstm's kernels.

    The nodes of the main graph are taken, if their weights are constants; the pieces between them run on ONNX Runtime.
    ``print(session.summary)`` says which nodes were taken, and why others were not.

    Parameters
    ----------
    path : path
    stateful : bool
        Keep the states of the recurrent nodes in the session from call to call, so that sequences can be fed piece by
        piece; `Session.reset` begins new ones. The first call begins with the model's own initial states. Inputs of
        the model that hold a state may be left out then; one that is given counts for that call.
    storage : {None, "float32", "float16", "int16", "int8"}
        How the kernels keep the weights of the recurrent nodes (`fastlstm.storage`). None: as they are. With reduced
        weights no call is left to ONNX Runtime for being short, so that all outputs have the same roundings.
    threads : int, optional
        Of the kernels and of ONNX Runtime. None: `fastlstm.get_num_threads()`, for ONNX Runtime that of now.
    session_options : onnxruntime.SessionOptions, optional
        For all pieces, in place of options made from `threads`.
    backend : str
        Of the kernels, as in `LSTM`.

    Returns
    -------
    session : Session

    Raises
    ------
    ImportError
        ONNX Runtime is not installed.
    OSError, FileError
        The file cannot be read, or is damaged.
    ValueError
        With stateful=True: a recurrent node cannot keep a state, which the message names. Or an unknown backend.
    BackendError
        The backend cannot be used, or has not this storage.
    """
    stateful = flag(stateful, "stateful")
    if threads is not None:
        with num_threads.threads(threads):  # checks the number
            pass
    choose(backend, "float32", (), storage)
    model = read_model(path)
    runtime = onnxruntime()
    graph, found = Graph(model), recurrent_nodes(model)
    taken: dict[NodeProto, Recurrent] = {}
    entries = []
    for one in found:
        made = _taken(one, graph, backend, storage)
        if isinstance(made, Recurrent):
            taken[one.node] = made
        left = made if isinstance(made, str) else None
        entries.append(Entry(one.name, one.node.op_type, left, None if left else storage))
    if stateful:
        _check_states(entries, taken, graph)
    options = session_options if session_options is not None else runtime.SessionOptions()
    if check_external(graph):
        options.add_session_config_entry(FOLDER, str(model.folder))
    if session_options is None:
        options.intra_op_num_threads = threads or num_threads.get_num_threads()
        if taken and options.intra_op_num_threads > 1:  # a worker that spins after its piece keeps our threads waiting
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return _session(graph, taken, entries, options, stateful, threads)


def _taken(found: Found, graph: Graph, backend: str, storage: str | None) -> Recurrent | str:
    """A node on the kernels, or why it is left."""
    if len(found.path) > 1:
        return f"it is inside of {found.path[0]!r:.80}; nodes of the main graph alone are taken"
    if not found.node.standard:
        return (
            f"{found.node.op_type} rounds its input to 8 bits, which the kernels do not, so that results would differ"
        )
    try:
        inputs = found.inputs()
        for own, name in inputs.items():
            if own in WEIGHTS and name in graph.defaults:
                return f"its {own} is an input of the model, {name!r:.80}, and may be another one in each call"
        missing = [own for own in ("X", "W", "R") if own not in inputs]
        if missing:
            return f"it has no input {missing[0]}"
        arrays = {own: found.scope.constant(name) for own, name in inputs.items() if own in WEIGHTS}
        if any(array.dtype not in ("float32", "float64") for array in arrays.values()):
            return f"its weights are {arrays['W'].dtype}"
        constants = constants_of(found, graph)
        recurrence = Recurrence(found.equation, arrays, backend, storage)
    except NotConstant as error:
        return f"its weights are not constant: {error}"
    except FileError as error:
        return str(error)
    return Recurrent(found, recurrence, constants)


def _check_states(entries: list[Entry], taken: dict[NodeProto, Recurrent], graph: Graph) -> None:
    """Whether each recurrent node can keep its states from call to call.

    Raises
    ------
    ValueError
        One cannot; the message names it.
    """
    for entry in entries:
        if entry.why is not None:
            raise ValueError(f"stateful=True: the state of {entry.name} cannot be kept, since it is left: {entry.why}")
    for node, one in taken.items():
        if not one.one_way:
            raise ValueError(
                f"stateful=True: {node.title} walks from the end of a sequence, and cannot be fed piece by piece"
            )
        for own in one.initial:
            name = one.names.get(own)
            if name in graph.inputs and graph.users[name] == [node] and name not in graph.outputs:
                one.state_inputs[own] = name
                continue
            given = None if name is None else depends_on_input(graph, name)
            if given is not None:
                raise ValueError(
                    f"stateful=True: {node.title} begins with a state that is computed from the input {given!r}: pass "
                    "the states from call to call yourself, without stateful=True"
                )


def _session(
    graph: Graph,
    taken: dict[NodeProto, Recurrent],
    entries: list[Entry],
    options: Any,
    stateful: bool,
    threads: int | None,
) -> Session:
    def whole() -> Any:
        return inference_session(graph.model.to_bytes(), options)

    if taken:
        try:
            parts = _cut(graph, taken, options)
        except CannotCutError as error:
            if stateful:
                raise ValueError(f"stateful=True: the model cannot be cut: {error}") from None
            why = f"the model cannot be cut: {error}"
            entries = [Entry(one.name, one.operator, one.why or why) for one in entries]
        else:
            summary = Summary(entries, sum(isinstance(part, Piece) for _, part in parts))
            least = sum(one.work for one in taken.values())  # FLOPs of a call of one step of one sequence
            always = stateful or least >= LEAST_WORK or any(one.storage for one in entries)
            return Session(graph, parts, summary, stateful, threads, None if always else whole)
    step = Step(0, list(graph.proto.node), [*graph.inputs], graph.outputs)
    return Session(graph, [(step, Whole(whole()))], Summary(entries), stateful, threads)


def _cut(graph: Graph, taken: dict[NodeProto, Recurrent], options: Any) -> list[tuple[Step, Part]]:
    """The steps of a model, ready to run."""
    views = _views(graph, taken)
    types: dict[str, TypeProto] = {
        value.name: value.type
        for value in (*graph.proto.value_info, *graph.proto.input)
        if value.type is not None and value.type.tensor_type is not None
    }
    made: list[tuple[Step, Part]] = []
    for step in steps(graph, lambda node: node in taken or node in views):
        node = step.nodes[0] if step.nodes else None
        if not step.here or node is None:
            made.append((step, Piece(graph, step, types, options)))
        elif node in taken:
            types |= taken[node].types()
            taken[node].by_batch = _places(graph, taken[node], views)
            made.append((step, taken[node]))
        else:
            view = Rearranged(views[node])
            types |= view.types(types)
            made.append((step, view))
    return made


def _views(graph: Graph, taken: dict[NodeProto, Recurrent]) -> dict[NodeProto, View]:
    """The nodes that only rearrange axes of what taken nodes give or take, and are therefore views here."""
    scope = Scope.of_graph(Model(graph.model), graph.proto)
    here: set[NodeProto] = set(taken)
    views: dict[NodeProto, View] = {}
    for node in graph.proto.node:
        view = view_of(node, scope)
        if view is None or node in graph.constant_nodes:
            continue
        views[node] = view
        if graph.makers.get(node.input[0]) in here:
            here.add(node)
    outputs = set(graph.outputs)
    for node in reversed(graph.proto.node):
        if node in views and node not in here:
            name = next(filter(None, node.output))
            users = graph.users.get(name, [])
            if users and name not in outputs and all(user in here for user in users):
                here.add(node)
    for node in views:  # what follows a piece is quicker in the piece, where it may be part of another node
        if node.input[0] not in graph.inputs and graph.makers.get(node.input[0]) not in here:
            here.discard(node)
    return {node: view for node, view in views.items() if node in here}


def _places(graph: Graph, one: Recurrent, views: dict[NodeProto, View]) -> bool:
    """Whether Y is best written as (B, T, D, H), so that after the views behind the node it is in order for a piece."""
    D, axes = one.recurrence.node.D, (3, 2)  # any T and B
    in_order = {}
    for by_batch in (False, True):
        y = np.empty((axes[1], axes[0], D, 4) if by_batch else (*axes, D, 4))
        reached = [(one.outputs[0], y.transpose(1, 2, 0, 3) if by_batch else y.swapaxes(1, 2))]
        ordered = 0
        while reached:
            name, array = reached.pop()
            for user in graph.users.get(name, []):
                if user in views:
                    try:
                        reached.append((Rearranged(views[user]).output, views[user](array)))
                    except ValueError:  # a shape that these T and B do not fit
                        return False
                else:
                    ordered += array.flags.c_contiguous
            ordered += name in graph.outputs and array.flags.c_contiguous
        in_order[by_batch] = ordered
    return in_order[True] > in_order[False]
