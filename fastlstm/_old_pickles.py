"""Layers pickled by version 0.1.0: made anew from their arguments, with the parameters that they had."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .layer import Layer


def is_old(state: Mapping[str, Any]) -> bool:
    """Whether this state of a pickled layer was written by version 0.1.0."""
    return "_children" not in state


def restore(layer: Layer, state: Mapping[str, Any]) -> None:
    """Make a layer, empty so far, from the state that version 0.1.0 wrote.

    Raises
    ------
    RuntimeError
        The parameters do not fit the arguments.
    """
    inner = state.get("_layer")  # of a cell: the layer in it, restored by now
    arguments = _arguments(state if inner is None else vars(inner), inspect.signature(type(layer)).parameters)
    constructor: Any = type(layer).__init__
    constructor(layer, **arguments)
    params = {name.removesuffix("_l0") if inner is not None else name: p for name, p in state["_params"].items()}
    layer.load_state_dict(params)
    layer._version, layer.training = state["_version"] if inner is None else inner.version, state["training"]
    rng = state.get("_rng") if inner is None else inner._rng
    if rng is not None:
        vars(layer)["_rng"] = rng


def _arguments(state: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments of these names."""
    arguments = {name: state[name] for name in names if name in state}
    arguments |= {"dtype": state["dtype"].name, "backend": state["_backend"]}
    spec = vars(state["_specs"][0]) if "_specs" in state and not isinstance(state["_specs"][0], list) else {}
    arguments |= {name: spec[name] for name in ("peepholes", "reset_after", "activations") if name in names and spec}
    if "nonlinearity" in names and spec:
        arguments["nonlinearity"] = spec["activations"][0]
    return arguments
