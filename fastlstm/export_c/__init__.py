"""A model as one C99 source and header, for programs without Python: see docs/to_c.md."""

from __future__ import annotations

import keyword
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files import write_atomically
from ..layer import Layer
from ..layout import Array
from ..quantise import check_floats
from ..steps import Lookup, Recurrence, Step, steps_of
from ..validation import as_array
from .simulate import run
from .source import write

WEIGHTS = ("float32", "int8")
TESTED_STEPS = 8  # of the self-test


class Exported(NamedTuple):
    """The files that `to_c` has written, and what a program with them needs.

    Parameters
    ----------
    source, header : str
        Paths.
    state_bytes, stack_bytes, flash_bytes : int
        Of a stream; upper bound of a step's stack; of the constants.
    change : dict or None
        For ``weights="int8"`` with `calibrate`: mean and largest absolute change of the outputs against float32.
    """

    source: str
    header: str
    state_bytes: int
    stack_bytes: int
    flash_bytes: int
    change: dict[str, float] | None


def to_c(
    model: Any,
    path: str | os.PathLike[str],
    name: str | None = None,
    weights: str = "float32",
    calibrate: Any = None,
) -> Exported:
    """Write a model as C99: a source and a header that need no library.

    Parameters
    ----------
    model : recurrent layer, Sequential, or list
        See `fastlstm.steps.steps_of`; with at least one recurrent layer.
    path : str or path
        Of the source, ``*.c``; the header lies beside it, ``*.h``.
    name : str, optional
        The beginning of every public name: a C identifier. Default: the file's name.
    weights : {"float32", "int8"}
        int8: one byte for each number of a matrix, with a scale for each row; products are sums of integers.
    calibrate : (T, I) or (N, T, I) array, or token ids (T,) or (N, T); optional
        Typical inputs. The change that int8 makes to the outputs on these is measured and written into the header.

    Returns
    -------
    exported : Exported

    Raises
    ------
    TypeError, ValueError
        The model cannot run step by step or is no float32, has NaN or infinity, or another argument does not fit.
    OSError
        The files cannot be written.
    """
    path = Path(path)
    if path.suffix != ".c":
        raise ValueError(f"path names the C source, such as model.c, got {str(path)!r}")
    name = identifier(path.stem if name is None else name)
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    for one in model if isinstance(model, (list, tuple)) else [model]:
        if isinstance(one, Layer):
            check_floats(one, "to_c")
    steps = steps_of(model)
    if not any(isinstance(step, Recurrence) for step in steps):
        raise ValueError(f"the model has no recurrent layer, so it has no steps: {', '.join(map(str, steps))}")
    check_finite(steps)
    int8 = weights == "int8"
    inputs = test_inputs(steps[0])
    change, note = None, ""
    if calibrate is not None:
        if not int8:
            raise ValueError("calibrate is for weights='int8': float32 weights change nothing")
        change = measured(steps, checked_sample(calibrate, steps[0]))
        note = (
            f"\n   On the given samples int8 changes the outputs by {change['mean']:.2g} in the mean and by "
            f"{change['largest']:.2g} at most."
        )
    program = write(steps, name, int8, note, path.with_suffix(".h").name, (inputs, run(steps, inputs, int8)))
    header = path.with_suffix(".h")
    write_atomically(header, program.header.encode())
    write_atomically(path, program.source.encode())
    return Exported(str(path), str(header), program.state_bytes, program.stack_bytes, program.flash_bytes, change)


# What a C99 or C++ program cannot use as a name.
RESERVED = set(
    "auto break case char const continue default do double else enum extern float for goto if inline int long "  # noqa: SIM905
    "register restrict return short signed sizeof static struct switch typedef union unsigned void volatile "
    "while".split()
)


def identifier(name: Any) -> str:
    """`name` if it is a C identifier.

    Raises
    ------
    ValueError
        It is none; the message has one like it.
    """
    if isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) and name not in RESERVED:
        return name
    like = re.sub(r"\W", "_", str(name), flags=re.ASCII)
    like = (
        like
        if re.match(r"[A-Za-z]", like) and like not in RESERVED and not keyword.iskeyword(like)
        else f"model_{like}"
    )
    raise ValueError(f"name must be a C identifier, got {name!r}: name={like!r} would be one")


def check_finite(steps: list[Step]) -> None:
    """Raise ValueError where a parameter is NaN or infinite."""
    for step in steps:
        arrays = vars(step).get("params") or {key: vars(step).get(key) for key in ("weight", "bias")}
        for name, array in arrays.items():
            if array is not None and not np.isfinite(array).all():
                raise ValueError(
                    f"{name} of {step} holds NaN or infinity, which C has no constants for: mend the weights"
                )


def test_inputs(first: Step) -> Array:
    """Inputs of the self-test: (T, I) numbers, or token ids (T,)."""
    rng = np.random.default_rng(0)
    if isinstance(first, Lookup):
        return rng.integers(0, first.weight.shape[0], TESTED_STEPS)
    return np.round(rng.uniform(-1, 1, (TESTED_STEPS, first.sizes[0])), 3).astype(np.float32)


def checked_sample(given: Any, first: Step) -> Array:
    """Samples as (N, T, I) numbers or token ids (N, T)."""
    sample = as_array(given, "calibrate")
    ids = isinstance(first, Lookup)
    if sample.ndim == (1 if ids else 2):
        sample = sample[None]
    wanted = "(T,) or (N, T) token ids" if ids else f"(T, {first.sizes[0]}) or (N, T, {first.sizes[0]}) numbers"
    fits = sample.ndim == (2 if ids else 3) and (ids or sample.shape[2] == first.sizes[0])
    if not fits or not sample.size or (sample.dtype.kind not in ("iu" if ids else "iuf")):
        raise ValueError(f"calibrate has shape {np.shape(given)} and dtype {sample.dtype}, expected {wanted}")
    if isinstance(first, Lookup) and (sample.min() < 0 or sample.max() >= first.weight.shape[0]):
        raise ValueError(
            f"calibrate has token ids from {sample.min()} to {sample.max()}, expected 0 to {first.weight.shape[0] - 1}"
        )
    with np.errstate(over="ignore"):
        sample = sample if ids else sample.astype(np.float32)
    if not np.isfinite(sample).all():
        raise ValueError("calibrate holds NaN, infinity, or numbers beyond float32: leave those samples out")
    return sample


def measured(steps: list[Step], samples: Array) -> dict[str, float]:
    """Mean and largest absolute change of the outputs by int8."""
    changes = np.stack([np.abs(run(steps, x, True) - run(steps, x, False)) for x in samples])
    return {"mean": float(changes.mean()), "largest": float(changes.max())}
