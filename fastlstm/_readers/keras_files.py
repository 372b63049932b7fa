"""Files of Keras 2 and 3, read with h5py alone: the layers, what each is configured to be, and its weights.

`load` reads `.keras` (a zip archive of a configuration and of weights), `.weights.h5`, and the older `.h5`, whole
models and weights alone. Nothing of a file is executed: classes are names, and a Lambda layer's code stays unread text.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..files import FileError, one_line
from ..layout import Array
from .archive import Archive
from .hdf5 import Group, read
from .hdf5_process import MAX_TEXT
from .unpickle import DAMAGE

MAX_DEPTH = 32  # of layers inside layers
MAX_WEIGHTS = 1 << 34  # bytes of model.weights.h5 when unpacked

RECURRENT = ("LSTM", "GRU", "SimpleRNN")  # with a group of the cell, which holds the weights
MODELS = ("Sequential", "Functional", "Model")
ROLES = ("kernel", "recurrent_kernel", "bias")  # of a recurrent layer's or cell's weights, in their order

# Classes by the names that Keras 3 gives their groups in a file of weights alone.
GROUPS = {
    "lstm": "LSTM",
    "gru": "GRU",
    "simple_rnn": "SimpleRNN",
    "rnn": "RNN",
    "bidirectional": "Bidirectional",
    "time_distributed": "TimeDistributed",
    "sequential": "Sequential",
    "functional": "Functional",
    "stacked_rnn_cells": "StackedRNNCells",
    "lstm_cell": "LSTMCell",
    "gru_cell": "GRUCell",
    "simple_rnn_cell": "SimpleRNNCell",
    "dense": "Dense",
    "embedding": "Embedding",
}


@dataclass
class KerasLayer:
    """A layer, or a cell or model inside one.

    Attributes
    ----------
    name : str
        As in the model; in files of weights alone, as far as they tell, else the group's name.
    class_name : str
        Such as "LSTM"; in files of weights alone what the group's name says, or "".
    config : dict
        Its constructor's arguments; empty in files of weights alone.
    weights : list of arrays
        Its own, in Keras's order; the roles of a recurrent layer's are `ROLES`.
    layers : list of KerasLayer
        Inside a Bidirectional: forward, backward; an RNN: its cells; a TimeDistributed: one; a model: all.
    """

    name: str
    class_name: str
    config: dict[str, Any] = field(default_factory=dict)
    weights: list[Array] = field(default_factory=list)
    layers: list[KerasLayer] = field(default_factory=list)

    def walk(self) -> Iterator[KerasLayer]:
        """This layer and all inside it, outer ones first."""
        yield self
        for layer in self.layers:
            yield from layer.walk()

    @property
    def roles(self) -> dict[str, Array]:
        """A recurrent layer's or cell's own weights by role."""
        return dict(zip(ROLES, self.weights, strict=False))


@dataclass
class KerasFile:
    """What a Keras file holds.

    Attributes
    ----------
    version : str
        The version of Keras that has written it, or "" where the file does not say.
    model : KerasLayer
        The model, with its layers in their order (without a configuration: in the order of their names).
    """

    version: str
    model: KerasLayer

    def find(self, name: str) -> KerasLayer:
        """The layer of that name.

        Raises
        ------
        KeyError
            There is none, or several; the message lists the layers.
        """
        found = [layer for layer in self.model.walk() if layer.name == name]
        if len(found) == 1:
            return found[0]
        names = ", ".join(repr(layer.name) for layer in self.model.walk() if layer.weights or layer.layers)
        raise KeyError(f"there are {len(found)} layers named {name!r}; those with weights: {names:.2000}")


def load(path: str | os.PathLike[str]) -> KerasFile:
    """Read a Keras file.

    Parameters
    ----------
    path : path
        Its content, not its name, tells the format.

    Raises
    ------
    OSError
        The file is missing or cannot be read.
    ImportError
        h5py is not installed.
    FileError
        It is damaged, no Keras file, or holds what is not read; the message says what.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        size = file.seek(0, os.SEEK_END)
        try:
            if start.startswith(b"PK"):
                return _load_archive(Archive(file, size))
            return _of_hdf5(read(path))
        except FileError as error:
            raise FileError(f"{path} cannot be read: {error}") from error.__cause__
        except DAMAGE as error:
            raise FileError(f"{path} cannot be read: it is damaged ({one_line(error)})") from error


def _load_archive(archive: Archive) -> KerasFile:
    """A `.keras` file: metadata.json, config.json and model.weights.h5."""
    for name in ("config.json", "model.weights.h5"):
        if name not in archive.names:
            raise FileError(f"it is a zip archive, but not one of Keras: it has no {name}")
    model = _layer_of(_json(archive.read("config.json", MAX_TEXT, True).tobytes()))
    version: Any = ""
    if "metadata.json" in archive.names:
        version = _json(archive.read("metadata.json", MAX_TEXT, True).tobytes()).get("keras_version")
    with tempfile.TemporaryDirectory() as folder:
        weights = os.path.join(folder, "model.weights.h5")
        with open(weights, "wb") as file:
            file.write(archive.read("model.weights.h5", MAX_WEIGHTS).data)
        _fill(model, read(weights))
    return KerasFile(version if isinstance(version, str) else "", model)


def _of_hdf5(root: Group) -> KerasFile:
    """A whole model or weights alone, of Keras 2's form or Keras 3's."""
    text = root.text("model_config")
    weights = root if text is None else root.group("model_weights")
    if weights is None:
        raise FileError("it has a model's configuration, but no group model_weights")
    if weights.texts("layer_names") is None:
        if root.group("layers") is None and root.group("_layer_checkpoint_dependencies") is None:
            raise FileError("it is an HDF5 file, but not one of Keras: it has neither layer_names nor a group layers")
        return KerasFile("", _layer_in(root, "model", 0))
    version = weights.text("keras_version") or root.text("keras_version") or "1"
    if version.startswith("1"):
        raise FileError("it is a file of Keras 1, which is not read; load and save it with Keras 2")
    return KerasFile(version, _legacy_model(weights, None if text is None else _json(text)))


def _json(text: str | bytes) -> dict[str, Any]:
    if len(text) > MAX_TEXT:
        raise FileError(f"its configuration has more than {MAX_TEXT} bytes")
    value = json.loads(text)
    if not isinstance(value, dict):
        raise FileError("its configuration is no JSON object")
    return value


# ---------------------------------------------------------------------------------------------------- configurations
def _layer_of(config: Any, depth: int = 0) -> KerasLayer:
    """A layer, and those inside it, of its configuration; still without weights."""
    if depth > MAX_DEPTH:
        raise FileError(f"its layers are nested more than {MAX_DEPTH} deep")
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise FileError("its configuration has a layer without a class")
    class_name = config["class_name"].rpartition(">")[2]  # of a class registered as "package>Class"
    inside = config.get("config")
    if class_name == "Sequential" and isinstance(inside, list):  # before Keras 2.2.3
        inside = {"name": "sequential", "layers": inside}
    if not isinstance(inside, dict):
        raise FileError(f"its configuration of a layer {class_name!r:.80} has no arguments")
    name = inside.get("name", config.get("name", ""))
    if not isinstance(name, str):
        raise FileError(f"its configuration of a layer {class_name!r:.80} has a name that is no text")
    layer = KerasLayer(name, class_name, inside)
    layer.layers = [_layer_of(one, depth + 1) for one in _inside(class_name, inside)]
    if class_name == "Bidirectional" and len(layer.layers) == 1:
        layer.layers.append(_backward(layer.layers[0]))
    return layer


def _inside(class_name: str, config: dict[str, Any]) -> list[Any]:
    """The configurations of the layers inside a layer."""
    if class_name in MODELS or ("layers" in config and "input_layers" in config):
        found = config.get("layers", [])
    elif class_name == "RNN":
        cell = config.get("cell")
        stacked = isinstance(cell, dict) and cell.get("class_name") == "StackedRNNCells"
        found = cell.get("config", {}).get("cells", []) if isinstance(cell, dict) and stacked else [cell]
    elif class_name == "Bidirectional":
        found = [config.get("layer"), *([config["backward_layer"]] if config.get("backward_layer") else [])]
    elif class_name == "TimeDistributed":
        found = [config.get("layer")]
    else:
        found = []
    if not isinstance(found, list):
        raise FileError(f"its configuration of a layer {class_name!r:.80} has no list of layers")
    return found


def _backward(forward: KerasLayer) -> KerasLayer:
    """The backward layer that Bidirectional makes of its forward layer where the file names none."""
    config = {**forward.config, "go_backwards": not forward.config.get("go_backwards", False)}
    if forward.layers:
        raise FileError(f"its Bidirectional layer around {forward.name!r:.80} is of stacked cells, which is not read")
    return KerasLayer(f"backward_{forward.name.removeprefix('forward_')}", forward.class_name, config)


# ----------------------------------------------------------------------------- weights as Keras 3 (and 2.13) save them
def snake_case(name: str) -> str:
    """A class's name as Keras turns it into a group's."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _own_weights(group: Group) -> list[Array]:
    """The arrays of the group `vars` in a layer's group, in their order."""
    values = group.group("vars")
    if values is None:
        return []
    numbered = [name for name in (*values.arrays, *values.unread) if name.isascii() and name.isdigit()]
    return [values.array(name) for name in sorted(numbered, key=lambda one: (len(one), one))]


def _fill(layer: KerasLayer, group: Group | None) -> None:
    """Give a layer, and those inside it, the weights of its group; a missing group leaves it without."""
    if group is None:
        return
    own = group.group("cell") if layer.class_name in RECURRENT else group
    layer.weights = [] if own is None else _own_weights(own)
    for inner, path in zip(layer.layers, _paths(layer, group), strict=True):
        _fill(inner, group.group(path))


def _paths(layer: KerasLayer, group: Group) -> list[str]:
    """Where in a layer's group those of the layers inside it are."""
    if layer.class_name == "Bidirectional":
        return ["forward_layer", "backward_layer"]
    if layer.class_name == "TimeDistributed":
        return ["layer"]
    if layer.class_name == "RNN":
        if "cells" not in _cell_config(layer):
            return ["cell"]
        return [f"cell/cells/{name}" for name in _numbered(layer.layers)]
    room = "layers" if "layers" in group.groups else "_layer_checkpoint_dependencies"
    return [f"{room}/{name}" for name in _numbered(layer.layers)]


def _cell_config(layer: KerasLayer) -> dict[str, Any]:
    cell = layer.config.get("cell")
    config = cell.get("config") if isinstance(cell, dict) else None
    return config if isinstance(config, dict) else {}


def _numbered(layers: list[KerasLayer]) -> list[str]:
    """The groups' names of layers: their classes, with a number from the second of a class on."""
    used: dict[str, int] = {}
    names = []
    for layer in layers:
        name = snake_case(layer.class_name)
        used[name] = used.get(name, -1) + 1
        names.append(f"{name}_{used[name]}" if used[name] else name)
    return names


def _layer_in(group: Group, name: str, depth: int) -> KerasLayer:
    """A layer, and those inside it, of a file of weights alone."""
    if depth > MAX_DEPTH:
        raise FileError(f"its groups are nested more than {MAX_DEPTH} deep")
    values = group.group("vars")
    class_name = GROUPS.get(re.sub(r"_\d+$", "", name), "") if depth else "Model"
    own = None if values is None else values.text("name")
    layer = KerasLayer(own or name, class_name, {}, _own_weights(group))
    for inner, found in group.groups.items():
        if inner == "vars":
            continue
        if inner == "cell" and "cells" not in found.groups:  # the weights of a recurrent layer are its cell's
            layer.weights += _own_weights(found)
        elif inner in ("layers", "_layer_checkpoint_dependencies", "cell", "cells"):
            layer.layers += _layer_in(found, inner, depth + 1).layers
        else:
            layer.layers.append(_layer_in(found, inner, depth + 1))
    if class_name == "Bidirectional":  # the names come in alphabetical order
        layer.layers.sort(key=lambda one: "backward" in one.name)
    return layer


# ---------------------------------------------------------------------------------------- weights as Keras 2 saves them
Named = tuple[str, Array]


def _legacy_model(weights: Group, config: dict[str, Any] | None) -> KerasLayer:
    """A model whose weights are listed by layer (attributes layer_names and weight_names)."""
    found: dict[str, list[Named]] = {}
    for name in weights.texts("layer_names") or []:
        group = weights.group(name)
        if group is None:
            raise FileError(f"it names a layer {name!r:.80} and has no group of it")
        found[name] = [(path, group.array(path)) for path in group.texts("weight_names") or []]
    if config is None:
        layers = [_bare_layer(name, pairs) for name, pairs in found.items()]
        return KerasLayer("model", "Model", {}, [], layers)
    model = _layer_of(config)
    for layer in model.layers:
        if layer.name in found:
            _share_out(layer, found[layer.name])
    return model


def _bare_layer(name: str, pairs: list[Named]) -> KerasLayer:
    """A layer of which the file says its name and weights alone."""
    class_name = GROUPS.get(re.sub(r"_\d+$", "", name), "")
    layer = KerasLayer(name, class_name, {}, [array for _, array in pairs])
    if class_name == "Bidirectional" and len(pairs) % 2 == 0:
        half = len(pairs) // 2
        layer.weights = []
        for way, part in (("forward", pairs[:half]), ("backward", pairs[half:])):
            layer.layers.append(KerasLayer(f"{way}_layer", "", {}, [array for _, array in part]))
    return layer


def _share_out(layer: KerasLayer, pairs: list[Named]) -> None:
    """Give a layer and those inside it the weights that are listed for it."""
    if not layer.layers:
        layer.weights = [array for _, array in pairs]
    elif layer.class_name == "Bidirectional":
        if len(pairs) % 2:
            raise FileError(f"its Bidirectional layer {layer.name!r:.80} has an odd number of weights")
        half = len(pairs) // 2
        _share_out(layer.layers[0], pairs[:half])
        _share_out(layer.layers[1], pairs[half:])
    elif layer.class_name == "TimeDistributed":
        _share_out(layer.layers[0], pairs)
    elif layer.class_name == "RNN":
        _share_out_in_turn(layer, pairs)
    else:
        _share_out_by_name(layer, pairs)


def _share_out_in_turn(layer: KerasLayer, pairs: list[Named]) -> None:
    """The weights of stacked cells follow one another."""
    at = 0
    for cell in layer.layers:
        count = len(ROLES) - (cell.config.get("use_bias") is False)
        _share_out(cell, pairs[at : at + count])
        at += count
    if at != len(pairs):
        raise FileError(f"its layer {layer.name!r:.80} has {len(pairs)} weights where its cells take {at}")


def _share_out_by_name(layer: KerasLayer, pairs: list[Named]) -> None:
    """A model inside a model lists frozen weights last: the layer is named in a weight's path."""
    shares: dict[str, list[Named]] = {inner.name: [] for inner in layer.layers}
    for path, array in pairs:
        owner = next((part for part in path.split("/") if part in shares), None)
        if owner is None:
            raise FileError(f"its model {layer.name!r:.80} has a weight {path!r:.80}, which names none of its layers")
        shares[owner].append((path, array))
    for inner in layer.layers:
        _share_out(inner, shares[inner.name])
