"""Whether the layers of a model follow one another, as its configuration says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .._readers.keras_files import KerasLayer

MAX_DEPTH = 20  # of lists and dictionaries in a layer's inputs


def chained(model: KerasLayer) -> list[KerasLayer] | None:
    """A model's layers in their order; None where one has several inputs, outputs or calls.

    Models inside the model are opened.
    """
    if model.class_name == "Sequential":
        own: list[KerasLayer] | None = model.layers
    else:
        own = _functional(model)
    found: list[KerasLayer] = []
    for layer in own or ():
        inner = chained(layer) if layer.layers and _is_model(layer) else [layer]
        if inner is None:
            return None
        found += inner
    return None if own is None else found


def _is_model(layer: KerasLayer) -> bool:
    return layer.class_name in ("Sequential", "Functional", "Model") or "input_layers" in layer.config


def _functional(model: KerasLayer) -> list[KerasLayer] | None:
    after: dict[str | None, str] = {}
    given = model.config.get("layers")
    if not isinstance(given, list) or len(given) != len(model.layers):
        return None
    for config in given:
        before = _input(config.get("inbound_nodes") if isinstance(config, dict) else None)
        name = config.get("name", config.get("config", {}).get("name")) if isinstance(config, dict) else None
        if before is _SEVERAL or before in after or not isinstance(name, str):
            return None
        after[before] = name
    by_name = {layer.name: layer for layer in model.layers}
    found: list[KerasLayer] = []
    at = after.get(None)
    while at is not None and len(found) < len(by_name):
        found.append(by_name[at])
        at = after.get(at)
    ends = [part for part in _names(model.config.get("output_layers")) if part in by_name]
    if at is not None or len(found) != len(model.layers) or ends != [found[-1].name]:
        return None
    return found


_SEVERAL: Any = object()


def _input(nodes: Any) -> Any:
    """The name of the layer whose output a layer takes; None without one, `_SEVERAL` where it is not that simple."""
    if not nodes:
        return None
    if not isinstance(nodes, list) or len(nodes) != 1:
        return _SEVERAL
    node = nodes[0]
    if isinstance(node, dict):  # Keras 3: {"args": ..., "kwargs": ...}
        found = list(_histories(node, 0))
        return found[0][0] if len(found) == 1 and found[0][1:] == [0, 0] else _SEVERAL
    if not isinstance(node, list) or len(node) != 1 or not isinstance(node[0], list) or len(node[0]) < 3:
        return _SEVERAL
    name, index, tensor, *rest = node[0]  # Keras 2: [[name, node index, tensor index, arguments]]
    plain = all(isinstance(one, dict) and not any(isinstance(v, list) for v in one.values()) for one in rest)
    return name if isinstance(name, str) and index == tensor == 0 and plain else _SEVERAL


def _histories(value: Any, depth: int) -> Iterator[list[Any]]:
    """The [layer, node, tensor] of every tensor among a call's arguments."""
    if depth > MAX_DEPTH:
        yield ["", -1, -1]
    elif isinstance(value, dict):
        history = value.get("keras_history")
        if isinstance(history, (list, tuple)) and len(history) == 3 and isinstance(history[0], str):
            yield list(history)
        else:
            for one in value.values():
                yield from _histories(one, depth + 1)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _histories(one, depth + 1)


def _names(value: Any) -> list[str]:
    """The texts in a list of lists, at most three deep."""
    found, level = [], [value]
    for _ in range(4):
        found += [one for one in level if isinstance(one, str)]
        level = [inner for one in level if isinstance(one, (list, tuple)) for inner in one]
    return found
