"""Steps that are padding: told by their values, and filled with the outputs before them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..layer import check_tape
from ..layout import Array
from ..validation import as_numbers, checked_dy, number
from .base import Module, ModuleTape, Shape


class Masking(Module):
    """Leaves out the steps whose inputs all equal `mask_value`: the modules behind this one skip them.

    Their inputs become 0, as in Keras. A mask that is given is replaced by what the values say.

    Parameters
    ----------
    mask_value : float
    dtype, backend, seed
        As in `Module`.
    """

    def __init__(
        self, mask_value: float = 0.0, *, dtype: Any = "float32", backend: str = "auto", seed: int | None = None
    ) -> None:
        super().__init__(dtype=dtype, backend=backend, seed=seed)
        self.mask_value = number(mask_value, "mask_value", -np.inf)

    def _check_shape(self, shape: Shape) -> None:
        if len(shape) != 2:
            raise ValueError(f"Masking takes samples of shape (T, width), got {shape}")

    def output_mask(self, x: Any, mask: Array | None) -> Array | None:
        """(B, T): False where all numbers of a step equal `mask_value`."""
        there: Array = (np.asarray(x) != self.dtype.type(self.mask_value)).any(axis=-1)
        return there

    def _masked(self, x: Any) -> tuple[Array, Any]:
        """(x with masked steps set to 0, the mask)."""
        x = as_numbers(self._enter(x), "x", self.dtype)
        there = self.output_mask(x, None)
        assert there is not None
        return np.where(there[..., None], x, self.dtype.type(0)), there

    def __call__(self, x: Any, mask: Any = None) -> Array:
        """(B, T, I) -> (B, T, I)."""
        return self._masked(x)[0]

    def forward(self, x: Any, mask: Any = None) -> tuple[Array, ModuleTape]:
        """(B, T, I) -> (B, T, I), and the tape."""
        y, there = self._masked(x)
        return y, self._tape(there=there, shape=y.shape)

    def backward(self, tape: ModuleTape, dy: Any) -> tuple[Array, dict[str, Array]]:
        """The gradient of x, and no parameters' gradients."""
        check_tape(tape, self, ModuleTape)
        dy = checked_dy(dy, tape.kept["shape"], self.dtype)
        dx: Array = dy * self._use(tape)["there"][..., None]
        return dx, {}


def held(y: Array, mask: Array) -> Array:
    """Outputs (B, T, W) in which each step that the mask (B, T) leaves out has those of the last valid step before.

    Before the first valid step they are 0.
    """
    steps = np.maximum.accumulate(np.where(mask, np.arange(y.shape[1]), -1), axis=1)
    out: Array = np.take_along_axis(y, np.maximum(steps, 0)[..., None], axis=1)
    out[steps < 0] = 0
    return out


def held_backward(dy: Array, mask: Array) -> Array:
    """The gradient (B, T, W) of `held`'s argument: each valid step has those of the steps that repeat it too."""
    d, carried = np.zeros_like(dy), np.zeros((len(dy), dy.shape[2]), dy.dtype)
    for t in reversed(range(dy.shape[1])):
        carried += dy[:, t]
        valid = mask[:, t]
        d[valid, t] = carried[valid]
        carried[valid] = 0
    return d
