"""What a layer's configuration says, checked: `Options`."""

from __future__ import annotations

import warnings
from typing import Any

from .. import nn
from .._readers.keras_files import KerasLayer
from .._readers.keras_layers import activation, major_of
from ..layout import Array
from ..nn.base import Module

PENALTIES = {"L1": "l1", "L2": "l2", "L1L2": "l1l2", "l1": "l1", "l2": "l2", "l1_l2": "l1l2"}

# Options that act in training alone and have no counterpart: the module is made, and a warning names them.
TRAINING_ONLY = (
    *("activity_regularizer", "kernel_constraint", "recurrent_constraint", "bias_constraint"),
    *("embeddings_constraint",),
)


class Options:
    """What reads the options of layers in our terms.

    Parameters
    ----------
    version : str
        Of the Keras that the layers come from.
    dtype : {"float32", "float64"}
    backend : str
    """

    def __init__(self, version: str, dtype: str, backend: str) -> None:
        self.version, self.major = version, major_of(version)
        self.options: dict[str, Any] = {"dtype": dtype, "backend": backend}

    def _common(self, layer: KerasLayer) -> dict[str, Any]:
        return self.options | {"trainable": self._of(layer, "trainable", True, bool)}

    def _of(self, layer: KerasLayer, option: str, default: Any, kind: Any) -> Any:
        value = layer.config.get(option, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"layer {layer.name!r} has {option}={value!r:.80}")
        return value

    def _only(self, layer: KerasLayer, option: str, value: Any) -> None:
        given = layer.config.get(option, value)
        if given != value:
            raise ValueError(
                f"layer {layer.name!r} has {option}={given!r:.80}, which has no counterpart here; {value!r} has"
            )

    def _check_units(self, layer: KerasLayer, option: str, size: int) -> None:
        if layer.config.get(option, size) != size:
            raise ValueError(f"layer {layer.name!r} has {option}={layer.config[option]!r:.80} and weights of {size}")

    def _activation(self, layer: KerasLayer, given: Any) -> Any:
        plain = given.get("config") if isinstance(given, dict) and given.get("class_name") == "function" else given
        if plain == "softmax":
            return "softmax"
        found = activation(given, self.major, layer.name)
        return "linear" if found == "identity" else found

    def _penalty(self, layer: KerasLayer, option: str) -> nn.L1L2 | None:
        given = layer.config.get(option)
        if given is None:
            return None
        kind = PENALTIES.get(given.get("class_name", "")) if isinstance(given, dict) else None
        config = given.get("config") if isinstance(given, dict) else None
        if kind is None or not isinstance(config, dict) or not set(config) <= {"l1", "l2"}:
            self._say(layer, option, given)
            return None
        try:
            return nn.L1L2(**config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"layer {layer.name!r} has {option}={given!r:.80}: {error}") from error

    def _shaped(self, layer: KerasLayer, ndim: int, count: int) -> list[Array]:
        """The checked weights of a layer: a kernel, and vectors as long as the kernel is wide."""
        weights = layer.weights
        fits = len(weights) == count and weights[0].ndim == ndim and min(weights[0].shape) > 0
        if not fits or any(w.shape != weights[0].shape[1:] for w in weights[1:]):
            raise ValueError(
                f"layer {layer.name!r} has weights of shapes {[w.shape for w in weights]}, which are those of no "
                f"{layer.class_name} with its options" + ("" if weights else ": build it, or call it once")
            )
        return weights

    def _fill(self, module: Module, layer: KerasLayer, parameters: dict[str, Array]) -> None:
        try:
            module.load_state_dict(parameters)
        except RuntimeError as error:
            raise ValueError(f"layer {layer.name!r}: {error}") from error

    def _warn(self, layer: KerasLayer) -> None:
        for option in TRAINING_ONLY:
            if layer.config.get(option) is not None:
                self._say(layer, option, layer.config[option])

    @staticmethod
    def _say(layer: KerasLayer, option: str, given: Any) -> None:
        what = given.get("class_name", given) if isinstance(given, dict) else given
        warnings.warn(
            f"layer {layer.name!r:.80} has {option}={what!r:.80}, which is left out: it acts in training alone, and "
            "the outputs are the same",
            UserWarning,
            stacklevel=2,
        )
