"""fl.sklearn: scikit-learn's own checks, sequences of every form, searches, pickles, interruptions, bad input."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastlstm as fl
from fastlstm.sklearn import LSTMClassifier, LSTMRegressor
from fastlstm.training.callbacks import Callback

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

DOCS = Path(__file__).parent.parent / "docs" / "sklearn.md"
QUICK: dict[str, Any] = {"hidden_layer_sizes": 8, "max_iter": 40, "learning_rate_init": 0.02, "n_iter_no_change": 5}
RNG = np.random.default_rng(0)
X = RNG.standard_normal((120, 7, 3))
LABELS = np.where(X[:, :, 0].sum(1) > 0, "up", "down")
NUMBERS = 100 + 10 * X[:, :, 0].sum(1)
RAGGED = [x[: 3 + i % 5] for i, x in enumerate(X)]  # (T_i, 3)
RAGGED_LABELS = np.array(["up" if x[:, 0].sum() > 0 else "down" for x in RAGGED])


def classifier(**options: Any) -> LSTMClassifier:
    return LSTMClassifier(**{**QUICK, "random_state": 0, **options})


def regressor(**options: Any) -> LSTMRegressor:
    return LSTMRegressor(**{**QUICK, "random_state": 0, **options})


@parametrize_with_checks([LSTMClassifier(**QUICK), LSTMRegressor(**QUICK)])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([LSTMClassifier(), LSTMRegressor()])
def test_scikit_learns_own_checks_of_the_defaults(estimator: Any, check: Any) -> None:
    check(estimator)


# --------------------------------------------------------------------------------------------------- forms of sequences
def objects(sequences: list[Any]) -> Any:
    whole = np.empty(len(sequences), object)
    whole[:] = sequences
    return whole


def test_one_model_whatever_holds_the_sequences() -> None:
    """A list, an object array, and lists of lists give the bits of the array."""
    whole = classifier(dtype="float32").fit(X, LABELS)
    p = whole.predict_proba(X)
    assert whole.n_features_in_ == 3 and list(whole.classes_) == ["down", "up"]
    for form in (list(X), objects(list(X)), X.tolist(), tuple(X), X.astype(object)):
        np.testing.assert_array_equal(whole.predict_proba(form), p)
    assert whole.score(X, LABELS) > 0.9


def test_ragged_sequences_give_what_each_gives_alone() -> None:
    model = classifier(max_iter=60).fit(RAGGED, RAGGED_LABELS)
    assert model.score(RAGGED, RAGGED_LABELS) > 0.9
    p = model.predict_proba(RAGGED)
    for i in range(0, 120, 13):
        np.testing.assert_allclose(model.predict_proba([RAGGED[i]])[0], p[i], atol=1e-6)
        np.testing.assert_allclose(model.predict_proba(RAGGED[i][None])[0], p[i], atol=1e-6)
    pd = pytest.importorskip("pandas")
    np.testing.assert_array_equal(model.predict_proba(pd.Series(RAGGED)), p)


def test_tables_are_series_of_one_variable() -> None:
    flat = X[:, :, 0]
    table = regressor(dtype="float32").fit(flat, NUMBERS)
    assert table.n_features_in_ == 7
    expected = regressor(dtype="float32").fit(flat[:, :, None], NUMBERS)
    np.testing.assert_array_equal(table.predict(flat), expected.predict(flat[:, :, None]))
    np.testing.assert_array_equal(expected.predict(flat), expected.predict(flat[:, :, None]))  # n_features_in_ is 1
    np.testing.assert_array_equal(table.predict([row[:4] for row in flat]), expected.predict(flat[:, :4, None]))
    np.testing.assert_array_equal(expected.predict(flat[:, :4]), expected.predict(flat[:, :4, None]))
    with pytest.raises(ValueError, match="X has 4 features, but LSTMRegressor is expecting 7 features"):
        table.predict(flat[:, :4])


def test_names_of_columns() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X[:, :, 0], columns=list("abcdefg"))
    model = regressor(max_iter=1).fit(frame, NUMBERS)
    assert list(model.feature_names_in_) == list("abcdefg")
    model.set_params(warm_start=True).fit(frame, NUMBERS)
    assert list(model.feature_names_in_) == list("abcdefg")
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[list("gfedcba")])
    model.set_params(warm_start=False).fit(X, NUMBERS)
    assert not hasattr(model, "feature_names_in_") and model.n_features_in_ == 3


# ------------------------------------------------------------------------------------------------------- what is learnt
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"hidden_layer_sizes": (8, 6), "dropout": 0.1}])
def test_a_classifier_learns(options: dict[str, Any]) -> None:
    model = classifier(**options).fit(X, LABELS)
    assert model.score(X, LABELS) > 0.9
    p = model.predict_proba(X)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    assert (model.classes_[p.argmax(axis=1)] == model.predict(X)).all()
    assert len(model.loss_curve_) == model.n_iter_ <= 40 and model.loss_curve_[-1] < 0.5 * model.loss_curve_[0]


def test_a_regressor_learns_in_the_unit_of_the_targets() -> None:
    """Targets around 100 with a spread of 26: without `normalize_y` the output's bias would have to walk there."""
    model = regressor().fit(X, NUMBERS)
    assert model.score(X, NUMBERS) > 0.9
    assert abs(model.predict(X).mean() - NUMBERS.mean()) < 3
    assert regressor(normalize_y=False).fit(X, NUMBERS).score(X, NUMBERS) < 0
    two = regressor(max_iter=60).fit(X, np.stack([NUMBERS, -5 * NUMBERS], axis=1))
    assert two.predict(X).shape == (120, 2)
    np.testing.assert_allclose(two.predict(X)[:, 1], -5 * two.predict(X)[:, 0], rtol=0.2)


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "huber"])
def test_losses(loss: str) -> None:
    assert regressor(loss=loss).fit(X, NUMBERS).score(X, NUMBERS) > 0.8


def test_one_random_state_gives_one_result() -> None:
    one, two, other = (classifier(random_state=state, max_iter=3).fit(X, LABELS) for state in (1, 1, 2))
    np.testing.assert_array_equal(one.predict_proba(X), two.predict_proba(X))
    assert (one.predict_proba(X) != other.predict_proba(X)).any()


def test_weights_of_samples_and_of_classes() -> None:
    """As if the samples were there as often as their weights say; weights of classes multiply them."""
    few, labels = X[:20, :, 0], LABELS[:20]
    weights = np.where(labels == "up", 3, 1)
    options = {"max_iter": 20, "learning_rate_init": 0.01}
    repeated = classifier(**options).fit(few.repeat(weights, axis=0), labels.repeat(weights))
    expected = repeated.predict_proba(few)
    for model in (
        classifier(**options).fit(few, labels, sample_weight=weights),
        classifier(**options, class_weight={"up": 3.0}).fit(few, labels),
        classifier(**options, class_weight={"up": 1.5}).fit(few, labels, sample_weight=np.where(labels == "up", 2, 1)),
    ):
        np.testing.assert_allclose(model.predict_proba(few), expected, rtol=1e-9)
    balanced = classifier(**options, class_weight="balanced").fit(few, labels)
    by_hand = {c: 20 / (2 * (labels == c).sum()) for c in ("up", "down")}
    np.testing.assert_allclose(
        balanced.predict_proba(few), classifier(**options, class_weight=by_hand).fit(few, labels).predict_proba(few)
    )


def test_early_stopping_keeps_the_best_epoch() -> None:
    noise = RNG.permutation(LABELS)
    model = classifier(early_stopping=True, validation_fraction=0.25, n_iter_no_change=3, max_iter=100)
    model.fit(X, noise)
    assert model.n_iter_ == len(model.validation_scores_) < 100
    assert model.best_validation_score_ == max(model.validation_scores_)
    best = int(np.argmax(model.validation_scores_))
    shorter = clone(model).set_params(max_iter=best + 1).fit(X, noise)
    np.testing.assert_array_equal(model.predict_proba(X), shorter.predict_proba(X))


def test_the_loss_ends_a_fit_and_a_warning_tells_where_it_does_not() -> None:
    model = classifier(tol=0.5, n_iter_no_change=2).fit(X, LABELS)
    assert model.n_iter_ == 4  # the first counts, the next three are no better by 0.5
    with pytest.warns(ConvergenceWarning, match="max_iter=2 epochs"):
        classifier(max_iter=2).fit(X, LABELS)


def test_warm_start_goes_on() -> None:
    model = classifier(max_iter=5, warm_start=True).fit(X, LABELS)
    before = model.loss_curve_[-1]
    assert model.fit(X, LABELS).loss_curve_[0] < before
    cold = model.set_params(warm_start=False).fit(X, LABELS)
    assert cold.loss_curve_[0] > before
    with pytest.raises(ValueError, match="sideways, which is not among the classes"):
        model.set_params(warm_start=True).fit(X, np.where(X[:, 0, 0] > 0, "sideways", LABELS))


def test_partial_fit_learns_over_calls() -> None:
    model = classifier()
    for _ in range(30):
        for part in (slice(0, 60), slice(60, 120)):
            model.partial_fit(RAGGED[part], RAGGED_LABELS[part], classes=["up", "down"])
    assert model.score(RAGGED, RAGGED_LABELS) > 0.9 and model.n_iter_ == 60
    number = regressor()
    for _ in range(60):
        number.partial_fit(X, NUMBERS)
    assert number.score(X, NUMBERS) > 0.8


# -------------------------------------------------------------------------------------- with the rest of scikit-learn
@pytest.mark.parametrize("form", ["array", "list", "objects"])
def test_searches(form: str) -> None:
    given = {"array": X, "list": RAGGED, "objects": objects(RAGGED)}[form]
    labels = LABELS if form == "array" else RAGGED_LABELS
    assert cross_val_score(classifier(max_iter=60), given, labels, cv=3).mean() > 0.8
    search = GridSearchCV(classifier(), {"learning_rate_init": [1e-9, 0.02]}, cv=2, scoring="roc_auc")
    search.fit(given, labels)
    assert search.best_params_ == {"learning_rate_init": 0.02} and search.best_score_ > 0.8
    assert search.predict(given[:5]).shape == (5,)


def test_a_pipeline() -> None:
    table = 1000 + 50 * X[:, :, 0]
    model = make_pipeline(StandardScaler(), regressor(max_iter=80))
    assert model.fit(table, NUMBERS).score(table, NUMBERS) > 0.9


@pytest.mark.parametrize("make", [classifier, regressor])
def test_pickles_and_clones(make: Any) -> None:
    y = LABELS if make is classifier else NUMBERS
    model = make(max_iter=3, dropout=0.1).fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    np.testing.assert_array_equal(model.partial_fit(X, y).predict(X), again.partial_fit(X, y).predict(X))
    fresh = clone(model)
    assert fresh.get_params() == model.get_params() and not hasattr(fresh, "model_")
    with pytest.raises(NotFittedError):
        fresh.predict(X)


def test_the_model_inside_is_saved_as_all_others(tmp_path: Path) -> None:
    model = classifier(max_iter=2).fit(X, LABELS)
    model.model_.save(tmp_path / "model")
    np.testing.assert_allclose(fl.load(tmp_path / "model").predict(X.astype("f")), model.predict_proba(X), atol=1e-6)


# -------------------------------------------------------------------------------------------------------- interruptions
class Interrupt(Callback):
    """Ctrl-C in the third epoch."""

    def on_epoch_begin(self, loop: Any) -> None:
        if loop.epochs == 2:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = fl.Sequential.fit

    def with_interrupt(self: Any, *args: Any, callbacks: Any = (), **options: Any) -> Any:
        return fit(self, *args, callbacks=[*callbacks, Interrupt()], **options)

    monkeypatch.setattr(fl.Sequential, "fit", with_interrupt)


@pytest.mark.usefixtures("interrupted")
def test_ctrl_c_is_raised_after_what_was_reached_is_kept() -> None:
    model = classifier()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, LABELS)
    assert signal.getsignal(signal.SIGINT) is handler
    assert model.n_iter_ == 2 and len(model.loss_curve_) == 2
    assert model.predict(X).shape == (120,)
    with pytest.raises(KeyboardInterrupt):
        GridSearchCV(classifier(), {"max_iter": [30, 40]}, cv=2).fit(X, LABELS)


# ------------------------------------------------------------------------------------------------------------ bad input
SPOILED = [x.copy() for x in RAGGED]
SPOILED[7][1, 2] = np.nan
NARROW = [*RAGGED[:5], RAGGED[5][:, :2], *RAGGED[6:]]

BAD: dict[str, tuple[Any, str]] = {
    "NaN in a sequence": (lambda m: m.fit(SPOILED, RAGGED_LABELS), r"X\[7\] contains NaN.*first at \[1, 2\]"),
    "NaN in an array": (lambda m: m.fit(np.where(X > 3, np.nan, X), LABELS), r"X contains NaN"),
    "widths that differ": (lambda m: m.fit(NARROW, RAGGED_LABELS), r"X\[5\] has 2 variables at a step, expected 3"),
    "another width than fit's": (lambda m: m.predict(X[:, :, :2]), "X has 2 variables at a step, expected 3"),
    "a table for sequences of three": (lambda m: m.predict(X[:, :, 0]), "was fitted to sequences of 3 variables"),
    "an empty list": (lambda m: m.fit([], []), "minimum of 1 is required|Expected 2D array"),
    "an empty sequence": (lambda m: m.fit([*RAGGED[:-1], RAGGED[0][:0]], LABELS), r"X\[119\] has no steps"),
    "no steps": (lambda m: m.fit(X[:, :0], LABELS), r"X has shape \(120, 0, 3\)"),
    "y of another length": (lambda m: m.fit(RAGGED, LABELS[:9]), "inconsistent numbers of samples: .120, 9."),
    "no y": (lambda m: m.fit(RAGGED, None), "requires y to be passed"),
    "words": (lambda m: m.fit([["a", "b"], ["c"]], [0, 1]), r"X\[0\] must hold real numbers"),
    "complex": (lambda m: m.fit([np.ones((2, 1)) * 1j, np.ones((3, 1))], [0, 1]), r"X\[0\] must hold real numbers"),
    "four axes": (lambda m: m.fit(list(X[:, :, :, None]), LABELS), r"X\[0\] has shape \(7, 3, 1\), expected a seq"),
    "negative weights": (lambda m: m.fit(X, LABELS, -np.ones(120)), "sample_weight must be finite and at least 0"),
    "weights of another length": (lambda m: m.fit(X, LABELS, np.ones(3)), r"sample_weight has shape \(3,\)"),
    "a label that partial_fit does not know": (
        lambda m: m.partial_fit(X[:2], ["up", "sideways"]),
        "y holds sideways, which is not among the classes",
    ),
    "other classes": (lambda m: m.partial_fit(X, LABELS, classes=["a"]), "not the same as on the first call"),
    "balanced by parts": (
        lambda m: m.set_params(class_weight="balanced").partial_fit(X, LABELS),
        "'balanced' needs all samples at once",
    ),
    "numbers as classes": (lambda m: m.fit(X, NUMBERS), "Unknown label type"),
    "a solver": (lambda m: m.set_params(solver="lbfgs").fit(X, LABELS), "solver 'lbfgs' is not known"),
    "no layers": (lambda m: m.set_params(hidden_layer_sizes=()).fit(X, LABELS), "names no layer"),
    "a flag": (lambda m: m.set_params(shuffle="no").fit(X, LABELS), "shuffle must be True or False"),
    "a fraction": (lambda m: m.set_params(validation_fraction=1.0).fit(X, LABELS), "between 0 and 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_changes(name: str) -> None:
    call, told = BAD[name]
    model = classifier(max_iter=1).fit(X, LABELS)
    before, p = dict(vars(model)), model.predict_proba(X)
    with pytest.raises((TypeError, ValueError), match=told):
        call(model)
    learned = {n: v for n, v in vars(model).items() if n.endswith("_")}
    assert learned == {n: v for n, v in before.items() if n.endswith("_")}
    np.testing.assert_array_equal(model.predict_proba(X), p)


def test_the_first_partial_fit_needs_the_classes() -> None:
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        classifier().partial_fit(X, LABELS)
    with pytest.raises(ValueError, match="y has 2 outputs, LSTMRegressor was fitted to 1"):
        regressor(max_iter=1).fit(X, NUMBERS).partial_fit(X, np.stack([NUMBERS, NUMBERS], 1))


def test_a_diverging_training_says_so() -> None:
    from fastlstm.training import Diverged

    with pytest.raises(Diverged, match="Lower the learning rate"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        regressor(solver="sgd", learning_rate_init=1e30, clip_norm=None).fit(X, NUMBERS)


def test_without_scikit_learn_the_error_names_the_extra() -> None:
    script = """
import sys
sys.modules["sklearn"] = None
import fastlstm
from fastlstm import *
assert "sklearn" not in fastlstm.__all__
try:
    fastlstm.sklearn
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert 'pip install "fastlstm[sklearn]"' in done.stdout, done.stderr


@pytest.mark.skipif(not DOCS.exists(), reason="the documents are not installed with the package")
def test_the_code_of_the_documentation_runs() -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S):
        exec(compile(block, str(DOCS), "exec"), names)
    assert names["accuracy"].mean() > 0.9 and names["search"].best_score_ > 0.8
