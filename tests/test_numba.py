"""The numba backend beyond the contract: late import, threads, forks, the cache, its own exponentials."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from cases import TOLERANCE, Case, assert_all_near, assert_near, assert_same_bits

import fastlstm as fl
from fastlstm._backends import backends, module
from fastlstm.layout import Rows

WHY = backends()["numba"]
needs_numba = pytest.mark.skipif(WHY is not None, reason=f"numba: {WHY}")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
PATHS = (Path(__file__).parent, Path(fl.__file__).parent.parent)


def has(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def layers() -> list[str]:
    """Numba's threading layers that are installed."""
    if WHY is not None:
        return []
    found = ["tbb"] * has("tbb") + ["workqueue"]
    return found + ["omp"] * (importlib.util.find_spec("numba.np.ufunc.omppool") is not None)


each_layer = pytest.mark.parametrize("layer", layers() or [pytest.param("none", marks=needs_numba)])


def run(script: str, **environment: str) -> str:
    """The output of a script in a fresh Python with two threads."""
    settings = {"PYTHONPATH": os.pathsep.join(map(str, PATHS)), "FASTLSTM_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **settings, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---------------------------------------------------------------------------------------------------------------- late
def test_numba_is_imported_when_it_is_used() -> None:
    script = """
import sys
import fastlstm as fl
print(fl.backends()["numba"], fl.LSTM(2, 3, backend="numpy").backend, "numba" in sys.modules)
"""
    assert run(script) == f"{WHY} numpy False"


@needs_numba
def test_scipy_is_not_needed() -> None:
    """Numba's np.dot would import SciPy for its BLAS: half of the time of a process's first call."""
    script = """
import sys
sys.modules["scipy"] = None  # as if it were not installed
import numpy as np, fastlstm as fl
layer = fl.RNN(4, 5, backend="numba")
y, _, tape = layer.forward(np.ones((2, 3, 4), np.float32))
layer.backward(tape, y)
print(y.shape)
"""
    assert run(script) == "(2, 3, 5)"


def test_what_is_missing_is_named_with_the_cure() -> None:
    script = """
import sys
sys.modules["numba"] = None  # as if it were not installed
import fastlstm as fl
print(fl.LSTM(2, 3, dtype="float64").backend)
try:
    fl.LSTM(2, 3, backend="numba")
except fl.BackendError as error:
    print(error)
"""
    auto, error = run(script).split("\n")
    assert auto == "numpy"
    assert error.startswith(
        "backend 'numba' cannot be used: No module named 'numba'. "
        'To get it: pip install "fastlstm[numba]". Usable here: '
    )
    assert error.endswith("numpy.")


@needs_numba
def test_a_numba_that_does_not_fit_is_an_error_of_the_backend() -> None:
    """Numba raises at import if NumPy is too new for it."""
    script = """
import sys
sys.modules["llvmlite"] = None
import numpy as np, fastlstm as fl
try:
    fl.LSTM(2, 3, backend="numba")(np.zeros((1, 1, 2), np.float32))
except fl.BackendError as error:
    print(error)
"""
    error = run(script)
    assert error.startswith("backend 'numba' cannot be used: ") and "or take backend='numpy'" in error


@needs_numba
def test_auto_takes_numba_for_float64() -> None:
    assert fl.LSTM(2, 3, dtype="float64").backend == "numba"


# -------------------------------------------------------------------------------------------------------------- values
@needs_numba
@pytest.mark.parametrize(("dtype", "ulps"), [("float32", 3), ("float64", 4)])
def test_sigmoid_and_tanh_are_accurate(dtype: str, ulps: int) -> None:
    """Errors in units of the last place, also of small results: a rough tanh would spoil small states."""
    k = module("numba").kernels()
    x = np.concatenate([s * np.geomspace(1e-30, 80, 20001) for s in (1, -1)]).astype(dtype)
    exact = x.astype(np.longdouble)
    par = np.array([0, 0, np.inf, 0, 0], dtype)
    for f, want in ((k.TANH, np.tanh(exact)), (k.SIGMOID, 1 / (1 + np.exp(-exact)))):
        got = x.copy()
        k.activate(f, par, got)
        off = np.abs(got - want) / np.spacing(np.abs(want).astype(dtype))
        assert off.max() <= ulps, f"{x[off.argmax()]!r} gives {got[off.argmax()]!r}: {float(off.max()):.2g} units"


@needs_numba
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 3, 31), (3, 8, 33), (7, 5, 64), (13, 16, 100), (40, 30, 129)], ids=str
)
def test_products_add_columns_of_any_number(shape: tuple[int, int, int], dtype: str) -> None:
    """Whole, half and partly filled panels, every height of a tile, and an operand whose rows are columns."""
    k, (N, K, M), rng = module("numba").kernels(), shape, np.random.default_rng(0)
    x, w, out = (rng.standard_normal(size).astype(dtype) for size in ((N, K), (K, M), (N, M + 7)))
    w_packed = k.panels(w)
    np.testing.assert_array_equal(k.unpacked(w_packed, M), w)
    for operand in (x, np.asfortranarray(x)):
        got, expected = out.copy(), out.astype(float)
        k.add_product(None, operand, w_packed, got, 3, 3 + M)
        expected[:, 3 : 3 + M] += x.astype(float) @ w.astype(float)
        assert_near(got, expected, TOLERANCE["values"])
        for n in range(N):  # no row's bits depend on the rows beside it
            alone = out[n : n + 1].copy()
            k.add_product(None, x[n : n + 1], w_packed, alone, 3, 3 + M)
            np.testing.assert_array_equal(alone[0], got[n])


RAGGED = tuple(1 + b % 6 for b in range(80))
WIDE = [
    Case("lstm", 6, 80, 50, 64),
    Case("lstm", 6, 80, 50, 65, {"bidirectional": True, "proj_size": 7, "peepholes": True}, RAGGED),
    Case("gru", 6, 80, 50, 65, {"bidirectional": True}, RAGGED),
    Case("gru", 6, 80, 50, 129, {"reset_after": False}),
    Case("rnn", 6, 80, 90, 165, {"num_layers": 2}, RAGGED),
    Case("lstm", 2, 4, 128, 512),  # few sequences: threads share the panels of a product
]


@needs_numba
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_several_threads_compute_the_same_bits(case: Case) -> None:
    numba = module("numba")
    layer, drawn = case.layer("float32", "numba"), case.draw()
    N = sum(case.lengths or [case.T] * case.B)
    assert numba.work_of(layer._specs[0][0], N) >= numba.runtime.SHARED, "too small for several threads"
    expected = case.draw("float64").run(case.layer("float64", "numpy"))
    with fl.threads(1):
        alone = drawn.run(layer)
    assert_all_near(alone, expected, TOLERANCE["values"], TOLERANCE["gradients"])
    for n in (2, 64):
        with fl.threads(n):
            assert_same_bits(drawn.run(layer), alone)


@needs_numba
@pytest.mark.parametrize(
    "lengths", [[5] * 30, list(range(30, 0, -1)), [100, *[1] * 29]], ids=["equal", "falling", "one"]
)
def test_pieces_have_equal_numbers_of_rows(lengths: list[int]) -> None:
    """Within the longest sequence's; together they have every sequence once."""
    rows = Rows.of_lengths(np.array(lengths))
    cut = module("numba").bounds(rows, 3)
    assert cut[0] == 0 and cut[-1] == len(lengths) and (np.diff(cut) >= 0).all()
    sizes = [sum(lengths[a:b]) for a, b in pairwise(cut)]
    assert max(sizes) <= rows.N / 3 + max(lengths)


@needs_numba
def test_numbas_own_number_of_threads_is_left_alone() -> None:
    script = """
import numba, numpy as np, fastlstm as fl
numba.set_num_threads(1)
fl.RNN(64, 64, backend="numba")(np.ones((2, 600, 64), np.float32))
print(numba.get_num_threads())
"""
    assert run(script) == "1"


@needs_numba
def test_odd_arrays_compile_nothing_anew() -> None:
    """A kernel is compiled once for each dtype; a compilation takes seconds."""
    layer = fl.RNN(6, 4, backend="numba", bidirectional=True)
    x = np.random.default_rng(0).standard_normal((3, 2, 12)).astype(np.float32)
    layer.backward(layer.forward(x[:, :, :6])[2], np.ones((3, 2, 8), np.float32))
    k = module("numba").kernels()
    before = {name: len(getattr(k, name).signatures) for name in ("rnn_forward", "rnn_backward", "add_weights")}
    frozen, memory = x[:, :, :6].copy(), np.empty(4 * 36 + 1, np.uint8)
    frozen.flags.writeable = False
    unaligned = memory[1:].view(np.float32).reshape(3, 2, 6)
    unaligned[...] = frozen
    expected, _ = layer(x[:, :, :6])
    for odd in (frozen, unaligned, np.asfortranarray(frozen), frozen.astype(">f4"), x[:, :, ::2][:, :, :6]):
        y, _, tape = layer.forward(odd)
        layer.backward(tape, np.asfortranarray(np.ones_like(y)))
        if odd.strides[2] == 4:
            assert_near(y, expected, 0)
    assert before == {name: len(getattr(k, name).signatures) for name in before}


# ------------------------------------------------------------------------------------------------------------- threads
@needs_numba
@pytest.mark.skipif(not has("tbb"), reason="the package tbb is not installed")
def test_tbb_is_found_where_pip_puts_it() -> None:
    script = """
import numba, numpy as np, fastlstm as fl
fl.RNN(64, 64, backend="numba")(np.ones((2, 600, 64), np.float32))
print(numba.threading_layer())
"""
    assert run(script) == "tbb"


WORK = """
import multiprocessing, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import fastlstm as fl
from cases import Case, assert_same_bits

CASE = Case("rnn", 3, 700, 5, 65, {"bidirectional": True}, tuple(b % 4 for b in range(700)))
LAYER, DRAWN = CASE.layer("float32", "numba"), CASE.draw()
with fl.threads(1):
    ALONE = DRAWN.run(LAYER)

def work(_):
    for _ in range(3):
        assert_same_bits(DRAWN.run(LAYER), ALONE)
    return "right"

def forked():
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if work(0) == "right" else 1
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0, "the child failed"
"""


@needs_fork
@each_layer
def test_fork_after_use(layer: str) -> None:
    """After os.fork and multiprocessing in a process with running threads, child and parent compute."""
    script = f"""{WORK}
work(0)
import numba
print(numba.threading_layer())
forked()
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(*pool.map(work, range(4)))
print(work(0))
"""
    assert run(script, NUMBA_THREADING_LAYER=layer).split() == [layer] + ["right"] * 5


@each_layer
def test_eight_callers_at_once(layer: str) -> None:
    script = f"""{WORK}
with ThreadPoolExecutor(8) as pool:
    print(*pool.map(work, range(8)))
import numba
print(numba.threading_layer())
"""
    assert run(script, NUMBA_THREADING_LAYER=layer).split() == ["right"] * 8 + [layer]


@needs_fork
@each_layer
def test_fork_while_others_call(layer: str) -> None:
    """The fork waits for calls of other threads: the child would never get their locks. (Numba may print a warning.)"""
    script = f"""{WORK}
import ctypes
done = threading.Event()
def busy():
    while not done.is_set():
        work(0)
callers = [threading.Thread(target=busy) for _ in range(3)]
for caller in callers:
    caller.start()
for _ in range(3):
    forked()
done.set()
for caller in callers:
    caller.join()
ctypes.CDLL(None).fflush(None)  # or C would give the warning at the end of the process, after what Python prints
print("right")
"""
    assert run(script, NUMBA_THREADING_LAYER=layer, OPENBLAS_NUM_THREADS="2").split()[-1] == "right"


# --------------------------------------------------------------------------------------------------------------- cache
@needs_numba
def test_later_processes_find_compiled_kernels(tmp_path: Path) -> None:
    script = """
import numpy as np, fastlstm as fl
fl.RNN(4, 5, backend="numba")(np.ones((2, 3, 4), np.float32))
from fastlstm._backends.numba.jitted import rnn_forward
print(sum(rnn_forward.stats.cache_hits.values()), sum(rnn_forward.stats.cache_misses.values()))
"""
    assert [run(script, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)] == ["0 1", "1 0"]


@needs_numba
def test_without_a_place_for_the_cache_it_is_compiled_in_each_process() -> None:
    script = """
import numba.core.caching
numba.core.caching.CompileResultCacheImpl._locator_classes = []  # as on a read-only disk
import numpy as np, fastlstm as fl
y, _ = fl.RNN(4, 5, backend="numba")(np.ones((2, 3, 4), np.float32))
print(y.shape)
"""
    assert run(script) == "(2, 3, 5)"
