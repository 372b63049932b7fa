"""`to_c`: the written C compiled and run, beside the layers it came from."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm import nn
from fastlstm.export_c import to_c
from fastlstm.export_c.simulate import run
from fastlstm.spec import ACTIVATIONS
from fastlstm.steps import steps_of

CC = shutil.which("gcc") or shutil.which("cc")
pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler is installed")
STRICT = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"]
BARE = Path(__file__).parent / "bare"
T = 20


def built(*modules: Any, shape: tuple[int, ...]) -> fl.Sequential:
    """A Sequential with its parameters, every bias away from zero."""
    model = fl.Sequential(list(modules), seed=0)
    model.build(shape)
    rng = np.random.default_rng(1)
    model.load_state_dict({n: p + rng.normal(0, 0.1, p.shape) for n, p in model.state_dict().items()})
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "lstm": lambda: fl.LSTM(5, 12, seed=0),
    "lstm two layers": lambda: fl.LSTM(5, 12, 2, seed=0),
    "lstm no bias": lambda: fl.LSTM(5, 12, bias=False, seed=0),
    "lstm odd": lambda: fl.LSTM(3, 7, seed=0),
    "lstm one unit": lambda: fl.LSTM(1, 1, seed=0),
    "lstm peepholes clip": lambda: fl.LSTM(5, 12, peepholes=True, clip=0.3, seed=0),
    "lstm input_forget": lambda: fl.LSTM(5, 12, input_forget=True, seed=0),
    "lstm projection": lambda: fl.LSTM(5, 12, 2, proj_size=4, seed=0),
    "lstm activations": lambda: fl.LSTM(5, 12, activations=("hard_sigmoid", "softsign", "elu"), seed=0),
    "gru": lambda: fl.GRU(5, 12, 2, seed=0),
    "gru no bias": lambda: fl.GRU(5, 12, bias=False, seed=0),
    "gru before": lambda: fl.GRU(5, 12, reset_after=False, clip=0.5, seed=0),
    "rnn": lambda: fl.RNN(5, 12, 2, seed=0),
    "rnn relu": lambda: fl.RNN(5, 12, nonlinearity="relu", seed=0),
    "list": lambda: [fl.LSTM(5, 8, seed=0), fl.Dense(8, 3, seed=1), "sigmoid"],
    "list softmax": lambda: [fl.GRU(5, 8, seed=0), fl.Dense(8, 3, bias=False, seed=1), "softmax"],
    "dense first": lambda: [fl.Dense(5, 8, seed=1), ("leaky_relu", 0.2), fl.LSTM(8, 8, seed=0)],
    "sequential": lambda: built(
        nn.Embedding(11, 6),
        nn.LSTM(9, return_sequences=True),
        nn.Dropout(0.5),
        nn.GRU(9, return_sequences=True, reset_after=False),
        nn.Residual(nn.SimpleRNN(9, return_sequences=True)),
        nn.Dense(4, "softmax"),
        shape=(7,),
    ),
    "residual last": lambda: built(
        nn.Dense(6, "relu"),
        nn.Residual(nn.LSTM(6, return_sequences=True)),
        nn.Residual(nn.Dense(6, "tanh")),
        shape=(7, 3),
    ),
}
each_model = pytest.mark.parametrize("name", MODELS)
each_storage = pytest.mark.parametrize("weights", ["float32", "int8"])


def compiled(folder: Path, *flags: str, cc: str | None = None, test: bool = True) -> Path:
    """model.c of a folder as a shared library."""
    library = folder / "model.so"
    defined = ["-DMODEL_SELFTEST"] if test else []
    command = [
        cc or str(CC),
        *STRICT,
        "-O2",
        *flags,
        *defined,
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(folder / "model.c"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return library


def inputs_of(model: Any) -> Any:
    """T inputs of a model: numbers (T, I), or token ids (T,)."""
    rng = np.random.default_rng(5)
    first = steps_of(model)[0]
    if hasattr(first, "weight") and first.sizes[0] == 1 and type(first).__name__ == "Lookup":
        return rng.integers(0, first.weight.shape[0], T)
    return rng.uniform(-2, 2, (T, first.sizes[0])).astype(np.float32)


def through_layers(model: Any, inputs: Any) -> Any:
    """The outputs (T, U) of the layers themselves, by backend numpy."""
    y = inputs
    for part in model if isinstance(model, list) else [model]:
        if isinstance(part, fl.Sequential):
            stream = part.stream()
            y = np.stack([stream.step(x[None])[0] for x in y])
        elif isinstance(part, fl.Dense):
            y = part(y)
        elif isinstance(part, str | tuple):
            y = nn.Activation(part)(y)
        else:
            y, _ = part(y[:, None])
            y = y[:, 0]
    return y


def through_c(library: Path, inputs: Any, outputs: int, state_bytes: int) -> Any:
    """The outputs (T, U) of the compiled program."""
    lib = ctypes.CDLL(str(library))
    state, y = (ctypes.c_char * (state_bytes + 64))(), np.empty((len(inputs), outputs), np.float32)
    lib.model_reset(state)
    for t, x in enumerate(inputs):
        x = ctypes.c_int32(int(x)) if np.ndim(x) == 0 else np.ascontiguousarray(x).ctypes.data_as(ctypes.c_void_p)
        assert lib.model_step(state, x, y[t].ctypes.data_as(ctypes.c_void_p)) == 0
    assert bytes(state)[state_bytes:] == bytes(64), "a step wrote beyond the state"
    return y


@each_storage
@each_model
def test_the_written_program_computes_the_model(name: str, weights: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    steps = steps_of(model)
    done = to_c(model, tmp_path / "model.c", weights=weights)
    library, inputs = compiled(tmp_path), inputs_of(model)
    got = through_c(library, inputs, steps[-1].sizes[1], done.state_bytes)
    assert ctypes.CDLL(str(library)).model_selftest() == 0
    if weights == "float32":
        expected = through_layers(model, inputs)
        np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6 * max(1, np.abs(expected).max()))
    else:
        # Another last bit of an activation can move an input of the next product by one integer.
        expected = run(steps, inputs, True)
        np.testing.assert_allclose(got, expected, rtol=0, atol=0.02 * max(1, np.abs(expected).max()))
        assert np.median(np.abs(got - expected)) < 2e-5 * max(1, np.abs(expected).max())
        assert np.abs(expected - run(steps, inputs, False)).max() > 1e-5, "int8 changes something"


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name: str, tmp_path: Path) -> None:
    """Of a dense layer behind a layer whose output is its input, over a wide range and at the special values."""
    layer = fl.RNN(1, 1, nonlinearity="identity", bias=False, seed=0)
    layer.load_state_dict({"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.zeros((1, 1))})
    to_c([layer, name], tmp_path / "model.c")
    x = np.concatenate((np.linspace(-100, 100, 4001), np.linspace(-1, 1, 2001))).astype(np.float32)[:, None]
    got = through_c(compiled(tmp_path), x, 1, 4)
    expected = nn.Activation(name)(x.astype(np.float64).astype(np.float32))
    np.testing.assert_allclose(got, expected, rtol=5e-7, atol=5e-7)


def test_nan_and_infinity_stay_in_their_stream(tmp_path: Path) -> None:
    """NaN in an input gives NaN, as the layers do; another stream's state is not touched."""
    for weights in ("float32", "int8"):
        to_c(fl.LSTM(3, 5, seed=0), tmp_path / "model.c", weights=weights)
        lib = ctypes.CDLL(str(compiled(tmp_path).rename(tmp_path / f"{weights}.so")))
        x, y = np.array([0.5, np.nan, 1], np.float32), np.zeros(5, np.float32)
        state = (ctypes.c_char * 40)()
        lib.model_reset(state)
        lib.model_step(state, x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p))
        assert np.isnan(y).all(), weights


def test_a_token_id_beyond_the_table_changes_nothing(tmp_path: Path) -> None:
    model = built(nn.Embedding(11, 6), nn.LSTM(9), shape=(7,))
    done = to_c(model, tmp_path / "model.c")
    lib = ctypes.CDLL(str(compiled(tmp_path)))
    state, y = (ctypes.c_char * done.state_bytes)(), np.zeros(9, np.float32)
    lib.model_reset(state)
    assert lib.model_step(state, 3, y.ctypes.data_as(ctypes.c_void_p)) == 0
    before, shown = bytes(state), y.copy()
    for token in (-1, 11, 2**31 - 1):
        assert lib.model_step(state, token, y.ctypes.data_as(ctypes.c_void_p)) == -1
        assert bytes(state) == before and (y == shown).all()


def test_the_self_test_finds_a_wrong_weight(tmp_path: Path) -> None:
    to_c(fl.LSTM(5, 12, seed=0), tmp_path / "model.c")
    source = (tmp_path / "model.c").read_text()
    first = re.search(r"w_h0\[\d+\] = \{\s+(-?[0-9.e-]+)f", source)
    assert first is not None
    (tmp_path / "model.c").write_text(source[: first.start(1)] + "9.0" + source[first.end(1) :])
    assert ctypes.CDLL(str(compiled(tmp_path))).model_selftest() == 2  # h is zero in the first step


@each_storage
@each_model
def test_undefined_behaviour_is_not_met(name: str, weights: str, tmp_path: Path) -> None:
    """The self-test under UBSan, and a step with NaN, infinity and huge numbers."""
    model = MODELS[name]()
    to_c(model, tmp_path / "model.c", weights=weights)
    ids = type(steps_of(model)[0]).__name__ == "Lookup"
    I, U = steps_of(model)[0].sizes[0], steps_of(model)[-1].sizes[1]  # noqa: E741
    feed = (
        ""
        if ids
        else (
            f"static const float odd[] = {{0.0f / 0.0f, 1e38f, -1e38f, 1e30f * 1e30f, 1e-42f}}; float x[{I}], y[{U}];"
            "int i, j;"
            f"for (i = 0; i < 5; i++) {{ model_state s; model_reset(&s); for (j = 0; j < {I}; j++) x[j] = odd[i];"
            "model_step(&s, x, y); model_step(&s, x, y); }"
        )
    )
    (tmp_path / "main.c").write_text(f'#include "model.h"\nint main(void) {{ {feed} return model_selftest(); }}\n')
    program = tmp_path / "program"
    flags = ["-fsanitize=undefined,float-cast-overflow", "-fno-sanitize-recover=all", "-DMODEL_SELFTEST"]
    subprocess.run([str(CC), "-O1", *flags, "-o", program, tmp_path / "model.c", tmp_path / "main.c"], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@each_model
def test_sizes_are_what_the_macros_say(name: str, tmp_path: Path) -> None:
    for weights in ("float32", "int8"):
        done = to_c(MODELS[name](), tmp_path / "model.c", weights=weights)
        header = (tmp_path / "model.h").read_text()
        for what in ("state", "stack", "flash"):
            assert f"#define MODEL_{what.upper()}_BYTES {getattr(done, f'{what}_bytes')}\n" in header
        check = '#include "model.h"\ntypedef char right[sizeof(model_state) == MODEL_STATE_BYTES ? 1 : -1];\n'
        (tmp_path / "check.c").write_text(check)
        subprocess.run([str(CC), *STRICT, "-c", "-o", tmp_path / "check.o", tmp_path / "check.c"], check=True)
        command = [str(CC), "-O2", "-fno-inline", "-fstack-usage", "-c", "-o", "model.o", "model.c"]
        subprocess.run(command, check=True, cwd=tmp_path)
        used = {line.split(":")[-1].split("\t")[0]: int(line.split("\t")[1]) for line in (tmp_path / "model.su").open()}
        deepest = used.pop("model_step") + max(n for f, n in used.items() if f.startswith("step"))
        assert deepest <= done.stack_bytes
        sizes = subprocess.run(
            ["size", "-A", "model.o"], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        constants = sum(int(n) for n in re.findall(r"^\.rodata\S*\s+(\d+)", sizes, re.M))
        assert done.flash_bytes <= constants <= done.flash_bytes + 512 + 0.1 * done.flash_bytes
        assert not re.search(r"^\.(data|bss)\s+[1-9]", sizes, re.M), "all arrays are constants"


@pytest.mark.parametrize("name", ["lstm", "sequential"])
def test_no_library_is_called(name: str, tmp_path: Path) -> None:
    to_c(MODELS[name](), tmp_path / "model.c")
    subprocess.run([str(CC), "-O2", "-c", "-o", "model.o", "model.c"], check=True, cwd=tmp_path)
    undefined = subprocess.run(["nm", "-u", "model.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert set(undefined.split()) - {"U"} <= {"memset", "memcpy", "_GLOBAL_OFFSET_TABLE_"}


def test_int8_takes_a_third_of_the_memory(tmp_path: Path) -> None:
    """Constants and code of a Cortex-M4 without a library: see the sizes in docs/c.md."""
    layer = fl.LSTM(16, 32, seed=0)
    whole = to_c(layer, tmp_path / "a.c").flash_bytes
    assert to_c(layer, tmp_path / "b.c", weights="int8").flash_bytes <= 0.33 * whole


@pytest.mark.skipif(not shutil.which("clang"), reason="clang is not installed")
@each_storage
@each_model
def test_clang_has_no_warning(name: str, weights: str, tmp_path: Path) -> None:
    to_c(MODELS[name](), tmp_path / "model.c", weights=weights)
    assert ctypes.CDLL(str(compiled(tmp_path, cc="clang"))).model_selftest() == 0


@pytest.mark.skipif(
    not (shutil.which("arm-none-eabi-gcc") and shutil.which("qemu-system-arm")),
    reason="Debian's gcc-arm-none-eabi and qemu-system-arm are not installed",
)
@each_storage
@pytest.mark.parametrize("name", ["lstm", "gru", "list softmax", "sequential"])
def test_cortex_m4(name: str, weights: str, tmp_path: Path) -> None:
    """The self-test on a bare Cortex-M4 under QEMU; and it fails there where an output is wrong."""
    to_c(MODELS[name](), tmp_path / "model.c", weights=weights)
    assert on_cortex_m4(tmp_path) == 0
    source = (tmp_path / "model.c").read_text()
    (tmp_path / "model.c").write_text(re.sub(r"(selftest_y\[\d+\] = \{\s+)-?[0-9.e-]+f", r"\g<1>7.0f", source))
    assert on_cortex_m4(tmp_path) == 1


def on_cortex_m4(folder: Path) -> int:
    """The status of the self-test of a folder's model.c on a Cortex-M4."""
    target = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]
    program = folder / "program.elf"
    subprocess.run(
        [
            "arm-none-eabi-gcc",
            *target,
            "-O2",
            "-std=gnu99",
            "-ffreestanding",
            "-nostdlib",
            "-DMODEL_SELFTEST",
            f"-I{folder}",
        ]
        + [
            "-T",
            str(BARE / "cortex_m4.ld"),
            "-o",
            str(program),
            str(BARE / "cortex_m4.c"),
            str(folder / "model.c"),
            "-lgcc",
        ],
        check=True,
    )
    machine = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none"]
    command = [*machine, "-semihosting", "-kernel", str(program)]
    return subprocess.run(command, timeout=60, stdin=subprocess.DEVNULL).returncode


@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64")),
    reason="Debian's gcc-aarch64-linux-gnu and qemu-user are not installed",
)
@each_storage
@pytest.mark.parametrize("name", ["lstm", "gru", "sequential"])
def test_aarch64(name: str, weights: str, tmp_path: Path) -> None:
    to_c(MODELS[name](), tmp_path / "model.c", weights=weights)
    (tmp_path / "main.c").write_text('#include "model.h"\nint main(void) { return model_selftest(); }\n')
    program = tmp_path / "program"
    sources = [str(tmp_path / "model.c"), str(tmp_path / "main.c")]
    subprocess.run(
        ["aarch64-linux-gnu-gcc", "-O2", "-static", "-DMODEL_SELFTEST", "-o", str(program), *sources], check=True
    )
    assert subprocess.run(["qemu-aarch64", str(program)], timeout=60).returncode == 0


def test_calibration_is_measured_and_written(tmp_path: Path) -> None:
    layer = fl.LSTM(5, 12, seed=0)
    sample = np.random.default_rng(0).normal(size=(3, 30, 5)).astype(np.float32)
    done = layer.to_c(tmp_path / "model.c", weights="int8", calibrate=sample)
    steps = steps_of(layer)
    changes = np.abs(np.stack([run(steps, x, True) for x in sample]) - np.stack([layer(x)[0] for x in sample]))
    assert done.change is not None
    assert done.change["mean"] == pytest.approx(changes.mean(), rel=1e-2)
    assert done.change["largest"] == pytest.approx(changes.max(), rel=1e-2)
    assert f"by {done.change['largest']:.2g} at most" in (tmp_path / "model.h").read_text()


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "path": (lambda p: to_c(fl.LSTM(2, 3), p / "model.txt"), "path names the C source, such as model.c"),
    "name": (lambda p: to_c(fl.LSTM(2, 3), p / "my-model.c"), "name='my_model' would be one"),
    "keyword": (lambda p: to_c(fl.LSTM(2, 3), p / "int.c"), "name='model_int' would be one"),
    "weights": (lambda p: to_c(fl.LSTM(2, 3), p / "m.c", weights="int4"), "weights must be one of float32, int8"),
    "calibrate": (
        lambda p: to_c(fl.LSTM(2, 3), p / "m.c", calibrate=np.zeros((4, 2))),
        "calibrate is for weights='int8'",
    ),
    "sample": (
        lambda p: to_c(fl.LSTM(2, 3), p / "m.c", weights="int8", calibrate=np.zeros((4, 5))),
        r"calibrate has shape \(4, 5\).*\(T, 2\) or \(N, T, 2\)",
    ),
    "a sample of unequal rows": (
        lambda p: to_c(fl.LSTM(2, 3), p / "m.c", weights="int8", calibrate=[[1.0], [1.0, 2.0]]),
        "calibrate cannot be made an array",
    ),
    "a sample beyond float32": (
        lambda p: to_c(fl.LSTM(2, 3), p / "m.c", weights="int8", calibrate=np.full((4, 2), 1e300)),
        "calibrate holds NaN, infinity, or numbers beyond float32",
    ),
    "bidirectional": (lambda p: to_c(fl.LSTM(2, 3, bidirectional=True), p / "m.c"), "its reverse direction begins at"),
    "float64": (lambda p: to_c(fl.LSTM(2, 3, dtype="float64"), p / "m.c"), "make the layer with float32"),
    "no layer": (lambda p: to_c([fl.Dense(2, 3)], p / "m.c"), "the model has no recurrent layer"),
    "empty": (lambda p: to_c([], p / "m.c"), "got an empty list"),
    "type": (lambda p: to_c([3], p / "m.c"), "got int"),
    "widths": (lambda p: to_c([fl.LSTM(2, 3), fl.Dense(4, 1)], p / "m.c"), "gives 3 numbers, but Dense.* takes 4"),
    "width": (lambda p: to_c(["tanh", fl.LSTM(2, 3)], p / "m.c"), "begin with a layer"),
    "not built": (lambda p: to_c(fl.Sequential([nn.LSTM(3)]), p / "m.c"), "is not built yet"),
    "backwards": (
        lambda p: to_c(built(nn.LSTM(3, go_backwards=True), shape=(5, 2)), p / "m.c"),
        "it begins at the sequence's end",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name: str, tmp_path: Path) -> None:
    call, message = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    layer = fl.LSTM(2, 3)
    layer.load_state_dict(layer.state_dict() | {"bias_hh_l0": np.full(12, np.nan)})
    with pytest.raises(ValueError, match=r"bias_hh of LSTM.* holds NaN or infinity"):
        layer.to_c(tmp_path / "model.c")
