"""Activations of whole outputs: of `Dense`, and as a module of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import spec
from .._backends.numpy.activations import act, dact
from ..layer import check_tape
from ..layout import Array
from ..validation import as_numbers, checked_dy
from .base import Module, ModuleTape

# Keras's name of "identity", and what is no function of one element.
ACTIVATIONS = ("linear", "softmax", *spec.ACTIVATIONS)


def checked(given: Any) -> Any:
    """An activation as `activate` takes it: a name of `ACTIVATIONS`, or (name, alpha, beta); None is linear.

    Raises
    ------
    TypeError, ValueError
        It is not known; the message lists the names.
    """
    if given is None:
        return "linear"
    if given in ("linear", "softmax"):
        return given
    if isinstance(given, str) and given not in ACTIVATIONS:
        raise ValueError(f"activation {given!r} is not known; expected one of {', '.join(ACTIVATIONS)}")
    spec.activation(given)
    return tuple(given) if isinstance(given, list) else given


def activate(given: Any, a: Any) -> Any:
    """The activation of pre-activations (..., U); softmax over the last axis."""
    if given == "linear":
        return a
    if given == "softmax":
        e = np.exp(a - a.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)
    return act(spec.activation(given), a)


def activation_backward(given: Any, y: Any, dy: Any) -> Any:
    """The gradient of the pre-activations, from the outputs and their gradient."""
    if given == "linear":
        return dy
    if given == "softmax":
        return y * (dy - (dy * y).sum(axis=-1, keepdims=True))
    return dy * dact(spec.activation(given), y)


class Activation(Module):
    """An activation of every number, or softmax over the last axis: (B, ..., U) -> (B, ..., U).

    Parameters
    ----------
    activation : name, or (name, alpha, beta)
        "linear", "softmax", or one of `fastlstm.spec.ACTIVATIONS`.
    dtype, backend, seed
        As in `Module`.

    Raises
    ------
    TypeError, ValueError
        The activation is not known; the message lists the names.
    """

    def __init__(
        self, activation: Any, *, dtype: Any = "float32", backend: str = "auto", seed: int | None = None
    ) -> None:
        super().__init__(dtype=dtype, backend=backend, seed=seed)
        self.activation = checked(activation)

    def __call__(self, x: Any, mask: Any = None) -> Array:
        """(B, ..., U) -> (B, ..., U)."""
        y: Array = activate(self.activation, as_numbers(self._enter(x), "x", self.dtype))
        return y

    def forward(self, x: Any, mask: Any = None) -> tuple[Array, ModuleTape]:
        """(B, ..., U) -> (B, ..., U), and the tape."""
        y = self(x)
        return y, self._tape(y=y.copy(), shape=y.shape)

    def backward(self, tape: ModuleTape, dy: Any) -> tuple[Array, dict[str, Array]]:
        """The gradient of x, and no parameters' gradients."""
        check_tape(tape, self, ModuleTape)
        dy = checked_dy(dy, tape.kept["shape"], self.dtype)
        dx: Array = activation_backward(self.activation, self._use(tape)["y"], dy)
        return dx, {}
