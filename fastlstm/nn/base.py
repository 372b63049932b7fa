"""The base of all modules: parameters that are made when the input's width is known, freezing, penalties."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from .._backends import choose
from ..layer import Layer, Tape, check_tape
from ..layout import Array
from ..quantise import Quantisation
from ..validation import flag, seed_or_none
from .regularizers import L1L2, regularizer

Shape = tuple[int | None, ...]  # shape of one sample, without the batch's axis; None: an axis of any length


@dataclass
class ModuleTape(Tape):
    """The tape of a module."""

    kept: dict[str, Any] = field(default_factory=dict)


class Module(Layer):
    """A layer for `fastlstm.Sequential`, or for models composed by hand: ``forward``, ``backward``, named parameters.

    The batch is the first axis everywhere: x is (B, ...). `build` or the first call makes the parameters.

    Parameters
    ----------
    trainable : bool
        Whether training changes the parameters. A frozen module still passes gradients to the one below.
    dtype : {"float32", "float64"}
    backend : str
        "auto", or a name from `fastlstm.backends()`.
    seed : int, optional
        Seed of the initial parameters and of dropout. `Sequential` replaces its modules' seeds.
    """

    REGULARIZED: tuple[tuple[str, str], ...] = ()  # (attribute with a penalty or None, beginning of parameters' names)

    def __init__(
        self, *, trainable: bool = True, dtype: Any = "float32", backend: str = "auto", seed: int | None = None
    ) -> None:
        super().__init__(dtype, backend)
        self.trainable = flag(trainable, "trainable")
        self._core: Layer | None = None  # the layer with the parameters; None before the module is built
        self._shape: Shape | None = None  # shape of a sample, from the call that built the module
        self._connect()
        self.reseed(seed_or_none(seed))

    def reseed(self, seed: Any) -> None:
        """Restart the generators of initial parameters and of dropout with this seed. Existing parameters stay."""
        for_weights, for_dropout = np.random.SeedSequence(seed).spawn(2)
        self._initial_rng = np.random.default_rng(for_weights)
        self._rng = np.random.default_rng(for_dropout)

    @property
    def rng_state(self) -> dict[str, Any]:
        """State of the generator that dropout draws from; may be assigned, to continue a run with the same bits."""
        state: dict[str, Any] = {**self._rng.bit_generator.state}
        return state

    @rng_state.setter
    def rng_state(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = {**state}

    # --------------------------------------------------------------------------------------------------------- building
    @property
    def built(self) -> bool:
        """Whether the parameters exist."""
        return self._shape is not None

    def build(self, shape: Shape) -> None:
        """Make the parameters for samples of this shape (without the batch's axis).

        Raises
        ------
        ValueError
            The module cannot take such samples, or was built for others.
        """
        shape = tuple(shape)
        self._check_shape(shape)
        if self._shape is None:
            self._core = self._make(shape)
            self._shape = shape
        elif self._width(shape) != self._width(self._shape):
            raise ValueError(
                f"{self!r} was built for samples of shape {self._shape}, got {shape}: make another module for these"
            )

    def _check_shape(self, shape: Shape) -> None:
        """Raise ValueError if the module does not take samples of this shape."""

    def _width(self, shape: Shape) -> Any:
        """The part of a sample's shape on which the parameters depend."""
        return shape[-1] if self._core is not None else None

    def _make(self, shape: Shape) -> Layer | None:
        """The layer with the parameters, or None for a module without parameters."""
        return None

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of a sample's output, from the shape of its input."""
        return shape

    def output_mask(self, x: Any, mask: Array | None) -> Array | None:
        """The output's mask (B, T), or None, from the input and its mask."""
        return mask

    # ------------------------------------------------------------------------------------------------------- parameters
    @property
    def core(self) -> Layer:
        """The layer inside, with PyTorch's names and shapes.

        Raises
        ------
        RuntimeError
            The module is not built yet, or has no parameters.
        """
        if self._core is None:
            raise RuntimeError(f"{self!r} has no parameters yet: call it on an input, or build((..., width))")
        return self._core

    @property
    def version(self) -> int:
        """The number of changes of the parameters."""
        return 0 if self._core is None else self._core.version

    @property
    def _quantised(self) -> Quantisation | None:
        return None if self._core is None else self._core._quantised

    def _keep(self, how: Any) -> None:
        self.core._keep(how)

    def _live(self) -> dict[str, Array]:
        return {} if self._core is None else self._core._live()

    @contextmanager
    def update(self) -> Iterator[dict[str, Array]]:
        """The live parameters, to be changed in place: ``with module.update() as params: params[name] *= 0.9``."""
        if self._core is None:
            yield {}
            return
        with self._core.update() as params:
            yield params

    def _choose(self) -> ModuleType:
        return choose(self._backend, self.dtype.name)

    def _set_training(self, training: bool) -> Any:
        super()._set_training(training)
        if self._core is not None:
            self._core._set_training(training)
        return self

    # -------------------------------------------------------------------------------------------------------- penalties
    def penalty(self, grads: dict[str, Array] | None = None) -> float:
        """The sum of the module's penalties.

        Parameters
        ----------
        grads : dict of arrays, optional
            The gradients of the parameters; the penalties' gradients are added to them in place.
        """
        total = 0.0
        for attribute, beginning in self.REGULARIZED:
            rule = getattr(self, attribute)
            if rule is None:
                continue
            for name, p in self._live().items():
                if name.startswith(beginning):
                    total += rule(p, None if grads is None else grads[name])
        return total

    # ------------------------------------------------------------------------------------------------------------ calls
    def _enter(self, x: Any) -> Array:
        """x as an array, after building the module for its samples."""
        array: Array = np.asarray(x)
        if array.ndim < 2:
            raise ValueError(f"x has shape {array.shape}, expected the batch's axis first: (batch, ...)")
        self.build(array.shape[1:])
        return array

    def _tape(self, **kept: Any) -> ModuleTape:
        tape = ModuleTape(self, self.version)
        tape.kept = kept
        return tape

    def __call__(self, x: Any, mask: Any = None) -> Array:
        """The output for inference.

        Parameters
        ----------
        x : (B, ...) array
        mask : (B, T) bool array, optional
            True at the steps that count.
        """
        raise NotImplementedError

    def forward(self, x: Any, mask: Any = None) -> tuple[Array, ModuleTape]:
        """The output for training, and the tape for one `backward`."""
        raise NotImplementedError

    def backward(self, tape: ModuleTape, dy: Any) -> tuple[Array | None, dict[str, Array]]:
        """(gradient of x, None for token ids; gradients of the parameters by name). Uses up the tape."""
        raise NotImplementedError

    def to_onnx(self, path: str | os.PathLike[str], stateful: bool = False) -> None:
        """Write the module or model as an ONNX model, atomically; see `fastlstm.onnx.to_onnx`."""
        from ..onnx import to_onnx

        to_onnx(self, path, stateful)

    def _use(self, tape: Any) -> dict[str, Any]:
        """The values kept on the tape, or an error if it does not serve; marks the tape as used."""
        check_tape(tape, self, ModuleTape)
        tape.used = True
        return tape.kept  # type: ignore[no-any-return]

    def _arguments(self) -> Iterator[tuple[str, Any, Any]]:
        for name, value, default in super()._arguments():
            yield name, value.get_config() if isinstance(value, L1L2) else value, default


def regularized(module: Module, given: Mapping[str, Any]) -> None:
    """Set the penalties among the constructor's arguments as attributes."""
    for attribute, _ in module.REGULARIZED:
        setattr(module, attribute, regularizer(given[attribute], attribute))


def drop_factors(rng: np.random.Generator, shape: tuple[int, ...], rate: float, dtype: np.dtype[Any]) -> Array:
    """Dropout's factors: 0 with probability `rate`, else 1/(1 - rate) (Srivastava et al. 2014, inverted)."""
    if rate == 1:
        return np.zeros(shape, dtype)
    kept: Array = (rng.random(shape, np.float32) >= rate) * dtype.type(1 / (1 - rate))
    return kept
