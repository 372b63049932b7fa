"""How good forecasts are: on known rows, and by training on the past of each fold."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..validation import positive
from .judged import Judged, naive_forecasts
from .series import Fold, fold_windows, rows_of, windows


class Judging:
    """`evaluate` and `backtest` of a forecaster."""

    inputs: int
    horizon: int
    quantiles: tuple[float, ...]
    targets: Any
    scaler: str
    seed: int | None
    stopped_by: int | None
    _backend: str
    _fitted: Any
    _series: Any
    _quantiles: Any
    fit: Any
    to_config: Any
    from_config: Any

    def evaluate(self, series: Any, rows: slice | None = None, *, season: int | None = None) -> Judged:
        """Forecasts of rows that are known, beside them.

        Parameters
        ----------
        series : (T,) or (T, V) array, or a pandas Series or DataFrame
        rows : slice, optional
            The rows that are forecast, from the rows right before them; all but the first `inputs` unless given. They
            should be none that the model was trained on.
        season : int, optional
            Rows of a season: the judgement then has the seasonal naive forecast too.

        Returns
        -------
        judged : Judged

        Raises
        ------
        TypeError, ValueError
            The series does not fit, or there are too few rows.
        """
        x = self._series(series)
        _, (_, places, _) = self._fitted()
        begin, end, _ = (rows or slice(self.inputs, None)).indices(len(x))
        season = None if season is None else positive(season, "season")
        if begin < max(self.inputs, season or 0) or end - begin < self.horizon:
            raise ValueError(
                f"rows {begin} to {end} cannot be judged: before them must lie inputs={self.inputs} rows and a season, "
                f"and they must be at least horizon={self.horizon}"
            )
        known, wanted = x[begin - self.inputs : end].astype(np.float64), x[:, list(places)].astype(np.float64)
        past, truth = windows(known, self.inputs, self.horizon, targets=list(places), dtype="float64")
        at = np.arange(begin, begin + len(past))
        quantiles = np.concatenate([self._quantiles(past[i : i + 1024]) for i in range(0, len(past), 1024)])
        return Judged(at, truth, quantiles, self.quantiles, *naive_forecasts(wanted, at, self.horizon, season))

    def backtest(self, series: Any, folds: Iterable[Fold], *, season: int | None = None, **fit: Any) -> list[Judged]:
        """Train on each fold's past and judge on the rows after it; this forecaster stays as it is.

        Parameters
        ----------
        series : (T,) or (T, V) array, or a pandas Series or DataFrame
        folds : iterable of Fold
            See `fastlstm.forecast.folds`.
        season : int, optional
            As for `evaluate`.
        **fit
            Options of `fit`.

        Returns
        -------
        judged : list of Judged
            One for each fold; ``Judged.joined`` makes one of them.

        Raises
        ------
        TypeError, ValueError
            The series or a fold does not fit.
        KeyboardInterrupt
            Ctrl-C ends the whole back-test.
        """
        parts, found = list(folds), []
        for fold in parts:  # what does not fit is told before the first training
            self._check_fold(series, fold, season)
        for fold in parts:
            one = type(self).from_config(self.to_config(), backend=self._backend, seed=self.seed)
            one._fit_fold(series, fold, fit)
            if one.stopped_by is not None:
                signal.raise_signal(one.stopped_by)
            found.append(one.evaluate(rows_of(series, slice(0, fold.test.stop)), fold.test, season=season))
        return found

    def _check_fold(self, series: Any, fold: Fold, season: int | None) -> None:
        """Raise TypeError or ValueError where the series, the fold or the season do not fit."""
        fold_windows(series, fold, self.inputs, self.horizon, targets=self.targets, scaler=self.scaler)
        if season is not None and positive(season, "season") > fold.test.start:
            raise ValueError(f"season={season} is longer than the {fold.test.start} rows before fold.test")

    def _fit_fold(self, series: Any, fold: Fold, options: dict[str, Any]) -> None:
        """Train on the fold's past alone."""
        self.fit(rows_of(series, fold.train), **options)
