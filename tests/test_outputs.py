"""Outputs: no other file is replaced without --force, and what would fail at the end fails before the work."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm.cli.demo
from fastlstm import files, outputs, plot
from fastlstm.text import CharModel, Settings, TextTraining, size_of_file
from fastlstm.training import History

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="permissions, links and special files of POSIX")

TEXT = "one two three four five six seven\n" * 60
SMALL = [
    "--hidden",
    "6",
    "--seq-len",
    "6",
    "--batch",
    "4",
    "--steps",
    "3",
    "--evaluate-every",
    "0",
    "--backend",
    "numpy",
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs train-text, checks that it fails before its first step, and returns its message."""

    def gradients(self: TextTraining, window: Any) -> Any:
        raise AssertionError("training has begun")

    def run(*arguments: Any) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(TextTraining, "gradients", gradients)
            assert fastlstm.cli.main([*map(str, arguments)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("fastlstm: ")
        return lines[-1]

    return run


def trains(*arguments: Any) -> None:
    assert fastlstm.cli.main(["train-text", *map(str, arguments)]) == 0


# -------------------------------------------------------------------------------------------- files that are refused
def make_special(kind: str, path: Path) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        short = os.path.relpath(path)  # names of sockets are limited to some 100 characters
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(short)
    else:
        try:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(
    ("kind", "said"), [("fifo", "named pipe"), ("folder", "folder"), ("socket", "socket"), ("device", "device")]
)
def test_special_files_stay(
    tmp_path: Path, text: Path, refused: Any, monkeypatch: Any, kind: str, said: str, linked: bool
) -> None:
    """Every function that writes refuses them: the command's model and picture, a model's save, `write_atomically`."""
    monkeypatch.chdir(tmp_path)
    special = name = tmp_path / "special.png"
    make_special(kind, special)
    if linked:
        name = tmp_path / "link.png"
        name.symlink_to(special)
    before = stat.S_IFMT(special.stat().st_mode)
    assert said in refused("train-text", text, "--out", name, "--force", *SMALL)
    assert said in refused("train-text", text, "--out", tmp_path / "m", "--plot", name, "--force", *SMALL)
    model = CharModel("ab", 2, seed=0)
    for write in (
        model.save,
        lambda path: files.write_atomically(path, b"new"),
        lambda p: plot.loss_curve(History(), p),
    ):
        with pytest.raises(OSError, match=said):
            write(name)
    assert stat.S_IFMT(special.stat().st_mode) == before
    assert sorted(os.listdir(tmp_path)) == sorted({"text.txt", "special.png", name.name})


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_log_of_the_same_run_is_no_model(tmp_path: Path, text: Path, stream: str) -> None:
    """After `--out run.log > run.log` the messages would be in a file without a name."""
    log = tmp_path / "run.log"
    with open(log, "w") as file:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: file}
        command = [sys.executable, "-m", "fastlstm", "train-text", text, "--out", log, "--force", *SMALL]
        assert subprocess.run(command, **pipes).returncode == 2
    assert not log.read_bytes().startswith(b"{") and log.stat().st_size < 500


def other_spelling(path: Path) -> Path:
    return path.parent / "." / ".." / path.parent.name / path.name


def linked(path: Path) -> Path:
    link = path.with_name(f"symbolic-{path.name}")
    link.symlink_to(path.name)
    return link


def hard_linked(path: Path) -> Path:
    link = path.with_name(f"hard-{path.name}")
    os.link(path, link)
    return link


WAYS = [lambda path: path, other_spelling, linked, hard_linked, os.path.relpath]


@pytest.mark.parametrize("way", WAYS, ids=["itself", "spelling", "link", "hard link", "relative"])
def test_an_input_is_no_output(tmp_path: Path, refused: Any, way: Any) -> None:
    text = tmp_path / "book.png"  # an ending that --plot accepts
    text.write_text(TEXT)
    out = way(text)
    assert "the text" in refused("train-text", text, "--out", out, "--force", *SMALL)
    assert "the text" in refused("train-text", text, "--out", tmp_path / "m", "--plot", out, "--force", *SMALL)
    assert "the text" in refused("train-text", text, "--out", out, "--resume", *SMALL)
    assert text.read_text() == TEXT and not (tmp_path / "m").exists()


def test_two_outputs_are_two_files(tmp_path: Path, text: Path, refused: Any) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "both.png"
    for other in (out, other_spelling(out), tmp_path / "BOTH.png"):
        assert "same file" in refused("train-text", text, "--out", out, "--plot", other, *SMALL)
        assert "same file" in refused("demo", "--out", out, "--plot", other)
    trains(text, "--out", out, *SMALL)
    before = out.read_bytes()
    for way in (*WAYS[:3], hard_linked):
        plotted = ["--plot", way(out), "--resume", "--force", "--steps", 9]
        assert "same file" in refused("train-text", text, "--out", out, *plotted)
    assert out.read_bytes() == before


def test_names_that_may_become_one_file(tmp_path: Path) -> None:
    assert outputs.same_file(tmp_path / "Modèl", tmp_path / "mode\u0300l")
    assert not outputs.same_file(tmp_path / "a", tmp_path / "b")
    (tmp_path / "sub").mkdir()
    assert not outputs.same_file(tmp_path / "a", tmp_path / "sub" / "a")
    (tmp_path / "A").write_text("")  # A exists and a does not if the file system distinguishes case
    assert not outputs.same_file(tmp_path / "a", tmp_path / "A") or (tmp_path / "a").exists()


# ---------------------------------------------------------------------------------------- files that may be replaced
def test_a_model_is_replaced_only_when_asked(tmp_path: Path, text: Path, refused: Any) -> None:
    out = tmp_path / "model"
    trains(text, "--out", out, *SMALL)
    before = out.read_bytes()
    said = refused("train-text", text, "--out", out, *SMALL)
    assert "--resume" in said and "--force" in said
    assert out.read_bytes() == before
    trains(text, "--out", out, "--force", *SMALL, "--seed", 5)
    assert out.read_bytes() != before


def test_a_file_that_is_no_model_is_kept_too(tmp_path: Path, text: Path, refused: Any) -> None:
    precious, empty = tmp_path / "thesis", tmp_path / "made by mktemp"
    precious.write_text("years of work")
    assert "--force" in refused("train-text", text, "--out", precious, *SMALL)
    assert "safetensors" in refused("train-text", text, "--out", precious, "--resume", *SMALL)
    assert "--force" in refused("demo", "--out", precious)
    assert precious.read_text() == "years of work"
    empty.touch()
    trains(text, "--out", empty, *SMALL)


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_picture_of_ours_is_drawn_anew_and_no_other(tmp_path: Path, text: Path, refused: Any, kind: str) -> None:
    pytest.importorskip("matplotlib")
    picture, out = tmp_path / f"loss.{kind}", tmp_path / "model"
    trains(text, "--out", out, "--plot", picture, *SMALL)
    first = picture.read_bytes()
    trains(text, "--out", out, "--plot", picture, "--resume", "--steps", 6)
    assert picture.read_bytes() != first
    picture.write_bytes(b"a photograph")
    assert "--force" in refused("train-text", text, "--out", out, "--plot", picture, "--resume", "--steps", 9)
    assert "--force" in refused("demo", "--out", tmp_path / "demo", "--plot", picture)
    assert picture.read_bytes() == b"a photograph"
    trains(text, "--out", out, "--plot", picture, "--resume", "--steps", 9, "--force")
    assert b"photograph" not in picture.read_bytes()


def test_the_demo_runs_twice_and_keeps_other_models(
    tmp_path: Path, refused: Any, capsys: Any, monkeypatch: Any
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fastlstm.cli.demo, "DEMO", {"hidden": 4, "seq_len": 4, "batch": 4, "evaluate_every": 0})
    monkeypatch.setattr(fastlstm.cli.demo, "comparison", lambda text, settings: [])
    monkeypatch.setattr(CharModel, "loss", lambda self, x, targets: 1.0)
    for _ in range(2):
        assert fastlstm.cli.main(["demo", "--seconds", "0"]) == 0
    shakespeare = Path(fastlstm.__file__).parent / "data" / "shakespeare.txt"
    trains(shakespeare, "--out", "demo-model.safetensors", "--resume", "--steps", 20)
    before = Path("demo-model.safetensors").read_bytes()
    assert "--force" in refused("demo", "--seconds", "0")  # the file's training was continued, so demo would lose it
    assert Path("demo-model.safetensors").read_bytes() == before
    assert fastlstm.cli.main(["demo", "--seconds", "0", "--force"]) == 0


@pytest.mark.parametrize(
    ("options", "name"), [([], "report.md"), ([], "samples.json"), (["--neighbours"], "neighbours.md")]
)
def test_a_report_replaces_reports_only(
    tmp_path: Path, capsys: Any, monkeypatch: Any, options: list[str], name: str
) -> None:
    from fastlstm.report import contenders

    def measured(*arguments: Any) -> None:
        raise AssertionError("the measuring has begun")

    monkeypatch.setattr(contenders, "ours", measured)
    (tmp_path / name).write_text("notes of my own")
    assert fastlstm.cli.main(["bench", *options, "--out", str(tmp_path)]) == 2
    assert "--force" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="measuring"):
        fastlstm.cli.main(["bench", *options, "--out", str(tmp_path), "--force"])
    for special in ("fifo", "file"):
        (tmp_path / special).touch() if special == "file" else os.mkfifo(tmp_path / special)
        assert fastlstm.cli.main(["bench", *options, "--out", str(tmp_path / special)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert (tmp_path / name).read_text() == "notes of my own"


def test_a_report_may_be_made_again(tmp_path: Path) -> None:
    from fastlstm import report

    samples = '{"facts": {"versions": "fastlstm 0.1.0, Python 3.11"}}'
    (tmp_path / "samples.json").write_text(samples)
    (tmp_path / "report.md").write_text("# an earlier report")
    report.check_folder(tmp_path, ["odd"], [1])
    os.mkfifo(tmp_path / "odd-1.svg")
    with pytest.raises(OSError, match="named pipe"):
        report.check_folder(tmp_path, ["odd"], [1])


# --------------------------------------------------------------------------------------------- permissions, owner
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o400 | 0o200])
def test_permissions_are_kept(tmp_path: Path, text: Path, mode: int) -> None:
    pytest.importorskip("matplotlib")
    out, picture, before = tmp_path / "model", tmp_path / "loss.svg", os.umask(0o022)
    try:
        trains(text, "--out", out, "--plot", picture, *SMALL)
        assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE(picture.stat().st_mode) == 0o644
        for path in (out, picture):
            path.chmod(mode)
        trains(text, "--out", out, "--plot", picture, "--resume", "--steps", 5)
        CharModel.load(out).save(out)
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE(picture.stat().st_mode) == mode


def test_a_private_file_is_never_open_to_others(tmp_path: Path, monkeypatch: Any) -> None:
    """The temporary file is private too while it is written."""
    path, seen = tmp_path / "f", []
    path.touch(0o600)
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(stat.S_IMODE(os.fstat(handle).st_mode)))
    files.write_atomically(path, b"secret")
    assert seen[0] == 0o600 and path.read_bytes() == b"secret"


needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")


@needs_root
def test_owner_and_group_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    os.chown(path, 1234, 2345)
    path.chmod(0o640)
    files.write_atomically(path, b"new")
    now = path.stat()
    assert (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)) == (1234, 2345, 0o640)


@needs_root
def test_another_user_s_file_stays_its_owner_s(tmp_path: Path) -> None:
    """A user without root's rights cannot replace the file and keep its owner: refused before the work."""
    path = tmp_path / "f"
    path.write_bytes(b"old")
    os.chown(path, 1234, 2345)
    path.chmod(0o666)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o777)
    script = f"""
import os
from fastlstm import files
os.setgroups([]); os.setgid(3456); os.setuid(3456)
for act in (files.check_writable, lambda path: files.write_atomically(path, b"new")):
    try:
        act({str(path)!r})
    except PermissionError as error:
        print("belongs to user 1234" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr
    assert path.read_bytes() == b"old" and path.stat().st_uid == 1234
    assert os.listdir(tmp_path) == ["f"]


def test_extended_attributes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    try:
        os.setxattr(path, "user.origin", b"experiment 7")
    except (OSError, AttributeError):
        pytest.skip("no extended attributes here")
    files.write_atomically(path, b"new")
    assert os.getxattr(path, "user.origin") == b"experiment 7"


def test_a_link_stays_a_link(tmp_path: Path, text: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    link = tmp_path / "model"
    link.symlink_to("store/real")
    trains(text, "--out", link, *SMALL)
    trains(text, "--out", link, "--resume", "--steps", 5)
    assert link.is_symlink() and os.readlink(link) == "store/real"
    assert int(files.load(store / "real")[0]["optimizer.steps"]) == 5
    assert os.listdir(store) == ["real"]


def test_read_only_files_stay(tmp_path: Path, text: Path, refused: Any) -> None:
    out = tmp_path / "model"
    trains(text, "--out", out, *SMALL)
    out.chmod(0o444)
    before = out.read_bytes()
    assert "chmod u+w" in refused("train-text", text, "--out", out, "--resume", "--steps", 9)
    assert "chmod u+w" in refused("train-text", text, "--out", out, "--force", *SMALL)
    with pytest.raises(PermissionError, match="read-only"):
        CharModel("ab", 2, seed=0).save(out)
    assert out.read_bytes() == before


# ------------------------------------------------------------------------------------------------ known at the start
def test_names_that_cannot_be_written(tmp_path: Path, text: Path, refused: Any) -> None:
    assert "empty" in refused("train-text", text, "--out", "", *SMALL)
    assert "folder" in refused("train-text", text, "--out", f"{tmp_path}/new/", *SMALL)
    assert "no folder" in refused("train-text", text, "--out", tmp_path / "none" / "m", *SMALL)
    assert "Not a directory" in refused("train-text", text, "--out", text / "m", *SMALL)
    assert "too long" in refused("train-text", text, "--out", tmp_path / ("m" * 300), *SMALL)
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert "symbolic links" in refused("train-text", text, "--out", loop, *SMALL)
    trains(text, "--out", tmp_path / ("m" * 255), *SMALL)  # the longest name that file systems allow


def test_room_is_tried_before_the_work(tmp_path: Path) -> None:
    """A limit on the size of files stands for a disk without room."""
    text, out = tmp_path / "t", tmp_path / "m"
    text.write_text(TEXT)
    script = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
from fastlstm.cli import main
from fastlstm.text import TextTraining, size_of_file
real = TextTraining.gradients
def gradients(self, window):
    print("trains", flush=True)
    return real(self, window)
TextTraining.gradients = gradients
sys.exit(main(["train-text", {str(text)!r}, "--out", {str(out)!r}, *{SMALL!r}, "--hidden", sys.argv[1]]))
"""

    def run(hidden: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", script, str(hidden)], capture_output=True, text=True)

    done = run(128)  # some 900 kB with the optimizer's averages
    assert done.returncode == 2 and "trains" not in done.stdout
    assert "bytes are needed" in done.stderr and str(out) in done.stderr
    assert os.listdir(tmp_path) == ["t"]
    done = run(48)
    assert done.returncode == 0 and "trains" in done.stdout, done.stderr


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("steps", [3, 500])
def test_the_estimate_of_the_size(tmp_path: Path, optimizer: str, steps: int) -> None:
    settings = Settings(hidden=40, layers=2, seq_len=6, batch=4, steps=steps, optimizer=optimizer, evaluate_every=100)
    job = TextTraining(TEXT, settings, tmp_path / "m")
    estimate = size_of_file(job)
    job.run()
    size = (tmp_path / "m").stat().st_size
    assert size <= estimate <= size + 70_000


def test_kinds_of_pictures_are_tried(tmp_path: Path, text: Path, refused: Any, monkeypatch: Any) -> None:
    """matplotlib lists kinds that need missing programs or libraries: drawing fails then, before the training."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    def savefig(self: Any, *arguments: Any, **options: Any) -> None:
        raise RuntimeError("xelatex not found")

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        said = refused("train-text", text, "--out", tmp_path / "m", "--plot", tmp_path / "loss.pgf", *SMALL)
    assert "xelatex not found" in said
    assert "no folder" in refused(
        "train-text", text, "--out", tmp_path / "m", "--plot", tmp_path / "n" / "a.png", *SMALL
    )
    assert sorted(os.listdir(tmp_path)) == ["text.txt"]


def test_what_no_file_can_hold_is_refused_before_training(tmp_path: Path) -> None:
    """A text read with surrogateescape has bytes that are no characters; all characters can be saved."""
    settings = Settings(hidden=4, seq_len=4, batch=4, steps=2, evaluate_every=0)
    for half in ("\udcff", "\ud800"):
        with pytest.raises(ValueError, match="encoding") as caught:
            TextTraining(f"ab{half}" * 200, settings, tmp_path / "m")
        assert repr(half) in str(caught.value)
    text = "a\0b\ufeff\ue000\U0001f600\n" * 100
    TextTraining(text, settings, tmp_path / "m").run()
    assert CharModel.load(tmp_path / "m").vocabulary == "".join(sorted(set(text)))
    assert TextTraining.resume(text, tmp_path / "m", {}).steps == 2


def test_errors_name_the_file(tmp_path: Path, monkeypatch: Any) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        files.save(tmp_path / "m", {"a": np.zeros(3)}, {})
    assert caught.value.errno == 28 and caught.value.filename == str(tmp_path / "m")
    assert os.listdir(tmp_path) == []


@needs_root
def test_a_file_that_is_a_mount_point(tmp_path: Path) -> None:
    """No rename can replace a mount point, such as the file of `-v model:/work/model` in a container."""
    source, target = tmp_path / "a b", tmp_path / "é m"
    source.touch()
    target.touch()
    if subprocess.run(["mount", "--bind", source, target], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with pytest.raises(OSError, match="mounted by itself"):
            files.check_writable(target)
    finally:
        subprocess.run(["umount", target], check=True)
    files.check_writable(target)
