"""Layers and models in files: `Layer.save` and `fastlstm.load`."""

from __future__ import annotations

import importlib
import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import files
from .dense import Dense
from .layer import Layer
from .layout import Array
from .spec_layer import SpecLayer
from .step_files import steps_entry

FORMAT = "fastlstm layer"  # in the configuration of a file
VERSION = 2  # of the format; a file of a higher one says so when it is read
OF_FLOATS = 1  # the version of files without a reduced storage, which earlier releases read
NOT_ARGUMENTS = ("class", "built for", "quantised")  # entries of a layer's configuration

# The classes that a file may name, and their modules: nothing else is ever imported or called.
CLASSES = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "recurrent"),
    **dict.fromkeys(("LSTMCell", "GRUCell", "RNNCell"), "cell"),
    "Dense": "dense",
    "Sequential": "sequential",
    "Forecaster": "forecast",
    **{
        f"nn.{name}": "nn"
        for name in (
            *("Embedding", "Dense", "Dropout", "LSTM", "GRU", "SimpleRNN", "Bidirectional", "Residual"),
            *("Activation", "Masking"),
        )
    },
}


def class_name(layer: Layer) -> str:
    """The name by which a file knows a layer's class.

    Raises
    ------
    TypeError
        The class is none of this package.
    """
    kind = type(layer)
    for name, home in CLASSES.items():
        if name.rpartition(".")[2] == kind.__name__ and kind.__module__.startswith(f"{__package__}.{home}"):
            return name
    raise TypeError(
        f"a {kind.__name__} cannot be saved: files hold {', '.join(CLASSES)}. Its parameters are in state_dict()"
    )


def config_of(layer: Layer) -> dict[str, Any]:
    """What makes such a layer again, as JSON can hold it; layers among the arguments included."""
    config: dict[str, Any] = {"class": class_name(layer)}
    for name, value, _ in layer._arguments():
        if isinstance(value, Layer):
            value = config_of(value)
        elif isinstance(value, list):
            value = [config_of(one) if isinstance(one, Layer) else one for one in value]
        config[name] = value
    if hasattr(layer, "_shape"):
        config["built for"] = layer._shape
    if isinstance(core := getattr(layer, "_core", layer), SpecLayer | Dense) and core._quantisation is not None:
        config["quantised"] = core._quantisation.to_config()
    return config


def from_config(config: Any, backend: str = "auto") -> Layer:
    """A layer from what `config_of` gave.

    Raises
    ------
    ValueError, TypeError, KeyError
        It names no class of `CLASSES`, or has arguments that do not fit.
    """
    if not isinstance(config, Mapping) or config.get("class") not in CLASSES:
        raise ValueError(f"it names the class {dict(config).get('class') if isinstance(config, Mapping) else config!r}")
    arguments = {name: _argument(value, backend) for name, value in config.items() if name not in NOT_ARGUMENTS}
    name = config["class"]
    cls = getattr(importlib.import_module(f".{CLASSES[name]}", __package__), name.rpartition(".")[2])
    if name not in ("Sequential", "nn.Bidirectional", "nn.Residual"):
        arguments["backend"] = backend
    layer: Layer = cls(**arguments)
    shape = config.get("built for")
    if shape is not None:
        layer.build(tuple(shape))  # type: ignore[attr-defined]
    if config.get("quantised") is not None:
        layer._keep(config["quantised"])
    return layer


def _argument(value: Any, backend: str) -> Any:
    if isinstance(value, Mapping) and "class" in value:
        return from_config(value, backend)
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return [from_config(one, backend) for one in value]
    return tuple(_argument(one, backend) for one in value) if isinstance(value, list) else value


def save(layer: Layer, path: str | os.PathLike[str], notes: Mapping[str, Any] | None = None) -> None:
    """Write a layer or a model to one safetensors file, atomically. See `Layer.save`.

    `notes` are kept beside the layer, as JSON can hold them; `notes_of` returns them.
    """
    if getattr(layer, "_shape", ()) is None:
        raise ValueError(f"{layer!r} has no parameters to save yet: call it on an input, build it or fit it first")
    version = OF_FLOATS if layer._quantised is None else VERSION
    config = {"format": FORMAT, "version": version, "layer": config_of(layer)}
    config |= {"notes": dict(notes)} if notes else {}
    arrays = {name: np.asarray(p) for name, p in layer.state_dict().items()}
    config["steps"] = steps_entry(layer, arrays)
    files.save(path, arrays, config | {"crc32": checksum(config, arrays)})


def checksum(config: Mapping[str, Any], arrays: Mapping[str, Array]) -> int:
    """The CRC-32 of a file's configuration and arrays, by which a changed byte is noticed."""
    found = zlib.crc32(json.dumps(config, ensure_ascii=False, sort_keys=True).encode())
    for name in sorted(arrays):
        a = arrays[name]
        found = zlib.crc32(f"{name} {a.dtype.str.lstrip('<>=')} {a.shape}".encode(), found)
        found = zlib.crc32(np.ascontiguousarray(a, a.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data, found)
    return found


def notes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The notes in a file's configuration; empty where there are none."""
    notes = config.get("notes")
    return dict(notes) if isinstance(notes, Mapping) else {}


def load(path: str | os.PathLike[str], backend: str = "auto") -> Any:
    """Read what ``layer.save(path)`` wrote: a layer, a cell, a dense layer or a model.

    Parameters
    ----------
    path : path
    backend : str
        "auto", or a name from `fastlstm.backends()`.

    Returns
    -------
    layer : Layer
        With the same bits in its parameters. What a model's `compile` was given is not in the file.

    Raises
    ------
    OSError
        The file is missing or cannot be read.
    FileError
        It is damaged, cut short, altered, written by a newer version, or no file of this kind. Nothing in a file is
        ever run.
    """
    arrays, config = files.load(path)
    if config.get("format") != FORMAT:
        raise files.FileError(
            f"{path} holds no layer that was saved by save(): a text model is read by fastlstm.text.TextModel.load, "
            "PyTorch's files by fastlstm.from_torch"
        )
    version = config.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise files.FileError(
            f"{path} has format version {version!r}, and this fastlstm reads up to {VERSION}: install a newer one"
        )
    _check_size(path, config.get("layer"), arrays)
    try:
        layer = from_config(config.get("layer"), backend)
        layer.load_state_dict(arrays)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        RecursionError,
        OverflowError,
        MemoryError,
    ) as error:
        raise files.FileError(f"{path} does not fit: {files.one_line(error)}") from error
    rest = {name: value for name, value in config.items() if name != "crc32"}
    early = set(config) == {"format", "version", "layer"}  # files of before the checksum
    if not early and config.get("crc32") != checksum(rest, arrays):
        raise files.FileError(f"{path} was changed or damaged after it was written: its checksum does not agree")
    return layer


def _check_size(path: Any, config: Any, arrays: Mapping[str, Array]) -> None:
    """Raise FileError where a configuration asks for layers larger than the file's arrays, before memory is taken."""
    largest = max((n for a in arrays.values() for n in a.shape), default=0)
    numbers = [(name, value) for name, value in _numbers(config) if name in SIZES]
    numbers += [("built for", width) for width in _widths(config)] if numbers else []
    for name, value in numbers:
        if value > max(largest, 1):
            raise files.FileError(f"{path} does not fit: it says {name} {value}, its largest array has {largest}")


SIZES = ("input_size", "hidden_size", "units", "num_layers", "proj_size", "input_dim", "output_dim", "horizon")


def _numbers(config: Any, depth: int = 0) -> list[tuple[str, int]]:
    """(name, value) of all integers in a configuration, at most some levels deep."""
    if depth > 20:
        return []
    if isinstance(config, Mapping):
        own = [(name, v) for name, v in config.items() if isinstance(v, int) and not isinstance(v, bool)]
        lists = [(name, v) for name, given in config.items() if isinstance(given, list) for v in given]
        own += [(name, v) for name, v in lists if isinstance(v, int) and not isinstance(v, bool)]
        return own + [pair for v in config.values() for pair in _numbers(v, depth + 1)]
    return [pair for v in config for pair in _numbers(v, depth + 1)] if isinstance(config, list) else []


def _widths(config: Any, depth: int = 0) -> list[int]:
    """The widths of the samples that the layers of a configuration were built for, at most some levels deep."""
    if depth > 20 or not isinstance(config, (Mapping, list)):
        return []
    found: list[int] = []
    if isinstance(config, Mapping):
        shape = config.get("built for")
        if isinstance(shape, list):
            whole = [n for n in shape if isinstance(n, int)]
            # A sample of one axis is ids, whose number is no width, unless a Dense takes it.
            found = whole[-1:] if len(shape) > 1 or config.get("class") == "nn.Dense" else []
    inner = config.values() if isinstance(config, Mapping) else config
    return found + [width for one in inner for width in _widths(one, depth + 1)]
