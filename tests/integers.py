"""Products with matrices of integers, and layers on them, by plain loops and exact fractions.

A second text of what `fastlstm.storage` defines: one sequence at a time, one number at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from fastlstm._backends.numpy.activations import act, bounds, gate
from fastlstm.spec import Spec

F32 = np.float32
LARGEST = {"int8": 127, "int16": 8191}
STRETCH = {("int8", 127): 65536, ("int8", 8191): 2048, ("int16", 8191): 32}


def even(value: Fraction) -> int:
    """The nearest integer, ties to even."""
    return round(value)


def to_float32(value: Fraction) -> np.float32:
    """The nearest float32 to an exact number, ties to even."""
    near = F32(float(value))
    around = [np.nextafter(near, F32(-np.inf)), near, np.nextafter(near, F32(np.inf))]
    off = [abs(Fraction(float(one)) - value) for one in around]
    best = [one for one, d in zip(around, off, strict=True) if d == min(off)]
    return best[0] if len(best) == 1 else next(one for one in best if not int(one.view(np.int32)) & 1)


def matrix(w: Any, storage: str) -> tuple[list[list[int]], list[np.float32]]:
    """(integers, scale) of each row of a matrix."""
    rows, scales = [], []
    for row in w.tolist():
        m = max(map(abs, row))
        if storage == "int8":
            for first, second in zip(row[0::2], row[1::2], strict=False):
                if first * second > 0:
                    m = max(m, abs(first + second))
        scale = F32(m / LARGEST[storage]) if m / LARGEST[storage] >= 2.0**-126 else F32(1)
        rows.append([even(Fraction(v / float(scale))) for v in row])
        scales.append(scale)
    return rows, scales


def rounded(row: Any, largest: int, least: float) -> tuple[list[int], np.float32]:
    """(integers, scale) of a row of the other operand."""
    m = F32(least)
    for v in row:
        m = max(m, abs(F32(v)))
    factor = F32(largest) / m
    return [even(Fraction(float(F32(v) * factor))) for v in row], m / F32(largest)


def product(
    row: Any, w: tuple[list[list[int]], list[np.float32]], start: Any, form: tuple[int, float], every: int
) -> Any:
    """start + w row, rounded once for each stretch."""
    if not np.isfinite(row).all():
        return np.full(len(start), np.nan, F32)
    whole, scale = rounded(row, *form)
    out = []
    for integers, own, y in zip(*w, start, strict=True):
        factor, y = Fraction(float(F32(own * scale))), F32(y)
        for k in range(0, len(whole), every):
            total = sum(a * b for a, b in zip(integers[k : k + every], whole[k : k + every], strict=True))
            y = to_float32(factor * Fraction(float(F32(total))) + Fraction(float(y)))
        out.append(y)
    return np.array(out, F32)


class ByHand:
    """One direction of one layer, with an integer storage.

    Parameters
    ----------
    spec : Spec
    params : dict of arrays
    storage : {"int8", "int16"}
    x_form : (largest, least)
    """

    def __init__(self, spec: Spec, params: dict[str, Any], storage: str, x_form: tuple[int, float]) -> None:
        self.spec, self.p, self.storage, self.x_form = spec, params, storage, x_form
        self.w = {
            name: matrix(a, storage) for name, a in params.items() if name in ("weight_ih", "weight_hh", "weight_hr")
        }
        self.ends = bounds(spec, np.dtype(F32))
        within = ("sigmoid", "hard_sigmoid", "hard_sigmoid_keras2", "tanh", "softsign")
        names = [f.name for f in spec.activations]
        gates = spec.kind == "rnn" or names[0] in within[:3]
        self.is_bounded = gates and names[-1] in within
        self.largest = LARGEST[storage]

    def times(self, name: str, row: Any, start: Any, form: tuple[int, float], rows: slice = slice(None)) -> Any:
        integers, scales = self.w[name]
        return product(row, (integers[rows], scales[rows]), start, form, STRETCH[self.storage, form[0]])

    def gate(self, role: int, a: Any) -> Any:
        return gate(self.spec.activations[role], a, self.spec.clip, None if self.ends is None else self.ends[role])

    def biases(self) -> tuple[Any, Any]:
        zeros = np.zeros(self.spec.G * self.spec.H, F32)
        return self.p.get("bias_ih", zeros), self.p.get("bias_hh", zeros)

    def step(self, x: Any, state: Sequence[Any]) -> tuple[Any, ...]:
        """The state after a step from x, a row or a token id."""
        s, H = self.spec, self.spec.H
        b_ih, b_hh = self.biases()
        b_n = b_hh[2 * H :]
        if s.kind == "gru" and s.reset_after:
            b_hh = np.concatenate((b_hh[: 2 * H], np.zeros(H, F32)))
        start = b_ih + b_hh
        if np.ndim(x):
            a = self.times("weight_ih", x, start, self.x_form)
        else:
            integers, scales = self.w["weight_ih"]
            exact = [
                Fraction(float(c)) * r[int(x)] + Fraction(float(b))
                for r, c, b in zip(integers, scales, start, strict=True)
            ]
            a = np.array([to_float32(v) for v in exact], F32)
        m_form = (self.largest, 1.0 if self.is_bounded else 2.0**-100)
        h_form = m_form if not s.proj_size else (self.largest, 2.0**-100)
        h = state[0]
        if s.kind == "rnn":
            return (self.gate(0, self.times("weight_hh", h, a, h_form)),)
        if s.kind == "lstm":
            return self.lstm(self.times("weight_hh", h, a, h_form), state[1], m_form)
        if s.reset_after:
            u = self.times("weight_hh", h, np.concatenate((a[: 2 * H], b_n)), h_form)
            r, z = self.gate(0, u[:H]), self.gate(0, u[H : 2 * H])
            n = self.gate(1, a[2 * H :] + r * u[2 * H :])
        else:
            u = self.times("weight_hh", h, a[: 2 * H], h_form, slice(2 * H))
            r, z = self.gate(0, u[:H]), self.gate(0, u[H:])
            n = self.gate(1, self.times("weight_hh", r * h, a[2 * H :], h_form, slice(2 * H, None)))
        return ((1 - z) * n + z * h,)

    def lstm(self, a: Any, c: Any, m_form: tuple[int, float]) -> tuple[Any, ...]:
        s, H = self.spec, self.spec.H
        p = self.p.get("weight_peep", np.zeros((3, H), F32))
        i = self.gate(0, a[:H] + p[0] * c)
        f = 1 - i if s.input_forget else self.gate(0, a[H : 2 * H] + p[1] * c)
        g = self.gate(1, a[2 * H : 3 * H])
        c = f * c + i * g
        m = self.gate(0, a[3 * H :] + p[2] * c) * act(s.activations[2], c)
        h = self.times("weight_hr", m, np.zeros(s.R, F32), m_form) if s.proj_size else m
        return h, c


def run(layer: Any, drawn: Any, storage: str, inputs: str) -> dict[str, Any]:
    """The outputs and final states of a float layer's weights in an integer storage, sequence by sequence."""
    batch_first = layer.batch_first
    x = np.asarray(drawn.x).swapaxes(0, 1) if batch_first else np.asarray(drawn.x)
    T, B = x.shape[:2]
    lengths = np.full(B, T) if drawn.lengths is None else drawn.lengths
    widths = list(layer._specs[0][0].initial.values())
    D, L = layer._D, layer.num_layers
    given = drawn.state if isinstance(drawn.state, tuple) else (drawn.state,) * len(widths)
    states = [np.zeros((L * D, B, w), F32) if s is None else s.copy() for s, w in zip(given, widths, strict=True)]
    y = np.zeros((T, B, D * layer._R), F32)
    for b in range(B):
        rows: Any = x[: lengths[b], b]
        below = False
        for at, (specs, of_layer) in enumerate(zip(layer._specs, layer._keys, strict=True)):
            largest = {"int8": 127, "int16": 8191}[inputs] if not at else LARGEST[storage]
            form = (largest, 1.0 if below else 2.0**-100)
            out = np.zeros((len(rows), D * layer._R), F32)
            one = None
            for d, (spec, keys) in enumerate(zip(specs, of_layer, strict=True)):
                one = ByHand(spec, {n: layer._params[key] for n, key in keys.items()}, storage, form)
                state = tuple(s[at * D + d, b] for s in states)
                for t in range(len(rows))[:: -1 if d else 1]:
                    state = one.step(rows[t], state)
                    out[t, d * spec.R : (d + 1) * spec.R] = state[0]
                for s, new in zip(states, state, strict=True):
                    s[at * D + d, b] = new
            below = all(ByHand(s, {}, storage, form).is_bounded and not s.proj_size for s in specs)
            rows = out
        y[: lengths[b], b] = rows
    y = y.swapaxes(0, 1) if batch_first else y
    return {"y": y, **dict(zip(("h_n", "c_n"), states, strict=False))}
