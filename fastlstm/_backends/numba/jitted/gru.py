"""GRU, in both forms: a step forward and backward, and the walks of a direction. `lstm` says how dh is used.

The rows of a step have four parts: r, z and n, before and after activation, and m.
"""

from __future__ import annotations

import numba
import numpy as np

from .activations import activate, multiply_derivative
from .compiling import jit, jit_inner, jit_parallel
from .products import add_product
from .rows import add_all, add_scaled, clear, copy, multiply, put
from .walk import give, input_product, rows_of_step, rows_of_stretch, steps_in_stretch, stretch


@jit_inner
def gru_gates(act, par, a, h, reset_h):
    """r and z of the rows of a step. Where reset_h is not empty (reset_after=False) it and m become r * h."""
    H = h.shape[1]
    for row in range(a.shape[0]):
        activate(act[0], par[0], a[row, : 2 * H])
        if reset_h.size:
            multiply(reset_h[row], a[row, :H], h[row])
            copy(a[row, 3 * H :], reset_h[row])


@jit_inner
def gru_update(act, par, reset_after, a, h):
    """n and h' of the rows of a step; with reset_after, r * m is added to n's pre-activation."""
    H, one = h.shape[1], h.dtype.type(1)
    for row in range(a.shape[0]):
        r, z, n, m, h_row = a[row, :H], a[row, H : 2 * H], a[row, 2 * H : 3 * H], a[row, 3 * H :], h[row]
        if reset_after:
            add_scaled(n, r, m)
        activate(act[1], par[1], n)
        for j in range(H):
            h_row[j] = (one - z[j]) * n[j] + z[j] * h_row[j]


@jit
def gru_forward(threads, piece, rows, inputs, block, states, outputs, tape):
    """The sequences b0 to b1 of `piece`, of a direction of a layer. In inference the arrays of the tape are empty."""
    (b0, b1), (offsets, reverse), (x, ids), (h,), (gates, tape_h) = piece, rows, inputs, states, tape
    w_x, table, b_x, w_rz, w_n, b_hn, act, par, reset_after = block
    T, H, B = offsets.size - 1, h.shape[1], b1 - b0
    steps = steps_in_stretch(offsets, b0, b1, 4 * H)
    a_room = np.empty((0 if gates.size else steps * B, 4 * H), h.dtype)
    h_room = np.empty((0 if reset_after else B, H), h.dtype)
    for begin in range(0, T, steps):
        first, last = stretch(begin, steps, T, reverse)
        top, end = rows_of_stretch(offsets, first, last, b0, b1)
        a_all = gates[top:end] if gates.size else a_room[: end - top]
        input_product(threads, x[top:end], ids[top:end], (w_x, table, b_x), a_all)
        for s in range(first, last):
            t = first + last - 1 - s if reverse else s
            lo, hi = rows_of_step(offsets, t, b0, b1)
            a, h_now, reset_h = a_all[lo - top : hi - top], h[b0 : b0 + hi - lo], h_room[: hi - lo]
            add_product(threads, h_now, w_rz, a, 0, 2 * H)
            gru_gates(act, par, a, h_now, reset_h)
            if reset_after:  # m = W_hn h + b_hn
                for r in range(hi - lo):
                    copy(a[r, 3 * H :], b_hn)
                add_product(threads, h_now, w_n, a, 3 * H, 4 * H)
            else:
                add_product(threads, reset_h, w_n, a, 2 * H, 3 * H)
            gru_update(act, par, reset_after, a, h_now)
            give(h_now, outputs, lo, t, b0, b1)
            put(h_now, tape_h[lo:hi], 0)


@jit_parallel
def gru_forward_in_pieces(bounds, rows, inputs, block, states, outputs, tape):
    """`gru_forward` of all sequences: piece i has those from bounds[i] to bounds[i + 1]."""
    for i in numba.prange(bounds.size - 1):
        gru_forward(None, (bounds[i], bounds[i + 1]), rows, inputs, block, states, outputs, tape)


# ------------------------------------------------------------------------------------------------------------ backward
@jit_inner
def gru_rows_backward(act, par, reset_after, kept, h_prev, dh, d_rz, d_n, d_m):
    """The rows of a step: gradients of z and n, of r and m too where reset_after; dh keeps the direct part."""
    H, one = dh.shape[1], dh.dtype.type(1)
    for row in range(kept.shape[0]):
        r, z, n, m = kept[row, :H], kept[row, H : 2 * H], kept[row, 2 * H : 3 * H], kept[row, 3 * H :]
        dr, dz, dn, d = d_rz[row, :H], d_rz[row, H:], d_n[row], dh[row]
        before = h_prev[row]
        for j in range(H):
            dz[j] = d[j] * (before[j] - n[j])
        multiply_derivative(act[0], par[0], z, dz)
        for j in range(H):
            dn[j] = d[j] * (one - z[j])
        multiply_derivative(act[1], par[1], n, dn)
        multiply(d, d, z)
        if reset_after:
            multiply(dr, dn, m)
            multiply_derivative(act[0], par[0], r, dr)
            multiply(d_m[row], dn, r)


@jit_inner
def reset_backward(act, par, kept, h_prev, dh, d_rz, d_reset):
    """The rows of a step with reset_after=False: what d_reset, the gradient of r * h, gives r, and adds to dh."""
    H = dh.shape[1]
    for row in range(kept.shape[0]):
        dr = d_rz[row, :H]
        multiply(dr, d_reset[row], h_prev[row])
        multiply_derivative(act[0], par[0], kept[row, :H], dr)
        add_scaled(dh[row], d_reset[row], kept[row, :H])


@jit
def gru_backward(threads, piece, rows, block, dy, states, tape, d):
    """The sequences b0 to b1 of `piece`, of a direction and stretch: gradients of r and z, of n, and of W_hn's product.

    The last is d_m where reset_after; else that of n, and d_m is empty.
    """
    (b0, b1), (offsets, reverse), (dh,) = piece, rows, states
    (gates, h_prev), (d_rz, d_n, d_m) = tape, d
    v_rz, v_n, act, par, reset_after = block
    T, H = offsets.size - 1, dh.shape[1]
    room = np.empty((0 if reset_after else b1 - b0, H), dh.dtype)
    for s in range(T):
        lo, hi = rows_of_step(offsets, s if reverse else T - 1 - s, b0, b1)
        dh_now, kept, d_reset = dh[b0 : b0 + hi - lo], gates[lo:hi], room[: hi - lo]
        rz, n, m, before = d_rz[lo:hi], d_n[lo:hi], d_m[lo:hi], h_prev[lo:hi]
        if dy.size:
            add_all(dh_now, dy[lo:hi])
        gru_rows_backward(act, par, reset_after, kept, before, dh_now, rz, n, m)
        if reset_after:
            add_product(threads, m, v_n, dh_now, 0, H)
        else:
            clear(d_reset)
            add_product(threads, n, v_n, d_reset, 0, H)
            reset_backward(act, par, kept, before, dh_now, rz, d_reset)
        add_product(threads, rz, v_rz, dh_now, 0, H)


@jit_parallel
def gru_backward_in_pieces(bounds, rows, block, dy, states, tape, d):
    """`gru_backward` of all sequences; see `gru_forward_in_pieces`."""
    for i in numba.prange(bounds.size - 1):
        gru_backward(None, (bounds[i], bounds[i + 1]), rows, block, dy, states, tape, d)
