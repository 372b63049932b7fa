"""`LSTMClassifier`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from ..layout import Array
from .base import Estimator


class LSTMClassifier(ClassifierMixin, Estimator):  # type: ignore[misc]
    """An LSTM that reads a sequence and names its class.

    The names of the parameters are those of scikit-learn's MLPClassifier, as far as it has them.

    Parameters
    ----------
    hidden_layer_sizes : int, or tuple of int
        Units of each LSTM layer.
    bidirectional : bool
        Read sequences in both directions.
    dropout : float
        Share of each layer's outputs that is dropped in training.
    alpha : float
        Strength of the L2 penalty on the kernels.
    solver : {"adam", "sgd", "adamw", "rmsprop", "adagrad"}
    learning_rate_init : float
    batch_size : int or "auto"
        "auto": 64, or all samples where there are fewer.
    max_iter : int
        Epochs at most; a ConvergenceWarning tells where they end a fit.
    shuffle : bool
        Draw the order of the samples anew for each epoch.
    random_state : int, RandomState or None
        Determines initial parameters, order, dropout and the held-out samples.
    tol, n_iter_no_change : float, int
        A fit ends where the loss (with early_stopping, the score) has not become better by `tol` in more than
        `n_iter_no_change` epochs in a row.
    early_stopping : bool
        Hold out `validation_fraction` of the samples, watch the score on them, and keep the best epoch's parameters.
    validation_fraction : float
    warm_start : bool
        A second `fit` goes on from the first one's model. Its classes must be among the first one's.
    class_weight : dict or "balanced", optional
        Weights by class, multiplied with those of the samples.
    clip_norm : float, optional
        The largest norm of all gradients of a step together.
    verbose : bool
        Show each epoch's figures on standard error.
    dtype : {"auto", "float32", "float64"}
        What is computed in. "auto" is float64 in a `fit` of at most 2048 numbers, where that costs little and a sample
        of weight 2 has the effect of two samples in seven digits; else float32, which is several times quicker.
    backend : str
        "auto", or a name from `fastlstm.backends()`.

    Attributes
    ----------
    classes_ : (C,) array
    model_ : fastlstm.Sequential
        ``model_.save(path)`` writes it alone, without the names of the classes.
    n_features_in_ : int
        Columns of a table (n, T); else variables at a step.
    feature_names_in_ : (T,) array
        Of a DataFrame whose columns have names.
    n_iter_ : int
        Epochs that were trained.
    loss_, best_loss_, loss_curve_ : float, float, list of float
        Mean loss of the last and of the best epoch, and of each.
    validation_scores_, best_validation_score_ : list of float, float
        Accuracy on the held-out samples after each epoch, with early_stopping; else None.
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (64,),
        bidirectional: bool = False,
        *,
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
        class_weight: Any = None,
        clip_norm: float | None = 1.0,
        verbose: bool = False,
        dtype: str = "auto",
        backend: str = "auto",
    ) -> None:
        self.hidden_layer_sizes, self.bidirectional = hidden_layer_sizes, bidirectional
        self.dropout, self.alpha, self.clip_norm = dropout, alpha, clip_norm
        self.solver, self.learning_rate_init, self.batch_size = solver, learning_rate_init, batch_size
        self.max_iter, self.shuffle, self.random_state = max_iter, shuffle, random_state
        self.tol, self.n_iter_no_change = tol, n_iter_no_change
        self.early_stopping, self.validation_fraction = early_stopping, validation_fraction
        self.warm_start, self.class_weight, self.verbose = warm_start, class_weight, verbose
        self.dtype, self.backend = dtype, backend

    # --------------------------------------------------------------------------------------------------------- training
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LSTMClassifier:
        """Train on sequences and their classes.

        Parameters
        ----------
        X : (n, T) or (n, T, variables) array, or list of n sequences (T_i,) or (T_i, variables)
        y : (n,) array
            Numbers or names.
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

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> LSTMClassifier:
        """Train one epoch on these samples, from what was trained before.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : (C,) array
            All classes that will come; needed in the first call only.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            The first call has no `classes`, y has others, or the data do not fit; nothing has changed then.
        """
        first = not hasattr(self, "model_")
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit: all labels that will come")
        if classes is not None:
            classes = np.unique(np.asarray(classes))
            if not first and not np.array_equal(classes, self.classes_):
                raise ValueError(f"classes={classes} is not the same as on the first call: {self.classes_}")
        self._fit(X, y, sample_weight, partial=True, classes=classes)
        return self

    def _targets(self, y: Any, weights: Array | None, learned: dict[str, Any], classes: Any) -> Array:
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        known = classes if classes is not None else None if learned else self.classes_
        if known is None:
            learned["classes_"], codes = np.unique(y, return_inverse=True)
            return codes.astype(np.int64)
        others = np.setdiff1d(y, known)
        if len(others):
            raise ValueError(f"y holds {', '.join(map(str, others.tolist()))}, which is not among the classes {known}")
        if learned:
            learned["classes_"] = known
        found: Array = np.searchsorted(known, y).astype(np.int64)
        return found

    def _weights_of(self, y: Any, weights: Array | None, partial: bool) -> Array | None:
        if self.class_weight is None:
            return weights
        if partial and self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all samples at once, partial_fit sees some: give a dict of weights"
            )
        of_class: Array = compute_sample_weight(self.class_weight, np.ravel(y))
        return of_class if weights is None else of_class * weights

    def _head(self, learned: Mapping[str, Any]) -> tuple[int, str, Any]:
        return len(learned["classes_"]), "softmax", "sparse_categorical_crossentropy"

    def _score_of(self, outputs: Array, y: Array, weights: Array | None) -> float:
        return float(accuracy_score(y, outputs.argmax(axis=1), sample_weight=weights))

    # ------------------------------------------------------------------------------------------------------ predictions
    def predict_proba(self, X: Any) -> Array:
        """(n, C): each class's probability, in the order of `classes_`."""
        p = self._outputs(X)
        p /= p.sum(axis=1, keepdims=True)
        return p

    def predict_log_proba(self, X: Any) -> Array:
        """(n, C): the logarithms of `predict_proba`."""
        with np.errstate(divide="ignore"):
            logs: Array = np.log(self.predict_proba(X))
        return logs

    def predict(self, X: Any) -> Array:
        """(n,): the most probable class of each sequence."""
        p = self._outputs(X)
        found: Array = self.classes_[p.argmax(axis=1)]
        return found
