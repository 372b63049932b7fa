"""Gradients of parameters and input: sums over all rows, after the walk backward."""

from __future__ import annotations

import numpy as np

from .compiling import jit
from .rows import SMALL, add, add_all, add_scaled, product


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
