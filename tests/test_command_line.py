"""The commands `fit`, `predict` and `info`, JSON results, help; tables of every kind, and what is wrong in them."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
import fastlstm.cli.demo
from fastlstm import files
from fastlstm.callbacks import CSVLog
from fastlstm.cli import main
from fastlstm.cli.common import as_json
from fastlstm.cli.entry import COMMANDS, parser
from fastlstm.forecast import StandardScaler
from fastlstm.recipes import Recipe
from fastlstm.tables import read_table
from fastlstm.text import CharModel, Settings, TextTraining, WordModel, Words
from fastlstm.training import epochs

QUICK = ["--epochs", "2", "--units", "4", "--backend", "numpy"]


def ran(capsys: Any, *arguments: Any, status: int = 0) -> tuple[str, str]:
    """(standard output, standard error) of a command that ends with this status."""
    assert main([str(one) for one in arguments]) == status
    said = capsys.readouterr()
    return said.out, said.err


def fails(capsys: Any, *arguments: Any) -> str:
    """The one line of a command that was given something wrong."""
    out, said = ran(capsys, *arguments, status=2)
    assert out == "" and said.splitlines()[-1].startswith("fastlstm: ")
    return said.splitlines()[-1]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# -------------------------------------------------------------------------------------------------------------- tables
def test_the_first_line_has_names_where_none_is_a_number(tmp_path: Path) -> None:
    named = read_table(write(tmp_path / "a.csv", 'x,"a, b"\n1,2\n\n3,4\n'))
    assert list(named.columns) == ["x", "a, b"] and named.places == [2, 4]
    assert named.numbers("a, b").tolist() == [2, 4] and named.name("2") == "a, b"
    bare = read_table(write(tmp_path / "b.tsv", "-0.6\tit's \"good\n1.5\tbad\n"))
    assert bare.columns == {"1": ["-0.6", "1.5"], "2": ["it's \"good", "bad"]} and bare.places == [1, 2]
    assert list(read_table(write(tmp_path / "c.csv", "1;2\n3;4\n"), header="yes").columns) == ["1", "2"]
    assert len(read_table(write(tmp_path / "d.csv", "a,b\nc,d\n"), header="no")) == 2


def test_bad_cells_are_told_by_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "x,y\n1,2\n3\n4,abc\n5,nan\n6,7\n")
    table = read_table(path)
    table.numbers("y")
    with pytest.raises(
        ValueError, match=r"t\.csv line 3: has 1 cells, the first line has 2 \(and 2 more bad rows: line 4"
    ):
        table.good_rows()
    with pytest.warns(UserWarning, match="3 of 5 rows left out; the first is .*line 3"):
        assert table.good_rows(skip=True).tolist() == [0, 4]
    other = read_table(write(tmp_path / "u.csv", "x,y\n1,2\n4,abc\n"))
    other.numbers("y")
    with pytest.raises(ValueError, match="line 3: column 'y' has 'abc', which is no finite number"):
        other.good_rows()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.xlsx", "", "must be one of csv, tsv, npz, parquet"),
        ("t.csv", "", "is empty"),
        ("t.csv", "a,a\n1,2\n", "line 1: two columns are called 'a'"),
        ("t.npz", "no zip", "no NPZ file"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=said):
        read_table(path)


def test_objects_in_npz_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="Python objects, which could run code"):
        read_table(tmp_path / "t.npz")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"x": [1, 2, None], "name": ["a", "b", "c"]}), tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert table.texts("name") == ["a", "b", "c"] and table.numbers("x")[:2].tolist() == [1, 2]
    with pytest.raises(ValueError, match="row 3: column 'x'"):
        table.good_rows()
    with pytest.raises(ValueError, match="no Parquet file"):
        read_table(write(tmp_path / "u.parquet", "no"))


def test_parquet_without_pyarrow_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "fastlstm\[parquet\]"; or save it as CSV'):
        read_table(write(tmp_path / "t.parquet", ""))


# ------------------------------------------------------------------------------------------------------- fit, predict
def test_texts_are_told_apart(tmp_path: Path, capsys: Any) -> None:
    """Scores above and below 0 by a word of the text; predictions are those of the model in Python."""
    rng = np.random.default_rng(0)
    words = ["film", "plot", "actor", "scene", "music"]
    rows = []
    for i in range(160):
        told = "fine" if i % 2 else "dull"
        rows.append(f"{(1 if i % 2 else -1) * rng.uniform(0.1, 3):.3f}\t{' '.join([*rng.choice(words, 4), told, '.'])}")
    data, out = write(tmp_path / "reviews.tsv", "\n".join(rows) + "\n"), tmp_path / "m.safetensors"
    arguments = ["fit", data, "--text", 2, "--target", 1, "--above", 0, "--out", out, "--epochs", 12, "--units", 16]
    said, progress = ran(capsys, *arguments, "--lr", 0.02, "--batch", 16, "--json", "--log", tmp_path / "log.csv")
    result = json.loads(said)
    assert result["task"] == "classification" and result["val_binary_accuracy"] == 1.0
    assert "144 samples to train on, 16 held out" in progress and "epoch 12/12" in progress
    assert (tmp_path / "log.csv").read_text().startswith("epoch,lr,loss,")
    # The same by hand.
    recipe = Recipe.from_config(files.load(out)[1]["notes"]["data"])
    vocabulary, model = Words.from_config(recipe.words), fl.load(out)
    new = write(tmp_path / "new.tsv", "0.5\ta fine film\n-1\tdull plot\n-1\tZEBRA\n")
    p = [float(model(vocabulary.encode(t)[None].astype(int) + 1)[0, 0]) for t in ("a fine film", "dull plot", "zebra")]
    said, progress = ran(capsys, "predict", out, new)
    lines = [line.split(",") for line in said.splitlines()]
    assert lines[0] == ["line", "class", "probability"]
    assert [line[1] for line in lines[1:3]] == ["above 0", "not above 0"]
    shown = [max(one, 1 - one) for one in p]
    assert [float(line[2]) for line in lines[1:]] == pytest.approx(shown, rel=1e-4)
    assert "accuracy" in progress and "of 3 rows" in progress


def test_classes_of_rows(tmp_path: Path, capsys: Any) -> None:
    """Rising, falling and flat series of 6 numbers, a row each; labels are words."""
    rng = np.random.default_rng(1)
    lines = ["kind," + ",".join(f"t{i}" for i in range(6))]
    for i in range(150):
        slope, label = [(1, "rising"), (-1, "falling"), (0, "flat")][i % 3]
        lines.append(f"{label}," + ",".join(f"{slope * t + rng.normal(0, 0.3):.4f}" for t in range(6)))
    data, out = write(tmp_path / "t.csv", "\n".join(lines)), tmp_path / "m"
    said, _ = ran(capsys, "fit", data, "--target", "kind", "--out", out, "--epochs", 15, "--units", 12, "--lr", 0.02,
                  "--layers", 2, "--layer", "gru", "--json")  # fmt: skip
    assert json.loads(said)["val_sparse_categorical_accuracy"] >= 0.9
    said, _ = ran(capsys, "predict", out, data, "--json")
    result = json.loads(said)
    assert result["accuracy"] >= 0.95 and result["rows"] == 150
    assert result["predictions"][0]["line"] == 2 and result["predictions"][0]["class"] == "rising"
    only = write(tmp_path / "one.csv", ",".join(f"t{i}" for i in range(6)) + "\n0,1,2,3,4,5\n")
    said, _ = ran(capsys, "predict", out, only, "--out", tmp_path / "p.csv")
    assert "1 predictions" in said and (tmp_path / "p.csv").read_text().splitlines()[1].startswith("2,rising,")
    assert "no column 't0'" in fails(capsys, "predict", out, write(tmp_path / "two.csv", "a,b\n1,2\n"))


def test_a_forecast_is_that_of_the_model(tmp_path: Path, capsys: Any) -> None:
    """A sine of two columns; the scales are those of the rows that were trained on, and of no others."""
    t = np.arange(300)
    series = np.column_stack([np.sin(t / 5) * 3 + 10, np.cos(t / 5)])
    lines = ["temp,other", *(f"{a:.6f},{b:.6f}" for a, b in series)]
    data, out = write(tmp_path / "t.csv", "\n".join(lines)), tmp_path / "m"
    ran(capsys, "fit", data, "--target", "temp", "--window", 10, "--horizon", 3, "--out", out, "--epochs", 30, "--lr",
        0.01, "--units", 16, "--validation", 0.2)  # fmt: skip
    said, _ = ran(capsys, "predict", out, data, "--json")
    found = [row["temp"] for row in json.loads(said)["predictions"]]
    assert found == pytest.approx(np.sin(np.arange(300, 303) / 5) * 3 + 10, abs=0.5)
    scaler = StandardScaler().fit(np.round(series[:240], 6))
    recipe = Recipe.from_config(files.load(out)[1]["notes"]["data"])
    order = [recipe.inputs.index("temp"), recipe.inputs.index("other")]
    assert np.take(recipe.scales["inputs"], order, axis=1) == pytest.approx(np.array([scaler.offset, scaler.scale]))
    x = np.take(
        scaler.transform(np.round(series[-10:], 6)), [["temp", "other"].index(n) for n in recipe.inputs], axis=1
    )
    y = fl.load(out)(x[None].astype(np.float32))[0] * scaler.scale[0] + scaler.offset[0]
    assert found == pytest.approx(y.tolist(), rel=1e-4)
    broken = write(tmp_path / "u.csv", "\n".join([*lines[:50], "x,1", *lines[50:]]))
    assert "u.csv line 51: column 'temp' has 'x'" in fails(capsys, "predict", out, broken)
    assert "a series cannot have gaps" in fails(capsys, "predict", out, broken, "--skip-bad-rows")


def test_arrays_and_a_number_as_target(tmp_path: Path, capsys: Any) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((120, 5, 2))
    np.savez(tmp_path / "t.npz", x=x, y=x.sum((1, 2)) * 10 + 100)
    said, progress = ran(capsys, "fit", tmp_path / "t.npz", "--inputs", "x", "--target", "y", "--out", tmp_path / "m",
                         "--epochs", 40, "--lr", 0.02, "--units", 16, "--json")  # fmt: skip
    assert json.loads(said)["task"] == "regression" and "samples (5, 2)" in progress
    said, _ = ran(capsys, "predict", tmp_path / "m", tmp_path / "t.npz", "--json")
    result = json.loads(said)
    assert result["mean absolute error"] < 10 < np.abs(x.sum((1, 2)) * 10).mean()
    assert result["predictions"][0].keys() == {"row", "y"}


def test_fit_refuses_before_it_trains(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(*arguments: Any, **options: Any) -> None:
        raise AssertionError("training has begun")

    monkeypatch.setattr(fl.Sequential, "fit", trained)
    good = write(tmp_path / "t.csv", "x,y\n" + "\n".join(f"{i},{i % 2}" for i in range(30)))
    out = ["--out", tmp_path / "m", *QUICK]
    precious = write(tmp_path / "precious", "years of work")
    assert "--force replaces it" in fails(capsys, "fit", good, "--target", "y", "--out", precious)
    assert "same file" in fails(capsys, "fit", good, "--target", "y", "--out", good, "--force")
    assert "no folder" in fails(capsys, "fit", good, "--target", "y", "--out", tmp_path / "none" / "m")
    assert "no column 'z'; it has x, y" in fails(capsys, "fit", good, "--target", "z", *out)
    assert "--text names what a sample is" in fails(capsys, "fit", good, "--target", "y", "--text", "x", "--window", 3)
    assert "leave --task and --above out" in fails(capsys, "fit", good, "--target", "y", "--window", 3, "--above", 1)
    assert "a window needs" in fails(capsys, "fit", good, "--target", "y", "--window", 40, *out)
    assert "must be one of csv" in fails(capsys, "fit", tmp_path / "t.txt", "--target", "y", *out)
    assert "No such file" in fails(capsys, "fit", tmp_path / "none.csv", "--target", "y", *out)
    assert "only the column 'x'" in fails(capsys, "fit", write(tmp_path / "x.csv", "x\n1\n"), "--target", "x", *out)
    one = write(tmp_path / "one.csv", "x,y\n1,a\n2,a\n3,a\n")
    assert "only the class 'a'" in fails(capsys, "fit", one, "--target", "y", *out)
    assert "--epochs must be at least 1" in fails(capsys, "fit", good, "--target", "y", "--epochs", 0)
    assert precious.read_text() == "years of work" and not (tmp_path / "m").exists()


def test_bad_rows_are_left_out_when_asked(tmp_path: Path, capsys: Any) -> None:
    lines = ["x,y", *(f"{i},{'ab'[i % 2]}" for i in range(20)), "oops,a", "3,"]
    data = write(tmp_path / "t.csv", "\n".join(lines))
    arguments = ["fit", data, "--target", "y", "--out", tmp_path / "m", *QUICK]
    assert "t.csv line 22: column 'x' has 'oops', which is no finite number (and 1 more bad rows: line 23)" in fails(
        capsys, *arguments
    )
    _, said = ran(capsys, *arguments, "--skip-bad-rows")
    assert "2 of 22 rows left out" in said and "18 samples to train on, 2 held out" in said


def small_table(path: Path) -> Path:
    return write(path / "t.csv", "x,y\n" + "\n".join(f"{i},{'ab'[i % 2]}" for i in range(40)))


def test_a_signal_ends_fit_and_the_model_is_saved(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: CSVLog, loop: Any) -> None:
        if loop.epochs == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(CSVLog, "on_epoch_end", interrupt)
    arguments = ["fit", small_table(tmp_path), "--target", "y", "--out", tmp_path / "m", "--log", tmp_path / "l.csv"]
    _, said = ran(capsys, *arguments, *QUICK, "--epochs", 1000, status=130)
    assert "stopped after 3 epochs" in said.splitlines()[-1]
    assert len(files.load(tmp_path / "m")[1]["notes"]["history"]["loss"]) == 3
    assert fl.load(tmp_path / "m")(np.zeros((2, 1, 1), np.float32)).shape == (2, 1)


def test_a_fit_that_diverges_is_status_1(tmp_path: Path, capsys: Any) -> None:
    data = write(tmp_path / "t.csv", "x,y\n" + "\n".join(f"{i},{i}.5" for i in range(40)))
    arguments = ["fit", data, "--target", "y", "--out", tmp_path / "m", *QUICK, "--clip", 0]
    _, said = ran(capsys, *arguments, "--lr", 1e30, "--optimizer", "sgd", "--epochs", 50, status=1)
    assert said.splitlines()[-1].startswith("fastlstm: training diverged") and not (tmp_path / "m").exists()


def test_a_pipe_gets_a_line_every_ten_seconds(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within long epochs too; the clock runs half a second at each look, and so at each batch."""

    class Clock:
        now = 0.0

        @classmethod
        def monotonic(cls) -> float:
            cls.now += 0.5
            return cls.now

    monkeypatch.setattr(epochs, "time", Clock)
    arguments = ["fit", small_table(tmp_path), "--target", "y", "--out", tmp_path / "m", *QUICK, "--batch", 1]
    lines = [line for line in ran(capsys, *arguments)[1].splitlines() if line.startswith("epoch ")]
    assert [line.partition(":")[0] for line in lines] == [
        "epoch 1/2, batch 20/36", "epoch 2/2, batch 3/36", "epoch 2/2, batch 23/36", "epoch 2/2"
    ] and all("loss 0." in line for line in lines)  # fmt: skip


def test_predict_gives_a_text_s_perplexity(tmp_path: Path, capsys: Any) -> None:
    model = CharModel("\nab", 4, seed=0)
    model.save(tmp_path / "m")
    said, _ = ran(capsys, "predict", tmp_path / "m", write(tmp_path / "t.txt", "abba\n"), "--json")
    found = json.loads(said)["predictions"][0]
    assert found["characters"] == 5 and found["perplexity"] == pytest.approx(model.perplexity("abba\n"))


def test_predict_with_a_model_of_another_origin(tmp_path: Path, capsys: Any) -> None:
    fl.LSTM(2, 3, seed=0).save(tmp_path / "m")
    data = write(tmp_path / "t.csv", "a,b\n1,2\n")
    assert "no recipe of data, as `fastlstm fit` writes one" in fails(capsys, "predict", tmp_path / "m", data)
    arrays, config = files.load(tmp_path / "m")
    for data_notes in ({"form": "text"}, {"form": "x", "task": "y", "inputs": [], "target": ""}, [1]):
        files.save(tmp_path / "m", arrays, config | {"notes": {"data": data_notes}})
        assert str(tmp_path / "m") in fails(capsys, "predict", tmp_path / "m", data)


# ---------------------------------------------------------------------------------------------------------------- info
def test_info_of_files(tmp_path: Path, capsys: Any) -> None:
    layer = fl.LSTM(3, 4, 2, seed=0)
    layer.save(tmp_path / "layer")
    said, _ = ran(capsys, "info", tmp_path / "layer")
    count = sum(p.size for p in layer.parameters().values())
    assert "LSTM(3, 4, num_layers=2)" in said and f"{count:,}" in said.splitlines()[-1] and "16 x 3" in said
    found = json.loads(ran(capsys, "info", tmp_path / "layer", "--json")[0])
    assert found["count"] == count and {"name": "weight_ih_l0", "shape": [16, 3]} in found["parameters"]

    model = fl.Sequential([fl.nn.Embedding(9, 4), fl.nn.LSTM(5), fl.nn.Dense(2)], seed=0)
    model.build((7,))
    model.save(tmp_path / "model")
    said, _ = ran(capsys, "info", tmp_path / "model")
    assert model.summary() in said

    text = "the fox runs , the dog sleeps .\n" * 60
    settings = Settings(level="word", hidden=6, seq_len=4, batch=4, steps=3, evaluate_every=0, backend="numpy")
    TextTraining(text, settings, tmp_path / "words").run()
    found = json.loads(ran(capsys, "info", tmp_path / "words", "--json")[0])
    assert found["kind"] == WordModel.KIND and found["steps"] == 3 and found["vocabulary"].endswith(" words")
    files.save(tmp_path / "foreign", {"a": np.zeros((2, 3))}, {})
    assert "without a model of fastlstm" in ran(capsys, "info", tmp_path / "foreign")[0]
    assert "no safetensors file" in fails(capsys, "info", write(tmp_path / "t.txt", "text, and more of it"))
    assert "No such file" in fails(capsys, "info", tmp_path / "none")


def test_config_is_info(capsys: Any) -> None:
    assert ran(capsys, "config") == ran(capsys, "info")
    found = json.loads(ran(capsys, "info", "--json")[0])
    assert found["fastlstm"] == fl.__version__ and list(found["backends"]) == list(fl.backends())
    assert found["threads"] == fl.get_num_threads()


# --------------------------------------------------------------------------------------------------- help, JSON, exits
def test_every_command_has_help_with_examples_that_parse(capsys: Any) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([command.NAME, "--help"])
        said = capsys.readouterr().out
        assert ended.value.code == 0 and "examples:\n" in said
        for example in command.EXAMPLES:
            assert example in said
            words = shlex.split(example.partition(" | ")[2] or example, comments=True)
            assert words[0] == "fastlstm" and parser().parse_args(words[1:]).command is command


def test_options_that_do_not_exist_are_status_2(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--speed", "9"])
    assert ended.value.code == 2


def test_json_of_training_and_sampling(tmp_path: Path, capsys: Any) -> None:
    text = write(tmp_path / "t.txt", "one two three four five six seven\n" * 60)
    small = ["--hidden", 6, "--seq-len", 6, "--batch", 4, "--steps", 3, "--backend", "numpy"]
    found = json.loads(ran(capsys, "train-text", text, "--out", tmp_path / "m", *small, "--json")[0])
    assert found["steps"] == 3 and found["model"] == str(tmp_path / "m")
    job = TextTraining.resume(text.read_text(), tmp_path / "m", {})
    assert found["held_out_perplexity"] == pytest.approx(math.exp(job.evaluate()))
    sample = ["sample", tmp_path / "m", "--prefix", "on", "--length", 7, "--seed", 1, "--top-k", 3, "--top-p", 0.9]
    found = json.loads(ran(capsys, *sample, "--json")[0])
    plain = ran(capsys, *sample)[0]
    assert found["prefix"] == "on" and len(found["text"]) == 7 and plain == f"on{found['text']}\n"
    said = ran(capsys, *sample, "--temperature", 0)[1]
    assert "--top-k has no effect at --temperature 0" in said and "--top-p has no effect" in said


def test_json_of_the_demo(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    small = {"hidden": 4, "seq_len": 4, "batch": 4, "evaluate_every": 0}
    monkeypatch.setattr(fastlstm.cli.demo, "DEMO", small)
    monkeypatch.setattr(CharModel, "loss", lambda self, x, targets: math.log(7))
    out = ["--out", tmp_path / "m", "--plot", tmp_path / "p.png"]
    found = json.loads(ran(capsys, "demo", "--seconds", 0, *out, "--json")[0])
    assert found["held_out_perplexity"] == pytest.approx(7) and len(found["text"]) == 300 and found["steps"] == 11
    assert [row["backend"] for row in found["backends"]] == list(fl.backends())


def test_every_command_has_json() -> None:
    for command in COMMANDS:
        words = shlex.split(command.EXAMPLES[0], comments=True)[1:]
        assert parser().parse_args([*words, "--json"]).json is True


def test_json_has_no_nan() -> None:
    assert as_json({"a": math.nan, "b": [np.float32(1.5), (math.inf,)], "ä": np.arange(2)}) == (
        '{"a": null, "b": [1.5, [null]], "ä": [0, 1]}'
    )
