"""What a written C program computes, by the NumPy reference with the same storage."""

from __future__ import annotations

import numpy as np

from .._backends import numpy as reference
from ..layout import Array
from ..nn.activation import activate
from ..steps import Affine, Lookup, Recurrence, Step
from ..storage import STORAGES
from .source import bounded_output


def run(steps: list[Step], inputs: Array, int8: bool) -> Array:
    """The outputs (T, U) of T inputs (T, I), or token ids (T,), from the zero state."""
    x, x_bounded = inputs, False
    for step in steps:
        y = one_step(step, x, int8, x_bounded)
        x = x + y if getattr(step, "skip", False) else y
        x_bounded = bounded_output(step)
    return x


def one_step(step: Step, x: Array, int8: bool, x_bounded: bool) -> Array:
    """The outputs of one step of the list over all steps of time."""
    kept = STORAGES["int8" if int8 else "float32"]
    if isinstance(step, Lookup):
        rows: Array = kept.keep(step.weight).floats(np.float32)[x]
        return rows
    if isinstance(step, Recurrence):
        return recurrence(step, x, int8, x_bounded)
    if isinstance(step, Affine):
        matrix = reference.products.Matrix.of({"weight": step.weight}, "weight", kept.name, kept.form(x_bounded))
        bias = np.zeros(step.sizes[1], np.float32) if step.bias is None else step.bias
        y: Array = activate(step.activation, reference.products.times(x, matrix, bias))
        return y
    whole: Array = activate(step.activation, x)
    return whole


def recurrence(step: Recurrence, x: Array, int8: bool, x_bounded: bool) -> Array:
    """h (T, R) of one layer, from the zero state and inputs (T, I)."""
    spec, kept = step.spec, STORAGES["int8" if int8 else "float32"]
    block = reference.pack(spec, step.params, kept.name, x_form=kept.form(x_bounded))
    states = tuple(np.zeros((1, width), np.float32) for width in spec.initial.values())
    y = np.empty((len(x), spec.R), np.float32)
    for t in range(len(x)):
        states, _ = reference.recurrent.step(block, reference.recurrent.input_product(block, x[t : t + 1]), states)
        y[t] = states[0][0]
    return y
