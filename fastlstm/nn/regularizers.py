"""Penalties on parameters, added to the loss: L1 and L2 in Keras's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..layout import Array
from ..validation import number


class L1L2:
    """The penalty l1 * sum |w| + l2 * sum w².

    Parameters
    ----------
    l1, l2 : float
    """

    def __init__(self, l1: float = 0.0, l2: float = 0.0) -> None:
        self.l1, self.l2 = number(l1, "l1"), number(l2, "l2")

    def __call__(self, w: Array, grad: Array | None = None) -> float:
        """The penalty of an array. Its gradient is added in place to `grad`, if given."""
        value = 0.0
        if self.l1:
            value += self.l1 * float(np.abs(w).sum(dtype=np.float64))
            if grad is not None:
                grad += w.dtype.type(self.l1) * np.sign(w)
        if self.l2:
            value += self.l2 * float(np.square(w, dtype=np.float64).sum())
            if grad is not None:
                grad += w.dtype.type(2 * self.l2) * w
        return value

    def get_config(self) -> dict[str, float]:
        """The arguments, in JSON's types."""
        return {"l1": self.l1, "l2": self.l2}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, L1L2) and self.get_config() == other.get_config()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"L1L2(l1={self.l1:g}, l2={self.l2:g})"


def regularizer(given: Any, name: str) -> L1L2 | None:
    """The penalty of an argument: None, an `L1L2`, its configuration, or a number for L2.

    Raises
    ------
    TypeError
        The argument is none of these.
    """
    if given is None or isinstance(given, L1L2):
        return given
    if isinstance(given, Mapping):
        return L1L2(**given)
    if isinstance(given, (int, float, np.integer, np.floating)) and not isinstance(given, bool):
        return L1L2(l2=float(given))
    raise TypeError(f"{name} must be None, an L1L2(l1, l2), or a number for L2, got {given!r}")
