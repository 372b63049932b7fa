"""RNN: a step forward and backward, and the walks of a direction. `lstm` says how dh is used."""

from __future__ import annotations

import numba
import numpy as np

from .activations import activate, multiply_derivative
from .compiling import jit, jit_parallel
from .rows import add, add_all, copy, input_product, product
from .walk import give, pieces_of, put, steps_in_stretch, stretch


@jit
def rnn_rows(lo, hi, act, par, a, u, h):
    """Rows lo to hi of a step."""
    for r in range(lo, hi):
        copy(h[r], a[r])
        add(h[r], u[r])
        activate(act[0], par[0], h[r])


@jit_parallel
def rnn_rows_parallel(pieces, b, act, par, a, u, h):
    for p in numba.prange(pieces):
        rnn_rows(p * b // pieces, (p + 1) * b // pieces, act, par, a, u, h)


@jit
def rnn_forward(threads, offsets, reverse, x, ids, weights, h, c, y, column, row_map, tape):
    """A direction of a layer; c is not used."""
    w_x, b_x, w_h, _, _, act, par = weights
    tape_h = tape[2]
    T, H, B, steps = offsets.size - 1, h.shape[1], offsets[1], steps_in_stretch(offsets)
    a_room, u_room = np.empty((steps * B, H), h.dtype), np.empty((B, H), h.dtype)
    for begin in range(0, T, steps):
        first, last = stretch(begin, steps, T, reverse)
        top, end = offsets[first], offsets[last]
        a_all = a_room[: end - top]
        input_product(x[top:end], ids[top:end], w_x, b_x, a_all)
        for s in range(first, last):
            t = first + last - 1 - s if reverse else s
            lo, hi = offsets[t], offsets[t + 1]
            b = hi - lo
            a, u, h_now = a_all[lo - top : hi - top], u_room[:b], h[:b]
            product(h_now, w_h, u)
            pieces = pieces_of(threads, b, H)
            if pieces > 1:
                rnn_rows_parallel(pieces, b, act, par, a, u, h_now)
            else:
                rnn_rows(0, b, act, par, a, u, h_now)
            give(h_now, y, column, lo, t, row_map)
            put(h_now, tape_h[lo:hi], 0)


# ------------------------------------------------------------------------------------------------------------ backward
@jit
def rnn_backward(offsets, reverse, dy, weights, dh, tape_h, d_all):
    """A direction and stretch: the gradient of every step's product."""
    v_h, _, _, act, par = weights
    T = offsets.size - 1
    for s in range(T):
        t = s if reverse else T - 1 - s
        lo, hi = offsets[t], offsets[t + 1]
        dh_now, d = dh[: hi - lo], d_all[lo:hi]
        if dy.size:
            add_all(dh_now, dy[lo:hi])
        for r in range(hi - lo):
            copy(d[r], dh_now[r])
            multiply_derivative(act[0], par[0], tape_h[lo + r], d[r])
        product(d, v_h, dh_now)
