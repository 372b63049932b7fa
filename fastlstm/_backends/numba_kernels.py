"""The jitted text of the numba backend. Importing it imports numba: only `_backends.numba` does, at its first call.

Written so that LLVM makes vector code of it: an inner loop runs along one row and writes one array. (A loop that
writes two, or reads more than eight, would need more overlap checks than LLVM is ready to make.) A row that several
such loops go over stays in the first-level cache, so this costs little.

All arrays are C-contiguous and of one dtype, options plain integers, and what is absent is an array without entries:
every function is compiled once for float32 and once for float64, when it is first needed, and cached on disk.

Names: a (b, GH) is W_x x + b of a step's rows, u (b, .) the product with h, act (roles,) the activations' ids and
par (roles, 2) their alpha and beta. The rest is the reference's.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from ..spec import ACTIVATIONS

# Division by zero gives infinity, as in NumPy, and costs no branch; a product and a sum may become one fused
# multiply-add. No other freedom: NaN and infinity pass as in NumPy.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def jit(function: Any, **options: Any) -> Any:
    """`numba.njit`, cached on disk; where no folder can be written to, compiled anew in every process."""
    try:
        return numba.njit(cache=True, **OPTIONS, **options)(function)
    except RuntimeError:
        return numba.njit(**OPTIONS, **options)(function)


def jit_parallel(function: Any) -> Any:
    return jit(function, parallel=True)


# Multiply-adds of a product up to which the own loop serves it. Measured (1 thread, AVX-512): the loop does 25 a
# nanosecond in float32 and 15 in float64; BLAS twice that, but for several rows it needs 4 to 5 us to begin, and it may
# wake its threads. They meet at 250000 in float32 and 120000 in float64.
SMALL = 131072
# Rows times units of a step from which its element-wise part is worth a parallel region. A region costs 3 us (tbb, a
# core free), a unit of an LSTM 2 ns: from here on two threads take off ten times the cost, so that a neighbour on the
# other core can make a region some times dearer before it loses. (B=512 H=64, forward and backward, two threads: 22.5
# to 20.5 ms; with H=256 and more, BLAS has all but a twentieth of the time, and it hardly shows.)
PARALLEL = 32768
# Rows of the input's product taken at once: enough for BLAS, few enough to be in the second-level cache still when
# their steps come.
STRETCH = 128

IDS = {name: i for i, name in enumerate(ACTIVATIONS)}
SIGMOID, TANH, RELU, IDENTITY = IDS["sigmoid"], IDS["tanh"], IDS["relu"], IDS["identity"]
HARD_SIGMOID, HARD_SIGMOID_KERAS2, AFFINE = IDS["hard_sigmoid"], IDS["hard_sigmoid_keras2"], IDS["affine"]
LEAKY_RELU, THRESHOLDED_RELU, SCALED_TANH = IDS["leaky_relu"], IDS["thresholded_relu"], IDS["scaled_tanh"]
ELU, SOFTSIGN, SOFTPLUS = IDS["elu"], IDS["softsign"], IDS["softplus"]


# -------------------------------------------------------------------------------------------------------- exponentials
def _exp_table(dtype: Any, fraction: int, exponent: int, ln2: tuple[float, float], terms: int) -> tuple[Any, ...]:
    """What `exp_parts` needs, as scalars of one dtype (a Python float would widen the whole computation)."""
    to_integer = 1.5 * 2.0**fraction  # added, it rounds to an integer, which then stands in the last bits
    least = (1 - 2 ** (exponent - 1)) * math.log(2)  # here 2**n becomes 0
    taylor = [1 / math.factorial(k) for k in range(terms, 0, -1)]  # of (exp(r) - 1) / r, last term first
    return tuple(dtype(v) for v in (to_integer, 1 / math.log(2), *ln2, least, *taylor))


# ln 2 in two parts, the first of so few bits that an n times it is exact. With |r| <= ln(2) / 2, the first Taylor term
# left out is less than half a unit in the last place.
EXP_FLOAT32 = _exp_table(np.float32, 23, 8, (0.693359375, -2.12194440054690583e-4), 7)
EXP_FLOAT64 = _exp_table(np.float64, 52, 11, (6.93147180369123816490e-01, 1.90821492927058770002e-10), 13)


def exp_table(x: Any) -> Any:
    """The table for x's dtype."""


@overload(exp_table)
def _(x):  # numba compares the two signatures, annotations included
    table = EXP_FLOAT32 if x == types.float32 else EXP_FLOAT64
    return lambda x: table


@intrinsic
def power_of_two(_context: Any, t: Any) -> Any:
    """2**n, where n is the integer in the last bits of t."""
    bits, fraction, bias = (32, 23, 127) if t == types.float32 else (64, 52, 1023)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        integer = ir.IntType(bits)
        n = builder.bitcast(arguments[0], integer)
        return builder.bitcast(builder.shl(builder.add(n, integer(bias)), integer(fraction)), arguments[0].type)

    return t(t), generate


@jit
def exp_parts(z):
    """(s, q) with exp(z) = s + s q for z <= 0: s = 2**n, and q = exp(r) - 1 without cancellation."""
    table = exp_table(z)
    to_integer, log2_e, ln2_high, ln2_low, least = table[0], table[1], table[2], table[3], table[4]
    z = least if z < least else z  # written so that NaN stays
    t = z * log2_e + to_integer
    n = t - to_integer
    r = z - n * ln2_high - n * ln2_low
    q = table[5]
    for term in table[6:]:
        q = q * r + term
    return power_of_two(t), q * r


@jit
def sigmoid(x):
    s, q = exp_parts(-abs(x))
    e = s + s * q
    one = type(x)(1)
    return (one if x >= 0 else e) / (one + e)


@jit
def tanh(x):
    s, q = exp_parts(type(x)(-2) * abs(x))
    e = s * q + (s - type(x)(1))  # exp(-2 |x|) - 1
    return math.copysign(e / (type(x)(2) + e), x)


# --------------------------------------------------------------------------------------------------------- activations
@jit
def rare(f, alpha, beta, x):
    """f(x), of the activations that are not worth a loop of their own."""
    zero, one = type(x)(0), type(x)(1)
    if f in (HARD_SIGMOID, HARD_SIGMOID_KERAS2):
        v = alpha * x + beta
        v = zero if v < zero else v
        return one if v > one else v
    if f == AFFINE:
        return alpha * x + beta
    if f == LEAKY_RELU:
        return x if x > zero else alpha * x
    if f == THRESHOLDED_RELU:
        return zero if x < alpha else x
    if f == SCALED_TANH:
        return alpha * tanh(beta * x)
    if f == ELU:
        return x if x > zero else alpha * math.expm1(x)
    if f == SOFTSIGN:
        return x / (one + abs(x))
    if f == SOFTPLUS:
        return (zero if x < zero else x) + math.log1p(math.exp(-abs(x)))
    return x


@jit
def rare_derivative(f, alpha, beta, y):
    """f'(x) from y = f(x), of the same."""
    zero, one = type(y)(0), type(y)(1)
    if f in (HARD_SIGMOID, HARD_SIGMOID_KERAS2):
        return alpha if zero < y < one else zero
    if f == AFFINE:
        return alpha
    if f == LEAKY_RELU:
        return one if y > zero else alpha
    if f == THRESHOLDED_RELU:
        return zero if y == zero else one
    if f == SCALED_TANH:
        return beta * (alpha - y * y / alpha)
    if f == ELU:
        return one if y > zero else y + alpha
    if f == SOFTSIGN:
        return (one - abs(y)) * (one - abs(y))
    if f == SOFTPLUS:
        return -math.expm1(-y)
    return one


@jit
def activate(f, par, x):
    """x = f(x) along a row. The reference's FUNCTIONS."""
    zero = x.dtype.type(0)
    if f == SIGMOID:
        for j in range(x.size):
            x[j] = sigmoid(x[j])
    elif f == TANH:
        for j in range(x.size):
            x[j] = tanh(x[j])
    elif f == RELU:
        for j in range(x.size):
            x[j] = zero if x[j] < zero else x[j]
    else:
        for j in range(x.size):
            x[j] = rare(f, par[0], par[1], x[j])


@jit
def deactivate(f, par, y, d):
    """d = d * f'(x) along a row, from y = f(x). The reference's DERIVATIVES."""
    zero, one = d.dtype.type(0), d.dtype.type(1)
    if f == SIGMOID:
        for j in range(d.size):
            d[j] *= y[j] * (one - y[j])
    elif f == TANH:
        for j in range(d.size):
            d[j] *= one - y[j] * y[j]
    elif f == RELU:
        for j in range(d.size):
            d[j] *= one if y[j] > zero else zero
    else:
        for j in range(d.size):
            d[j] *= rare_derivative(f, par[0], par[1], y[j])


# ------------------------------------------------------------------------------------------------------ rows, products
@jit
def add(into, what):
    """into += what, along a row."""
    for j in range(into.size):
        into[j] += what[j]


@jit
def add_scaled(into, scale, what):
    """into += scale * what, along a row."""
    for j in range(into.size):
        into[j] += scale[j] * what[j]


@jit
def multiply(into, left, right):
    """into = left * right, along a row."""
    for j in range(into.size):
        into[j] = left[j] * right[j]


@jit
def copy(into, what):
    """into = what, along a row. (Numba's slice assignment does it too, but costs seconds to compile.)"""
    for j in range(into.size):
        into[j] = what[j]


@jit
def add_all(into, what):
    """into += what, row by row."""
    for r in range(into.shape[0]):
        add(into[r], what[r])


@jit
def product(x, w, out):
    """out = x @ w: (b, K), (K, M), (b, M)."""
    if x.size * w.shape[1] > SMALL:
        np.dot(x, w, out)
        return
    K = w.shape[0]
    for r in range(x.shape[0]):
        row, left = out[r], x[r]
        row[:] = 0
        for k in range(0, K - 3, 4):  # four rows of w at a time: each visit to the output costs a load and a store
            x0, x1, x2, x3 = left[k], left[k + 1], left[k + 2], left[k + 3]
            w0, w1, w2, w3 = w[k], w[k + 1], w[k + 2], w[k + 3]
            for j in range(row.size):
                row[j] += x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]
        for k in range(K - K % 4, K):
            x0, w0 = left[k], w[k]
            for j in range(row.size):
                row[j] += x0 * w0[j]


@jit
def input_product(x, ids, w_x, b_x, a):
    """a = W_x x + b; of token ids, the stored rows."""
    if ids.size:
        for r in range(ids.size):
            copy(a[r], w_x[ids[r]])
    else:
        product(x, w_x, a)
    for r in range(a.shape[0]):
        add(a[r], b_x)


# --------------------------------------------------------------------------------------------------------------- steps
@jit
def steps_in_stretch(offsets):
    """How many steps have some STRETCH rows."""
    return max(1, STRETCH // max(1, offsets[1] - offsets[0]))


@jit
def stretch(begin, steps, T, reverse):
    """(first step, step past the last) of the stretch that the walk reaches after `begin` steps."""
    end = min(begin + steps, T)
    return (T - end, T - begin) if reverse else (begin, end)


@jit
def put(rows, into, column):
    """Copy rows into a stretch of columns, where there are any."""
    if into.size:
        for r in range(rows.shape[0]):
            copy(into[r, column : column + rows.shape[1]], rows[r])


@jit
def give(h, y, column, first, t, row_map):
    """The outputs of step t to columns of y, if there is a y: to rows from `first` on, or where layout.RowMap says."""
    step, sequences = row_map
    if not sequences.size:
        put(h, y[first : first + h.shape[0]], column)
    for b in range(sequences.size):
        into = y[t * step + sequences[b], column : column + h.shape[1]]
        if b < h.shape[0]:
            copy(into, h[b])
        else:
            into[:] = 0


@jit
def pieces_of(threads, b, H):
    """Into how many pieces a parallel region cuts b rows of H units; 1: no region."""
    return min(threads, b) if b * H >= PARALLEL else 1


# -------------------------------------------------------------------------------------------------------- LSTM, forward
@jit
def lstm_rows(lo, hi, act, par, peep, a, u, c, m, tape_c):
    """Rows lo to hi of a step: a becomes the gates, c the new cell state, m = o * h(c)."""
    H = c.shape[1]
    for r in range(lo, hi):
        gates, cell = a[r], c[r]
        add(gates, u[r])
        i, f, g, o = gates[:H], gates[H : 2 * H], gates[2 * H : 3 * H], gates[3 * H :]
        if peep.size:
            add_scaled(i, peep[0], cell)
            add_scaled(f, peep[1], cell)
        activate(act[0], par[0], gates[: 2 * H])
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
    """A direction of a layer. The arrays of the tape are without entries where nothing is kept."""
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


# --------------------------------------------------------------------------------------------------------- GRU, forward
@jit
def gru_update(act, par, a, extra, kept, h):
    """n and h' of one row; `extra` is what a_n lacks."""
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
    """Rows lo to hi of a step up to the reset, and where that comes after the product, to the end.

    kept becomes r z n m; extra becomes r * m, or for reset_after=False what the second product takes: r * h.
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
    """A direction of a layer; c is not used. w_n is without entries where reset_after: w_h is all of W_h then."""
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


# --------------------------------------------------------------------------------------------------------- RNN, forward
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
# Of dh and dc the first b rows are in use; on entry to a step they hold what comes from later ones. The walk is undone:
# a reverse direction goes from the first step to the last.
@jit
def previous(offsets, reverse, kept, initial, out):
    """out = what `kept` held one step before, in walking order; `initial` where a sequence begins."""
    T = offsets.size - 1
    for t in range(T):
        lo, hi = offsets[t], offsets[t + 1]
        p = t + 1 if reverse else t - 1
        alive = min(hi - lo, offsets[p + 1] - offsets[p]) if 0 <= p < T else 0
        for r in range(hi - lo):
            copy(out[lo + r], kept[offsets[p] + r] if r < alive else initial[r])


@jit
def lstm_rows_backward(lo, hi, act, par, peep, gates, c, c_prev, dm, dc):
    """Rows lo to hi of a step: gates become their gradients, dc that of the step before."""
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
        deactivate(act[0], par[0], o, do)
        multiply(di, dm[r], o)
        deactivate(act[2], par[2], s, di)
        add(dcell, di)
        if peep.size:
            add_scaled(dcell, peep[2], do)
        multiply(di, dcell, g)
        multiply(df, dcell, c_prev[r])
        multiply(dg, dcell, i)
        deactivate(act[0], par[0], y[: 2 * H], d[: 2 * H])
        deactivate(act[1], par[1], g, dg)
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
    """A direction and stretch: the gates' gradients, those of the initial state, and dh of every step if projected."""
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
        deactivate(act[0], par[0], z, dz)
        for j in range(H):
            dn[j] = d[j] * (one - z[j])
        deactivate(act[1], par[1], n, dn)
        multiply(d, d, z)
        if reset_after:
            multiply(dr, dn, m)
            deactivate(act[0], par[0], r, dr)
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
                deactivate(act[0], par[0], kept[r, :H], rz[r, :H])
                add_scaled(dh_now[r], part[r], kept[r, :H])
        product(rz, v_rz, part)
        add_all(dh_now, part)


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
            deactivate(act[0], par[0], tape_h[lo + r], d[r])
        product(d, v_h, dh_now)


# ----------------------------------------------------------------------------------------- sums over all rows, backward
@jit
def add_weights(d, x, into):
    """into += d.T @ x: (N, M), (N, K), (M, K)."""
    if d.size * x.shape[1] > SMALL:
        room = np.empty(into.shape, into.dtype)
        np.dot(d.T, x, room)
        add_all(into, room)
        return
    for r in range(d.shape[0]):
        row = x[r]
        for g in range(d.shape[1]):
            left, out = d[r, g], into[g]
            for j in range(out.size):
                out[j] += left * row[j]


@jit
def add_input(d, v, into):
    """into += d @ v: (N, M), (M, I), (N, I)."""
    room = np.empty(into.shape, into.dtype)
    product(d, v, room)
    add_all(into, room)


@jit
def add_sum(d, into):
    """into += the sum of all rows of d."""
    for r in range(d.shape[0]):
        add(into, d[r])


@jit
def add_scaled_sum(d, c, column, into):
    """into += the sum over rows of d * c, d's columns from `column`."""
    for r in range(d.shape[0]):
        add_scaled(into, d[r, column : column + into.size], c[r])


@jit
def add_to_ids(d, ids, column, into):
    """Add row r of d to row ids[r] of `into`, from `column`."""
    for r in range(d.shape[0]):
        add(into[ids[r], column : column + d.shape[1]], d[r])
