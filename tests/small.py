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
