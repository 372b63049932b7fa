"""A model's list of steps as a file's configuration has it: what the C library reads in place of the layers.

The entry "steps" of a configuration::

    {"version": 1, "weights_id": 32 hexadecimal digits, "description": text, "list": [step, ...]}

or, of a model that cannot run step by step, ``{"version": 1, "why_not": reason}``. A step is one of::

    {"step": "lookup", "I": ids, "U": width, "arrays": {"weight": name}}
    {"step": "cell", "cell": "lstm", "I":, "H":, "U":, "projected":, "peepholes":, "reset_after":, "input_forget":,
     "clip": bits, "activations": [[name, bits of alpha, of beta], ...], "skip":, "storage": "int8", "planes": 1 or 2,
     "least": [bits, bits, bits], "arrays": {"weight_ih": name, "scale_ih": name, ...}}
    {"step": "dense", "I":, "U":, "activations": [one], "skip":, "arrays": {"weight": name, "bias": name}}
    {"step": "pointwise", "I":, "U":, "activations": [one]}

Arrays are named as the file names them. Numbers of float32 are the whole numbers of their bits: a reader in C needs no
decimal fractions, whose form follows the locale. "planes" and "least" say how the other operands of integers are
rounded (`fastlstm.storage.Form`): the planes of bytes of x, and the least of x, h and the projection's operand.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from .layout import Array
from .recurrent import Recurrent
from .spec import Spec, activation
from .steps import Affine, FramedStep, Lookup, Pointwise, Recurrence, steps_of
from .storage import MATRICES, SCALE, STORAGES, bounded, input_forms
from .streams.lists import identity_of

VERSION = 1
LEAST_CLIP = float(np.finfo(np.float32).tiny)  # a clip of 0 means none


def steps_entry(model: Any, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """The entry of a model whose file has these arrays.

    Parameters
    ----------
    model : layer, Sequential, or list
        As for `fastlstm.steps.steps_of`.
    arrays : dict of arrays
        All that the file holds, by name.
    """
    try:
        steps = steps_of(model, native=True)
        names = _Names(arrays)
        written = [_written(step, names) for step in steps]
    except (TypeError, ValueError) as error:
        return {"version": VERSION, "why_not": str(error)[:500]}
    return {
        "version": VERSION,
        "weights_id": identity_of(model)[1].hex(),
        "description": ", ".join(map(str, steps))[:500],
        "list": written,
    }


class _Names:
    """The names of a file's arrays by what they hold: steps have the arrays themselves."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = dict(arrays)

    def __call__(self, array: Array) -> str:
        """The name of an array of these bytes. Which of several that are equal makes no difference."""
        for name, other in self._arrays.items():
            if other.shape == array.shape and other.dtype == array.dtype and _same_bytes(other, array):
                return name
        raise ValueError(f"the file has no array of shape {array.shape} and dtype {array.dtype} that a step needs")


def _same_bytes(a: Array, b: Array) -> bool:
    """Whether two arrays of one shape and dtype have the same bytes; NaN equals itself."""
    if np.shares_memory(a, b):
        return True
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def _written(step: Any, names: _Names) -> dict[str, Any]:
    """A step in JSON's types."""
    if isinstance(step, FramedStep) or getattr(step, "frames", 1) > 1:
        raise ValueError(f"{step} is a part of signals, which model files have no form for")
    sizes = {"I": int(step.sizes[0]), "U": int(step.sizes[1])}
    if isinstance(step, Lookup):
        return {"step": "lookup", "I": len(step.weight), "U": sizes["U"], "arrays": {"weight": names(step.weight)}}
    if isinstance(step, Pointwise):
        return {"step": "pointwise", **sizes, "activations": [_activation(step.activation)]}
    if isinstance(step, Affine):
        arrays = {"weight": names(step.weight)} | ({} if step.bias is None else {"bias": names(step.bias)})
        activations = [_activation(step.activation)]
        return {"step": "dense", **sizes, "activations": activations, "skip": step.skip, "arrays": arrays}
    return {"step": "cell", **sizes, **_equation(step.spec), **_kept(step, names), "skip": step.skip}


def _equation(spec: Spec) -> dict[str, Any]:
    clip = 0.0 if spec.clip is None else max(spec.clip, LEAST_CLIP)
    return {
        "cell": spec.kind,
        "H": spec.H,
        "projected": bool(spec.proj_size),
        "peepholes": spec.peepholes,
        "reset_after": spec.kind == "gru" and spec.reset_after,
        "input_forget": spec.input_forget,
        "clip": _bits(clip),
        "activations": [_activation(f) for f in spec.activations],
    }


def _kept(step: Recurrence, names: _Names) -> dict[str, Any]:
    """How a cell's matrices are kept, and its arrays."""
    layer: Recurrent = step.layer
    spec, name = step.spec, layer._storages[step.number]
    storage = STORAGES[name]
    inputs = None if layer._quantised is None else layer._quantised.inputs
    forms = [
        input_forms(layer._specs, layer._storages, inputs)[step.number],
        storage.form(bounded(spec) and not spec.proj_size),
        storage.form(bounded(spec)),
    ]
    scales = {SCALE.format(matrix): matrix.replace("weight", "scale") for matrix in MATRICES}
    return {
        "storage": name,
        "planes": 2 if forms[0] is not None and forms[0].largest > storage.operand else 1,
        "least": [0 if form is None else _bits(form.least) for form in forms],
        "arrays": {scales.get(own, own): names(p) for own, p in step.params.items()},
    }


def _activation(given: Any) -> list[Any]:
    """[name, bits of alpha, bits of beta]"""
    if given == "softmax":
        return ["softmax", 0, 0]
    f = activation("identity" if given == "linear" else given)
    return [f.name, _bits(f.alpha), _bits(f.beta)]


def _bits(number: float) -> int:
    """The bits of the nearest float32, as a whole number."""
    bits: int = struct.unpack("<I", struct.pack("<f", np.float32(number)))[0]
    return bits
