"""How much memory calls take, measured: the peak of a process of its own, which counts every allocation.

Linux alone lets a process reset its peak (/proc/self/clear_refs). The tape is measured in the test's process.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm._backends import backends
from fastlstm.spec_layer import RecurrentTape

MIB = 1 << 20
CACHED = 4 * MIB  # memory that a call may take beside its outputs: it stays in cache

needs_linux = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="this system's processes cannot set their peak memory back"
)
each_backend = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=[pytest.mark.skip(reason=f"{name}: {why}")] if why else [])
        for name, why in backends().items()
    ],
)


# ----------------------------------------------------------------------------------- measuring, in a process of its own
def resident(name: str = "VmRSS") -> int:
    """Bytes of resident memory now (VmRSS), at the peak (VmHWM), or of address space (VmSize)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


def peak(work: Callable[[], object]) -> int:
    """Bytes by which memory in use rises at most while `work` runs."""
    ctypes.CDLL(None).malloc_trim(0)  # malloc's free memory would be used again and not counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is in use now
    before = resident()
    work()
    return resident("VmHWM") - before


def in_a_process(task: str, *arguments: object, **environment: str) -> Any:
    """The result of a function of this file, run in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, task, json.dumps(arguments)],
        env={
            **os.environ,
            **environment,
            "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, Path(fl.__file__).parent.parent))),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


# ------------------------------------------------------------------------------------------------------------ inference
# malloc returns large blocks to the system at once, so freed memory does not count.
EXACT = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}

T, B, I, H = 1024, 64, 16, 64  # noqa: E741
FORMS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "batch first": {"batch_first": True},
    "3 layers, 2 directions": {"num_layers": 3, "bidirectional": True},
    "3 layers, 2 directions, batch first": {"num_layers": 3, "bidirectional": True, "batch_first": True},
    "lengths": {"lengths": True},
    "2 layers, lengths, batch first": {"num_layers": 2, "lengths": True, "batch_first": True},
}


COPY = 4 * T * B * I  # a copy of the input, if its rows have to move


def rise_of_a_call(backend: str, kind: str, form: str) -> tuple[int, int]:
    """(bytes that a large call takes beside its input, bytes of its widest layer's output)."""
    options = dict(FORMS[form])
    lengths = np.arange(T, T - B, -1) if options.pop("lengths", False) else None
    layer = getattr(fl, kind)(I, H, backend=backend, seed=0, **options)
    x = np.ones((B, T, I) if layer.batch_first else (T, B, I), np.float32)
    layer(x[:32, :32])  # weights are packed, kernels loaded, threads running: 1024 rows suffice
    return peak(lambda: layer(x, None, lengths)), 4 * T * B * H * (2 if layer.bidirectional else 1)


@needs_linux
@pytest.mark.parametrize("form", FORMS)
@each_backend
def test_a_call_takes_twice_its_widest_output_at_most(backend: str, form: str) -> None:
    """One layer takes it once. The gates of all steps, four times an LSTM's output, are never kept."""
    rise, widest = in_a_process("rise_of_a_call", backend, "LSTM", form, **EXACT)
    most = 2 * widest if "layers" in form else widest + COPY  # one layer writes where its result belongs
    assert 0.95 * widest <= rise <= most + CACHED  # the output itself is among it, but for what malloc had kept


@needs_linux
@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_a_call_of_other_cells_takes_twice_its_widest_output_at_most(kind: str) -> None:
    rise, widest = in_a_process("rise_of_a_call", "auto", kind, "one layer", **EXACT)
    assert 0.95 * widest <= rise <= widest + CACHED  # the output itself is among it, but for what malloc had kept


# ------------------------------------------------------------------------------------------------------ ever new shapes
def growth_over_shapes(backend: str, train: bool, calls: int) -> int:
    """Bytes by which the process grows in `calls` calls of changing shapes, after calls of the largest shapes."""
    longest, most = 1000, 24
    layer = fl.LSTM(8, 32, backend=backend, seed=0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((longest, most + 1, 8), np.float32)  # every call takes a part, so copies its input

    def call(T: int, B: int, lengths: Any) -> None:
        if train:
            y, _, tape = layer.forward(x[:T, :B], None, lengths)
            layer.backward(tape, y)
        else:
            layer(x[:T, :B], None, lengths)

    call(2, 2, None)
    call(longest, 2, None)  # the numba backend has kernels of its own for few, and for short, sequences
    for lengths in (None, longest - np.arange(most) - 1):
        call(longest, most, lengths)
    before = resident()
    for i in range(calls):
        T = rng.integers(1, longest + 1 if i % 50 == 0 else 40)  # mostly short, to be done soon
        B = rng.integers(1, most + 1)
        call(int(T), int(B), rng.integers(0, T + 1, B) if i % 2 else None)
    return resident() - before


@needs_linux
@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@each_backend
def test_ever_new_shapes_do_not_grow_the_process(backend: str, train: bool) -> None:
    if backend == "numpy" or (backend == "numba" and train):
        pytest.skip("too slow for so many calls; what might grow, above the kernels, is the same for all")
    assert in_a_process("growth_over_shapes", backend, train, 10_000) < 1_000_000


# ----------------------------------------------------------------------------------------------------- large vocabulary
def rises_with_a_million_tokens(backend: str) -> dict[str, int]:
    """Bytes that a call, a training step and dense gradients take for V = 1,000,000, and limits for comparison."""
    import resource

    V, T, B, H = 1_000_000, 100, 32, 8
    layer = fl.RNN(V, H, backend=backend, seed=0)
    optimizer = fl.SGD([layer], 0.1)
    ids = np.random.default_rng(0).integers(0, V, (T, B))
    room = resident("VmSize") + (2 << 30)  # no more than that may be asked for, touched or not
    resource.setrlimit(resource.RLIMIT_AS, (room, room))

    def step(ids: Any, update: bool = True) -> None:
        y, _, tape = layer.forward(ids)
        _, _, grads = layer.backward(tape, y, sparse=True)  # as `fastlstm.text` does: gradients of the ids seen alone
        fl.clip_by_norm([grads], 1.0)
        if update:
            optimizer.step([grads])

    def dense() -> None:
        y, _, tape = layer.forward(ids)
        layer.backward(tape, y)

    step(ids[:2, :2], update=False)
    stream = layer.stream(2)
    rises = {
        "call": peak(lambda: layer(ids)),
        "few sequences": peak(lambda: layer(ids[:, :2])),
        "stream": peak(lambda: (stream.run(ids[:, :2]), stream.step(ids[0, :2]))),
        "dense": peak(dense),
        "step": peak(lambda: step(ids)),
    }
    return rises | {"weights": 4 * V * H, "one-hot": 4 * T * B * V}


@needs_linux
@each_backend
def test_a_large_vocabulary_costs_no_memory(backend: str) -> None:
    """One-hot rows, (T, B, V), would be 12.8 GB; a dense gradient of the input matrix, 32 MB here.

    Calls and training steps on ids make neither. `backward` without `sparse` makes the dense gradient, which shows that
    the measurement can see it.
    """
    rises = in_a_process("rises_with_a_million_tokens", backend, **EXACT)
    assert rises["dense"] >= rises["weights"]
    assert rises["call"] < CACHED < rises["weights"] / 4 < rises["one-hot"] / 1000
    assert max(rises["few sequences"], rises["stream"], rises["step"]) < CACHED


# ------------------------------------------------------------------------------------------------------------- the tape
def nbytes(tape: RecurrentTape) -> int:
    """Bytes of all arrays that a tape holds, each counted once."""
    found: dict[int, int] = {}

    def count(thing: Any) -> None:
        if isinstance(thing, np.ndarray):
            found[id(thing)] = thing.nbytes
        for part in thing.values() if isinstance(thing, dict) else thing if isinstance(thing, (list, tuple)) else ():
            count(part)

    count([tape.record.inputs, tape.record.kept, tape.record.masks])
    return sum(found.values())


@pytest.mark.parametrize("lengths", [None, [300, 17, 0, 120]], ids=["dense", "lengths"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(
    ("kind", "each", "options"),
    [
        ("LSTM", 6, {}),
        ("LSTM", 6, {"proj_size": 5}),
        ("LSTM", 6, {"peepholes": True}),
        ("GRU", 5, {}),
        ("GRU", 5, {"reset_after": False}),
        ("RNN", 1, {}),
    ],
    ids=["lstm", "projection", "peepholes", "gru", "gru reset first", "rnn"],
)
def test_the_tape_is_as_large_as_promised(
    kind: str, each: int, options: dict[str, Any], directions: int, lengths: Any, backend: str
) -> None:
    """For each valid step and layer: `each` H floats a direction, a projection's width, a copy of the layer's input."""
    T, B, I, H, L = 300, 4, 7, 24, 2  # noqa: E741
    layer = getattr(fl, kind)(I, H, L, bidirectional=directions == 2, backend=backend, **options)
    x = np.zeros((T, B, I), np.float32)
    _, _, tape = layer.forward(x, None, lengths)
    projected = options.get("proj_size", 0)
    inputs = I + (L - 1) * directions * (projected or H)
    rows = sum(lengths) if lengths else T * B
    states = L * directions * B * 2 * H  # the initial ones
    promised = 4 * (rows * (L * directions * (each * H + projected) + inputs) + states)
    assert 0.9 * promised < nbytes(tape) <= promised


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_the_tape_of_checkpoints_is_a_fraction(kind: str, backend: str) -> None:
    """The tape has each layer's input and its states every so many steps. test_checkpoint.py compares the gradients."""
    T, B, I, H, every = 300, 4, 7, 24, 50  # noqa: E741
    layer = getattr(fl, kind)(I, H, 2, backend=backend)
    _, _, tape = layer.forward(np.zeros((T, B, I), np.float32), checkpoint_every=every)
    assert nbytes(tape) <= 4 * (T * B * (I + H) + T // every * 2 * B * 2 * H)


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*json.loads(sys.argv[2]))))
