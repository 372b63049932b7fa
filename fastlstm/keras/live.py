"""Live Keras objects in the form in which the readers give a file's layers."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .._readers.keras_files import MODELS, RECURRENT, ROLES, KerasFile, KerasLayer
from ..layout import Array


def is_layer(x: Any) -> bool:
    """Whether this is a layer or a model of Keras, of whatever version."""
    return callable(getattr(x, "get_config", None)) and callable(getattr(x, "get_weights", None))


def read(x: Any) -> KerasFile:
    """A live layer or model with its configuration and copies of its weights."""
    return KerasFile(version_of(x), _layer(x))


def version_of(x: Any) -> str:
    """The version of the Keras that an object's class, or a class it is made of, comes from."""
    for cls in type(x).__mro__:
        root = cls.__module__.partition(".")[0]
        if root in ("tf_keras", "tensorflow"):
            return "2"
        if root == "keras":
            return str(getattr(sys.modules["keras"], "__version__", "3"))
    return ""


def numbers(variable: Any) -> Array:
    """A copy of the values of a variable; bfloat16 becomes float32."""
    value = getattr(variable, "value", variable)
    if hasattr(value, "detach"):  # torch's; NumPy has no bfloat16 of its own
        value = value.detach().cpu()
        return np.array(value.float() if "bfloat16" in str(value.dtype) else value)
    array = np.array(variable.numpy() if hasattr(variable, "numpy") else variable)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _layer(x: Any) -> KerasLayer:
    class_name = type(x).__name__
    inside: list[Any] = []
    if class_name == "Bidirectional":
        inside = [x.forward_layer, x.backward_layer]
    elif class_name == "TimeDistributed":
        inside = [x.layer]
    elif class_name == "RNN":
        inside = list(getattr(x.cell, "cells", [x.cell]))
    elif class_name in MODELS:
        inside = list(x.layers)
    layer = KerasLayer(str(x.name), class_name, _config(x), [], [_layer(one) for one in inside])
    if not inside:
        layer.weights = _weights(x)
    return layer


def _config(x: Any) -> dict[str, Any]:
    """An object's configuration; {} of a model that has none, such as a class of the user's own."""
    try:
        config = x.get_config()
    except NotImplementedError:
        return {}
    return config if isinstance(config, dict) else {}


def _weights(x: Any) -> list[Array]:
    """The weights of a layer without inner layers; for a recurrent layer or a cell, those named in `ROLES`."""
    of = x.cell if type(x).__name__ in RECURRENT and hasattr(x, "cell") else x
    if all(hasattr(of, name) for name in ROLES[:2]):
        found = [getattr(of, name) for name in ROLES if getattr(of, name, None) is not None]
        return [numbers(one) for one in found]
    return [numbers(one) for one in x.get_weights()]
