"""The backends: which there are, which one serves, and what is said where none can.

A backend is a stateless module with four functions, the same in name, signature and values as those of
`fastlstm._backends.numpy`, whose docstrings are the contract:

    pack(spec, params, storage, reverse)                     a block: one direction of one layer, in the backend's form
    forward(blocks, x, rows, h, c, y, tapes, at)             the directions of one layer over packed rows
    backward(block, x, rows, h, c, tape, dy, dx, grads)      one direction, one stretch of time
    bind(blocks, x, h, c) -> step()                          one step of all layers, everything bound

and says what it can do: ``DTYPES``, ``STORAGES`` and ``unusable()`` (None, or why it cannot be used here, with the
cure). Modules are imported when first asked for: importing fastlstm loads none but this one.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

NAMES = ("c", "numba", "numpy")  # best first


class BackendError(RuntimeError):
    """A backend or instruction set that was asked for cannot be used."""


def module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def backends() -> dict[str, str | None]:
    """Every backend by name, best first: None where it is usable, else why it is not and what to do."""
    return {name: module(name).unusable() for name in NAMES}


def choose(name: str, dtype: str) -> ModuleType:
    """The module that serves a layer.

    Parameters
    ----------
    name : str
        "auto" takes the best usable backend that has the dtype (or what FASTLSTM_BACKEND names); any other name is
        forced and never falls back.
    dtype : str

    Raises
    ------
    ValueError
        Unknown name or dtype.
    BackendError
        The forced backend cannot be used, or has not this dtype.
    """
    if dtype not in module("numpy").DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported; expected one of {', '.join(module('numpy').DTYPES)}")
    if name == "auto":
        name = os.environ.get("FASTLSTM_BACKEND", "auto") or "auto"
    if name == "auto":
        forced_isa = module("c").forced_isa_problem()
        if forced_isa is not None:
            raise BackendError(forced_isa)
        fitting = (m for m in map(module, NAMES) if dtype in m.DTYPES and m.unusable() is None)
        return next(fitting)
    if name not in NAMES:
        raise ValueError(f"backend {name!r} is not known; expected auto, {', '.join(NAMES)}")
    chosen = module(name)
    why = chosen.unusable()
    if why is not None:
        usable = ", ".join(n for n, reason in backends().items() if reason is None)
        raise BackendError(f"backend {name!r} cannot be used: {why}. Usable here: {usable}.")
    if dtype not in chosen.DTYPES:
        raise BackendError(
            f"backend {name!r} has no {dtype} (only {', '.join(chosen.DTYPES)}). "
            f"Use dtype='{chosen.DTYPES[0]}', or backend='auto', which finds one that has it."
        )
    return chosen
