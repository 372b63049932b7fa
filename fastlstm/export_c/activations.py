"""Activations as C expressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..spec import Activation, activation


def number(value: float) -> str:
    """A float32 as a C constant: the shortest decimal that reads back as the same number."""
    text = repr(float(np.float32(value))) if value == int(value) else str(np.float32(value))
    return f"{text}f"


# name -> (the C functions used, expression of a variable x, alpha and beta as C constants)
EXPRESSIONS: dict[str, tuple[str, Callable[[str, str, str], str]]] = {
    "sigmoid": ("fl_sigmoid", lambda x, a, b: f"fl_sigmoid({x})"),
    "tanh": ("fl_tanh", lambda x, a, b: f"fl_tanh({x})"),
    "relu": ("", lambda x, a, b: f"({x} < 0.0f ? 0.0f : {x})"),
    "identity": ("", lambda x, a, b: x),
    "hard_sigmoid": ("fl_clip", lambda x, a, b: f"fl_clip({a} * {x} + {b}, 0.0f, 1.0f)"),
    "hard_sigmoid_keras2": ("fl_clip", lambda x, a, b: f"fl_clip({a} * {x} + {b}, 0.0f, 1.0f)"),
    "affine": ("", lambda x, a, b: f"({a} * {x} + {b})"),
    "leaky_relu": ("", lambda x, a, b: f"({x} > 0.0f ? {x} : {a} * {x})"),
    "thresholded_relu": ("", lambda x, a, b: f"({x} < {a} ? 0.0f : {x})"),
    "scaled_tanh": ("fl_tanh", lambda x, a, b: f"{a} * fl_tanh({b} * {x})"),
    "elu": ("fl_elu", lambda x, a, b: f"fl_elu({x}, {a})"),
    "softsign": ("fl_softsign", lambda x, a, b: f"fl_softsign({x})"),
    "softplus": ("fl_softplus", lambda x, a, b: f"fl_softplus({x})"),
}


def expression(given: Any, x: str, used: set[str]) -> str:
    """The activation of the C variable x; the functions that it calls are added to `used`."""
    f: Activation = activation(given)
    needs, write = EXPRESSIONS[f.name]
    used |= {needs} - {""}
    return write(x, number(f.alpha), number(f.beta))
