"""Operations along a row, and products of matrices."""

from __future__ import annotations

import numpy as np

from .compiling import jit

# Multiply-adds up to which a product runs in the loop below instead of BLAS. Measured (1 thread, AVX-512): the loop
# does 25 a nanosecond in float32 and 15 in float64; BLAS does twice that, but needs 4 to 5 us to begin with several
# rows and may wake its threads. Both are equal at 250000 in float32 and 120000 in float64.
SMALL = 131072


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
