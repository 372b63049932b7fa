"""However a training ends, the model is saved, or the exit status is not 0."""

from __future__ import annotations

import errno
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastlstm.cli
from fastlstm import files
from fastlstm.text import CharModel, Settings, TextTraining
from fastlstm.training import SaveError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and descriptors of POSIX")

TEXT = "one two three four five six seven\n" * 60
SMALL = {"hidden": 8, "seq_len": 6, "batch": 4, "evaluate_every": 0, "checkpoint_every": 0, "backend": "numpy"}


def command(folder: Path, **settings: Any) -> list[str]:
    """train-text in a process of its own. Its model is `folder / "model"`."""
    (folder / "text").write_text(TEXT)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in (SMALL | settings).items()]
    return [sys.executable, "-m", "fastlstm", "train-text", str(folder / "text"), f"--out={folder / 'model'}", *words]


def steps_saved(folder: Path) -> int:
    arrays, _ = files.load(folder / "model")
    assert len(arrays["history.loss"]) == arrays["optimizer.steps"]
    return int(arrays["optimizer.steps"])


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ----------------------------------------------------------------------------------- streams that are closed or full
@pytest.mark.parametrize("streams", ["stderr", "both"])
def test_a_reader_that_leaves(tmp_path: Path, streams: str) -> None:
    both = streams == "both"
    out = subprocess.PIPE if both else subprocess.DEVNULL
    process = subprocess.Popen(
        command(tmp_path, steps=300), stdout=out, stderr=subprocess.STDOUT if both else subprocess.PIPE
    )
    reader = process.stdout if both else process.stderr
    assert reader is not None and reader.read(4) == b"LSTM"
    reader.close()
    assert process.wait(60) == 0
    assert steps_saved(tmp_path) == 300


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams(tmp_path: Path, closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command(tmp_path, steps=5)], capture_output=True, text=True
    )
    assert done.returncode == 0 and steps_saved(tmp_path) == 5
    assert "LSTM" not in done.stdout  # messages do not go where results go
    assert ("held-out perplexity" in done.stdout) == (">&- " not in f"{closed} ".replace("2>&- ", ""))


@pytest.mark.parametrize("closed", [">&-", ">/dev/full"])
def test_a_result_that_cannot_be_written_is_a_failure(tmp_path: Path, closed: str) -> None:
    CharModel("ab", 2, seed=0).save(tmp_path / "model")
    for name in ("sample", "config"):
        arguments = [str(tmp_path / "model")] if name == "sample" else []
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "fastlstm", name, *arguments],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1 and "standard output" in done.stderr


def test_a_closed_descriptor_does_not_become_the_model_s(tmp_path: Path) -> None:
    """A C library's writes to standard error do not reach a file that is opened later."""
    script = """
import os, sys
from fastlstm.console import fill_closed_descriptors
os.close(2)
fill_closed_descriptors()
file = open(sys.argv[1], "w")
os.write(2, b"a message of some library")
assert file.fileno() > 2
"""
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "f")]).returncode == 0
    assert (tmp_path / "f").read_bytes() == b""


def test_a_terminal_shows_a_bar_and_may_close(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command(tmp_path, steps=1500), stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen = b""
    while b"loss=" not in seen:
        seen += os.read(ours, 1000)
    os.close(ours)  # writes fail with EIO from now on
    assert process.wait(60) == 0
    assert steps_saved(tmp_path) == 1500
    assert b"\r" in seen and b"tok/s" in seen


def test_a_pipe_gets_plain_lines(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """A line every ten seconds, by a fake clock of one second a step, and a line at the end."""
    from fastlstm.training import progress

    class Clock:
        now = 0.0

        @classmethod
        def monotonic(cls) -> float:
            cls.now += 0.5  # the clock is read once or twice a step
            return cls.now

    monkeypatch.setattr(progress, "time", Clock)
    (tmp_path / "text").write_text(TEXT)
    assert fastlstm.cli.main(command(tmp_path, steps=100)[3:]) == 0
    lines = capsys.readouterr().err.splitlines()[1:]
    assert 4 <= len(lines) <= 7 and all(line.startswith("step ") and "\r" not in line for line in lines)
    assert lines[-1].startswith("step 100/100, loss=") and lines[-1].endswith("tok/s")


# --------------------------------------------------------------------------------------------------------- signals
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU"])
def test_signals_save(tmp_path: Path, name: str) -> None:
    """Also if a signal comes twice at once: to the process group, and from a parent that passes it on."""
    number = getattr(signal, name)
    process = subprocess.Popen(command(tmp_path, steps=10**6, checkpoint_every=5), stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "model").exists)
    process.send_signal(number)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped at step {steps_saved(tmp_path)} and saved" in said.splitlines()[-1]


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" HUP INT; exec "$@"', "sh", *command(tmp_path, steps=1000, checkpoint_every=5)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    wait_for((tmp_path / "model").exists)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert steps_saved(tmp_path) == 1000


def test_a_second_signal_ends_a_long_evaluation(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """After the first signal the evaluation goes on, the second one ends it; all steps are saved."""

    def evaluate(self: TextTraining) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.2)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
        raise AssertionError("the second signal has done nothing")

    monkeypatch.setattr(TextTraining, "evaluate", evaluate)
    assert fastlstm.cli.main(command(tmp_path, steps=50, evaluate_every=7)[3:]) == 130
    assert steps_saved(tmp_path) == 7
    assert "step 7" in capsys.readouterr().err.splitlines()[-1]


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert fastlstm.cli.main(command(tmp_path, steps=2)[3:]) == 0
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


# ---------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError(), BrokenPipeError(errno.EPIPE, "broken")])
def test_an_error_in_an_evaluation_saves(tmp_path: Path, monkeypatch: Any, error: BaseException) -> None:
    def evaluate(self: TextTraining) -> float:
        raise error

    monkeypatch.setattr(TextTraining, "evaluate", evaluate)
    try:
        assert fastlstm.cli.main(command(tmp_path, steps=50, evaluate_every=7)[3:]) != 0
    except RuntimeError as raised:
        assert raised is error
    assert steps_saved(tmp_path) == 7


def test_an_error_between_two_steps_loses_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    """Memory runs out while gradients are computed: the saved training resumes with the same bits, dropout included."""
    settings = Settings(**SMALL | {"layers": 2, "dropout": 0.3, "steps": 9})  # type: ignore[arg-type]
    through = TextTraining(TEXT, settings, tmp_path / "through")
    through.run()
    job, real = TextTraining(TEXT, settings, tmp_path / "model"), CharModel.gradients

    def gradients(self: CharModel, x: Any, targets: Any, state: Any) -> Any:
        result = real(self, x, targets, state)
        if job.steps == 5:
            raise MemoryError
        return result

    monkeypatch.setattr(CharModel, "gradients", gradients)
    with pytest.raises(MemoryError):
        job.run()
    monkeypatch.undo()
    again = TextTraining.resume(TEXT, tmp_path / "model", {})
    assert again.steps == 5
    again.run()
    assert (tmp_path / "model").read_bytes() == (tmp_path / "through").read_bytes()


def test_half_a_step_is_not_saved(tmp_path: Path, monkeypatch: Any) -> None:
    job = TextTraining(TEXT, Settings(**SMALL | {"steps": 9, "checkpoint_every": 4}), tmp_path / "model")  # type: ignore[arg-type]
    real = job.optimizer.step

    def step(gradients: Any) -> None:
        real(gradients)
        if job.optimizer.steps == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(job.optimizer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        job.run()
    assert steps_saved(tmp_path) == 4


def test_divergence_says_what_is_left(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    real = CharModel.gradients

    def gradients(self: CharModel, x: Any, targets: Any, state: Any) -> Any:
        loss, after, grads = real(self, x, targets, state)
        gradients.calls += 1  # type: ignore[attr-defined]
        return float("nan") if gradients.calls == 6 else loss, after, grads  # type: ignore[attr-defined]

    monkeypatch.setattr(CharModel, "gradients", gradients)
    for every, said in ((4, "has the model of step 4"), (0, "no model was written")):
        gradients.calls = 0  # type: ignore[attr-defined]
        assert fastlstm.cli.main(command(tmp_path, steps=50, checkpoint_every=every)[3:]) == 1
        assert said in capsys.readouterr().err.splitlines()[-1]
        (tmp_path / "model").unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------ disks
class FullDisk:
    """A disk that is full at the given calls of fsync, counted from 1."""

    def __init__(self, monkeypatch: Any, at: Any) -> None:
        self.calls, self.at, self.real = 0, at, os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(files, "sync_folder", lambda folder: None)

    def fsync(self, handle: int) -> None:
        self.calls += 1
        if self.calls in self.at:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.real(handle)


def test_a_full_disk_at_a_checkpoint_is_reported_and_training_goes_on(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    disk = FullDisk(monkeypatch, at=[2])
    assert fastlstm.cli.main(command(tmp_path, steps=11, checkpoint_every=4)[3:]) == 0
    assert disk.calls == 3  # steps 4, 8 and 11
    assert steps_saved(tmp_path) == 11
    said = capsys.readouterr().err
    assert "step 8 was not saved" in said and "No space left" in said and "is that of step 4" in said


@pytest.mark.parametrize(("at", "left"), [(range(2, 9), 4), (range(1, 9), None)])
def test_a_disk_that_stays_full_is_a_failure(
    tmp_path: Path, monkeypatch: Any, capsys: Any, at: range, left: int | None
) -> None:
    FullDisk(monkeypatch, at)
    assert fastlstm.cli.main(command(tmp_path, steps=11, checkpoint_every=4)[3:]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "step 11 was not saved" in last and "No space left" in last
    if left is None:
        assert "never written" in last and sorted(os.listdir(tmp_path)) == ["text"]
    else:
        assert f"is that of step {left}" in last and steps_saved(tmp_path) == left
        assert sorted(os.listdir(tmp_path)) == ["model", "text"]


def test_a_folder_that_vanishes(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "inner").mkdir()
    job = TextTraining(TEXT, Settings(**SMALL | {"steps": 5, "checkpoint_every": 2}), tmp_path / "inner" / "m")  # type: ignore[arg-type]
    (tmp_path / "inner").rmdir()
    with pytest.warns(UserWarning, match="was not saved"), pytest.raises(SaveError, match="step 5 was not saved"):
        job.run()
    assert job.steps == 5 and os.listdir(tmp_path) == []


def test_a_picture_that_fails_leaves_the_model(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip("matplotlib")
    FullDisk(monkeypatch, at=[2])
    assert fastlstm.cli.main([*command(tmp_path, steps=5)[3:], f"--plot={tmp_path / 'loss.png'}"]) != 0
    assert "loss.png" in capsys.readouterr().err.splitlines()[-1]
    assert steps_saved(tmp_path) == 5 and not (tmp_path / "loss.png").exists()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd") or os.geteuid() != 0, reason="only root mounts")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of 1 MB: first too small for the model, then filled by another process during training."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        done = subprocess.run(command(disk, steps=10**6, hidden=256), capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and "bytes are needed" in done.stderr
        assert os.listdir(disk) == ["text"]
        process = subprocess.Popen(
            command(disk, steps=20_000, hidden=32, checkpoint_every=500), stderr=subprocess.PIPE, text=True
        )
        wait_for((disk / "model").exists)
        with open(disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            while True:
                filler.write(bytes(4096))
        assert process.stderr is not None
        while "was not saved" not in (line := process.stderr.readline()):
            assert line
        saved = steps_saved(disk)
        assert saved % 500 == 0 and f"is that of step {saved}" in line
        process.send_signal(signal.SIGTERM)
        assert f"is that of step {saved}" in process.communicate(timeout=60)[1].splitlines()[-1]
        assert process.returncode == 1 and steps_saved(disk) == saved
    finally:
        subprocess.run(["umount", disk], check=True)
