"""What a Keras layer's configuration and weights mean in our terms; arrays and dictionaries alone.

`plain_weights` brings CuDNNLSTM's and CuDNNGRU's weights into the layout of LSTM and GRU, `meaning` translates a
configuration. The order of gates is the business of `gates`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..layout import Array
from ..spec import GATES, Kind
from .keras_files import KerasLayer

KINDS: dict[str, Kind] = {
    "LSTM": "lstm",
    "LSTMCell": "lstm",
    "CuDNNLSTM": "lstm",
    "GRU": "gru",
    "GRUCell": "gru",
    "CuDNNGRU": "gru",
    "SimpleRNN": "rnn",
    "SimpleRNNCell": "rnn",
}

# Keras's names of activations that mean the same in each version, and ours.
ACTIVATIONS: dict[str, Any] = {
    "linear": "identity",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "relu": "relu",
    "elu": "elu",
    "softsign": "softsign",
    "softplus": "softplus",
    "leaky_relu": ("leaky_relu", 0.2),
}
HARD_SIGMOID = {2: "hard_sigmoid_keras2", 3: "hard_sigmoid"}  # 0.2 x + 0.5 and x / 6 + 0.5, by Keras's major version

# Options that change what a layer computes and that have no counterpart here, with the value that leaves them off.
WITHOUT_COUNTERPART: dict[str, Any] = {"time_major": False}


@dataclass
class Meaning:
    """A recurrent Keras layer or cell in our terms.

    Attributes
    ----------
    kind : {"lstm", "gru", "rnn"}
    hidden_size : int
    activations : tuple of names or (name, alpha)
        One per role, in the order of `spec.ROLES`.
    bias, reset_after, go_backwards, return_sequences, stateful, zero_output_for_mask : bool
    dropout, recurrent_dropout : float
        Of the input and of the state, in training.
    """

    kind: Kind
    hidden_size: int
    activations: tuple[Any, ...]
    bias: bool
    reset_after: bool
    go_backwards: bool
    return_sequences: bool
    dropout: float
    recurrent_dropout: float
    stateful: bool = False
    zero_output_for_mask: bool = False


def _cudnn_kernel(kernel: Array, gates: int) -> Array:
    """The kernel (I, G*H) of a cuDNN layer: each gate's numbers are those of its transpose, in order."""
    parts = np.split(kernel, gates, axis=1)
    return np.concatenate([part.T.reshape(part.shape, order="F") for part in parts], axis=1)


def plain_weights(layer: KerasLayer) -> list[Array]:
    """A layer's weights as LSTM, GRU and SimpleRNN have them: kernel (I, G*H), recurrent kernel (H, G*H), bias.

    A layer is of cuDNN where its bias is, as in Keras itself: (2*G*H,). Keras's `_convert_rnn_weights` does the same.
    LSTM's two biases become one, their sum; GRU's (2, 3H).

    Raises
    ------
    ValueError
        The shapes are those of no such layer.
    """
    kind = kind_of(layer)
    gates = len(GATES[kind])
    shapes = [w.shape for w in layer.weights]
    if len(shapes) not in (2, 3) or any(len(shape) != 2 for shape in shapes[:2]):
        raise ValueError(f"layer {layer.name!r}: weights of shapes {shapes} are those of no {layer.class_name or kind}")
    kernel, recurrent, *bias = layer.weights
    H = recurrent.shape[0]
    if recurrent.shape != (H, gates * H) or kernel.shape[1] != gates * H:
        raise ValueError(
            f"layer {layer.name!r}: a kernel of shape {kernel.shape} and a recurrent kernel of shape {recurrent.shape} "
            f"are not (I, {gates}*H) and (H, {gates}*H)"
        )
    if bias and bias[0].shape == (2 * gates * H,):
        kernel = _cudnn_kernel(kernel, gates)
        recurrent = np.concatenate([part.T for part in np.split(recurrent, gates, axis=1)], axis=1)
        both = bias[0].reshape(2, -1)
        bias = [both if kind == "gru" else both.sum(axis=0)]
    allowed = [(gates * H,), *([(2, gates * H)] if kind == "gru" else [])]
    if bias and bias[0].shape not in allowed:
        raise ValueError(f"layer {layer.name!r}: a bias of shape {bias[0].shape}, expected one of {allowed}")
    return [kernel, recurrent, *bias]


def kind_of(layer: KerasLayer) -> Kind:
    """The kind of a layer by its class, else (in a file of weights alone) by the shape of its recurrent kernel.

    Raises
    ------
    ValueError
        It is no recurrent layer.
    """
    if layer.class_name in KINDS:
        return KINDS[layer.class_name]
    if not layer.class_name and len(layer.weights) in (2, 3) and layer.weights[1].ndim == 2:
        H, width = layer.weights[1].shape
        for kind, gates in GATES.items():
            if width == len(gates) * H and layer.weights[0].shape[1:] == (width,):
                return kind  # type: ignore[return-value]
    raise ValueError(f"layer {layer.name!r} ({layer.class_name or 'of an unknown class'}) is no LSTM, GRU or SimpleRNN")


def major_of(version: str) -> int:
    """2 or 3: the major version of the Keras that has written a file; 3 where the file does not say."""
    return 2 if version.startswith(("2", "1")) else 3


def activation(given: Any, major: int, layer: str) -> Any:
    """Our name of an activation in a configuration, or (name, alpha).

    Parameters
    ----------
    given : str, dict or None
        As the file has it; Keras 3 may wrap the name of a function in a dictionary.
    major : int
        Of Keras's version: 2 or 3.
    layer : str
        For the message.

    Raises
    ------
    ValueError
        It has no counterpart; the message lists those that have.
    """
    if isinstance(given, dict) and given.get("class_name") == "function":
        given = given.get("config")
    if given is None:
        return "identity"
    if given == "hard_sigmoid":
        return HARD_SIGMOID[major]
    if isinstance(given, str) and given in ACTIVATIONS:
        return ACTIVATIONS[given]
    known = ", ".join([*ACTIVATIONS, "hard_sigmoid"])
    raise ValueError(
        f"layer {layer!r} has the activation {given!r:.80}, which has no counterpart here; these have: {known}"
    )


def meaning(layer: KerasLayer, version: str) -> Meaning:
    """A recurrent layer's configuration in our terms.

    Parameters
    ----------
    layer : KerasLayer
        With a configuration, that is, not of a file of weights alone.
    version : str
        Of the Keras that has written it.

    Raises
    ------
    ValueError
        It has an option without a counterpart, or is no recurrent layer; the message names it.
    """
    kind, config, name = kind_of(layer), layer.config, layer.name
    if not config:
        raise ValueError(f"layer {name!r} comes from a file of weights alone, which does not say how it is configured")
    major = major_of(version)
    for option, off in WITHOUT_COUNTERPART.items():
        if config.get(option, off) != off:
            raise ValueError(f"layer {name!r} has {option}={config[option]!r:.80}, which has no counterpart here")
    cudnn = layer.class_name.startswith("CuDNN")
    inner = activation("tanh" if cudnn else config.get("activation", "tanh"), major, name)
    gate = activation("sigmoid" if cudnn else config.get("recurrent_activation", "sigmoid"), major, name)
    roles = {"lstm": (gate, inner, inner), "gru": (gate, inner), "rnn": (inner,)}
    return Meaning(
        kind,
        _checked(config, "units", int, None, name),
        roles[kind],
        True if cudnn else _checked(config, "use_bias", bool, True, name),
        True if cudnn else _checked(config, "reset_after", bool, major == 3, name),
        _checked(config, "go_backwards", bool, False, name),
        _checked(config, "return_sequences", bool, False, name),
        float(_checked(config, "dropout", (int, float), 0.0, name)),
        float(_checked(config, "recurrent_dropout", (int, float), 0.0, name)),
        _checked(config, "stateful", bool, False, name),
        _checked(config, "zero_output_for_mask", bool, False, name),
    )


def _checked(config: dict[str, Any], option: str, kind: Any, default: Any, layer: str) -> Any:
    value = config.get(option, default)
    if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 1)):
        raise ValueError(f"layer {layer!r} has {option}={value!r:.80}")
    return value
