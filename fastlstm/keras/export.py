"""A Keras model with the weights of a layer, module or model of ours: `to_keras`. It needs Keras 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import nn
from .. import recurrent as layers
from .._keras_weights import to_keras as keras_arrays
from .._readers.keras_layers import ACTIVATIONS
from ..layer import Layer
from ..layout import Array, suffix
from ..nn.recurrent import Recurrent
from ..quantise import check_floats
from ..sequential import Sequential
from ..spec import ACTIVATIONS as DEFAULTS
from ..spec import Activation, Spec
from ..spec import activation as spec_activation

Made = tuple[Any, list[Array]]  # a Keras layer, and its weights for `set_weights`


def to_keras(layer: Layer) -> Any:
    """A ``keras.Sequential`` that computes what a layer, module or model does, batch-first.

    Parameters
    ----------
    layer : LSTM, GRU, RNN, a built module of `fastlstm.nn`, or a Sequential of such
        Two biases become one, their sum, where Keras has one.

    Raises
    ------
    ImportError
        Keras is not installed.
    ValueError
        Keras has no layer of this equation, or the module is not built; the message names it.
    """
    import keras

    check_floats(layer, "to_keras")
    modules: Sequence[Any] = layer.modules if isinstance(layer, Sequential) else [layer]
    made: list[Made] = []
    for module in modules:
        try:
            made += _layers(keras, module)
        except ValueError as error:
            raise ValueError(f"{module!r}: {error}") from error
    model = keras.Sequential([keras.Input(**_input(modules[0])), *(one for one, _ in made)])
    for one, weights in made:
        if weights:
            one.set_weights(weights)
    return model


def _input(first: Any) -> dict[str, Any]:
    if isinstance(first, nn.Embedding):
        return {"shape": (None,), "dtype": "int32"}
    core: Any = getattr(first, "_core", first)
    shape = first._shape if getattr(first, "_shape", None) else (None, getattr(core, "input_size", None))
    if shape[-1] is None:
        raise ValueError(f"{first!r} does not say how wide its input is: build it, or call it once")
    return {"shape": tuple(shape) if isinstance(first, nn.Dense) else (None, *shape[1:])}


def _layers(keras: Any, module: Any) -> list[Made]:
    L, dtype = keras.layers, module.dtype.name
    if isinstance(module, layers.Recurrent):
        return _stack(keras, module)
    if isinstance(module, nn.Bidirectional):
        inner = _recurrent(keras, module._both, module.core, module.return_sequences)
        return [(L.Bidirectional(inner, module.merge_mode), _weights(module.core, 0, 2))]
    if isinstance(module, Recurrent):
        return [(_recurrent(keras, module, module.core, module.return_sequences), _weights(module.core, 0, 1))]
    if isinstance(module, nn.Dense):
        p = module.core._live()
        made = L.Dense(module.units, _named(module.activation), module.use_bias, dtype=dtype)
        return [(made, [p["weight"].T, *([p["bias"]] if module.use_bias else [])])]
    if isinstance(module, nn.Embedding):
        made = L.Embedding(module.input_dim, module.output_dim, mask_zero=module.mask_zero, dtype=dtype)
        return [(made, [module.core._live()["weight"]])]
    if isinstance(module, nn.Dropout):
        kind = L.SpatialDropout1D if module.noise_shared_over_time else L.Dropout
        return [(kind(module.rate, dtype=dtype), [])]
    if isinstance(module, nn.Masking):
        return [(L.Masking(module.mask_value, dtype=dtype), [])]
    if isinstance(module, nn.Activation):
        return [(L.Activation(_named(module.activation), dtype=dtype), [])]
    raise ValueError("Keras has no counterpart of it")


def _stack(keras: Any, layer: Any) -> list[Made]:
    """A Keras layer for each layer of a fastlstm.LSTM, GRU or RNN; dropout between them."""
    made: list[Made] = []
    for at in range(layer.num_layers):
        one = _recurrent(keras, None, layer, True, at)
        both = layer.bidirectional
        made.append((keras.layers.Bidirectional(one) if both else one, _weights(layer, at, 2 if both else 1)))
        if layer.dropout and at < layer.num_layers - 1:
            made.append((keras.layers.Dropout(layer.dropout, dtype=layer.dtype.name), []))
    return made


def _recurrent(keras: Any, module: Any, core: Any, sequences: bool, at: int = 0) -> Any:
    spec: Spec = core._specs[at][0]
    if any(one.activations != spec.activations for one in core._specs[at]):
        raise ValueError("its directions have different activations")
    if spec.proj_size or spec.peepholes or spec.clip is not None or spec.input_forget or core.reverse:
        raise ValueError("Keras has no proj_size, peepholes, clip, input_forget and reverse")
    if spec.kind == "lstm" and spec.activations[1] != spec.activations[2]:
        raise ValueError("Keras has one activation for candidate and output")
    options: dict[str, Any] = {"activation": _named(spec.activations[-1]), "use_bias": spec.biases > 0}
    if spec.kind != "rnn":
        options["recurrent_activation"] = _named(spec.activations[0])
    if spec.kind == "gru":
        options["reset_after"] = spec.reset_after
    if module is not None:
        for name in ("go_backwards", "stateful", "dropout", "recurrent_dropout"):
            options[name] = getattr(module, name)
        options["trainable"] = module.trainable
    options["zero_output_for_mask"] = sequences and getattr(module, "zero_output_for_mask", True)
    kind = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}[spec.kind]
    return getattr(keras.layers, kind)(spec.H, return_sequences=sequences, dtype=core.dtype.name, **options)


def _weights(core: Any, at: int, directions: int) -> list[Array]:
    live, found = core._live(), []
    for d in range(directions):
        spec = core._specs[at][d]
        params = {name: np.asarray(live[name + suffix(at, d)]) for name in spec.parameters}
        found += keras_arrays(params, spec.kind, spec.reset_after)
    return found


def _named(given: Any) -> str:
    """Keras's name of an activation."""
    if given in ("linear", "softmax"):
        return str(given)
    f: Activation = spec_activation(given)
    for name, ours in {**ACTIVATIONS, "hard_sigmoid": "hard_sigmoid"}.items():
        if spec_activation(ours) == f:
            return name
    known = ", ".join([*ACTIVATIONS, "hard_sigmoid"])
    raise ValueError(f"Keras has no activation {tuple(f) if f != DEFAULTS[f.name] else f.name}; it has {known}")
