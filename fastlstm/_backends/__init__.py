"""The table of backends, the choice of one for a layer, and the errors where none can compute it.

A backend is a stateless module with four functions, the same in name, signature and values as those of
`fastlstm._backends.numpy`, whose docstrings are the contract:

    pack(spec, params, storage, reverse, x_form)             a block: one direction of one layer, in the backend's form
    forward(blocks, x, rows, states, y, tapes, at, row_map)  the directions of one layer over packed rows
    backward(block, x, rows, states, tape, dy, dx, grads)    one direction, one stretch of time
    bind(blocks, x, states) -> step()                        one step of all layers, everything bound

It also has ``DTYPES``, ``STORAGES``, ``unusable()`` (None, or why it cannot be used here, with the cure) and
``supports(spec, storage, dtype)`` (None, or why it cannot compute such a direction of a layer, with the cure).
It may have the functions of the groups in `EXTRAS`; its own ``EXTRAS`` lists the groups that it has.
A backend's module is imported when it is first needed: importing fastlstm loads none of them.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..spec import Spec

NAMES = ("c", "numba", "numpy")  # best first

# The functions that a backend may have besides the four, with their parameters. A backend has a whole group or none of
# it. The reference is `_backends.numpy` or, for "optimisers", the loops of the package `optim` and, for "rows",
# `streams.gathered`.
EXTRAS: dict[str, dict[str, str]] = {
    "dense": {
        "dense_pack": "params",
        "dense_forward": "block, x",
        "dense_backward": "block, x, dy, grads",
        "dense_cross_entropy": "block, x, targets, factor, grads",
    },
    "embedding": {"add_rows": "table, ids, rows"},
    "rows": {
        "pack_rows": "stages",
        "bind_rows": "model, slabs, threads",
        "bind_records": "model, x, records, y, threads",
    },
    "optimisers": {
        "update": "rule, numbers, arrays",
        "update_columns": "p, ids, rows, lr",
        "square_sum": "arrays",
        "scale": "arrays, factor",
    },
}


class BackendError(RuntimeError):
    """A backend or instruction set that was asked for cannot be used."""


def module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def provides(backend: ModuleType, group: str) -> bool:
    """Whether a backend has a group of `EXTRAS`."""
    return group in backend.EXTRAS


def backends() -> dict[str, str | None]:
    """Every backend by name, best first: None where it is usable, else why it is not and what to do."""
    return {name: module(name).unusable() for name in NAMES}


def _problem(backend: ModuleType, dtype: str, specs: Sequence[Spec], storages: Sequence[str]) -> str | None:
    """Why a backend does not serve such a layer, as a sentence with the cure; None where it does."""
    name = backend.__name__.rpartition(".")[2]
    if dtype not in backend.DTYPES:
        return (
            f"backend {name!r} has no {dtype} (only {', '.join(backend.DTYPES)}). "
            f"Use dtype='{backend.DTYPES[0]}', or backend='auto', which finds one that has it."
        )
    reasons = (backend.supports(spec, storage, dtype) for storage in dict.fromkeys(storages) for spec in specs)
    return next((f"backend {name!r} {why}." for why in reasons if why is not None), None)


def choose(name: str, dtype: str, specs: Sequence[Spec] = (), storage: str | Sequence[str] | None = None) -> ModuleType:
    """The module that serves a layer.

    Parameters
    ----------
    name : str
        "auto" takes the best usable backend that has the dtype and supports every spec (or what FASTLSTM_BACKEND
        names); any other name is forced and never falls back.
    dtype : str
    specs : sequence of Spec
        The different specs of the layer's directions; empty for a layer that is not recurrent.
    storage : str or sequence of str, optional
        A name of `fastlstm.storage`, or those of the layers; None: the dtype.

    Raises
    ------
    ValueError
        Unknown name or dtype.
    BackendError
        The forced backend cannot be used, does not have the dtype, or does not support a spec or the storage.
    """
    storages = (storage or dtype,) if isinstance(storage, (str, type(None))) else tuple(storage)
    if dtype not in module("numpy").DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported; expected one of {', '.join(module('numpy').DTYPES)}")
    if name == "auto":
        name = os.environ.get("FASTLSTM_BACKEND", "auto") or "auto"
    if name == "auto":
        forced_isa = module("c").forced_isa_problem()
        if forced_isa is not None:
            raise BackendError(forced_isa)
        problems = []
        for each in map(module, NAMES):
            why = each.unusable() or _problem(each, dtype, specs, storages)
            if why is None:
                return each
            problems.append(why)
        raise BackendError("no backend can compute this layer: " + " ".join(problems))
    if name not in NAMES:
        raise ValueError(f"backend {name!r} is not known; expected auto, {', '.join(NAMES)}")
    chosen = module(name)
    why = chosen.unusable()
    if why is not None:
        usable = ", ".join(n for n, reason in backends().items() if reason is None)
        raise BackendError(f"backend {name!r} cannot be used: {why}. Usable here: {usable}.")
    why = _problem(chosen, dtype, specs, storages)
    if why is not None:
        raise BackendError(why)
    return chosen
