"""Keras's weight arrays of one direction of one layer, from our parameters and back. Neither needs Keras.

Keras (3.x, layers LSTM, GRU, SimpleRNN) has kernel (I, G*H), recurrent_kernel (H, G*H) and one bias (G*H,), but for a
GRU with reset_after two: (2, G*H), of the input's product and of the recurrent one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .gates import reorder
from .layout import Array
from .spec import Kind

NAMES = ("weight_ih", "weight_hh")


def to_keras(params: Mapping[str, Array], kind: Kind, reset_after: bool = True) -> list[Array]:
    """Kernel, recurrent kernel and, where there are biases, bias, as ``keras_layer.set_weights`` takes them.

    Parameters
    ----------
    params : mapping
        Canonical names without a suffix, `Spec.parameters`' shapes. Two biases become one, their sum, where Keras has
        one.
    kind : {"lstm", "gru", "rnn"}
    reset_after : bool
        Of a GRU.
    """
    matrices = [reorder(params[name].T, kind, "torch", "keras", axis=-1) for name in NAMES]
    biases = [reorder(params[name], kind, "torch", "keras") for name in ("bias_ih", "bias_hh") if name in params]
    if not biases:
        return matrices
    if kind == "gru" and reset_after:
        return [*matrices, np.stack(biases)]
    return [*matrices, biases[0] if len(biases) == 1 else biases[0] + biases[1]]


def from_keras(arrays: Sequence[Array], kind: Kind) -> dict[str, Array]:
    """Our parameters (or gradients) from Keras's: with Keras's one bias there is ``bias_ih`` alone.

    Parameters
    ----------
    arrays : kernel, recurrent kernel and, where there is one, bias
    kind : {"lstm", "gru", "rnn"}
    """
    kernel, recurrent, *bias = arrays
    found = {
        name: np.ascontiguousarray(reorder(w, kind, "keras", "torch", axis=-1).T)
        for name, w in zip(NAMES, (kernel, recurrent), strict=True)
    }
    rows = list(np.atleast_2d(bias[0])) if bias else []
    names = ("bias_ih", "bias_hh")[: len(rows)]
    return found | {name: reorder(row, kind, "keras", "torch") for name, row in zip(names, rows, strict=True)}
