"""The extension: whether it is usable, and its instruction sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    from ..._fastlstm_c import ffi as ffi
    from ..._fastlstm_c import lib as lib
except ImportError as error:
    ffi = lib = None
    _why_missing = str(error)


def unusable() -> str | None:
    """Why this backend cannot be used here, with the cure; None where it can."""
    if lib is None:
        note = Path(__file__).parents[2] / "_build_failed.txt"
        why = note.read_text(encoding="utf-8").strip() if note.exists() else _why_missing
        cure = "install a C compiler, then pip install --force-reinstall fastlstm"
        return f"its extension is missing ({why}). To get it: {cure}"
    return forced_isa_problem()


def isas() -> dict[str, str | None]:
    """Every compiled instruction set, best first: None where this machine has it, else why it cannot be used."""
    if lib is None:
        return {}
    names: dict[str, str | None] = {}
    while (name := lib.fl_isa_name(len(names))) != ffi.NULL:
        usable = lib.fl_isa_usable(len(names))
        names[ffi.string(name).decode()] = None if usable else "this processor does not have it"
    return names


def active_isa() -> str:
    """The instruction set for which weights are packed from now on."""
    at: int = lib.fl_isa_chosen()
    return list(isas())[at]


def choose_isa(name: str) -> None:
    """Pack weights for this instruction set from now on. Weights packed before keep their instruction set."""
    known = isas()
    why = known.get(name, "it is not compiled in")
    if why is not None:
        usable = ", ".join(n for n, reason in known.items() if reason is None)
        raise ValueError(f"instruction set {name!r} cannot be used: {why}. Usable here: {usable}.")
    lib.fl_isa_choose(list(known).index(name))


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Within this context weights are packed for this instruction set."""
    before = active_isa()
    choose_isa(name)
    try:
        yield
    finally:
        choose_isa(before)


def forced_isa_problem() -> str | None:
    """Why the instruction set that FASTLSTM_ISA forces cannot be used; None where it can, or none is forced."""
    name = os.environ.get("FASTLSTM_ISA")
    if not name or lib is None:
        return None
    try:
        choose_isa(name)
    except ValueError as error:
        return f"FASTLSTM_ISA: {error}"
    return None
