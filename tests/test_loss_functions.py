"""fl.losses: values by hand and against PyTorch, gradients by finite differences, masks, weights, names, errors."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastlstm as fl
from fastlstm import losses


class Case(NamedTuple):
    """A loss with float64 predictions and targets of a time-major batch, T=4 and B=3."""

    loss: losses.Loss
    y: Any
    target: Any
    features: int  # number of y's last axes that are not axes of the rows


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def make_cases() -> dict[str, Case]:
    rng = np.random.default_rng(0)
    z, labels = 2 * rng.standard_normal((4, 3, 5)), rng.integers(0, 5, (4, 3))
    one_hot, mixed = np.eye(5)[labels], rng.dirichlet(np.ones(5), (4, 3))
    bits, numbers = rng.integers(0, 2, (4, 3, 1)), 2 * rng.standard_normal((4, 3, 2))
    return {
        "sparse from logits": Case(losses.SparseCategoricalCrossentropy(True), z, labels, 1),
        "sparse": Case(losses.SparseCategoricalCrossentropy(), softmax(z), labels, 1),
        "one-hot from logits": Case(losses.CategoricalCrossentropy(True), z, one_hot, 1),
        "one-hot": Case(losses.CategoricalCrossentropy(), softmax(z), one_hot, 1),
        "distributions from logits": Case(losses.CategoricalCrossentropy(True), z, mixed, 1),
        "distributions": Case(losses.CategoricalCrossentropy(), softmax(z), mixed, 1),
        "binary from logits": Case(losses.BinaryCrossentropy(True), z[..., :1], bits, 0),
        "binary": Case(losses.BinaryCrossentropy(), softmax(z)[..., :1], bits, 0),
        "binary of soft labels": Case(losses.BinaryCrossentropy(True), z[..., :2], mixed[..., :2], 0),
        "squared": Case(losses.MeanSquaredError(), z[..., :2], numbers, 0),
        "absolute": Case(losses.MeanAbsoluteError(), z[..., :2], numbers, 0),
        "Huber": Case(losses.Huber(0.7), z[..., :2], numbers, 0),
        "quantile": Case(losses.Quantile(0.9), z[..., :2], numbers, 0),
        "quantiles": Case(losses.Quantile([0.1, 0.5, 0.8]), z[..., :3], numbers[..., 0], 1),
    }


CASES = make_cases()
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
# Mask and weights of time steps and sequences, (4, 3); losses of single numbers use them for the whole last axis of y.
MASK = np.arange(4)[:, None] < np.array([4, 1, 2])
WEIGHTS = np.random.default_rng(1).uniform(0.5, 2, (4, 3))


def differences(value: Any, y: Any, step: float = 1e-6) -> Any:
    """Central finite differences of value(y) by every entry of y."""
    d = np.empty_like(y)
    for at in np.ndindex(*y.shape):
        shift = np.zeros_like(y)
        shift[at] = step
        d[at] = (value(y + shift) - value(y - shift)) / (2 * step)
    return d


def with_reduction(loss: losses.Loss, reduction: str) -> losses.Loss:
    return losses.get(loss.get_config() | {"reduction": reduction})


# ------------------------------------------------------------------------------------------------- values and gradients
@each_case
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_is_the_difference(case: Case, reduction: str, masked: bool, weighted: bool) -> None:
    loss, arguments = with_reduction(case.loss, reduction), (MASK if masked else None, WEIGHTS if weighted else None)
    before = case.y.copy()
    _, dy = loss(case.y, case.target, *arguments)
    assert (case.y == before).all() and dy.shape == case.y.shape and dy.dtype == np.float64
    # No error is within a step of a kink, and probabilities may miss 1 in sum by more than a step.
    numeric = differences(lambda y: loss(y, case.target, *arguments)[0], case.y)
    assert np.abs(dy - numeric).max() < 1e-7 * max(1.0, np.abs(numeric).max())
    assert np.abs(dy).max() > 1e-3


@each_case
def test_a_mask_is_the_loss_of_the_rest(case: Case) -> None:
    """The values of rows that do not count have no effect."""
    expected, d_expected = case.loss(case.y[MASK], case.target[MASK])
    y, target = case.y.copy(), case.target.copy()
    y[~MASK] = np.nan
    target[~MASK] = np.nan if target.dtype.kind == "f" else 12345
    value, dy = case.loss(y, target, MASK)
    assert value == pytest.approx(expected, rel=1e-14)
    assert (dy[~MASK] == 0).all() and dy[MASK] == pytest.approx(d_expected, rel=1e-14)
    by_weight, dy_by_weight = case.loss(y, target, weights=MASK.astype("float32"))
    assert by_weight == value and (dy_by_weight == dy).all()
    count = MASK.sum() * (1 if case.features else y.shape[-1])
    assert case.loss.total(y, target, MASK) == pytest.approx((value * count, count))


@each_case
def test_a_weight_is_a_count(case: Case) -> None:
    """Weights 2 and 3 are the row twice and three times, in the mean and in the sum."""
    counts = np.random.default_rng(2).integers(0, 4, (4, 3))
    flat = [a.reshape(12, *a.shape[2:]) for a in (case.y, case.target)]
    repeated = [np.repeat(a, counts.ravel(), axis=0) for a in flat]
    for reduction in ("mean", "sum"):
        loss = with_reduction(case.loss, reduction)
        value, dy = loss(case.y, case.target, weights=counts)
        expected, d_expected = loss(*repeated)
        assert value == pytest.approx(expected, rel=1e-13)
        at = np.repeat(np.arange(12), counts.ravel())
        d_sum = np.zeros_like(flat[0])
        np.add.at(d_sum, at, d_expected)
        assert np.abs(dy.reshape(d_sum.shape) - d_sum).max() < 1e-14 * max(1.0, np.abs(d_sum).max())


@each_case
def test_where_nothing_counts(case: Case) -> None:
    nothing = np.zeros((4, 3), bool)
    for arguments in ({"mask": nothing}, {"weights": nothing.astype(float)}):
        value, dy = case.loss(case.y * np.nan, case.target, **arguments)
        assert value == 0 and dy.shape == case.y.shape and (dy == 0).all()
        assert case.loss.total(case.y * np.nan, case.target, **arguments) == (0, 0)


@each_case
def test_values_are_those_of_rows(case: Case) -> None:
    values = case.loss.values(case.y, case.target, MASK, WEIGHTS)
    shape = case.y.shape[: case.y.ndim - case.features]
    assert values.shape == shape and (values[~MASK] == 0).all() and values.dtype == np.float64
    for at in [(0, 0), (3, 0), (1, 2)]:
        alone = case.loss(case.y[at][None], case.target[at][None])[0]
        assert values[at].mean() == pytest.approx(alone * WEIGHTS[at], rel=1e-13)
    total, weight = case.loss.total(case.y, case.target, MASK, WEIGHTS)
    assert total == pytest.approx(values.sum(), rel=1e-14)
    assert total / weight == pytest.approx(case.loss(case.y, case.target, MASK, WEIGHTS)[0], rel=1e-14)


@each_case
def test_float32_is_float64(case: Case) -> None:
    value, dy = case.loss(case.y.astype("float32"), case.target, MASK, WEIGHTS)
    expected, d_expected = case.loss(case.y, case.target, MASK, WEIGHTS)
    assert dy.dtype == np.float32 and value == pytest.approx(expected, rel=1e-6)
    assert np.abs(dy - d_expected).max() < 1e-6 * max(1.0, np.abs(d_expected).max())


def by_torch(torch: Any, name: str, y: Any, target: Any) -> Any:
    """Losses of the rows by PyTorch."""
    F = torch.nn.functional
    if "from logits" in name or "soft labels" in name:
        if "binary" in name:
            return F.binary_cross_entropy_with_logits(y, target.double(), reduction="none")
        return F.cross_entropy(
            y.movedim(-1, 1), target if "sparse" in name else target.movedim(-1, 1), reduction="none"
        )
    if name in ("sparse", "one-hot", "distributions"):
        if name == "sparse":
            return F.nll_loss(y.log().movedim(-1, 1), target, reduction="none")
        return -(target * y.log()).sum(dim=-1)
    errors = {
        "binary": lambda: F.binary_cross_entropy(y, target.double(), reduction="none"),
        "squared": lambda: F.mse_loss(y, target, reduction="none"),
        "absolute": lambda: F.l1_loss(y, target, reduction="none"),
        "Huber": lambda: F.huber_loss(y, target, reduction="none", delta=0.7),
        "quantile": lambda: torch.maximum(0.9 * (target - y), -0.1 * (target - y)),
        "quantiles": lambda: torch.stack(
            [
                torch.maximum(q * (target - y[..., i]), (q - 1) * (target - y[..., i]))
                for i, q in enumerate([0.1, 0.5, 0.8])
            ]
        ).mean(dim=0),
    }
    return errors[name]()


@pytest.mark.parametrize("name", CASES)
def test_torch_agrees(name: str) -> None:
    torch = pytest.importorskip("torch")
    case = CASES[name]
    y, target = torch.tensor(case.y, requires_grad=True), torch.tensor(case.target)
    rows = by_torch(torch, name, y, target)
    mask, weights = torch.tensor(MASK), torch.tensor(WEIGHTS)
    if rows.ndim == 3:
        mask, weights = mask[..., None].expand(rows.shape), weights[..., None].expand(rows.shape)
    expected = (rows * weights)[mask].sum() / weights[mask].sum()
    expected.backward()
    value, dy = case.loss(case.y, case.target, MASK, WEIGHTS)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    assert np.abs(dy - y.grad.numpy()).max() < 1e-12 * max(1.0, np.abs(dy).max())


def test_values_by_hand() -> None:
    y, target = np.array([1.0, 4.0, -2.0]), np.array([0.0, 1.0, -2.0])
    expected = {
        losses.MeanSquaredError(): ((1 + 9) / 3, [2 / 3, 2, 0]),
        losses.MeanAbsoluteError("sum"): (4, [1, 1, 0]),
        losses.Huber(2.0): ((0.5 + 2 * 3 - 2) / 3, [1 / 3, 2 / 3, 0]),
        losses.Quantile(0.25): (0.75 * 4 / 3, [0.25, 0.25, 0]),
        losses.Quantile(0.25, "sum"): (3, [0.75, 0.75, 0]),
    }
    for loss, (value, gradient) in expected.items():
        given = loss(y, target)
        assert given[0] == pytest.approx(value, rel=1e-15) and given[1] == pytest.approx(gradient, rel=1e-15)
    value, dy = losses.BinaryCrossentropy()(np.array([0.25, 0.5]), np.array([1, 0]))
    assert value == pytest.approx(math.log(8) / 2, rel=1e-15) and dy == pytest.approx([-2, 1], rel=1e-15)
    value, dy = losses.CategoricalCrossentropy()(np.array([[0.25, 0.75]]), np.array([[0.5, 0.5]]))
    assert value == pytest.approx(-(math.log(0.25) + math.log(0.75)) / 2) and dy[0] == pytest.approx([-2, -2 / 3])


def test_distributions_that_miss_1_a_little() -> None:
    """Labels with three digits may add up to 0.999; value and gradient use them unchanged."""
    y, target = np.array([[0.3, -1.0, 0.5]]), np.array([[0.333, 0.333, 0.333]])
    loss = losses.CategoricalCrossentropy(True)
    assert np.abs(loss(y, target)[1] - differences(lambda z: loss(z, target)[0], y)).max() < 1e-9


def test_extremes_stay_finite() -> None:
    with np.errstate(all="raise", under="ignore"):
        value, dy = losses.BinaryCrossentropy(True)(np.array([1e4, -1e4, 1e4, -1e4]), np.array([1, 0, 0, 1]))
        assert value == 5e3 and dy == pytest.approx([0, 0, 0.25, -0.25])
        value, dy = losses.BinaryCrossentropy()(np.array([1.0, 0.0, 1.0, 0.0]), np.array([1, 0, 0, 1]))
        assert value == 50 and np.isfinite(dy).all() and (dy[:2] == 0).all()  # log 0 is taken as -100, as in PyTorch
        value, dy = losses.SparseCategoricalCrossentropy()(np.array([[1.0, 0.0]]), np.array([1]))
        assert value == 100 and np.isfinite(dy).all()
        value, dy = losses.CategoricalCrossentropy(True)(np.array([[0, -np.inf, 0]]), np.array([[1.0, 0, 0]]))
        assert value == pytest.approx(math.log(2)) and dy[0] == pytest.approx([-0.5, 0, 0.5])
        small = losses.BinaryCrossentropy(True)(np.array([30.0], "float32"), np.array([1]))[0]
        assert small == pytest.approx(math.log1p(math.exp(-30)), rel=1e-6)


@each_case
def test_nan_in_predictions_passes(case: Case) -> None:
    """NaN makes the loss NaN, so that training detects divergence, and the gradient of its own row only."""
    y = case.y.copy()
    y[1, 1] = np.nan
    value, dy = case.loss(y, case.target)
    if case.features == 0 or case.loss.get_config().get("from_logits", True):
        assert np.isnan(dy[1, 1]).all()
    dy[1, 1] = 0
    assert math.isnan(value) and np.isfinite(dy).all()


def test_a_last_axis_of_one_may_be_missing() -> None:
    """Predictions (N, 1) of a head with one unit fit targets (N,); they are never broadcast to (N, N)."""
    y, target = np.arange(4.0), np.array([1.0, 1, 0, 0])
    expected, d = losses.MeanSquaredError()(y, target)
    for p, t in ((y[:, None], target), (y, target[:, None])):
        value, dy = losses.MeanSquaredError()(p, t)
        assert value == expected and dy.shape == p.shape and (dy.ravel() == d).all()


def test_a_mask_of_single_numbers() -> None:
    y, target, mask = np.array([[1.0, 5.0], [7.0, 2.0]]), np.zeros((2, 2)), np.array([[True, False], [False, True]])
    value, dy = losses.MeanSquaredError()(y, target, mask)
    assert value == 2.5 and (dy == [[1, 0], [0, 2]]).all()


def test_weights_of_sequences_name_their_axis() -> None:
    """Weights (3,) for rows (3, 3) are refused: they could belong to either axis."""
    case = CASES["sparse from logits"]
    y, target, per_sequence = case.y[:3], case.target[:3], np.array([1.0, 2.0, 0.0])
    with pytest.raises(ValueError, match=r"\(3,\), expected \(3, 3\).*weights\[:, None\].*weights\[None, :\]"):
        case.loss(y, target, weights=per_sequence)
    value, dy = case.loss(y, target, weights=per_sequence[None, :])
    assert value == case.loss(y, target, weights=np.tile(per_sequence, (3, 1)))[0] and (dy[:, 2] == 0).all()


# ------------------------------------------------------------------------------------------------------- ignored labels
@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 3, 9])
def test_ignored_labels_do_not_count(ignore_index: int) -> None:
    case = CASES["sparse from logits"]
    target = np.where(MASK, np.where(case.target == ignore_index, 1, case.target), ignore_index)
    expected, d_expected = fl.softmax_cross_entropy(case.y[MASK], target[MASK])
    for loss in (
        lambda y, t: fl.softmax_cross_entropy(y, t, ignore_index=ignore_index),
        losses.SparseCategoricalCrossentropy(True, ignore_index),
    ):
        y = case.y.copy()
        y[~MASK] = np.nan
        value, dy = loss(y, target)
        assert value == pytest.approx(expected, rel=1e-14)
        assert (dy[~MASK] == 0).all() and (dy[MASK] == d_expected).all()


def test_a_row_counts_where_label_mask_and_weight_say_so() -> None:
    """Label, mask and weight each leave out a row. A weight in a row that the others leave out has no effect."""
    y, target = np.random.default_rng(6).standard_normal((5, 3)), np.array([-100, 0, 1, 2, 1])
    mask, weights = np.array([True, False, True, True, True]), np.array([np.nan, -1, 0, 2, 1])
    value, dy = fl.softmax_cross_entropy(y, target, mask=mask, weights=weights)
    expected, d_expected = fl.softmax_cross_entropy(y[3:], target[3:], weights=[2, 1])
    assert value == expected and (dy[:3] == 0).all() and (dy[3:] == d_expected).all()


def test_ignored_labels_as_torch() -> None:
    torch = pytest.importorskip("torch")
    case = CASES["sparse from logits"]
    target, by_label = np.where(MASK, case.target, -100), np.array([0.5, 1, 2, 3, 0.25])
    y = torch.tensor(case.y.reshape(-1, 5), requires_grad=True)
    expected = torch.nn.functional.cross_entropy(y, torch.tensor(target.ravel()), torch.tensor(by_label))
    expected.backward()
    weights = losses.label_weights(target, by_label)
    value, dy = fl.softmax_cross_entropy(case.y, target, weights=weights)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    assert np.abs(dy.reshape(-1, 5) - y.grad.numpy()).max() < 1e-14


def test_all_labels_ignored() -> None:
    value, dy = fl.softmax_cross_entropy(np.full((2, 3), np.nan), np.full(2, -100))
    assert value == 0 and (dy == 0).all()


def test_without_an_ignored_label_it_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"between 0 and 2.*-100 to 1$"):
        fl.softmax_cross_entropy(np.zeros((2, 3)), np.array([1, -100]), ignore_index=None)
    with pytest.raises(ValueError, match=r"between 0 and 2.*-1 to 1; a row that does not count has the target -100"):
        fl.softmax_cross_entropy(np.zeros((3, 3)), np.array([1, -100, -1]))


def test_label_weights() -> None:
    target = np.array([[0, 2], [-100, 1]])
    assert (losses.label_weights(target, [5, 6, 7]) == [[5, 7], [0, 6]]).all()
    assert (losses.label_weights(target, {2: 4.0}) == [[1, 4], [0, 1]]).all()
    for wrong, said in (([1, 2], "between 0 and 1.*0 to 2"), ([1, -1, 1], "at least 0"), ({-1: 2.0}, "-1")):
        with pytest.raises(ValueError, match=said):
            losses.label_weights(target, wrong)


# ------------------------------------------------------------------------------------------------------- the fused head
def assert_close(given: Any, expected: Any) -> None:
    assert given.shape == expected.shape and np.abs(given - expected).max() <= 2e-6 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("how", ["ignore_index", "mask", "weights", "all three"])
def test_head_leaves_rows_out(backend: str, how: str, reduction: str) -> None:
    """The fused head equals product, loss and backward, also if the rows left out hold NaN."""
    rng = np.random.default_rng(4)
    dense = fl.Dense(6, 5, backend=backend, seed=2)
    x, targets = rng.standard_normal((4, 3, 6)).astype("float32"), rng.integers(0, 5, (4, 3))
    valid = MASK
    given: dict[str, Any] = {}
    if how in ("ignore_index", "all three"):
        targets = np.where(valid, targets, -7)
        given["ignore_index"] = -7
    if how in ("mask", "all three"):
        given["mask"] = valid.copy()
        if how == "all three":
            given["mask"][0, 0] = False
            valid = valid & given["mask"]
    if how in ("weights", "all three"):
        given["weights"] = WEIGHTS * MASK
    y, tape = dense.forward(x)
    expected, dy = fl.softmax_cross_entropy(y, targets, reduction, **given)
    expected_dx, expected_grads = dense.backward(tape, dy)
    x[~valid] = np.nan
    loss, dx, grads = dense.cross_entropy(x, targets, reduction, **given)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert (dx[~valid] == 0).all()
    assert_close(dx, expected_dx)
    assert grads.keys() == expected_grads.keys()
    for name in grads:
        assert_close(grads[name], expected_grads[name])


def test_head_with_all_rows_has_the_same_bits(backend: str) -> None:
    rng = np.random.default_rng(5)
    dense = fl.Dense(16, 40, backend=backend, seed=2)
    x, targets = rng.standard_normal((50, 16)).astype("float32"), rng.integers(0, 40, 50)
    loss, dx, grads = dense.cross_entropy(x, targets)
    for given in ({"mask": np.ones(50, bool)}, {"ignore_index": None}, {"weights": np.ones(50)}):
        other, other_dx, other_grads = dense.cross_entropy(x, targets, **given)
        assert other == loss and (other_dx == dx).all() and all((other_grads[n] == grads[n]).all() for n in grads)


def test_head_without_a_row_that_counts(backend: str) -> None:
    dense = fl.Dense(4, 5, backend=backend, seed=0)
    for given in ({}, {"weights": np.zeros(2)}):
        loss, dx, grads = dense.cross_entropy(np.ones((2, 4), "float32"), np.full(2, -100), **given)
        assert loss == 0 and (dx == 0).all() and dx.shape == (2, 4) and all((g == 0).all() for g in grads.values())


def test_padding_does_not_change_a_models_loss() -> None:
    """A padded batch has the same mean loss, and so the same perplexity, as its sequences one by one."""
    rng = np.random.default_rng(0)
    lengths = np.array([12, 3, 1])
    layer, head = fl.LSTM(7, 8, seed=0), fl.Dense(8, 7, seed=1)
    ids, targets = rng.integers(0, 7, (12, 3)), rng.integers(0, 7, (12, 3))
    y, _ = layer(ids, lengths=lengths)
    loss, _, _ = head.cross_entropy(y, np.where(np.arange(12)[:, None] < lengths, targets, -100))
    total = sum(head.cross_entropy(layer(ids[:n, [b]])[0], targets[:n, [b]], "sum")[0] for b, n in enumerate(lengths))
    assert loss == pytest.approx(total / 16, rel=1e-6)


# ---------------------------------------------------------------------------------------------------------------- names
def test_names() -> None:
    y, target = np.array([[1.0, 4.0]]), np.array([[0.0, 1.0]])
    assert losses.get("mse")(y, target)[0] == losses.get("mean_squared_error")(y, target)[0] == 5
    assert losses.get("mae")(y, target)[0] == 2
    assert repr(losses.get("cross_entropy")) == "SparseCategoricalCrossentropy(from_logits=True)"
    assert repr(losses.get("bce_with_logits")) == "BinaryCrossentropy(from_logits=True)"
    assert repr(losses.get("binary_crossentropy")) == "BinaryCrossentropy()"
    with pytest.raises(ValueError, match=r"loss 'rmse' is not known; expected one of .*mse.*huber.*quantile"):
        losses.get("rmse")
    with pytest.raises(TypeError, match=r"one of the names .*mse.*got <built-in function max>"):
        losses.get(max)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loss 'huber' has no option 'dleta'; its options are delta, reduction"):
        losses.get({"name": "huber", "dleta": 1})


@pytest.mark.parametrize("loss", [*(c.loss for c in CASES.values()), *map(losses.get, losses.LOSSES)], ids=repr)
def test_a_configuration_makes_the_loss_again(loss: losses.Loss) -> None:
    again = losses.get(json.loads(json.dumps(loss.get_config())))
    assert type(again) is type(loss) and again.get_config() == loss.get_config() and repr(again) == repr(loss)
    assert losses.get(loss) is loss and losses.LOSSES[loss.name] is type(loss)


def test_losses_and_metrics_are_reached_after_a_plain_import() -> None:
    script = (
        "import sys, fastlstm as fl\n"
        "assert not {'fastlstm.losses', 'fastlstm.metrics', 'fastlstm.nn'} & set(sys.modules)\n"
        "print(fl.losses.get('mse'), fl.metrics.get('mae'), fl.nn.Dense.__name__)\n"
        "assert {'losses', 'metrics', 'nn'} <= set(dir(fl)) & set(fl.__all__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "MeanSquaredError() MeanAbsoluteError() Dense", done.stderr


# --------------------------------------------------------------------------------------------------------------- errors
Y, P = np.zeros((2, 3)), np.full((2, 3), 1 / 3)
SPARSE, ONE_HOT, BINARY = (
    losses.SparseCategoricalCrossentropy,
    losses.CategoricalCrossentropy,
    losses.BinaryCrossentropy,
)
MSE = losses.MeanSquaredError()


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: SPARSE(True)(Y, np.eye(3)[:2].astype(int)), ValueError, "CategoricalCrossentropy"),
        (lambda: SPARSE(True)(Y, np.array([0.0, 1.0])), TypeError, "targets must be integers.*float64"),
        (lambda: SPARSE(True)(Y, np.array([0, 3])), ValueError, "between 0 and 2.*0 to 3"),
        (lambda: SPARSE(True)(Y.astype(int), [0, 1]), TypeError, r"logits must be float32 or float64.*astype"),
        (lambda: SPARSE(True)(np.zeros((0, 3)), np.zeros(0, int)), ValueError, "no rows"),
        (lambda: SPARSE(True).values(np.zeros((0, 3)), np.zeros(0, int)), ValueError, "no rows"),
        (lambda: SPARSE()(Y, [0, 1]), ValueError, "add up to 1.*got 0 to 0.*from_logits=True"),
        (lambda: SPARSE()(Y - 1, [0, 1]), ValueError, "probabilities must lie between 0 and 1, got -1.0.*from_logits"),
        (lambda: SPARSE(ignore_index=True)(P, [0, 1]), TypeError, "ignore_index must be an integer"),
        (lambda: ONE_HOT()(P, [0, 1]), ValueError, r"\(2,\), expected that of y, \(2, 3\).*Sparse"),
        (lambda: ONE_HOT()(P, [[1, 1, 0], [0, 0, 1]]), ValueError, "add up to 1.*got 1 to 2.*BinaryCrossentropy"),
        (lambda: ONE_HOT()(P, [[0, np.nan, 0], [0, 0, 1]]), ValueError, "targets hold NaN or infinity in 1 of 6"),
        (lambda: ONE_HOT()(P, np.array([["a"] * 3] * 2)), TypeError, "real numbers"),
        (lambda: BINARY()(np.array([0.5, 2.0]), [0, 1]), ValueError, "0 and 1, got 0.5 to 2.0.*from_logits=True"),
        (
            lambda: BINARY(True)(np.array([0.5, 2.0]), [1, 2]),
            ValueError,
            "labels must lie between 0 and 1, got 1.* to 2",
        ),
        (lambda: MSE(Y, Y[:1]), ValueError, r"\(1, 3\), expected that of y, \(2, 3\)"),
        (lambda: MSE(Y, Y.T), ValueError, r"\(3, 2\), expected that of y, \(2, 3\)"),
        (lambda: MSE(Y, Y * 1j), TypeError, "real numbers"),
        (lambda: MSE(Y, [[0, 0, np.nan], [np.inf, 0, 0]]), ValueError, "in 2 of 6.*mask="),
        (lambda: MSE(Y, Y, mask=np.ones((2, 3))), TypeError, r"bools.*float64.*mask.astype\('bool'\)"),
        (lambda: MSE(Y, Y, mask=[[1, 0, 1]] * 2), TypeError, r"bools.*int64.*numpy.asarray\(mask, 'bool'\)"),
        (lambda: MSE(np.ma.array(Y, mask=Y == 0), Y), TypeError, "y is a masked array, whose mask would be lost"),
        (lambda: MSE(Y, np.ma.array(Y, mask=Y == 0)), TypeError, "targets is a masked array"),
        (lambda: MSE(Y, Y, mask=np.ones(3, bool)), ValueError, r"mask has shape \(3,\), expected \(2, 3\)"),
        (lambda: MSE(Y, Y, weights=np.ones(2, bool)), TypeError, "weights must be real.*mask="),
        (lambda: MSE(Y, Y, weights=[1, -1]), ValueError, "at least 0, got -1"),
        (lambda: MSE(Y, Y, weights=[1, np.nan]), ValueError, "finite"),
        (lambda: MSE(np.zeros((0, 3)), np.zeros((0, 3))), ValueError, "no rows"),
        (lambda: losses.MeanSquaredError("average"), ValueError, "average.*mean, sum"),
        (lambda: losses.Huber(0), ValueError, "delta must be above 0, got 0"),
        (lambda: losses.Huber(-1), ValueError, "delta must be at least 0 and finite, got -1"),
        (lambda: losses.Huber("1"), TypeError, "delta must be a number, got '1'"),
        (lambda: BINARY("no"), TypeError, "from_logits must be True or False, got 'no'"),
        (lambda: losses.Quantile(1.0), ValueError, "between 0 and 1, got 1.0"),
        (lambda: losses.Quantile([]), ValueError, r"between 0 and 1, got \[\]"),
        (lambda: losses.Quantile([0.1, 0.9])(Y, Y), ValueError, r"\(2, 3\), expected \(2, 3, 2\): 2 quantiles"),
        (lambda: losses.Quantile([0.1])(Y[..., :1], [np.nan, 0]), ValueError, "NaN or infinity in 1 of 2"),
        (lambda: losses.Quantile([0.1])(Y[..., :1], ["a", "b"]), TypeError, "real numbers"),
        (lambda: losses.label_weights(["a"], [1.0]), TypeError, "targets must be integers"),
    ],
    ids=lambda value: None,
)
def test_refuses(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


PAGE = Path(__file__).parents[1] / "docs" / "losses.md"


@pytest.mark.skipif(not PAGE.exists(), reason="docs/ is not beside the tests")
def test_the_page_names_all_and_its_code_runs() -> None:
    text = PAGE.read_text()
    for name in [*losses.LOSSES, *fl.metrics.METRICS]:
        assert f"`{name}`" in text, f"{name} is missing in docs/losses.md"
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert np.isfinite(names["dx"]).all() and (names["dp"][3:, 1] == 0).all()
