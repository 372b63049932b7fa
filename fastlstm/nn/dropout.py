"""Dropout between modules."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..layer import check_tape
from ..layout import Array
from ..validation import as_numbers, checked_dy, probability
from .base import Module, ModuleTape, drop_factors


class Dropout(Module):
    """In training, sets inputs to 0 with probability `rate` and divides the others by 1 - rate.

    Parameters
    ----------
    rate : float
        In [0, 1].
    noise_shared_over_time : bool
        One factor for all steps of a sequence, so that a feature is dropped as a whole (Gal & Ghahramani 2016).
    dtype, seed
        As in `Module`.
    """

    def __init__(
        self,
        rate: float,
        *,
        noise_shared_over_time: bool = False,
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(dtype=dtype, backend=backend, seed=seed)
        self.rate = probability(rate, "rate")
        self.noise_shared_over_time = noise_shared_over_time

    def __call__(self, x: Any, mask: Any = None) -> Array:
        """x as it is."""
        return as_numbers(self._enter(x), "x", self.dtype)

    def forward(self, x: Any, mask: Any = None) -> tuple[Array, ModuleTape]:
        """x with dropped inputs, unless `eval` was called; and the tape."""
        x = self(x)
        if not self.training or self.rate == 0:
            return x, self._tape(factors=None, shape=x.shape)
        shape = (x.shape[0], 1, *x.shape[2:]) if self.noise_shared_over_time and x.ndim > 2 else x.shape
        factors = drop_factors(self._rng, shape, self.rate, self.dtype)
        y: Array = x * factors
        return y, self._tape(factors=factors, shape=x.shape)

    def backward(self, tape: ModuleTape, dy: Any) -> tuple[Array, dict[str, Array]]:
        """The gradient of x, and no parameters' gradients."""
        check_tape(tape, self, ModuleTape)
        dy = checked_dy(dy, tape.kept["shape"], self.dtype)
        factors = self._use(tape)["factors"]
        dx: Array = np.asarray(dy) if factors is None else dy * factors
        return dx, {}
