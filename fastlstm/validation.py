"""Checks of what users hand in. Errors say what was given, what was expected, and the cure."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np

from .layout import Array


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether arrays of this dtype hold real numbers: NumPy's, or of an extension such as ml_dtypes' bfloat16."""
    return dtype.kind in "fiu" or (
        dtype.kind == "V" and not issubclass(dtype.type, np.void) and np.can_cast(dtype, np.float64)
    )


def as_array(given: Any, name: str) -> Array:
    """given as an array, or TypeError; the numbers under a masked array's mask are no input."""
    if type(given) is np.ndarray:
        return given
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise TypeError(
            f"{name} is a masked array, whose mask would be lost: give {name}.filled(0), and lengths= or mask="
        )
    try:
        array: Array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # nested lists of several lengths; a tensor of a GPU
        why = " ".join(str(error).split()).rstrip(".")
        cure = f". Convert it with {name.split()[-1]}.detach().float()" if hasattr(given, "detach") else ""
        raise TypeError(f"{name} cannot be made an array: {why}{cure}") from None
    return array


def as_numbers(given: Any, name: str, dtype: np.dtype[Any]) -> Array:
    """given as a native array of the layer's dtype (any order, any strides), or an error that says the cure."""
    x = as_array(given, name)
    if x.dtype is not dtype and x.dtype.newbyteorder("=") != dtype:
        cure = conversion(given, x, name, dtype)
        if not is_real(x.dtype):
            raise TypeError(f"{name} must hold real numbers, got dtype {x.dtype}{cure}")
        from ._backends import module

        other = x.dtype.newbyteorder("=").name
        if other in module("numpy").DTYPES:
            cure += f", or make the layer with dtype='{other}'"
        raise ValueError(f"{name} has dtype {x.dtype}, the layer {dtype}{cure}")
    return x


def conversion(given: Any, x: Array, name: str, dtype: Any) -> str:
    """The end of a message that says how to convert, if that is possible; the name's last word is the variable."""
    variable, word = name.split()[-1], np.dtype(dtype).name
    if x.dtype.kind == "c":
        return f". Take its real part, numpy.real({variable}).astype('{word}')"
    if not is_real(x.dtype):  # bools and, if they can be read as numbers, texts and objects
        try:
            if x.ndim == 0 or np.isnan(x.astype(np.float64)).any():
                return ""
        except (TypeError, ValueError):
            return ""
    # Lists and tensors have no astype.
    code = f"{variable}.astype('{word}')" if isinstance(given, np.ndarray) else f"numpy.asarray({variable}, '{word}')"
    return f". Convert it with {code}"


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
    mask = as_array(given, name)
    if mask.dtype != bool:
        cure = conversion(given, mask, name, bool) if mask.shape == shape and is_real(mask.dtype) else ""
        raise TypeError(f"{name} must hold bools, got dtype {mask.dtype} and shape {mask.shape}{cure}")
    check_shape(mask, shape, name, meaning)
    return mask


def check_ids(ids: Array, size: int, dtype: Any = "float32") -> None:
    """Raise ValueError unless every token id (int64) is a row of the input matrix of a layer of this dtype."""
    if ids.size == 1:  # a stream's, for which a reduction takes longer than a small step
        fits = 0 <= ids.item() < size
    else:
        fits = ids.size == 0 or np.maximum.reduce(ids.view(np.uint64), None) < size  # what is below 0 is large there
    if not fits:
        raise ValueError(
            f"token ids must lie between 0 and input_size - 1 = {size - 1}, got {ids.min()} to {ids.max()}. "
            f"Integers are token ids; for numbers, convert: x.astype('{dtype}')"
        )


def rows_of(given: Any, B: int) -> Array:
    """The sequences that `given` names, as a bool mask (B,) or indices, or an error."""
    rows = as_array(given, "rows")
    if rows.size == 0:
        return np.zeros(B, bool)
    if rows.dtype == bool:
        if rows.shape == (B, 1) or (B == 1 and rows.ndim == 0):
            rows = rows.reshape(B)
        check_shape(rows, (B,), "rows", "a mask has one entry for each sequence of the stream")
        return rows
    of_mask = is_real(rows.dtype) and rows.shape in ((B,), (B, 1)) and bool(((rows == 0) | (rows == 1)).all())
    cure = f". Is it a mask{conversion(given, rows, 'rows', bool).replace('. C', '? C')}" if of_mask else ""
    if rows.dtype.kind not in "iu":
        raise TypeError(f"rows must be indices or a bool mask, got dtype {rows.dtype}{cure}")
    if rows.ndim > 1:
        raise ValueError(f"rows has shape {rows.shape}, expected indices of one axis or a bool mask ({B},){cure}")
    rows = rows.reshape(-1)
    if rows.min() < 0 or rows.max() >= B:
        raise ValueError(
            f"rows must lie between 0 and batch_size - 1 = {B - 1}, got {rows.min()} to {rows.max()}{cure}"
        )
    if len(np.unique(rows)) < len(rows):
        raise ValueError(f"rows names a sequence twice: {rows.tolist()}{cure}")
    if of_mask and rows.dtype.itemsize == 1:  # as C++ programs hand over bools
        raise TypeError(f"rows of dtype {rows.dtype} may be a mask or indices: {rows.tolist()}{cure}")
    return rows


def state_parts(state: Any, lstm: bool, name: str, kind: str) -> list[Any]:
    """The parts of a state, [h, c] of an LSTM and [h] of others, or TypeError."""
    if not lstm:
        if isinstance(state, (tuple, list)):
            raise TypeError(f"{name} of {kind} is one array h, got a {type(state).__name__}")
        return [state]
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        raise TypeError(f"{name} of {kind} is a pair (h, c), got {type(state).__name__}")
    return list(state)


def shape_error(x: Array, shape: tuple[int, ...], name: str, meaning: str) -> ValueError:
    """For short calls, which should not make a message that nobody needs; else `check_shape`."""
    return ValueError(f"{name} has shape {x.shape}, expected {shape}: {meaning}")


def check_shape(x: Array, shape: tuple[int, ...], name: str, meaning: str) -> None:
    if x.shape != shape:
        raise shape_error(x, shape, name, meaning)


def positive_number(value: Any, name: str) -> float:
    """value as a finite float above 0, or an error."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 < value < np.inf:
        raise ValueError(f"{name} must be a finite number above 0, or None, got {value!r}")
    return float(value)
