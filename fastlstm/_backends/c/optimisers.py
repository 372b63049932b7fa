"""Optimisers: one pass over all the arrays of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...layout import Array
from ...num_threads import get_num_threads
from .calls import INTS, from_buffer, new, pointer
from .extension import lib

RULES = ("sgd", "adam", "rmsprop", "adagrad")  # enum fl_rule_kind


def _spans(arrays: Sequence[Sequence[Array | None]]) -> Any:
    """fl_span[] of (p,) or (p, g, slots ...): contiguous float32 arrays, None for a slot that is not kept."""
    spans = new("fl_span[]", len(arrays))
    for span, one in zip(spans, arrays, strict=True):
        span.p, span.n = pointer(one[0]), 0 if one[0] is None else one[0].size
        if len(one) > 1:
            span.g = pointer(one[1])
        for place, kept in enumerate(one[2:]):
            span.kept[place] = pointer(kept)
    return spans


def update(rule: str, numbers: Mapping[str, float], arrays: Sequence[Sequence[Array | None]]) -> None:
    """One step of an optimiser over many parameters, in one pass.

    Parameters
    ----------
    rule : str
        A name of `RULES`.
    numbers : dict
        Fields of fl_rule; absent ones are 0.
    arrays : sequence of (p, g, slots ...)
        Contiguous float32 arrays, of equal size in each tuple; None for a slot that is not kept.
    """
    handle = new("fl_rule *", {"kind": RULES.index(rule), **numbers})
    lib.fl_update(handle, _spans(arrays), len(arrays), get_num_threads())


def update_columns(p: Array, ids: Array, rows: Array, lr: float) -> None:
    """p[:, ids] -= lr * rows.T; the ids are distinct."""
    J, V = p.shape
    data = pointer(p), J, V, from_buffer(INTS, ids), len(ids), pointer(rows)
    lib.fl_update_columns(*data, lr, get_num_threads())


def square_sum(arrays: Sequence[Array]) -> float:
    """Sum of the squares of all numbers, in float64; the order is that of `optim.square_sum`."""
    spans = _spans([(a,) for a in arrays])
    sums = new("double[]", max(1, lib.fl_blocks(spans, len(arrays))))
    total: float = lib.fl_square_sum(spans, len(arrays), sums, get_num_threads())
    return total


def scale(arrays: Sequence[Array], factor: float) -> None:
    """Multiply all numbers, in place."""
    lib.fl_scale(_spans([(a,) for a in arrays]), len(arrays), factor, get_num_threads())
