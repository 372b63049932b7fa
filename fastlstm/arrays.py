"""Dictionaries of parameters as users write them by hand: read by `from_arrays`, made by `layer.to_arrays`.

Every array of such a dictionary is a rectangle of one matrix, [weight_hh | weight_ih | bias_ih | bias_hh] of shape
(G*H, H + I + 2): some gates, in some order, by some columns, perhaps transposed. So a form is data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .gates import order, places
from .layout import Array
from .quantise import check_floats
from .spec import GATES, Kind

if TYPE_CHECKING:
    from .dense import Dense
    from .layer import Layer
    from .recurrent import Recurrent

# The parameters of a part's column letters. The bias of a form with one bias is bias_ih, in a layer with `single_bias`.
COLUMNS: dict[str, tuple[str, ...]] = {
    "h": ("weight_hh",),
    "x": ("weight_ih",),
    "hx": ("weight_hh", "weight_ih"),
    "b": ("bias_ih",),
    "bb": ("bias_ih", "bias_hh"),
}


@dataclass(frozen=True)
class Form:
    """One way of writing the parameters of one layer in one direction.

    Parameters
    ----------
    name : str
    kind : {"lstm", "gru", "rnn"}
    units_first : bool
        Matrices are (units, inputs), for batches in columns, and biases (H, 1); else (inputs, units) and (H,).
    parts : dict
        Of each key its gates (names of `spec.GATES`, in the array's order) and columns (a key of `COLUMNS`).
    head : pair of keys, optional
        Weight and bias of a dense layer that may follow.
    reset_after : bool
        The GRU's form; see `spec`.
    """

    name: str
    kind: Kind
    units_first: bool
    parts: dict[str, tuple[str, str]]
    head: tuple[str, str] | None = None
    reset_after: bool = True

    @property
    def keys(self) -> str:
        return " ".join(self.parts) + (f" ({' '.join(self.head)})" if self.head else "")

    @property
    def single_bias(self) -> bool:
        """Whether its layer has one bias: of two, training by the gradient would move the sum twice as far."""
        return all(columns != "bb" for _, columns in self.parts.values())

    def ndim(self, columns: str) -> int:
        """Rank of an array with these columns: only a lone bias may be a vector."""
        return 1 if columns == "b" and not self.units_first else 2

    def to_units(self, a: Array) -> Array:
        """An array of this form as (units, columns)."""
        return a[:, None] if a.ndim == 1 else a if self.units_first else a.T

    def from_units(self, a: Array, columns: str) -> Array:
        """(units, columns) as an array of this form, fresh and contiguous."""
        return np.array(a if self.units_first else a[:, 0] if columns == "b" else a.T, order="C")


def _per_gate(form: str, kind: Kind, matrices: Mapping[str, str], bias: str) -> dict[str, tuple[str, str]]:
    """Parts of a form with arrays for each gate: templates of keys, filled with the form's name of each gate."""
    gates, names = order(form, kind)
    return {
        template.format(own): (gate, columns)
        for gate, own in zip(gates, names, strict=True)
        for template, columns in (*matrices.items(), (bias, "b"))
    }


def _stacked(form: str, kind: Kind, bias: str) -> dict[str, tuple[str, str]]:
    """Parts of a form whose arrays stack all gates."""
    gates = order(form, kind).gates
    return {"kernel": (gates, "x"), "recurrent_kernel": (gates, "h"), "bias": (gates, bias)}


# Kind, columns of the bias (a key of `COLUMNS`), and reset_after.
KERAS: tuple[tuple[Kind, str, bool], ...] = (
    ("lstm", "b", True),
    ("gru", "bb", True),
    ("gru", "b", False),
    ("rnn", "b", True),
)
_D2L = {"W_x{}": "x", "W_h{}": "h"}

FORMS: tuple[Form, ...] = (
    Form(
        "stacked",  # each matrix multiplies [h; x]
        "lstm",
        True,
        _per_gate("stacked", "lstm", {"W{}": "hx"}, "b{}"),
        ("Wy", "by"),
    ),
    Form("waa", "rnn", True, _per_gate("waa", "rnn", {"W{}a": "h", "W{}x": "x"}, "b{}"), ("Wya", "by")),
    Form("d2l", "lstm", False, _per_gate("d2l", "lstm", _D2L, "b_{}"), ("W_hq", "b_q")),
    Form("d2l", "gru", False, _per_gate("d2l", "gru", _D2L, "b_{}"), ("W_hq", "b_q"), reset_after=False),
    Form("d2l", "rnn", False, _per_gate("d2l", "rnn", _D2L, "b_{}"), ("W_hq", "b_q")),
    *(
        Form(
            "keras",
            kind,
            False,
            _stacked("keras", kind, bias),
            reset_after=reset_after,
        )
        for kind, bias, reset_after in KERAS
    ),
)


# ------------------------------------------------------------------------------------------------- rows and columns
def _rows(kind: str, gates: str, H: int) -> Array:
    """Rows of the canonical arrays that hold these gates."""
    return places(gates, order("torch", kind).gates, H)


def _columns(params: Mapping[str, Array], columns: str) -> list[Array]:
    """Views (units, width) of the canonical parameters that these columns stand for."""
    arrays = [params[name] for name in COLUMNS[columns]]
    return [a[:, None] if a.ndim == 1 else a for a in arrays]


def _sum(a: Array, b: Array) -> Array:
    """a + b, but a where b is 0: adding 0 would turn -0 into 0."""
    return np.where(b == 0, a, a + b)


# --------------------------------------------------------------------------------------------------------- from arrays
def _recognise(d: Mapping[str, Array], kind: str) -> Form:
    """The form of a dictionary, by its keys and, where two forms have the same keys, by the arrays' ranks."""
    forms = [form for form in FORMS if form.kind == kind]
    if not forms:
        raise ValueError(f"kind {kind!r} is not known; expected one of {', '.join(GATES)}")
    form = max(forms, key=lambda f: (sum(key in d for key in f.parts), all(_rank_fits(f, d))))
    if not any(key in d for key in form.parts):
        raise ValueError(
            f"the keys {' '.join(map(str, d)) or '(none)'} belong to no form of {kind}. Known forms:\n  "
            + "\n  ".join(f"{f.name}: {f.keys}" for f in forms)
        )
    head = form.head if form.head and any(key in d for key in form.head) else ()
    missing = [key for key in (*form.parts, *head) if key not in d]
    unexpected = [key for key in d if key not in (*form.parts, *head)]
    if missing or unexpected:
        raise ValueError(
            f"the arrays look like form {form.name!r} of {kind}, which has the keys {form.keys}"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; unexpected: {', '.join(map(str, unexpected))}" if unexpected else "")
        )
    return form


def _rank_fits(form: Form, d: Mapping[str, Array]) -> list[bool]:
    return [d[key].ndim == form.ndim(columns) for key, (_, columns) in form.parts.items() if key in d]


def _sizes(form: Form, d: Mapping[str, Array]) -> tuple[int, int]:
    """(I, H) of most arrays, so that the error names an array that differs."""
    standing = {
        key: (form.to_units(d[key]).shape, *part)
        for key, part in form.parts.items()
        if d[key].ndim == form.ndim(part[1])
    }
    # Without an array of the right rank the sizes are unknown, and `_check` names the first array.
    H = _most(shape[0] // len(gates) for shape, gates, _ in standing.values())
    I = _most(shape[1] - H * ("h" in columns) for shape, _, columns in standing.values() if "x" in columns)  # noqa: E741
    return I, H


def _most(sizes: Any) -> int:
    return next((size for size, _ in Counter(sizes).most_common(1)), 0)


def _check(form: Form, key: str, a: Array, columns: str, shape: tuple[int, int]) -> Array:
    """The array as (units, columns), or an error with the shape expected in its form."""
    expected = shape if form.units_first else shape[:1] if columns == "b" else shape[::-1]
    if a.shape != expected:
        raise ValueError(f"{key} has shape {a.shape}, expected {expected} in form {form.name!r} of {form.kind}")
    return form.to_units(a)


def from_arrays(d: Mapping[str, Any], kind: str, *, dtype: Any = None, backend: str = "auto") -> Any:
    """A layer from a parameter dictionary that was written by hand.

    ========= ============== ========================================================= ==============================
    form      kinds          keys                                                      matrices, biases
    ========= ============== ========================================================= ==============================
    stacked   lstm           Wf bf Wi bi Wc bc Wo bo (Wy by)                           (H, H+I) on [h; x], (H, 1)
    waa       rnn            Waa Wax ba (Wya by)                                       (H, H) and (H, I), (H, 1)
    d2l       lstm gru rnn   W_xi W_hi b_i ... ; W_xz W_hz b_z ... ; W_xh W_hh b_h     (I, H) and (H, H), (H,)
                             (W_hq b_q)
    keras     lstm gru rnn   kernel recurrent_kernel bias                              (I, G*H) and (H, G*H), (G*H,);
                                                                                       gates i f c o and z r h; GRU
                                                                                       with reset_after: bias (2, 3H)
    ========= ============== ========================================================= ==============================

    Parameters
    ----------
    d : mapping of arrays
        The form is recognised from the keys. Those in parentheses are a dense head: both, or neither.
    kind : {"lstm", "gru", "rnn"}
    dtype : {"float32", "float64"}, optional
        The layer's dtype; None: the arrays' dtype.
    backend : str
        As in `LSTM`.

    Returns
    -------
    layer : LSTM, GRU or RNN
        ``layer.to_arrays(form)`` gives the same arrays back, bit for bit. For a form with one bias the layer has
        ``single_bias=True``, so that a step of an optimiser is the one that it is for the arrays.
    head : Dense
        Only where `d` has one: then ``(layer, head)`` is returned.

    Raises
    ------
    ValueError
        Unknown kind or keys, missing keys, or arrays whose shapes do not fit together.
    """
    from . import recurrent

    arrays = {key: np.asarray(value) for key, value in d.items()}
    form = _recognise(arrays, kind)
    if dtype is None:
        dtype = np.result_type(*arrays.values())
        if dtype.name not in ("float32", "float64"):
            raise ValueError(f"the arrays have dtype {dtype}, expected float32 or float64; say which: dtype='float32'")
    I, H = _sizes(form, arrays)  # noqa: E741
    width = {"weight_hh": H, "weight_ih": I, "bias_ih": 1, "bias_hh": 1}
    standing = {
        key: _check(form, key, arrays[key], columns, (len(gates) * H, sum(width[name] for name in COLUMNS[columns])))
        for key, (gates, columns) in form.parts.items()
    }

    options = {"single_bias": form.single_bias} | ({"reset_after": form.reset_after} if kind == "gru" else {})
    make = {"lstm": recurrent.LSTM, "gru": recurrent.GRU, "rnn": recurrent.RNN}[kind]
    layer = make(I, H, dtype=dtype, backend=backend, **options)
    params = {name.removesuffix("_l0"): np.zeros_like(p) for name, p in layer.state_dict().items()}
    for key, (gates, columns) in form.parts.items():
        at = 0
        for into in _columns(params, columns):
            into[_rows(kind, gates, H)] = standing[key][:, at : at + into.shape[1]]
            at += into.shape[1]
    layer.load_state_dict({f"{name}_l0": p for name, p in params.items()})
    if form.head is None or form.head[0] not in arrays:
        return layer
    return layer, _take_head(form, arrays, H, np.dtype(dtype))


def _take_head(form: Form, arrays: Mapping[str, Array], H: int, dtype: np.dtype[Any]) -> Dense:
    from .dense import Dense

    assert form.head is not None
    W, b = (arrays[key] for key in form.head)
    units = form.to_units(W).shape[0] if W.ndim == 2 else 0
    weight = _check(form, form.head[0], W, "h", (units, H))
    bias = _check(form, form.head[1], b, "b", (units, 1))
    head = Dense(H, units, dtype=dtype)
    head.load_state_dict({"weight": weight, "bias": bias[:, 0]})
    return head


# ----------------------------------------------------------------------------------------------------------- to arrays
def to_arrays(layer: Recurrent, form: str, head: Layer | None = None) -> dict[str, Array]:
    """The parameters of a layer, and of the dense layer after it, in a form of `from_arrays`.

    Parameters
    ----------
    layer : LSTM, GRU or RNN
        With num_layers=1, one direction, no projection and no peepholes. If the form has one bias, it is
        bias_ih + bias_hh; a layer without biases gives zeros.
    form : str
        A form of `from_arrays`.
    head : Dense, optional
        Its weight and bias go under the form's keys for a head.

    Returns
    -------
    arrays : dict of fresh arrays of the layer's dtype

    Raises
    ------
    ValueError
        Unknown form, or one that cannot express this layer or head.
    """
    check_floats(layer, "to_arrays")
    chosen = _form_for(layer, form)
    H = layer.hidden_size
    params = {name.removesuffix("_l0"): p for name, p in layer.state_dict().items()}
    for name in ("bias_ih", "bias_hh"):
        params.setdefault(name, np.zeros(len(params["weight_hh"]), layer.dtype))
    if chosen.single_bias:
        params["bias_ih"] = _sum(params["bias_ih"], params["bias_hh"])
    arrays = {
        key: chosen.from_units(np.concatenate(_columns(params, columns), axis=1)[_rows(layer.kind, gates, H)], columns)
        for key, (gates, columns) in chosen.parts.items()
    }
    return arrays if head is None else arrays | _give_head(chosen, head, H)


def _form_for(layer: Recurrent, name: str) -> Form:
    """The form of that name for this layer, or an error with the options that the form cannot express."""
    forms = [form for form in FORMS if form.kind == layer.kind]
    named = [form for form in forms if form.name == name]
    if not named:
        known = ", ".join(dict.fromkeys(form.name for form in forms))
        raise ValueError(f"form {name!r} is not known for {type(layer).__name__}; expected one of {known}")
    spec = layer._specs[0][0]
    against = {
        f"num_layers={layer.num_layers}": layer.num_layers > 1,
        "bidirectional=True": layer.bidirectional,
        "reverse=True": layer.reverse,
        f"proj_size={spec.proj_size}": spec.proj_size > 0,
        "peepholes=True": spec.peepholes,
        f"reset_after={spec.reset_after}": all(form.reset_after != spec.reset_after for form in named),
    }
    reasons = [reason for reason, stands in against.items() if stands]
    if reasons:
        raise ValueError(f"form {name!r} cannot express {layer!r}: it has no place for {', '.join(reasons)}")
    return next(form for form in named if form.reset_after == spec.reset_after)


def _give_head(form: Form, head: Layer, H: int) -> dict[str, Array]:
    if form.head is None:
        raise ValueError(f"form {form.name!r} has no keys for a head; leave it out")
    params = head.state_dict()
    weight = params["weight"]
    if weight.shape[1] != H:
        raise ValueError(
            f"the head's weight has shape {weight.shape}, expected (units, {H}): the layer gives {H} numbers"
        )
    bias = params.get("bias", np.zeros(len(weight), weight.dtype))
    return {form.head[0]: form.from_units(weight, "h"), form.head[1]: form.from_units(bias[:, None], "b")}
