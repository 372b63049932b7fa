"""LSTM: a step forward and backward, and the walks of a direction.

The first b rows of dh and dc are in use; on entry to a backward step they hold the gradients from the steps walked
later. Backward walks the steps in the opposite order of forward: a reverse direction from the first step to the last.
"""

from __future__ import annotations

import numba
import numpy as np

from .activations import activate, multiply_derivative
from .compiling import jit, jit_inner, jit_parallel
from .products import add_product
from .rows import add, add_all, add_scaled, clear, copy, multiply, put
from .walk import give, input_product, rows_of_step, rows_of_stretch, steps_in_stretch, stretch


@jit_inner
def lstm_rows(act, par, peep, a, c, m, tape_c):
    """The rows of a step: a becomes the gates, c the new cell state, m = o * h(c)."""
    H, one = c.shape[1], c.dtype.type(1)
    for r in range(a.shape[0]):
        gates, cell = a[r], c[r]
        i, f, g, o = gates[:H], gates[H : 2 * H], gates[2 * H : 3 * H], gates[3 * H :]
        if peep.size:
            add_scaled(i, peep[0], cell)
            add_scaled(f, peep[1], cell)
        activate(act[0], par[0], gates[: 2 * H])
        if act[3]:  # input_forget
            for j in range(H):
                f[j] = one - i[j]
        activate(act[1], par[1], g)
        multiply(cell, f, cell)
        add_scaled(cell, i, g)
        if peep.size:
            add_scaled(o, peep[2], cell)
        activate(act[0], par[0], o)
        copy(m[r], cell)
        activate(act[2], par[2], m[r])
        multiply(m[r], o, m[r])
        if tape_c.size:
            copy(tape_c[r], cell)


@jit
def lstm_forward(threads, piece, rows, inputs, block, states, outputs, tape):
    """The sequences b0 to b1 of `piece`, of a direction of a layer. In inference the arrays of the tape are empty."""
    (b0, b1), (offsets, reverse), (x, ids) = piece, rows, inputs
    (h, c), (gates, tape_c, tape_h, tape_m) = states, tape
    w_x, table, b_x, w_h, w_r, peep, act, par = block
    T, H, B = offsets.size - 1, c.shape[1], b1 - b0
    steps = steps_in_stretch(offsets, b0, b1, 4 * H)
    a_room = np.empty((0 if gates.size else steps * B, 4 * H), h.dtype)
    m_room = np.empty((B if w_r.size and not tape_m.size else 0, H), h.dtype)
    for begin in range(0, T, steps):
        first, last = stretch(begin, steps, T, reverse)
        top, end = rows_of_stretch(offsets, first, last, b0, b1)
        a_all = gates[top:end] if gates.size else a_room[: end - top]
        input_product(threads, x[top:end], ids[top:end], (w_x, table, b_x), a_all)
        for s in range(first, last):
            t = first + last - 1 - s if reverse else s
            lo, hi = rows_of_step(offsets, t, b0, b1)
            a, h_now, c_now = a_all[lo - top : hi - top], h[b0 : b0 + hi - lo], c[b0 : b0 + hi - lo]
            m = h_now if not w_r.size else tape_m[lo:hi] if tape_m.size else m_room[: hi - lo]
            add_product(threads, h_now, w_h, a, 0, 4 * H)
            lstm_rows(act, par, peep, a, c_now, m, tape_c[lo:hi])
            if w_r.size:
                clear(h_now)
                add_product(threads, m, w_r, h_now, 0, h.shape[1])
            give(h_now, outputs, lo, t, b0, b1)
            put(h_now, tape_h[lo:hi], 0)


@jit_parallel
def lstm_forward_in_pieces(bounds, rows, inputs, block, states, outputs, tape):
    """`lstm_forward` of all sequences: piece i has those from bounds[i] to bounds[i + 1]."""
    for i in numba.prange(bounds.size - 1):
        lstm_forward(None, (bounds[i], bounds[i + 1]), rows, inputs, block, states, outputs, tape)


# ------------------------------------------------------------------------------------------------------------ backward
@jit_inner
def lstm_rows_backward(act, par, peep, gates, c, c_prev, dm, dc):
    """The rows of a step: gates become their gradients, dc the gradient of the cell state before the step."""
    H = c.shape[1]
    room = np.empty((5, H), c.dtype)
    d, s = room.reshape(5 * H)[: 4 * H], room[4]
    di, df, dg, do = room[0], room[1], room[2], room[3]
    for r in range(gates.shape[0]):
        y, dcell = gates[r], dc[r]
        i, f, g, o = y[:H], y[H : 2 * H], y[2 * H : 3 * H], y[3 * H :]
        copy(s, c[r])
        activate(act[2], par[2], s)
        multiply(do, dm[r], s)
        multiply_derivative(act[0], par[0], o, do)
        multiply(di, dm[r], o)
        multiply_derivative(act[2], par[2], s, di)
        add(dcell, di)
        if peep.size:
            add_scaled(dcell, peep[2], do)
        multiply(di, dcell, g)
        multiply(df, dcell, c_prev[r])
        if act[3]:  # input_forget: f = 1 - i
            for j in range(H):
                di[j] -= df[j]
            df[:] = 0
        multiply(dg, dcell, i)
        multiply_derivative(act[0], par[0], y[: 2 * H], d[: 2 * H])
        multiply_derivative(act[1], par[1], g, dg)
        multiply(dcell, dcell, f)
        if peep.size:
            add_scaled(dcell, peep[0], di)
            add_scaled(dcell, peep[1], df)
        copy(y, d)


@jit
def lstm_backward(threads, piece, rows, block, dy, states, tape, dh_all):
    """The sequences b0 to b1 of `piece`, of a direction and stretch: gradients of the gates and the initial state.

    With a projection the gradients of every step's h go to dh_all too.
    """
    (b0, b1), (offsets, reverse), (dh, dc), (gates, tape_c, c_prev) = piece, rows, states, tape
    v_h, v_r, peep, act, par = block
    T, H = offsets.size - 1, dc.shape[1]
    m_room = np.empty((b1 - b0 if v_r.size else 0, H), dh.dtype)
    for s in range(T):
        lo, hi = rows_of_step(offsets, s if reverse else T - 1 - s, b0, b1)
        dh_now, dc_now, d = dh[b0 : b0 + hi - lo], dc[b0 : b0 + hi - lo], gates[lo:hi]
        if dy.size:
            add_all(dh_now, dy[lo:hi])
        dm = dh_now
        if v_r.size:
            put(dh_now, dh_all[lo:hi], 0)
            dm = m_room[: hi - lo]
            clear(dm)
            add_product(threads, dh_now, v_r, dm, 0, H)
        lstm_rows_backward(act, par, peep, d, tape_c[lo:hi], c_prev[lo:hi], dm, dc_now)
        clear(dh_now)
        add_product(threads, d, v_h, dh_now, 0, dh.shape[1])


@jit_parallel
def lstm_backward_in_pieces(bounds, rows, block, dy, states, tape, dh_all):
    """`lstm_backward` of all sequences; see `lstm_forward_in_pieces`."""
    for i in numba.prange(bounds.size - 1):
        lstm_backward(None, (bounds[i], bounds[i + 1]), rows, block, dy, states, tape, dh_all)
