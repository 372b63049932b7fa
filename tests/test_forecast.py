"""fl.forecast: windows by hand, scaling, and folds that a change of the future does not change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm import forecast

SERIES = np.random.default_rng(0).standard_normal((60, 3)) * [1, 10, 0.1] + [0, 5, -3]


# ------------------------------------------------------------------------------------------------------------- windows
@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("horizon", [1, 4])
def test_windows_are_slices(horizon: int, stride: int) -> None:
    x, y = forecast.windows(SERIES, 7, horizon, targets=[2, 0], stride=stride, dtype="float64")
    starts = range(0, 60 - 7 - horizon + 1, stride)
    assert x.shape == (len(starts), 7, 3) and y.shape == (len(starts), horizon, 2)
    for n, at in enumerate(starts):
        assert (x[n] == SERIES[at : at + 7]).all()
        assert (y[n] == SERIES[at + 7 : at + 7 + horizon][:, [2, 0]]).all()


def test_windows_of_one_variable() -> None:
    x, y = forecast.windows(np.arange(6), 3, 2)
    assert x.dtype == y.dtype == np.float32
    assert x[..., 0].tolist() == [[0, 1, 2], [1, 2, 3]] and y[..., 0].tolist() == [[3, 4], [4, 5]]


def test_windows_are_views() -> None:
    x, y = forecast.windows(SERIES, 7, 2, dtype="float64")
    assert np.shares_memory(x, SERIES) and np.shares_memory(y, SERIES)
    with pytest.raises(ValueError, match="read-only"):
        x[0, 0, 0] = 1  # windows share memory
    x, _ = forecast.windows(SERIES, 7, 2)
    span = np.lib.array_utils.byte_bounds(x) if hasattr(np.lib, "array_utils") else np.byte_bounds(x)  # type: ignore
    assert span[1] - span[0] <= SERIES.size * 4, "one copy in float32, not one for each window"


def test_pandas() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(SERIES, columns=["a", "b", "c"], index=pd.date_range("2026-01-01", periods=60, freq="h"))
    x, y = forecast.windows(frame, 7, 2, targets="b")
    x_expected, y_expected = forecast.windows(SERIES, 7, 2, targets=1)
    assert (x == x_expected).all() and (y == y_expected).all()
    x, _ = forecast.windows(frame["c"], 7)
    assert (x == forecast.windows(SERIES[:, 2], 7)[0]).all()
    with pytest.raises(ValueError, match=r"no variable 'd': expected a number from 0 to 2, or one of a, b, c"):
        forecast.windows(frame, 7, targets=["a", "d"])
    with pytest.raises(ValueError, match=r"does not rise.*series.sort_index\(\)"):
        forecast.windows(frame[::-1], 7)
    with pytest.raises(TypeError, match="real numbers"):
        forecast.windows(frame.assign(a="x"), 7)


# ------------------------------------------------------------------------------------------------------------- scaling
@pytest.mark.parametrize("kind", forecast.SCALERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scalers(kind: str, dtype: str) -> None:
    series = np.concatenate([SERIES, np.full((60, 1), 0.1)], axis=1).astype(dtype)  # and a constant
    scaler = forecast.SCALERS[kind]().fit(series)
    z = scaler.transform(series)
    assert z.dtype == dtype and z.shape == series.shape
    if kind == "standard":
        assert np.abs(z.mean(axis=0)).max() < 1e-5 and z[:, :3].std(axis=0) == pytest.approx([1, 1, 1], rel=1e-5)
    if kind == "minmax":
        assert z[:, :3].min(axis=0) == pytest.approx([0, 0, 0]) and z[:, :3].max(axis=0) == pytest.approx([1, 1, 1])
    if kind == "none":
        assert (z == series).all()
    else:
        assert np.abs(z[:, 3]).max() < 1e-7
    back = scaler.inverse(z)
    assert back.dtype == dtype and np.abs(back - series).max() < (1e-5 if dtype == "float32" else 1e-13)
    some = scaler.of([2, 0]).inverse(z.reshape(6, 10, 4)[..., [2, 0]])
    assert np.abs(some.reshape(60, 2) - series[:, [2, 0]]).max() < 1e-5


def test_scikit_learn_scales_alike() -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    for ours, theirs in (("standard", preprocessing.StandardScaler()), ("minmax", preprocessing.MinMaxScaler())):
        given = forecast.SCALERS[ours]().fit(SERIES[:40]).transform(SERIES)
        assert given == pytest.approx(theirs.fit(SERIES[:40]).transform(SERIES), rel=1e-12, abs=1e-12)


# -------------------------------------------------------------------------------------------------------- back-testing
@pytest.mark.parametrize("keep", [None, 12, 30])
@pytest.mark.parametrize("step", [None, 1, 13])
def test_folds_judge_what_follows(keep: int | None, step: int | None) -> None:
    given = list(forecast.folds(60, 20, 7, step=step, keep=keep))
    assert [fold.test.start for fold in given] == list(range(20, 54, step or 7))
    for train, test in given:
        assert train.stop == test.start and test.stop - test.start == 7 and test.stop <= 60
        assert train.start == (0 if keep is None else max(0, train.stop - keep))
    judged = [row for fold in given for row in range(60)[fold.test]]
    assert step == 1 or len(set(judged)) == len(judged)


FOLDS = [*forecast.folds(60, 20, 7), *forecast.folds(60, 20, 7, keep=15, step=3)]


@pytest.mark.parametrize("scaler", forecast.SCALERS)
@pytest.mark.parametrize("fold", FOLDS, ids=lambda fold: f"{fold.train.start}-{fold.test.start}")
def test_the_future_does_not_leak(fold: forecast.Fold, scaler: str) -> None:
    """A change of the series from a row on changes no bit of what is computed from earlier rows."""
    whole = forecast.fold_windows(SERIES, fold, 5, 2, scaler=scaler)
    other = SERIES.copy()
    other[fold.test.start :] = 1e6 * np.random.default_rng(1).standard_normal(other[fold.test.start :].shape)
    changed = forecast.fold_windows(other, fold, 5, 2, scaler=scaler)
    assert (changed.x_train == whole.x_train).all() and (changed.y_train == whole.y_train).all()
    assert (changed.scaler.offset == whole.scaler.offset).all() and (changed.scaler.scale == whole.scaler.scale).all()
    assert not (changed.y_test == whole.y_test).any(), "the change has to reach what is judged"
    for n, row in enumerate(range(fold.test.start, fold.test.stop - 1)):  # the first row that window n forecasts
        other = SERIES.copy()
        other[row:] = 1e6
        changed = forecast.fold_windows(other, fold, 5, 2, scaler=scaler)
        assert (changed.x_test[: n + 1] == whole.x_test[: n + 1]).all()
        assert (changed.y_test[n:] != whole.y_test[n:]).all()
    if fold.train.start:
        other = SERIES.copy()
        other[: fold.train.start] = 1e6  # rows before a rolling window have no effect either
        changed = forecast.fold_windows(other, fold, 5, 2, scaler=scaler)
        assert all((a == b).all() for a, b in zip(changed[:4], whole[:4], strict=True))


def test_fold_windows_are_scaled_slices() -> None:
    fold = forecast.Fold(slice(10, 30), slice(30, 37))
    given = forecast.fold_windows(SERIES, fold, 5, 2, targets=[1], dtype="float64")
    mean, std = SERIES[10:30].mean(axis=0), SERIES[10:30].std(axis=0)
    assert given.x_train.shape == (14, 5, 3) and given.y_train.shape == (14, 2, 1)
    assert given.x_test.shape == (6, 5, 3) and given.y_test.shape == (6, 2, 1)
    assert given.x_train[0] == pytest.approx((SERIES[10:15] - mean) / std)
    assert given.x_test[0] == pytest.approx((SERIES[25:30] - mean) / std)
    assert given.scaler.inverse(given.y_train[-1]) == pytest.approx(SERIES[28:30, 1:2])
    assert given.scaler.inverse(given.y_test[-1]) == pytest.approx(SERIES[35:37, 1:2])


def test_a_scaler_that_is_handed_in_stays_as_it_is() -> None:
    scaler = forecast.StandardScaler().fit(SERIES)
    offset = scaler.offset.copy()  # type: ignore[union-attr]
    given = forecast.fold_windows(SERIES, FOLDS[0], 5, scaler=scaler)
    assert (scaler.offset == offset).all() and (given.scaler.offset != offset).all()


NAN = SERIES.copy()
NAN[17, 1] = np.nan
FOLD = FOLDS[0]


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (
            lambda: forecast.windows(SERIES, 59, 2),
            ValueError,
            r"60 rows, a window needs inputs \+ horizon = 59 \+ 2 = 61",
        ),
        (lambda: forecast.windows(NAN, 5), ValueError, "first in row 17"),
        (lambda: forecast.windows(SERIES[None], 5), ValueError, r"\(1, 60, 3\), expected \(T,\) or \(T, V\)"),
        (lambda: forecast.windows([], 5), ValueError, r"\(0,\), expected"),
        (lambda: forecast.windows(["a"], 5), TypeError, "real numbers"),
        (lambda: forecast.windows(SERIES, 0), ValueError, "inputs must be at least 1"),
        (lambda: forecast.windows(SERIES, 5, targets=3), ValueError, "no variable 3: expected a number from 0 to 2"),
        (lambda: forecast.windows(SERIES, 5, targets=[]), ValueError, "names no variable"),
        (lambda: forecast.folds(10, 8, 3), ValueError, r"10 rows, the first fold needs first \+ test = 8 \+ 3"),
        (lambda: forecast.folds(10, 5, 1, keep=0), ValueError, "keep must be at least 1"),
        (lambda: forecast.fold_windows(SERIES, FOLD, 19, 2), ValueError, "fold.train has 20 rows, needed are 21"),
        (lambda: forecast.fold_windows(SERIES, FOLD, 5, 8), ValueError, "fold.test has 7 rows, needed are 8"),
        (lambda: forecast.fold_windows(SERIES, FOLD, 5, scaler="robust"), ValueError, "standard, minmax, none"),
        (
            lambda: forecast.fold_windows(SERIES, forecast.Fold(slice(0, 30), slice(29, 40)), 5),
            ValueError,
            "does not lie in order within a series of 60 rows",
        ),
        (lambda: forecast.StandardScaler().transform(SERIES), RuntimeError, "call fit"),
        (lambda: forecast.StandardScaler().fit(SERIES).inverse(SERIES[:, :2]), ValueError, "3 variables, got 2"),
    ],
    ids=lambda value: None,
)
def test_refuses(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


def test_it_is_public() -> None:
    assert fl.forecast is forecast and "forecast" in fl.__all__


PAGE = Path(__file__).resolve().parents[1] / "docs" / "forecast.md"


@pytest.mark.skipif(not PAGE.exists(), reason="docs/ is not beside the tests")
def test_the_pages_example_forecasts_better_than_the_last_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    block, of_forecaster = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    exec(block, names)
    last = forecast.fold_windows(names["series"], names["fold"], 24, 6, targets=0)
    naive = np.abs(last.x_test[:, -1:, :1] - last.y_test).mean() * last.scaler.scale[0]  # type: ignore[index]
    assert len(names["errors"]) == 3 and 0 < max(names["errors"]) < 0.5 * naive
    exec(of_forecaster, names)
    judged = names["judged"]
    assert judged.mae < 0.8 * judged.seasonal_mae < judged.naive_mae and names["quantiles"].shape == (6, 1, 3)
