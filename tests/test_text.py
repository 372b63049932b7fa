"""The text program: learning, resuming with the same bits, sampling, and one-line errors."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm
import fastlstm.cli
from fastlstm import files
from fastlstm.optim import SGD
from fastlstm.schedules import LambdaLR
from fastlstm.text import (
    OPTIMIZERS,
    CharModel,
    Settings,
    TextTraining,
    choose_token,
    encode,
    side_by_side,
    vocabulary_of,
)
from fastlstm.training import Diverged

TEXT = "the quick brown fox jumps over the lazy dog.\nhow vexingly quick daft zebras jump!\n" * 60
SMALL: dict[str, Any] = {
    "hidden": 24,
    "layers": 2,
    "dropout": 0.2,
    "seq_len": 12,
    "batch": 8,
    "steps": 40,
    "decay": 0.5,
}
SMALL |= {"evaluate_every": 10, "checkpoint_every": 7, "backend": "numpy"}


def options(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def train(path: Path, stop: int = 0, **settings: Any) -> TextTraining:
    job = TextTraining(TEXT, Settings(**SMALL | settings), path)
    job.run(stop or None)
    return job


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of an uninterrupted training."""
    path = tmp_path_factory.mktemp("trained") / "model.safetensors"
    train(path)
    return path


# ---------------------------------------------------------------------------------------------------------- the text
def test_encode() -> None:
    assert vocabulary_of("hello 😀\n") == "\n ehlo😀"
    assert encode("leo😀", vocabulary_of("hello 😀\n")).tolist() == [4, 2, 5, 6]
    assert encode("", "ab").tolist() == []
    with pytest.raises(ValueError, match=r"characters 'ä' 'ü'.*'ab'"):
        encode("aüä", "ab")


def test_streams_are_the_text_in_order() -> None:
    inputs, targets = side_by_side(np.arange(11), 3)
    assert inputs.T.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert (targets == inputs + 1).all()


# ---------------------------------------------------------------------------------------------------------- learning
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_learns(tmp_path: Path, backend: str, optimizer: str) -> None:
    """The text is periodic, so a model can learn it: perplexity falls from some 30 to below 2."""
    larger = {"layers": 1, "hidden": 48, "seq_len": 24, "dropout": 0.0, "decay": 0.0}
    job = train(tmp_path / "m", optimizer=optimizer, backend=backend, steps=250, **larger)
    assert job.history["loss"][0] > 3.2
    assert max(job.history.last("loss", 10)) < math.log(2)
    assert math.exp(job.history["held_out"][-1]) < 2


def test_windows_carry_the_state(tmp_path: Path) -> None:
    """Without learning, two windows have the losses of one window twice as long."""
    short = TextTraining(TEXT, Settings(**SMALL | {"dropout": 0.0, "lr": 0.0}), tmp_path / "m")
    long = TextTraining(TEXT, Settings(**SMALL | {"dropout": 0.0, "lr": 0.0, "seq_len": 24}), tmp_path / "m")
    assert (short.step() + short.step()) / 2 == pytest.approx(long.step(), rel=1e-6)


def test_the_end_of_the_text_is_never_trained_on(tmp_path: Path) -> None:
    jobs = [TextTraining(TEXT[:-k] + "x" * k, Settings(**SMALL), tmp_path / "m") for k in (1, len(TEXT) // 21)]
    losses = [[job.step() for _ in range(len(TEXT) // 96 * 2)] for job in jobs]
    assert losses[0] == losses[1]
    assert jobs[0].evaluate() != jobs[1].evaluate()


# ------------------------------------------------------------------------------------------------- stopping, going on
@pytest.mark.parametrize("stop", [1, 14, 23])
def test_resumed_is_bit_for_bit_uninterrupted(tmp_path: Path, trained: Path, stop: int) -> None:
    """The whole files are equal: weights, optimiser, position, state, dropout's generator, history."""
    path = tmp_path / "model.safetensors"
    train(path, stop=stop)
    job = TextTraining.resume(TEXT, path, {})
    assert job.steps == stop == len(job.history["loss"])
    job.run()
    assert path.read_bytes() == trained.read_bytes()


def test_a_checkpoint_of_version_0_1_0_goes_on_bit_for_bit(tmp_path: Path, trained: Path) -> None:
    """Its history was ``losses`` (steps,), and its learning rate that of the last step instead of the next one."""
    path = tmp_path / "model.safetensors"
    train(path, stop=23)
    arrays, config = files.load(path)
    arrays["history.losses"] = arrays.pop("history.loss")[:, 1]
    arrays["optimizer.lr"] = np.array(1.23)
    files.save(path, arrays, config)
    CharModel.load(path)
    job = TextTraining.resume(TEXT, path, {})
    assert job.history.length("loss") == job.steps == 23
    job.run()
    assert path.read_bytes() == trained.read_bytes()


def test_steps_outside_a_loop_can_be_saved_and_resumed(tmp_path: Path, trained: Path) -> None:
    job = TextTraining(TEXT, Settings(**SMALL), tmp_path / "model.safetensors")
    losses = [job.step() for _ in range(9)]
    assert job.history.points("loss") == list(enumerate(losses, 1))
    job.save()
    TextTraining.resume(TEXT, tmp_path / "model.safetensors", {}).run()
    assert (tmp_path / "model.safetensors").read_bytes() == trained.read_bytes()


def test_decay() -> None:
    """By steps taken: the learning rate is that of the next step."""

    def rates(settings: Settings, taken: Any) -> list[float]:
        schedule = LambdaLR(SGD([fastlstm.Dense(1, 1, seed=0)], settings.base_lr), settings.lr_factor)
        return [schedule.lr_of(k) for k in taken]

    assert rates(Settings(steps=10, lr=8.0, decay=0.4), (0, 6, 7, 8, 9, 10, 11)) == pytest.approx([8, 8, 6, 4, 2, 0, 0])
    assert set(rates(Settings(steps=10, lr=8.0), range(20))) == {8.0}


def test_checkpoints_do_not_disturb(tmp_path: Path, trained: Path) -> None:
    path = tmp_path / "model.safetensors"
    train(path, checkpoint_every=0, evaluate_every=0)
    ours, others = files.load(path)[0], files.load(trained)[0]
    same = [name for name in others if name != "history.held_out"]
    assert all((ours[name] == others[name]).all() for name in same)


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "fastlstm", *map(str, arguments)]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_resume_loses_nothing(tmp_path: Path, text_file: Path, number: int) -> None:
    out = tmp_path / "model.safetensors"
    endless = {**SMALL, "steps": 10**6, "decay": 0.0}
    running = subprocess.Popen(
        command("train-text", text_file, "--out", out, *options(endless)), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not out.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(number)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 128 + number
    assert "--resume" in said.splitlines()[-1] and "Traceback" not in said

    stopped = len(files.load(out)[0]["history.loss"])
    assert stopped >= SMALL["checkpoint_every"]
    more = stopped + 5
    assert fastlstm.cli.main(["train-text", str(text_file), "--out", str(out), "--resume", "--steps", str(more)]) == 0
    train(tmp_path / "through", steps=more, decay=0.0)
    assert out.read_bytes() == (tmp_path / "through").read_bytes()


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    job = train(path, steps=3)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    job.step()
    with pytest.raises(OSError, match="No space"):
        job.save()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_divergence_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    job = train(tmp_path / "m", steps=7)
    with job.model.head.update() as params:
        params["bias"][0] = np.nan
    before, steps = job.state, job.optimizer.steps
    with pytest.raises(Diverged, match="step 8"):
        job.step()
    assert job.optimizer.steps == steps and job.state is before


# ------------------------------------------------------------------------------------------------------------ writing
def test_sampling_is_what_the_model_says(trained: Path) -> None:
    """Sampling by a stream draws the same characters as sampling by whole calls."""
    model = CharModel.load(trained)
    text = "the " + "".join(model.sample("the ", 20, 0))
    y, _ = model.lstm(encode(text, model.vocabulary))
    likeliest = model.head(y).argmax(axis=1)
    assert text[4:] == "".join(model.vocabulary[i] for i in likeliest[3:-1])


def test_sampling_is_seeded(trained: Path) -> None:
    model = CharModel.load(trained)
    one, same, other = ("".join(model.sample("the", 80, 1.0, seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert len(one) == 80 and set(one) <= set(TEXT)
    assert "".join(model.sample("", 5, 0)) == "".join(model.sample("\n", 5, 0))


def test_choose_token_follows_the_softmax() -> None:
    logits, rng = np.log(np.array([0.1, 0.2, 0.7], "float32")), np.random.default_rng(0)
    drawn = np.bincount([choose_token(logits, 1.0, rng) for _ in range(4000)], minlength=3) / 4000
    assert drawn == pytest.approx([0.1, 0.2, 0.7], abs=0.03)
    squared = np.bincount([choose_token(logits, 0.5, rng) for _ in range(4000)], minlength=3) / 4000
    assert squared == pytest.approx(np.array([0.01, 0.04, 0.49]) / 0.54, abs=0.03)
    assert {choose_token(logits, 1e-300, rng) for _ in range(50)} == {2}


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("thé", 5), ValueError, "character 'é'"),
        (("the", -1), ValueError, "length"),
        (("the", 5, -0.5), ValueError, "temperature"),
        (("the", 5, math.nan), ValueError, "temperature"),
        (("the", 5, 1.0, -3), ValueError, "seed"),
    ],
)
def test_sampling_refuses_at_once(trained: Path, arguments: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        CharModel.load(trained).sample(*arguments)


# -------------------------------------------------------------------------------------------------------------- files
def test_files_give_back_what_they_got(tmp_path: Path) -> None:
    path = tmp_path / "f"
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "swapped": np.arange(3, dtype=">f4"),
        "scalar": np.array(7, "int64"),
        "empty": np.zeros((0, 3), "float16"),
        "strided": np.arange(10)[::2],
    }
    config = {"text": 'ä"😀\n', "n": 2**100, "x": [1.5, None]}
    files.save(path, arrays, config)
    read, read_config = files.load(path)
    assert read_config == config
    assert read.keys() == arrays.keys()
    for name, a in arrays.items():
        assert np.array_equal(read[name], a) and read[name].shape == a.shape
        assert read[name].dtype == a.dtype.newbyteorder("=") and read[name].flags.writeable


def test_saved_model_is_the_same(tmp_path: Path, trained: Path) -> None:
    model = CharModel.load(trained)
    model.save(tmp_path / "alone")
    again = CharModel.load(tmp_path / "alone")
    assert repr(again.lstm) == repr(model.lstm) and again.vocabulary == model.vocabulary
    assert all((a == b).all() for a, b in zip(again.to_arrays().values(), model.to_arrays().values(), strict=True))


def test_damaged_files_are_refused(tmp_path: Path, trained: Path) -> None:
    """A file that is cut anywhere, or has changed bytes, is read as a model or raises FileError."""
    good, path, rng = trained.read_bytes(), tmp_path / "bad", np.random.default_rng(0)
    header = int.from_bytes(good[:8], "little")
    damaged = [good[:n] for n in (0, 7, 8, 50, header, header + 8, len(good) - 1)]
    for _ in range(150):
        spoilt = bytearray(good)
        for at in rng.integers(0, header + 8, rng.integers(1, 4)):
            spoilt[at] = rng.integers(32, 127)
        damaged.append(bytes(spoilt))
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        for read in (CharModel.load, lambda p: TextTraining.resume(TEXT, p, {})):
            try:
                read(path)
            except ValueError as error:
                assert str(path) in str(error)
                refused += 1
    assert refused > 200


def change(name: str, value: Any) -> Any:
    """A function that changes one entry of a file's configuration, such as ``training.position``."""

    def spoil(arrays: dict[str, Any], config: dict[str, Any]) -> None:
        *way, last = name.split(".")
        for step in way:
            config = config[step]
        config[last] = value

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        change("kind", "another"),
        change("vocabulary", "ba"),
        change("vocabulary", 3),
        change("dropout", "much"),
        change("training.position", 10**9),
        change("training.position", -1),
        change("training.rng", {"bit_generator": "MT19937"}),
        change("training.rng", None),
        change("training.settings", {"hidden": 10**12}),
        change("training.settings", {"unheard": 1}),
        change("training.settings", []),
        change("training", 5),
        change("training.fingerprint", "0"),
        lambda arrays, config: arrays.pop("lstm.weight_hh_l1"),
        lambda arrays, config: arrays.pop("head.bias"),
        lambda arrays, config: arrays.pop("optimizer.steps"),
        lambda arrays, config: arrays.pop("history.loss"),
        lambda arrays, config: arrays.pop("state.c"),
        lambda arrays, config: arrays.update({"state.h": np.zeros((2, 1, 24), "float32")}),
        lambda arrays, config: arrays.update({"history.held_out": np.zeros(3)}),
    ],
    ids=lambda value: None,
)
def test_false_checkpoints_are_refused(tmp_path: Path, trained: Path, spoil: Any) -> None:
    arrays, config = files.load(trained)
    spoil(arrays, config)
    files.save(tmp_path / "false", arrays, config)
    with pytest.raises(ValueError, match="false"):
        TextTraining.resume(TEXT, tmp_path / "false", {})


# ------------------------------------------------------------------------------------------------------- command line
def fails(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one-line error of a command with exit status 2."""
    assert fastlstm.cli.main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("fastlstm: ")
    return lines[0]


def test_train_and_sample_commands(
    tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str], trained: Path
) -> None:
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "model.safetensors", tmp_path / "loss.png"
    assert (
        fastlstm.cli.main(["train-text", str(text_file), "--out", str(out), "--plot", str(picture), *options(SMALL)])
        == 0
    )
    said = capsys.readouterr()
    assert "held-out perplexity" in said.out
    assert "tok/s" in said.err and "loss=" in said.err and "perplexity=" in said.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert out.read_bytes() == trained.read_bytes()  # the command's file equals the library's
    assert sorted(os.listdir(tmp_path)) == ["loss.png", "model.safetensors", "text.txt"]

    sample = ["sample", str(out), "--prefix", "the q", "--length", "30", "--temperature", "0.5", "--seed", "3"]
    assert fastlstm.cli.main(sample) == 0
    written = capsys.readouterr().out
    assert written.startswith("the q") and len(written) == 5 + 30 + 1
    assert fastlstm.cli.main(sample) == 0
    assert capsys.readouterr().out == written


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps, and the table, in which the backends' losses agree."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert fastlstm.cli.main(["demo", "--seconds", "0"]) == 0
    said = capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["demo-loss.png", "demo-model.safetensors"]
    table = said[said.index("backend ") :].splitlines()
    assert {line.split()[0] for line in table[1:-1]} == set(fastlstm.backends())
    assert float(table[-1].split()[-1]) < 1e-4
    assert len(said) > 300


def test_bad_training_arguments(tmp_path: Path, text_file: Path, trained: Path, capsys: Any) -> None:
    out = ["--out", tmp_path / "m"]
    binary, short = tmp_path / "binary", tmp_path / "short"
    binary.write_bytes(b"abc\xff\xfe")
    short.write_text("too short")
    assert "No such file" in fails(capsys, "train-text", tmp_path / "none", *out)
    assert "UTF-8: byte 3 is 0xff" in fails(capsys, "train-text", binary, *out)
    assert "9 characters" in fails(capsys, "train-text", short, *out)
    assert "hidden must be at least 1" in fails(capsys, "train-text", text_file, *out, "--hidden", 0)
    assert "adam, adamw" in fails(capsys, "train-text", text_file, *out, "--optimizer", "lion")
    assert "lr must be" in fails(capsys, "train-text", text_file, *out, "--lr", "nan")
    assert "backend 'abacus'" in fails(capsys, "train-text", text_file, *out, "--backend", "abacus")
    assert "no folder" in fails(capsys, "train-text", text_file, "--out", tmp_path / "nowhere" / "m")
    assert "to resume" in fails(capsys, "train-text", text_file, *out, "--resume")
    assert not (tmp_path / "m").exists()

    go_on = ["--out", trained, "--resume"]
    before = trained.read_bytes()
    assert "hidden 25: it began with hidden 24" in fails(capsys, "train-text", text_file, *go_on, "--hidden", 25)
    other = tmp_path / "other.txt"
    other.write_text(TEXT + "!")
    assert "another text" in fails(capsys, "train-text", other, *go_on)
    assert trained.read_bytes() == before


def test_bad_sampling_arguments(tmp_path: Path, text_file: Path, trained: Path, capsys: Any) -> None:
    assert "No such file" in fails(capsys, "sample", tmp_path / "none")
    assert "no safetensors file" in fails(capsys, "sample", text_file)
    assert "characters 'É' 'à'" in fails(capsys, "sample", trained, "--prefix", "àÉ")
    assert "temperature" in fails(capsys, "sample", trained, "--temperature", -1)
    files.save(tmp_path / "foreign", {"a": np.zeros(2)}, {})
    assert "no character model" in fails(capsys, "sample", tmp_path / "foreign")


def test_a_plot_without_matplotlib_is_refused_before_training(
    tmp_path: Path, text_file: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = fails(capsys, "train-text", text_file, "--out", tmp_path / "m", "--plot", tmp_path / "loss.png")
    assert 'pip install "fastlstm[plot]"' in said
    assert not (tmp_path / "m").exists()


def test_a_plot_of_an_unknown_kind_is_refused(tmp_path: Path, text_file: Path, capsys: Any) -> None:
    pytest.importorskip("matplotlib")
    said = fails(capsys, "train-text", text_file, "--out", tmp_path / "m", "--plot", tmp_path / "loss.xyz")
    assert "png" in said


def test_the_model_file_is_plain_safetensors(trained: Path) -> None:
    data = trained.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["fastlstm"])["vocabulary"] == vocabulary_of(TEXT)
