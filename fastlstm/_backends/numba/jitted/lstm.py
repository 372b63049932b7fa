"""LSTM: a step forward and backward, and the walks of a direction.

The first b rows of dh and dc are in use; on entry to a backward step they hold the gradients from the steps walked
later. Backward walks the steps in the opposite order of forward: a reverse direction from the first step to the last.
"""

from __future__ import annotations

import numba
import numpy as np

from .activations import activate, multiply_derivative
from .compiling import jit, jit_parallel
from .rows import add, add_all, add_scaled, copy, input_product, multiply, product
from .walk import give, pieces_of, put, steps_in_stretch, stretch


@jit
def lstm_rows(lo, hi, act, par, peep, a, u, c, m, tape_c):
    """Rows lo to hi of a step: a becomes the gates, c the new cell state, m = o * h(c)."""
    H, one = c.shape[1], c.dtype.type(1)
    for r in range(lo, hi):
        gates, cell = a[r], c[r]
        add(gates, u[r])
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


@jit_parallel
def lstm_rows_parallel(pieces, b, act, par, peep, a, u, c, m, tape_c):
    for p in numba.prange(pieces):
        lstm_rows(p * b // pieces, (p + 1) * b // pieces, act, par, peep, a, u, c, m, tape_c)


@jit
def lstm_forward(threads, offsets, reverse, x, ids, weights, h, c, y, column, row_map, tape):
    """A direction of a layer. In inference the arrays of the tape are empty."""
    w_x, b_x, w_h, w_r, peep, act, par = weights
    gates, tape_c, tape_h, tape_m = tape
    T, H, B, steps = offsets.size - 1, c.shape[1], offsets[1], steps_in_stretch(offsets)
    a_room = np.empty((0 if gates.size else steps * B, 4 * H), h.dtype)
    u_room = np.empty((B, 4 * H), h.dtype)
    m_room = np.empty((B if w_r.size and not tape_m.size else 0, H), h.dtype)
    for begin in range(0, T, steps):
        first, last = stretch(begin, steps, T, reverse)
        top, end = offsets[first], offsets[last]
        a_all = gates[top:end] if gates.size else a_room[: end - top]
        input_product(x[top:end], ids[top:end], w_x, b_x, a_all)
        for s in range(first, last):
            t = first + last - 1 - s if reverse else s
            lo, hi = offsets[t], offsets[t + 1]
            b = hi - lo
            a, u, h_now, kept_c = a_all[lo - top : hi - top], u_room[:b], h[:b], tape_c[lo:hi]
            m = h_now if not w_r.size else tape_m[lo:hi] if tape_m.size else m_room[:b]
            product(h_now, w_h, u)
            pieces = pieces_of(threads, b, H)
            if pieces > 1:
                lstm_rows_parallel(pieces, b, act, par, peep, a, u, c, m, kept_c)
            else:
                lstm_rows(0, b, act, par, peep, a, u, c, m, kept_c)
            if w_r.size:
                product(m, w_r, h_now)
            give(h_now, y, column, lo, t, row_map)
            put(h_now, tape_h[lo:hi], 0)


# ------------------------------------------------------------------------------------------------------------ backward
@jit
def lstm_rows_backward(lo, hi, act, par, peep, gates, c, c_prev, dm, dc):
    """Rows lo to hi of a step: gates become their gradients, dc the gradient of the cell state before the step."""
    H = c.shape[1]
    room = np.empty((5, H), c.dtype)
    d, s = room.reshape(5 * H)[: 4 * H], room[4]
    di, df, dg, do = room[0], room[1], room[2], room[3]
    for r in range(lo, hi):
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


@jit_parallel
def lstm_rows_backward_parallel(pieces, b, act, par, peep, gates, c, c_prev, dm, dc):
    for p in numba.prange(pieces):
        lstm_rows_backward(p * b // pieces, (p + 1) * b // pieces, act, par, peep, gates, c, c_prev, dm, dc)


@jit
def lstm_backward(threads, offsets, reverse, dy, weights, dh, dc, gates, tape_c, c_prev, dh_all):
    """A direction and stretch: gradients of the gates and the initial state; with a projection dh of every step too."""
    v_h, v_r, peep, act, par = weights
    T, H, B = offsets.size - 1, dc.shape[1], offsets[1]
    m_room = np.empty((B if v_r.size else 0, H), dh.dtype)
    for s in range(T):
        t = s if reverse else T - 1 - s
        lo, hi = offsets[t], offsets[t + 1]
        b = hi - lo
        dh_now, d, dm = dh[:b], gates[lo:hi], dh[:b]
        if dy.size:
            add_all(dh_now, dy[lo:hi])
        if v_r.size:
            put(dh_now, dh_all[lo:hi], 0)
            dm = m_room[:b]
            product(dh_now, v_r, dm)
        pieces = pieces_of(threads, b, H)
        if pieces > 1:
            lstm_rows_backward_parallel(pieces, b, act, par, peep, d, tape_c[lo:hi], c_prev[lo:hi], dm, dc)
        else:
            lstm_rows_backward(0, b, act, par, peep, d, tape_c[lo:hi], c_prev[lo:hi], dm, dc)
        product(d, v_h, dh_now)
