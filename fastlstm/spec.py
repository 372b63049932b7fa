"""`Spec`: everything about a cell's equation, as pure data. Imports nothing of the package.

One alphabet, here and everywhere: T steps, B batch, N packed rows, I inputs, H hidden units, R width of the
recurrent output h (R = H, or the projection's size), G gates, L layers, D directions, P units of a panel.

The equations, in PyTorch's names and gate orders (* is element-wise, @ a matrix product):

LSTM (Hochreiter & Schmidhuber 1997; peepholes: Gers & Schmidhuber 2000; projection: Sak, Senior & Beaufays 2014)
    i = f(W_ii x + b_ii + W_hi h + b_hi  [+ p_i * c])
    f = f(W_if x + b_if + W_hf h + b_hf  [+ p_f * c])    [input_forget: f = 1 - i]
    g = g(W_ig x + b_ig + W_hg h + b_hg)
    c' = f * c + i * g
    o = f(W_io x + b_io + W_ho h + b_ho  [+ p_o * c'])
    h' = o * h(c')                         [projection: h' = W_hr (o * h(c'))]
GRU (Cho et al. 2014)
    r = f(W_ir x + b_ir + W_hr h + b_hr)
    z = f(W_iz x + b_iz + W_hz h + b_hz)
    n = g(W_in x + b_in + r * (W_hn h + b_hn))       reset_after=True, as PyTorch, cuDNN and Keras
    n = g(W_in x + b_in + W_hn (r * h) + b_hn)       reset_after=False, as in the paper
    h' = (1 - z) * n + z * h
RNN (Elman 1990)
    h' = f(W_ih x + b_ih + W_hh h + b_hh)

`clip` bounds the argument of every activation above to +-clip, except that of the LSTM's h(c'), which is the cell
state; in a GRU with reset_after the sum W_hn h + b_hn is not clipped by itself. ONNX Runtime's CPU kernels compute the
same (ONNX operators LSTM, GRU, RNN, attribute clip). With `input_forget` (ONNX, LSTM; coupled gates in Greff et al.
2017) the rows of W, b and p that belong to f are kept, not read, and have gradients of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from numbers import Real
from typing import Any, Literal, NamedTuple

Kind = Literal["lstm", "gru", "rnn"]


class Activation(NamedTuple):
    """A named element-wise function; `alpha` and `beta` are those of ONNX."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0


# Default alpha and beta of every activation. Formulas: ONNX operators LSTM, GRU, RNN. An activation's place in this
# list is its number in C (enum fl_activation) and in Numba.
ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation("sigmoid"),  # 1 / (1 + exp(-x))
        Activation("tanh"),
        Activation("relu"),  # max(x, 0)
        Activation("identity"),  # x
        Activation("hard_sigmoid", 1 / 6, 0.5),  # clip(alpha x + beta, 0, 1): PyTorch, Keras 3
        Activation("hard_sigmoid_keras2", 0.2, 0.5),  # clip(alpha x + beta, 0, 1): Keras 2, ONNX
        Activation("affine", 1.0, 0.0),  # alpha x + beta
        Activation("leaky_relu", 0.01),  # x where x > 0, else alpha x
        Activation("thresholded_relu", 1.0),  # x where x >= alpha, else 0
        Activation("scaled_tanh", 1.0, 1.0),  # alpha tanh(beta x)
        Activation("elu", 1.0),  # x where x > 0, else alpha (exp(x) - 1)
        Activation("softsign"),  # x / (1 + |x|)
        Activation("softplus"),  # log(1 + exp(x))
    )
}


def activation(given: str | Sequence[object]) -> Activation:
    """Activation from a name or a (name, alpha, beta) sequence, with the defaults filled in.

    Raises
    ------
    TypeError
        Neither a name nor a tuple that begins with one, or parameters that are no finite numbers.
    ValueError
        Unknown name, or more than two parameters.
    """
    name, *parameters = given if isinstance(given, (tuple, list)) and given else [given]
    if not isinstance(name, str):
        raise TypeError(
            f"an activation is a name or a tuple (name, alpha, beta), got {given!r}; names: {', '.join(ACTIVATIONS)}"
        )
    if name not in ACTIVATIONS or len(parameters) > 2:
        raise ValueError(
            f"activation {given!r} is not known. Give a name, or (name, alpha, beta); names: {', '.join(ACTIVATIONS)}"
        )
    default = ACTIVATIONS[name]
    if not all(isinstance(p, Real) and not isinstance(p, bool) and isfinite(p) for p in parameters):
        raise TypeError(f"alpha and beta of activation {name!r} must be finite numbers, got {given!r}")
    given_numbers = [float(p) for p in parameters]  # type: ignore[arg-type]
    alpha, beta = given_numbers + [default.alpha, default.beta][len(given_numbers) :]
    return Activation(name, alpha, beta)


def untrainable(f: Activation) -> str | None:
    """Why an activation serves for inference only, with the cure; None where it can be trained.

    Backward has an activation's output only (one array less on the tape), so the output must determine the derivative.
    """
    if f.name in ("leaky_relu", "elu") and f.alpha < 0:
        return f"its output does not tell on which side of 0 the input was; take alpha >= 0, not {f.alpha:g}"
    if f.name == "scaled_tanh" and f.alpha == 0:
        return "its output is always 0; take another alpha"
    return None


def _two_sets(kind: Kind, given: Any) -> bool:
    """Whether `given` is two sets of activations, one for each direction, and not one set for both."""
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        return False
    if kind != "rnn":
        roles = len(ROLES[kind])
        return all(isinstance(one, (tuple, list)) and len(one) == roles and all(map(_named, one)) for one in given)
    return _named(given[0]) and (given[1] in ACTIVATIONS if isinstance(given[1], str) else _named(given[1]))


def _named(given: object) -> bool:
    """Whether `given` is a name, or a sequence that begins with one."""
    return isinstance(given, str) or (isinstance(given, (tuple, list)) and bool(given) and isinstance(given[0], str))


def activation_sets(kind: Kind, given: Any, directions: int) -> tuple[tuple[Activation, ...], ...]:
    """The activations of each direction, from one set for all or one for each.

    Parameters
    ----------
    kind : {"lstm", "gru", "rnn"}
    given : sequence
        One activation for each of ``ROLES[kind]``, or two such sequences. For "rnn": one activation, or two.
    directions : int
        1 or 2.

    Returns
    -------
    sets : tuple of `directions` tuples of Activation

    Raises
    ------
    ValueError
        Another number of entries, two sets for one direction, or an unknown activation.
    """
    two = _two_sets(kind, given)
    argument, roles = ("nonlinearity", 1) if kind == "rnn" else ("activations", len(ROLES[kind]))
    if two and directions == 1:
        raise ValueError(f"{argument} names two directions, but the layer has one: bidirectional=True, or one set")
    of_each = given if two else (given,)
    if kind == "rnn":
        of_each = [(f,) for f in of_each]
    for one in of_each:
        if not isinstance(one, (tuple, list)) or len(one) != roles:
            raise ValueError(
                f"{argument} needs {roles} entries for {kind.upper()}, got {one!r} "
                "(with bidirectional=True also two tuples of so many, one a direction)"
            )
    sets = tuple(tuple(activation(f) for f in one) for one in of_each)
    return sets if two else sets * directions


GATES: dict[str, tuple[str, ...]] = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n"), "rnn": ("h",)}
ROLES: dict[str, tuple[str, ...]] = {
    "lstm": ("gates", "candidate", "output"),
    "gru": ("gates", "candidate"),
    "rnn": ("output",),
}
DEFAULT_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "lstm": ("sigmoid", "tanh", "tanh"),
    "gru": ("sigmoid", "tanh"),
    "rnn": ("tanh",),
}


@dataclass(frozen=True)
class Spec:
    """Everything about the equation of one direction of one layer.

    Parameters
    ----------
    kind : {"lstm", "gru", "rnn"}
    input_size, hidden_size : int
        I and H.
    proj_size : int
        Width of a projected output (LSTM only), 0 for none.
    biases : {0, 1, 2}
        0: none; 1: ``bias_ih``; 2: ``bias_ih`` and ``bias_hh``. A GRU with reset_after has 0 or 2.
    peepholes, reset_after : bool
    activations : tuple of Activation
        One per role, in the order of ``ROLES[kind]``.
    clip : float, optional
        Bound of every pre-activation; None: no bound.
    input_forget : bool
        f = 1 - i (LSTM only).
    """

    kind: Kind
    input_size: int
    hidden_size: int
    proj_size: int = 0
    biases: int = 2
    peepholes: bool = False
    reset_after: bool = True
    activations: tuple[Activation, ...] = ()
    clip: float | None = None
    input_forget: bool = False

    def __post_init__(self) -> None:
        if not self.activations:
            object.__setattr__(self, "activations", tuple(ACTIVATIONS[a] for a in DEFAULT_ACTIVATIONS[self.kind]))

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates, in the order in which the parameters stack them."""
        return GATES[self.kind]

    @property
    def G(self) -> int:
        return len(self.gates)

    @property
    def I(self) -> int:  # noqa: E743
        return self.input_size

    @property
    def H(self) -> int:
        return self.hidden_size

    @property
    def R(self) -> int:
        """Width of h: proj_size with a projection, else H."""
        return self.proj_size or self.hidden_size

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Canonical (PyTorch) shape of every parameter of the direction, by name."""
        GH = self.G * self.H
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (GH, self.I), "weight_hh": (GH, self.R)}
        shapes |= dict.fromkeys(("bias_ih", "bias_hh")[: self.biases], (GH,))
        if self.proj_size:
            shapes["weight_hr"] = (self.R, self.H)
        if self.peepholes:
            shapes["weight_peep"] = (3, self.H)  # order i, f, o
        return shapes

    @cached_property
    def tape(self) -> dict[str, int]:
        """Width of every array that a forward pass keeps for backward, by name; N rows, one for each packed row.

        ======== ====== ====================================================================================
        gates    LSTM   i f g o after activation, (N, 4H); backward turns them into their gradients in place
                 GRU    r z n, then n_h = W_hn h + b_hn where reset_after, else r * h: (N, 4H)
                 RNN    absent: h is the gate
        c        LSTM   cell state (N, H)
        h        all    output (N, R)
        m        LSTM   o * h(c), (N, H), only where a projection follows
        ======== ====== ====================================================================================
        """
        H = self.H
        if self.kind == "lstm":
            widths = {"gates": 4 * H, "c": H, "h": self.R}
            return widths | {"m": H} if self.proj_size else widths
        return {"gates": 4 * H, "h": H} if self.kind == "gru" else {"h": H}

    @cached_property
    def initial(self) -> dict[str, int]:
        """Width of every array of the initial state, by its name on a tape."""
        return {"h0": self.R} | ({"c0": self.H} if self.kind == "lstm" else {})

    def tape_size(self, N: int, B: int) -> int:
        """Numbers on the tape of N rows of B sequences."""
        return N * sum(self.tape.values()) + B * sum(self.initial.values())
