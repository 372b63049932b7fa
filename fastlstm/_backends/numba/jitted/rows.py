"""Operations along a row, and row by row."""

from __future__ import annotations

from .compiling import jit_inner


@jit_inner
def add(into, what):
    """into += what, along a row."""
    for j in range(into.size):
        into[j] += what[j]


@jit_inner
def add_scaled(into, scale, what):
    """into += scale * what, along a row."""
    for j in range(into.size):
        into[j] += scale[j] * what[j]


@jit_inner
def multiply(into, left, right):
    """into = left * right, along a row."""
    for j in range(into.size):
        into[j] = left[j] * right[j]


@jit_inner
def copy(into, what):
    """into = what, along a row. (Numba's slice assignment does it too, but costs seconds to compile.)"""
    for j in range(into.size):
        into[j] = what[j]


@jit_inner
def add_all(into, what):
    """into += what, row by row."""
    for r in range(into.shape[0]):
        add(into[r], what[r])


@jit_inner
def put(rows, into, column):
    """Copy rows into the columns of `into` from `column` on; nothing where `into` is empty."""
    if into.size:
        for r in range(rows.shape[0]):
            copy(into[r, column : column + rows.shape[1]], rows[r])


@jit_inner
def clear(rows):
    """rows = 0."""
    for r in range(rows.shape[0]):
        row = rows[r]
        for j in range(row.size):
            row[j] = 0
