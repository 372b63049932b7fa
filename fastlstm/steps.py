"""A model as a list of steps: plain data for programs that run a model without this package's layers.

`steps_of` takes a layer, a `Sequential`, or a list such as ``[lstm, dense, "sigmoid"]``, and returns what happens to
one input of one time step: a row is looked up, a recurrent layer advances, a product is taken, an activation applied.
For signals a list may hold steps themselves: `Context`, `Gather`, `Magnitude`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from . import dense, nn
from .layout import Array
from .nn.activation import checked
from .nn.chain import Chain
from .recurrent import Recurrent
from .spec import Spec
from .validation import positive

Activation = Any  # "linear", "softmax", a name of `spec.ACTIVATIONS`, or (name, alpha, beta)


@dataclass(frozen=True)
class Lookup:
    """A token id becomes a row of the table.

    Parameters
    ----------
    weight : (V, E) array
    """

    weight: Array

    @property
    def sizes(self) -> tuple[int, int]:
        """Width of the input, which is one id, and of the output."""
        return 1, self.weight.shape[1]

    def __str__(self) -> str:
        return "Embedding({}, {})".format(*self.weight.shape)


@dataclass(frozen=True)
class Recurrence:
    """One layer of recurrent cells advances by one step, and its h is the output.

    Parameters
    ----------
    spec : Spec
    params : dict of arrays
        By the names and shapes of ``spec.parameters``.
    skip : bool
        Whether the input is added to the output.
    layer : LSTM, GRU or RNN
        The object that the step belongs to.
    number : int
        The step's place among the layers of that object.
    """

    spec: Spec
    params: dict[str, Array]
    skip: bool = False
    layer: Any = None
    number: int = 0

    @property
    def sizes(self) -> tuple[int, int]:
        """Width of the input and of the output."""
        return self.spec.I, self.spec.R

    def __str__(self) -> str:
        projected = f", proj_size={self.spec.proj_size}" if self.spec.proj_size else ""
        return f"{self.spec.kind.upper()}({self.spec.I}, {self.spec.H}{projected})"


@dataclass(frozen=True)
class Affine:
    """activation(weight x + bias).

    Parameters
    ----------
    weight : (U, I) array
    bias : (U,) array or None
    activation : activation
    skip : bool
        Whether the input is added to the output.
    frames : int
        Frames of x, one behind the other, each of which is multiplied.
    """

    weight: Array
    bias: Array | None
    activation: Activation = "linear"
    skip: bool = False
    frames: int = 1

    @property
    def sizes(self) -> tuple[int, int]:
        """Width of the input and of the output."""
        return self.frames * self.weight.shape[1], self.frames * self.weight.shape[0]

    def __str__(self) -> str:
        return f"Dense({self.weight.shape[1]}, {self.weight.shape[0]}, {self.activation!r})"


@dataclass(frozen=True)
class Pointwise:
    """An activation of every number, or softmax over all.

    Parameters
    ----------
    activation : activation
    size : int
        Width of input and output.
    frames : int
        Equal parts of the input; softmax is taken over each.
    """

    activation: Activation
    size: int
    frames: int = 1

    @property
    def sizes(self) -> tuple[int, int]:
        """Width of the input and of the output."""
        return self.size, self.size

    def __str__(self) -> str:
        return f"Activation({self.activation!r})"


@dataclass(frozen=True)
class Context:
    """The last numbers of the inputs before, then the input: what overlapping windows of a signal have in common.

    Parameters
    ----------
    size : int
        Width of the input.
    keep : int
        Numbers that are kept from step to step; zeros before the first one.
    """

    size: int
    keep: int

    def __post_init__(self) -> None:
        positive(self.size, "size")
        positive(self.keep, "keep")

    @property
    def sizes(self) -> tuple[int, int]:
        """Width of the input and of the output."""
        return self.size, self.size + self.keep

    def __str__(self) -> str:
        return f"Context({self.size}, {self.keep})"


@dataclass(frozen=True)
class Gather:
    """Frames of numbers of the input: framing, strides, padding with zeros or by reflection, im2col of a convolution.

    A `fastlstm.Dense` behind it multiplies each frame.

    Parameters
    ----------
    index : (F, K) integer array
        Places in the input; -1 gives 0.
    size : int
        Width of the input; 0: that of the output before.
    """

    index: Array
    size: int = 0

    def __post_init__(self) -> None:
        index = np.asarray(self.index)
        if index.dtype.kind not in "iu" or index.ndim != 2 or not index.size:
            raise ValueError(f"index is an array of integers (F, K), got dtype {index.dtype} and shape {index.shape}")
        if index.min() < -1 or (self.size and index.max() >= self.size):
            raise ValueError(
                f"index must lie between -1 and {self.size - 1 if self.size else 'the width of the input'}, "
                f"got {index.min()} to {index.max()}"
            )
        object.__setattr__(self, "index", np.array(index, np.int64))

    @property
    def frames(self) -> int:
        """F."""
        return len(self.index)

    @property
    def sizes(self) -> tuple[int, int]:
        """Width of the input and of the output."""
        return self.size, self.index.size

    def __str__(self) -> str:
        return f"Gather of {self.index.shape} numbers"


@dataclass(frozen=True)
class Magnitude:
    """sqrt(re^2 + im^2) of each frame, whose first half is re and whose second half is im: a spectrum's magnitudes.

    Parameters
    ----------
    size : int
        Width of the input; 0: that of the output before.
    frames : int
    """

    size: int = 0
    frames: int = 1

    @property
    def sizes(self) -> tuple[int, int]:
        """Width of the input and of the output."""
        return self.size, self.size // 2

    def __str__(self) -> str:
        return f"Magnitude of {self.frames} frames"


Step = Lookup | Recurrence | Affine | Pointwise
FramedStep = Context | Gather | Magnitude  # steps that streams have and `to_c` has not


def steps_of(model: Any, native: bool = False) -> list[Any]:
    """The steps of a model, first to last, with copies of its parameters.

    Parameters
    ----------
    model : layer, Sequential, or list
        A list holds recurrent layers, `fastlstm.Dense`, modules of `fastlstm.nn` that are built, and activations: a
        name, or (name, alpha, beta).
    native : bool
        Whether the steps are for streams of this package: recurrent layers may keep their weights in a reduced storage,
        their parameters being the kept ones then, and `Context`, `Gather` and `Magnitude` are taken.

    Raises
    ------
    TypeError
        Something in the list is none of these.
    ValueError
        A part looks ahead (two directions, or go_backwards), is not built, is no float32, or does not take what the
        part before it gives.
    """
    parts = list(model) if isinstance(model, list | tuple) else [model]
    if not parts:
        raise ValueError("a model needs at least one layer, got an empty list")
    steps: list[Any] = []
    for part in parts:
        _add(part, steps, native)
    for before, after in pairwise(steps):
        if isinstance(after, Lookup):
            raise ValueError(f"{after} takes token ids, so it must be the first step: {before} stands before it")
        if before.sizes[1] != after.sizes[0]:
            raise ValueError(f"{before} gives {before.sizes[1]} numbers, but {after} behind it takes {after.sizes[0]}")
    return steps


def _framed(step: Any, before: Any) -> Any:
    """The step with the frames that the output before it has, or with one where it takes all frames as one input."""
    frames = getattr(before, "frames", 1)
    if isinstance(step, Affine) and before is not None and before.sizes[1] != frames * step.sizes[0]:
        frames = 1
    if isinstance(step, Magnitude) and step.size % (2 * frames):
        raise ValueError(f"{step} takes pairs of halves, and {before} gives {step.size} numbers in {frames} frames")
    return replace(step, frames=frames) if isinstance(step, Affine | Pointwise | Magnitude) else step


def _add(part: Any, steps: list[Any], native: bool) -> None:
    """Append the steps of one part of a list."""
    if isinstance(part, Chain):
        if not part.built:
            raise ValueError("the model is not built yet: call it once, or build(shape of a sample)")
        for module in part.modules:
            _add(module, steps, native)
        return
    for step in _of_part(part, steps[-1].sizes[1] if steps else None, native):
        steps.append(_framed(step, steps[-1] if steps else None))


def _of_part(part: Any, width: int | None, native: bool) -> list[Any]:
    """The steps of one part of a list; `width` is that of the output before it, None for the first part."""
    if isinstance(part, nn.Module):
        return _of_module(part, width, native)
    if isinstance(part, FramedStep):
        if not native:
            raise ValueError(f"{part} is for streams of fastlstm only: a C source has no code for it")
        return [part if isinstance(part, Context) else replace(part, size=part.size or _known(width, part))]
    if isinstance(part, Recurrent):
        return _of_recurrent(part, native)
    if isinstance(part, dense.Dense):
        return [_affine(part)]
    if isinstance(part, str) or (isinstance(part, tuple) and part and isinstance(part[0], str)):
        return [Pointwise(checked(part), _known(width, part))]
    raise TypeError(
        f"a model is a list of recurrent layers, fl.Dense, modules of fl.nn and names of activations, "
        f"got {type(part).__name__}"
    )


def _known(width: int | None, part: Any) -> int:
    if width is None:
        raise ValueError(f"{part!r} is the first step, so its width is not known: begin with a layer")
    return width


def _of_module(module: nn.Module, width: int | None, native: bool) -> list[Any]:
    """The steps of a module of `fastlstm.nn`."""
    if isinstance(module, nn.Dropout | nn.Masking):
        return []  # without effect on one step of inference
    if isinstance(module, nn.Activation):
        return [Pointwise(module.activation, _known(width, module))]
    if isinstance(module, nn.Bidirectional) or getattr(module, "go_backwards", False):
        raise ValueError(f"a model with {module!r} cannot run step by step: it begins at the sequence's end")
    if not module.built:
        raise ValueError(f"{module!r} is not built yet: call the model once, or build(shape of a sample)")
    if isinstance(module, nn.Residual):
        (inner,) = _of_module(module.module, width, native)
        if not isinstance(inner, Recurrence | Affine):
            raise ValueError(
                f"{module!r} cannot run step by step: only recurrent layers and Dense have a residual path"
            )
        return [type(inner)(**{**vars(inner), "skip": True})]
    core = module.core
    if isinstance(module, nn.Embedding):
        return [Lookup(_float32(core.state_dict()["weight"], module))]
    if isinstance(module, nn.Dense):
        assert isinstance(core, dense.Dense)
        return [_affine(core, module.activation)]
    if isinstance(core, Recurrent):
        return _of_recurrent(core, native)
    raise ValueError(f"{module!r} cannot run step by step: its kind of module is not known here")


def _affine(layer: dense.Dense, activation: Activation = "linear") -> Affine:
    """A dense layer as a step."""
    params = layer.floats()
    bias = params.get("bias")
    return Affine(_float32(params["weight"], layer), None if bias is None else _float32(bias, layer), activation)


def _of_recurrent(layer: Recurrent, native: bool) -> list[Any]:
    """A step for each layer of a recurrent layer."""
    if layer.bidirectional or layer.reverse:
        raise ValueError(f"{layer!r} cannot run step by step: its reverse direction begins at the sequence's end")
    params = layer.state_dict()
    may_be_reduced = native and layer.dtype == np.float32
    return [
        Recurrence(
            spec,
            {name: params[key] if may_be_reduced else _float32(params[key], layer) for name, key in keys.items()},
            layer=layer,
            number=number,
        )
        for number, ((spec,), (keys,)) in enumerate(zip(layer._specs, layer._keys, strict=True))
    ]


def _float32(array: Any, of: Any) -> Array:
    """A contiguous float32 copy of a parameter."""
    if array.dtype != np.float32:
        raise ValueError(f"{of!r} has dtype {array.dtype}, but a step runs in float32: make the layer with float32")
    kept: Array = np.array(array, np.float32, order="C")
    return kept
