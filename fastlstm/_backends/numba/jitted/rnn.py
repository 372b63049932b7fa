"""RNN: a step forward and backward, and the walks of a direction. `lstm` says how dh is used."""

from __future__ import annotations

import numba
import numpy as np

from .activations import activate, multiply_derivative
from .compiling import jit, jit_parallel
from .products import add_product
from .rows import add_all, clear, copy, put
from .walk import give, input_product, rows_of_step, rows_of_stretch, steps_in_stretch, stretch


@jit
def rnn_forward(threads, piece, rows, inputs, block, states, outputs, tape):
    """The sequences b0 to b1 of `piece`, of a direction of a layer."""
    (b0, b1), (offsets, reverse), (x, ids), (h,), (tape_h,) = piece, rows, inputs, states, tape
    w_x, table, b_x, w_h, act, par = block
    T, H = offsets.size - 1, h.shape[1]
    steps = steps_in_stretch(offsets, b0, b1, H)
    a_room = np.empty((steps * (b1 - b0), H), h.dtype)
    for begin in range(0, T, steps):
        first, last = stretch(begin, steps, T, reverse)
        top, end = rows_of_stretch(offsets, first, last, b0, b1)
        a_all = a_room[: end - top]
        input_product(threads, x[top:end], ids[top:end], (w_x, table, b_x), a_all)
        for s in range(first, last):
            t = first + last - 1 - s if reverse else s
            lo, hi = rows_of_step(offsets, t, b0, b1)
            a, h_now = a_all[lo - top : hi - top], h[b0 : b0 + hi - lo]
            add_product(threads, h_now, w_h, a, 0, H)
            for r in range(hi - lo):
                copy(h_now[r], a[r])
                activate(act[0], par[0], h_now[r])
            give(h_now, outputs, lo, t, b0, b1)
            put(h_now, tape_h[lo:hi], 0)


@jit_parallel
def rnn_forward_in_pieces(bounds, rows, inputs, block, states, outputs, tape):
    """`rnn_forward` of all sequences: piece i has those from bounds[i] to bounds[i + 1]."""
    for i in numba.prange(bounds.size - 1):
        rnn_forward(None, (bounds[i], bounds[i + 1]), rows, inputs, block, states, outputs, tape)


# ------------------------------------------------------------------------------------------------------------ backward
@jit
def rnn_backward(threads, piece, rows, block, dy, states, tape_h, d_all):
    """The sequences b0 to b1 of `piece`, of a direction and stretch: the gradient of every step's product."""
    (b0, b1), (offsets, reverse), (dh,) = piece, rows, states
    v_h, act, par = block
    T = offsets.size - 1
    for s in range(T):
        lo, hi = rows_of_step(offsets, s if reverse else T - 1 - s, b0, b1)
        dh_now, d = dh[b0 : b0 + hi - lo], d_all[lo:hi]
        if dy.size:
            add_all(dh_now, dy[lo:hi])
        for r in range(hi - lo):
            copy(d[r], dh_now[r])
            multiply_derivative(act[0], par[0], tape_h[lo + r], d[r])
        clear(dh_now)
        add_product(threads, d, v_h, dh_now, 0, dh.shape[1])


@jit_parallel
def rnn_backward_in_pieces(bounds, rows, block, dy, states, tape_h, d_all):
    """`rnn_backward` of all sequences; see `rnn_forward_in_pieces`."""
    for i in numba.prange(bounds.size - 1):
        rnn_backward(None, (bounds[i], bounds[i + 1]), rows, block, dy, states, tape_h, d_all)
