"""One direction of one layer: packing, a step forward of each cell, forward over packed rows, streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ...layout import Array, RowMap, Rows, begin_tape
from ...spec import Spec
from ...storage import STORAGES, Form, bounded
from .activations import act, bounds, gate
from .products import Matrix, rows_of, times

# Rows whose input product is taken at once: as quick as all of them, and no buffer as long as the sequences.
STRETCH = 512


# ------------------------------------------------------------------------------------------------------------- packing
@dataclass(frozen=True)
class Block:
    """Weights of one direction of one layer as this backend reads them (copies: a later update cannot change them)."""

    spec: Spec
    reverse: bool
    W_x: Matrix  # (I, GH)
    W_h: Matrix  # (R, GH)
    W_r: Matrix | None  # (H, R)    projection
    b_x: Array  # (GH,)     every bias that the input's product may carry
    b_hn: Array  # (H,)      GRU with reset_after: the bias inside r * (...); else zeros
    peep: Array  # (3, H)    peepholes of i, f, o, or zeros
    ends: Array | None  # (roles, 2) with clip: the activations' outputs at -clip and clip

    def end(self, role: int) -> Array | None:
        """(2,) the outputs of one role's activation at -clip and clip; None where nothing is clipped."""
        return None if self.ends is None else self.ends[role]


def pack(
    spec: Spec,
    params: dict[str, Array],
    storage: str | None = None,
    reverse: bool = False,
    x_form: Form | None = None,
) -> Block:
    """One direction of one layer: its weights, in the form that `forward`, `backward` and `bind` take.

    Parameters
    ----------
    spec : Spec
    params : dict of arrays
        Canonical shapes (``spec.parameters``). A matrix may be in its storage already: a matrix of integers then has
        its scales beside it, by the name `storage.SCALE`.
    storage : str, optional
        How every entry of a matrix is kept: a name of `storage.STORAGES`. The parameters' dtype where None. Biases,
        peepholes and arithmetic stay in the dtype of `bias_ih` or, without biases, in that of float parameters (float32
        where there are none).
    reverse : bool
        Walk the rows from the last step to the first; a sequence joins, with its initial state, at its last step.
    x_form : Form, optional
        For a storage of integers: how rows of x are rounded (`storage.input_forms`). None: each by its own scale.

    Raises
    ------
    ValueError
        An entry is too large for the storage.
    """
    dtype = dtype_of(params)
    storage = storage or dtype.name
    kept = STORAGES[storage]
    h_form, m_form = kept.form(bounded(spec) and not spec.proj_size), kept.form(bounded(spec))
    H, GH = spec.H, spec.G * spec.H
    b_ih, b_hh = (params.get(name, np.zeros(GH, dtype)) for name in ("bias_ih", "bias_hh"))
    b_hn = np.zeros(H, dtype)
    if spec.kind == "gru" and spec.reset_after:  # b_hn stays inside r * (...)
        b_hn, b_hh = b_hh[2 * H :].copy(), np.concatenate((b_hh[: 2 * H], b_hn))
    return Block(
        spec,
        reverse,
        Matrix.of(params, "weight_ih", storage, x_form or kept.form()),
        Matrix.of(params, "weight_hh", storage, h_form),
        Matrix.of(params, "weight_hr", storage, m_form) if spec.proj_size else None,
        b_ih + b_hh,
        b_hn,
        params.get("weight_peep", np.zeros((3, H), dtype)).copy(),
        bounds(spec, dtype),
    )


def dtype_of(params: dict[str, Array]) -> np.dtype[np.floating]:
    """The dtype of a direction's arithmetic: that of its parameters, except for matrices in a reduced storage."""
    for name in ("bias_ih", "weight_peep", "weight_hh"):
        if name in params and params[name].dtype.name in ("float32", "float64"):
            return params[name].dtype
    return np.dtype(np.float32)


# ---------------------------------------------------------------------------------------------------- one step, forward
def activated(k: Block, role: int, a: Array) -> Array:
    """The gates of a role from pre-activations."""
    return gate(k.spec.activations[role], a, k.spec.clip, k.end(role))


def lstm_step(k: Block, a: Array, h: Array, c: Array) -> tuple[Array, Array, dict[str, Array]]:
    """(h', c', the step's part of the tape) from a = W_x x + b: a (B, 4H), h (B, R), c (B, H)."""
    H = k.spec.H
    a = times(h, k.W_h, a)
    p_i, p_f, p_o = k.peep
    peepholes = k.spec.peepholes
    a_i, a_f = a[:, :H], a[:, H : 2 * H]
    if peepholes:
        a_i, a_f = a_i + p_i * c, a_f + p_f * c
    i = activated(k, 0, a_i)
    f = 1 - i if k.spec.input_forget else activated(k, 0, a_f)
    g = activated(k, 1, a[:, 2 * H : 3 * H])
    c = f * c + i * g
    o = activated(k, 0, a[:, 3 * H :] + p_o * c if peepholes else a[:, 3 * H :])
    m = o * act(k.spec.activations[2], c)
    h = times(m, k.W_r, np.zeros(k.spec.R, m.dtype)) if k.W_r is not None else m
    return h, c, {"gates": np.concatenate((i, f, g, o), axis=1), "c": c, "h": h, "m": m}


def gru_step(k: Block, a: Array, h: Array) -> tuple[Array, dict[str, Array]]:
    """(h', tape) from a = W_x x + b: a (B, 3H), h (B, H)."""
    H = k.spec.H
    if k.spec.reset_after:
        b_hn = np.broadcast_to(k.b_hn, (len(a), H))
        u = times(h, k.W_h, np.concatenate((a[:, : 2 * H], b_hn), axis=1))  # (B, 3H)
        rz = activated(k, 0, u[:, : 2 * H])
        r, z = rz[:, :H], rz[:, H:]
        m = u[:, 2 * H :]  # n_h = W_hn h + b_hn
        n = activated(k, 1, a[:, 2 * H :] + r * m)
    else:
        rz = activated(k, 0, times(h, k.W_h.columns(0, 2 * H), a[:, : 2 * H]))
        r, z = rz[:, :H], rz[:, H:]
        m = r * h
        n = activated(k, 1, times(m, k.W_h.columns(2 * H, 3 * H), a[:, 2 * H :]))
    h = (1 - z) * n + z * h
    return h, {"gates": np.concatenate((r, z, n, m), axis=1), "h": h}


def rnn_step(k: Block, a: Array, h: Array) -> tuple[Array, dict[str, Array]]:
    """(h', tape) from a = W_x x + b: a (B, H), h (B, H)."""
    h = activated(k, 0, times(h, k.W_h, a))
    return h, {"h": h}


def step(k: Block, a: Array, states: tuple[Array, ...]) -> tuple[tuple[Array, ...], dict[str, Array]]:
    """(the states after a step, its part of the tape) from a = W_x x + b: a (B, GH), states (B, width) each."""
    if k.spec.kind == "lstm":
        h, c, tape = lstm_step(k, a, *states)
        return (h, c), tape
    h, tape = (gru_step if k.spec.kind == "gru" else rnn_step)(k, a, *states)
    return (h,), tape


def input_product(k: Block, x: Array) -> Array:
    """b + W_x x for rows (N, I), or the stored rows of token ids (N,): (N, GH)."""
    return rows_of(x, k.W_x, k.b_x) if x.ndim == 1 else times(x, k.W_x, k.b_x)


def input_products(k: Block, x: Array, rows: Rows) -> Iterator[tuple[int, slice, Array]]:
    """(step, its rows, their `input_product`) in walking order; the product is taken for a stretch of steps at once."""
    steps, every = rows.steps(k.reverse), max(1, STRETCH // max(1, rows.B))
    for i in range(0, rows.T, every):
        stretch = steps[i : i + every]
        begin, end = rows.offsets[min(stretch)], rows.offsets[max(stretch) + 1]
        a = input_product(k, x[begin:end])
        for t in stretch:
            at = slice(rows.offsets[t], rows.offsets[t + 1])
            yield t, at, a[at.start - begin : at.stop - begin]


# ------------------------------------------------------------------------------------------------------------- forward
def put(h: Array, y: Array, now: slice, t: int, row_map: RowMap | None) -> None:
    """Copy h (b, R), the outputs of step t, to the rows `now` of y or, with a row map, to its rows."""
    if row_map is None:
        y[now] = h
        return
    at = t * row_map.step + row_map.sequences
    y[at[: len(h)]] = h
    y[at[len(h) :]] = 0


def forward(
    blocks: list[Block],
    x: Array,
    rows: Rows,
    states: tuple[Array, ...],
    y: Array | None,
    tapes: Array | None = None,
    at: int = 0,
    row_map: RowMap | None = None,
) -> None:
    """Run the directions of one layer over packed rows.

    Parameters
    ----------
    blocks : list of D blocks, one for each direction
    x : (N, I) array or, for a dense batch, (T, B, I); or (N,) integer token ids
    rows : Rows
    states : tuple of arrays, (L*D, B, width) each by the names and widths of ``spec.initial``
        The initial states, h and for LSTM c, overwritten in place with the final ones. Those of this layer are `at`
        and the following.
    y : (N, D*R) or (T, B, D*R) array, contiguous, optional
        Overwritten with the outputs, the directions side by side. With `row_map` of any shape (..., D*R).
    tapes : (D, ``spec.tape_size(N, B)``) array, optional
        Overwritten with what backward needs: of each direction the parts that `parts_of_tape` names.
    at : int
        Index in `states` of the layer's first direction.
    row_map : RowMap, optional
        The rows of y where the outputs go, instead of packed: steps after a sequence's last, up to the longest one's,
        become zeros; other rows stay as they are.
    """
    x = x if x.ndim == 1 else x.reshape(rows.N, -1)
    y = None if y is None else y.reshape(-1, y.shape[-1])
    for d, k in enumerate(blocks):
        own, R = tuple(s[at + d] for s in states), k.spec.R
        tape = None if tapes is None else begin_tape(k.spec, tapes[d], rows, own)
        for t, now, a in input_products(k, x, rows):
            b = rows.batch_sizes[t]
            new, kept = step(k, a, tuple(s[:b] for s in own))
            for s, s_t in zip(own, new, strict=True):
                s[:b] = s_t
            if y is not None:
                put(new[0], y[:, d * R : (d + 1) * R], now, t, row_map)
            if tape is not None:
                for name in k.spec.tape:
                    tape[name][now] = kept[name]


# ----------------------------------------------------------------------------------------------------------- streaming
def bind(blocks: list[Block], x: Array, states: tuple[Array, ...]) -> Callable[[], None]:
    """One step of all layers, with weights, input and state bound.

    Parameters
    ----------
    blocks : list of L blocks, one direction each
    x : (B, I) array, or (B,) int64 token ids
        Read by every step.
    states : tuple of arrays, (L, B, width) each by the names and widths of ``spec.initial``
        The state, h and for LSTM c, updated in place by every step.

    Returns
    -------
    step : callable without arguments
        The result is the last layer's h.
    """

    def one_step() -> None:
        below = x
        for layer, k in enumerate(blocks):
            new, _ = step(k, input_product(k, below), tuple(s[layer] for s in states))
            for s, s_new in zip(states, new, strict=True):
                s[layer] = s_new
            below = new[0]

    return one_step
