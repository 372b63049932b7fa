"""What the classifier and the regressor share: parameters, checks, the model, training."""

from __future__ import annotations

import copy
import functools
import signal
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .. import nn
from ..layout import Array
from ..sequential import Sequential
from ..training.fitting import OPTIMIZERS
from ..validation import flag, number, positive, probability
from . import samples
from .stopping import Convergence

SMALL = 2048  # numbers in X up to which dtype="auto" is float64: such data are trained in about a second even so
BATCH = 64  # samples of a batch with batch_size="auto"
DTYPES = ("auto", "float32", "float64")


class Given(NamedTuple):
    """The checked arguments of `fit`.

    Parameters
    ----------
    X : (n, T, I) array or list of n (T_i, I)
    y : (n,) or (n, K) array
        As the loss takes it.
    weights : (n,) array, optional
    learned : dict
        What the estimator knows of the data: attributes to be set at the end.
    """

    X: Any
    y: Array
    weights: Array | None
    learned: dict[str, Any]


class Estimator(BaseEstimator):  # type: ignore[misc]
    """Base of the estimators: `fl.Sequential` of LSTM modules and a dense one, behind scikit-learn's interface."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.target_tags.required = True
        return tags

    # ------------------------------------------------------------------------------------- what the subclasses supply
    def _targets(self, y: Any, weights: Array | None, learned: dict[str, Any], classes: Any) -> Array:
        """y as the loss takes it; what is learned of y goes into `learned`."""
        raise NotImplementedError

    def _head(self, learned: Mapping[str, Any]) -> tuple[int, str, Any]:
        """(outputs, activation, loss) of the model."""
        raise NotImplementedError

    def _weights_of(self, y: Any, weights: Array | None, partial: bool) -> Array | None:
        """The samples' weights, with those of their classes."""
        return weights

    def _score_of(self, outputs: Array, y: Array, weights: Array | None) -> float:
        """The score that early stopping watches, of the model's outputs."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------- parameters
    def _check_parameters(self) -> None:
        """Raise TypeError or ValueError where a parameter of the constructor does not fit."""
        for units in self._sizes():
            positive(units, "hidden_layer_sizes")
        for name in ("bidirectional", "shuffle", "verbose", "warm_start", "early_stopping"):
            flag(getattr(self, name), name)
        probability(self.dropout, "dropout")
        for name in ("alpha", "learning_rate_init", "tol", "n_iter_no_change"):
            number(getattr(self, name), name)
        positive(self.max_iter, "max_iter")
        if self.batch_size != "auto":
            positive(self.batch_size, "batch_size")
        if not 0 < number(self.validation_fraction, "validation_fraction") < 1:
            raise ValueError(f"validation_fraction must lie between 0 and 1, got {self.validation_fraction!r}")
        if self.clip_norm is not None:
            number(self.clip_norm, "clip_norm")
        for name, known in (("solver", tuple(OPTIMIZERS)), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is not known; expected one of {', '.join(known)}")

    def _sizes(self) -> tuple[Any, ...]:
        sizes = self.hidden_layer_sizes
        sizes = tuple(sizes) if isinstance(sizes, (tuple, list, np.ndarray)) else (sizes,)
        if not sizes:
            raise ValueError("hidden_layer_sizes names no layer: (64,) is one of 64 units")
        return sizes

    # ------------------------------------------------------------------------------------------------------------ input
    def _input(self, X: Any, fitted: bool, learned: dict[str, Any], partial: bool = False) -> Any:
        """X as the model takes it, and what is learned of it; `self` is not changed."""
        probe = copy.copy(self)
        known = fitted and not self.takes_tables_
        dtype = self.model_.dtype.name if fitted else self._dtype(X, partial)
        if samples.is_table(X, known) and not (known and self.n_variables_in_ == 1):
            if known:
                raise ValueError(
                    f"X has {np.ndim(X)} axes, but {type(self).__name__} was fitted to sequences of "
                    f"{self.n_variables_in_} variables: X is {samples.MEANING}"
                )
            for name in () if fitted else ("n_features_in_", "feature_names_in_"):
                probe.__dict__.pop(name, None)
            found: Any = samples.table(probe, X, dtype, not fitted)
            names = {n: v for n, v in vars(probe).items() if n in ("n_features_in_", "feature_names_in_")}
            learned |= names | {"n_variables_in_": 1, "takes_tables_": True}
            return found
        if known and samples.is_table(X, True):  # series of one variable, of another length
            return samples.table(_Free(), X, dtype, True)
        found = samples.sequences(X, dtype, self.n_variables_in_ if fitted else None)
        width = found[0].shape[-1]
        learned |= {"n_features_in_": width, "n_variables_in_": width, "takes_tables_": False}
        return found

    def _dtype(self, X: Any, partial: bool) -> str:
        """What the model computes in; a `partial_fit` does not see how much is to come."""
        if self.dtype != "auto" or partial:
            return "float32" if self.dtype == "auto" else str(self.dtype)
        if isinstance(X, (list, tuple)) or samples.of_objects(X):
            count = sum(np.size(one) for one in X)
        else:
            count = X.size if isinstance(getattr(X, "size", None), int) else np.asarray(X).size
        return "float64" if count <= SMALL else "float32"

    def _given(self, X: Any, y: Any, sample_weight: Any, continued: bool, classes: Any, partial: bool) -> Given:
        """The arguments of `fit` and `partial_fit`, checked. Nothing has changed where this raises."""
        self._check_parameters()
        if y is None:
            raise ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")
        learned: dict[str, Any] = {}
        found = self._input(X, continued, learned, partial)
        if continued:
            learned = {}
        y = validate_data(copy.copy(self), y=y, multi_output=True)  # which may change the estimator
        check_consistent_length(found, y)
        weights = None if sample_weight is None else _weights(sample_weight, len(found))
        targets = self._targets(y, weights, learned, classes)
        weights = self._weights_of(y, weights, partial)
        if weights is not None and not weights.all():
            at = np.flatnonzero(weights)
            found, targets, weights = samples.some(found, at), targets[at], weights[at]
        return Given(found, targets, weights, learned)

    # --------------------------------------------------------------------------------------------------------- training
    def _make(self, width: int, learned: Mapping[str, Any], dtype: str, seed: int) -> Sequential:
        """The model, compiled."""
        outputs, activation, loss = self._head(learned)
        sizes = self._sizes()
        common: dict[str, Any] = {"dtype": dtype, "backend": self.backend}
        if self.alpha:
            common["kernel_regularizer"] = nn.L1L2(l2=self.alpha)
        modules: list[Any] = []
        for at, units in enumerate(sizes):
            lstm = nn.LSTM(int(units), return_sequences=at < len(sizes) - 1, **common)
            modules.append(nn.Bidirectional(lstm) if self.bidirectional else lstm)
            if self.dropout:
                modules.append(nn.Dropout(self.dropout, dtype=dtype))
        model = Sequential([*modules, nn.Dense(outputs, activation, **common)], seed=seed)
        solver = {"name": self.solver, "lr": self.learning_rate_init}
        model.compile(solver, loss, clip_norm=self.clip_norm)
        model.build((None, width))
        return model

    def _fit(self, X: Any, y: Any, sample_weight: Any, *, partial: bool, classes: Any = None) -> Any:
        """`fit` and `partial_fit`: checks, the model, training; the attributes last."""
        continued = hasattr(self, "model_") and (partial or bool(self.warm_start))
        given = self._given(X, y, sample_weight, continued, classes, partial)
        rng = check_random_state(self.random_state) if not continued else self._rng
        if continued:
            model = self.model_
        else:
            dtype = given.X[0].dtype.name
            model = self._make(given.X[0].shape[-1], given.learned, dtype, int(rng.randint(2**31 - 1)))
        model.seed = int(rng.randint(2**31 - 1))  # seeds the order of the samples; drawn anew for each call
        early = self.early_stopping and not partial
        kept, held = self._held_out(given, rng) if early else (given, None)
        watch = Convergence(
            self.tol, np.inf if partial else self.n_iter_no_change, self._scorer(model, held) if held else None
        )
        number_of_signal = self._train(model, kept, watch, 1 if partial else self.max_iter)
        if watch.parameters is not None:
            model.load_state_dict(watch.parameters)
        self._keep(model, given, watch, rng, continued and partial)
        if number_of_signal is not None:
            # The signal handlers are restored by now: after Ctrl-C this raises KeyboardInterrupt.
            signal.raise_signal(number_of_signal)
        elif not partial and not watch.converged:
            warnings.warn(
                f"max_iter={self.max_iter} epochs ended before the {'score' if early else 'loss'} stopped improving: "
                "raise max_iter, or raise tol to stop earlier",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    def _train(self, model: Sequential, given: Given, watch: Convergence, epochs: int) -> int | None:
        """Train; the number of the signal that ended it, if one did."""
        batch = BATCH if self.batch_size == "auto" else self.batch_size
        options = {"shuffle": self.shuffle, "verbose": self.verbose, "sample_weight": given.weights}
        try:
            model.fit(given.X, given.y, epochs, min(batch, len(given.X)), callbacks=[watch], **options)
        except KeyboardInterrupt:  # a second Ctrl-C, or one in a thread that is not the main one
            return signal.SIGINT
        return model.stopped_by

    def _held_out(self, given: Given, rng: Any) -> tuple[Given, Given]:
        """(samples to train on, samples to judge by), classes in equal shares."""
        at = np.arange(len(given.X))
        stratify = given.y if given.y.dtype.kind == "i" else None
        parts = train_test_split(at, test_size=self.validation_fraction, stratify=stratify, random_state=rng)
        first, second = (
            Given(
                samples.some(given.X, part),
                given.y[part],
                None if given.weights is None else given.weights[part],
                given.learned,
            )
            for part in parts
        )
        return first, second

    def _scorer(self, model: Sequential, held: Given) -> Any:
        return functools.partial(_scored, self._score_of, model, held)

    def _keep(self, model: Sequential, given: Given, watch: Convergence, rng: Any, more: bool) -> None:
        """Set the attributes that end in an underscore."""
        if given.learned and "feature_names_in_" not in given.learned:
            self.__dict__.pop("feature_names_in_", None)
        for name, value in given.learned.items():
            setattr(self, name, value)
        self.model_, self._rng = model, rng
        before: list[float] = self.loss_curve_ if more else []
        self.loss_curve_: list[float] = [*before, *watch.losses]
        self.n_iter_ = len(self.loss_curve_)
        if watch.losses:
            self.loss_ = watch.losses[-1]
        scored = watch.score is not None
        self.validation_scores_ = list(watch.scores) if scored else None
        self.best_validation_score_ = watch.best if watch.scores else None
        self.best_loss_ = None if scored or not self.loss_curve_ else min(self.loss_curve_)

    # ------------------------------------------------------------------------------------------------------ predictions
    def _outputs(self, X: Any) -> Array:
        """The model's outputs (n, K), float64."""
        check_is_fitted(self, "model_")
        found: Array = self.model_.predict(self._input(X, True, {}))
        return found.astype(np.float64)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")


class _Free(BaseEstimator):  # type: ignore[misc]
    """An estimator for `validate_data` that compares with nothing."""


def _scored(score: Any, model: Sequential, held: Given) -> float:
    return float(score(model.predict(held.X), held.y, held.weights))


def _weights(given: Any, count: int) -> Array:
    """sample_weight as (n,) float64, or an error."""
    weights: Array = np.asarray(given, np.float64)
    if weights.shape != (count,):
        raise ValueError(f"sample_weight has shape {weights.shape}, expected ({count},): one for each sample")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("sample_weight must be finite and at least 0")
    if not weights.any():
        raise ValueError("sample_weight is zero for all samples: there is nothing to fit")
    return weights
