"""Recurrent layers as Scan nodes, for what the operators LSTM, GRU and RNN have not: projections, and float64 in ONNX
Runtime. The equations are those of `fastlstm.spec`; activations are written with elementary operators.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..layout import Array
from ..spec import Activation, Spec
from .builder import Graph


def activate(g: Graph, f: Activation, x: str) -> str:
    """The nodes of an activation. Only with operators that ONNX Runtime has in float32 and float64."""

    def c(value: float) -> str:
        return g.constant(value, "number")

    alpha, beta = f.alpha, f.beta
    if f.name in ("sigmoid", "tanh", "relu"):
        return g.node(f.name.capitalize(), x)
    if f.name == "identity":
        return x
    if f.name in ("hard_sigmoid", "hard_sigmoid_keras2", "affine"):
        line = g.node("Add", g.node("Mul", x, c(alpha)), c(beta))
        return line if f.name == "affine" else g.node("Clip", line, c(0), c(1))
    if f.name == "leaky_relu":
        return g.where(g.node("Greater", x, c(0)), x, g.node("Mul", x, c(alpha)))
    if f.name == "thresholded_relu":
        return g.where(g.node("Less", x, c(alpha)), c(0), x)
    if f.name == "scaled_tanh":
        return g.node("Mul", g.node("Tanh", g.node("Mul", x, c(beta))), c(alpha))
    if f.name == "elu":
        low = g.node("Sub", g.node("Exp", g.node("Min", x, c(0))), c(1))
        return g.where(g.node("Greater", x, c(0)), x, g.node("Mul", low, c(alpha)))
    size = g.node("Abs", x)
    if f.name == "softsign":
        return g.node("Div", x, g.node("Add", size, c(1)))
    if f.name == "softplus":
        tail = g.node("Log", g.node("Add", g.node("Exp", g.node("Neg", size)), c(1)))
        return g.node("Add", g.node("Max", x, c(0)), tail)
    raise ValueError(f"activation {f.name!r} has no operators")


class Step:
    """The body of a Scan: one step of one direction.

    Parameters
    ----------
    g : Graph
        The body's.
    spec : Spec
    params : mapping
        The direction's canonical parameters. W_x and the biases outside of products with r are not used.
    """

    def __init__(self, g: Graph, spec: Spec, params: Mapping[str, Array]) -> None:
        self.g, self.spec, self.params = g, spec, params

    def gate(self, role: int, a: str) -> str:
        """An activation of an argument that is clipped, where the spec says so."""
        g, clip = self.g, self.spec.clip
        if clip is not None:
            a = g.node("Clip", a, g.constant(-clip, "number"), g.constant(clip, "number"))
        return activate(g, self.spec.activations[role], a)

    def times(self, h: str, name: str = "weight_hh", rows: slice = slice(None)) -> str:
        return self.g.node("MatMul", h, self.g.constant(self.params[name][rows].T, name))

    def split(self, a: str, parts: int) -> list[str]:
        sizes = self.g.ints(*[self.spec.H] * parts)
        return self.g.nodes("Split", [a, sizes], [f"part{k}" for k in range(parts)], axis=-1)

    def lstm(self, a: str, h: str, c: str) -> tuple[str, str]:
        g, spec = self.g, self.spec
        i, f, n, o = self.split(g.node("Add", a, self.times(h)), 4)

        def peep(gate: str, row: int, cell: str) -> str:
            if not spec.peepholes:
                return gate
            return g.node("Add", gate, g.node("Mul", cell, g.constant(self.params["weight_peep"][row], "peephole")))

        i = self.gate(0, peep(i, 0, c))
        f = g.node("Sub", g.constant(1, "number"), i) if spec.input_forget else self.gate(0, peep(f, 1, c))
        c = g.node("Add", g.node("Mul", f, c), g.node("Mul", i, self.gate(1, n)))
        o = self.gate(0, peep(o, 2, c))
        h = g.node("Mul", o, activate(g, spec.activations[2], c))
        return (self.times(h, "weight_hr") if spec.proj_size else h), c

    def gru(self, a: str, h: str) -> str:
        g, spec, H = self.g, self.spec, self.spec.H
        a_r, a_z, a_n = self.split(a, 3)
        u_r, u_z = self.split(self.times(h, rows=slice(0, 2 * H)), 2)
        r, z = self.gate(0, g.node("Add", a_r, u_r)), self.gate(0, g.node("Add", a_z, u_z))
        rows = slice(2 * H, 3 * H)
        if spec.reset_after:
            inner = self.times(h, rows=rows)
            if spec.biases:
                inner = g.node("Add", inner, g.constant(self.params["bias_hh"][rows], "bias"))
            u_n = g.node("Mul", r, inner)
        else:
            u_n = self.times(g.node("Mul", r, h), rows=rows)
        n = self.gate(1, g.node("Add", a_n, u_n))
        return g.node("Add", g.node("Mul", g.node("Sub", g.constant(1, "number"), z), n), g.node("Mul", z, h))

    def rnn(self, a: str, h: str) -> str:
        return self.gate(0, self.g.node("Add", a, self.times(h)))


def input_bias(spec: Spec, params: Mapping[str, Array]) -> Array | None:
    """(G*H,) the biases that the input's product may carry; see the reference's `pack`."""
    if not spec.biases:
        return None
    both = params["bias_ih"].copy()
    if spec.biases == 2:
        whole = params["bias_hh"].copy()
        if spec.kind == "gru" and spec.reset_after:
            whole[2 * spec.H :] = 0
        both += whole
    return both


def direction(
    g: Graph, spec: Spec, params: Mapping[str, Array], x: str, states: list[str], valid: str | None, reverse: bool
) -> tuple[str, list[str]]:
    """One direction of one layer.

    Parameters
    ----------
    g : Graph
    x : str
        (T, B, I)
    states : list of str
        (B, R) and, for LSTM, (B, H)
    valid : str, optional
        (T, B, 1) bools: the steps that count.
    reverse : bool

    Returns
    -------
    y : str
        (T, B, R), zeros at the steps that do not count.
    states : list of str
    """
    a = g.node("MatMul", x, g.constant(params["weight_ih"].T, "weight_ih"))
    if (bias := input_bias(spec, params)) is not None:
        a = g.node("Add", a, g.constant(bias, "bias"))
    body = Graph("step", g.dtype, g)
    names = ["h", "c"][: len(states)]
    before = [body.input(name, g.dtype, ["B", width]) for name, width in zip(names, spec.initial.values(), strict=True)]
    a_t = body.input("a", g.dtype, ["B", spec.G * spec.H])
    step = Step(body, spec, params)
    after = list(step.lstm(a_t, *before)) if spec.kind == "lstm" else [getattr(step, spec.kind)(a_t, *before)]
    y = after[0]
    if valid is not None:
        now = body.input("valid", np.bool_, ["B", 1])
        after = [body.where(now, new, old) for new, old in zip(after, before, strict=True)]
        y = body.where(now, y, body.constant(0, "number"))
    for name, value, width in zip(names, after, spec.initial.values(), strict=True):
        body.output(value, f"{name}_next", g.dtype, ["B", width])
    body.output(y, "step_y", g.dtype, ["B", spec.R])
    scanned = [a] if valid is None else [a, valid]
    made = g.nodes(
        "Scan",
        [*states, *scanned],
        [*(f"{name}_last" for name in names), "scanned"],
        body=body.proto,
        num_scan_inputs=len(scanned),
        scan_input_directions=[int(reverse)] * len(scanned),
        scan_output_directions=[int(reverse)],
    )
    return made[-1], made[:-1]
