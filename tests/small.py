"""Small sizes, random input and comparisons that the tests of layers share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import LAYERS, TOLERANCE, assert_all_near

T, B, I, H = 5, 6, 4, 7  # noqa: E741
LENGTHS = (3, 0, 5, 1, 5, 2)
F32 = np.float32
each_kind = pytest.mark.parametrize("kind", LAYERS)


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def sequences(state: Any, pick: Any) -> Any:
    """Some sequences of a state."""
    return tuple(s[:, pick] for s in state) if isinstance(state, tuple) else state[:, pick]


def near(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal but for the order of additions, which BLAS chooses by the batch's size."""
    assert_all_near(got, expected, TOLERANCE["values"], TOLERANCE["gradients"])


def stepped(batch: Any, handles: Any, x: Any, seed: int = 0) -> Any:
    """Outputs (n, T, U) of streams that are stepped in random choices and orders, of 1 to n at a time."""
    rng, n = np.random.default_rng(seed), len(x)
    y, done = [[] for _ in x], np.zeros(n, int)  # type: ignore[var-annotated]
    while (done < x.shape[1]).any():
        waiting = rng.permutation(np.flatnonzero(done < x.shape[1]))
        chosen = waiting[: rng.integers(1, len(waiting) + 1)]
        rows = batch.step(handles[chosen], x[chosen, done[chosen]])
        for at, row in zip(chosen, rows, strict=True):
            y[at].append(row)
        done[chosen] += 1
    return np.array(y)
