"""`Sequential`: a model that is a list of modules, with compile, fit, evaluate and predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .nn.base import Module
from .nn.chain import Chain


class Sequential(Chain):
    """Modules one after the other: each takes the output of the one before.

    Parameters
    ----------
    modules : list of Module
        No module stands in the list twice.
    seed : int, optional
        Seed of all initial parameters, of dropout and of `fit`'s shuffling. Modules that are built already keep their
        parameters.

    Attributes
    ----------
    modules : list of Module

    Raises
    ------
    TypeError, ValueError
        Something in the list is no module, stands there twice, or has another dtype than the first.
    """

    def __init__(self, modules: Sequence[Module], *, seed: int | None = None) -> None:
        super().__init__(modules, seed=seed)
        self._compiled: Any = None  # the arguments of `compile`, checked
        self.stopped_by: int | None = None  # the signal that ended the last `fit`

    # --------------------------------------------------------------------------------------------------------- training
    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = None,
        metrics: Sequence[Any] = (),
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        """Set optimiser, loss and metrics of the training.

        Parameters
        ----------
        optimizer : str, dict, class or function
            "sgd", "adam", "adamw", "rmsprop" or "adagrad"; ``{"name": "adam", "lr": 1e-3}``; or a function from a list
            of layers to an optimiser, such as ``functools.partial(fl.Adam, lr=1e-3)``.
        loss : str, dict or Loss
            A name of `fastlstm.losses.LOSSES`. After a softmax or a sigmoid the loss is computed from the logits.
        metrics : list of str, dict or Metric
            Names of `fastlstm.metrics.METRICS`.
        clip_norm, clip_value : float, optional
            Upper bounds of the norm of all gradients together, and of the absolute value of each entry.

        Raises
        ------
        TypeError, ValueError
            A name is not known; the message lists the names.
        """
        from .training.fitting import compiled

        if loss is None:
            raise ValueError("a loss is needed: compile(loss='mse'); names are in fastlstm.losses.LOSSES")
        self._compiled = compiled(self, optimizer, loss, metrics, clip_norm, clip_value)

    def _how(self) -> Any:
        if self._compiled is None:
            raise RuntimeError("the model is not compiled: call compile(optimizer, loss) first")
        return self._compiled

    def fit(
        self,
        x: Any,
        y: Any = None,
        epochs: int = 1,
        batch_size: int = 32,
        *,
        validation_data: Any = None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        class_weight: Mapping[Any, float] | None = None,
        sample_weight: Any = None,
        mask: Any = None,
        steps_per_epoch: int | None = None,
        callbacks: Sequence[Any] = (),
        verbose: bool = True,
    ) -> Any:
        """Train the model.

        Parameters
        ----------
        x : (N, ...) array, list of N sequences (T_i, ...), or iterable of batches
            A list of sequences of unequal length is batched by length. An array may be memory-mapped. Batches are
            (x, y) or (x, y, weights).
        y : array or list of N targets
            For a model with an output at every step: targets (N, T, ...), or a list of N (T_i, ...).
        epochs, batch_size : int
        validation_data : (x, y) or (x, y, sample_weight), optional
        validation_split : float
            Share of the samples, at their end, that is left out of training and used for validation.
        shuffle : bool
            Draw the order of the samples anew for each epoch. Without effect for a stateful model.
        class_weight : dict, optional
            From label to weight.
        sample_weight : (N,) array, or (N, T) for targets per step; optional
        mask : (N, T) bool array, optional
            True at the steps that count, for padded arrays.
        steps_per_epoch : int, optional
            Batches of an epoch, for an iterable.
        callbacks : list of Callback
            See `fastlstm.callbacks`.
        verbose : bool
            Show each epoch's figures on standard error.

        Returns
        -------
        history : History
            Columns ``loss``, the metrics, ``val_loss`` ..., by epoch. After Ctrl-C it ends at the last complete epoch,
            and ``model.stopped_by`` is the signal's number.

        Raises
        ------
        TypeError, ValueError
            Data that do not fit together or do not fit the model; nothing has been trained then.
        Diverged
            The loss is no longer finite.
        """
        from .training.fitting import fit

        self._how()
        return fit(
            self,
            x,
            y,
            epochs,
            batch_size,
            callbacks,
            verbose,
            validation_data=validation_data,
            validation_split=validation_split,
            shuffle=shuffle,
            class_weight=class_weight,
            sample_weight=sample_weight,
            mask=mask,
            steps_per_epoch=steps_per_epoch,
        )

    def evaluate(
        self, x: Any, y: Any, batch_size: int = 32, *, sample_weight: Any = None, mask: Any = None
    ) -> dict[str, float]:
        """Mean loss and metrics in inference, by name. Arguments as `fit`."""
        from .training.data import Data
        from .training.fitting import evaluated
        from .validation import positive

        how, data = self._how(), Data(x, y, sample_weight, mask)
        self.build(data.take(np.arange(1)).x.shape[1:])
        how.objective.check(data)
        return evaluated(self, how.objective, data, positive(batch_size, "batch_size"))

    def predict(self, x: Any, batch_size: int = 256, *, mask: Any = None) -> Any:
        """The outputs for all samples; several threads may call it.

        Parameters
        ----------
        x : (N, ...) array, or list of N sequences (T_i, ...)

        Returns
        -------
        y : (N, ...) array
            For a list of sequences and a model with an output at every step, a list of N arrays (T_i, ...).

        Raises
        ------
        TypeError, ValueError
            Samples that do not fit the model.
        """
        from .training.fitting import predict

        return predict(self, x, batch_size, mask)
