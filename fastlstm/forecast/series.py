"""Forecasting: windows of a series, scaling, and back-testing that never sees the future. See docs/forecast.md.

Letters: T rows of the series (points in time), V variables, N windows, K variables to be forecast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..layout import Array
from ..named import Named, find
from ..validation import as_array, float_dtype, is_real, positive

Columns = Sequence[int | str] | int | str | None


def values_of(series: Any, dtype: Any = None) -> Array:
    """The numbers of a series, (T, V); not copied where they have the dtype.

    Parameters
    ----------
    series : (T,) or (T, V) array, or a pandas Series or DataFrame
        In order of time, without gaps. An integer series becomes float64 where no dtype is asked for.
    dtype : {"float32", "float64"}, optional

    Raises
    ------
    TypeError, ValueError
        It holds no real numbers, NaN or infinity; has another rank; or its index does not rise.
    """
    index = getattr(series, "index", None)
    if index is not None and hasattr(index, "is_monotonic_increasing") and not index.is_monotonic_increasing:
        raise ValueError("the index of the series does not rise: sort it by time with series.sort_index()")
    x = as_array(series, "series")
    if not is_real(x.dtype):
        raise TypeError(f"series must hold real numbers, got dtype {x.dtype}")
    if x.ndim not in (1, 2) or not x.size:
        raise ValueError(f"series has shape {x.shape}, expected (T,) or (T, V): a row for each point in time")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        first = int(np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))[0])
        raise ValueError(f"series holds NaN or infinity, first in row {first}: fill gaps or cut the series there")
    if dtype is not None:
        dtype = float_dtype(dtype)
    elif x.dtype.newbyteorder("=") not in (np.float32, np.float64):
        dtype = np.dtype("float64")
    x = x if dtype is None else x.astype(dtype, copy=False)
    return x[:, None] if x.ndim == 1 else x


def rows_of(series: Any, rows: slice) -> Any:
    """Some rows of a series, as a series of the same kind."""
    return series.iloc[rows] if hasattr(series, "iloc") else series[rows]


def columns_of(series: Any, columns: Columns) -> list[int]:
    """The places of variables given by number or, in a DataFrame, by name; None: all."""
    shape = np.shape(series)
    V = shape[1] if len(shape) == 2 else 1
    if columns is None:
        return list(range(V))
    names = list(getattr(series, "columns", []))
    places = []
    for column in [columns] if isinstance(columns, (int, str)) else columns:
        if column in names:
            places.append(names.index(column))
        elif isinstance(column, (int, np.integer)) and not isinstance(column, bool) and -V <= column < V:
            places.append(int(column) % V)
        else:
            known = f", or one of {', '.join(map(str, names))}" if names else ""
            raise ValueError(f"the series has no variable {column!r}: expected a number from 0 to {V - 1}{known}")
    if not places:
        raise ValueError("targets names no variable: None stands for all")
    return places


def windows(
    series: Any, inputs: int, horizon: int = 1, *, targets: Columns = None, stride: int = 1, dtype: Any = "float32"
) -> tuple[Array, Array]:
    """Pairs of `inputs` rows and the `horizon` rows after them.

    Parameters
    ----------
    series : (T,) or (T, V) array, or a pandas Series or DataFrame
        In order of time, without NaN.
    inputs, horizon : int
        How many rows a forecast is made from, and how many are forecast.
    targets : int, str, or a list of these, optional
        The K variables to be forecast, by number or by a DataFrame's name; all where it is not given.
    stride : int
        Rows from one window's beginning to the next one's.
    dtype : {"float32", "float64"}

    Returns
    -------
    x : (N, inputs, V) array
    y : (N, horizon, K) array
        Both are read-only views of one copy of the series at most: windows overlap in memory.

    Raises
    ------
    TypeError, ValueError
        The series is none, holds NaN, or is shorter than a window; a variable is unknown.
    """
    inputs, horizon, stride = positive(inputs, "inputs"), positive(horizon, "horizon"), positive(stride, "stride")
    places = columns_of(series, targets)
    x = values_of(series, dtype)
    if len(x) < inputs + horizon:
        raise ValueError(
            f"series has {len(x)} rows, a window needs inputs + horizon = {inputs} + {horizon} = {inputs + horizon}"
        )
    wanted = x if places == list(range(x.shape[1])) else x[:, places]
    past, future = x[: len(x) - horizon], wanted[inputs:]
    return _sliding(past, inputs, stride), _sliding(future, horizon, stride)


def _sliding(x: Array, length: int, stride: int) -> Array:
    """(T, V) -> (N, length, V), a view."""
    view: Array = np.moveaxis(sliding_window_view(x, length, axis=0), -1, 1)[::stride]
    return view


# ------------------------------------------------------------------------------------------------------------- scaling
class Scaler(Named):
    """Base of the scalers: each variable by an offset and a scale of its own, (V,) float64, which `fit` finds."""

    def __init__(self) -> None:
        self.offset: Array | None = None
        self.scale: Array | None = None

    def _statistics(self, x: Array) -> tuple[Array, Array]:
        """Offset and scale of x (T, V) float64."""
        raise NotImplementedError

    def fit(self, series: Any) -> Scaler:
        """Find offset and scale of a series (T, V) or (T,): of the rows to train on, and of no others."""
        x = values_of(series, "float64")
        offset, scale = self._statistics(x)
        constant = x.min(axis=0) == x.max(axis=0)  # its deviation may be a rounding error; it becomes 0
        self.offset, self.scale = offset, np.where(constant, 1.0, scale)
        return self

    def _fitted(self, V: int) -> tuple[Array, Array]:
        if self.offset is None or self.scale is None:
            raise RuntimeError(f"{self!r} has no statistics yet: call fit(series) with the training rows first")
        if len(self.offset) != V:
            raise ValueError(f"{self!r} was fitted to {len(self.offset)} variables, got {V}")
        return self.offset, self.scale

    def transform(self, series: Any) -> Array:
        """The scaled series, (T, V), in its dtype (float64 for integers)."""
        x = values_of(series)
        offset, scale = self._fitted(x.shape[1])
        return ((x - offset) / scale).astype(x.dtype, copy=False)

    def inverse(self, y: Any) -> Array:
        """Forecasts (..., V) in the series' unit, in their dtype."""
        y = as_array(y, "y")
        offset, scale = self._fitted(y.shape[-1] if y.ndim else 1)
        series: Array = (y * scale + offset).astype(y.dtype if y.dtype.kind == "f" else np.float64, copy=False)
        return series

    def of(self, places: Sequence[int]) -> Scaler:
        """The fitted scaler of these variables alone: for forecasts of some of them."""
        offset, scale = self._fitted(len(self.offset) if self.offset is not None else 0)
        part = find(self.get_config(), Scaler, SCALERS, "scaler")
        part.offset, part.scale = offset[list(places)], scale[list(places)]
        return part


class StandardScaler(Scaler):
    """(x - mean) / standard deviation of each variable."""

    name: ClassVar[str] = "standard"

    def _statistics(self, x: Array) -> tuple[Array, Array]:
        return x.mean(axis=0), x.std(axis=0)


class MinMaxScaler(Scaler):
    """(x - least) / (largest - least) of each variable: 0 to 1 over the rows of `fit`, beyond that elsewhere."""

    name: ClassVar[str] = "minmax"

    def _statistics(self, x: Array) -> tuple[Array, Array]:
        return x.min(axis=0), x.max(axis=0) - x.min(axis=0)


class NoScaler(Scaler):
    """Leaves a series as it is."""

    name: ClassVar[str] = "none"

    def _statistics(self, x: Array) -> tuple[Array, Array]:
        return np.zeros(x.shape[1]), np.ones(x.shape[1])


SCALERS: dict[str, type[Scaler]] = {kind.name: kind for kind in (StandardScaler, MinMaxScaler, NoScaler)}


# -------------------------------------------------------------------------------------------------------- back-testing
class Fold(NamedTuple):
    """Rows of a series to train on, and the rows right after them to be forecast."""

    train: slice
    test: slice


class FoldWindows(NamedTuple):
    """Scaled windows of a fold, and what turns forecasts of the targets back into the series' unit."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    scaler: Scaler


def folds(length: int, first: int, test: int, *, step: int | None = None, keep: int | None = None) -> Iterator[Fold]:
    """Back-testing by a rolling origin (Tashman 2000): each fold trains on the past and is judged on what follows.

    Parameters
    ----------
    length : int
        T, the rows of the series.
    first : int
        Rows before the first origin.
    test : int
        Rows that each fold is judged on.
    step : int, optional
        Rows from one origin to the next; `test` where it is not given, so that no row is judged twice.
    keep : int, optional
        Train on the last `keep` rows before the origin (a rolling window); on all where it is not given (expanding).

    Returns
    -------
    iterator of Fold
        Folds whose test rows end within the series.

    Raises
    ------
    TypeError, ValueError
        A number is none or too small, or not even one fold fits.
    """
    length, first, test = positive(length, "length"), positive(first, "first"), positive(test, "test")
    step = test if step is None else positive(step, "step")
    keep = None if keep is None else positive(keep, "keep")
    if first + test > length:
        raise ValueError(f"the series has {length} rows, the first fold needs first + test = {first} + {test}")
    origins = range(first, length - test + 1, step)
    return (Fold(slice(0 if keep is None else max(0, at - keep), at), slice(at, at + test)) for at in origins)


def fold_windows(
    series: Any,
    fold: Fold,
    inputs: int,
    horizon: int = 1,
    *,
    targets: Columns = None,
    scaler: str | dict[str, Any] | Scaler = "standard",
    dtype: Any = "float32",
) -> FoldWindows:
    """A fold's windows. Whatever a training sees, statistics of the scaler included, comes from `fold.train` alone.

    A test window's targets lie within `fold.test`; its inputs are the rows right before them, which are known by then.

    Parameters
    ----------
    series, inputs, horizon, targets, dtype
        As for `windows`.
    fold : Fold
    scaler : {"standard", "minmax", "none"}, configuration or Scaler
        Fitted anew here; one that is handed in stays as it is.

    Raises
    ------
    TypeError, ValueError
        As `windows`; or the fold's parts are too short for a window.
    """
    inputs, horizon = positive(inputs, "inputs"), positive(horizon, "horizon")
    places = columns_of(series, targets)
    x = values_of(series)
    train, test = fold
    if not 0 <= train.start < train.stop <= test.start < test.stop <= len(x):
        raise ValueError(f"{fold} does not lie in order within a series of {len(x)} rows")
    for name, rows, least in (
        ("train", train.stop - train.start, inputs + horizon),
        ("test", test.stop - test.start, horizon),
    ):
        if rows < least:
            raise ValueError(f"fold.{name} has {rows} rows, needed are {least} for inputs={inputs}, horizon={horizon}")
    if test.start < inputs:
        raise ValueError(f"fold.test begins in row {test.start}, its first window needs inputs={inputs} rows before it")
    fitted = find(find(scaler, Scaler, SCALERS, "scaler").get_config(), Scaler, SCALERS, "scaler").fit(x[train])
    known = fitted.transform(x[train])
    judged = fitted.transform(x[test.start - inputs : test.stop])
    pairs = [windows(part, inputs, horizon, targets=places, dtype=dtype) for part in (known, judged)]
    return FoldWindows(*pairs[0], *pairs[1], fitted.of(places))
