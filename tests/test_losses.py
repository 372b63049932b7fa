"""Losses and the dense head: finite differences, extreme values, and bad arguments."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm._backends import module


def differences(loss: Any, x: Any, step: float = 1e-6) -> Any:
    """Central finite differences of loss() by every entry of x, which is changed in place."""
    d = np.empty_like(x)
    for at in np.ndindex(*x.shape):
        kept = x[at]
        x[at] = kept + step
        above = loss()
        x[at] = kept - step
        d[at] = (above - loss()) / (2 * step)
        x[at] = kept
    return d


def assert_gradient(given: Any, numeric: Any) -> None:
    assert given.shape == numeric.shape
    assert np.abs(given - numeric).max() < 1e-6 * max(1e-3, np.abs(numeric).max())


# ---------------------------------------------------------------------------------------------- softmax cross-entropy
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)], ids=str)
def test_cross_entropy_gradient(shape: tuple[int, ...], reduction: str) -> None:
    rng = np.random.default_rng(0)
    logits, targets = 3 * rng.standard_normal(shape), rng.integers(0, shape[-1], shape[:-1])
    before = logits.copy()
    _, dlogits = fl.softmax_cross_entropy(logits, targets, reduction)
    assert (logits == before).all()
    assert_gradient(dlogits, differences(lambda: fl.softmax_cross_entropy(logits, targets, reduction)[0], logits))


def test_cross_entropy_values() -> None:
    loss, d = fl.softmax_cross_entropy(np.log([[1.0, 2.0, 5.0]]), np.array([1]))
    assert loss == pytest.approx(-math.log(2 / 8), rel=1e-15)
    assert d == pytest.approx(np.array([[1 / 8, 2 / 8 - 1, 5 / 8]]), rel=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cross_entropy_of_extreme_logits(dtype: str) -> None:
    huge = np.finfo(dtype).max / 4
    logits = np.array([[huge, -huge, 0], [1000, 1000, -1000], [-1e4, 0, 1e4], [0, -np.inf, 0]], dtype)
    with np.errstate(all="raise", under="ignore"):
        loss, d = fl.softmax_cross_entropy(logits, np.array([0, 1, 2, 0]), "sum")
    assert loss == pytest.approx(2 * math.log(2), rel=1e-6)
    assert d == pytest.approx(np.array([[0, 0, 0], [0.5, -0.5, 0], [0, 0, 0], [-0.5, 0, 0.5]]), abs=1e-7)
    wrong, _ = fl.softmax_cross_entropy(logits[2:3], np.array([0]))
    assert wrong == 2e4


def test_cross_entropy_keeps_small_losses() -> None:
    """The loss of a confident prediction is far below float32's step at 1."""
    loss, _ = fl.softmax_cross_entropy(np.array([[30, 0]], "float32"), np.array([0]))
    assert loss == pytest.approx(math.log1p(math.exp(-30)), rel=1e-3)


def test_cross_entropy_passes_nan_and_empty() -> None:
    loss, d = fl.softmax_cross_entropy(np.array([[np.nan, 0.0], [0.0, 0.0]]), np.array([0, 0]))
    assert math.isnan(loss) and np.isnan(d[0]).all() and np.isfinite(d[1]).all()
    assert math.isnan(fl.softmax_cross_entropy(np.zeros((0, 3)), np.zeros(0, int))[0])
    assert fl.softmax_cross_entropy(np.zeros((0, 3)), np.zeros(0, int), "sum")[0] == 0


X, T = np.zeros((2, 3), "float32"), np.zeros(2, int)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((X, np.zeros(3, int)), ValueError, r"\(3,\).*\(2,\)"),
        ((X, np.array([0, 3])), ValueError, "between 0 and 2.*0 to 3"),
        ((X, np.array([-1, 0])), ValueError, "between 0 and 2.*-1 to 0"),
        ((X, np.zeros(2)), TypeError, "float64"),
        ((X.astype(int), T), TypeError, "int64"),
        ((np.zeros((2, 0)), T), ValueError, r"\(2, 0\)"),
        ((np.float64(1), T), ValueError, r"\(\)"),
        ((X, T, "average"), ValueError, "average.*mean, sum"),
    ],
    ids=lambda value: None,
)
def test_cross_entropy_refuses(arguments: tuple[Any, ...], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        fl.softmax_cross_entropy(*arguments)


# ------------------------------------------------------------------------------------------------------------- dense
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (6,), (2, 3)], ids=str)
def test_dense_gradients(leading: tuple[int, ...], bias: bool) -> None:
    rng = np.random.default_rng(1)
    dense = fl.Dense(4, 5, bias, dtype="float64", seed=2)
    x, dy = rng.standard_normal((*leading, 4)), rng.standard_normal((*leading, 5))
    y, tape = dense.forward(x)
    assert (y == dense(x)).all() and y.shape == dy.shape
    dx, grads = dense.backward(tape, dy)
    assert_gradient(dx, differences(lambda: float((dense(x) * dy).sum()), x))
    assert grads.keys() == dense.state_dict().keys()
    with dense.update() as params:
        for name, p in params.items():
            assert_gradient(grads[name], differences(lambda: float((dense(x) * dy).sum()), p))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_dense_cross_entropy_is_its_parts(reduction: str) -> None:
    rng = np.random.default_rng(1)
    dense = fl.Dense(4, 5, seed=2)
    x, targets = rng.standard_normal((7, 3, 4)).astype("float32"), rng.integers(0, 5, (7, 3))
    loss, dx, grads = dense.cross_entropy(x, targets, reduction)
    y, tape = dense.forward(x)
    parts_loss, dy = fl.softmax_cross_entropy(y, targets, reduction)
    parts_dx, parts_grads = dense.backward(tape, dy)
    assert loss == pytest.approx(parts_loss, rel=1e-6) and np.abs(dx - parts_dx).max() < 1e-6
    assert all(np.abs(grads[name] - parts_grads[name]).max() < 1e-6 for name in grads)


SIZES = [(1, 1, 1), (1, 5, 40), (7, 3, 28), (33, 17, 9), (129, 31, 33), (300, 64, 1100), (100, 600, 100)]  # N, I, U


def results(dense: Any, x: Any, dy: Any, targets: Any) -> list[Any]:
    """Everything that a dense layer computes."""
    y, tape = dense.forward(x)
    dx, grads = dense.backward(tape, dy)
    loss, dx_of_loss, grads_of_loss = dense.cross_entropy(x, targets)
    return [y, dx, *grads.values(), np.array(loss), dx_of_loss, *grads_of_loss.values()]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("N", "I", "U"), SIZES)
def test_dense_is_the_references(backend: str, N: int, I: int, U: int, bias: bool) -> None:  # noqa: E741
    rng = np.random.default_rng(N + I + U)
    x, dy = rng.standard_normal((N, I)).astype("float32"), rng.standard_normal((N, U)).astype("float32")
    targets = rng.integers(0, U, N)
    dense = fl.Dense(I, U, bias, backend=backend, seed=1)
    reference = fl.Dense(I, U, bias, dtype="float64", backend="numpy")
    reference.load_state_dict(dense.state_dict())
    expected = results(reference, x.astype("float64"), dy.astype("float64"), targets)
    for threads in (1, 2, 3):
        with fl.threads(threads):
            given = results(dense, x, dy, targets)
        for a, e in zip(given, expected, strict=True):
            assert a.shape == e.shape and np.abs(a - e).max() <= 2e-6 * max(1.0, np.abs(e).max())
        if threads == 1:
            first = given
        elif dense.backend == "c":  # the same bits
            assert all((a == b).all() for a, b in zip(given, first, strict=True))


def test_dense_sees_new_weights(backend: str) -> None:
    dense, x = fl.Dense(4, 5, backend=backend, seed=0), np.ones((3, 4), "float32")
    y, tape = dense.forward(x)
    dense.backward(tape, y)
    with dense.update() as params:
        params["weight"] *= 2
        params["bias"] *= 2
    assert (dense(x) == 2 * y).all()
    _, tape = dense.forward(x)
    dx, _ = dense.backward(tape, np.ones((3, 5), "float32"))
    assert dx[0] == pytest.approx(dense.state_dict()["weight"].sum(axis=0), rel=1e-5)


def test_dense_without_rows(backend: str) -> None:
    dense = fl.Dense(4, 5, backend=backend)
    assert dense(np.zeros((0, 4), "float32")).shape == (0, 5)
    loss, dx, grads = dense.cross_entropy(np.zeros((0, 4), "float32"), np.zeros(0, int))
    assert math.isnan(loss) and dx.shape == (0, 4) and (grads["weight"] == 0).all()


def test_dense_keeps_forced_choices() -> None:
    assert fl.Dense(2, 3, backend="numpy").backend == "numpy"
    assert fl.Dense(2, 3, dtype="float64").backend == "numpy"
    if module("c").unusable() is None:
        assert fl.Dense(2, 3, backend="c").backend == "c"
        with pytest.raises(fl.BackendError, match="float64"):
            fl.Dense(2, 3, dtype="float64", backend="c")
    with pytest.raises(ValueError, match="abacus"):
        fl.Dense(2, 3, backend="abacus")


# ---------------------------------------------------------------------------------------- the C backend's exponential
EXP_ERROR = 1.2e-7  # bound of exp's relative error over the arguments of a softmax; vmath.h refers to this number


def exponentials(x: Any) -> Any:
    """The C backend's exp(x) for x <= 0, by the softmax of the logits x and 0, from an identity layer.

    The gradient of the first logit is exp(x) / (1 + exp(x)), rounded to float32.
    """
    dense = fl.Dense(1, 2, bias=False, backend="c")
    dense.load_state_dict({"weight": np.array([[1.0], [0.0]])})
    _, dx, _ = dense.cross_entropy(x[:, None], np.ones(len(x), int), "sum")
    return dx[:, 0]  # the first logit's gradient times 1, plus the second's times 0


def test_exponential(compiled: str) -> None:
    x = -np.concatenate([np.geomspace(1e-8, 87.3, 200_000), np.linspace(0, 87.3, 1_000_000)]).astype("float32")
    e = np.exp(x.astype("float64"))
    error = np.abs(exponentials(x) / (e / (1 + e)) - 1)
    assert error[e < 1e-9].max() <= EXP_ERROR  # the gradient is exp(x) there, since 1 + exp(x) rounds to 1
    assert error.max() <= EXP_ERROR + 2 * np.finfo("float32").eps / 2  # two more roundings


def test_exponential_at_the_end(compiled: str) -> None:
    assert (exponentials(np.array([-87.4, -88, -100, -1e30], "float32")) == 0).all()  # -inf: in the next test
    assert np.isnan(exponentials(np.array([np.nan], "float32"))).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 3, 8, 40])
def test_head_passes_what_is_not_finite(backend: str, bad: float, place: int) -> None:
    """NaN and infinity pass as in the NumPy loss, at any place of a row."""
    dense = fl.Dense(1, 41, backend=backend, seed=0)
    with dense.update() as params:
        params["bias"][place] = bad
    with np.errstate(all="ignore"):
        x, targets = np.ones((2, 1), "float32"), np.array([1, 2])
        loss, _, grads = dense.cross_entropy(x, targets)
        expected, dlogits = fl.softmax_cross_entropy(dense(x), targets)
    assert loss == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert grads["bias"] == pytest.approx(dlogits.sum(axis=0), abs=1e-6, nan_ok=True)


def test_dense_survives_copy_and_pickle() -> None:
    dense = fl.Dense(4, 5, bias=False, dtype="float64", seed=0)
    assert repr(dense) == "Dense(4, 5, bias=False, dtype='float64')"
    x = np.ones((2, 4))
    for other in (copy.copy(dense), pickle.loads(pickle.dumps(dense))):
        assert (other(x) == dense(x)).all() and repr(other) == repr(dense)
        with other.update() as params:
            params["weight"][...] = 0
    assert (dense(x) != 0).all()


def test_dense_starts_as_torchs_linear() -> None:
    weights = fl.Dense(400, 300, seed=0).state_dict()
    assert weights["weight"].shape == (300, 400) and weights["bias"].shape == (300,)
    assert 0.0499 < np.abs(weights["weight"]).max() <= 0.05  # 1 / sqrt(400)
    assert (fl.Dense(400, 300, seed=0).state_dict()["weight"] == weights["weight"]).all()


def test_dense_tape_serves_once_and_keeps_its_input() -> None:
    dense, x, dy = fl.Dense(4, 5, seed=0), np.ones((2, 4), "float32"), np.ones((2, 5), "float32")
    _, tape = dense.forward(x)
    x[...] = np.nan
    with pytest.raises(ValueError, match=r"dy has shape \(5,\), expected \(2, 5\)"):
        dense.backward(tape, dy[0])
    _, grads = dense.backward(tape, dy)
    assert (grads["weight"] == 2).all()
    with pytest.raises(RuntimeError, match="used"):
        dense.backward(tape, dy)
    _, tape = dense.forward(np.ones((2, 4), "float32"))
    with pytest.raises(RuntimeError, match="another layer"):
        fl.Dense(4, 5).backward(tape, dy)
    with dense.update():
        pass
    with pytest.raises(RuntimeError, match="weights have changed"):
        dense.backward(tape, dy)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda d: d(np.ones((2, 3), "float32")), ValueError, r"\(2, 3\).*input_size = 4"),
        (lambda d: d(np.ones((2, 4))), ValueError, r"float64.*astype\('float32'\)"),
        (lambda d: d.cross_entropy(np.ones((2, 4), "float32"), np.array([0])), ValueError, r"\(1,\), expected \(2,\)"),
        (lambda d: fl.Dense(0, 5), ValueError, "input_size must be at least 1"),
        (lambda d: fl.Dense(4, 2.5), TypeError, "units must be an integer"),
        (lambda d: fl.Dense(4, 5, dtype="float16"), ValueError, "float16"),
    ],
    ids=lambda value: None,
)
def test_dense_refuses(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call(fl.Dense(4, 5, seed=0))
