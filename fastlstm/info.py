"""`show_config`: versions, backends and threads in use. `table`: what each backend supports."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

from . import __version__, num_threads
from ._backends import NAMES, backends, module


def show_config() -> None:
    """Print version, backends, instruction sets (compiled, usable, active), threads and the origin of their number."""
    print("\n".join(lines()))


def config() -> dict[str, Any]:
    """What `show_config` prints, as data: of what cannot be used, why; None for what can."""
    import numpy as np

    c = module("c")
    return {
        "fastlstm": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "backends": {name: {"why not": why} for name, why in backends().items()},
        "isas": {name: {"why not": why, "active": name == c.active_isa()} for name, why in c.isas().items()},
        "threads": num_threads.get_num_threads(),
        "threads from": num_threads.origin(),
    }


def lines() -> Iterator[str]:
    """What `show_config` prints."""
    known = config()
    yield "fastlstm {fastlstm} (Python {python}, NumPy {numpy}, {machine})".format_map(known)
    yield "backends, best first:"
    for name, state in known["backends"].items():
        why = state["why not"]
        yield f"  {name:8} {'usable: ' + ', '.join(module(name).DTYPES) if why is None else 'not usable: ' + why}"
    yield "instruction sets of backend c, best first:"
    for name, state in known["isas"].items():
        why = state["why not"]
        yield f"  {name:8} {f'not usable: {why}' if why else 'active' if state['active'] else 'usable'}"
    yield f"threads: {known['threads']} ({known['threads from']})"


def table() -> str:
    """The Markdown table of docs/backends.md: each backend, its dtypes and storages, best first."""
    rows = ["| backend | what it is | computes in | keeps weights as |", "|---|---|---|---|"]
    for name in NAMES:
        backend = module(name)
        what = (backend.__doc__ or "").partition("\n")[0].partition(";")[0].rstrip(".")
        rows.append(f"| `{name}` | {what} | {', '.join(backend.DTYPES)} | {', '.join(backend.STORAGES)} |")
    return "\n".join(rows)
