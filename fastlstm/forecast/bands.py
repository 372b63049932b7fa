"""Quantiles that cannot cross: the last module of a forecasting model, and its loss.

Letters: B windows, S = horizon * K numbers to be forecast, Q quantiles.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .. import dense
from ..layer import Layer, check_tape
from ..layout import Array
from ..losses import Quantile
from ..nn.base import Module, ModuleTape, Shape
from ..nn.initializers import INITIALIZERS
from ..validation import as_numbers, checked_dy
from ..weighting import Counted

GAP = float(np.log(2))  # between neighbouring quantiles where their pre-activations are 0: softplus(0)


class Bands(Module):
    """(B, I) -> (B, S, Q): the lowest quantile is linear, each further one lies a softplus above the one before.

    Parameters
    ----------
    size, quantiles : int
        S and Q.
    dtype, backend, seed
        As in `Module`.
    """

    def __init__(
        self, size: int, quantiles: int, *, dtype: Any = "float32", backend: str = "auto", seed: int | None = None
    ) -> None:
        super().__init__(dtype=dtype, backend=backend, seed=seed)
        self.size, self.quantiles = size, quantiles

    def _make(self, shape: Shape) -> Layer:
        width, out = shape[-1], self.size * self.quantiles
        assert width is not None
        core = dense.Dense(width, out, dtype=self.dtype, backend=self._backend, seed=0)
        kernel = INITIALIZERS["glorot_uniform"]((width, out), self._initial_rng)
        bias = np.zeros((self.size, self.quantiles))
        bias[:, 0] = -GAP * (self.quantiles - 1) / 2  # the middle one begins at 0
        core.load_state_dict({"weight": kernel.T, "bias": bias.reshape(-1)})
        return core

    def output_shape(self, shape: Shape) -> Shape:
        return (self.size, self.quantiles)

    def _stacked(self, a: Array) -> tuple[Array, Array]:
        """Quantiles (B, S, Q) and their pre-activations, from the dense layer's outputs (B, S * Q)."""
        a = a.reshape(len(a), self.size, self.quantiles)
        y = a.copy()
        np.logaddexp(0, a[..., 1:], out=y[..., 1:])
        return np.cumsum(y, axis=-1, out=y), a

    def __call__(self, x: Any, mask: Any = None) -> Array:
        """(B, I) -> (B, S, Q)."""
        core: Any = self._entered(x)
        return self._stacked(core(as_numbers(x, "x", self.dtype)))[0]

    def _entered(self, x: Any) -> Layer:
        self._enter(x)
        return self.core

    def forward(self, x: Any, mask: Any = None) -> tuple[Array, ModuleTape]:
        """(B, I) -> (B, S, Q), and the tape."""
        core: Any = self._entered(x)
        out, inner = core.forward(as_numbers(x, "x", self.dtype))
        y, a = self._stacked(np.array(out))
        return y, self._tape(inner=inner, a=a)

    def backward(self, tape: ModuleTape, dy: Any) -> tuple[Array, dict[str, Array]]:
        """Gradients of x and of the parameters."""
        check_tape(tape, self, ModuleTape)
        a = tape.kept["a"]
        dy = checked_dy(dy, a.shape, self.dtype)
        inner = self._use(tape)["inner"]
        da = np.cumsum(dy[..., ::-1], axis=-1)[..., ::-1].copy()  # a quantile is part of all above it
        da[..., 1:] *= 1 / (1 + np.exp(-a[..., 1:]))
        core: Any = self.core
        dx, grads = core.backward(inner, da.reshape(len(a), -1))
        return dx, grads


class BandLoss(Quantile):
    """The quantile loss of `Bands`, for targets (B, S, Q) that are the same Q times, as a view can hold them."""

    name: ClassVar[str] = "bands"

    def take(self, y: Any, target: Any, mask: Any, weights: Any) -> Counted:
        return super().take(y, target[..., 0], mask, weights)


def repeated(y: Array, quantiles: int) -> Array:
    """Targets (N, horizon, K) as `BandLoss` takes them, (N, S, Q): a view."""
    flat = y.reshape(len(y), -1)
    view: Array = np.broadcast_to(flat[..., None], (*flat.shape, quantiles))
    return view
