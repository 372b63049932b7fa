"""Forecasting a series with confidence bands: the next day of an hourly load, and how often the bands hold.

The load has a day and a week, and noise that is four times as large by day as by night. An LSTM gives the quantiles
0.1, 0.5 and 0.9 of the next 24 hours. Back-testing moves the origin through the last weeks. Each fold trains on its
past alone and is judged on the week after it, beside the load of the day before. An 80 % band should hold the truth in
80 % of the hours.

    python forecast_bands.py                # the series made here
    python forecast_bands.py load.csv       # the last column of a CSV file, in order of time, one row an hour

Expected output, after half a minute:

    3,360 hours, 3 folds of a week each
    435 forecasts of 24 steps
    mean absolute error  1.108
    last value           7.755
    one season before    2.163
    between 0.1 and 0.9: 78% of the truth, 80% expected
    width of the band of the last day: 1.8 at its narrowest, 5.0 at its widest
    picture in forecast_bands.png
"""

import csv
import sys

import numpy as np

from fastlstm import forecast

INPUTS, HORIZON, DAY, WEEK = 72, 24, 24, 168
UNITS, EPOCHS, FOLDS = 32, 15, 3
PICTURE = "forecast_bands.png"


def make_series(weeks=20, seed=0):
    """((hours,) load, (hours,) standard deviation of its noise)."""
    hours = np.arange(weeks * WEEK)
    daylight = 0.5 - 0.5 * np.cos(2 * np.pi * hours / DAY)
    weekend = (hours // DAY) % 7 >= 5
    width = 0.5 + 1.5 * daylight
    load = 50 + 20 * daylight - 8 * weekend * daylight
    return load + width * np.random.default_rng(seed).standard_normal(len(hours)), width


def read_series(path):
    """(hours,) the numbers of the last column of a CSV file, whose first line may be a heading."""
    with open(path, encoding="utf-8", newline="") as file:
        cells = [row[-1] for row in csv.reader(file) if row]
    try:
        return np.array(cells[1:] if not is_number(cells[0]) else cells, float)
    except ValueError as error:
        raise SystemExit(f"{path}: the last column is not a number everywhere ({error})") from None


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def with_calendar(series):
    """(hours, 5): the series, and the hour of the day and of the week as points on circles."""
    hours = np.arange(len(series))
    angles = [2 * np.pi * hours / period for period in (DAY, WEEK)]
    return np.stack([series, *(wave(angle) for angle in angles for wave in (np.sin, np.cos))], axis=1)


def main(path=None, weeks=20, epochs=EPOCHS):
    """(Judged of all folds, width of the band by hour of the day), after printing and drawing."""
    series = with_calendar(make_series(weeks)[0] if path is None else read_series(path))
    forecaster = forecast.Forecaster(INPUTS, HORIZON, units=UNITS, targets=0, seed=0)
    first = len(series) - FOLDS * WEEK
    folds = forecast.folds(len(series), first=first, test=WEEK)
    parts = forecaster.backtest(series, folds, season=DAY, epochs=epochs, learning_rate=5e-3)
    judged = forecast.Judged.joined(parts)
    print(f"{len(series):,} hours, {FOLDS} folds of a week each")
    print(judged)
    forecaster.fit(series[:-HORIZON], epochs=epochs, learning_rate=5e-3)
    bands = forecaster.predict(series[:-HORIZON])[:, 0]  # (24, 3)
    widths = bands[:, 2] - bands[:, 0]
    print(f"width of the band of the last day: {widths.min():.1f} at its narrowest, {widths.max():.1f} at its widest")
    try:
        forecaster.plot(series[:-HORIZON], PICTURE, truth=series[-HORIZON:])
        print(f"picture in {PICTURE}")
    except ImportError:
        print(f"no {PICTURE}: matplotlib is not installed")
    return judged, widths


if __name__ == "__main__":
    main(*sys.argv[1:])
