"""A forecasting model: scaling, an LSTM over a window, quantiles of the steps that follow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from .. import nn
from .._backends import choose
from ..callbacks import EarlyStopping
from ..layer import Layer
from ..layout import Array
from ..named import find
from ..sequential import Sequential
from ..validation import flag, number, positive, seed_or_none
from .backtest import Judging
from .bands import BandLoss, Bands, repeated
from .series import SCALERS, Columns, Scaler, columns_of, values_of, windows


class Forecaster(Judging, Layer):
    """Forecasts several steps of a series of one or several variables, with bands.

    An LSTM reads the last `inputs` rows, and a dense layer gives quantiles of the next `horizon` rows, which cannot
    cross: each lies a positive distance above the one below.

    Parameters
    ----------
    inputs, horizon : int
        How many rows a forecast is made from, and how many are forecast.
    units : int, or tuple of int
        Of each LSTM layer.
    quantiles : sequence of float
        Between 0 and 1, rising. The one nearest to 0.5 is the forecast, pairs from outside in are bands.
    targets : int, str, or a list of these, optional
        The K variables to be forecast, by number or by a DataFrame's name; all where it is not given.
    scaler : {"standard", "minmax", "none"}
        How variables are scaled inside, by statistics of the rows that are trained on.
    dropout : float
        Share of each LSTM layer's outputs that is dropped in training.
    dtype : {"float32", "float64"}
    backend : str
        "auto", or a name from `fastlstm.backends()`.
    seed : int, optional
        Of the initial parameters, the order of the windows, and dropout.

    Attributes
    ----------
    model : Sequential
        Once fitted: scaled windows (B, inputs, V) -> scaled quantiles (B, horizon * K, Q).
    history : History
        Of the last `fit`: the quantile loss of scaled values, by epoch.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; the message says which.
    """

    def __init__(
        self,
        inputs: int,
        horizon: int = 1,
        *,
        units: Any = (64,),
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        targets: Columns = None,
        scaler: str = "standard",
        dropout: float = 0.0,
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(dtype, backend)
        self.inputs, self.horizon = positive(inputs, "inputs"), positive(horizon, "horizon")
        sizes = units if isinstance(units, (tuple, list)) else [units]
        self.units = tuple(positive(one, "units") for one in sizes)
        if not self.units:
            raise ValueError("units names no layer: (64,) is one of 64 units")
        self.quantiles = tuple(float(q) for q in quantiles)
        if not self.quantiles or list(self.quantiles) != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles must rise, got {tuple(quantiles)}")
        self.loss = BandLoss(self.quantiles)  # raises where they do not lie between 0 and 1
        self.targets = list(targets) if isinstance(targets, tuple) else targets
        self.scaler = find(scaler, Scaler, SCALERS, "scaler").name
        self.dropout = number(dropout, "dropout", below=1.0)
        self.seed = seed_or_none(seed)
        self.model: Sequential | None = None
        self.history: Any = None
        self.stopped_by: int | None = None  # the signal that ended the last `fit`
        self._shape: tuple[int, tuple[int, ...], tuple[str, ...]] | None = None  # V, places of targets, names
        self._connect()

    def _choose(self) -> ModuleType:
        return choose(self._backend, self.dtype.name)

    # ------------------------------------------------------------------------------------------------------- parameters
    def build(self, shape: Any) -> None:
        """Make the parameters for a series: (V, places of the targets, names of the variables or none)."""
        V, places, names = shape
        self._take(self._made(int(V), len(places)), NoStatistics(int(V)), (int(V), tuple(places), tuple(names)))

    def _made(self, V: int, K: int) -> Sequential:
        """A new model for V variables, K of them to be forecast."""
        common: dict[str, Any] = {"dtype": self.dtype, "backend": self._backend}
        modules: list[nn.Module] = []
        for at, units in enumerate(self.units):
            modules.append(nn.LSTM(units, return_sequences=at < len(self.units) - 1, **common))
            if self.dropout:
                modules.append(nn.Dropout(self.dropout, dtype=self.dtype))
        bands = Bands(self.horizon * K, len(self.quantiles), **common)
        model = Sequential([*modules, bands], seed=self.seed)
        model.build((self.inputs, V))
        return model

    def _take(self, model: Sequential, scaler: Any, shape: Any) -> None:
        self.model, self._shape = model, shape
        self._children = {"model": model}
        self._params = {"scaler.offset": np.array(scaler.offset), "scaler.scale": np.array(scaler.scale)}
        self._version += 1

    @property
    def version(self) -> int:
        return self._version + (self.model.version if self.model is not None else 0)

    @contextmanager
    def update(self) -> Iterator[dict[str, Array]]:
        """The live parameters, to be changed in place."""
        model, _ = self._fitted()
        with model.update() as inner:
            params = {**self._params, **{f"model.{name}": p for name, p in inner.items()}}
            yield params
            self._version += 1

    def _fitted(self) -> tuple[Sequential, tuple[int, tuple[int, ...], tuple[str, ...]]]:
        if self.model is None or self._shape is None:
            raise RuntimeError(f"{self!r} is not fitted yet: call fit(series) first")
        return self.model, self._shape

    def _scaler(self) -> Scaler:
        """The fitted scaler of all variables."""
        scaler = SCALERS[self.scaler]()
        scaler.offset, scaler.scale = self._params["scaler.offset"], self._params["scaler.scale"]
        return scaler

    # --------------------------------------------------------------------------------------------------------- training
    def fit(
        self,
        series: Any,
        epochs: int = 30,
        batch_size: int = 64,
        *,
        learning_rate: float = 3e-3,
        validation: float = 0.0,
        patience: int = 5,
        callbacks: Sequence[Any] = (),
        verbose: bool = False,
    ) -> Forecaster:
        """Train on a series, from the beginning.

        Parameters
        ----------
        series : (T,) or (T, V) array, or a pandas Series or DataFrame
            In order of time, without NaN.
        epochs, batch_size : int
        learning_rate : float
            Of Adam.
        validation : float
            Share of the rows, at the end of the series, that is held out: training ends where the loss on them has not
            improved for `patience` epochs, and keeps the best epoch's parameters. They do not enter the scaling.
        patience : int
        callbacks : list of Callback
        verbose : bool

        Returns
        -------
        self
            After Ctrl-C with what was reached; the signal's number is in ``stopped_by``.

        Raises
        ------
        TypeError, ValueError
            The series does not fit; nothing has changed then.
        Diverged
            The loss is no longer finite.
        """
        flag(verbose, "verbose")
        x = values_of(series)
        places = columns_of(series, self.targets)
        cut = len(x) - round(len(x) * number(validation, "validation", below=1.0))
        scaler, (x_train, y_train), held = self._windows(x, cut, places)
        model, Q = self._made(x.shape[1], len(places)), len(self.quantiles)
        model.compile({"name": "adam", "lr": number(learning_rate, "learning_rate")}, self.loss, clip_norm=1.0)
        options: dict[str, Any] = {"verbose": verbose, "callbacks": list(callbacks)}
        if held is not None:
            options["validation_data"] = held[0], repeated(held[1], Q)
            options["callbacks"] += [EarlyStopping("val_loss", positive(patience, "patience", 0))]
        history = model.fit(x_train, repeated(y_train, Q), epochs, batch_size, **options)
        names = tuple(map(str, getattr(series, "columns", ())))
        self._take(model, scaler, (x.shape[1], tuple(places), names))
        self.history, self.stopped_by = history, model.stopped_by
        return self

    def _windows(self, x: Array, cut: int, places: list[int]) -> tuple[Scaler, Any, Any]:
        """(scaler, scaled windows to train on, scaled windows held out or None): `cut` rows are trained on."""
        scaler = self._statistics(x, cut)
        dtype = self.dtype.name
        train = windows(scaler.transform(x[:cut]), self.inputs, self.horizon, targets=places, dtype=dtype)
        if cut == len(x):
            return scaler, train, None
        if len(x) - cut < self.horizon:
            raise ValueError(
                f"validation holds out {len(x) - cut} of {len(x)} rows, horizon={self.horizon} needs as many at least"
            )
        judged = scaler.transform(x[cut - self.inputs :])
        return scaler, train, windows(judged, self.inputs, self.horizon, targets=places, dtype=dtype)

    def _statistics(self, x: Array, cut: int) -> Scaler:
        """The scaler, fitted to the rows that are trained on."""
        return SCALERS[self.scaler]().fit(x[:cut])

    # -------------------------------------------------------------------------------------------------------- forecasts
    def _series(self, series: Any) -> Array:
        """A series (T, V) with the variables of the fit, or an error."""
        _, (V, _, names) = self._fitted()
        x = values_of(series)
        if x.shape[1] != V:
            raise ValueError(f"series has {x.shape[1]} variables, {type(self).__name__} was fitted to {V}")
        own = tuple(map(str, getattr(series, "columns", ())))
        if names and own and own != names:
            raise ValueError(f"series has the columns {', '.join(own)}, fit had {', '.join(names)}: give the same ones")
        return x

    def predict(self, series: Any) -> Array:
        """What follows a series.

        Parameters
        ----------
        series : (T,) or (T, V) array, or a pandas Series or DataFrame
            At least the last `inputs` rows.

        Returns
        -------
        quantiles : (horizon, K, Q) array
            In the series' unit, rising along the last axis.
        """
        x = self._series(series)
        if len(x) < self.inputs:
            raise ValueError(f"series has {len(x)} rows, a forecast is made from inputs={self.inputs}")
        forecast: Array = self._quantiles(x[None, -self.inputs :])[0]
        return forecast

    def _quantiles(self, x: Array) -> Array:
        """(N, horizon, K, Q) in the series' unit, from windows (N, inputs, V) of it."""
        model, (_, places, _) = self._fitted()
        scaler: Any = self._scaler()
        scaled = ((x - scaler.offset) / scaler.scale).astype(self.dtype)
        y = model.predict(scaled).reshape(len(x), self.horizon, len(places), len(self.quantiles))
        of_targets = scaler.of(places)
        found: Array = np.moveaxis(of_targets.inverse(np.moveaxis(y, 2, -1).astype(np.float64)), -1, 2)
        np.maximum.accumulate(found, axis=-1, out=found)  # a rounded product may lie on the other side by its last bit
        return found

    # ---------------------------------------------------------------------------------------------------------- picture
    def plot(self, series: Any, path: str | os.PathLike[str], **options: Any) -> None:
        """Draw what follows a series, with bands. See `fastlstm.forecast.picture.draw`."""
        from .picture import draw

        draw(self, series, path, **options)


class NoStatistics:
    """The offset and scale of a scaler whose numbers are still to come from a file."""

    def __init__(self, V: int) -> None:
        self.offset, self.scale = np.zeros(V), np.ones(V)
