"""``fastlstm to-c``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fastlstm as fl
from fastlstm.cli import main


def test_the_command_writes_what_the_function_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = fl.LSTM(3, 5, seed=0)
    layer.save(tmp_path / "model.safetensors")
    sample = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    np.save(tmp_path / "sample.npy", sample)
    (tmp_path / "own").mkdir()
    done = layer.to_c(tmp_path / "own" / "model.c", "front", "int8", sample)
    options = ["--name", "front", "--weights", "int8", "--calibrate", str(tmp_path / "sample.npy"), "--json"]
    assert main(["to-c", str(tmp_path / "model.safetensors"), str(tmp_path / "model.c"), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["flash_bytes"] == done.flash_bytes and said["change"] == done.change
    for end in (".c", ".h"):
        assert (tmp_path / f"model{end}").read_text() == (tmp_path / "own" / f"model{end}").read_text()


def test_files_that_exist_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fl.LSTM(3, 5, seed=0).save(tmp_path / "model.safetensors")
    (tmp_path / "model.h").write_text("mine")
    command = ["to-c", str(tmp_path / "model.safetensors"), str(tmp_path / "model.c")]
    assert main(command) == 2
    assert "model.h exists: --force replaces it" in capsys.readouterr().err
    assert (tmp_path / "model.h").read_text() == "mine" and not (tmp_path / "model.c").exists()
    assert main([*command, "--force"]) == 0
    assert "MODEL_STATE_BYTES" in (tmp_path / "model.h").read_text()


@pytest.mark.parametrize(
    "content", [b"", b"no numbers", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"]
)
def test_a_sample_that_is_no_array_is_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fl.LSTM(3, 5, seed=0).save(tmp_path / "model.safetensors")
    (tmp_path / "sample.npy").write_bytes(content)
    options = ["--weights", "int8", "--calibrate", str(tmp_path / "sample.npy")]
    assert main(["to-c", str(tmp_path / "model.safetensors"), str(tmp_path / "model.c"), *options]) == 2
    assert "sample.npy is no .npy file of numbers" in capsys.readouterr().err
    assert not (tmp_path / "model.c").exists()
