"""The package as a whole: order of imports, cost of importing, forced choices, forks."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastlstm as fl
from fastlstm._backends import backends, module

ROOT = Path(fl.__file__).parent

# Every module, lowest first. A module imports from the groups below its own, and within its group only forwards.
# (Imports inside functions and for type checkers are exempt.)
ORDER = [
    ["spec", "num_threads", "forksafe", "console", "_fastlstm_c"],
    ["layout", "gates", "storage", "memory", "validation", "packing", "named", "weighting"],
    ["_backends.numpy", "_backends.numba", "_backends.c"],
    ["_backends"],
    ["engine"],
    [
        "info",
        "library",
        "terminal",
        "files",
        "outputs",
        "stream",
        "gradients",
        "_old_pickles",
        "configuration",
        "quantise",
        "layer",
        "spec_layer",
    ],
    ["recurrent", "cell", "layers", "cells", "parameters", "_readers", "streams"],
    [
        "losses",
        "metrics",
        "optim",
        "schedules",
        "dense",
        "nn",
        "sequential",
        "steps",
        "step_files",
        "models",
        "arrays",
        "corpus",
        "tables",
        "datasets",
        "_keras_weights",
        "_onnx_weights",
    ],
    ["training", "callbacks", "forecast", "aio"],
    [
        "text",
        "recipes",
        "trace",
        "gates_page",
        "export_c",
        "taken",
        "torch",
        "keras",
        "onnx",
        "sklearn",
        "report",
        "plot",
        "convert",
    ],
    ["cli"],
    ["__main__"],
]
PLACE = {name: (group, at) for group, names in enumerate(ORDER) for at, name in enumerate(names)}


def place(name: str) -> tuple[int, int]:
    """A module's place in the order: its own or, in a sub-package with one place only, that of the package."""
    assert name in PLACE or name.split(".")[0] in PLACE, (
        f"module {name} has no place in the order of imports: give it one"
    )
    while name not in PLACE:
        name = name.rpartition(".")[0]
    return PLACE[name]


ROOT_MAY_BE_ASKED_FOR = {"__version__"}  # names that modules may import from the package itself


def modules() -> dict[str, Path]:
    """Every module of the package but its root, by its name within it."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found.pop("")
    return found


def imported(name: str, path: Path) -> set[str]:
    """The package's modules that a module imports when it is imported itself."""
    package = (name if path.name == "__init__.py" else name.rpartition(".")[0]).split(".")
    result = set()
    nodes = list(ast.parse(path.read_text()).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [part for part in package[: len(package) - node.level + 1] if part]
            base += node.module.split(".") if node.module else []
            inner = {".".join([*base, alias.name]) for alias in node.names}
            whole = {".".join(base)} if base else set()
            known = {one for one in inner if one in PLACE or one in modules()}
            result |= known | (whole if len(known) < len(inner) else set())
            if not base:
                unknown = {alias.name for alias in node.names} - known - ROOT_MAY_BE_ASKED_FOR
                assert not unknown, f"{name} asks the package's root for {unknown}"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not any(n.split(".")[0] == "fastlstm" for n in names), (
                f"{name}: imports inside the package are relative"
            )
        nodes += ast.iter_child_nodes(node)
    return result


def test_imports_run_one_way() -> None:
    for name, path in modules().items():
        for other in imported(name, path):
            together = place(other) == place(name) and other.split(".")[0] == name.split(".")[0]
            assert place(other) < place(name) or together, f"{name} imports {other}, which stands above it"


def test_backends_know_only_what_is_below_them() -> None:
    """A backend depends on the modules below it and on the reference only."""
    allowed = {"spec", "num_threads", "forksafe", "memory", "layout", "storage", "_backends.numpy", "_fastlstm_c"}
    for name, path in modules().items():
        if name.startswith("_backends."):
            own = ".".join(name.split(".")[:2])
            assert {other for other in imported(name, path) if not other.startswith(own)} <= allowed, name
    assert imported("_backends", modules()["_backends"]) == set(), "backends are imported when first asked for"


def run(script: str, **env: str) -> str:
    """The output of a script in a fresh interpreter with this package."""
    path = os.pathsep.join([str(ROOT.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTLSTM_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**clean, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_nothing_heavy() -> None:
    script = """
import sys, fastlstm
compiled = {"cffi", "_cffi_backend", "fastlstm._fastlstm_c"}
heavy = compiled | {"numba", "torch", "keras", "h5py", "matplotlib", "tqdm", "safetensors"}
print(sorted(heavy & set(sys.modules)))
fastlstm.LSTM(2, 3, backend="numpy")
print(sorted((heavy - compiled) & set(sys.modules)))
"""
    assert run(script) == "[]\n[]"


def test_importing_is_quick() -> None:
    """At most 60 ms beyond NumPy, the best of several runs: longer runs measure a busy machine."""
    script = """
import time, numpy
begin = time.perf_counter()
import fastlstm
print(time.perf_counter() - begin)
"""
    assert min(float(run(script)) for _ in range(5)) < 0.060


def test_every_public_name_is_there() -> None:
    assert {"LSTM", "GRU", "RNN", "from_arrays", "backends", "show_config", "__version__"} <= set(fl.__all__)
    for name in fl.__all__:
        assert getattr(fl, name) is not None
    assert set(fl.__all__) <= set(dir(fl))
    with pytest.raises(AttributeError, match="module 'fastlstm' has no attribute 'LTSM'"):
        fl.LTSM  # noqa: B018


# ------------------------------------------------------------------------------------------------------- forced choices
OTHERS = [name for name, why in backends().items() if why is None and name != "c"]  # backends for machines without C


def test_a_backend_that_is_missing_says_why_and_is_never_replaced() -> None:
    script = """
import sys
sys.modules["fastlstm._fastlstm_c"] = None
import fastlstm
print(fastlstm.backends()["c"] is not None, fastlstm.LSTM(2, 3).backend)
try:
    fastlstm.LSTM(2, 3, backend="c")
except fastlstm.BackendError as error:
    print(error)
"""
    first, error = run(script).split("\n", 1)
    assert first == f"True {OTHERS[0]}"
    assert error.startswith("backend 'c' cannot be used: its extension is missing")
    assert "To get it:" in error and f"Usable here: {', '.join(OTHERS)}." in error


def test_the_environment_forces_a_backend() -> None:
    script = "import fastlstm; print(fastlstm.LSTM(2, 3).backend)"
    assert run(script, FASTLSTM_BACKEND="numpy") == "numpy"
    failing = """
import fastlstm
try:
    fastlstm.LSTM(2, 3)
except Exception as error:
    print(type(error).__name__, error)
"""
    assert run(failing, FASTLSTM_BACKEND="cuda").startswith("ValueError backend 'cuda' is not known")


needs_c = pytest.mark.skipif(backends()["c"] is not None, reason=f"c: {backends()['c']}")


@needs_c
def test_a_forced_backend_refuses_what_it_has_not() -> None:
    with pytest.raises(fl.BackendError, match=r"backend 'c' has no float64 \(only float32\)\. Use dtype='float32'"):
        fl.LSTM(2, 3, dtype="float64", backend="c")
    assert fl.LSTM(2, 3, dtype="float64").backend == OTHERS[0]
    assert fl.LSTM(2, 3).backend == "c"


@needs_c
def test_the_environment_forces_an_instruction_set() -> None:
    script = """
import fastlstm
from fastlstm._backends import module
try:
    fastlstm.LSTM(2, 3, backend="c")
    print(module("c").active_isa())
except fastlstm.BackendError as error:
    print(error)
"""
    usable = {name: why is None for name, why in module("c").isas().items()}
    for name in (*usable, "sse9"):
        said = run(script, FASTLSTM_ISA=name)
        if usable.get(name):
            assert said == name
        else:
            assert f"instruction set '{name}' cannot be used" in said and "Usable here:" in said
            assert "cannot be used" in run(script.replace(', backend="c"', ""), FASTLSTM_ISA=name), "it fell back"


# ---------------------------------------------------------------------------------------------------------------- forks
FORKED = """
import os, signal
import numpy as np
import fastlstm as fl

layer = fl.LSTM(64, 128, 2, bidirectional=True, backend={backend!r}, seed=0)
x = np.random.default_rng(0).standard_normal((10, 32, 64)).astype(np.float32)

def work(_=None, threads=2):
    with fl.threads(threads):
        y, _, tape = layer.forward(x)
        dx, _, grads = layer.backward(tape, np.ones_like(y))
        return y, dx, grads["weight_hh_l0"]

def same(a, b):
    return all(np.array_equal(p, q) for p, q in zip(a, b))

expected = work()
work(threads=1)  # a child may have to: now numba's kernels for one thread are compiled too
"""
OS_FORK = """
def child(depth):
    signal.alarm(30)  # a child that hangs dies
    ok = same(work(), expected)
    if depth:
        pid = os.fork()
        if pid == 0:
            child(depth - 1)
        ok &= os.waitpid(pid, 0)[1] == 0
    os._exit(0 if ok and same(work(), expected) else 1)

for _ in range(3):
    pid = os.fork()
    if pid == 0:
        child(1)
    assert same(work(), expected)
    assert os.waitpid(pid, 0)[1] == 0, "the child's result is wrong, or it hung"
    assert same(work(), expected)
print("well", flush=True)
"""
POOL = """
import multiprocessing
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert all(same(result, expected) for result in pool.map_async(work, range(6)).get(60))
    assert same(work(), expected)
    print("well")
"""
FORK_IN_THREADS = """
import threading
stop = threading.Event()
def busy():
    while not stop.is_set():
        assert same(work(), expected)
threads = [threading.Thread(target=busy) for _ in range(2)]
for t in threads: t.start()
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        os._exit(0 if same(work(), expected) else 1)
    assert os.waitpid(pid, 0)[1] == 0, "the child's result is wrong, or it hung"
stop.set()
for t in threads: t.join()
assert same(work(), expected)
print("well", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("script", [OS_FORK, POOL, FORK_IN_THREADS], ids=["os.fork", "multiprocessing", "while busy"])
@pytest.mark.parametrize("name", backends())
def test_fork_after_use(script: str, name: str) -> None:
    if backends()[name] is not None:
        pytest.skip(f"{name}: {backends()[name]}")
    if name == "numpy" and script is FORK_IN_THREADS:
        pytest.skip("OpenBLAS may hold its own lock when another thread forks")
    # One thread for BLAS: many processes that spin for two cores take minutes.
    said = run(FORKED.format(backend=name) + script, OPENBLAS_NUM_THREADS="1")
    assert "well" in said.splitlines()  # numba's threads also say that they cannot be joined before a fork
