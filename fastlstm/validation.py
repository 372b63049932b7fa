"""Checks of what users hand in. Errors say what was given, what was expected, and the cure."""

from __future__ import annotations

import math
from numbers import Real
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


def flag(value: Any, name: str) -> bool:
    """value as a bool, or TypeError: a string is true whatever it says, so that "False" would switch on."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(
        f"{name} must be True or False, got {value!r} of type {type(value).__name__}: give {name}=True or {name}=False"
    )


def number(value: Any, name: str, least: float = 0.0, below: float = math.inf) -> float:
    """value as a float in [least, below), or an error."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not least <= value < below:
        limit = "finite" if below == math.inf else f"below {below:g}"
        raise ValueError(f"{name} must be at least {least:g} and {limit}, got {value!r}")
    return float(value)


def probability(value: Any, name: str) -> float:
    """value as a float in [0, 1], or ValueError, as PyTorch raises for a bool too."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be a number between 0 and 1, got {value!r} of type {type(value).__name__}")
    return float(value)


def seed_or_none(value: Any, name: str = "seed") -> int | None:
    """value as a seed, a whole number of at least 0, or None for a seed that the system draws; or an error."""
    return None if value is None else positive(value, name, 0)


def float_dtype(value: Any, name: str = "dtype") -> np.dtype[Any]:
    """value as a dtype, or TypeError. NumPy takes None for float64, which would double a layer unasked."""
    try:
        if value is None:
            raise TypeError
        dtype: np.dtype[Any] = np.dtype(value)
        return dtype
    except TypeError:
        raise TypeError(f"{name} must be 'float32' or 'float64', got {value!r}") from None


def checked_mask(given: Any, shape: tuple[int, ...], name: str, meaning: str) -> Array:
    """A mask as a bool array of this shape, or an error. Numbers are refused: 0 and 1 may be indices or weights."""
    mask: Array = np.asarray(given)
    if mask.dtype != bool:
        raise TypeError(f"{name} must hold bools, got dtype {mask.dtype}: convert it, say with {name}.astype(bool)")
    check_shape(mask, shape, name, meaning)
    return mask


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
