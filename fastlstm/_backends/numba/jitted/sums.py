"""Gradients of the parameters: sums over all rows, after the walk backward."""

from __future__ import annotations

import numpy as np

from .compiling import jit, jit_inner
from .products import REGISTER, VECTORS, add_product
from .rows import add, add_scaled

# Rows whose products are summed at once: their panels stay in the second-level cache.
BLOCK = 256


@jit_inner
def pack_rows(x, packed):
    """packed = the panels (., K, P) of x (K, M); their columns beyond M, which no result has, stay as they are."""
    P = packed.shape[2]
    for p in range(packed.shape[0]):
        count = min(P, x.shape[1] - p * P)
        for k in range(x.shape[0]):
            to, row = packed[p, k], x[k]
            for j in range(count):
                to[j] = row[p * P + j]


@jit
def add_weights(threads, d, x, into):
    """into += d.T @ x: (N, M), (N, K), (M, K)."""
    N, K = x.shape
    P = VECTORS * REGISTER // x.itemsize
    count = (K + P - 1) // P
    room = np.empty(count * min(N, BLOCK) * P, x.dtype)
    for begin in range(0, N, BLOCK):
        end = min(begin + BLOCK, N)
        packed = room[: count * (end - begin) * P].reshape(count, end - begin, P)
        pack_rows(x[begin:end], packed)
        add_product(threads, d[begin:end].T, packed, into, 0, K)


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
