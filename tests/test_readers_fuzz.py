"""Readers of other libraries' files on damaged files: each ends in a result or a FileError, in bounded memory and time.

FASTLSTM_FUZZ_CASES is the number of cases of each kind; `make test-all` tries 100,000.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import hostile
import pytest

CASES = int(os.environ.get("FASTLSTM_FUZZ_CASES", "0"))
QUICK = {
    "torch": 2000,
    "safetensors": 1000,
    "keras": 1000,
    "hdf5": 1000,
    "from_keras": 1000,
    "from_onnx": 1000,
    "accelerate": 1000,
    "convert": 1000,
    "info": 500,
}
SEED = 1_000_000  # the first case's number

needs_limits = pytest.mark.skipif(sys.platform != "linux", reason="the limits of memory and time are Linux's")


def run(kind: str, first: int, count: int, note: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(hostile.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, hostile.__file__, kind, str(first), str(count)],
        env={**os.environ, "FUZZ_CASE": str(note), "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


@needs_limits
@pytest.mark.parametrize("kind", [kind for kind in QUICK if kind != "hdf5"])
def test_a_damaged_file_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    if kind in hostile.OF_KERAS and importlib.util.find_spec("h5py") is None:
        pytest.skip("needs h5py")
    count = CASES or QUICK[kind]
    done = run(kind, SEED, count, tmp_path / "case")
    assert done.returncode == 0, (
        f"case {(tmp_path / 'case').read_text().strip()} of {kind} ended with status {done.returncode}\n{done.stderr}"
    )
    outcome = json.loads(done.stdout)
    assert outcome["read"] + outcome["refused"] == count
    assert outcome["read"] > count / 100 and outcome["refused"] > count / 2, "the damage is too small or too large"


@needs_limits
def test_hdf5_on_damaged_files(tmp_path: Path) -> None:
    """HDF5's C library may crash or loop: the test counts how often. test_keras_files.py has the process round it."""
    pytest.importorskip("h5py")
    count, at, end = CASES or QUICK["hdf5"], SEED, Counter[str]()
    while at < SEED + count:
        done = run("hdf5", at, SEED + count - at, tmp_path / "case")
        case = int((tmp_path / "case").read_text())
        if done.returncode == 0:
            end.update(json.loads(done.stdout))
            break
        assert done.returncode < 0, f"case {case}: an unhandled exception\n{done.stderr}"
        end[f"signal {-done.returncode}"] += 1
        print(f"hdf5: case {case} ended with signal {-done.returncode}")
        at = case + 1
    print(f"hdf5: {dict(end)}")
    assert sum(n for way, n in end.items() if way.startswith("signal")) <= max(3, count // 100)


@needs_limits
def test_the_program_that_is_run_tells_of_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness can fail: an exception other than FileError is reported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import fastlstm._readers.torch_files as m, itertools\n"
        "whole, calls = m.load, itertools.count()\n"
        "def load(path):\n"
        "    if next(calls) > 100: raise KeyError('seen')\n"
        "    return whole(path)\n"
        "m.load = load\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run([sys.executable, hostile.__file__, "torch", "0", "500"], capture_output=True, text=True)
    assert done.returncode == 1 and "KeyError: 'seen'" in done.stderr and "case " in done.stderr
