"""Modules and models of ours from Keras's layers, models and files: `from_keras`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import nn
from .._readers.keras_files import MODELS, KerasFile, KerasLayer, load
from .._readers.keras_layers import KINDS, kind_of, plain_weights
from ..nn.base import Module
from ..sequential import Sequential
from . import live
from .graph import chained
from .modules import Conversion

LISTED = 50  # layers in a message
DEFAULTS: dict[str, Any] = {  # Keras's own, of what a file of weights alone does not say
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "return_sequences": False,
    "go_backwards": False,
    "stateful": False,
    "zero_output_for_mask": False,
}


def from_keras(x: Any, name: str | None = None, *, backend: str = "auto", **options: Any) -> Any:
    """A module or model with the weights and options of Keras's.

    Parameters
    ----------
    x : layer, model or path
        A layer or model of Keras 2 or 3; or a ``.keras``, ``.weights.h5`` or ``.h5`` file, which is read without Keras
        (with h5py, ``pip install fastlstm[keras]``) and can run nothing.
    name : str, optional
        The layer that is wanted. Without it the whole model, where its layers follow one another; of a file of weights
        alone the one recurrent layer.
    backend : str
        "auto", or a name from `fastlstm.backends()`.
    **options
        Of a layer in a file of weights alone, which does not say them: ``activation``, ``recurrent_activation``,
        ``return_sequences``, ``go_backwards``, ``stateful``, ``merge_mode``. Without any of them Keras's defaults are
        taken, and a UserWarning says so.

    Returns
    -------
    nn.LSTM, nn.GRU, nn.SimpleRNN, nn.Bidirectional, another module, or Sequential
        In inference and training Keras's equations, batch-first. A stack of cells is a `Sequential` of one module each.
        float64 if any weight is float64, else float32, which holds float16 and bfloat16 exactly.

    Raises
    ------
    ValueError
        Something has no counterpart here (the message names layer and option); there is no such layer, or a name is
        needed (the message lists the layers); `FileError`, a ValueError, for files.
    TypeError
        x or an option is of another kind.
    ImportError
        The file needs h5py.
    OSError
        The file cannot be read.
    """
    unknown = [one for one in options if one not in (*DEFAULTS, "merge_mode")]
    if unknown:
        raise TypeError(f"from_keras has no option {unknown[0]!r}; options: {', '.join((*DEFAULTS, 'merge_mode'))}")
    file = _take(x)
    found = file.model if name is None else _named(file, name)
    if name is None and _is_model(found) and not (found.config and found.layers):
        found = _only(file, "the file holds weights alone" if not found.config else "the model has no layers")
    bare = not found.config
    if options and not bare:
        raise TypeError(
            f"{next(iter(options))} is given, and layer {found.name!r} says it itself: options are for files of "
            "weights alone"
        )
    if bare:
        _configure(found, options)
    dtype = "float64" if any(w.dtype == np.float64 for one in found.walk() for w in one.weights) else "float32"
    conversion = Conversion(file.version, dtype, backend)
    if not _is_model(found):
        return _single(conversion.modules(found))
    layers = chained(found)
    if layers is None:
        raise ValueError(
            f"the model {found.name!r} is no chain of layers, each of which takes the output of the one before alone: "
            f"give the name of a layer{_listed(found)}"
        )
    try:
        modules = conversion.chain(layers)
    except ValueError as error:
        raise ValueError(f"{error}. For one of the recurrent layers alone give its name{_listed(found)}") from error
    return _built(Sequential(modules), found)


def _take(x: Any) -> KerasFile:
    if isinstance(x, (str, os.PathLike)):
        return load(x)
    if not live.is_layer(x):
        raise TypeError(f"from_keras takes a layer or model of Keras, or the path of a file, got {type(x).__name__}")
    return live.read(x)


def _is_model(layer: KerasLayer) -> bool:
    return layer.class_name in MODELS or "input_layers" in layer.config


def _named(file: KerasFile, name: str) -> KerasLayer:
    try:
        return file.find(name)
    except KeyError as error:
        raise ValueError(str(error.args[0])) from None


def recurrent_layers(layer: KerasLayer) -> list[KerasLayer]:
    """The recurrent layers in a model, Bidirectional and RNN as wholes."""
    if layer.class_name in ("Bidirectional", "RNN"):
        return [layer]
    try:
        kind_of(layer)
    except ValueError:
        return [found for inner in layer.layers for found in recurrent_layers(inner)]
    return [layer]


def _only(file: KerasFile, why: str) -> KerasLayer:
    found = recurrent_layers(file.model)
    if not found:
        raise ValueError(f"{why}, none of them those of a recurrent layer")
    if len(found) > 1:
        raise ValueError(f"{why}, those of several recurrent layers: give name={_listed(file.model)}")
    return found[0]


def _listed(layer: KerasLayer) -> str:
    found = recurrent_layers(layer)
    more = f"\n  and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return (":" + "".join(f"\n  {describe(one)}" for one in found[:LISTED]) + more) if found else " (none is recurrent)"


def describe(layer: KerasLayer) -> str:
    """A layer's name, class and size, for a message."""
    inside = [one for one in layer.layers if one.weights or one.config]
    units = [one.config.get("units") or (one.weights[1].shape[0] if len(one.weights) > 1 else None) for one in inside]
    own = layer.config.get("units") or (layer.weights[1].shape[0] if len(layer.weights) > 1 else None)
    sizes = [str(n) for n in (units or [own]) if isinstance(n, int)]
    what = layer.class_name or "a recurrent layer"
    if layer.class_name == "Bidirectional" and inside:
        what, sizes = f"Bidirectional({inside[0].class_name})", sizes[:1]
    return f"{layer.name!r:.80}: {what}" + (f", {' and '.join(sizes)} units" if sizes else "")


def _configure(layer: KerasLayer, options: dict[str, Any]) -> None:
    """Give a layer of a file of weights alone the options that the file does not say."""
    if layer.class_name == "RNN" or not recurrent_layers(layer) or recurrent_layers(layer)[0] is not layer:
        raise ValueError(
            f"layer {layer.name!r} comes from a file of weights alone, which does not say how it is configured; "
            "options can be given for LSTM, GRU, SimpleRNN and Bidirectional. Save the whole model instead: "
            "model.save('model.keras')"
        )
    chosen = DEFAULTS | {name: value for name, value in options.items() if name != "merge_mode"}
    both = layer.class_name == "Bidirectional"
    if "merge_mode" in options and not both:
        raise TypeError(f"merge_mode is an option of Bidirectional; layer {layer.name!r} is none")
    for d, inner in enumerate(layer.layers if both else [layer]):
        inner.class_name = inner.class_name if inner.class_name in KINDS else _class_of(inner)
        _, recurrent, *bias = plain_weights(inner)
        own = {"units": recurrent.shape[0], "use_bias": bool(bias), "reset_after": not bias or bias[0].ndim == 2}
        inner.config = chosen | own | ({"go_backwards": True} if d else {})
    if both:
        layer.config = {"merge_mode": options.get("merge_mode", "concat")}
    if not options:
        said = ", ".join(f"{name}={value!r}" for name, value in (DEFAULTS | layer.config).items() if name in SHOWN)
        warnings.warn(
            f"layer {layer.name!r} comes from a file of weights alone, which does not say its options: Keras's "
            f"defaults are taken ({said}). Give those that are meant as arguments",
            UserWarning,
            stacklevel=3,  # the caller of from_keras
        )


SHOWN = ("activation", "recurrent_activation", "return_sequences", "merge_mode")


def _class_of(layer: KerasLayer) -> str:
    return {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}[kind_of(layer)]


def _single(modules: Sequence[Module]) -> Any:
    return modules[0] if len(modules) == 1 else Sequential(modules)


def _built(model: Sequential, layer: KerasLayer) -> Sequential:
    """The model, built where the file or its first module says for which samples."""
    first = layer.layers[0].config if layer.layers else {}
    shape = first.get("batch_shape") or first.get("batch_input_shape")
    sizes: Any = shape[1:] if isinstance(shape, (list, tuple)) else ()
    if not sizes or not all(n is None or (isinstance(n, int) and n > 0) for n in sizes):
        core: Any = model.modules[0]._core
        if isinstance(model.modules[0], nn.Embedding):
            sizes = (None,)
        elif hasattr(core, "input_size") and not isinstance(model.modules[0], nn.Dense):
            sizes = (None, core.input_size)
        else:
            return model
    model.build(tuple(sizes))
    return model
