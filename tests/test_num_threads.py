"""How many threads, and why: `fastlstm.num_threads`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastlstm import num_threads as cpu


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin without anything set, and leave nothing behind."""
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


@pytest.mark.parametrize("n", [0, -1, 1.0, 2.5, "2", True, None])
def test_bad_numbers(n: object) -> None:
    cpu.set_num_threads(3)
    with pytest.raises(ValueError, match=r"set_num_threads\(n\): n must be a whole number of at least 1, got"):
        cpu.set_num_threads(n)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"threads\(n\): n must be"), cpu.threads(n):  # type: ignore[arg-type]
        pass
    assert cpu.get_num_threads() == 3


@pytest.mark.parametrize("variable", ["FASTLSTM_NUM_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", ",2"])
def test_bad_variables(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{variable} must be a whole number of at least 1, got '{value}'"):
        cpu.get_num_threads()


def test_own_variable_takes_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTLSTM_NUM_THREADS", "4,2")
    with pytest.raises(ValueError, match="FASTLSTM_NUM_THREADS"):
        cpu.get_num_threads()


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


def test_import_reads_nothing() -> None:
    """A bad variable hurts whoever asks for threads, not whoever imports."""
    code = "import fastlstm.num_threads as c\ntry: c.get_num_threads()\nexcept ValueError as e: print(e)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FASTLSTM_NUM_THREADS": "many"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "FASTLSTM_NUM_THREADS must be a whole number of at least 1, got 'many'" in done.stdout
