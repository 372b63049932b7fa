"""Input texts: encodings, marks, unknown characters, small texts, memory; settings without effect."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import tracemalloc
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm.cli
from fastlstm import corpus, files
from fastlstm.corpus import encode, read_text, side_by_side, vocabulary_of
from fastlstm.text import CharModel, Settings, TextTraining

FRENCH = "café déjà vu, naïve\n" * 60
ENGLISH = "a cold dog sat on a mat.\n" * 60
# A training of 9 steps by an earlier version, saved after 4; it left out the last 36 of the 116 steps of each stream.
EARLIER = Path(__file__).parent / "golden" / "training_of_an_earlier_version.safetensors"
ITS_TEXT = "the quick brown fox jumps over the lazy dog.\nhow vexingly quick daft zebras jump!\n" * 12
ITS_LOSSES = [3.3345840002281606, 3.3055268776329827, 3.305182237523289, 3.2823049218176736, 3.2836471355869072]
TINY: dict[str, Any] = {"hidden": 4, "seq_len": 8, "batch": 4, "steps": 3, "backend": "numpy", "evaluate_every": 0}


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def command(*arguments: Any, **settings: Any) -> int:
    options = [w for k, v in settings.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    return fastlstm.cli.main([*map(str, arguments), *options])


# ----------------------------------------------------------------------------------------------------------- encodings
@pytest.mark.parametrize("codec", ["utf-16", "utf-32", "utf-8-sig", "utf-8"])
def test_a_mark_says_the_encoding(tmp_path: Path, codec: str) -> None:
    path = written(tmp_path / "t", FRENCH.encode(codec))
    assert read_text(path) == FRENCH == read_text(path, codec)


@pytest.mark.parametrize(
    "codec", ["latin-1", "cp1252", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "gb18030", "utf-7", "utf8"]
)
def test_a_named_encoding(tmp_path: Path, codec: str) -> None:
    assert read_text(written(tmp_path / "t", FRENCH.encode(codec)), codec) == FRENCH


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "cp1252"])
@pytest.mark.parametrize("text", [FRENCH, ENGLISH, "при по ном кн ло\n" * 60], ids=["french", "english", "russian"])
def test_the_cure_in_the_message_cures(tmp_path: Path, codec: str, text: str) -> None:
    """English in UTF-16 without a mark is valid UTF-8, with many NUL characters."""
    if codec == "cp1252" and not text.startswith("café"):
        pytest.skip("it is UTF-8, or has no such characters")
    path = written(tmp_path / "t", text.encode(codec))
    with pytest.raises(ValueError) as refused:
        read_text(path)
    named = re.findall(r"--encoding ([\w-]+)", str(refused.value))[0]
    assert named == codec and read_text(path, named) == text


def test_a_mark_against_the_named_encoding(tmp_path: Path) -> None:
    path = written(tmp_path / "t", FRENCH.encode("utf-16"))
    with pytest.raises(ValueError, match=r"mark of UTF-16-LE, which is not latin-1: leave --encoding out"):
        read_text(path, "latin-1")
    without = written(tmp_path / "u", FRENCH.encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"--encoding utf-16-le .* or --encoding utf-16-be"):
        read_text(without, "utf-16")
    with pytest.raises(ValueError, match=r"looks like UTF-16 .*: give --encoding utf-16-le"):
        read_text(without, "latin-1")  # any bytes are valid latin-1


@pytest.mark.parametrize("codec", ["klingon", "hex", "rot13", ""])
def test_encodings_that_are_none(tmp_path: Path, codec: str) -> None:
    with pytest.raises(ValueError, match=f"encoding '{codec}' is not one that Python has for texts: give utf-8"):
        read_text(written(tmp_path / "t", b"abc"), codec)


@pytest.mark.parametrize("piece", [2, 4, 6, 1 << 20])
def test_the_byte_that_is_wrong_is_named_by_its_place_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(corpus, "PIECE", max(4, piece))
    for data, at in ((b"abc\xe9 and more", 3), ("éé€".encode() + b"\xffab", 7), (b"abcdefgh\xc3", 8)):
        with pytest.raises(ValueError, match=rf"UTF-8: byte {at} is {data[at]:#04x}"):
            read_text(written(tmp_path / "t", data))


@pytest.mark.parametrize("codec", ["utf-8", "utf-16", "utf-32"])
def test_pieces_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    """Characters of several bytes, line ends of two and marks may lie across the borders of pieces."""
    text = "a€\r\nb😀\rc\n\r\né"
    path = written(tmp_path / "t", text.encode(codec))
    for piece in (4, 5, 6, 7, 9, 1000):
        monkeypatch.setattr(corpus, "PIECE", piece)
        assert read_text(path) == "a€\nb😀\nc\n\né"
        assert encode("leo😀" * 9, "elo😀").tolist() == [1, 0, 2, 3] * 9
        assert corpus.fingerprint(text) == hashlib.sha256(text.encode()).hexdigest()


def test_nul_characters(tmp_path: Path) -> None:
    text = "one\0two, three\n" * 50
    path = written(tmp_path / "t", text.encode())
    with pytest.raises(ValueError, match=r"NUL characters when read as UTF-8.*if they belong to the text.*utf-8"):
        read_text(path)
    assert read_text(path, "utf-8") == text
    records = "records of one width, to be told from UTF-16, end so\0\n" * 50  # every NUL at an even place
    with pytest.raises(ValueError, match=r"if they belong to the text.*--encoding utf-8"):
        read_text(written(tmp_path / "t", records.encode()))


@pytest.mark.parametrize(
    ("data", "encoding", "said"),
    [
        ("ab\ufeffcd\ufeff".encode(), None, "2 byte order marks"),
        ("ab\ufffd".encode(), None, "1 replacement character "),
        ("“quoted”".encode("cp1252"), "latin-1", "2 control characters .*try --encoding cp1252"),
    ],
)
def test_odd_characters_warn(tmp_path: Path, data: bytes, encoding: str | None, said: str) -> None:
    with pytest.warns(UserWarning, match=said):
        read_text(written(tmp_path / "t", data), encoding)


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A text from a pipe trains the same model as one from a file."""
    path, models = written(tmp_path / "t", FRENCH.encode("cp1252")), (tmp_path / "a", tmp_path / "b")
    assert command("train-text", path, "--encoding", "cp1252", "--out", models[0], **TINY) == 0
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(path.read_bytes())))
    assert command("train-text", "-", "--encoding", "cp1252", "--out", models[1], **TINY) == 0
    assert models[0].read_bytes() == models[1].read_bytes()
    assert CharModel.load(models[0]).vocabulary == vocabulary_of(FRENCH)

    monkeypatch.setattr(sys, "stdin", None)
    assert command("train-text", "-", "--out", tmp_path / "c", **TINY) == 2
    assert "standard input" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- vocabularies, token ids
@pytest.mark.parametrize(("characters", "dtype"), [(1, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4")])
def test_token_ids_are_as_small_as_the_vocabulary_allows(characters: int, dtype: str) -> None:
    vocabulary = "".join(map(chr, range(0x10000, 0x10000 + characters)))
    ids = encode(vocabulary[::-1], vocabulary)
    assert ids.dtype == dtype and (ids == np.arange(characters)[::-1]).all()


def test_small_token_ids_train_as_large_ones(backend: str) -> None:
    """Loss and gradients of uint8 and of int64, bit for bit."""
    model = CharModel(vocabulary_of(FRENCH), 6, backend=backend, seed=0)
    small = side_by_side(encode(FRENCH[:200], model.vocabulary), 3)
    large = [ids.astype(np.int64) for ids in small]
    assert small[0].dtype == np.uint8
    assert model.gradients(*small, None)[0] == model.gradients(*large, None)[0]
    assert model.loss(*small) == model.loss(*large)


def test_unknown_characters_are_named_and_counted() -> None:
    with pytest.raises(
        ValueError, match=r"characters 'x' 'y', which stand at 3 of the text's 6 places; it knows 2: 'ab'"
    ):
        encode("axbyxa", "ab")
    with pytest.raises(ValueError, match=r"'\u4e13' and 80 more, which stand at 100 of the text's 100 places"):
        encode("".join(map(chr, range(0x4E00, 0x4E64))), "ab")


@pytest.mark.parametrize("vocabulary", ["", "ba", "aab"])
def test_false_vocabularies_are_refused(vocabulary: str) -> None:
    with pytest.raises(ValueError, match=r"every character once, sorted.*vocabulary_of\(text\)"):
        CharModel(vocabulary, 4)


def test_the_vocabulary_of_the_model_numbers_the_text(tmp_path: Path) -> None:
    """A model that is trained further on a text with fewer characters numbers it by its own vocabulary."""
    model = CharModel(vocabulary_of(FRENCH + ENGLISH), 5, seed=0)
    job = TextTraining(ENGLISH, Settings(**TINY | {"hidden": 5, "backend": "auto"}), tmp_path / "m", model)
    ids = encode(ENGLISH, model.vocabulary)
    held_out = ids[len(ids) - int(len(ids) * 0.05) :]
    assert job.evaluate() == model.loss(*side_by_side(held_out, 1))
    assert job.step() == pytest.approx(np.log(len(model.vocabulary)), abs=0.5)
    job.history.losses.append(0.0)
    job.save()
    again = TextTraining.resume(ENGLISH, tmp_path / "m", {})
    assert again.evaluate() == job.evaluate() and again.step() == job.step()


def test_a_text_that_the_model_does_not_know(tmp_path: Path) -> None:
    model = CharModel(vocabulary_of(ENGLISH), 4, backend="numpy", seed=0)
    with pytest.raises(ValueError, match=r"characters 'e' 'f' .* 'ï', which stand at 600 of the text's 1140 places"):
        TextTraining(FRENCH.replace("i", "").replace(",", ""), Settings(**TINY), tmp_path / "m", model)


def test_settings_that_contradict_the_model(tmp_path: Path) -> None:
    model = CharModel(vocabulary_of(ENGLISH), 4, 2, 0.25, backend="numpy", seed=0)
    small = {"seq_len": 8, "batch": 4, "steps": 3}
    job = TextTraining(ENGLISH, Settings(**small), tmp_path / "m", model)
    assert (job.settings.hidden, job.settings.layers, job.settings.dropout) == (4, 2, 0.25)
    TextTraining(ENGLISH, Settings(**small, dropout=0.5), tmp_path / "m", model)
    assert model.lstm.dropout == 0.5
    for name, value in (("hidden", 5), ("layers", 3), ("seed", 9)):
        with pytest.raises(ValueError, match=f"{name} {value}"):
            TextTraining(ENGLISH, Settings(**small, **{name: value}), tmp_path / "m", model)


def test_bytes_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"text must be a str, got bytes.*decode"):
        TextTraining(b"abc" * 999, Settings(), tmp_path / "m")  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- nothing left out
@pytest.mark.parametrize("length", [1000, 1100, 3000])
def test_every_character_is_trained_on(tmp_path: Path, length: int) -> None:
    """Windows of T steps of streams with S steps: the last window is shorter, and the state is zero after it."""
    text = "".join(chr(0x4E00 + i) for i in range(length))
    job = TextTraining(text, Settings(**TINY | {"seq_len": 100}), tmp_path / "m")
    kept = length - int(length * 0.05)
    seen: list[np.ndarray] = []
    gradients, S = job.model.gradients, (kept - 1) // 4

    def spy(x: Any, targets: Any, state: Any) -> Any:
        assert (state is None) == (not seen)
        seen.append(targets)
        return gradients(x, targets, state)

    job.model.gradients = spy  # type: ignore[method-assign]
    while not seen or job.position:
        job.step()
    assert [len(t) for t in seen] == [min(100, S - at) for at in range(0, S, 100)]
    assert sorted(np.concatenate(seen).ravel().tolist()) == list(range(1, 4 * S + 1)) and kept - 1 - 4 * S < 4
    assert job.state is None
    assert job.tokens_per_step == round(4 * S / len(seen))


def test_a_training_of_an_earlier_version_goes_on_as_it_began(tmp_path: Path) -> None:
    path = tmp_path / "m"
    shutil.copy(EARLIER, path)
    with pytest.warns(UserWarning, match="leaves the last 31% of every stream out"):
        job = TextTraining.resume(ITS_TEXT, path, {})
    job.run()
    assert job.history["loss"][4:] == pytest.approx(ITS_LOSSES, rel=1e-6)
    assert "short_window" not in files.load(path)[1]["training"]


def test_what_an_earlier_version_numbered_wrongly_is_refused(tmp_path: Path) -> None:
    arrays, config = files.load(EARLIER)
    config["vocabulary"] = vocabulary_of(config["vocabulary"][1:] + "é")
    files.save(tmp_path / "m", arrays, config)
    with pytest.raises(ValueError, match=r"characters \('é'\).*train the model anew"):
        TextTraining.resume(ITS_TEXT, tmp_path / "m", {})


def test_targets_that_do_not_count_are_not_in_the_mean() -> None:
    model = CharModel("abcd", 4, seed=0)
    x = np.array([[0, 1], [2, 3], [1, 0]])
    right = model.loss(x[:, :1], x[:, 1:])
    assert model.loss(x, np.stack([x[:, 1], np.full(3, -100)], 1)) == pytest.approx(right, rel=1e-6)
    assert np.isnan(model.loss(x, np.full((3, 2), -100)))


# ------------------------------------------------------------------------------------------------------------- memory
@pytest.mark.parametrize("line", ["the quick brown fox\n", "naïve “café”, quick fox\n"], ids=["ascii", "quotes"])
def test_memory_of_a_character(tmp_path: Path, line: str) -> None:
    """Bytes a character: at most 8 at the peak; at most 3 kept, the text itself (1 or 2) included."""
    N = 3_000_000
    path = written(tmp_path / "t", (line * (N // len(line))).encode())
    tracemalloc.start()
    text = read_text(path)
    job = TextTraining(text, Settings(**TINY), tmp_path / "m")
    kept, peak = (n / N for n in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    assert job.tokens_per_step > 0
    assert peak < 8 and kept < 3.1


# ------------------------------------------------------------------------------------------------ without any effect
def notes(**settings: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        TextTraining(ENGLISH, Settings(**TINY | settings), "unused")
    assert all(w.category is UserWarning and w.filename == __file__ for w in found)
    return [str(w.message) for w in found]


def test_settings_without_effect_warn() -> None:
    assert notes() == []
    assert notes(layers=2, dropout=0.5) == notes(decay=0.9) == notes(evaluate_every=3, checkpoint_every=2) == []
    assert notes(dropout=0.5) == [
        "dropout 0.5 has no effect: it drops outputs between layers, and layers is 1. "
        "Give layers 2 or more, or dropout 0"
    ]
    assert notes(lr=0.0) == ["lr is 0, so that nothing is learnt"]
    assert [n[:23] for n in notes(decay=0.3)] == ["decay 0.3 has no effect"]
    assert [n.split(":")[0] for n in notes(evaluate_every=4, checkpoint_every=5)] == [
        "evaluate_every 4 has no effect",
        "checkpoint_every 5 has no effect",
    ]


def test_decay_is_a_share() -> None:
    with pytest.raises(ValueError, match="decay must be a number between 0 and 1, got 30"):
        Settings(decay=30.0)


def test_a_text_of_one_character(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="only the character 'a', so that there is nothing to learn"):
        job = TextTraining("a" * 400, Settings(**TINY), tmp_path / "m")
    assert job.step() == 0.0 == job.evaluate()
    assert "".join(job.model.sample("", 5, seed=0)) == "aaaaa"


def test_the_command_says_what_has_no_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(tmp_path / "t", ENGLISH.encode()), tmp_path / "m"
    assert command("train-text", path, "--out", out, **TINY, dropout=0.5) == 0
    assert "\nfastlstm: warning: dropout 0.5 has no effect" in "\n" + capsys.readouterr().err
    before = out.read_bytes()
    assert command("train-text", path, "--out", out, "--resume") == 0
    assert "nothing was left to do: 3 steps have been taken, and steps is 3" in capsys.readouterr().err
    assert command("train-text", path, "--out", out, "--resume", steps=2) == 0
    assert "nothing was left to do: 3 steps have been taken, and steps is 2" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert command("sample", out, temperature=0, seed=3, length=4) == 0
    assert "--seed has no effect at --temperature 0" in capsys.readouterr().err
    assert command("sample", out, temperature=0.5, seed=3, length=4) == 0
    assert capsys.readouterr().err == ""
    assert command("bench", "--neighbours", "--isas", "--out", tmp_path / "r") == 2
    assert "leave --training, --cells and --isas out" in capsys.readouterr().err


def test_the_way_to_go_on_can_be_pasted(tmp_path: Path) -> None:
    """Names with blanks are quoted, the encoding is repeated."""
    path = written(tmp_path / "my text", FRENCH.encode("cp1252"))
    code = f"""
import os, signal, fastlstm.cli, fastlstm.text
update = fastlstm.text.TextTraining.update
def stop(job, gradients):
    os.kill(os.getpid(), signal.SIGINT)
    return update(job, gradients)
fastlstm.text.TextTraining.update = stop
fastlstm.cli.main(["train-text", {str(path)!r}, "--encoding", "cp1252", "--out", {str(tmp_path / "a b")!r},
    "--seq-len", "8", "--batch", "4", "--hidden", "4"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = done.stderr.strip().splitlines()[-1].partition("to go on: ")[2]
    assert said == f"fastlstm train-text '{path}' --out '{tmp_path / 'a b'}' --resume --encoding cp1252"
