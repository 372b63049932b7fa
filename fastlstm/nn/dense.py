"""A fully connected module with an activation."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dense
from ..layer import Layer, check_tape
from ..layout import Array
from ..validation import as_numbers, checked_dy, flag, positive
from .activation import activate, activation_backward, checked
from .base import Module, ModuleTape, Shape, regularized
from .initializers import INITIALIZERS, initializer


class Dense(Module):
    """activation(x @ kernel + bias) over the last axis: (B, ..., I) -> (B, ..., units).

    Parameters
    ----------
    units : int
    activation : name, or (name, alpha, beta); optional
        "linear" (also None), "softmax", or one of `fastlstm.spec.ACTIVATIONS`.
    use_bias : bool
    kernel_initializer : str
        A name of `fastlstm.nn.INITIALIZERS`; the bias begins at 0.
    kernel_regularizer, bias_regularizer : L1L2, optional
    trainable, dtype, backend, seed
        As in `Module`.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; the message says which.
    """

    REGULARIZED = (("kernel_regularizer", "weight"), ("bias_regularizer", "bias"))

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        *,
        kernel_initializer: str = "glorot_uniform",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        trainable: bool = True,
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(trainable=trainable, dtype=dtype, backend=backend, seed=seed)
        self.units, self.use_bias = positive(units, "units"), flag(use_bias, "use_bias")
        self.activation = checked(activation)
        self.kernel_initializer = initializer(kernel_initializer, "kernel_initializer")
        regularized(self, {"kernel_regularizer": kernel_regularizer, "bias_regularizer": bias_regularizer})

    def _check_shape(self, shape: Shape) -> None:
        if not shape or shape[-1] is None:
            raise ValueError(f"Dense needs samples whose last axis has a known width, got shape {shape}")

    def _width(self, shape: Shape) -> Any:
        return shape[-1]

    def _make(self, shape: Shape) -> Layer:
        width = shape[-1]
        assert width is not None
        core = dense.Dense(width, self.units, self.use_bias, dtype=self.dtype, backend=self._backend, seed=0)
        kernel = INITIALIZERS[self.kernel_initializer]((width, self.units), self._initial_rng)
        core.load_state_dict({"weight": kernel.T} | ({"bias": np.zeros(self.units)} if self.use_bias else {}))
        return core

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], self.units)

    def logits(self, x: Any) -> Array:
        """The pre-activations of x (B, ..., I): (B, ..., units)."""
        x = as_numbers(self._enter(x), "x", self.dtype)
        y: Array = self.core(x)  # type: ignore[operator]
        return y

    def __call__(self, x: Any, mask: Any = None) -> Array:
        """(B, ..., I) -> (B, ..., units)."""
        y: Array = activate(self.activation, self.logits(x))
        return y

    def forward_logits(self, x: Any) -> tuple[Array, dense.DenseTape]:
        """The pre-activations, and a tape for `backward_logits`: for losses that include the activation."""
        x = as_numbers(self._enter(x), "x", self.dtype)
        assert isinstance(self.core, dense.Dense)
        return self.core.forward(x)

    def backward_logits(self, tape: dense.DenseTape, d: Any) -> tuple[Array, dict[str, Array]]:
        """Gradients of x and of the parameters, from the gradient d of the pre-activations."""
        assert isinstance(self.core, dense.Dense)
        return self.core.backward(tape, d)

    def forward(self, x: Any, mask: Any = None) -> tuple[Array, ModuleTape]:
        """(B, ..., I) -> (B, ..., units), and the tape."""
        a, inner = self.forward_logits(x)
        y = activate(self.activation, a)
        return y, self._tape(inner=inner, y=y.copy() if self.activation != "linear" else None, shape=y.shape)

    def backward(self, tape: ModuleTape, dy: Any) -> tuple[Array, dict[str, Array]]:
        """Gradients of x, shaped like it, and of ``weight`` (units, I) and ``bias`` (units,)."""
        check_tape(tape, self, ModuleTape)
        dy = checked_dy(dy, tape.kept["shape"], self.dtype)
        kept = self._use(tape)
        return self.backward_logits(kept["inner"], activation_backward(self.activation, kept["y"], dy))

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_core" not in state:  # a pickle of version 0.1.0, in which fastlstm.nn.Dense was today's fastlstm.Dense
            self.__class__ = dense.Dense  # type: ignore[assignment]
            dense.Dense.__setstate__(self, state)
            return
        super().__setstate__(state)
