"""Gates of a run, their pictures and the page; what `fastlstm plot` refuses. The browser is in test_browser.py."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import TOLERANCE, assert_near

import fastlstm as fl
from fastlstm import gates_page, plot
from fastlstm.cli import main
from fastlstm.text import CharModel, Settings, TextTraining, WordModel, Words
from fastlstm.trace import Trace, trace
from fastlstm.training import History


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


# ------------------------------------------------------------------------------------------------------------- a trace
def test_gates_are_those_of_the_equation(backend: str) -> None:
    """Step by step with the parameters, in float64."""
    layer = fl.LSTM(3, 5, backend=backend, seed=1)
    x = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    found = trace(layer, x)
    p = {name: a.astype(np.float64) for name, a in layer.state_dict().items()}
    h, c = np.zeros(5), np.zeros(5)
    for t in range(7):
        z = p["weight_ih_l0"] @ x[t] + p["bias_ih_l0"] + p["weight_hh_l0"] @ h + p["bias_hh_l0"]
        i, f, g, o = (fn(part) for fn, part in zip((sigmoid, sigmoid, np.tanh, sigmoid), np.split(z, 4), strict=True))
        c = f * c + i * g
        h = o * np.tanh(c)
        for name, value in {"i": i, "f": f, "g": g, "o": o, "c": c, "h": h}.items():
            assert_near(found.parts[name][t], value.astype(np.float32), TOLERANCE["values"], f"{name} at step {t}")
    assert list(found.parts) == ["i", "f", "o", "g", "c", "h"] and found.units == 5 and len(found) == 7


def test_layers_directions_and_kinds(backend: str) -> None:
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    deep = fl.GRU(3, 4, 2, bidirectional=True, dropout=0.5, backend=backend, seed=1)
    y, _ = deep(x[:, None])
    for d in (0, 1):
        np.testing.assert_array_equal(trace(deep, x, layer=1, direction=d).parts["h"], y[:, 0, 4 * d : 4 * d + 4])
    assert deep.training, "the layer's mode stays"
    assert list(trace(deep, x).parts) == ["r", "z", "n", "h"]
    rnn = fl.RNN(3, 4, backend=backend, seed=1)
    state = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(trace(rnn, x, state=state).parts["h"], rnn(x, state)[0])
    ids = fl.LSTM(9, 4, proj_size=2, backend=backend, seed=1)
    np.testing.assert_array_equal(trace(ids, [1, 5, 2]).parts["h"], ids(np.array([1, 5, 2]))[0])


def test_modules_of_a_model() -> None:
    nn = fl.nn
    parts = [nn.Embedding(9, 4), nn.Residual(nn.LSTM(4, return_sequences=True)), nn.GRU(6, go_backwards=True)]
    model = fl.Sequential([*parts, nn.Dense(2)], seed=0)
    ids = np.array([3, 1, 4, 1, 5])
    model(ids[None])
    embedded = parts[0](ids[None])
    np.testing.assert_array_equal(trace(model, ids).parts["h"], parts[1].module(embedded)[0])
    last = trace(model, ids, layer=1)
    np.testing.assert_array_equal(last.parts["h"][0], parts[2](parts[1](embedded))[0])
    with pytest.raises(ValueError, match="2 recurrent layers, and so none with number 2"):
        trace(model, ids, layer=2)
    with pytest.raises(ValueError, match="leave it out"):
        trace(model, ids, state=1)


def test_labels_of_texts() -> None:
    assert trace(CharModel("\nabc", 3, seed=0), "cab\n").labels == ["c", "a", "b", "\n"]
    assert trace(WordModel(Words(["a", ","]), 3, seed=0), "a , zebra").labels == ["a", ",", " <unk>"]
    assert trace(fl.LSTM(2, 3, seed=0), np.zeros((3, 2))).labels == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("model", "x", "options", "said"),
    [
        (fl.LSTM(2, 3, seed=0), np.zeros((4, 2)), {"layer": 1}, "no layer 1 with direction 0"),
        (fl.LSTM(2, 3, seed=0), np.zeros((4, 2)), {"direction": 1}, "no layer 0 with direction 1"),
        (fl.LSTM(2, 3, seed=0), np.zeros((4, 1, 2)), {}, r"shape \(4, 1, 2\), expected one sequence: \(T, 2\)"),
        (fl.LSTM(2, 3, seed=0), np.zeros((0, 2)), {}, "expected one sequence"),
        (CharModel("ab", 3, seed=0), np.zeros(3, int), {}, "is a text, got ndarray"),
        (CharModel("ab", 3, seed=0), "abx", {}, "character 'x'"),
        (fl.Dense(2, 3, seed=0), np.zeros((4, 2)), {}, "an LSTM, GRU or RNN, a Sequential or a text model, got Dense"),
    ],
)
def test_what_has_no_gates(model: Any, x: Any, options: dict[str, int], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        trace(model, x, **options)


# ------------------------------------------------------------------------------------------------------------ the page
def content_of(page: str) -> Any:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[0])


def test_the_page_holds_the_values_and_nothing_from_outside() -> None:
    text = "</script><!-- <b>&amp;\"'\n\\u003c \U0001f600"
    found = trace(CharModel("".join(sorted(set(text))), 4, seed=0), text)
    page = gates_page.page(found, unit=2)
    assert not re.search(r"""(?:src|href)=|url\(|@import|https?:""", page)
    content = content_of(page)
    assert "".join(content["labels"]) == text and content["unit"] == 2 and page.count("</script>") == 2
    for part in content["parts"]:
        levels = np.frombuffer(base64.b64decode(part["bytes"]), np.uint8).reshape(len(text), 4)
        values = part["low"] + (part["high"] - part["low"]) * levels / 255
        wanted = np.clip(found.parts[part["name"]], part["low"], part["high"])
        np.testing.assert_allclose(values, wanted, atol=(part["high"] - part["low"]) / 500)


def test_labels_cannot_end_the_script() -> None:
    labels = ["</script><script>alert(1)</script>", "<!--<script>"]
    h = np.zeros((2, 3), np.float32)
    page = gates_page.page(Trace("rnn", {"h": h}, labels, title="</script>", is_text=True))
    assert content_of(page)["labels"] == labels and page.count("</script>") == 2 and "<!--" not in page


def test_colours() -> None:
    gate = np.array([[0.0, 0.5, 1.0]], np.float32)
    signed = np.array([[-2.0, 0.0, 2.0]], np.float32)
    found = Trace("lstm", {"i": gate, "c": signed, "h": signed * 0}, ["a"])
    assert found.range_of("h") == (-1.0, 1.0)
    assert gates_page.colour_of(found, "i", 0, 0) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    assert gates_page.colour_of(found, "i", 0, 2) == ("rgb(21, 84, 160)", "rgb(255, 255, 255)")
    assert gates_page.colour_of(found, "c", 0, 0) == ("rgb(178, 34, 52)", "rgb(255, 255, 255)")
    assert gates_page.colour_of(found, "c", 0, 2)[0] == "rgb(21, 84, 160)"
    middle = gates_page.colour_of(found, "c", 0, 1)[0]
    assert min(map(int, re.findall(r"\d+", middle))) > 252


def test_the_first_unit_is_the_one_that_varies_most() -> None:
    c = np.zeros((9, 4), np.float32)
    c[::2, 3] = 1
    found = Trace("lstm", {"c": c, "h": c}, list("abcdefghi"))
    assert content_of(gates_page.page(found))["unit"] == 3
    with pytest.raises(ValueError, match="unit 4 is none of the layer's 4 units"):
        gates_page.page(found, 4)


# ---------------------------------------------------------------------------------------------------------- the command
@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model with its training."""
    path = tmp_path_factory.mktemp("book") / "book.safetensors"
    settings = Settings(hidden=6, seq_len=6, batch=4, steps=20, evaluate_every=5, backend="numpy")
    TextTraining("one two three four five six seven\n" * 60, settings, path).run()
    return path


def ran(capsys: Any, *arguments: Any, status: int = 0) -> str:
    assert main([str(one) for one in arguments]) == status
    said = capsys.readouterr()
    return str(said.err if status else said.out)


def test_pictures_of_a_text_model(tmp_path: Path, capsys: Any, book: Path) -> None:
    pytest.importorskip("matplotlib")
    for out in ("loss.png", "gates.svg"):
        over = ["--text", "one two"] if out[0] == "g" else []
        ran(capsys, "plot", book, *over, "--out", tmp_path / out)
        assert (tmp_path / out).stat().st_size > 5000
        ran(capsys, "plot", book, *over, "--out", tmp_path / out)  # a picture of ours is drawn anew
    said = json.loads(ran(capsys, "plot", book, "--text", "one two", "--out", tmp_path / "p.html", "--json"))
    assert said == {
        "picture": str(tmp_path / "p.html"),
        "steps": 7,
        "units": 6,
        "parts": ["i", "f", "o", "g", "c", "h"],
    }
    (tmp_path / "t.txt").write_text("three")
    ran(capsys, "plot", book, "--text-file", tmp_path / "t.txt", "--out", tmp_path / "p.html", "--unit", 5)
    assert content_of((tmp_path / "p.html").read_text())["unit"] == 5


def test_gates_are_drawn_where_their_values_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, book: Path) -> None:
    """What is handed to matplotlib: a row for each unit, gates between 0 and 1."""
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    seen, real = [], Axes.imshow

    def imshow(self: Any, values: Any, **options: Any) -> Any:
        seen.append((np.array(values), options["vmin"], options["vmax"]))
        return real(self, values, **options)

    monkeypatch.setattr(Axes, "imshow", imshow)
    found = trace(CharModel.load(book), "one two")
    plot.gates(found, tmp_path / "g.png")
    assert len(seen) == 4
    for (values, low, high), name in zip(seen, ("i", "f", "o", "c"), strict=True):
        np.testing.assert_array_equal(values, found.parts[name].T)
        assert (low, high) == found.range_of(name)


def test_plot_of_models_of_tables(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("matplotlib")
    quick = ["--epochs", 2, "--units", 4, "--backend", "numpy"]
    series, texts = tmp_path / "s.csv", tmp_path / "t.tsv"
    series.write_text("a,b\n" + "\n".join(f"{i % 7},{i % 3}" for i in range(60)))
    texts.write_text("\n".join(f"{i % 2}\tword number {i % 5} ." for i in range(40)))
    ran(capsys, "fit", series, "--target", "a", "--window", 5, "--out", tmp_path / "s", "--log", tmp_path / "log.csv",
        *quick)  # fmt: skip
    ran(capsys, "fit", texts, "--text", 2, "--target", 1, "--out", tmp_path / "t", *quick)
    for source in (tmp_path / "s", tmp_path / "log.csv"):
        ran(capsys, "plot", source, "--out", tmp_path / "loss.png")
    said = json.loads(ran(capsys, "plot", tmp_path / "s", "--data", series, "--out", tmp_path / "s.html", "--json"))
    assert said["steps"] == 60 and content_of((tmp_path / "s.html").read_text())["is_text"] is False
    ran(capsys, "plot", tmp_path / "t", "--data", texts, "--row", 3, "--out", tmp_path / "t.html")
    assert content_of((tmp_path / "t.html").read_text())["labels"] == ["word", " number", " 2", "."]
    said = ran(capsys, "plot", tmp_path / "t", "--data", texts, "--row", 99, "--out", tmp_path / "t.html", status=2)
    assert "no row 99" in said
    assert "give --data" in ran(capsys, "plot", tmp_path / "s", "--text", "x", "--out", tmp_path / "u.html", status=2)


def test_what_plot_refuses(tmp_path: Path, capsys: Any, book: Path) -> None:
    pytest.importorskip("matplotlib")
    before = book.read_bytes()
    precious = tmp_path / "notes.html"
    precious.write_text("years of work")
    out = ["--out", tmp_path / "p.html"]
    assert "same file" in ran(capsys, "plot", book, "--text", "one", "--out", book, "--force", status=2)
    assert "--force" in ran(capsys, "plot", book, "--text", "one", "--out", precious, status=2)
    assert "give --text" in ran(capsys, "plot", book, *out, status=2)
    assert "its ending must be one of" in ran(capsys, "plot", book, "--out", tmp_path / "p.xyz", status=2)
    assert "unit 9 is none" in ran(capsys, "plot", book, "--text", "one", "--unit", 9, *out, status=2)
    assert "no layer 3" in ran(capsys, "plot", book, "--text", "one", "--layer", 3, *out, status=2)
    assert "a picture at most 5000" in ran(capsys, "plot", book, "--text", "one " * 2000, *out, status=2)
    (tmp_path / "no.csv").write_text("a,b\n1,2\n")
    assert "no log of a training" in ran(capsys, "plot", tmp_path / "no.csv", "--out", tmp_path / "p.png", status=2)
    fl.LSTM(2, 3, seed=0).save(tmp_path / "layer")
    assert "no history" in ran(capsys, "plot", tmp_path / "layer", "--out", tmp_path / "p.png", status=2)
    assert "fastlstm.trace.trace" in ran(capsys, "plot", tmp_path / "layer", "--text", "a", *out, status=2)
    assert precious.read_text() == "years of work" and book.read_bytes() == before
    assert not (tmp_path / "p.html").exists()


def test_the_curve_of_epochs_has_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    lines, real = {}, Axes.plot

    def draw(self: Any, x: Any, y: Any, **options: Any) -> Any:
        lines[self.get_ylabel() or options["label"]] = (list(x), list(y))
        return real(self, x, y, **options)

    monkeypatch.setattr(Axes, "plot", draw)
    history = History()
    for epoch, (loss, held_out) in enumerate([(3.0, 4.0), (2.0, 3.5)], 1):
        history.record(epoch, lr=0.1, loss=loss, val_loss=held_out)
    plot.epoch_curve(history, tmp_path / "p.png")
    assert lines == {"training (last 2)": ([1, 2], [3.0, 2.0]), "held out (last 3.5)": ([1, 2], [4.0, 3.5])}
