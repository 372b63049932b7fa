"""Losses with their gradients. Formulas and sources are in docs/losses.md.

Every loss has one form: ``loss(y, target, mask=None, weights=None) -> (value, dy)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..named import find
from .base import Loss
from .classification import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    SparseCategoricalCrossentropy,
    label_weights,
    softmax_cross_entropy,
)
from .regression import Huber, MeanAbsoluteError, MeanSquaredError, Quantile

__all__ = [
    "LOSSES",
    "BinaryCrossentropy",
    "CategoricalCrossentropy",
    "Huber",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Quantile",
    "SparseCategoricalCrossentropy",
    "get",
    "label_weights",
    "softmax_cross_entropy",
]

# The first name of each loss is that of its configuration; the others are Keras's and PyTorch's short forms.
LOSSES: dict[str, Callable[..., Loss]] = {
    "sparse_categorical_crossentropy": SparseCategoricalCrossentropy,
    "cross_entropy": partial(SparseCategoricalCrossentropy, from_logits=True),
    "categorical_crossentropy": CategoricalCrossentropy,
    "binary_crossentropy": BinaryCrossentropy,
    "bce": BinaryCrossentropy,
    "bce_with_logits": partial(BinaryCrossentropy, from_logits=True),
    "mean_squared_error": MeanSquaredError,
    "mse": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
    "mae": MeanAbsoluteError,
    "huber": Huber,
    "quantile": Quantile,
    "pinball": Quantile,
}


def get(loss: str | Mapping[str, Any] | Loss) -> Loss:
    """The loss of a name (a key of `LOSSES`), of a configuration (`Loss.get_config`), or the loss itself.

    Raises
    ------
    TypeError, ValueError
        The argument is none of these; the message lists the names.
    """
    return find(loss, Loss, LOSSES, "loss")
