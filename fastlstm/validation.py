"""Checks of what users hand in. Errors say what was given, what was expected, and the cure."""

from __future__ import annotations

from typing import Any

import numpy as np

from .layout import Array


def as_numbers(given: Any, name: str, dtype: np.dtype[Any]) -> Array:
    """given as a native array of the layer's dtype (any order, any strides), or a ValueError that says the cure."""
    x: Array = np.asarray(given)
    if x.dtype is not dtype and x.dtype.newbyteorder("=") != dtype:
        if x.dtype.kind not in "fiu":
            raise TypeError(f"{name} must hold real numbers, got dtype {x.dtype}")
        raise ValueError(
            f"{name} has dtype {x.dtype}, the layer {dtype}. Convert it with {name}.astype('{dtype}'), "
            f"or make the layer with dtype='{x.dtype if x.dtype.kind == 'f' else dtype}'"
        )
    return x


def positive(value: Any, name: str, least: int = 1) -> int:
    """value as an int that is at least `least`, or an error."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def check_ids(ids: Array, size: int) -> None:
    """Raise ValueError unless every token id (int64) is a row of the input matrix."""
    if ids.size == 1:  # a stream's, for which a reduction takes longer than a small step
        fits = 0 <= ids.item() < size
    else:
        fits = ids.size == 0 or np.maximum.reduce(ids.view(np.uint64), None) < size  # what is below 0 is large there
    if not fits:
        raise ValueError(
            f"token ids must lie between 0 and input_size - 1 = {size - 1}, got {ids.min()} to {ids.max()}"
        )


def shape_error(x: Array, shape: tuple[int, ...], name: str, meaning: str) -> ValueError:
    """For short calls, which should not make a message that nobody needs; else `check_shape`."""
    return ValueError(f"{name} has shape {x.shape}, expected {shape}: {meaning}")


def check_shape(x: Array, shape: tuple[int, ...], name: str, meaning: str) -> None:
    if x.shape != shape:
        raise shape_error(x, shape, name, meaning)
