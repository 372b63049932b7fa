"""The steps of a cut model, ready to run: pieces on ONNX Runtime, recurrent nodes and views here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..layout import Array
from .cutting import Graph, Step, with_constants
from .graphs import Found
from .messages import GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto
from .recurrence import Recurrence
from .tensors import EXTERNAL, external_place, size_in_bytes
from .types import parsed, tensor_type
from .views import View

FOLDER = "session.model_external_initializers_file_folder_path"  # an entry of ONNX Runtime's options
Values = dict[str, Any]
States = tuple[Array, ...]


class CannotCutError(Exception):
    """A model cannot be cut; the message says why."""


# -------------------------------------------------------------------------------------------------------- ONNX Runtime
class Piece:
    """Nodes on ONNX Runtime.

    Parameters
    ----------
    graph : Graph
    step : Step
    types : dict
        Of the values that earlier steps give. Those of this one are added.
    options : onnxruntime.SessionOptions
    """

    def __init__(self, graph: Graph, step: Step, types: dict[str, TypeProto], options: Any) -> None:
        self.inputs = step.inputs
        model = piece_model(graph, step, types)
        self.session = inference_session(model.to_bytes(), options)
        for output in self.session.get_outputs():
            known = parsed(output.type, output.shape)
            if known is not None:
                types[output.name] = known

    def run(self, values: Values, outputs: list[str], kept: States | None) -> None:
        """Compute some of the outputs."""
        found = self.session.run(outputs, {name: values[name] for name in self.inputs})
        values.update(zip(outputs, found, strict=True))


def onnxruntime() -> Any:
    """The module ONNX Runtime.

    Raises
    ------
    ImportError
        It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f"fl.onnx.accelerate runs what is not recurrent on ONNX Runtime, which cannot be imported ({error}): "
            "pip install onnxruntime"
        ) from error
    return onnxruntime


def inference_session(model: Any, options: Any) -> Any:
    """ONNX Runtime's session of a model, on the CPU."""
    return onnxruntime().InferenceSession(model, options, providers=["CPUExecutionProvider"])


def piece_model(graph: Graph, step: Step, types: Mapping[str, TypeProto]) -> ModelProto:
    """The model of a piece: its nodes and the constants that they need.

    Raises
    ------
    CannotCutError
        A value that it takes has a type that cannot be passed.
    FileError
        A constant is in a file outside of the model's folder.
    """
    nodes, constants = with_constants(graph, step)
    for name in step.inputs:
        if name not in types:
            raise CannotCutError(f"the value {name!r:.80} between two pieces is no tensor of numbers that NumPy has")
    chosen = [graph.constants[name] for name in constants]
    inner = {name for node in nodes for name in node.output}
    own = GraphProto(
        name=graph.proto.name or "piece",
        node=nodes,
        initializer=[tensor for tensor in chosen if tensor is not None],
        sparse_initializer=[graph.sparse[name] for name in constants if name in graph.sparse],
        input=[ValueInfoProto(name=name, type=types[name]) for name in step.inputs],
        output=[ValueInfoProto(name=name) for name in step.outputs],
        value_info=[value for value in graph.proto.value_info if value.name in inner],
    )
    model = graph.model
    return ModelProto(
        ir_version=model.ir_version,
        producer_name="fastlstm",
        graph=own,
        opset_import=model.opset_import,
        functions=model.functions,
    )


def check_external(graph: Graph) -> bool:
    """Whether the model has external data in initialisers, each checked to be in its folder.

    Raises
    ------
    FileError, OSError
        As `tensors.external_place`.
    """
    found = False
    for tensor in graph.proto.initializer:
        if tensor.data_location == EXTERNAL:
            external_place(tensor, size_in_bytes(tensor), graph.model.folder)
            found = True
    return found


# ---------------------------------------------------------------------------------------------------------------- here
class Recurrent:
    """A recurrent node on the kernels.

    Parameters
    ----------
    found : Found
    recurrence : Recurrence
    constants : dict
        Its inputs that are the same in every call, by the operator's names.

    Attributes
    ----------
    names : dict
        The values that it takes, by the operator's names of its inputs.
    outputs : list of str
        The values that it gives, in the operator's order; "" for one that is left out.
    """

    def __init__(self, found: Found, recurrence: Recurrence, constants: dict[str, Array]) -> None:
        node, equation = found.node, found.equation
        self.name, self.title, self.recurrence, self.constants = found.name, node.title, recurrence, constants
        self.names = {own: name for own, name in found.inputs().items() if own not in constants}
        self.outputs = [*node.output, *[""] * 3][: len(equation.outputs)]
        self.initial = ("initial_h", "initial_c")[: len(self.outputs) - 1]
        self.one_way = not any(equation.reverse)
        self.state_inputs: dict[str, str] = {}  # initial states that are inputs, and may be left out in a call
        self.by_batch = False  # whether Y is to be (B, T, D, H) in memory
        self._axis = 0 if equation.batch_first else 1  # of the sequences, in X and in states
        spec = recurrence.weights.specs[0]
        self.work = 2 * equation.D * spec.G * spec.H * (spec.I + spec.H)  # FLOPs of a step of one sequence

    def run(self, values: Values, outputs: list[str], kept: States | None) -> States:
        """Compute the outputs, and return the final states (D, B, H).

        Parameters
        ----------
        values : dict
        outputs : list of str
            Not needed here: all of them are computed.
        kept : tuple of arrays, optional
            The initial states in place of the node's own, but for those that the call itself gives as inputs.
        """
        x, given, names = values[self.names["X"]], self.constants, self.names
        # An input that holds a state may be left out where the session keeps the states.
        h, c = [values.get(names[own]) if own in names else given.get(own) for own in ("initial_h", "initial_c")]
        if kept is not None:
            size, optional = kept[0].shape[self._axis], self.state_inputs
            if x.ndim == 3 and x.shape[self._axis] != size:
                raise ValueError(
                    f"the session holds the states of {size} sequences for {self.title}, and this call has "
                    f"{x.shape[self._axis]}: feed {size}, or call reset() first"
                )
            h = kept[0] if h is None or "initial_h" not in optional else h
            if len(kept) > 1:
                c = kept[1] if c is None or "initial_c" not in optional else c
        lengths = values[names["sequence_lens"]] if "sequence_lens" in names else given.get("sequence_lens")
        found = self.recurrence.views(x, lengths, h, c, self.by_batch)
        for name, array in zip(self.outputs, found, strict=True):
            if name:
                values[name] = array
        return found[1:]

    def work_of(self, values: Values) -> int:
        """FLOPs of the products in a call with these values."""
        shape = values[self.names["X"]].shape
        return self.work * int(shape[0]) * int(shape[1])

    def types(self) -> dict[str, TypeProto]:
        """The types of the outputs."""
        D, H = self.recurrence.node.D, self.recurrence.weights.specs[0].H
        number = 11 if self.recurrence.dtype.itemsize == 8 else 1
        state: list[Any] = [None, D, H] if self._axis == 0 else [D, None, H]
        y = [None, None, D, H] if self._axis == 0 else [None, D, None, H]
        return {name: tensor_type(number, y if at == 0 else state) for at, name in enumerate(self.outputs) if name}


class Rearranged:
    """An operator that rearranges axes, as a view."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.input, self.output = view.node.input[0], next(filter(None, view.node.output))

    def run(self, values: Values, outputs: list[str], kept: States | None) -> None:
        """Compute the output."""
        values[self.output] = self.view(values[self.input])

    def types(self, types: Mapping[str, TypeProto]) -> dict[str, TypeProto]:
        """The type of the output, where that of the input is known."""
        known = types.get(self.input)
        if known is None or known.tensor_type is None:
            return {}
        held = known.tensor_type
        try:
            dims = None if held.shape is None else self.view.of_dims([d.dim_value for d in held.shape.dim])
        except (LookupError, StopIteration, RuntimeError):  # the shape is not that of a call, which is checked then
            dims = None
        return {self.output: tensor_type(held.elem_type, dims)}


def constants_of(found: Found, graph: Graph) -> dict[str, Array]:
    """The inputs of a recurrent node that are the same in every call, weights aside.

    Raises
    ------
    FileError
        One of them is damaged, or cannot be computed.
    """
    wanted = ("sequence_lens", "initial_h", "initial_c")
    return {
        own: found.scope.constant(name)
        for own, name in found.inputs().items()
        if own in wanted and graph.is_constant(name)
    }


def depends_on_input(graph: Graph, name: str) -> str | None:
    """An input of the model on the numbers of which, not only on the shape, a value depends; None if there is none."""
    seen: set[NodeProto] = set()
    open_names = [name]
    while open_names:
        name = open_names.pop()
        if name in graph.inputs:
            return name
        maker = graph.makers.get(name)
        if maker is not None and maker not in seen and not (maker.standard and maker.op_type in ("Shape", "Size")):
            seen.add(maker)
            open_names += graph.uses[maker]
    return None
