"""`show_config`: versions, backends and threads in use. `table`: what each backend supports."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from . import __version__, num_threads
from ._backends import NAMES, backends, module


def show_config() -> None:
    """Print version, backends, instruction sets (compiled, usable, active), threads and the origin of their number."""
    print("\n".join(lines()))


def lines() -> Iterator[str]:
    """The lines that `show_config` prints."""
    import numpy as np

    yield f"fastlstm {__version__} (Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()})"
    yield "backends, best first:"
    for name, why in backends().items():
        yield f"  {name:8} {'usable: ' + ', '.join(module(name).DTYPES) if why is None else 'not usable: ' + why}"
    c = module("c")
    yield "instruction sets of backend c, best first:"
    for name, why in c.isas().items():
        state = f"not usable: {why}" if why else "active" if name == c.active_isa() else "usable"
        yield f"  {name:8} {state}"
    yield f"threads: {num_threads.get_num_threads()} ({num_threads.origin()})"


def table() -> str:
    """The Markdown table of docs/backends.md: each backend, its dtypes and storages, best first."""
    rows = ["| backend | what it is | computes in | keeps weights as |", "|---|---|---|---|"]
    for name in NAMES:
        backend = module(name)
        what = (backend.__doc__ or "").partition("\n")[0].partition(";")[0].rstrip(".")
        rows.append(f"| `{name}` | {what} | {', '.join(backend.DTYPES)} | {', '.join(backend.STORAGES)} |")
    return "\n".join(rows)
