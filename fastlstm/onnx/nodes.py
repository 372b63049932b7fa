"""What a recurrent node says: its attributes as an `Equation`, its weights as specs and parameters of ours.

Source: the operators LSTM, GRU and RNN (onnx/defs/rnn/defs.cc, versions 1 to 22), and com.microsoft's
DynamicQuantizeLSTM. What they leave open is as ONNX Runtime 1.32 reads it: alpha and beta are consumed in order by the
functions that take them, names of functions in any case, clip bounds the gates' arguments, input_forget is f = 1 - i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from .._onnx_weights import ACTIVATION_NAMES
from ..files import FileError
from ..gates import reorder
from ..layout import Array
from ..spec import ACTIVATIONS, DEFAULT_ACTIVATIONS, GATES, ROLES, Activation, Kind, Spec
from .messages import NodeProto

KINDS: dict[tuple[str, str], Kind] = {
    ("", "LSTM"): "lstm",
    ("", "GRU"): "gru",
    ("", "RNN"): "rnn",
    ("com.microsoft", "DynamicQuantizeLSTM"): "lstm",
}
# A node's inputs, in order; an absent one has the name "".
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
SCALES = ("W_scale", "W_zero_point", "R_scale", "R_zero_point")  # DynamicQuantizeLSTM's inputs after these
WEIGHTS = ("W", "R", "B", "P", *SCALES)
DIRECTIONS: dict[str, tuple[bool, ...]] = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
# ONNX's names of activations in lower case: ours. (The last of two with one name: the one with ONNX's defaults.)
OURS = {onnx.lower(): name for name, (onnx, _, _) in ACTIVATION_NAMES.items()}
# ScaledTanh has no default in any version of the operators; ONNX Runtime takes 0.
NO_DEFAULT = {"scaled_tanh": Activation("scaled_tanh", 0.0, 0.0)}
ATTRIBUTES: dict[str, type] = {
    "activation_alpha": list,
    "activation_beta": list,
    "activations": list,
    "clip": float,
    "direction": str,
    "hidden_size": int,
    "input_forget": int,
    "layout": int,
    "linear_before_reset": int,
    "output_sequence": int,  # version 1: whether Y is wanted, which the list of outputs says
}
ONLY = {"input_forget": "lstm", "linear_before_reset": "gru"}  # attributes of one kind
BOUND = float(np.finfo(np.float32).max)  # a clip that is none


def kind_of(node: NodeProto) -> Kind | None:
    """The kind of a recurrent node, None of any other."""
    return KINDS.get(("" if node.standard else node.domain, node.op_type))


@dataclass(frozen=True)
class Equation:
    """What a recurrent node computes, but for its weights.

    Parameters
    ----------
    title : str
        The node, for messages.
    kind : {"lstm", "gru", "rnn"}
    reverse : tuple of D bools
        Of each direction whether it walks from the last step to the first.
    activations : tuple of D tuples of Activation
        In the order of ``spec.ROLES[kind]``.
    hidden_size : int, optional
        H, where the node says it.
    batch_first : bool
        layout=1: X is (B, T, I), Y (B, T, D, H), and states are (B, D, H).
    clip : float, optional
    input_forget, reset_after : bool
        As in `Spec`.
    quantised : bool
        DynamicQuantizeLSTM: matrices of 8 bits, (D, I, 4H), with a scale.
    """

    title: str
    kind: Kind
    reverse: tuple[bool, ...]
    activations: tuple[tuple[Activation, ...], ...]
    hidden_size: int | None = None
    batch_first: bool = False
    clip: float | None = None
    input_forget: bool = False
    reset_after: bool = True
    quantised: bool = False

    @property
    def D(self) -> int:
        return len(self.reverse)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The operator's inputs, in order."""
        return INPUTS[:6] if self.kind != "lstm" else (*INPUTS, *SCALES) if self.quantised else INPUTS

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("Y", "Y_h", "Y_c") if self.kind == "lstm" else ("Y", "Y_h")

    def specs(self, I: int, H: int, biases: int, peepholes: bool) -> list[Spec]:  # noqa: E741
        """The spec of each direction."""
        return [
            Spec(
                self.kind,
                I,
                H,
                biases=biases,
                peepholes=peepholes,
                reset_after=self.reset_after,
                activations=of_one,
                clip=self.clip,
                input_forget=self.input_forget,
            )
            for of_one in self.activations
        ]


def equation(node: NodeProto, attributes: Mapping[str, Any] | None = None) -> Equation:
    """The equation of a recurrent node.

    Parameters
    ----------
    node : NodeProto
        One with a kind (`kind_of`).
    attributes : mapping, optional
        In place of the node's own: inside a function, those that refer to the function's are resolved.

    Raises
    ------
    FileError
        An attribute is unknown, of another type or without meaning; the message names node and attribute.
    """
    kind, title = kind_of(node), node.title
    assert kind is not None
    given = dict(node.attributes if attributes is None else attributes)
    for name, value in given.items():
        _check_attribute(title, kind, name, value)
    reverse = DIRECTIONS.get(given.get("direction", "forward") or "forward")
    if reverse is None:
        raise FileError(f"{title} has direction={given['direction']!r:.80}, expected one of {', '.join(DIRECTIONS)}")
    for name in ("input_forget", "layout", "linear_before_reset"):
        if given.get(name, 0) not in (0, 1):
            raise FileError(f"{title} has {name}={given[name]}, expected 0 or 1")
    clip = given.get("clip")
    if clip is not None and not clip > 0:
        raise FileError(f"{title} has clip={clip:g}, expected a number above 0")
    if given.get("hidden_size", 1) < 1:
        raise FileError(f"{title} has hidden_size={given['hidden_size']}, expected 1 or more")
    return Equation(
        title,
        kind,
        reverse,
        _activations(title, kind, len(reverse), given),
        given.get("hidden_size"),
        bool(given.get("layout", 0)),
        clip if clip is not None and isfinite(clip) and clip < BOUND else None,
        bool(given.get("input_forget", 0)),
        kind != "gru" or bool(given.get("linear_before_reset", 0)),
        not node.standard,
    )


def _check_attribute(title: str, kind: Kind, name: str, value: Any) -> None:
    expected = ATTRIBUTES.get(name)
    if expected is None or ONLY.get(name, kind) != kind:
        raise FileError(f"{title} has the attribute {name!r:.80}, which the operator does not know")
    of_list: type = str if name == "activations" else float
    if expected is list:
        fits = isinstance(value, list) and all(type(one) is of_list for one in value)
    else:
        fits = isinstance(value, expected)
    if not fits:
        raise FileError(f"{title} has the attribute {name} with a value of another type than the operator's")


def _activations(title: str, kind: Kind, D: int, given: Mapping[str, Any]) -> tuple[tuple[Activation, ...], ...]:
    """The activations of each direction."""
    roles = len(ROLES[kind])
    names: Sequence[str] = given.get("activations") or [*DEFAULT_ACTIVATIONS[kind]] * D
    if kind == "rnn" and "activations" in given and len(names) == 2 and D == 1:
        names = names[:1]  # the operator's default is a list of two, one of them for a direction that is not there
    if len(names) != D * roles:
        raise FileError(f"{title} has {len(names)} activations, expected {roles} for each of {D} directions")
    alphas, betas = list(given.get("activation_alpha", ())), list(given.get("activation_beta", ()))
    found = []
    for name in names:
        own = OURS.get(name.lower())
        if own is None:
            known = ", ".join(dict.fromkeys(onnx for onnx, _, _ in ACTIVATION_NAMES.values()))
            raise FileError(f"{title} has the activation {name!r:.80}; expected one of {known}")
        _, has_alpha, has_beta = ACTIVATION_NAMES[own]
        default = NO_DEFAULT.get(own, ACTIVATIONS[own])
        alpha = alphas.pop(0) if has_alpha and alphas else default.alpha
        beta = betas.pop(0) if has_beta and betas else default.beta
        if not (isfinite(alpha) and isfinite(beta)):
            raise FileError(f"{title} has alpha {alpha} and beta {beta} of {name}, expected finite numbers")
        found.append(Activation(own, alpha, beta))
    return tuple(tuple(found[d * roles : (d + 1) * roles]) for d in range(D))


# ------------------------------------------------------------------------------------------------------------- weights
class Weights(NamedTuple):
    """The weights of a node: of each direction the spec and the canonical parameters, by ``spec.parameters``."""

    specs: list[Spec]
    params: list[dict[str, Array]]


def weights(node: Equation, arrays: Mapping[str, Array], dtype: Any = None) -> Weights:
    """Specs and parameters of each direction, from a node's constant inputs.

    Parameters
    ----------
    node : Equation
    arrays : mapping
        W (D, G*H, I), R (D, G*H, H) and, where the node has them, B (D, 2*G*H) and P (D, 3*H). For DynamicQuantizeLSTM
        W (D, I, G*H) and R (D, H, G*H) of 8 bits, with scales and zero points (D,) or (D, G*H).
    dtype : dtype, optional
        Of the parameters; None: float64 for weights of float64, else float32, which holds all others exactly.

    Raises
    ------
    FileError
        A shape or a type does not fit; the message names the node.
    """
    W, R = (_matrix(node, arrays, name) for name in ("W", "R"))
    B, P = arrays.get("B"), arrays.get("P")
    G, H = len(GATES[node.kind]), R.shape[-1]
    I = W.shape[-1]  # noqa: E741
    if H < 1 or I < 1 or (node.hidden_size or H) != H:
        said = "" if node.hidden_size is None else f", and hidden_size={node.hidden_size}"
        raise FileError(
            f"{node.title} has W and R of shapes {_shown(arrays, 'W')} and {_shown(arrays, 'R')}{said}: no fit"
        )
    expected = {"W": (node.D, G * H, I), "R": (node.D, G * H, H), "B": (node.D, 2 * G * H), "P": (node.D, 3 * H)}
    found = {"W": W, "R": R} | ({} if B is None else {"B": B}) | ({} if P is None else {"P": P})
    for name, array in found.items():
        if array.shape != expected[name]:
            raise FileError(f"{node.title} has {name} of shape {array.shape}, expected {expected[name]}")
        if array.dtype.kind != "f":
            raise FileError(f"{node.title} has {name} of type {array.dtype}, expected floats")
    if dtype is None:
        dtype = np.float64 if W.dtype == np.float64 else np.float32
    params = [_parameters(node.kind, {name: a[d] for name, a in found.items()}, dtype) for d in range(node.D)]
    return Weights(node.specs(I, H, 0 if B is None else 2, P is not None), params)


def _shown(arrays: Mapping[str, Array], name: str) -> str:
    return str(arrays[name].shape)


def _matrix(node: Equation, arrays: Mapping[str, Array], name: str) -> Array:
    """W or R as floats (D, G*H, .)."""
    w = arrays[name]
    if w.ndim != 3:
        raise FileError(f"{node.title} has {name} of shape {w.shape}, expected three axes (directions, gates, inputs)")
    if not node.quantised:
        return w
    scale, zero = arrays.get(f"{name}_scale"), arrays.get(f"{name}_zero_point")
    if scale is None or w.dtype not in (np.int8, np.uint8):
        raise FileError(f"{node.title} has {name} of type {w.dtype} with scale {scale!r:.80}: expected 8 bits, a scale")
    zero = np.zeros(scale.shape, w.dtype) if zero is None else zero
    for part, array in (("scale", scale), ("zero_point", zero)):
        if array.shape not in ((w.shape[0],), (w.shape[0], w.shape[2])):
            raise FileError(
                f"{node.title} has {name}_{part} of shape {array.shape}, "
                f"expected {(w.shape[0],)} or {(w.shape[0], w.shape[2])}"
            )
    scale, zero = (a.reshape(a.shape[0], 1, -1) for a in (scale, zero))
    floats: Array = (w.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)
    return np.ascontiguousarray(floats.swapaxes(1, 2))


def _parameters(kind: Kind, of_one: Mapping[str, Array], dtype: Any) -> dict[str, Array]:
    """The canonical parameters of one direction, from W (G*H, I), R, B and P."""
    params = {"weight_ih": of_one["W"], "weight_hh": of_one["R"]}
    if "B" in of_one:
        params["bias_ih"], params["bias_hh"] = np.split(of_one["B"], 2)
    params = {name: reorder(p, kind, "onnx", "torch") for name, p in params.items()}
    if "P" in of_one:
        i, o, f = np.split(of_one["P"], 3)
        params["weight_peep"] = np.stack((i, f, o))
    return {name: np.ascontiguousarray(p, dtype) for name, p in params.items()}
