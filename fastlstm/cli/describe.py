"""What a model file holds, for people and as JSON: `describe`. `READERS` has a function for each kind of file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import convert, files, models
from ..layer import Layer
from ..layout import Array
from ..text import TextModel
from ..text.model import KINDS


@dataclass
class Description:
    """A model file.

    Parameters
    ----------
    path : str
    kind : str
        What it is, in words.
    facts : dict
        What else is known of it, by name.
    table : str
        The layers, as a table of several lines; empty where the list of parameters says all.
    parameters : dict
        Shape of each parameter by name.
    """

    path: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    table: str = ""
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many numbers all parameters have together."""
        return sum(size(shape) for shape in self.parameters.values())

    def text(self) -> str:
        """For people: a line for the file, the facts, the layers, the parameters."""
        facts = [f"  {name}: {shown(value)}" for name, value in self.facts.items()]
        table = ["", self.table] if self.table else []
        return "\n".join([f"{self.path}: {self.kind}", *facts, *table, "", *self._rows()])

    def _rows(self) -> Iterable[str]:
        width = max(map(len, self.parameters), default=0) + 2
        shapes = {name: " x ".join(map(str, shape)) or "1" for name, shape in self.parameters.items()}
        across = max(map(len, shapes.values()), default=0) + 2
        for name, shape in self.parameters.items():
            yield f"{name:{width}}{shapes[name]:{across}}{size(shape):>12,}"
        yield f"{'all parameters':{width}}{'':{across}}{self.count:>12,}"

    def figures(self) -> dict[str, Any]:
        """For programs."""
        parameters = [{"name": name, "shape": list(shape)} for name, shape in self.parameters.items()]
        return {"file": self.path, "kind": self.kind, **self.facts, "count": self.count, "parameters": parameters}


def size(shape: tuple[int, ...]) -> int:
    """The product of the axes."""
    total = 1
    for axis in shape:
        total *= axis
    return total


def shown(value: Any) -> str:
    """A fact as text; long ones are cut."""
    text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
    return text if len(text) <= 200 else text[:197] + "..."


def shapes_of(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """The shape of each array."""
    return {name: tuple(a.shape) for name, a in arrays.items()}


def text_model(path: str, arrays: Mapping[str, Array], config: Mapping[str, Any]) -> Description | None:
    """A model of train-text, or its checkpoint."""
    if config.get("kind") not in KINDS:
        return None
    model = TextModel.load(path)
    training = config.get("training") or {}
    facts: dict[str, Any] = {"layers": f"{model.lstm!r}, {model.head!r}", **storage_of(model.lstm)}
    facts["vocabulary"] = f"{len(model.tokens)} {model.tokens.unit}s"
    if training:
        facts["steps"] = int(arrays["optimizer.steps"]) if "optimizer.steps" in arrays else 0
        facts["settings"] = training.get("settings", {})
    return Description(path, config["kind"], facts, parameters=shapes_of(model.to_arrays()))


def storage_of(layer: Layer) -> dict[str, Any]:
    """The fact how weights are kept, and their bytes; none where all are of the dtype."""
    how = layer._quantised
    if how is None:
        return {}
    return {"weights kept as": " and ".join(how.kinds), "bytes": sum(p.nbytes for p in layer.parameters().values())}


def layer_file(path: str, arrays: Mapping[str, Array], config: Mapping[str, Any]) -> Description | None:
    """What ``layer.save(path)`` or `fastlstm fit` wrote."""
    if config.get("format") != models.FORMAT:
        return None
    layer = models.load(path)
    facts: dict[str, Any] = {"layers": repr(layer), **storage_of(layer), "FLOPs a step": convert.flops(layer)}
    facts |= {"data": data} if (data := models.notes_of(config).get("data")) else {}
    table = layer.summary() if hasattr(layer, "summary") and layer.built else ""
    return Description(
        path, f"{type(layer).__name__}, dtype {layer.dtype}", facts, table, shapes_of(layer.state_dict())
    )


def plain_arrays(path: str, arrays: Mapping[str, Array], config: Mapping[str, Any]) -> Description | None:
    """A safetensors file of another program."""
    return Description(path, "safetensors without a model of fastlstm", parameters=shapes_of(arrays))


Reader = Callable[[str, Mapping[str, Array], Mapping[str, Any]], Description | None]
# Readers of safetensors files, tried in order until one returns a Description.
READERS: list[Reader] = [text_model, layer_file, plain_arrays]


def keras_file(path: str) -> Description:
    """A file of Keras: its layers, those that fastlstm has none of included."""
    from .._readers.keras_files import load

    file = load(path)
    found = [one for one in file.model.walk() if one.weights]
    shapes = {f"{at}.{i}": tuple(w.shape) for at, one in _named(found) for i, w in enumerate(one.weights)}
    facts: dict[str, Any] = {"layers": ", ".join(f"{one.name} ({one.class_name or 'unknown'})" for one in found)}
    facts |= _converted(path)
    return Description(path, f"Keras {file.version or '(weights alone)'}", facts, parameters=shapes)


def _named(found: list[Any]) -> Iterable[tuple[str, Any]]:
    """(a name that no other has, layer)."""
    seen: dict[str, int] = {}
    for one in found:
        seen[one.name] = seen.get(one.name, 0) + 1
        yield one.name if seen[one.name] == 1 else f"{one.name}#{seen[one.name]}", one


def torch_file(path: str) -> Description:
    """A file of PyTorch, a safetensors file of another program included."""
    from .._readers.torch_files import flatten, load

    arrays = flatten(load(path))
    return Description(path, "PyTorch", _converted(path), parameters=shapes_of(arrays))


INDICES = (6, 7, 8, 9)  # ONNX's types int32, int64, string and bool: shapes and the like, no parameters


def onnx_file(path: str) -> Description:
    """An ONNX model: its inputs and outputs, its recurrent nodes, and the tensors of its main graph."""
    from ..onnx.graphs import recurrent_nodes
    from ..onnx.messages import read_model
    from ..onnx.tensors import shape_of
    from ..onnx.types import Argument

    model = read_model(path)
    graph = model.graph
    assert graph is not None  # checked by read_model
    try:
        found = recurrent_nodes(model)
        shapes = {tensor.name: shape_of(tensor) for tensor in graph.initializer}
    except files.FileError as error:
        raise files.FileError(f"{path} cannot be read: {error}") from error
    given = [value for value in graph.input if value.name not in shapes]
    indices = {tensor.name for tensor in graph.initializer if tensor.data_type in INDICES}
    shapes = {name: shape for name, shape in shapes.items() if name not in indices}
    facts: dict[str, Any] = {"inputs": ", ".join(str(Argument.of(value)) for value in given)}
    facts["outputs"] = ", ".join(str(Argument.of(value)) for value in graph.output)
    facts["recurrent nodes"] = {one.name: one.node.op_type for one in found}
    facts["nodes"] = len(graph.node)
    facts |= _converted(path) if len(found) == 1 else {}
    made = f" by {model.producer_name} {model.producer_version}".rstrip() if model.producer_name else ""
    return Description(path, f"ONNX, opset {model.opset},{made}".rstrip(","), facts, parameters=shapes)


def _converted(path: str) -> dict[str, Any]:
    """What fastlstm makes of the file, and what a step costs; or why it makes nothing of the whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            layer = convert.read(path)
        except (ValueError, TypeError, OSError) as error:
            return {"as one of fastlstm's": files.one_line(error)}
    return {"as one of fastlstm's": repr(layer), "FLOPs a step": convert.flops(layer)}


FOREIGN = {"keras": keras_file, "onnx": onnx_file, "torch": torch_file, "safetensors": torch_file}


def describe(path: str | os.PathLike[str]) -> Description:
    """What a file holds.

    Raises
    ------
    OSError
        It is missing or cannot be read.
    FileError
        It is damaged, or no file of a known kind.
    """
    name = os.fspath(path)
    if (library := convert.library_of(name)) in FOREIGN:
        return FOREIGN[library](name)
    arrays, config = files.load(name)
    return next(found for reader in READERS if (found := reader(name, arrays, config)) is not None)
