"""The gates and states of a recurrent layer over one sequence, step by step: `trace`.

They come from the tape that training keeps (`layout.parts_of_tape`): every backend gives those it computed with.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .layout import Array, parts_of_tape
from .nn.residual import Residual
from .recurrent import Recurrent
from .sequential import Sequential
from .spec import GATES
from .text import TextModel
from .validation import positive

# What the parts of a trace are called, in the order in which pictures have them.
NAMES = {
    "i": "input gate",
    "f": "forget gate",
    "o": "output gate",
    "g": "candidate",
    "r": "reset gate",
    "z": "update gate",
    "n": "candidate",
    "c": "cell state",
    "h": "output",
}
FROM_0_TO_1 = ("i", "f", "o", "r", "z")  # gates; the other parts have both signs


@dataclass
class Trace:
    """Gates and states of one direction of one layer.

    Parameters
    ----------
    kind : {"lstm", "gru", "rnn"}
    parts : dict
        LSTM: i, f, o, g, c (T, H) and h (T, R); GRU: r, z, n and h; RNN: h. After the activations, float32 or float64.
    labels : list of str
        What each step reads: a character, a word with the blank before it, or the number of the step.
    title : str
    is_text : bool
        Whether the labels, joined, are a text.
    """

    kind: str
    parts: dict[str, Array]
    labels: list[str] = field(default_factory=list)
    title: str = ""
    is_text: bool = False

    def __len__(self) -> int:
        return len(self.parts["h"])

    @property
    def units(self) -> int:
        """H."""
        return int(self.parts["h" if self.kind == "rnn" else GATES[self.kind][0]].shape[1])

    def range_of(self, part: str) -> tuple[float, float]:
        """The values between which a part is drawn: 0 and 1 for gates; else -m and m.

        m is the size that 95 % of the values do not exceed, and a quarter of the largest size at least: a single unit
        that counts far up must not make all others pale.
        """
        if part in FROM_0_TO_1:
            return 0.0, 1.0
        sizes = np.abs(self.parts[part].astype(np.float64))
        most = float(max(np.quantile(sizes, 0.95), sizes.max() / 4)) if sizes.size else 0.0
        return -(most or 1.0), most or 1.0


def trace(model: Any, x: Any, *, layer: int = 0, direction: int = 0, state: Any = None) -> Trace:
    """What the gates of a model do over one sequence, in inference.

    Parameters
    ----------
    model : LSTM, GRU, RNN, Sequential, CharModel or WordModel
        Stays as it is.
    x : (T, I) array, (T,) token ids, or str
        A str for a text model. For a Sequential what its first module takes, without the batch.
    layer : int
        Counted from 0; in a Sequential among all layers of its recurrent modules.
    direction : int
        0, or 1 for the reverse direction of a bidirectional layer.
    state : optional
        The initial state, as for a call of the layer; zeros unless given. Not for a Sequential.

    Returns
    -------
    trace : Trace

    Raises
    ------
    TypeError, ValueError
        The model has no recurrent layer, or no such layer or direction; or x does not fit.
    """
    layer, direction = positive(layer, "layer", 0), positive(direction, "direction", 0)
    if isinstance(model, TextModel):
        if not isinstance(x, str):
            raise TypeError(f"x for a {type(model).__name__} is a text, got {type(x).__name__}")
        found = of_layer(model.lstm, model.tokens.encode(x), layer, direction, state)
        found.labels = list(model.tokens.spelled(model.vocabulary[i] for i in model.tokens.encode(x).tolist()))
        found.is_text = True
        return found
    if isinstance(model, Sequential):
        if state is not None:
            raise ValueError("state is for one layer; a Sequential begins with zeros: leave it out")
        return of_modules(model, x, layer, direction)
    if not isinstance(model, Recurrent):
        raise TypeError(
            f"gates are those of an LSTM, GRU or RNN, a Sequential or a text model, got {type(model).__name__}"
        )
    return of_layer(model, x, layer, direction, state)


def of_layer(recurrent: Recurrent, x: Any, layer: int, direction: int, state: Any) -> Trace:
    """The trace of one recurrent layer, whose input is x (T, I) or (T,)."""
    if layer >= recurrent.num_layers or direction >= recurrent._D:
        raise ValueError(
            f"there is no layer {layer} with direction {direction}: {recurrent!r} has {recurrent.num_layers} layers, "
            f"counted from 0, with {recurrent._D} direction{'s' * (recurrent._D > 1)} each"
        )
    x = np.asarray(x)
    if x.ndim != (1 if x.dtype.kind in "iu" else 2) or not len(x):
        raise ValueError(
            f"x has shape {x.shape}, expected one sequence: (T, {recurrent.input_size}), or (T,) token ids"
        )
    if x.dtype.kind == "f":
        x = x.astype(recurrent.dtype, copy=False)
    alone = copy.deepcopy(recurrent).eval()  # no dropout, and the given layer's mode stays
    _, _, tape = alone.forward(x, state)
    spec = recurrent._specs[layer][direction]
    found = parts_of_tape(spec, tape.record.kept[layer][direction], tape.record.batch.rows)
    parts: dict[str, Array] = {name: found[name].copy() for name in ("c", "h") if name in spec.tape}
    if "gates" in spec.tape:
        for at, name in enumerate(GATES[spec.kind]):
            parts[name] = found["gates"][:, at * spec.H : (at + 1) * spec.H].copy()
    ordered = {name: parts[name] for name in NAMES if name in parts}
    return Trace(spec.kind, ordered, [str(t) for t in range(len(x))], f"{recurrent!r}, layer {layer}")


def of_modules(model: Sequential, x: Any, layer: int, direction: int) -> Trace:
    """The trace of one of a Sequential's recurrent layers."""
    y: Any = np.asarray(x)[None]
    model.build(y.shape[1:])
    left = layer
    for module in model.modules:
        inner: Any = module.module if isinstance(module, Residual) else module
        if isinstance(inner._core, Recurrent):
            if left < inner._core.num_layers:
                backwards = getattr(inner, "go_backwards", False)
                found = of_layer(inner._core, y[0][::-1] if backwards else y[0], left, direction, None)
                if backwards:
                    found.parts = {name: part[::-1] for name, part in found.parts.items()}
                return found
            left -= inner._core.num_layers
        y = module(y)
    raise ValueError(f"the model has {layer - left} recurrent layers, and so none with number {layer}: {model!r}")


def with_labels(found: Trace, labels: Sequence[str], is_text: bool = False) -> Trace:
    """The same trace with other labels, one for each step.

    Raises
    ------
    ValueError
        There are not as many labels as steps.
    """
    if len(labels) != len(found):
        raise ValueError(f"the trace has {len(found)} steps, got {len(labels)} labels: one for each step")
    return Trace(found.kind, found.parts, list(labels), found.title, is_text)
