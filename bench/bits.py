"""Hashes of every output, final state and gradient of the test cases, to compare two versions bit for bit.

    python bench/bits.py > new.json                 with each version's own Python
    python bench/bits.py --against old.json         names what differs; exit status 1 where something does

Each usable instruction set of the C backend has its own line for each case and number of threads; every other backend
has one line for each case. The cases are those of ``tests/cases.py``. A case with options that a version does not know
is left out there; the comparison says how many are in one version only.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fastlstm as fl

OLD_NAMES = {"spec": "cells", "_backends": "backends"}  # modules of versions up to 0.1.0, by their names of today


def part(name: str) -> Any:
    """A module of the package, in a version that calls it by its old name too."""
    try:
        return importlib.import_module(f"fastlstm.{name}")
    except ImportError:
        module = importlib.import_module(f"fastlstm.{OLD_NAMES[name]}")
        sys.modules[f"fastlstm.{name}"] = module
        return module


def variants() -> Iterator[tuple[str, str, Any]]:
    """(name, backend, context in which its weights are packed) of every backend and instruction set usable here."""
    backends = part("_backends")
    for backend, problem in fl.backends().items():
        if problem is not None:
            continue
        if backend != "c":
            yield backend, backend, nullcontext
            continue
        module = backends.module("c")
        for isa in [name for name, why in module.isas().items() if why is None]:
            yield f"c {isa}", "c", partial(module.use_isa, isa)


def digest(a: Any) -> str:
    a = np.ascontiguousarray(a)
    return hashlib.sha256(f"{a.dtype.str}{a.shape}".encode() + a.tobytes()).hexdigest()[:16]


def hashes(backends: list[str]) -> dict[str, dict[str, str]]:
    """Variant, threads and case -> name of the result -> hash."""
    part("spec")
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from cases import CASES

    found: dict[str, dict[str, str]] = {}
    for variant, backend, context in variants():
        if backends and backend not in backends:
            continue
        for threads in (1, 2) if backend == "c" else (1,):
            for case in CASES:
                try:
                    layer = case.layer(backend=backend)
                except (TypeError, ValueError, fl.BackendError):  # an option unknown to this version or backend
                    continue
                with fl.threads(threads), context():
                    drawn = case.draw()
                    y, state = layer(drawn.x, drawn.state, drawn.lengths)
                    parts = state if isinstance(state, tuple) else (state,)
                    results = {"inference y": y, **{f"inference {n}": p for n, p in zip("hc", parts, strict=False)}}
                    results |= drawn.run(layer)
                found[f"{variant}, {threads} threads, {case}"] = {name: digest(a) for name, a in results.items()}
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--against", metavar="FILE", help="hashes of another version, to compare with")
    options.add_argument("--backends", nargs="+", default=[], metavar="NAME", help="only these (default: all)")
    given = options.parse_args()
    ours = hashes(given.backends)
    if given.against is None:
        json.dump(ours, sys.stdout, indent=0)
        return 0
    other = json.loads(Path(given.against).read_text())
    both = ours.keys() & other.keys()
    differing = sorted(name for name in both if ours[name] != other[name])
    for name in differing:
        keys = [k for k in ours[name].keys() | other[name].keys() if ours[name].get(k) != other[name].get(k)]
        print(f"differs: {name}: {', '.join(sorted(keys))}")
    print(f"{len(both)} cases compared, {len(differing)} differ; {len(ours.keys() ^ other.keys())} only in one version")
    return 1 if differing or not both else 0


if __name__ == "__main__":
    sys.exit(main())
