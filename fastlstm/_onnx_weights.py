"""The tensors and attributes of ONNX's LSTM, GRU and RNN nodes, from our parameters and specs. Needs no onnx.

Source: the operators' definitions (onnx/defs/rnn/defs.cc, opset 14). What they leave open is as ONNX Runtime reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .gates import order, reorder
from .layout import Array
from .spec import Activation, Kind, Spec

# Our activations: ONNX's name, whether it takes alpha, whether beta. (identity: an affine with alpha 1, beta 0.)
ACTIVATION_NAMES: dict[str, tuple[str, bool, bool]] = {
    "sigmoid": ("Sigmoid", False, False),
    "tanh": ("Tanh", False, False),
    "relu": ("Relu", False, False),
    "identity": ("Affine", True, True),
    "hard_sigmoid": ("HardSigmoid", True, True),
    "hard_sigmoid_keras2": ("HardSigmoid", True, True),
    "affine": ("Affine", True, True),
    "leaky_relu": ("LeakyRelu", True, False),
    "thresholded_relu": ("ThresholdedRelu", True, False),
    "scaled_tanh": ("ScaledTanh", True, True),
    "elu": ("Elu", True, False),
    "softsign": ("Softsign", False, False),
    "softplus": ("Softplus", False, False),
}


def node_tensors(params: Sequence[Mapping[str, Array]], kind: Kind) -> dict[str, Array]:
    """The constant inputs of a node, by ONNX's names.

    Parameters
    ----------
    params : sequence of D mappings
        Of each direction the canonical parameters, without a suffix and without a projection, which ONNX has not.

    Returns
    -------
    tensors : dict
        W (D, G*H, I), R (D, G*H, H); where there are biases B (D, 2*G*H), the second half 0 for a single bias; where
        there are peepholes P (D, 3*H).
    """

    def stacked(name: str) -> Array:
        return np.stack([reorder(of_one[name], kind, "torch", "onnx") for of_one in params])

    tensors = {"W": stacked("weight_ih"), "R": stacked("weight_hh")}
    if "bias_ih" in params[0]:
        first = stacked("bias_ih")
        second = stacked("bias_hh") if "bias_hh" in params[0] else np.zeros_like(first)
        tensors["B"] = np.concatenate((first, second), axis=1)
    if "weight_peep" in params[0]:  # rows i f o
        rows = ["ifo".index(gate) for gate in order("onnx", "lstm").gates if gate != "g"]
        tensors["P"] = np.stack([of_one["weight_peep"][rows].reshape(-1) for of_one in params])
    return tensors


def node_attributes(specs: Sequence[Spec]) -> dict[str, Any]:
    """The attributes of a node: those that differ from the operator's defaults, and hidden_size and direction.

    Parameters
    ----------
    specs : sequence of D specs
        One for each direction of a layer.
    """
    spec = specs[0]
    attributes: dict[str, Any] = {
        "hidden_size": spec.H,
        "direction": "bidirectional" if len(specs) == 2 else "forward",
    }
    if spec.clip is not None:
        attributes["clip"] = float(spec.clip)
    if spec.input_forget:
        attributes["input_forget"] = 1
    if spec.kind == "gru" and spec.reset_after:
        attributes["linear_before_reset"] = 1
    if any(of_one.activations != Spec(spec.kind, 1, 1).activations for of_one in specs):
        attributes |= _activation_attributes([f for of_one in specs for f in of_one.activations])
    return attributes


def _activation_attributes(activations: Sequence[Activation]) -> dict[str, Any]:
    """Names, and an alpha and a beta for each activation that has one, as ONNX Runtime (1.32) consumes them."""
    names, alphas, betas = [], [], []
    for f in activations:
        name, has_alpha, has_beta = ACTIVATION_NAMES[f.name]
        names.append(name)
        number = Activation(f.name, 1.0, 0.0) if f.name == "identity" else f
        alphas += [number.alpha] if has_alpha else []
        betas += [number.beta] if has_beta else []
    found: dict[str, Any] = {"activations": names}
    found |= {"activation_alpha": alphas} if alphas else {}
    return found | ({"activation_beta": betas} if betas else {})
