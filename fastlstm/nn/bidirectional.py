"""A recurrent module in both directions of time."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..layer import Layer, check_tape
from ..layout import Array
from ..validation import checked_dy
from .base import Module, ModuleTape, Shape
from .recurrent import Recurrent

MERGE_MODES = ("concat", "sum", "mul", "ave", None)


class Bidirectional(Module):
    """Two copies of a recurrent module, one of them from the last step to the first, with merged outputs.

    Both directions are one call of the layer inside. Its parameters have PyTorch's names: ``weight_ih_l0`` and, of the
    reverse direction, ``weight_ih_l0_reverse``.

    Parameters
    ----------
    module : LSTM, GRU or SimpleRNN of `fastlstm.nn`
        Not yet built. It is copied.
    merge_mode : {"concat", "sum", "mul", "ave"} or None
        None: the output is a pair, which no other module takes. Steps that a mask leaves out are 0 in each mode.

    Raises
    ------
    TypeError, ValueError
        The module cannot be made bidirectional, or the mode is not known.
    """

    def __init__(
        self, module: Recurrent, merge_mode: str | None = "concat", *, backend: str = "auto", seed: int | None = None
    ) -> None:
        if not isinstance(module, Recurrent):
            raise TypeError(f"Bidirectional takes nn.LSTM, nn.GRU or nn.SimpleRNN, got {type(module).__name__}")
        if module.built:
            raise ValueError(f"{module!r} is built already: give Bidirectional a new one")
        if module.go_backwards or module.stateful:
            raise ValueError("Bidirectional takes no module with go_backwards or stateful: leave them out")
        if merge_mode not in MERGE_MODES:
            raise ValueError(
                f"merge_mode {merge_mode!r} is not known; expected one of {', '.join(map(str, MERGE_MODES))}"
            )
        self.module, self.merge_mode = module, merge_mode
        self._both: Recurrent = type(module).__new__(type(module))
        config = {name: value for name, value, _ in module._arguments()}
        config |= {"seed": seed, "backend": module._backend, "trainable": module.trainable}
        Recurrent.__init__(self._both, config | {"zero_output_for_mask": True}, directions=2)
        super().__init__(trainable=module.trainable, dtype=module.dtype, backend=module._backend, seed=seed)

    def reseed(self, seed: Any) -> None:
        super().reseed(seed)
        self._both.reseed(seed)

    @property
    def rng_state(self) -> dict[str, Any]:
        """State of the generator of both directions; see `Module.rng_state`."""
        return self._both.rng_state

    @rng_state.setter
    def rng_state(self, state: dict[str, Any]) -> None:
        self._both.rng_state = state

    @property
    def return_sequences(self) -> bool:
        """Whether there is an output at every step."""
        return self.module.return_sequences

    def _check_shape(self, shape: Shape) -> None:
        self._both._check_shape(shape)

    def _width(self, shape: Shape) -> Any:
        return shape[-1]

    def _make(self, shape: Shape) -> Layer:
        self._both.build(shape)
        return self._both.core

    def output_shape(self, shape: Shape) -> Shape:
        both = self._both.output_shape(shape)
        return both if self.merge_mode == "concat" else (*both[:-1], self._both.units)

    def output_mask(self, x: Any, mask: Array | None) -> Array | None:
        return self._both.output_mask(x, mask)

    def penalty(self, grads: dict[str, Array] | None = None) -> float:
        return self._both.penalty(grads)

    def _set_training(self, training: bool) -> Any:
        self._both._set_training(training)
        return super()._set_training(training)

    def _merge(self, y: Array) -> Any:
        """(..., 2H) -> the outputs of both directions merged, or a pair of them."""
        if self.merge_mode == "concat":
            return y
        one, other = np.split(y, 2, axis=-1)
        if self.merge_mode is None:
            return one, other
        if self.merge_mode == "mul":
            return one * other
        total: Array = one + other
        return total * self.dtype.type(0.5) if self.merge_mode == "ave" else total

    def __call__(self, x: Any, mask: Any = None) -> Any:
        """(B, T, I) -> (B, T, W), or (B, W) without return_sequences; W is 2 units with "concat", else units."""
        self._enter(x)
        return self._merge(self._both(x, mask))

    def forward(self, x: Any, mask: Any = None) -> tuple[Any, ModuleTape]:
        """The output for training, as in `__call__`, and the tape."""
        self._enter(x)
        y, inner = self._both.forward(x, mask)
        merged = self._merge(y)
        kept = y.copy() if self.merge_mode == "mul" else None
        shape = y.shape if self.merge_mode is None else merged.shape
        return merged, self._tape(inner=inner, y=kept, shape=shape)

    def backward(self, tape: ModuleTape, dy: Any) -> tuple[Array, dict[str, Array]]:
        """Gradients of x and of the parameters of both directions; dy is a pair where the output is one."""
        check_tape(tape, self, ModuleTape)
        if self.merge_mode is None:
            dy = np.concatenate(dy, axis=-1)
        dy = checked_dy(dy, tape.kept["shape"], self.dtype)
        kept = self._use(tape)
        if self.merge_mode == "mul":
            one, other = np.split(kept["y"], 2, axis=-1)
            dy = np.concatenate((dy * other, dy * one), axis=-1)
        elif self.merge_mode in ("sum", "ave"):
            half = dy * self.dtype.type(0.5) if self.merge_mode == "ave" else dy
            dy = np.concatenate((half, half), axis=-1)
        return self._both.backward(kept["inner"], dy)
