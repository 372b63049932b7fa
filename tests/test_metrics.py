"""fl.metrics: by hand and against scikit-learn, batch by batch and at once, with masks and weights; errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastlstm as fl
from fastlstm import metrics

N = 203  # rows; three batches of 80 leave a ragged one of 43


class Case(NamedTuple):
    """A metric, predictions and targets of N rows, and scikit-learn's value, from (sklearn.metrics, weights)."""

    metric: metrics.Metric
    y: Any
    target: Any
    expected: Callable[[Any, Any], float]


def make_cases() -> dict[str, Case]:
    rng = np.random.default_rng(0)
    z, labels = rng.standard_normal((N, 4)), rng.choice(4, N, p=[0.5, 0.3, 0.15, 0.05])
    z[np.arange(N), labels] += 0.7
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    found, one_hot = z.argmax(axis=1), np.eye(4)[labels]
    bits = rng.integers(0, 2, N)
    score = rng.standard_normal(N) + bits
    numbers = rng.standard_normal((N, 4))
    never = np.where(np.arange(4) == 2, -9, z)  # a class that is never predicted
    return {
        "accuracy of labels": Case(
            metrics.Accuracy(), z, labels, lambda sk, w: sk.accuracy_score(labels, found, sample_weight=w)
        ),
        "accuracy of one-hot": Case(
            metrics.Accuracy(), z, one_hot, lambda sk, w: sk.accuracy_score(labels, found, sample_weight=w)
        ),
        "accuracy of two": Case(
            metrics.Accuracy(0.3), score, bits, lambda sk, w: sk.accuracy_score(bits, score > 0.3, sample_weight=w)
        ),
        "sparse": Case(
            metrics.SparseCategoricalAccuracy(),
            z,
            labels,
            lambda sk, w: sk.accuracy_score(labels, found, sample_weight=w),
        ),
        "categorical": Case(
            metrics.CategoricalAccuracy(), z, one_hot, lambda sk, w: sk.accuracy_score(labels, found, sample_weight=w)
        ),
        "binary": Case(
            metrics.BinaryAccuracy(),
            score[:, None],
            bits,
            lambda sk, w: sk.accuracy_score(bits, score > 0.5, sample_weight=w),
        ),
        "F1 of two": Case(
            metrics.F1(), score[:, None], bits, lambda sk, w: sk.f1_score(bits, score > 0.5, sample_weight=w)
        ),
        "F1 of two scores": Case(
            metrics.F1(),
            np.stack([0 * score, score], axis=1),
            bits,
            lambda sk, w: sk.f1_score(bits, score > 0, sample_weight=w),
        ),
        "F1 macro": Case(
            metrics.F1("macro"),
            z,
            labels,
            lambda sk, w: sk.f1_score(labels, found, average="macro", sample_weight=w),
        ),
        "F1 macro, one class never predicted": Case(
            metrics.F1("macro"),
            never,
            one_hot,
            lambda sk, w: sk.f1_score(labels, never.argmax(axis=1), average="macro", sample_weight=w),
        ),
        "F1 macro of two": Case(
            metrics.F1("macro"),
            score,
            bits,
            lambda sk, w: sk.f1_score(bits, score > 0.5, average="macro", sample_weight=w),
        ),
        "F1 micro": Case(
            metrics.F1("micro"),
            z,
            labels,
            lambda sk, w: sk.f1_score(labels, found, average="micro", sample_weight=w),
        ),
        "MSE": Case(
            metrics.MeanSquaredError(),
            z,
            numbers,
            lambda sk, w: sk.mean_squared_error(numbers, z, sample_weight=w),
        ),
        "MAE": Case(
            metrics.MeanAbsoluteError(),
            z,
            numbers,
            lambda sk, w: sk.mean_absolute_error(numbers, z, sample_weight=w),
        ),
        "quantile": Case(
            metrics.MeanLoss(fl.losses.Quantile(0.9)),
            z,
            numbers,
            lambda sk, w: sk.mean_pinball_loss(numbers, z, alpha=0.9, sample_weight=w),
        ),
        "perplexity": Case(
            metrics.Perplexity(), p, labels, lambda sk, w: math.exp(sk.log_loss(labels, p, sample_weight=w))
        ),
        "perplexity from logits": Case(
            metrics.Perplexity(True), z, labels, lambda sk, w: math.exp(sk.log_loss(labels, p, sample_weight=w))
        ),
    }


CASES = make_cases()
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
MASK = np.random.default_rng(1).random(N) < 0.7
WEIGHTS = np.random.default_rng(2).uniform(0.1, 3, N)


@each_case
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_scikit_learn_agrees(case: Case, masked: bool, weighted: bool) -> None:
    """In one batch and in ragged batches, with NaN and unknown labels in rows that do not count."""
    sk = pytest.importorskip("sklearn.metrics")
    mask, weights = MASK if masked else None, WEIGHTS if weighted else None
    w = (WEIGHTS if weighted else np.ones(N)) * (MASK if masked else 1)
    expected = case.expected(sk, w)
    y, target = case.y.copy(), case.target.copy()
    if masked:
        y[~MASK] = np.nan
        target[~MASK] = 77
    metric = metrics.get(case.metric.get_config())
    assert math.isnan(metric.result())
    metric.update(case.y[:9], case.target[:9])
    metric.reset()  # forgets that batch
    for at in range(0, N, 80):
        cut = slice(at, at + 80)
        metric.update(
            y[cut], target[cut], None if mask is None else mask[cut], None if weights is None else weights[cut]
        )
    assert metric.result() == pytest.approx(expected, rel=1e-12)
    assert metric(y, target, mask, weights) == pytest.approx(expected, rel=1e-12)
    assert metric.result() == pytest.approx(expected, rel=1e-12), "a call leaves what was taken in as it is"


@each_case
def test_parts_merge(case: Case) -> None:
    whole, first, second = (metrics.get(case.metric.get_config()) for _ in range(3))
    whole.update(case.y, case.target)
    first.update(case.y[:50], case.target[:50])
    second.merge(first)  # into an empty one
    second.update(case.y[50:], case.target[50:])
    first.merge(metrics.get(case.metric.get_config()))  # an empty one
    assert second.result() == pytest.approx(whole.result(), rel=1e-14)
    assert first.result() == case.metric(case.y[:50], case.target[:50])


@each_case
def test_nothing_that_counts(case: Case) -> None:
    metric = metrics.get(case.metric.get_config())
    metric.update(case.y * np.nan, case.target, np.zeros(N, bool))
    assert math.isnan(metric.result())
    metric.update(case.y, case.target)
    assert metric.result() == case.metric(case.y, case.target)


@each_case
def test_an_error_takes_nothing_in(case: Case) -> None:
    metric = metrics.get(case.metric.get_config())
    metric.update(case.y, case.target)
    expected, bad = metric.result(), case.y.copy()
    bad[3] = np.nan
    with pytest.raises(ValueError, match=r"predictions are NaN in [124] of .* places that count"):
        metric.update(bad, case.target)
    with pytest.raises(ValueError, match="shape"):
        metric.update(case.y, case.target[:-1])
    with pytest.raises(ValueError, match="no rows"):
        metric.update(case.y[:0], case.target[:0])
    assert metric.result() == expected


def test_values_by_hand() -> None:
    y, target = np.array([0.9, 0.2, 0.6, 0.4]), np.array([1, 1, 0, 0])
    assert metrics.BinaryAccuracy()(y, target) == 0.5
    assert metrics.BinaryAccuracy(0.1)(y, target) == 0.5 and metrics.BinaryAccuracy(0.7)(y, target) == 0.75
    assert metrics.BinaryAccuracy()(np.array([0.5]), np.array([0])) == 1, "at the threshold it says 0, as in Keras"
    assert metrics.F1()(y, target) == 0.5  # one hit, one false alarm, one miss
    assert metrics.F1()(y, target, weights=[2, 1, 1, 0]) == 4 / 6
    assert metrics.F1()(np.zeros(3), np.zeros(3)) == 0  # 0 / 0
    assert metrics.Perplexity()(np.full((5, 8), 1 / 8), np.arange(5)) == pytest.approx(8)
    assert metrics.Perplexity(True)(np.array([[1e4, 0]]), np.array([1])) == math.inf
    assert metrics.perplexity(math.log(3)) == pytest.approx(3) and metrics.perplexity(1e9) == math.inf
    assert math.isnan(metrics.perplexity(math.nan))


def test_a_ragged_last_batch_counts_by_its_rows() -> None:
    metric = metrics.MeanAbsoluteError()
    metric.update(np.ones(9), np.zeros(9))
    metric.update(np.full(1, 11.0), np.zeros(1))
    assert metric.result() == 2  # the mean of means would be 6


def test_ignored_labels() -> None:
    y, target = np.eye(3)[[0, 1, 2, 0]], np.array([0, 2, 2, -100])
    assert metrics.Accuracy()(y, target) == 2 / 3
    assert metrics.SparseCategoricalAccuracy(2)(y[:3], target[:3]) == 1
    assert metrics.F1("micro")(y, target) == 2 / 3
    padded = metrics.Perplexity(True)(y, target)
    assert padded == pytest.approx(math.exp(fl.softmax_cross_entropy(y[:3], target[:3])[0]))
    assert metrics.Perplexity(True, 2)(y[:3], target[:3]) == pytest.approx(1 + 2 / math.e)


def test_the_form_of_accuracy() -> None:
    """The shapes choose the form, as in Keras."""
    accuracy, steps = metrics.Accuracy(), np.array([[0.9, 0.1], [0.8, 0.7]])
    assert accuracy(steps[..., None], np.array([[1, 0], [1, 0]])) == 0.75  # (B, T, 1) and (B, T)
    assert accuracy(steps, np.array([0, 1])) == 0.5  # (B, V) and (B,)
    assert accuracy(steps, np.array([[1, 0], [0, 1]])) == 0.5  # (B, V) twice
    assert accuracy(steps[0], np.array([1, 1])) == 0.5  # (B,) twice
    with pytest.raises(ValueError, match=r"add up to 1.*BinaryAccuracy"):
        accuracy(steps, np.array([[1, 1], [0, 1]]))


def test_a_mask_of_steps() -> None:
    rng = np.random.default_rng(3)
    y, target, mask = rng.standard_normal((5, 3, 4)), rng.integers(0, 4, (5, 3)), rng.random((5, 3)) < 0.5
    for metric in (metrics.Accuracy(), metrics.F1("macro"), metrics.Perplexity(True)):
        assert metric(y, target, mask) == pytest.approx(metric(y[mask], target[mask]))


def test_names() -> None:
    y, target = np.array([[0.1, 0.9], [0.2, 0.8]]), np.array([1, 0])
    assert metrics.get("acc")(y, target) == metrics.get("accuracy")(y, target) == 0.5
    assert repr(metrics.get("f1_macro")) == "F1(average='macro')"
    with pytest.raises(ValueError, match=r"metric 'auc' is not known; expected one of accuracy, acc.*f1.*mae"):
        metrics.get("auc")
    with pytest.raises(TypeError, match="one of the names accuracy"):
        metrics.get(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="metric 'mse' has no option 'threshold'; its options are none"):
        metrics.get({"name": "mse", "threshold": 1})


@each_case
def test_a_configuration_makes_the_metric_again(case: Case) -> None:
    again = metrics.get(json.loads(json.dumps(case.metric.get_config())))
    assert type(again) is type(case.metric) and again.get_config() == case.metric.get_config()
    assert again(case.y, case.target) == case.metric(case.y, case.target)
    assert metrics.get(again) is again and metrics.METRICS[again.name] is type(again)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: metrics.F1("weighted"), ValueError, "'weighted' is not known; expected one of binary, macro, micro"),
        (lambda: metrics.F1()(np.zeros((2, 3)), [0, 1]), ValueError, "two classes, y has 3: take average='macro'"),
        (lambda: metrics.BinaryAccuracy("0.5"), TypeError, "threshold must be a number, got '0.5'"),
        (lambda: metrics.BinaryAccuracy()(np.zeros(2), [0, 2]), ValueError, "must be 0 and 1, got 0.0 to 2.0"),
        (lambda: metrics.Accuracy()(np.zeros((2, 3)), [0, 3]), ValueError, "between 0 and 2.*0 to 3"),
        (lambda: metrics.Accuracy()(np.zeros((2, 3)), [0.0, 1.0]), TypeError, "targets must be integers"),
        (lambda: metrics.Accuracy()(np.zeros((2, 3), int), [0, 1]), TypeError, "y must be float32 or float64"),
        (lambda: metrics.Perplexity()(np.zeros((2, 3)), [0, 1]), ValueError, "from_logits=True"),
        (lambda: metrics.MeanSquaredError()(np.zeros(2), [0, np.nan]), ValueError, "targets hold NaN"),
        (lambda: metrics.MeanLoss("rmse"), ValueError, "loss 'rmse' is not known"),
        (lambda: metrics.F1("macro").merge(metrics.F1()), ValueError, r"F1\(\) cannot be merged into F1\(average="),
    ],
    ids=lambda value: None,
)
def test_refuses(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


def test_batches_have_the_same_classes() -> None:
    metric = metrics.F1("macro")
    metric.update(np.zeros((2, 3)), [0, 1])
    with pytest.raises(ValueError, match=r"this batch has 4 classes, those before had 3; reset\(\) begins anew"):
        metric.update(np.zeros((2, 4)), [0, 1])
