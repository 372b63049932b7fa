"""Recurrent dropout (Gal & Ghahramani 2016): the state is multiplied by the same factors before every step.

A direction is walked step by step, each step a call of the backend with h replaced by h * factors, which is what Keras
computes. Steps that a mask leaves out keep the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ..layout import Array, Rows

States = tuple[Array, ...]


@dataclass
class Walk:
    """The tape of one direction.

    Parameters
    ----------
    x : (T, B, I) array
    valid : (T, B) bool array, or None where every step counts
    factors : (B, H) array
    tapes : list of the steps' tapes, in walking order
    """

    x: Array
    valid: Array | None
    factors: Array
    tapes: list[Array]


def forward(
    module: ModuleType, block: Any, x: Array, valid: Array | None, states: States, factors: Array
) -> tuple[Array, Walk]:
    """Run one direction over (T, B, I).

    Parameters
    ----------
    module, block
        The backend and a direction's packed weights.
    x : (T, B, I) array, contiguous
    valid : (T, B) bool array, optional
    states : tuple of (B, width) arrays
        The initial states, overwritten with the final ones.
    factors : (B, H) array
        Factors of h before each step.

    Returns
    -------
    y : (T, B, R) array
        Zeros where a step does not count.
    walk : Walk
        For one `backward`.
    """
    T, B = x.shape[:2]
    rows, walk = Rows.dense(1, B), Walk(x, valid, factors, [])
    y = np.zeros((T, B, block.spec.R), x.dtype)
    for t in rows_walked(T, block):
        now = (states[0] * factors, *(s.copy() for s in states[1:]))
        tapes = np.empty((1, block.spec.tape_size(B, B)), x.dtype)
        out = np.empty((B, block.spec.R), x.dtype)
        module.forward([block], x[t], rows, tuple(s[None] for s in now), out, tapes)
        walk.tapes.append(tapes[0])
        there = slice(None) if valid is None else valid[t]
        for s, new in zip(states, now, strict=True):
            s[there] = new[there]
        y[t][there] = out[there]
    return y, walk


def backward(
    module: ModuleType, block: Any, walk: Walk, dstates: States, dy: Array | None, grads: dict[str, Array]
) -> Array:
    """Gradient of x (T, B, I); adds to the parameters' gradients.

    Parameters
    ----------
    dstates : tuple of (B, width) arrays
        Gradient of the final states, overwritten with that of the initial ones.
    dy : (T, B, R) array, optional
    grads : dict of arrays
        By the names of ``spec.parameters``; added to.
    """
    T, B = walk.x.shape[:2]
    rows, dx = Rows.dense(1, B), np.zeros_like(walk.x)
    for t, tape in zip(reversed(rows_walked(T, block)), reversed(walk.tapes), strict=True):
        valid = None if walk.valid is None else walk.valid[t][:, None]
        now = tuple(s.copy() if valid is None else s * valid for s in dstates)
        of_step = None if dy is None else np.ascontiguousarray(dy[t] if valid is None else dy[t] * valid)
        module.backward(block, walk.x[t], rows, now, tape, of_step, dx[t], grads)
        now = (now[0] * walk.factors, *now[1:])
        for s, new in zip(dstates, now, strict=True):
            s[...] = new if valid is None else np.where(valid, new, s)
    return dx


def rows_walked(T: int, block: Any) -> range:
    """The steps in the order in which a block walks them."""
    return range(T - 1, -1, -1) if block.reverse else range(T)
