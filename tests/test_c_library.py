"""The C library: Python's bits and states, refusals by code, its symbols, its size, what a step asks of the system."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm import library, nn
from fastlstm.models import checksum

ROOT = Path(__file__).parents[1]
try:
    LIBRARY = fl.get_library()
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

OK, ARGUMENT, MEMORY, FILE, FORMAT, VERSION, UNSUPPORTED, SHAPE, STATE, CLOSED, FULL, TWICE = range(12)
OTHER_WEIGHTS = 1
HANDLE = ctypes.c_uint64
VOID, SIZE = ctypes.c_void_p, ctypes.c_size_t


class Error(ctypes.Structure):
    _fields_ = (("code", ctypes.c_int), ("message", ctypes.c_char * 252))


class Options(ctypes.Structure):
    _fields_ = (("size", SIZE), ("threads", ctypes.c_int), ("isa", ctypes.c_char_p))


class Info(ctypes.Structure):
    _fields_ = (
        *(
            (name, SIZE)
            for name in ("size", "I", "U", "vocabulary", "layers", "numbers", "state_bytes", "weight_bytes")
        ),
        ("threads", ctypes.c_int),
        ("weights_id", ctypes.c_ubyte * 16),
        ("isa", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
    )


C = ctypes.CDLL(LIBRARY)
C.fastlstm_strerror.restype = ctypes.c_char_p
for name in ("fastlstm_stream_size", "fastlstm_batch_count"):
    getattr(C, name).restype = SIZE


def pointer(a: Any) -> Any:
    return a.ctypes.data_as(VOID)


class Model:
    """A model of the library, from a file or bytes."""

    def __init__(self, source: Path | bytes, threads: int = 0, isa: str | None = None) -> None:
        self.handle, error = VOID(), Error()
        options = Options(ctypes.sizeof(Options), threads, isa.encode() if isa else None)
        end = ctypes.byref(options), ctypes.byref(self.handle), ctypes.byref(error)
        if isinstance(source, Path):
            self.code = C.fastlstm_model_load(str(source).encode(), *end)
        else:
            self.code = C.fastlstm_model_from_memory(source, SIZE(len(source)), *end)
        self.message = error.message.decode()
        assert error.code == self.code and bool(self.message) == bool(self.code)
        if not self.code:
            self.info = Info(ctypes.sizeof(Info))
            assert C.fastlstm_model_info(self.handle, ctypes.byref(self.info)) == OK

    def stream(self) -> Any:
        made = VOID()
        assert C.fastlstm_stream_new(self.handle, ctypes.byref(made)) == OK
        return made

    def run(self, stream: Any, x: Any) -> Any:
        y = np.empty((len(x), self.info.U), np.float32)
        x = np.ascontiguousarray(x)
        function = C.fastlstm_run_ids if x.dtype == np.int64 else C.fastlstm_run
        assert function(stream, pointer(x), SIZE(len(x)), pointer(y)) == OK
        return y

    def export(self, stream: Any) -> bytes:
        state, need = ctypes.create_string_buffer(self.info.state_bytes), SIZE()
        assert C.fastlstm_state_export(stream, None, SIZE(0), ctypes.byref(need)) == OK
        assert need.value == self.info.state_bytes
        assert C.fastlstm_state_export(stream, state, SIZE(need.value - 1), None) == SHAPE
        assert C.fastlstm_state_export(stream, state, need, None) == OK
        return state.raw

    def restore(self, stream: Any, state: bytes, flags: int = 0) -> tuple[int, str]:
        error = Error()
        return (
            C.fastlstm_state_import(stream, state, SIZE(len(state)), flags, ctypes.byref(error)),
            error.message.decode(),
        )


def numbers(n: int, width: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((n, width), np.float32)


def sequential() -> Any:
    model = fl.Sequential(
        [
            fl.nn.Embedding(50, 12),
            fl.nn.GRU(20, return_sequences=True),
            fl.nn.Residual(fl.nn.LSTM(20, return_sequences=True)),
            fl.nn.Dense(7, activation="tanh"),
            fl.nn.Activation(("leaky_relu", 0.3)),
            fl.nn.Dense(3, activation="softmax"),
        ],
        seed=1,
    )
    model(np.array([[1, 2, 3]]))
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "LSTM of two layers": lambda: fl.LSTM(40, 33, num_layers=2, seed=1),
    "LSTM, all options": lambda: fl.LSTM(
        5, 20, proj_size=7, peepholes=True, clip=0.7, activations=("hard_sigmoid", "softsign", ("elu", 0.5)), seed=1
    ),
    "LSTM, one bias, coupled gates": lambda: fl.LSTM(5, 19, single_bias=True, input_forget=True, seed=1),
    "LSTM without biases": lambda: fl.LSTM(5, 19, bias=False, seed=1),
    "GRU": lambda: fl.GRU(9, 17, num_layers=2, seed=1),
    "GRU of the paper": lambda: fl.GRU(9, 17, reset_after=False, seed=1),
    "RNN": lambda: fl.RNN(3, 70, nonlinearity="relu", seed=1),
    "int8": lambda: fl.LSTM(40, 33, num_layers=2, seed=1).quantize("int8"),
    "int8 of int16 inputs": lambda: fl.GRU(40, 33, seed=1).quantize("int8", inputs="int16"),
    "int16": lambda: fl.LSTM(40, 33, proj_size=9, seed=1).quantize("int16"),
    "float16": lambda: fl.GRU(40, 33, seed=1).quantize("float16"),
    "Sequential": sequential,
}


@pytest.fixture(params=MODELS)
def made(request: Any, tmp_path: Path) -> Iterator[tuple[Any, Model]]:
    """A model of Python, on backend C, and the library's from its file."""
    model = MODELS[request.param]()
    model.save(tmp_path / "model.safetensors")
    yield model, Model(tmp_path / "model.safetensors")


def test_steps_and_states_are_those_of_python(made: tuple[Any, Model]) -> None:
    """Bits of every step, and of the state, both ways: each goes on from the other's."""
    model, own = made
    assert own.code == OK, own.message
    streams, stream, other = fl.StreamBatch(model), own.stream(), own.stream()
    handle = streams.open()
    ids = own.info.I == 0
    x = np.arange(9, dtype=np.int64) * 5 if ids else numbers(9, own.info.I)
    want = np.concatenate([streams.step([handle], row[None]) for row in x])
    assert own.run(stream, x).tobytes() == want.tobytes()
    (state,) = streams.export([handle])
    assert own.export(stream) == state and bytes(own.info.weights_id) == streams.weights_id

    assert own.restore(other, state) == (OK, "")
    (again,) = streams.restore([own.export(stream)])
    assert own.run(other, x[:3]).tobytes() == np.concatenate([streams.step([again], r[None]) for r in x[:3]]).tobytes()


def test_token_ids_of_a_recurrent_layer(tmp_path: Path) -> None:
    layer = fl.LSTM(30, 16, seed=1)
    layer.save(tmp_path / "m")
    own, streams = Model(tmp_path / "m"), fl.StreamBatch(layer)
    handle, stream, ids = streams.open(), own.stream(), np.array([3, 0, 29])
    want = np.concatenate([streams.step([handle], i[None]) for i in ids])
    assert own.run(stream, ids).tobytes() == want.tobytes()
    y = np.zeros(16, np.float32)
    for wrong in (-1, 30):
        assert C.fastlstm_step_id(stream, ctypes.c_int64(wrong), pointer(y)) == ARGUMENT
    assert not y.any() and own.export(stream) == streams.export([handle])[0]


def test_text_model(tmp_path: Path) -> None:
    from fastlstm.text import CharModel

    model = CharModel("abcdef", 16, seed=1)
    model.save(tmp_path / "m")
    own = Model(tmp_path / "m")
    assert (own.info.vocabulary, own.info.U) == (6, 6)
    streams = fl.StreamBatch([model.lstm, model.head])
    handle = streams.open()
    want = np.concatenate([streams.step([handle], np.array([i])) for i in (0, 5, 2)])
    assert own.run(own.stream(), np.array([0, 5, 2])).tobytes() == want.tobytes()


class Batch:
    def __init__(self, model: Model, capacity: int = 0, most: int = 0) -> None:
        self.model, self.handle = model, VOID()
        assert C.fastlstm_batch_new(model.handle, SIZE(capacity), SIZE(most), ctypes.byref(self.handle)) == OK

    def open(self) -> int:
        made = HANDLE()
        code = C.fastlstm_batch_open(self.handle, ctypes.byref(made))
        return made.value if code == OK else -code

    def close(self, handle: int) -> int:
        code: int = C.fastlstm_batch_close(self.handle, HANDLE(handle))
        return code

    def step(self, handles: Any, x: Any, y: Any) -> int:
        named = np.array(handles, np.uint64)
        code: int = C.fastlstm_batch_step(self.handle, pointer(named), SIZE(len(named)), pointer(x), pointer(y))
        return code


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_has_the_bits_of_streams(tmp_path: Path, threads: int) -> None:
    """600 sequences, more than two slabs, in a random order and in part; each as a stream alone."""
    layer = fl.LSTM(8, 24, num_layers=2, seed=1)
    layer.save(tmp_path / "m")
    own = Model(tmp_path / "m", threads)
    batch, draw = Batch(own, 3), np.random.default_rng(1)
    handles = [batch.open() for _ in range(600)]
    assert len(set(handles)) == 600 and C.fastlstm_batch_count(batch.handle) == 600
    streams = [own.stream() for _ in handles]
    for n in (600, 1, 77, 0, 599):
        chosen, x = draw.permutation(600)[:n], numbers(n, 8, n)
        y = np.empty((n, 24), np.float32)
        assert batch.step([handles[i] for i in chosen], x, y) == OK
        for i, row, out in zip(chosen, x, y, strict=True):
            assert own.run(streams[i], row[None]).tobytes() == out.tobytes()
    state, need = ctypes.create_string_buffer(own.info.state_bytes), SIZE()
    assert C.fastlstm_batch_export(batch.handle, HANDLE(handles[7]), state, SIZE(len(state)), ctypes.byref(need)) == OK
    assert state.raw[: need.value] == own.export(streams[7])
    assert C.fastlstm_batch_import(batch.handle, HANDLE(handles[8]), state, need, 0, None) == OK
    y = np.empty((2, 24), np.float32)
    assert batch.step(handles[7:9], np.ones((2, 8), np.float32), y) == OK
    assert y[0].tobytes() == y[1].tobytes()
    C.fastlstm_shutdown()
    assert batch.step(handles, numbers(600, 8), np.empty((600, 24), np.float32)) == OK
    C.fastlstm_batch_free(batch.handle)


def test_refused_handles(tmp_path: Path) -> None:
    layer = fl.GRU(4, 6, seed=1)
    layer.save(tmp_path / "m")
    own = Model(tmp_path / "m")
    batch = Batch(own, 0, 3)
    a, b, _ = handles = [batch.open() for _ in range(3)]
    x, y = numbers(3, 4), np.empty((3, 6), np.float32)
    assert batch.open() == -FULL
    assert batch.step([a, b, a], x, y) == TWICE
    assert batch.step([a, 0, b], x, y) == CLOSED
    assert batch.step([a, b, 2**64 - 1], x, y) == CLOSED
    assert batch.step([a, a, a, a], numbers(4, 4), np.empty((4, 6), np.float32)) == TWICE
    assert batch.close(b) == OK and batch.close(b) == CLOSED
    again = batch.open()
    assert again != b and batch.step([a, b, again], x, y) == CLOSED
    want = own.run(own.stream(), x[:1])
    assert batch.step([again, a, handles[2]], x[[0, 0, 0]], y) == OK  # nothing was stepped by the refused calls
    assert all(row.tobytes() == want.tobytes() for row in y)
    for function in (C.fastlstm_batch_reset, C.fastlstm_batch_close):
        assert function(batch.handle, HANDLE(b)) == CLOSED
    assert C.fastlstm_batch_import(batch.handle, HANDLE(b), b"", SIZE(0), 0, None) == CLOSED


def test_wrong_arguments(tmp_path: Path) -> None:
    layer = fl.GRU(4, 6, seed=1)
    layer.save(tmp_path / "m")
    own, made, y = Model(tmp_path / "m"), VOID(), np.zeros(6, np.float32)
    stream = own.stream()
    assert C.fastlstm_step(None, pointer(y), pointer(y)) == ARGUMENT
    assert C.fastlstm_step(stream, None, pointer(y)) == ARGUMENT
    assert C.fastlstm_stream_new(None, ctypes.byref(made)) == ARGUMENT
    assert C.fastlstm_batch_new(own.handle, SIZE(4), SIZE(3), ctypes.byref(made)) == ARGUMENT
    size = C.fastlstm_stream_size(own.handle)
    memory = ctypes.create_string_buffer(size + 1)
    at = ctypes.addressof(memory) + 1  # any alignment
    assert C.fastlstm_stream_init(own.handle, VOID(at), SIZE(size - 1), ctypes.byref(made)) == ARGUMENT
    assert C.fastlstm_stream_init(own.handle, VOID(at), SIZE(size), ctypes.byref(made)) == OK
    x = numbers(3, 4)
    assert own.run(made, x).tobytes() == own.run(stream, x).tobytes()
    C.fastlstm_model_release(own.handle)  # the streams hold it too
    assert own.run(made, x).tobytes() == own.run(stream, x).tobytes()
    assert C.fastlstm_copy(made, stream) == OK and C.fastlstm_reset(stream) == OK
    C.fastlstm_stream_free(made)
    C.fastlstm_stream_free(stream)
    C.fastlstm_stream_free(None)
    assert Model(tmp_path / "m", threads=-1).code == ARGUMENT
    assert Model(tmp_path / "m", isa="sse9").code == ARGUMENT


def test_every_instruction_set_has_the_packages_bits(tmp_path: Path) -> None:
    from fastlstm._backends import c

    layer = fl.LSTM(40, 33, seed=1).quantize("int8")
    layer.save(tmp_path / "m")
    x = numbers(5, 40)
    for name in [name for name, why in c.isas().items() if why is None]:
        with c.use_isa(name):
            want = fl.load(tmp_path / "m", "c").stream().run(x[:, None])
        own = Model(tmp_path / "m", isa=name)
        assert own.info.isa.decode() == name and own.run(own.stream(), x).tobytes() == want.tobytes()


def test_states_that_are_refused(tmp_path: Path) -> None:
    for seed in (1, 2):
        fl.LSTM(4, 6, seed=seed).save(tmp_path / f"{seed}")
    fl.LSTM(4, 7, seed=1).save(tmp_path / "3")
    one, two, wide = (Model(tmp_path / name) for name in "123")
    stream = one.stream()
    state = one.export(stream)
    cases = {
        b"": (STATE, "no state"),
        state[:-1]: (STATE, "checksum"),
        state + b"x": (STATE, "checksum"),
        state[:50] + bytes([state[50] ^ 1]) + state[51:]: (STATE, "checksum"),
        state[:4] + struct.pack("<H", 2) + state[6:]: (VERSION, "version 2"),
        two.export(two.stream()): (STATE, "other weights"),
        wide.export(wide.stream()): (STATE, "another model"),
    }
    own_before = one.export(stream)
    for given, (code, words) in cases.items():
        found, message = one.restore(stream, given)
        assert found == code and words in message
    assert one.export(stream) == own_before
    assert one.restore(stream, two.export(two.stream()), OTHER_WEIGHTS) == (OK, "")
    assert one.restore(stream, state, 6)[0] == ARGUMENT


# ------------------------------------------------------------------------------------------------------------- files
def remade(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A file with another configuration, and the checksum that belongs to it left as it was."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    config = json.loads(header["__metadata__"]["fastlstm"])
    change(config)
    header["__metadata__"]["fastlstm"] = json.dumps(config, ensure_ascii=False, sort_keys=True)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    fl.LSTM(3, 4, seed=1).save(path)
    data = path.read_bytes()
    assert Model(data).code == OK and Model(tmp_path / "none").code == FILE and Model(tmp_path).code == FILE
    without = Model(remade(data, lambda config: config.pop("steps") and config.pop("crc32")))
    assert without.code == UNSUPPORTED and "save it again" in without.message
    newer = Model(remade(data, lambda config: config.update(version=99)))
    assert newer.code == VERSION and "99" in newer.message
    wrong = Model(remade(data, lambda config: config["steps"]["list"][0].update(H=5)))
    assert wrong.code == FORMAT and "checksum" in wrong.message
    fl.LSTM(3, 4, bidirectional=True).save(path)
    both = Model(path)
    assert both.code == UNSUPPORTED and "begins at the sequence's end" in both.message
    fl.LSTM(3, 4, dtype="float64").save(path)
    assert Model(path).code == UNSUPPORTED


def altered(path: Path, change: Callable[[dict[str, Any]], None]) -> Model:
    """The model of a file with other steps and the checksum that belongs to them, as a hostile file may have."""
    arrays, config = fl.files.load(path)
    config.pop("crc32")
    change(config["steps"])
    fl.files.save(path, arrays, config | {"crc32": checksum(config, arrays)})
    return Model(path)


def test_hostile_steps_are_refused(tmp_path: Path) -> None:
    fl.RNN(40, 3, seed=1).quantize("int16").save(tmp_path / "planes")
    assert altered(tmp_path / "planes", lambda steps: None).code == OK
    planes = altered(tmp_path / "planes", lambda steps: steps["list"][0].update(planes=2))
    assert planes.code == FORMAT and "does not fit its kind of cell" in planes.message
    fl.LSTM(64, 64, seed=1).save(tmp_path / "many")
    many = altered(tmp_path / "many", lambda steps: steps.update(list=steps["list"] * 1000))
    assert many.code == FORMAT and "again and again" in many.message


def test_arrays_that_overlap_are_refused(tmp_path: Path) -> None:
    header = {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in ("v", "w")}
    text = json.dumps(header).encode()
    overlapping = Model(len(text).to_bytes(8, "little") + text + bytes(32))
    assert overlapping.code == FORMAT and "overlap" in overlapping.message


def test_a_residual_path_takes_no_token_ids(tmp_path: Path) -> None:
    model = fl.Sequential([nn.Residual(nn.LSTM(8, return_sequences=True)), nn.Dense(2)], seed=0)
    model.build((3, 8))
    model.save(tmp_path / "m")
    read, y = Model(tmp_path / "m"), np.zeros(2, np.float32)
    assert C.fastlstm_step_id(read.stream(), ctypes.c_int64(3), pointer(y)) == ARGUMENT and not y.any()


def test_a_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m"
    fl.GRU(2, 3, seed=1).save(path)
    data = path.read_bytes()
    missed = [
        at
        for at in range(8, len(data), 3)
        if Model(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]).code == OK and data[at : at + 1].isalnum()
    ]
    length = 8 + int.from_bytes(data[:8], "little")
    assert not [at for at in missed if at >= length], "in the arrays"
    for at in range(0, len(data), 7):
        cut = Model(data[:at])
        assert cut.code == FORMAT and cut.message


def test_codes_have_texts() -> None:
    header = (ROOT / "csrc" / "library" / "fastlstm.h").read_text()
    codes = {name: int(n) for name, n in re.findall(r"FASTLSTM_([A-Z]+) = (\d+),? ", header)}
    codes.pop("WEIGHTS", None)
    assert {name: globals()[name] for name in codes} == codes and len(codes) >= 11
    texts = {C.fastlstm_strerror(code) for code in range(12)}
    assert len(texts) == 12 and b"unknown" in C.fastlstm_strerror(99)
    assert C.fastlstm_abi() == int(re.search(r"#define FASTLSTM_ABI (\d+)", header)[1])  # type: ignore[index]
    assert f"libfastlstm.so.{C.fastlstm_abi()}" == library.NAME


# ------------------------------------------------------------------------------------------------- the library itself
def tool(*command: str | Path) -> str:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not here")
    return subprocess.run([str(one) for one in command], capture_output=True, text=True, check=True).stdout


def defined(*command: str | Path) -> set[str]:
    return {line.split()[-1] for line in tool(*command).splitlines() if len(line.split()) == 3}


def test_only_the_interface_is_exported() -> None:
    header = (Path(fl.get_include()) / "fastlstm.h").read_text()
    declared = set(re.findall(r"\b(fastlstm_\w+)\(", header)) - {"fastlstm_info"}
    assert defined("nm", "-D", "--defined-only", LIBRARY) == declared
    archive = Path(LIBRARY).with_name("libfastlstm.a")
    assert defined("nm", "-g", "--defined-only", archive) == declared


def test_nothing_prints_exits_or_aborts() -> None:
    wanted = {line.split()[-1].split("@")[0] for line in tool("nm", "-D", "--undefined-only", LIBRARY).splitlines()}
    refused = {
        "abort",
        "exit",
        "_exit",
        "printf",
        "puts",
        "fputs",
        "fprintf",
        "perror",
        "stderr",
        "signal",
        "sigaction",
    }
    refused |= {"setlocale", "__assert_fail", "getenv"}
    assert not wanted & refused


def test_the_library_is_half_of_the_extension_at_most() -> None:
    from fastlstm import _fastlstm_c

    text = [int(tool("size", path).splitlines()[1].split()[0]) for path in (LIBRARY, _fastlstm_c.__file__)]
    assert text[0] <= 0.5 * text[1], f"{text[0]:,} bytes of text, and the extension has {text[1]:,}"


def test_a_program_of_c_allocates_and_asks_nothing_in_a_step(tmp_path: Path) -> None:
    """tests/c/steps.c counts malloc and its like, and forbids system calls by seccomp, during steps."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is here")
    sequential().save(tmp_path / "ids")
    fl.LSTM(8, 24, num_layers=2, seed=1).quantize("int8").save(tmp_path / "m")
    program = tmp_path / "steps"
    options = [*library.cflags().split(), "-std=c99", "-D_GNU_SOURCE", "-pedantic", "-Wall", "-Wextra", "-Werror"]
    source = ROOT / "tests" / "c" / "steps.c"
    subprocess.run([compiler, *options, source, "-o", program, *library.libs().split()], check=True)
    done = subprocess.run([program, tmp_path / "m", tmp_path / "ids"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 allocations" in done.stdout


def test_info_tells_compilers(capsys: pytest.CaptureFixture[str]) -> None:
    from fastlstm.cli import main

    assert main(["info", "--cflags", "--libs"]) == 0
    assert capsys.readouterr().out.split() == [*library.cflags().split(), *library.libs().split()]
    assert main(["info", "--cmake-dir"]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "fastlstmConfig.cmake").is_file()
    assert main(["info", "--libs", "model.safetensors"]) != 0


def test_what_is_missing_is_told_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "PREFIX", tmp_path)
    (tmp_path / "not_built.txt").write_text("gcc cannot be run\n")
    with pytest.raises(FileNotFoundError, match=r"gcc cannot be run.*install a C compiler"):
        fl.get_library()
