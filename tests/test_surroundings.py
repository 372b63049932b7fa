"""The command with terminals, locales and environment variables that were set for other programs."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import fastlstm as fl
from fastlstm import terminal

TEXT = "héllo wörld ☃ 😀 ok\n" * 100
SMALL = [
    "--hidden",
    "8",
    "--seq-len",
    "8",
    "--batch",
    "4",
    "--steps",
    "2",
    "--evaluate-every",
    "0",
    "--backend",
    "numpy",
]
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command in this environment; a variable of "-" is absent."""
    given = {k: v for k, v in (os.environ | env).items() if v != "-"}
    return subprocess.run([sys.executable, "-m", "fastlstm", *arguments], capture_output=True, env=given, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a model of it."""
    path = tmp_path_factory.mktemp("surroundings")
    (path / "t.txt").write_text(TEXT, encoding="utf-8")
    done = command("train-text", str(path / "t.txt"), "--out", str(path / "m"), *SMALL)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize(
    "env",
    [{"PYTHONIOENCODING": codec} for codec in ("ascii", "cp1252", "latin-1", "ascii:strict", "utf-8")] + [ASCII_LOCALE],
    ids=str,
)
def test_what_a_terminal_lacks_is_replaced(folder: Path, env: dict[str, str]) -> None:
    """One question mark for each character."""
    codec = env.get("PYTHONIOENCODING", "ascii").removesuffix(":strict")
    arguments = ["sample", str(folder / "m"), "--length", "60", "--seed", "1", "--prefix", "h"]
    right = command(*arguments, PYTHONIOENCODING="utf-8").stdout.decode().replace("\r", "")
    assert len(right) == 62 and "☃" in right
    done = command(*arguments, **env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(codec).replace("\r", "") == right.encode(codec, "replace").decode(codec)


@pytest.mark.skipif(sys.platform == "win32", reason="file names of bytes")
def test_arguments_that_the_locale_cannot_decode(folder: Path) -> None:
    """A prefix in UTF-8 in the locale C; a model whose name is shown."""
    done = command("sample", str(folder / "m"), "--length", "5", "--prefix", "hé", **ASCII_LOCALE)
    assert done.returncode == 0 and done.stdout.startswith(b"h?")
    out = folder / "größe ☃"
    done = command("train-text", str(folder / "t.txt"), "--out", str(out), *SMALL, **ASCII_LOCALE)
    assert done.returncode == 0 and b"model in " in done.stdout and out.exists()


@pytest.mark.parametrize(
    "env",
    [
        *({"COLUMNS": width} for width in ("0", "-3", "1", "many")),
        {"TERM": "dumb"},
        {"NO_COLOR": "1"},
        {"LANG": "xx_YY.bogus"},
        {"LC_ALL": "de_DE.UTF-8"},
        {"HOME": "-"},
        {"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent"},
        {"PYTHONWARNINGS": "error::UserWarning"},
        {"TQDM_DISABLE": "1"},
    ],
    ids=str,
)
def test_words_that_change_nothing(folder: Path, env: dict[str, str]) -> None:
    text, out = str(folder / "t.txt"), str(folder / "again")
    Path(out).unlink(missing_ok=True)
    done = command("train-text", text, "--out", out, *SMALL, **env)
    assert done.returncode == 0, done.stderr
    assert Path(out).read_bytes() == (folder / "m").read_bytes()
    assert b"warning" not in done.stderr and b"held-out perplexity " in done.stdout
    assert b"." in done.stdout.split()[2]  # the decimal sign
    assert b"--encoding" in command("train-text", "--help", **env).stdout.replace(b"\n", b"").replace(b" ", b"")


@pytest.mark.parametrize("name", ["TQDM_NCOLS", "TQDM_MININTERVAL"])
def test_variables_of_the_progress_bar_that_are_refused(name: str) -> None:
    """The progress bar is made without these variables, and they are set again afterwards."""
    code = f"""
import os, fastlstm.terminal
print(fastlstm.terminal.load("tqdm", "TQDM_").tqdm(total=3, disable=True).total, os.environ[{name!r}])
"""
    env = os.environ | {name: "wide"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout == "3 wide\n", done.stderr
    assert f"UserWarning: {name}=wide passed over, for tqdm refuses it" in done.stderr


@pytest.mark.parametrize(
    ("env", "warns"),
    [
        ({"MPLBACKEND": "TkAgg"}, False),
        ({"MPLBACKEND": "module://no_such_module.backend"}, None),  # depends on matplotlib's version
        ({"MPLBACKEND": "nonsense"}, True),
        ({"MATPLOTLIBRC": "rc"}, False),
        ({"MPLCONFIGDIR": "/proc/nowhere", "HOME": "/proc/nowhere"}, False),
    ],
    ids=str,
)
def test_pictures(folder: Path, env: dict[str, str], warns: bool | None) -> None:
    """The picture does not depend on the user's matplotlib backend and style."""
    pytest.importorskip("matplotlib")
    (folder / "rc").write_text("text.usetex: True\nsavefig.dpi: 5\naxes.facecolor: red\nbackend: TkAgg\n")
    env = {k: str(folder / v) if v == "rc" else v for k, v in env.items()}
    picture, right = folder / "loss.png", folder / "right.png"
    for path, words in ((right, {}), (picture, env)):
        arguments = ["train-text", str(folder / "t.txt"), "--out", str(folder / "drawn"), "--plot", str(path), *SMALL]
        (folder / "drawn").unlink(missing_ok=True)
        done = command(*arguments, **words)
        assert done.returncode == 0, done.stderr
    assert picture.read_bytes() == right.read_bytes()
    if warns is not None:
        assert (b"MPLBACKEND" in done.stderr and b"passed over" in done.stderr) == warns


def test_a_warning_made_an_error_is_one_line(folder: Path) -> None:
    arguments = ["train-text", str(folder / "t.txt"), "--out", str(folder / "none"), *SMALL, "--dropout", "0.5"]
    done = command(*arguments, PYTHONWARNINGS="error")
    assert done.returncode == 2 and not (folder / "none").exists()
    assert done.stderr.startswith(b"fastlstm: dropout 0.5 has no effect") and done.stderr.count(b"\n") == 1


def test_numba_that_may_not_compile_is_unusable() -> None:
    if why := fl.backends()["numba"]:
        pytest.skip(why)
    code = "import fastlstm as fl\ntry: fl.LSTM(2, 3, backend='numba')\nexcept fl.BackendError as error: print(error)"
    for value, refused in (("1", True), ("0", False), ("yes", False)):  # numba itself ignores values that are no number
        env = os.environ | {"NUMBA_DISABLE_JIT": value}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
        assert ("NUMBA_DISABLE_JIT keeps Numba from compiling: unset it" in done.stdout) == refused, done.stderr


def test_the_callers_streams_and_warnings_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cli.main` may be called by a program."""
    with open(os.devnull, "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        before = warnings.showwarning
        with terminal.shown():
            print("☃")
            assert warnings.showwarning is terminal.show_warning
        assert stream.errors == "strict" and warnings.showwarning is before
        with pytest.raises(UnicodeEncodeError):
            print("☃", flush=True)
