"""The number of threads and its origin: `fastlstm.num_threads`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm import num_threads as cpu
from fastlstm._backends import backends


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run a test with no number of threads set, and reset everything after it."""
    monkeypatch.setattr(cpu, "_in_process", None)
    monkeypatch.delenv("FASTLSTM_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cpu._from_surroundings.cache_clear()
    yield
    cpu._from_surroundings.cache_clear()


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Make a root folder with `groups` as proc/self/cgroup and, below sys/fs/cgroup, `files`: text by path."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (cpu.get_num_threads(), cpu.origin()) == cpu._from_machine()
    for variable, value, n, origin in [
        ("OMP_NUM_THREADS", "5", 5, "OMP_NUM_THREADS"),
        ("OMP_NUM_THREADS", " 6 , 2", 6, "OMP_NUM_THREADS (first number)"),
        ("FASTLSTM_NUM_THREADS", "7", 7, "FASTLSTM_NUM_THREADS"),
        ("FASTLSTM_NUM_THREADS", "", 6, "OMP_NUM_THREADS (first number)"),
    ]:
        monkeypatch.setenv(variable, value)
        cpu._from_surroundings.cache_clear()
        assert (cpu.get_num_threads(), cpu.origin()) == (n, origin)
    cpu.set_num_threads(3)
    assert (cpu.get_num_threads(), cpu.origin()) == (3, "set_num_threads(3)")
    with cpu.threads(2):
        assert (cpu.get_num_threads(), cpu.origin()) == (2, "threads(2)")
        with cpu.threads(9):
            assert cpu.get_num_threads() == 9
        assert cpu.get_num_threads() == 2
    assert cpu.get_num_threads() == 3


def test_threads_restores_after_an_error() -> None:
    cpu.set_num_threads(3)
    with pytest.raises(KeyError), cpu.threads(2):
        raise KeyError
    assert cpu.get_num_threads() == 3


def test_threads_is_for_its_own_python_thread() -> None:
    cpu.set_num_threads(3)
    seen: list[int] = []
    with cpu.threads(2):
        other = threading.Thread(target=lambda: seen.append(cpu.get_num_threads()))
        other.start()
        other.join()
    assert seen == [3]


def test_more_threads_than_c_can_count(compiled: str) -> None:
    """set_num_threads refuses the number; without that check a later call fails with an OverflowError of cffi."""
    for n in (65537, 3_000_000_000, 10**30):
        with pytest.raises(ValueError, match=rf"set_num_threads\(n\): n must be at most 65536, got {n}"):
            cpu.set_num_threads(n)
    with cpu.threads(65536):
        y, _ = fl.GRU(8, 16, backend=compiled, seed=0)(np.ones((3, 64, 8), np.float32))
    np.testing.assert_array_equal(y, fl.GRU(8, 16, backend=compiled, seed=0)(np.ones((3, 64, 8), np.float32))[0])


@pytest.mark.parametrize("n", [0, -1, 1.0, 2.5, "2", True, None])
def test_bad_numbers(n: object) -> None:
    cpu.set_num_threads(3)
    with pytest.raises(ValueError, match=r"set_num_threads\(n\): n must be a whole number of at least 1, got"):
        cpu.set_num_threads(n)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"threads\(n\): n must be"), cpu.threads(n):  # type: ignore[arg-type]
        pass
    assert cpu.get_num_threads() == 3


ODD = ["0", "-1", "two", "all", "1.0", "1.5", ",2", "0,2", "+4", "²", "65537", "99999999999999999999", "9" * 5000]


@pytest.mark.parametrize("value", [*ODD, "4,2"])
def test_a_bad_word_of_our_own_is_an_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FASTLSTM_NUM_THREADS", value)
    with pytest.raises(ValueError, match="FASTLSTM_NUM_THREADS must be a whole number from 1 to 65536, got "):
        cpu.get_num_threads()


@pytest.mark.parametrize("value", ODD)
def test_a_bad_word_of_others_is_passed_over_with_one_warning(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.warns(RuntimeWarning, match="OMP_NUM_THREADS is .* no number of threads: fastlstm passes it") as told:
        for _ in range(3):
            assert (cpu.get_num_threads(), cpu.origin()) == cpu._from_machine()
    assert len(told) == 1
    cpu.set_num_threads(3)
    assert cpu.get_num_threads() == 3


@pytest.mark.parametrize(
    ("value", "n"), [("", None), ("  ", None), (" 3 ", 3), ("4,2", 4), ("4,all", 4), ("65536", 65536)]
)
@pytest.mark.filterwarnings("error")
def test_good_words_of_others(monkeypatch: pytest.MonkeyPatch, value: str, n: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert cpu.get_num_threads() == (n or cpu._from_machine()[0])


@pytest.mark.parametrize("value", ["all", "0", "1.0", "3000000000"])
def test_layers_run_whatever_omp_num_threads_is(value: str, backend: str) -> None:
    """In a process of its own, since the variable is read once. The warning appears once, on stderr."""
    code = f"""
import numpy as np, fastlstm as fl
layer = fl.LSTM(64, 128, backend={backend!r}, seed=0)
for _ in range(3):
    print(layer(np.ones((9, 64, 64), "float32"))[0].shape)
"""
    environment = {k: v for k, v in os.environ.items() if k != "FASTLSTM_NUM_THREADS"} | {"OMP_NUM_THREADS": value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "(9, 64, 128)\n" * 3
    assert done.stderr.count("fastlstm passes it over") == (backend != "numpy")  # which uses the threads of BLAS


@pytest.mark.parametrize("name", ["NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER"])
@pytest.mark.parametrize("value", ["0", "-1", "all", "", "1"])
def test_what_numba_refuses_makes_its_backend_unusable(name: str, value: str) -> None:
    """ "auto" then takes another backend, and a forced "numba" is an error that names the variable."""
    if why := backends()["numba"]:
        pytest.skip(why)
    refused = name == "NUMBA_THREADING_LAYER" or value in ("0", "-1")
    code = """
import numpy as np, fastlstm as fl
x = np.ones((2, 64, 64))
print(fl.LSTM(64, 512, dtype="float64", seed=0)(x)[0].shape)
try:
    print(fl.LSTM(64, 512, dtype="float64", backend="numba", seed=0)(x)[0].shape)
except fl.BackendError as error:
    print(error)
"""
    environment = os.environ | {name: value, "FASTLSTM_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "(2, 64, 512)"
    assert (f"Numba refuses the environment variable {name}=" in second) == refused == (second != first)


V1 = "4:memory:/a\n2:cpu,cpuacct:/a/b\n1:cpuset:/\n"
V1_A = "cpu,cpuacct/a/cpu.cfs_"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "max 100000\n"}, 3.0),
        ("0::/host/path\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
        (V1, {V1_A + "quota_us": "-1\n", V1_A + "period_us": "100000\n"}, None),
        (V1, {V1_A + "quota_us": "250000\n", V1_A + "period_us": "100000\n"}, 2.5),
        ("", {}, None),
        ("0::/\n", {"cpu.max": "9" * 5000 + " 100000\n"}, None),
        ("0::/\n", {"cpu.max": "100000 0\n"}, None),
        ("0::/\n", {"cpu.max": "0 100000\n"}, None),
        ("0::/\n", {"cpu.max": "1.5 1\n"}, None),
        ("0::/\n", {"cpu.max": "150000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000 7\n"}, None),
        ("0::/a\0b\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/../../x\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("no colon\n0::/\n::\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/" + "a" * 300 + "/b\n", {"cpu.max": "150000 100000\n"}, 1.5),
    ],
)
def test_cgroup_quota(tmp_path: Path, groups: str, files: dict[str, str], quota: float | None) -> None:
    assert cpu.cgroup_quota(machine(tmp_path, groups, files)) == quota


def test_no_proc(tmp_path: Path) -> None:
    assert cpu.cgroup_quota(tmp_path) is None


def test_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert cpu._from_machine(tmp_path) == (2, "affinity 2 of 8 cores")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    machine(tmp_path, "0::/\n", {"cpu.max": "150000 100000\n"})
    assert cpu._from_machine(tmp_path) == (2, "cgroup quota 1.5 -> 2")
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cpu._from_machine(tmp_path / "none") == (8, "8 cores")


@pytest.mark.parametrize("problem", [PermissionError, OSError, None])
def test_an_affinity_that_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Any) -> None:
    """In some sandboxes the affinity call raises, or returns no core."""

    def refuse(_: int) -> set[int]:
        if problem:
            raise problem
        return set()

    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", refuse, raising=False)
    assert cpu._from_machine(tmp_path)[0] == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu._from_machine(tmp_path)[0] == 1


def test_import_reads_nothing() -> None:
    """A bad FASTLSTM_NUM_THREADS is an error of the first call that needs the number, not of the import."""
    code = "import fastlstm.num_threads as c\ntry: c.get_num_threads()\nexcept ValueError as e: print(e)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FASTLSTM_NUM_THREADS": "many"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "FASTLSTM_NUM_THREADS must be a whole number from 1 to 65536, got 'many'" in done.stdout
