"""`accelerate`: the recurrent layers of a Keras model run on the kernels, in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._backends import backends
from .._readers.keras_layers import KINDS, activation
from ..spec import Kind, Spec
from ..spec import activation as spec_activation
from . import live

LAYERS = ("LSTM", "GRU", "SimpleRNN", "RNN")


@dataclass
class Accelerated:
    """One layer on the kernels.

    Attributes
    ----------
    layer : keras.layers.Layer
    calls : int
        Calls that ran on the kernels.
    left : Counter
        Calls that were left on Keras, by reason.
    """

    layer: Any
    calls: int = 0
    left: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        left = "".join(f", {n} left on Keras ({why})" for why, n in self.left.items())
        return f"{self.calls} calls on the kernels{left}"

    def __repr__(self) -> str:
        return f"{self.layer.name} ({type(self.layer).__name__}): {self}"


@dataclass
class Summary:
    """What `accelerate` did.

    Attributes
    ----------
    layers : dict of Accelerated
        By path in the model, such as "both/forward_lstm".
    left : dict of str
        The recurrent layers that stay on Keras, by path, and why.
    """

    layers: dict[str, Accelerated] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """Calls that ran on the kernels, of all layers."""
        return sum(one.calls for one in self.layers.values())

    def __repr__(self) -> str:
        lines = [f"{path}: {one}" for path, one in self.layers.items()]
        return "\n".join([*lines, *(f"{path}: left on Keras: {why}" for path, why in self.left.items())])


def accelerate(model: Any) -> Summary:
    """Let the recurrent layers of a Keras 3 model run on fastlstm's kernels, in ``fit``, ``predict`` and calls.

    The model, its layers and their variables stay what they are: training changes the same variables, and files are the
    same. The layers' equations are Keras's, with masks, ``return_sequences``, ``stateful``, ``initial_state``,
    ``go_backwards`` and ``dropout``. A call is left on Keras where the kernels cannot serve it (``recurrent_dropout``
    in training, another dtype than float32, another device than the CPU); the summary counts these.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
        On Keras's PyTorch backend.

    Returns
    -------
    Summary
        Which layers are accelerated, and which are not and why. Its counts follow the calls.

    Raises
    ------
    TypeError
        `model` is no Keras model.
    RuntimeError
        Keras runs on another backend, or is version 2, or the kernels cannot be used here.
    """
    if not live.is_layer(model):
        raise TypeError(f"accelerate takes a model or layer of Keras, got {type(model).__name__}")
    version = live.version_of(model)
    if not version.startswith("3"):
        raise RuntimeError(
            f"accelerate serves Keras 3, and this model is of Keras {version or 'of an unknown version'}: load it with "
            "Keras 3, or make a model of fastlstm's of it, fastlstm.from_keras(model)"
        )
    import keras

    if keras.backend.backend() != "torch":
        raise RuntimeError(
            f"accelerate serves Keras's PyTorch backend, and Keras runs on {keras.backend.backend()}: set the "
            "environment variable KERAS_BACKEND=torch before keras is imported, or make a model of fastlstm's of it, "
            "fastlstm.from_keras(model)"
        )
    if (why := backends()["c"]) is not None:
        raise RuntimeError(f"accelerate needs the backend 'c', which cannot be used here: {why}")
    summary = Summary()
    for path, layer in recurrent_layers(model):
        try:
            kernels = layer.__dict__.get("_fastlstm") or _attach(layer)
        except ValueError as error:
            summary.left[path] = str(error)
        else:
            summary.layers[path] = kernels
    return summary


def recurrent_layers(layer: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, layer) of the recurrent layers in a model or wrapper, each once."""
    seen: set[int] = set()
    stack = [(path or layer.name, layer)]
    while stack:
        at, one = stack.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        if hasattr(one, "inner_loop") and hasattr(one, "cell"):
            yield at, one
            continue
        stack = [(f"{at}/{inner.name}", inner) for inner in _inside(one)] + stack


def _inside(layer: Any) -> list[Any]:
    if type(layer).__name__ == "Bidirectional":
        return [layer.forward_layer, layer.backward_layer]
    return list(layer._flatten_layers(include_self=False, recursive=False))


def _attach(layer: Any) -> Accelerated:
    """Give a layer an `inner_loop` on the kernels.

    Raises
    ------
    ValueError
        The layer computes what the kernels do not; the message says what.
    """
    import keras

    cls: Any = type(layer)
    cell = layer.cell
    own: Any = next((base for base in cls.__mro__ if base.__module__.startswith("keras.")), None)
    if own is None or own.__name__ not in LAYERS or cls.call is not own.call or cls.inner_loop is not own.inner_loop:
        raise ValueError(f"{cls.__name__} is none of {', '.join(LAYERS)}, or changes what these compute")
    kind = KINDS.get(type(cell).__name__)
    if kind is None or not type(cell).__module__.startswith("keras."):
        raise ValueError(f"its cell is a {type(cell).__name__}")
    for name in ("activation", "recurrent_activation"):
        function = getattr(cell, name, None)
        if function is not None:
            _role(keras, function, layer.name)
    kernels = Accelerated(layer)
    layer.__dict__["_fastlstm"] = kernels
    layer.__dict__["inner_loop"] = _inner_loop(kernels, kind, layer.inner_loop)
    return kernels


def _role(keras: Any, function: Any, name: str) -> Any:
    """The activation of a Keras function; ValueError where it has no counterpart."""
    if function is keras.activations.linear:
        return spec_activation("identity")
    said = keras.activations.serialize(function)
    if not isinstance(said, str) or keras.activations.get(said) is not function:
        raise ValueError(f"layer {name!r} has the activation {function!r:.80}, which has no counterpart here")
    return spec_activation(activation(said, 3, name))


def spec_of(keras: Any, kind: Kind, cell: Any, name: str) -> Spec:
    """The equation of a cell as it is now."""
    inner = _role(keras, cell.activation, name)
    gate = _role(keras, cell.recurrent_activation, name) if kind != "rnn" else None
    roles = {"lstm": (gate, inner, inner), "gru": (gate, inner), "rnn": (inner,)}[kind]
    reset_after = bool(getattr(cell, "reset_after", True))
    biases = 0 if not cell.use_bias else 2 if kind == "gru" and reset_after else 1
    return Spec(kind, cell.kernel.shape[0], cell.units, biases=biases, reset_after=reset_after, activations=roles)


def _inner_loop(kernels: Accelerated, kind: Kind, native: Callable[..., Any]) -> Callable[..., Any]:
    """What takes the place of a layer's `inner_loop`: from (sequences, state, mask) to (last, outputs, states)."""
    import keras
    import torch

    from ..packing import Batch
    from . import recurrence

    layer, cell = kernels.layer, kernels.layer.cell

    def inner_loop(sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        if torch.compiler.is_compiling() and not _exporting(torch):
            return outside_graphs(sequences, initial_state, mask, training)
        return compute(sequences, initial_state, mask, training)

    def compute(sequences: Any, initial_state: Any, mask: Any, training: bool) -> Any:
        if isinstance(mask, (list, tuple)):
            mask = mask[0]
        states = list(initial_state) if isinstance(initial_state, (list, tuple)) else [initial_state]
        variables = [cell.kernel, cell.recurrent_kernel, *([cell.bias] if cell.use_bias else [])]
        weights = [v.value for v in variables]
        why = _why_not(torch, layer, training, mask, sequences, states, weights)
        if why is not None:
            if why:
                kernels.left[why] += 1
            return native(sequences, initial_state, mask, training=training)
        x = sequences
        if training and 0 < cell.dropout < 1:
            x = x * cell.get_dropout_mask(x[:, 0, :])[:, None]
        valid = None if mask is None else mask.detach().numpy().astype(bool).reshape(x.shape[:2])
        if layer.go_backwards:
            x, valid = torch.flip(x, [1]), None if valid is None else valid[:, ::-1]
        B, T = x.shape[:2]
        batch = Batch.of(T, B, None, True) if valid is None else Batch.of_mask(np.ascontiguousarray(valid.T), True)
        spec = spec_of(keras, kind, cell, layer.name)
        y, *final = recurrence.run(spec, batch, layer.return_sequences, x, states, weights)
        kernels.calls += 1
        if not layer.return_sequences:
            last = final[0] if valid is None else final[0] * torch.from_numpy(valid.any(1, keepdims=True))
            return last, last[:, None], final
        y = y if valid is None or layer.zero_output_for_mask else _held(torch, y, valid)
        return y[:, -1], y, final

    outside_graphs = torch.compiler.disable(compute)  # a break in the graph of torch.compile
    return inner_loop


def _exporting(torch: Any) -> bool:
    """Whether torch.export traces this call, or a compiler that cannot be told from it (PyTorch before 2.7)."""
    found: bool = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()
    return found


def _held(torch: Any, y: Any, valid: Any) -> Any:
    """Outputs (B, T, H) in which steps that are left out repeat the valid one before; 0 before the first."""
    steps = np.maximum.accumulate(np.where(valid, np.arange(valid.shape[1]), -1), axis=1)
    at = torch.from_numpy(np.maximum(steps, 0))[..., None].expand(-1, -1, y.shape[2])
    return torch.gather(y, 1, at) * torch.from_numpy(steps >= 0)[..., None]


def _why_not(
    torch: Any, layer: Any, training: bool, mask: Any, x: Any, states: list[Any], weights: list[Any]
) -> str | None:
    """Why a call is left on Keras; "" where it is no call with numbers; None where the kernels serve it."""
    cell, tensors = layer.cell, [x, *states, *weights]
    if any(t.device.type == "meta" for t in tensors) or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return ""
    if any(t.device.type != "cpu" for t in tensors):
        return "tensors on another device"
    if torch.is_autocast_enabled("cpu"):
        return "autocast"
    if any(t.dtype != torch.float32 for t in tensors):
        return "another dtype than float32"
    if any(state.shape != (len(x), cell.units) for state in states):
        return "an initial state of another shape"
    if training and cell.recurrent_dropout:
        return "recurrent_dropout in training"
    if training and cell.dropout and getattr(cell, "dropout_mask_count", None) is not None:
        return "dropout with implementation=1"
    if mask is not None and layer.zero_output_for_mask and not layer.return_sequences:
        return "a mask with zero_output_for_mask and without return_sequences"
    if 0 in x.shape:
        return "an empty input"
    return None
