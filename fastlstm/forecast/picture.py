"""The picture of a forecast: the past, the median, and bands between pairs of quantiles."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .series import values_of

if TYPE_CHECKING:
    from .model import Forecaster


def draw(
    forecaster: Forecaster,
    series: Any,
    path: str | os.PathLike[str],
    *,
    variable: int = 0,
    truth: Any = None,
    past: int | None = None,
    title: str = "",
) -> None:
    """Draw what follows a series.

    Parameters
    ----------
    forecaster : Forecaster
        Fitted.
    series : (T,) or (T, V) array, or a pandas Series or DataFrame
    path : path
        Its ending says the kind of picture: .png, .svg, .pdf and others. Written atomically.
    variable : int
        Which of the K forecast variables.
    truth : (horizon,) or (horizon, V) array, optional
        The rows that came, to be drawn beside the forecast.
    past : int, optional
        How many rows before the forecast are drawn; three times `inputs` unless given.
    title : str

    Raises
    ------
    ImportError, OSError, ValueError
        matplotlib is absent, the file cannot be written, or there is no such variable.
    """
    from ..files import write_atomically
    from ..plot import GRID, HELD_OUT, TRAINING, check_kind, drawn, figure, own_style

    check_kind(path)
    _, (_, places, _) = forecaster._fitted()
    if not 0 <= variable < len(places):
        raise ValueError(f"variable must lie between 0 and {len(places) - 1}, the forecast variables, got {variable}")
    quantiles = forecaster.predict(series)[:, variable]
    shown = values_of(series)[-(past or 3 * forecaster.inputs) :, places[variable]]
    ahead = np.arange(1, forecaster.horizon + 1)
    levels = forecaster.quantiles
    middle = int(np.argmin(np.abs(np.array(levels) - 0.5)))
    with own_style():
        fig = figure()
        axes = fig.add_subplot()
        axes.plot(np.arange(1 - len(shown), 1), shown, color=TRAINING, linewidth=1.4, label="series")
        for low in range(len(levels) // 2):
            high = len(levels) - 1 - low
            label = f"{levels[low]:g} to {levels[high]:g}"
            axes.fill_between(
                ahead, quantiles[:, low], quantiles[:, high], color=HELD_OUT, alpha=0.2, linewidth=0, label=label
            )
        axes.plot(ahead, quantiles[:, middle], color=HELD_OUT, linewidth=1.8, label=f"forecast ({levels[middle]:g})")
        if truth is not None:
            came = values_of(truth)
            came = came[:, places[variable] if came.shape[1] > 1 else 0]
            axes.plot(ahead[: len(came)], came[: len(ahead)], color=TRAINING, linestyle="--", label="what came")
        axes.set(xlabel="steps from the last known row", title=title)
        axes.grid(color=GRID, linewidth=0.6)
        axes.legend(frameon=False)
        write_atomically(path, drawn(fig, path))
