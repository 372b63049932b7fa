"""Vocabularies of characters and words, sampling with temperature, top-k and top-p, perplexity, continued prefixes."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastlstm import files
from fastlstm.text import (
    UNKNOWN,
    Characters,
    CharModel,
    Draw,
    Settings,
    TextModel,
    TextTraining,
    WordModel,
    Words,
    choose_token,
    text_model,
)

TEXT = "The fox runs, the dog sleeps.\nThe dog doesn't run -- it's 3.5 o'clock!\n"
WORDS: dict[str, Any] = {"level": "word", "min_count": 1, "hidden": 24, "seq_len": 8, "batch": 4, "backend": "numpy"}


# -------------------------------------------------------------------------------------------------------- vocabularies
def test_words_of_a_text() -> None:
    words = Words.of(TEXT)
    cut = ["The", "fox", "runs", ",", "the", "dog", "sleeps", ".", "\n", "The", "dog", "doesn't", "run", "--", "it's"]
    assert words.split(TEXT)[:15] == cut and words.split(TEXT)[15:] == ["3.5", "o'clock", "!", "\n"]
    assert words.entries[:4] == (UNKNOWN, "\n", "The", "dog"), "by frequency, then by the alphabet"
    assert words.encode(TEXT).dtype == np.uint8
    assert words.decode(words.encode(TEXT)) == TEXT
    assert Words.of(TEXT, lower=True).encode("THE the The").tolist() == [1, 1, 1]


def test_rare_and_strange_words_are_the_unknown_one() -> None:
    words = Words.of(TEXT, min_count=2)
    assert words.entries == (UNKNOWN, "\n", "The", "dog")
    assert words.encode("The cat\nThe dog <unk>").tolist() == [2, 0, 1, 2, 3, 0]
    assert words.decode([2, 0, 1, 3]) == "The <unk>\ndog" and words.known == ["\n", "The", "dog"]
    assert len(Words.of(TEXT, size=6)) == 6
    assert Words.of("a <unk> <unk> b").entries == (UNKNOWN, "a", "b")


def test_a_written_text_has_the_same_words() -> None:
    """Any sequence of tokens, written as a text and cut again."""
    rng = np.random.default_rng(0)
    tokens = ["word", "don't", "well-known", "3.5", "7", *"()[]{}“”‘’.,;:!?%$£\"'-<>/_", "--", "\n", "ß", "\u4e13"]
    words = Words(tokens)
    for _ in range(300):
        ids = rng.integers(0, len(words), 40)
        assert words.encode(words.decode(ids)).tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (["two words"], ValueError, "'two words' is no single word"),
        ([UNKNOWN], ValueError, "is no single word"),
        (["a", "b", "a"], ValueError, "'a' stands in the vocabulary 2 times"),
        ([], ValueError, "at least one word"),
        ("abc", TypeError, r"Words\.of\(text\)"),
        (["\ud800"], ValueError, "no character"),
    ],
)
def test_false_words_are_refused(given: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Words(given)


def test_words_that_are_all_too_rare() -> None:
    with pytest.raises(ValueError, match="no word that stands there 9 times"):
        Words.of(TEXT, min_count=9)


def test_characters_may_have_an_unknown_one() -> None:
    vocabulary = Characters.of("aaabbc", min_count=2, unknown="?")
    assert vocabulary.entries == "?ab" and vocabulary.encode("abc\U0001f600").tolist() == [1, 2, 0, 0]
    assert Characters.from_config(json.loads(json.dumps(vocabulary.to_config()))) == vocabulary
    with pytest.raises(ValueError, match="unknown 'x' is none"):
        Characters("ab", "x")
    with pytest.raises(ValueError, match="does not know the character 'c'"):
        Characters("ab").encode("abc")


# ------------------------------------------------------------------------------------------------------------ sampling
LOGITS = np.log(np.array([0.4, 0.1, 0.3, 0.2], "float32"))


def shares(**options: Any) -> np.ndarray:
    rng = np.random.default_rng(1)
    drawn = [choose_token(LOGITS, options.get("temperature", 1.0), rng, options.get("top_k"), options.get("top_p"))
             for _ in range(6000)]  # fmt: skip
    return np.bincount(drawn, minlength=4) / 6000


def test_top_k_and_top_p_cut_the_softmax() -> None:
    assert shares(top_k=2) == pytest.approx(np.array([4, 0, 3, 0]) / 7, abs=0.02)
    assert shares(top_k=1).tolist() == [1, 0, 0, 0]
    assert shares(top_k=99) == pytest.approx([0.4, 0.1, 0.3, 0.2], abs=0.02)
    assert shares(top_p=0.65) == pytest.approx(np.array([4, 0, 3, 0]) / 7, abs=0.02)
    assert shares(top_p=0.75) == pytest.approx(np.array([4, 0, 3, 2]) / 9, abs=0.02)
    assert shares(top_p=0.01).tolist() == [1, 0, 0, 0]
    assert shares(top_p=1.0) == pytest.approx([0.4, 0.1, 0.3, 0.2], abs=0.02)


def test_temperature_comes_before_top_k_and_top_k_before_top_p() -> None:
    squared = np.array([16, 0, 9, 4]) / 29
    assert shares(top_k=3, temperature=0.5) == pytest.approx(squared, abs=0.02)
    # Of the two likeliest, 4/7 and 3/7, the first reaches 0.5; of all, it would not.
    assert shares(top_k=2, top_p=0.5).tolist() == [1, 0, 0, 0]
    assert shares(top_p=0.5)[2] > 0.3
    # At temperature 1/2 the first two are 16/30 and 9/30 of all.
    assert shares(top_p=0.5, temperature=0.5).tolist() == [1, 0, 0, 0]


def test_of_equally_likely_tokens_the_first_are_kept() -> None:
    rng = np.random.default_rng(0)
    assert {Draw(top_k=3).token(np.zeros(9, "float32"), rng) for _ in range(200)} == {0, 1, 2}


def test_nothing_cut_draws_as_before() -> None:
    """The draws of a seed do not change where neither top_k nor top_p is given."""
    rng = np.random.default_rng(7)
    weights = np.exp(LOGITS.astype(float) - LOGITS.max())
    cumulated, again = np.cumsum(weights), np.random.default_rng(7)
    expected = [int(np.searchsorted(cumulated, again.random() * cumulated[-1], side="right")) for _ in range(500)]
    assert [choose_token(LOGITS, 1.0, rng) for _ in range(500)] == expected


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_k": 1.5}, TypeError, "top_k must be an integer"),
        ({"top_p": 0.0}, ValueError, "top_p must be a number above 0 and at most 1"),
        ({"top_p": 1.1}, ValueError, "top_p"),
        ({"top_p": math.nan}, ValueError, "top_p"),
        ({"temperature": -1}, ValueError, "temperature"),
    ],
)
def test_bad_draws_are_refused_at_once(options: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        CharModel("ab", 3, seed=0).sample("a", 2, **options)


# -------------------------------------------------------------------------------------------------------------- models
def logits_of(model: TextModel, text: str) -> np.ndarray:
    """Of every token of a text and one call, (N, V)."""
    y, _ = model.lstm(model.tokens.encode(text))
    return np.asarray(model.head(y), np.float64)


def test_a_continued_prefix_is_the_likeliest(backend: str) -> None:
    model = CharModel("\nabcd", 9, 2, backend=backend, seed=3)
    text = model.predict_prefix("abc", 12)
    assert text[:3] == "abc" and len(text) == 15
    likeliest = logits_of(model, text).argmax(1)
    assert text[3:] == "".join(model.vocabulary[i] for i in likeliest[2:-1])
    assert model.predict_prefix("abc", 0) == "abc"


def test_perplexity_of_a_text(backend: str) -> None:
    """From the softmax of one whole call, in float64."""
    text = "abcabdbbca" * 40  # longer than a piece of the evaluation
    model = CharModel("abcd", 8, backend=backend, seed=5)
    logits, ids = logits_of(model, text), model.tokens.encode(text)
    log_sum = np.log(np.exp(logits).sum(1))
    expected = math.exp(np.mean([log_sum[t] - logits[t, ids[t + 1]] for t in range(len(ids) - 1)]))
    assert model.perplexity(text) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="1 characters, and perplexity needs at least 2"):
        model.perplexity("a")
    with pytest.raises(ValueError, match="character 'x'"):
        model.perplexity("abx")


def test_perplexity_of_what_a_model_knows_nothing_of() -> None:
    model = CharModel("abcd", 8, seed=5)
    with model.head.update() as p:
        p["weight"][...] = 0
        p["bias"][...] = 0
    assert model.perplexity("abcdabcd") == pytest.approx(4.0)


def test_the_unknown_word_is_read_and_never_written() -> None:
    words = Words(["a", "b"])
    model = WordModel(words, 6, seed=1)
    with model.head.update() as p:
        p["bias"][...] = [50, 0, 0]  # the unknown word is by far the likeliest
    text = "zebra" + "".join(model.sample("zebra", 60, seed=2))
    assert set(text.split()[1:]) == {"a", "b"} and UNKNOWN not in text
    assert model.perplexity("a zebra b") == model.perplexity("a <unk> b")


def test_words_are_written_with_blanks() -> None:
    model = WordModel(Words(["a", ",", "\n"]), 4, seed=1)
    for prefix, before in (("a", 1), ("a ", 1), ("", 0), ("a\n", 2)):
        pieces = list(model.sample(prefix, 30, seed=4))
        assert len(pieces) == 30 and all(piece.strip(" ") in ("a", ",", "\n") for piece in pieces)
        assert all(piece == " a" for piece in pieces if piece[0] == " ")
        assert "  " not in prefix + "".join(pieces)
        assert model.tokens.encode(prefix + "".join(pieces)).size == 30 + before


@pytest.mark.parametrize("model", [
    CharModel(Characters("?ab", "?"), 5, 2, 0.25, seed=1),
    CharModel("ab", 5, seed=1),
    WordModel(Words(["ab", "ä", "\n"], lower=True), 5, seed=1),
], ids=["unknown", "char", "word"])  # fmt: skip
def test_files_keep_the_vocabulary(tmp_path: Path, model: TextModel) -> None:
    model.save(tmp_path / "m")
    for again in (TextModel.load(tmp_path / "m"), type(model).load(tmp_path / "m"), pickle.loads(pickle.dumps(model))):
        assert type(again) is type(model) and again.tokens == model.tokens
        assert again.vocabulary == model.vocabulary and again.lstm.dropout == model.lstm.dropout
        assert list(again.sample("ab", 20, seed=3)) == list(model.sample("ab", 20, seed=3))
    other = WordModel if isinstance(model, CharModel) else CharModel
    with pytest.raises(files.FileError, match=f"no {other.KIND}, but a {model.KIND}: TextModel.load reads both"):
        other.load(tmp_path / "m")


def test_a_pickle_from_before_there_were_words() -> None:
    """Its model has the characters as ``vocabulary``."""
    model = CharModel("ab", 3, seed=0)
    state = {"vocabulary": "ab", "lstm": model.lstm, "head": model.head}
    old = CharModel.__new__(CharModel)
    old.__setstate__(state)
    assert old.vocabulary == "ab" and list(old.sample("a", 9, seed=1)) == list(model.sample("a", 9, seed=1))


@pytest.mark.parametrize("config", [
    {"vocabulary": "ab", "lower": False}, {"vocabulary": ["a", "a"], "lower": False},
    {"vocabulary": ["a b"], "lower": False},
    {"vocabulary": [1], "lower": False}, {"vocabulary": ["a"]}, {"vocabulary": ["a", "b"], "lower": False},
])  # fmt: skip
def test_damaged_word_models_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    model = WordModel(Words(["a"]), 3, seed=0)
    files.save(tmp_path / "m", model.to_arrays(), {"kind": "word model", "dropout": 0.0, **config})
    with pytest.raises(files.FileError, match="does not fit"):
        TextModel.load(tmp_path / "m")


def test_a_model_wants_its_own_kind_of_vocabulary() -> None:
    with pytest.raises(TypeError, match=r"vocabulary of a WordModel is of class Words, got Characters"):
        WordModel(Characters("ab"), 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="CharModel or a WordModel"):
        TextModel(Characters("ab"), 3)
    assert type(text_model(Words(["a"]), 3)) is WordModel and type(text_model(Characters("a"), 3)) is CharModel


# ------------------------------------------------------------------------------------------------------------ training
def test_a_word_model_learns_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    text = TEXT * 40
    through = TextTraining(text, Settings(**WORDS, steps=120, lr=1e-2), tmp_path / "through")
    through.run()
    assert through.history["loss"][0] == pytest.approx(math.log(len(Words.of(TEXT))), rel=0.05)
    assert through.history["loss"][-1] < 0.1
    # Of what follows "The", the first line's "fox" and the second one's "dog" are told apart by what was before.
    assert through.model.predict_prefix("dog sleeps.\n", 5) == "dog sleeps.\nThe dog doesn't run --"
    part = TextTraining(text, Settings(**WORDS, steps=120, lr=1e-2), tmp_path / "part")
    part.run(31)
    again = TextTraining.resume(text, tmp_path / "part", {})
    again.run()
    assert (tmp_path / "part").read_bytes() == (tmp_path / "through").read_bytes()
    with pytest.raises(ValueError, match="cannot have level char: it began with level word"):
        TextTraining.resume(text, tmp_path / "part", {"level": "char"})


def test_settings_of_words(tmp_path: Path) -> None:
    text = TEXT * 40
    job = TextTraining(text, Settings(**WORDS | {"words": 5}), tmp_path / "m")
    assert job.model.vocabulary == Words.of(text, 5).entries
    with pytest.raises(ValueError, match=r"level must be one of char, word, got 'letter'"):
        Settings(level="letter")
    with pytest.raises(ValueError, match="the text has 760 words, but batch 32"):
        TextTraining(text, Settings(**WORDS | {"batch": 32, "seq_len": 100}), tmp_path / "m")
    with pytest.warns(UserWarning, match="words 50 has no effect: it is for words, and level is char"):
        TextTraining(text, Settings(words=50, seq_len=8, batch=4), tmp_path / "m")
    with pytest.raises(ValueError, match="level word, but the model has char"):
        TextTraining(text, Settings(**WORDS), tmp_path / "m", CharModel("ab", 24, backend="numpy"))
    with pytest.raises(ValueError, match="words 50 has no effect on a model that exists"):
        TextTraining(text, Settings(words=50, seq_len=8, batch=4), tmp_path / "m", WordModel(Words(["a"]), 4))
