"""Residual connections round a module."""

from __future__ import annotations

from typing import Any

from ..layer import Layer
from ..layout import Array
from ..validation import as_numbers
from .base import Module, ModuleTape, Shape


class Residual(Module):
    """x + module(x), where the module's output is shaped like its input (He et al. 2016).

    Parameters
    ----------
    module : Module
        With an output shaped like its input: a recurrent module needs ``return_sequences=True``, and units equal to the
        input's width.
    """

    def __init__(self, module: Module, *, backend: str = "auto", seed: int | None = None) -> None:
        if not isinstance(module, Module):
            raise TypeError(f"Residual takes a module of fastlstm.nn, got {type(module).__name__}")
        self.module = module
        super().__init__(trainable=module.trainable, dtype=module.dtype, backend=backend, seed=seed)
        if seed is None:
            return
        module.reseed(seed)

    def reseed(self, seed: Any) -> None:
        super().reseed(seed)
        if seed is not None:
            self.module.reseed(seed)

    @property
    def rng_state(self) -> dict[str, Any]:
        """State of the module's generator; see `Module.rng_state`."""
        return self.module.rng_state

    @rng_state.setter
    def rng_state(self, state: dict[str, Any]) -> None:
        self.module.rng_state = state

    @property
    def stateful(self) -> bool:
        """Whether the module begins each batch with the state that the last one ended with."""
        return getattr(self.module, "stateful", False)

    def reset_state(self) -> None:
        """Let a stateful module begin with zeros again."""
        if self.stateful:
            self.module.reset_state()  # type: ignore[attr-defined]

    @property
    def _states(self) -> tuple[Array, ...] | None:
        return getattr(self.module, "_states", None)

    @_states.setter
    def _states(self, states: tuple[Array, ...] | None) -> None:
        self.module._states = states  # type: ignore[attr-defined]

    def _make(self, shape: Shape) -> Layer | None:
        self.module.build(shape)
        after = self.module.output_shape(shape)
        if after != shape:
            raise ValueError(
                f"Residual adds a module's output to its input, which have shapes {after} and {shape}: "
                "take as many units as the input is wide, and return_sequences=True"
            )
        return self.module if self.module._core is not None else None

    def _width(self, shape: Shape) -> Any:
        return shape[-1]

    def _set_training(self, training: bool) -> Any:
        self.module._set_training(training)
        return super()._set_training(training)

    def output_mask(self, x: Any, mask: Array | None) -> Array | None:
        return self.module.output_mask(x, mask)

    def penalty(self, grads: dict[str, Array] | None = None) -> float:
        return self.module.penalty(grads)

    def __call__(self, x: Any, mask: Any = None) -> Array:
        """x + module(x)."""
        x = as_numbers(self._enter(x), "x", self.dtype)
        y: Array = x + self.module(x, mask)
        return y

    def forward(self, x: Any, mask: Any = None) -> tuple[Array, ModuleTape]:
        """x + module(x), and the tape."""
        x = as_numbers(self._enter(x), "x", self.dtype)
        y, inner = self.module.forward(x, mask)
        return x + y, self._tape(inner=inner)

    def backward(self, tape: ModuleTape, dy: Any) -> tuple[Array, dict[str, Array]]:
        """The gradient of x, dy plus the module's, and the gradients of the module's parameters."""
        dx, grads = self.module.backward(self._use(tape)["inner"], dy)
        assert dx is not None
        return dx + dy, grads
