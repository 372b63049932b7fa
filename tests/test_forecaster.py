"""fl.forecast.Forecaster: bands that do not cross, no leak from the future, judgements by hand, files, bad input."""

from __future__ import annotations

import json
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm import forecast
from fastlstm.forecast.bands import BandLoss, Bands, repeated
from fastlstm.forecast.judged import naive_forecasts
from fastlstm.training.callbacks import Callback

RNG = np.random.default_rng(0)
HOURS = np.arange(700)
LOAD = 10 + 3 * np.sin(2 * np.pi * HOURS / 24) + 0.5 * RNG.standard_normal(700)
SERIES = np.stack([np.cos(2 * np.pi * HOURS / 24), LOAD], axis=1)
SMALL: dict[str, Any] = {"units": 8, "targets": 1, "seed": 0}


def small(**options: Any) -> forecast.Forecaster:
    return forecast.Forecaster(12, 3, **{**SMALL, **options})


@pytest.fixture(scope="module")
def fitted() -> forecast.Forecaster:
    return forecast.Forecaster(36, 6, units=24, targets=1, seed=0).fit(SERIES[:560], 25, validation=0.1)


# ------------------------------------------------------------------------------------ bands
def test_gradients_are_those_of_finite_differences() -> None:
    module, loss = Bands(4, 3, dtype="float64", seed=0), BandLoss((0.1, 0.5, 0.9))
    x, target = RNG.standard_normal((5, 6)), repeated(RNG.standard_normal((5, 2, 2)), 3)
    y, tape = module.forward(x)
    assert np.array_equal(y, module(x)) and (np.diff(y, axis=-1) > 0).all()
    _, dy = loss(y, target)
    dx, grads = module.backward(tape, dy)
    step = 1e-6

    def slope(change: Any) -> float:
        values = []
        for sign in (1, -1):
            change(sign * step)
            values.append(loss(module(x), target)[0])
            change(-sign * step)
        return (values[0] - values[1]) / (2 * step)

    for at in np.ndindex(x.shape):

        def move(by: float, at: Any = at) -> None:
            x[at] += by

        assert dx[at] == pytest.approx(slope(move), abs=1e-8)
    for name, g in grads.items():
        for at in list(np.ndindex(g.shape))[::5]:

            def turn(by: float, name: str = name, at: Any = at) -> None:
                with module.update() as params:
                    params[name][at] += by

            assert g[at] == pytest.approx(slope(turn), abs=1e-8)


def test_the_loss_is_that_of_the_quantiles() -> None:
    y, target = RNG.standard_normal((5, 4, 3)), RNG.standard_normal((5, 2, 2))
    ours = BandLoss((0.1, 0.5, 0.9))(y, repeated(target, 3))
    theirs = fl.losses.Quantile((0.1, 0.5, 0.9))(y, target.reshape(5, 4))
    assert ours[0] == theirs[0] and (ours[1] == theirs[1]).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_quantiles_never_cross(scale: float) -> None:
    model = small(quantiles=(0.01, 0.2, 0.5, 0.8, 0.99)).fit(SERIES[:100] * scale, 1)
    with model.update() as params:
        for p in params.values():
            p += RNG.standard_normal(p.shape)
    for end in range(20, 100, 7):
        assert (np.diff(model.predict(SERIES[:end] * scale), axis=-1) >= 0).all()


# ------------------------------------------------------------------------------------ forecasts
def test_it_forecasts_better_than_without_a_model_and_its_bands_hold(fitted: forecast.Forecaster) -> None:
    judged = fitted.evaluate(SERIES, slice(560, None), season=24)
    assert judged.seasonal_mae is not None
    assert judged.mae < 0.8 * judged.seasonal_mae < 0.8 * judged.naive_mae
    assert 0.65 < judged.coverage[0.1, 0.9] < 0.95  # 0.8 is right
    assert judged.truth.shape == (135, 6, 1) and judged.quantiles.shape == (135, 6, 1, 3)
    np.testing.assert_array_equal(judged.truth[:, :, 0], [LOAD[r : r + 6] for r in range(560, 695)])
    for n in (0, 77, 134):
        np.testing.assert_allclose(judged.quantiles[n], fitted.predict(SERIES[: 560 + n]), rtol=1e-6)
    assert "one season before" in str(judged) and "80% expected" in str(judged)


def test_a_prediction_takes_the_last_rows_alone(fitted: forecast.Forecaster) -> None:
    np.testing.assert_array_equal(fitted.predict(SERIES), fitted.predict(SERIES[-36:]))


def test_all_variables_in_their_units() -> None:
    series = SERIES * [1, 100] + [1000, 0]
    model = forecast.Forecaster(24, 2, units=16, seed=0).fit(series[:500], 25)
    judged = model.evaluate(series, slice(500, None))
    errors = np.abs(judged.middle - judged.truth).mean(axis=(0, 1))
    assert judged.middle.shape == (199, 2, 2) and errors[0] < 0.2 and errors[1] < 80


def test_pandas_names_variables() -> None:
    pd = pytest.importorskip("pandas")
    index = pd.date_range("2026-01-01", periods=700, freq="h")
    frame = pd.DataFrame(SERIES, columns=["sun", "load"], index=index)
    named, numbered = small(targets="load").fit(frame, 2), small().fit(SERIES, 2)
    np.testing.assert_allclose(named.predict(frame), numbered.predict(SERIES), rtol=1e-6)
    with pytest.raises(ValueError, match="series has the columns load, sun, fit had sun, load"):
        named.predict(frame[["load", "sun"]])
    folds = list(forecast.folds(700, 400, 100))
    ours = small(targets="load").backtest(frame, folds, epochs=1)
    theirs = small().backtest(SERIES, folds, epochs=1)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.quantiles, b.quantiles, rtol=1e-5)


def test_validation_ends_the_training_with_the_best_epoch() -> None:
    noise = RNG.standard_normal(200)
    model = small(targets=None, units=32).fit(noise, 80, validation=0.3, patience=2, learning_rate=0.02)
    held = model.history["val_loss"]
    assert len(held) == int(np.argmin(held)) + 4 < 80
    again = small(targets=None, units=32).fit(noise, int(np.argmin(held)) + 1, validation=0.3, learning_rate=0.02)
    np.testing.assert_array_equal(model.predict(noise), again.predict(noise))


# ------------------------------------------------------------------------------------ the future
class Leaking(forecast.Forecaster):
    """Scales by the statistics of all rows: the mistake that back-testing must not make."""

    whole: Any = None

    def _fit_fold(self, series: Any, fold: Any, options: Any) -> None:
        type(self).whole = series
        super()._fit_fold(series, fold, options)

    def _statistics(self, x: Any, cut: int) -> Any:
        return forecast.StandardScaler().fit(self.whole)


def changed_by_the_future(kind: type[forecast.Forecaster]) -> bool:
    """Whether a forecast, or the scaling, changes with rows of the series that come after it."""
    folds = list(forecast.folds(300, 150, 50))
    whole = kind(12, 3, **SMALL).backtest(SERIES[:300], folds, epochs=1)
    for fold, judged in zip(folds, whole, strict=True):
        for row in (fold.test.start, fold.test.start + 20):
            other = SERIES[:300].copy()
            other[row:] = 1e3 * RNG.standard_normal((300 - row, 2))
            again = kind(12, 3, **SMALL).backtest(other, [fold], epochs=1)[0]
            known = judged.rows <= row  # made from the rows before
            assert known.any() and (again.truth[known][-1] != judged.truth[known][-1]).all()
            if not np.array_equal(again.quantiles[known], judged.quantiles[known]):
                return True
    return False


def test_the_future_changes_no_forecast_and_a_leak_would_be_seen() -> None:
    assert not changed_by_the_future(forecast.Forecaster)
    assert changed_by_the_future(Leaking)


def test_rows_held_out_do_not_enter_the_scaling() -> None:
    other = SERIES.copy()
    other[630:] = 1e6
    models = [small().fit(series, 1, validation=0.1) for series in (SERIES, other)]
    for name in ("scaler.offset", "scaler.scale"):
        np.testing.assert_array_equal(models[0].state_dict()[name], models[1].state_dict()[name])
    assert models[0].state_dict()["scaler.offset"] == pytest.approx(SERIES[:630].mean(axis=0))


def test_a_backtest_is_a_fit_and_an_evaluation_and_changes_nothing() -> None:
    folds = list(forecast.folds(400, 200, 100, keep=150))
    model = small()
    judged = model.backtest(SERIES, folds, season=24, epochs=2)
    assert model.model is None
    for fold, found in zip(folds, judged, strict=True):
        by_hand = small().fit(SERIES[fold.train], 2)
        expected = by_hand.evaluate(SERIES[: fold.test.stop], fold.test)
        np.testing.assert_array_equal(found.quantiles, expected.quantiles)
    joined = forecast.Judged.joined(judged)
    assert len(joined.rows) == sum(len(one.rows) for one in judged) and joined.seasonal is not None
    assert joined.mae == pytest.approx(np.mean([one.mae for one in judged]))


# ------------------------------------------------------------------------------------ judgements
def test_judgements_by_hand() -> None:
    wanted, rows = np.arange(20.0)[:, None], np.array([8, 9])
    last, seasonal = naive_forecasts(wanted, rows, 5, 3)
    assert last[..., 0].tolist() == [[7] * 5, [8] * 5]
    assert seasonal is not None and seasonal[..., 0].tolist() == [[5, 6, 7, 5, 6], [6, 7, 8, 6, 7]]
    truth = np.array([[[1.0], [5.0]]])
    quantiles = np.array([[[[0.0, 2.0, 4.0]], [[1.0, 2.0, 3.0]]]])
    judged = forecast.Judged(rows[:1], truth, quantiles, (0.1, 0.5, 0.9), np.zeros((1, 2, 1)))
    assert judged.mae == 2 and judged.mae_by_step.tolist() == [1, 3] and judged.naive_mae == 3
    assert judged.coverage == {(0.1, 0.9): 0.5} and judged.seasonal_mae is None
    expected = fl.losses.Quantile((0.1, 0.5, 0.9))(quantiles, truth)[0]
    assert judged.quantile_loss == pytest.approx(expected)


# ------------------------------------------------------------------------------------ files, pictures
def test_files_and_pickles_give_the_same_bits(fitted: forecast.Forecaster, tmp_path: Path) -> None:
    fitted.save(tmp_path / "f")
    for again in (fl.load(tmp_path / "f"), pickle.loads(pickle.dumps(fitted))):
        assert repr(again) == repr(fitted)
        np.testing.assert_array_equal(again.predict(SERIES), fitted.predict(SERIES))
    with pytest.raises(ValueError, match="no parameters to save yet"):
        small().save(tmp_path / "empty")
    with pytest.raises(RuntimeError, match="not fitted yet"):
        small().predict(SERIES)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('"units": [24]', '"units": [99999999]', "units 99999999"),
        ('"horizon": 6', '"horizon": 99999999', "horizon 99999999"),
        ('"built for": [2, [1], []]', '"built for": [99999999, [1], []]', "built for 99999999"),
        ('"built for": [2, [1], []]', '"built for": [2]', "does not fit"),
        ('"scaler": "standard"', '"scaler": "os.system"', "scaler 'os.system' is not known"),
    ],
)
def test_altered_files_are_refused(
    before: str, after: str, told: str, fitted: forecast.Forecaster, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "f")
    data = (tmp_path / "f").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert before in header["__metadata__"]["fastlstm"]
    header["__metadata__"]["fastlstm"] = header["__metadata__"]["fastlstm"].replace(before, after)
    text = json.dumps(header).encode()
    (tmp_path / "bad").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(fl.files.FileError, match=told):
        fl.load(tmp_path / "bad")


def test_a_picture(fitted: forecast.Forecaster, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    fitted.plot(SERIES[:600], tmp_path / "with.svg", truth=SERIES[600:606])
    text = (tmp_path / "with.svg").read_text()
    assert "0.1 to 0.9" in text or text.count("<path") > 20
    fitted.plot(SERIES[:600], tmp_path / "without.svg")
    assert text.count("<path") > (tmp_path / "without.svg").read_text().count("<path")
    with pytest.raises(ValueError, match="variable must lie between 0 and 0"):
        fitted.plot(SERIES, tmp_path / "no.svg", variable=1)
    with pytest.raises(ValueError, match="its ending must be one of"):
        fitted.plot(SERIES, tmp_path / "no.xyz")


# ------------------------------------------------------------------------------------ Ctrl-C
class Interrupt(Callback):
    """Ctrl-C in the second epoch."""

    def on_epoch_begin(self, loop: Any) -> None:
        if loop.epochs == 1:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_a_fit_with_what_was_reached_and_a_back_test_as_a_whole() -> None:
    model = small().fit(SERIES, 9, callbacks=[Interrupt()])
    assert model.stopped_by == signal.SIGINT and len(model.history["loss"]) == 1
    assert model.predict(SERIES).shape == (3, 1, 3)
    with pytest.raises(KeyboardInterrupt):
        small().backtest(SERIES, forecast.folds(700, 400, 100), epochs=9, callbacks=[Interrupt()])


# ------------------------------------------------------------------------------------ bad input
HOLES = SERIES.copy()
HOLES[17, 1] = np.nan
BAD: dict[str, tuple[Any, str]] = {
    "NaN": (lambda m: m.fit(HOLES), "NaN or infinity, first in row 17"),
    "NaN in a prediction": (lambda m: m.predict(HOLES), "first in row 17"),
    "too short": (lambda m: m.fit(SERIES[:14]), r"14 rows, a window needs inputs \+ horizon = 12 \+ 3"),
    "too short to predict": (lambda m: m.predict(SERIES[:11]), "11 rows, a forecast is made from inputs=12"),
    "another width": (lambda m: m.predict(SERIES[:, :1]), "1 variables, Forecaster was fitted to 2"),
    "no such variable": (lambda m: m.fit(SERIES[:, :1]), "no variable 1"),
    "too little held out": (lambda m: m.fit(SERIES, validation=0.002), "holds out 1 of 700 rows"),
    "no share": (lambda m: m.fit(SERIES, validation=1.0), "validation must be at least 0 and below 1"),
    "a flag": (lambda m: m.fit(SERIES, verbose="no"), "verbose must be True or False"),
    "rows without a past": (lambda m: m.evaluate(SERIES, slice(5, 50)), "rows 5 to 50 cannot be judged"),
    "a season without a past": (lambda m: m.evaluate(SERIES, slice(20, 50), season=24), "and a season"),
    "a fold of others": (lambda m: m.backtest(SERIES, forecast.folds(900, 800, 50)), "does not lie in order"),
    "a long season": (lambda m: m.backtest(SERIES, forecast.folds(700, 100, 50), season=101), "is longer than the 100"),
    "quantiles that fall": (lambda m: small(quantiles=(0.9, 0.1)), "quantiles must rise"),
    "no quantile": (lambda m: small(quantiles=(0.5, 1.0)), "between 0 and 1"),
    "no layers": (lambda m: small(units=()), "units names no layer"),
    "an unknown scaler": (lambda m: small(scaler="robust"), "standard, minmax, none"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_changes(name: str) -> None:
    call, told = BAD[name]
    model = small().fit(SERIES, 1)
    before = model.state_dict()
    with pytest.raises((TypeError, ValueError), match=told):
        call(model)
    assert all(np.array_equal(before[n], p) for n, p in model.state_dict().items())
