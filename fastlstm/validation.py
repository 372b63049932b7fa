"""Checks of arguments. Errors say what was given, what was expected, and the cure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from numpy import ndarray, zeros  # global names are found sooner than np.ndarray

from .layout import Array


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether arrays of this dtype hold real numbers: a dtype of NumPy or of an extension, such as bfloat16."""
    return dtype.kind in "fiu" or (
        dtype.kind == "V" and not issubclass(dtype.type, np.void) and np.can_cast(dtype, np.float64)
    )


def as_array(given: Any, name: str) -> Array:
    """given as an array, or TypeError, also for masked arrays: the numbers under the mask are no input."""
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
    """given as a native array of the dtype, with any strides, or an error that says the cure."""
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
    """The end of a message, with code that converts `given`, or "". The last word of `name` is the variable in it."""
    variable, word = name.split()[-1], np.dtype(dtype).name
    if x.dtype.kind == "c":
        return f". Take its real part, numpy.real({variable}).astype('{word}')"
    if not is_real(x.dtype):  # bools, texts and objects: some can be read as numbers
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
    """value as a bool, or TypeError: every string is true, so "False" would switch an option on."""
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
    """value as float32 or float64, or TypeError. None is refused too: to NumPy it means float64."""
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
    if ids.size == 1:  # fast path of streams: a reduction takes longer than a small step
        fits = 0 <= ids.item() < size
    else:
        fits = (
            ids.size == 0 or np.maximum.reduce(ids.view(np.uint64), None) < size
        )  # as unsigned numbers negative ids are large: one comparison checks both ends
    if not fits:
        raise ValueError(
            f"token ids must lie between 0 and input_size - 1 = {size - 1}, got {ids.min()} to {ids.max()}. "
            f"Integers are token ids; for numbers, convert: x.astype('{dtype}')"
        )


def rows_of(given: Any, B: int) -> Array:
    """The sequences of `given` as a bool mask (B,) or indices, or an error."""
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
    if of_mask and rows.dtype.itemsize == 1:  # int8 and uint8 arrays often are masks from C++ programs
        raise TypeError(f"rows of dtype {rows.dtype} may be a mask or indices: {rows.tolist()}{cure}")
    return rows


def shape_error(x: Array, shape: tuple[int, ...], name: str, meaning: str) -> ValueError:
    """The error of `check_shape`, for short calls, which compare the shapes themselves before they make a message."""
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


# ------------------------------------------------------------------------------------------- inputs, states, gradients
def _shown(axes: Sequence[Any]) -> str:
    """A shape with names in it, in Python's notation: (T, B, 4)."""
    return f"({', '.join(map(str, axes))}{',' * (len(axes) == 1)})"


def checked_input(
    x: Any, axes: tuple[str | int, ...], size: int, dtype: np.dtype[Any], single: bool = True
) -> tuple[Array, bool, bool]:
    """Check the input of a recurrent layer, cell or stream, with the same messages for all of them.

    Parameters
    ----------
    x : array
        Numbers (*axes, size) of the dtype, or integers (*axes): token ids, whose values are not checked here.
    axes : tuple
        x's leading axes in order: "T" for the steps, if there are any, and the batch: "B", or a stream's batch size.
    size : int
        input_size.
    single : bool
        Whether x may come without its batch axis.

    Returns
    -------
    x : array
        In any memory layout and byte order.
    ids : bool
        Whether x is token ids.
    unbatched : bool
        Whether x came without a batch axis.

    Raises
    ------
    ValueError, TypeError
        Another shape or dtype.
    """
    given, x = x, x if type(x) is ndarray else as_array(x, "x")
    ids = x.dtype.kind in "iu"
    if not ids:
        x = as_numbers(given, "x", dtype)
    rank = len(axes) if ids else len(axes) + 1
    unbatched = single and x.ndim == rank - 1
    if (unbatched or x.ndim == rank) and (ids or x.shape[-1] == size):
        batch = axes[-1]  # a batch axis of fixed size comes last
        if unbatched or isinstance(batch, str) or x.shape[len(axes) - 1] == batch:
            return x, ids, unbatched
    raise _input_error(x, axes, size, dtype, single)


def _input_error(x: Array, axes: tuple[str | int, ...], size: int, dtype: np.dtype[Any], single: bool) -> Exception:
    """The error of `checked_input` for an x of another shape."""
    ids = x.dtype.kind in "iu"
    tail: tuple[int, ...] = () if ids else (size,)
    steps = tuple(a for a in axes if a == "T")
    shapes = _shown((*axes, *tail)) + (f", or {_shown((*steps, *tail))} without a batch" if single else "")
    cure = f". For numbers, convert: x.astype('{dtype}')" if ids else ""
    if ids and x.ndim == len(axes) + 1:
        return TypeError(f"x of dtype {x.dtype} has shape {x.shape}: integers are token ids, of shape {shapes}{cure}")
    if not ids and x.ndim in (len(axes), len(axes) - 1) and bool(((x == np.floor(x)) & (x >= 0) & (x < size)).all()):
        cure = ". Token ids are integers: x.astype(int)"
    reasons = [f"its last axis must be input_size = {size}"] if tail and x.shape[-1:] != tail else []
    reasons += [f"batch_size is {a}" for i, a in enumerate(axes) if isinstance(a, int) and x.shape[i : i + 1] != (a,)]
    why = f": {', '.join(reasons)}" if reasons else ""
    return ValueError(f"x has shape {x.shape}, expected {shapes}{' for token ids' if ids else ''}{why}{cure}")


def checked_rows(x: Any, size: int, dtype: np.dtype[Any]) -> Array:
    """The input (..., size) of a layer that treats all leading axes alike, in any memory layout, or an error."""
    rows = as_numbers(x, "x", dtype)
    if rows.ndim == 0 or rows.shape[-1] != size:
        raise ValueError(f"x has shape {rows.shape}, expected (..., {size}): its last axis must be input_size = {size}")
    return rows


def checked_ids(x: Array, size: int, dtype: Any = "float32") -> Array:
    """Token ids as contiguous int64, checked. A copy: another thread must not change the ids after the check."""
    ids = np.array(x, np.int64, order="C")
    check_ids(ids, size, dtype)
    return ids


def checked_lengths(lengths: Any, T: int, B: int, unbatched: bool) -> Array:
    """Lengths of B sequences as (B,) int64, or an error."""
    if unbatched:
        raise ValueError("lengths goes with a batch; x came without one: cut x to its length instead")
    given = as_array(lengths, "lengths")
    if given.dtype.kind not in "iu" and given.size:
        cure = conversion(lengths, given, "lengths", "int64") if given.dtype.kind == "f" else ""
        cure = "; a mask is given as mask=" if given.dtype == bool else cure
        raise TypeError(f"lengths must be integers, got dtype {given.dtype}{cure}")
    check_shape(given, (B,), "lengths", f"one entry for each of the {B} sequences")
    if given.size and (given.min() < 0 or given.max() > T):
        raise ValueError(f"lengths must lie between 0 and T = {T}, got {given.min()} to {given.max()}")
    return given.astype(np.int64)


def checked_step_mask(mask: Any, lengths: Any, T: int, B: int, unbatched: bool, batch_first: bool) -> Array:
    """The mask of the valid steps as (T, B) bools, or an error."""
    if lengths is not None:
        raise ValueError("mask and lengths both say which steps are valid: give one of them")
    axes, names = ((T,), "(T,)") if unbatched else ((B, T), "(B, T)") if batch_first else ((T, B), "(T, B)")
    given = checked_mask(mask, axes, "mask", f"{names}, True at the steps that are valid")
    return given[:, None] if unbatched else given.T if batch_first else given


@dataclass(frozen=True)
class StateForm:
    """The form of a state, of a layer, a cell or a stream: names, widths and dtype.

    Parameters
    ----------
    owner : str
        Name of the class, for messages.
    widths : dict
        Width of every array of the state by its name: h and, for LSTM, c.
    dtype : dtype
    axes : tuple of str
        Names of the leading axes, for messages. A state without a batch lacks "batch".
    """

    owner: str
    widths: dict[str, int]
    dtype: np.dtype[Any]
    axes: tuple[str, ...]
    _sizes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sizes", tuple(self.widths.values()))

    def zeros(self, leading: tuple[int, ...]) -> tuple[Array, ...]:
        """The zero state: (*leading, width) arrays."""
        sizes, dtype = self._sizes, self.dtype
        if len(sizes) == 1:  # both cases written out: a comprehension takes longer than making the arrays
            return (zeros((*leading, sizes[0]), dtype),)
        return zeros((*leading, sizes[0]), dtype), zeros((*leading, sizes[1]), dtype)

    def check(self, state: Any, leading: tuple[int, ...], name: str, optional: bool = False) -> tuple[Array, ...]:
        """Copies of the arrays (*leading, width) of a state, in the order of `widths`; zeros for None.

        Parameters
        ----------
        state : tuple of arrays, or one array where there is only h
        leading : tuple of int
            The axes before the width.
        name : str
            The argument's name, for messages.
        optional : bool
            Whether one array of several may be None.

        Raises
        ------
        ValueError, TypeError
            The number of arrays, a shape or a dtype does not fit.
        """
        if state is None:
            return self.zeros(leading)
        several = len(self.widths) > 1
        if isinstance(state, (tuple, list)) != several or (several and len(state) != len(self.widths)):
            expected = f"a pair ({', '.join(self.widths)})" if several else "one array h"
            got = type(state).__name__
            got = f"a {got} of {len(state)}" if isinstance(state, (tuple, list)) else got
            raise TypeError(f"{name} of {self.owner} is {expected}, got {got}")
        arrays = []
        for part, (which, width) in zip(state if several else (state,), self.widths.items(), strict=True):
            shape = (*leading, width)
            if part is None and optional:
                arrays.append(np.zeros(shape, self.dtype))
                continue
            if not (type(part) is ndarray and part.dtype is self.dtype and part.shape == shape):
                label = f"{name}'s {which}"
                part = as_numbers(part, label, self.dtype).astype(self.dtype, copy=False)
                axes = [a for a in self.axes if a != "batch" or len(shape) == len(self.axes)]
                check_shape(part, shape, label, _shown(axes))
            arrays.append(part.copy())
        return tuple(arrays)


def checked_dy(dy: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """The gradient of an output of this shape, in any memory layout, or an error."""
    if type(dy) is ndarray and dy.dtype is dtype and dy.shape == shape:
        return dy
    given = as_numbers(dy, "dy", dtype)
    check_shape(given, shape, "dy", "the shape of y")
    return given


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise unless results of this shape and dtype can be written to `out`."""
    if type(out) is ndarray and out.dtype is dtype and out.shape == shape and out.flags.carray:
        return
    if not isinstance(out, ndarray):
        raise TypeError(f"out must be a NumPy array to write to, got {type(out).__name__}")
    if out.dtype != dtype or out.shape != shape:
        raise ValueError(f"out has shape {out.shape} and dtype {out.dtype}, expected {shape} and {dtype}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"out must be C-contiguous and writeable: make it with numpy.empty({shape}, '{dtype}')")
