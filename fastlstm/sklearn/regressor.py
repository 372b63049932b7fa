"""`LSTMRegressor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import check_array

from ..layout import Array
from .base import Estimator

LOSSES = {
    "squared_error": "mean_squared_error",
    "absolute_error": "mean_absolute_error",
    "huber": "huber",
}


class LSTMRegressor(RegressorMixin, Estimator):  # type: ignore[misc]
    """An LSTM that reads a sequence and gives a number, or several.

    Parameters that are not named here are those of `LSTMClassifier`.

    Parameters
    ----------
    loss : {"squared_error", "absolute_error", "huber"}
    normalize_y : bool
        Train on targets of mean 0 and standard deviation 1, those of the first fit's samples; predictions are in the
        targets' unit, ``loss_`` and ``loss_curve_`` are not.

    Attributes
    ----------
    n_outputs_ : int
    model_, n_features_in_, feature_names_in_, n_iter_, loss_, best_loss_, loss_curve_
        As in `LSTMClassifier`.
    validation_scores_, best_validation_score_ : list of float, float
        R² on the held-out samples after each epoch, with early_stopping; else None.
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (64,),
        bidirectional: bool = False,
        *,
        loss: str = "squared_error",
        normalize_y: bool = True,
        dropout: float = 0.0,
        alpha: float = 0.0,
        solver: str = "adam",
        learning_rate_init: float = 0.001,
        batch_size: Any = "auto",
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        warm_start: bool = False,
        clip_norm: float | None = 1.0,
        verbose: bool = False,
        dtype: str = "auto",
        backend: str = "auto",
    ) -> None:
        self.hidden_layer_sizes, self.bidirectional = hidden_layer_sizes, bidirectional
        self.loss, self.normalize_y = loss, normalize_y
        self.dropout, self.alpha, self.clip_norm = dropout, alpha, clip_norm
        self.solver, self.learning_rate_init, self.batch_size = solver, learning_rate_init, batch_size
        self.max_iter, self.shuffle, self.random_state = max_iter, shuffle, random_state
        self.tol, self.n_iter_no_change = tol, n_iter_no_change
        self.early_stopping, self.validation_fraction = early_stopping, validation_fraction
        self.warm_start, self.verbose = warm_start, verbose
        self.dtype, self.backend = dtype, backend

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    # --------------------------------------------------------------------------------------------------------- training
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LSTMRegressor:
        """Train on sequences and their numbers.

        Parameters
        ----------
        X : (n, T) or (n, T, variables) array, or list of n sequences (T_i,) or (T_i, variables)
        y : (n,) or (n, K) array
        sample_weight : (n,) array, optional
            At least 0. A weight of 0 leaves a sample out, one of 2 counts it twice.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            The data or a parameter do not fit; nothing has changed then.
        fastlstm.training.loop.Diverged
            The loss is no longer finite.
        KeyboardInterrupt
            Ctrl-C; the estimator has what was reached.
        """
        self._fit(X, y, sample_weight, partial=False)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> LSTMRegressor:
        """Train one epoch on these samples, from what was trained before.

        The first call's targets give the mean and the standard deviation that `normalize_y` takes.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            The data do not fit; nothing has changed then.
        """
        self._fit(X, y, sample_weight, partial=True)
        return self

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.loss not in LOSSES:
            raise ValueError(f"loss {self.loss!r} is not known; expected one of {', '.join(LOSSES)}")
        if not isinstance(self.normalize_y, (bool, np.bool_)):
            raise TypeError(f"normalize_y must be True or False, got {self.normalize_y!r}")

    def _targets(self, y: Any, weights: Array | None, learned: dict[str, Any], classes: Any) -> Array:
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        flat = y.ndim == 1
        y = y.reshape(len(y), -1)
        if learned:
            learned |= {"n_outputs_": y.shape[1], "_flat": flat}
            mean, scale = np.zeros(y.shape[1]), np.ones(y.shape[1])
            if self.normalize_y:
                mean = np.average(y, axis=0, weights=weights)
                scale = np.sqrt(np.average((y - mean) ** 2, axis=0, weights=weights))
                constant = y.min(axis=0) == y.max(axis=0)  # its deviation may be a rounding error
                scale = np.where(constant | (scale == 0), 1.0, scale)
            learned |= {"y_mean_": mean, "y_scale_": scale}
        elif y.shape[1] != self.n_outputs_:
            raise ValueError(f"y has {y.shape[1]} outputs, {type(self).__name__} was fitted to {self.n_outputs_}")
        scaled: Array = (
            (y - learned["y_mean_"]) / learned["y_scale_"] if learned else (y - self.y_mean_) / self.y_scale_
        )
        return scaled

    def _head(self, learned: Mapping[str, Any]) -> tuple[int, str, Any]:
        return learned["n_outputs_"], "linear", LOSSES[self.loss]

    def _score_of(self, outputs: Array, y: Array, weights: Array | None) -> float:
        return float(r2_score(y, outputs, sample_weight=weights))

    # ------------------------------------------------------------------------------------------------------ predictions
    def predict(self, X: Any) -> Array:
        """(n,), or (n, K) where y of the fit was: a number for each sequence and output."""
        y: Array = self._outputs(X) * self.y_scale_ + self.y_mean_
        return y[:, 0] if self._flat else y
