"""examples/embedded and fastlstm.hpp: programs without Python give the bits of Python's streams."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm import library, nn
from fastlstm._backends import backends

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "embedded"
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror"]
I, H, U, T = 5, 19, 3, 12  # noqa: E741


def why_not() -> str | None:
    """Why nothing here can run; None where it can."""
    if not FOLDER.exists():
        return "the examples are not installed with the package"
    if backends()["c"] is not None:
        return f"the C backend, which the outputs are compared with, is not there: {backends()['c']}"
    try:
        fl.get_library()
    except FileNotFoundError as error:
        return str(error)
    return None


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def tool(name: str) -> str:
    """The path of a compiler; the test is skipped where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def command(*parts: str | Path, cwd: Path | None = None, **env: str) -> None:
    """Run a compiler, whose words are shown where it fails."""
    done = subprocess.run(parts, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{parts}\n{done.stdout}{done.stderr}"


def split(options: str) -> list[str]:
    """Options for a compiler as `fastlstm info` prints them."""
    return subprocess.run(["sh", "-c", f"printf '%s\\n' {options}"], capture_output=True, text=True).stdout.splitlines()


def build_c(to: Path) -> None:
    flags = split(f"{library.cflags()} {library.libs()}")
    command(tool("gcc"), "-std=c99", *STRICT, FOLDER / "c" / "stream.c", "-o", to, *flags)


def build_c_static(to: Path) -> None:
    archive = Path(fl.get_library()).parent / "libfastlstm.a"
    command(tool("gcc"), FOLDER / "c" / "stream.c", "-o", to, f"-I{fl.get_include()}", archive, "-lm", "-pthread")
    assert b"libfastlstm.so" not in to.read_bytes()


def build_cpp(to: Path) -> None:
    tool("g++")
    cmake, folder = tool("cmake"), to.parent / "cmake"
    options = [f"-Dfastlstm_DIR={library.cmake_dir()}", f"-DCMAKE_CXX_FLAGS={' '.join(STRICT)}"]
    command(cmake, "-S", FOLDER / "cpp", "-B", folder, *options, f"-DCMAKE_RUNTIME_OUTPUT_DIRECTORY={folder / 'bin'}")
    command(cmake, "--build", folder)
    shutil.move(folder / "bin" / "stream", to)


def build_rust(to: Path) -> None:
    lib = Path(fl.get_library()).parent
    links: list[str | Path] = ["-L", lib, "-C", f"link-arg=-Wl,-rpath,{lib}"]
    command(tool("rustc"), "-D", "warnings", FOLDER / "rust" / "stream.rs", "-o", to, *links, cwd=to.parent)


def build_go(to: Path) -> None:
    flags = {"CGO_CFLAGS": library.cflags(), "CGO_LDFLAGS": library.libs(), "CGO_ENABLED": "1", "GOFLAGS": ""}
    tool("gcc")
    command(tool("go"), "build", "-o", to, ".", cwd=FOLDER / "go", GOTOOLCHAIN="local", GOPROXY="off", **flags)


BUILD: dict[str, Callable[[Path], None]] = {
    "c": build_c,
    "c static": build_c_static,
    "cpp": build_cpp,
    "rust": build_rust,
    "go": build_go,
}


@pytest.fixture(scope="module", params=BUILD)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The built example and what follows the model's file; Go's takes a number of sequences."""
    to = tmp_path_factory.mktemp("program") / "stream"
    BUILD[request.param](to)
    return [str(to), "1"] if request.param == "go" else [str(to)]


def run(program: list[str], path: Path, x: Any, *more: Any, cut: int = 0) -> subprocess.CompletedProcess[bytes]:
    """Run an example over frames x, without the last `cut` bytes."""
    data = x.tobytes()
    command = [program[0], path, *program[1:], *more]
    return subprocess.run(command, input=data[: len(data) - cut], capture_output=True, timeout=60)


def rows(done: subprocess.CompletedProcess[bytes]) -> Any:
    """The printed numbers. 9 digits, or the shortest text of a float32, tell one float32 from all others."""
    assert done.returncode == 0, done.stderr
    return np.array([line.split() for line in done.stdout.decode().splitlines()]).astype(np.float32)


def draw(*shape: int) -> Any:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def sequential() -> Any:
    model = fl.Sequential([nn.LSTM(H, return_sequences=True), nn.GRU(H, return_sequences=True), nn.Dense(U, "sigmoid")])
    model(draw(2, T, I))
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "lstm": lambda: fl.LSTM(I, H, 2, backend="c", seed=0),
    "projected": lambda: fl.LSTM(I, H, proj_size=7, peepholes=True, backend="c", seed=1),
    "int8": lambda: fl.GRU(I, H, backend="c", seed=2).quantize("int8"),
    "sequential": sequential,
}


def stepped(model: Any, x: Any) -> tuple[Any, bytes]:
    """Python's outputs, a step at a time, and its state afterwards."""
    streams = fl.StreamBatch(model)
    handle = streams.open()
    y = np.stack([streams.step(handle, row) for row in x])
    return y, streams.export(handle)[0]


@pytest.mark.parametrize("name", MODELS)
def test_outputs_have_the_bits_of_pythons_streams(program: list[str], name: str, tmp_path: Path) -> None:
    model, x = MODELS[name](), draw(T, I)
    model.save(tmp_path / "model.safetensors")
    y = rows(run(program, tmp_path / "model.safetensors", x))
    expected = stepped(model, x)[0]
    assert y.shape == expected.shape and (y.view(np.int32) == expected.view(np.int32)).all()
    if isinstance(model, fl.LSTM):
        stream = model.stream(1)
        assert (np.stack([stream.step(row[None])[0] for row in x]).view(np.int32) == y.view(np.int32)).all()


def test_failures_are_told_and_end_with_1(program: list[str], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    absent = run(program, path, draw(T, I))
    assert absent.returncode == 1 and b"model.safetensors cannot be opened" in absent.stderr and not absent.stdout
    MODELS["lstm"]().save(path)
    cut = run(program, path, draw(T, I), cut=3)
    assert cut.returncode == 1 and b"cut short" in cut.stderr and len(cut.stdout.splitlines()) == T - 1
    path.write_bytes(path.read_bytes()[:-40])
    damaged = run(program, path, draw(T, I))
    assert damaged.returncode == 1 and b"damaged" in damaged.stderr and not damaged.stdout


@pytest.mark.parametrize("program", ["c", "cpp"], indirect=True)
def test_states_go_from_python_to_the_program_and_back(program: list[str], tmp_path: Path) -> None:
    model, x, file = MODELS["lstm"](), draw(T, I), tmp_path / "state.bin"
    model.save(tmp_path / "model.safetensors")
    file.write_bytes(stepped(model, x[:4])[1])
    y = rows(run(program, tmp_path / "model.safetensors", x[4:9], file))
    assert (y == stepped(model, x)[0][4:9]).all()
    assert file.read_bytes() == stepped(model, x[:9])[1]
    streams = fl.StreamBatch(model)
    (handle,) = streams.restore([file.read_bytes()])
    assert (streams.step(handle, x[9]) == stepped(model, x)[0][9]).all()
    file.write_bytes(b"FLST" + bytes(80))
    refused = run(program, tmp_path / "model.safetensors", x, file)
    assert refused.returncode == 1 and refused.stderr and not refused.stdout
    assert file.read_bytes() == b"FLST" + bytes(80)


def test_go_steps_many_sequences_together(tmp_path: Path) -> None:
    build_go(tmp_path / "stream")
    model, x = MODELS["lstm"](), draw(T, 3, I)
    model.save(tmp_path / "model.safetensors")
    y = rows(run([str(tmp_path / "stream"), "3"], tmp_path / "model.safetensors", x)).reshape(T, 3, H)
    for n in range(3):
        assert (y[:, n] == stepped(model, x[:, n])[0]).all()


@pytest.mark.parametrize("exceptions", ["-fexceptions", "-fno-exceptions"])
def test_the_header_for_cpp(exceptions: str, tmp_path: Path) -> None:
    MODELS["lstm"]().save(tmp_path / "model.safetensors")
    flags = [exceptions, *split(f"{library.cflags()} {library.libs()}")]
    source = Path(__file__).parent / "c" / "test_hpp.cpp"
    command(tool("g++"), "-std=c++17", *STRICT, source, "-o", tmp_path / "test", *flags)
    done = subprocess.run(
        [tmp_path / "test", tmp_path / "model.safetensors"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_first_program_of_the_page(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "c_library.md").read_text(encoding="utf-8")
    (tmp_path / "program.c").write_text(re.findall(r"```c\n(#include.*?)```", page, re.DOTALL)[0])
    flags = split(f"{library.cflags()} {library.libs()}")
    command(tool("gcc"), *STRICT, "program.c", "-o", "program", *flags, cwd=tmp_path)
    model = MODELS["sequential"]()
    model.save(tmp_path / "model.safetensors")
    done = subprocess.run(["./program"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    expected = stepped(model, np.zeros((1, I), np.float32))[0][0, 0]
    assert done.returncode == 0 and float(done.stdout.rsplit(": ", 1)[1]) == pytest.approx(expected, rel=1e-5)


def test_codes_of_the_page_are_those_of_the_header() -> None:
    page = (ROOT / "docs" / "c_library.md").read_text(encoding="utf-8")
    header = (Path(fl.get_include()) / "fastlstm.h").read_text(encoding="utf-8")
    codes = re.findall(r"^ {4}(FASTLSTM_\w+) = \d+", header, re.MULTILINE)
    assert len(codes) >= 12 and re.findall(r"^\| `(FASTLSTM_\w+)`", page, re.MULTILINE) == codes


def test_save_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["save_model.py", str(tmp_path)])
    runpy.run_path(str(FOLDER / "save_model.py"), run_name="__main__")
    build_c(tmp_path / "stream")
    frames = np.fromfile(tmp_path / "frames.f32", np.float32)
    y = rows(run([str(tmp_path / "stream")], tmp_path / "model.safetensors", frames))
    expected = stepped(fl.load(tmp_path / "model.safetensors"), frames.reshape(100, 40))[0]
    assert y.shape == (100, 3) and (y == expected).all()
    told = capsys.readouterr().out.rsplit("are ", 1)[1].strip("[]\n").split()
    np.testing.assert_allclose(np.array(told, float), y[-1], atol=1e-6)
