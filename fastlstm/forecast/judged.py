"""Forecasts beside what came, and beside what would have been forecast without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..layout import Array


@dataclass
class Judged:
    """Forecasts of N windows beside the truth, all in the series' unit.

    Parameters
    ----------
    rows : (N,) array
        The first row of the series that each window forecasts.
    truth : (N, horizon, K) array
    quantiles : (N, horizon, K, Q) array
    levels : tuple of float
        The Q quantiles.
    naive : (N, horizon, K) array
        The last known value, for all steps.
    seasonal : (N, horizon, K) array, optional
        The value of one season before.
    """

    rows: Array
    truth: Array
    quantiles: Array
    levels: tuple[float, ...]
    naive: Array
    seasonal: Array | None = None

    @property
    def middle(self) -> Array:
        """(N, horizon, K): the quantile nearest to the median."""
        at = int(np.argmin(np.abs(np.array(self.levels) - 0.5)))
        middle: Array = self.quantiles[..., at]
        return middle

    @property
    def mae(self) -> float:
        """Mean absolute error of `middle`."""
        return _mae(self.middle, self.truth)

    @property
    def mae_by_step(self) -> Array:
        """(horizon,): mean absolute error one step ahead, two steps ahead and so on."""
        by_step: Array = np.abs(self.middle - self.truth).mean(axis=(0, 2))
        return by_step

    @property
    def naive_mae(self) -> float:
        """Mean absolute error of the last known value."""
        return _mae(self.naive, self.truth)

    @property
    def seasonal_mae(self) -> float | None:
        """Mean absolute error of the value of one season before; None where no season was given."""
        return None if self.seasonal is None else _mae(self.seasonal, self.truth)

    @property
    def quantile_loss(self) -> float:
        """Mean pinball loss over all quantiles (Koenker and Bassett 1978)."""
        under = self.truth[..., None] - self.quantiles
        q = np.array(self.levels)
        return float(np.maximum(q * under, (q - 1) * under).mean())

    @property
    def coverage(self) -> dict[tuple[float, float], float]:
        """For each pair of quantiles, lowest with highest first: the share of the truth that lies between them.

        Quantiles q and 1 - q that are right have a share of 1 - 2 q.
        """
        shares, Q = {}, len(self.levels)
        for low in range(Q // 2):
            high = Q - 1 - low
            inside = (self.quantiles[..., low] <= self.truth) & (self.truth <= self.quantiles[..., high])
            shares[self.levels[low], self.levels[high]] = float(inside.mean())
        return shares

    def __str__(self) -> str:
        lines = [f"{len(self.rows)} forecasts of {self.truth.shape[1]} steps", f"mean absolute error  {self.mae:.4g}"]
        lines.append(f"last value           {self.naive_mae:.4g}")
        if self.seasonal is not None:
            lines.append(f"one season before    {self.seasonal_mae:.4g}")
        for (low, high), share in self.coverage.items():
            lines.append(f"between {low:g} and {high:g}: {share:.0%} of the truth, {high - low:.0%} expected")
        return "\n".join(lines)

    @classmethod
    def joined(cls, parts: Sequence[Judged]) -> Judged:
        """The forecasts of several folds together."""

        def of(name: str) -> Array:
            whole: Array = np.concatenate([getattr(part, name) for part in parts])
            return whole

        seasonal = None if any(part.seasonal is None for part in parts) else of("seasonal")
        return cls(of("rows"), of("truth"), of("quantiles"), parts[0].levels, of("naive"), seasonal)


def _mae(forecast: Array, truth: Array) -> float:
    return float(np.abs(forecast - truth).mean())


def naive_forecasts(wanted: Array, rows: Array, horizon: int, season: int | None) -> tuple[Array, Array | None]:
    """(last known values, values of one season before) for windows that begin to forecast at these rows.

    Parameters
    ----------
    wanted : (T, K) array
    rows : (N,) array
    horizon : int
    season : int, optional
        In rows; no more than the first of `rows`.
    """
    steps = np.arange(horizon)
    last: Array = np.repeat(wanted[rows - 1][:, None], horizon, axis=1)
    if season is None:
        return last, None
    back = season * (steps // season + 1)  # the latest row of the same place in the season that is known
    return last, wanted[rows[:, None] + steps - back]
