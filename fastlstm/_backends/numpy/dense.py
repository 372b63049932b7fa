"""The dense layer and its cross-entropy: the extra functions "dense", also for backends that have none of their own."""

from __future__ import annotations

import numpy as np

from ...layout import Array


def dense_pack(params: dict[str, Array]) -> dict[str, Array]:
    """A dense layer's weights in the form that the functions below take.

    Parameters
    ----------
    params : dict of arrays
        ``weight`` (U, I) and, where there is one, ``bias`` (U,).
    """
    return params


def dense_forward(block: dict[str, Array], x: Array) -> Array:
    """x @ weight.T + bias: (N, U) for rows (N, I)."""
    y: Array = x @ block["weight"].T
    if "bias" in block:
        y += block["bias"]
    return y


def dense_backward(block: dict[str, Array], x: Array, dy: Array, grads: dict[str, Array]) -> Array:
    """Gradient dx (N, I) of x for dy (N, U). The parameters' gradients are written to the zeros in `grads`."""
    np.matmul(dy.T, x, out=grads["weight"])
    if "bias" in block:
        dy.sum(axis=0, out=grads["bias"])
    return dy @ block["weight"]


def dense_cross_entropy(
    block: dict[str, Array], x: Array, targets: Array, factor: float, grads: dict[str, Array]
) -> tuple[Array, Array]:
    """Product, loss and backward of a head: (losses (N,), dx (N, I)), all gradients times `factor`.

    See `dense_backward` and `cross_entropy`.
    """
    logits = dense_forward(block, x)
    losses = cross_entropy(logits, targets, factor)
    return losses, dense_backward(block, x, logits, grads)


def cross_entropy(rows: Array, targets: Array, factor: float) -> Array:
    """-log softmax of the target of every row of logits (N, U): (N,) float64. The rows become their gradients.

    Parameters
    ----------
    rows : (N, U) array
        Overwritten with factor * (softmax - onehot(target)).
    targets : (N,) integer array, each from 0 to U - 1
    factor : float
    """
    each = np.arange(len(rows))
    with np.errstate(invalid="ignore"):  # NaN and infinity pass without a warning
        rows -= rows.max(axis=1, keepdims=True)
        right = rows[each, targets].astype(np.float64)
        np.exp(rows, out=rows)
        total = rows.sum(axis=1, dtype=np.float64)
        losses: Array = np.log(total) - right
        rows *= (factor / total).astype(rows.dtype)[:, None]
    rows[each, targets] -= rows.dtype.type(factor)
    return losses
