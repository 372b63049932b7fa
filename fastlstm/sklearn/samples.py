"""The input of the estimators: tables (n, T), arrays (n, T, I), and lists of n sequences of unequal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from ..layout import Array

MEANING = "(n, T) for series of one variable, (n, T, variables), or a list of sequences (T_i,) or (T_i, variables)"


def is_table(X: Any, known: bool) -> bool:
    """Whether X is what scikit-learn's own estimators take: two axes, samples and columns.

    Parameters
    ----------
    X : array-like
    known : bool
        The estimator is fitted, and to sequences: a list of lists is then a list of sequences, also where all of them
        happen to be of one length.
    """
    if isinstance(X, (list, tuple)):
        if not X or any(isinstance(one, np.ndarray) or np.ndim(_peek(one)) > 1 for one in X):
            return not X
        return not known and len({len(one) if hasattr(one, "__len__") else -1 for one in X}) == 1
    if isinstance(getattr(X, "ndim", None), int):
        return X.ndim != 3 and not _holds_sequences(X)
    return True


def _peek(one: Any) -> Any:
    """At most the first entry of a sequence: enough to tell the rank."""
    return one[:1] if isinstance(one, (list, tuple)) else one


def of_objects(X: Any) -> bool:
    """Whether X is an array or pandas Series whose entries are Python objects."""
    return str(getattr(X, "dtype", "")) == "object"


def _holds_sequences(X: Any) -> bool:
    """Whether X is a one-dimensional array or pandas Series of sequences."""
    if X.ndim != 1 or not of_objects(X) or not len(X):
        return False
    first = np.asarray(X, object)[0]
    return hasattr(first, "__len__") and not isinstance(first, (str, bytes, dict))


def table(estimator: Any, X: Any, dtype: Any, reset: bool) -> Array:
    """X (n, T) as (n, T, 1), checked as scikit-learn checks; the names and number of columns are kept or compared."""
    checked: Array = validate_data(estimator, X, reset=reset, dtype=dtype, order="C")
    return checked[..., None]


def sequences(X: Any, dtype: Any, width: int | None) -> Array | list[Array]:
    """X as one array (n, T, I) or as a list of arrays (T_i, I), without NaN.

    Parameters
    ----------
    X : (n, T, I) array, or list, tuple, object array or pandas Series of n sequences
    dtype : {"float32", "float64"}
    width : int, optional
        I, where the estimator is fitted.

    Raises
    ------
    TypeError, ValueError
        It holds no numbers, NaN, nothing, or sequences of different width; the message names the first place.
    """
    if getattr(X, "ndim", None) == 3:
        whole = _numbers(X, "X", dtype)
        if 0 in whole.shape:
            raise ValueError(f"X has shape {whole.shape}: at least one sample, one step and one variable are needed")
        _check_width(whole.shape[2], width, "X")
        return whole
    given: Sequence[Any] = X if isinstance(X, (list, tuple)) else list(X)
    arrays: list[Array] = []
    for at, one in enumerate(given):
        name = f"X[{at}]"
        sequence = _numbers(one, name, dtype)
        if sequence.ndim == 1:
            sequence = sequence[:, None]
        if sequence.ndim != 2:
            raise ValueError(f"{name} has shape {sequence.shape}, expected a sequence: X is {MEANING}")
        if not len(sequence):
            raise ValueError(f"{name} has no steps: leave empty sequences out")
        _check_width(sequence.shape[1], arrays[0].shape[1] if arrays and width is None else width, name)
        arrays.append(sequence)
    return arrays


def _numbers(given: Any, name: str, dtype: Any) -> Array:
    """given as an array of a float dtype, or an error."""
    try:
        array: Array = np.asarray(given)
        if array.dtype.kind not in "fiubO":
            raise TypeError(f"dtype {array.dtype}")
        array = np.ascontiguousarray(array, dtype) if array.ndim else array
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold real numbers ({error}): X is {MEANING}") from None
    if not array.ndim:
        raise ValueError(f"{name} is a single number, expected a sequence: X is {MEANING}")
    if not np.isfinite(array).all():
        place = ", ".join(map(str, np.argwhere(~np.isfinite(array))[0].tolist()))
        raise ValueError(
            f"{name} contains NaN, infinity or a value too large for {np.dtype(dtype)}, first at [{place}]: "
            "leave such samples out, or fill the gaps"
        )
    return array


def _check_width(found: int, expected: int | None, name: str) -> None:
    if expected is not None and found != expected:
        raise ValueError(f"{name} has {found} variables at a step, expected {expected}: all sequences have the same")


def some(X: Array | list[Array], at: Array) -> Array | list[Array]:
    """The samples at these places."""
    return [X[i] for i in at] if isinstance(X, list) else X[at]
