"""A model as a list of steps: plain data for programs that run a model without this package's layers.

`steps_of` takes a layer, a `Sequential`, or a list such as ``[lstm, dense, "sigmoid"]``, and returns what happens to
one input of one time step: a row is looked up, a recurrent layer advances, a product is taken, an activation applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from . import dense, nn
from .layout import Array
from .nn.activation import checked
from .nn.chain import Chain
from .recurrent import Recurrent
from .spec import Spec

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
    """

    weight: Array
    bias: Array | None
    activation: Activation = "linear"
    skip: bool = False

    @property
    def sizes(self) -> tuple[int, int]:
        """Width of the input and of the output."""
        return self.weight.shape[1], self.weight.shape[0]

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
    """

    activation: Activation
    size: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Width of the input and of the output."""
        return self.size, self.size

    def __str__(self) -> str:
        return f"Activation({self.activation!r})"


Step = Lookup | Recurrence | Affine | Pointwise


def steps_of(model: Any, reduced: bool = False) -> list[Step]:
    """The steps of a model, first to last, with copies of its parameters.

    Parameters
    ----------
    model : layer, Sequential, or list
        A list holds recurrent layers, `fastlstm.Dense`, modules of `fastlstm.nn` that are built, and activations: a
        name, or (name, alpha, beta).
    reduced : bool
        Whether recurrent layers may keep their weights in a reduced storage; their parameters are the kept ones then.

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
    steps: list[Step] = []
    for part in parts:
        steps += _of_part(part, steps[-1].sizes[1] if steps else None, reduced)
    for before, after in pairwise(steps):
        if isinstance(after, Lookup):
            raise ValueError(f"{after} takes token ids, so it must be the first step: {before} stands before it")
        if before.sizes[1] != after.sizes[0]:
            raise ValueError(f"{before} gives {before.sizes[1]} numbers, but {after} behind it takes {after.sizes[0]}")
    return steps


def _of_part(part: Any, width: int | None, reduced: bool) -> list[Step]:
    """The steps of one part of a list; `width` is that of the output before it, None for the first part."""
    if isinstance(part, Chain):
        if not part.built:
            raise ValueError("the model is not built yet: call it once, or build(shape of a sample)")
        inner: list[Step] = []
        for module in part.modules:
            inner += _of_part(module, inner[-1].sizes[1] if inner else width, reduced)
        return inner
    if isinstance(part, nn.Module):
        return _of_module(part, width, reduced)
    if isinstance(part, Recurrent):
        return _of_recurrent(part, reduced)
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


def _of_module(module: nn.Module, width: int | None, reduced: bool) -> list[Step]:
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
        (inner,) = _of_module(module.module, width, reduced)
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
        return _of_recurrent(core, reduced)
    raise ValueError(f"{module!r} cannot run step by step: its kind of module is not known here")


def _affine(layer: dense.Dense, activation: Activation = "linear") -> Affine:
    """A dense layer as a step."""
    params = layer.floats()
    bias = params.get("bias")
    return Affine(_float32(params["weight"], layer), None if bias is None else _float32(bias, layer), activation)


def _of_recurrent(layer: Recurrent, reduced: bool) -> list[Step]:
    """A step for each layer of a recurrent layer."""
    if layer.bidirectional or layer.reverse:
        raise ValueError(f"{layer!r} cannot run step by step: its reverse direction begins at the sequence's end")
    params = layer.state_dict()
    may_be_reduced = reduced and layer.dtype == np.float32
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
