"""GRU, in both forms: a step forward and backward, and the walks of a direction. `lstm` says how dh is used."""

from __future__ import annotations

import numba
import numpy as np

from .activations import activate, multiply_derivative
from .compiling import jit, jit_parallel
from .rows import add, add_all, add_scaled, copy, input_product, multiply, product
from .walk import give, pieces_of, put, steps_in_stretch, stretch


@jit
def gru_update(act, par, a, extra, kept, h):
    """n and h' of one row; `extra` is added to the candidate's pre-activation."""
    H = h.size
    z, n = kept[H : 2 * H], kept[2 * H : 3 * H]
    copy(n, a[2 * H :])
    add(n, extra)
    activate(act[1], par[1], n)
    one = h.dtype.type(1)
    for j in range(H):
        h[j] = (one - z[j]) * n[j] + z[j] * h[j]


@jit
def gru_rows(lo, hi, act, par, reset_after, b_hn, a, u, h, kept, extra):
    """Rows lo to hi of a step: with reset_after the whole step, else up to r * h, the operand of the second product.

    kept becomes r z n m; extra becomes r * m, or r * h for reset_after=False.
    """
    H = h.shape[1]
    for row in range(lo, hi):
        rz, r, m = kept[row, : 2 * H], kept[row, :H], kept[row, 3 * H :]
        copy(rz, a[row, : 2 * H])
        add(rz, u[row, : 2 * H])
        activate(act[0], par[0], rz)
        if reset_after:
            copy(m, u[row, 2 * H :])
            add(m, b_hn[0])
            multiply(extra[row], r, m)
            gru_update(act, par, a[row], extra[row], kept[row], h[row])
        else:
            multiply(m, r, h[row])
            copy(extra[row], m)


@jit_parallel
def gru_rows_parallel(pieces, b, act, par, reset_after, b_hn, a, u, h, kept, extra):
    for p in numba.prange(pieces):
        gru_rows(p * b // pieces, (p + 1) * b // pieces, act, par, reset_after, b_hn, a, u, h, kept, extra)


@jit
def gru_forward(threads, offsets, reverse, x, ids, weights, h, c, y, column, row_map, tape):
    """A direction of a layer; c is not used. With reset_after w_n is empty and w_h is all of W_h."""
    w_x, b_x, w_h, w_n, b_hn, act, par = weights
    gates, _, tape_h, _ = tape
    T, H, B, steps = offsets.size - 1, h.shape[1], offsets[1], steps_in_stretch(offsets)
    reset_after = w_n.size == 0
    a_room = np.empty((steps * B, 3 * H), h.dtype)
    u_room = np.empty((B, w_h.shape[1]), h.dtype)
    kept_room = np.empty((0 if gates.size else B, 4 * H), h.dtype)
    extra, n_room = np.empty((B, H), h.dtype), np.empty((0 if reset_after else B, H), h.dtype)
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
            kept = gates[lo:hi] if gates.size else kept_room[:b]
            product(h_now, w_h, u)
            pieces = pieces_of(threads, b, H)
            if pieces > 1:
                gru_rows_parallel(pieces, b, act, par, reset_after, b_hn, a, u, h_now, kept, extra)
            else:
                gru_rows(0, b, act, par, reset_after, b_hn, a, u, h_now, kept, extra)
            if not reset_after:
                product(extra[:b], w_n, n_room[:b])
                for r in range(b):
                    gru_update(act, par, a[r], n_room[r], kept[r], h_now[r])
            give(h_now, y, column, lo, t, row_map)
            put(h_now, tape_h[lo:hi], 0)


# ------------------------------------------------------------------------------------------------------------ backward
@jit
def gru_rows_backward(lo, hi, act, par, reset_after, kept, h_prev, dh, d_rz, d_n, d_m):
    """Rows lo to hi of a step: gradients of z and n, of r and m too where reset_after; dh keeps the direct part."""
    H, one = dh.shape[1], dh.dtype.type(1)
    for row in range(lo, hi):
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


@jit_parallel
def gru_rows_backward_parallel(pieces, b, act, par, reset_after, kept, h_prev, dh, d_rz, d_n, d_m):
    for p in numba.prange(pieces):
        lo, hi = p * b // pieces, (p + 1) * b // pieces
        gru_rows_backward(lo, hi, act, par, reset_after, kept, h_prev, dh, d_rz, d_n, d_m)


@jit
def gru_backward(threads, offsets, reverse, dy, weights, dh, gates, h_prev, d_rz, d_n, d_m):
    """A direction and stretch: the gradients of r, z and n, and of W_hn's product where reset_after (else no d_m)."""
    v_h, _, _, act, par = weights
    T, H, B = offsets.size - 1, dh.shape[1], offsets[1]
    reset_after = d_m.size > 0
    room = np.empty((B, H), dh.dtype)
    v_rz, v_n = v_h[: 2 * H], v_h[2 * H :]
    for s in range(T):
        t = s if reverse else T - 1 - s
        lo, hi = offsets[t], offsets[t + 1]
        b = hi - lo
        dh_now, kept, part = dh[:b], gates[lo:hi], room[:b]
        rz, n, m, before = d_rz[lo:hi], d_n[lo:hi], d_m[lo:hi], h_prev[lo:hi]
        if dy.size:
            add_all(dh_now, dy[lo:hi])
        pieces = pieces_of(threads, b, H)
        if pieces > 1:
            gru_rows_backward_parallel(pieces, b, act, par, reset_after, kept, before, dh_now, rz, n, m)
        else:
            gru_rows_backward(0, b, act, par, reset_after, kept, before, dh_now, rz, n, m)
        product(m if reset_after else n, v_n, part)
        if reset_after:
            add_all(dh_now, part)
        else:  # part is the gradient of r * h
            for r in range(b):
                multiply(rz[r, :H], part[r], before[r])
                multiply_derivative(act[0], par[0], kept[r, :H], rz[r, :H])
                add_scaled(dh_now[r], part[r], kept[r, :H])
        product(rz, v_rz, part)
        add_all(dh_now, part)
