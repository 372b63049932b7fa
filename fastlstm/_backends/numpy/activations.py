"""The activations and their derivatives, and gates: activations of a clipped argument."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...layout import Array
from ...spec import Activation, Spec


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow: the exponent is never positive."""
    e = np.exp(-np.abs(x))
    y: Array = np.where(x >= 0, 1, e) / (1 + e)
    return y


# name -> function of (x, alpha, beta)
FUNCTIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "sigmoid": lambda x, a, b: sigmoid(x),
    "tanh": lambda x, a, b: np.tanh(x),
    "relu": lambda x, a, b: np.maximum(x, 0),
    "identity": lambda x, a, b: x,
    "hard_sigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "hard_sigmoid_keras2": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "affine": lambda x, a, b: a * x + b,
    "leaky_relu": lambda x, a, b: np.where(x > 0, x, a * x),
    "thresholded_relu": lambda x, a, b: np.where(x < a, 0, x),
    "scaled_tanh": lambda x, a, b: a * np.tanh(b * x),
    "elu": lambda x, a, b: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "softplus": lambda x, a, b: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
}

# name -> derivative by x, as a function of the output (y, alpha, beta)
DERIVATIVES: dict[str, Callable[[Array, float, float], Array]] = {
    "sigmoid": lambda y, a, b: y * (1 - y),
    "tanh": lambda y, a, b: 1 - y * y,
    "relu": lambda y, a, b: (y > 0) * y.dtype.type(1),
    "identity": lambda y, a, b: np.ones_like(y),
    "hard_sigmoid": lambda y, a, b: ((y > 0) & (y < 1)) * y.dtype.type(a),
    "hard_sigmoid_keras2": lambda y, a, b: ((y > 0) & (y < 1)) * y.dtype.type(a),
    "affine": lambda y, a, b: np.full_like(y, a),
    "leaky_relu": lambda y, a, b: np.where(y > 0, y.dtype.type(1), y.dtype.type(a)),
    "thresholded_relu": lambda y, a, b: (y != 0) * y.dtype.type(1),
    "scaled_tanh": lambda y, a, b: b * (a - y * y / a),
    "elu": lambda y, a, b: np.where(y > 0, y.dtype.type(1), y + y.dtype.type(a)),
    "softsign": lambda y, a, b: (1 - np.abs(y)) ** 2,
    "softplus": lambda y, a, b: -np.expm1(-y),
}


def act(f: Activation, x: Array) -> Array:
    return FUNCTIONS[f.name](x, f.alpha, f.beta)


def dact(f: Activation, y: Array) -> Array:
    """Derivative of the activation where its output is y."""
    return DERIVATIVES[f.name](y, f.alpha, f.beta)


# ---------------------------------------------------------------------------------------------------------- clipping
def bounds(spec: Spec, dtype: np.dtype[np.floating]) -> Array | None:
    """(roles, 2) the outputs of the activations at -clip and clip; None where nothing is clipped."""
    if spec.clip is None:
        return None
    ends = np.array([-spec.clip, spec.clip], dtype)
    return np.stack([act(f, ends) for f in spec.activations])


def gate(f: Activation, a: Array, clip: float | None, ends: Array | None) -> Array:
    """The activation of a clipped pre-activation: exactly an end (2,) of `bounds` where a is not between +-clip."""
    if clip is None or ends is None:
        return act(f, a)
    y = act(f, np.clip(a, -clip, clip))
    y = np.where(a >= clip, ends[1], np.where(a <= -clip, ends[0], y))
    return y


def dgate(f: Activation, y: Array, ends: Array | None) -> Array:
    """Derivative of a gate where its output is y: 0 where that is an end of `bounds`.

    An activation that can be trained reaches an end only where it is clipped or flat, where its derivative is 0 too.
    So the output tells that a gate was clipped, and the tape keeps no bit for it. Exactly at +-clip, where the gate
    has no derivative, and where the unclipped output rounds to an end, 0 is taken.
    """
    d = dact(f, y)
    return d if ends is None else np.where((y == ends[0]) | (y == ends[1]), y.dtype.type(0), d)
