"""Operators whose results are computed when all their inputs are constants: what exporters put round weights.

Source: the operators' definitions in onnx/defs (versions 1 to 26). Arguments that are attributes in old versions and
inputs in newer ones are taken from either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from .._readers.unpickle import DAMAGE
from ..files import FileError
from ..layout import Array
from .messages import NodeProto, TensorProto
from .tensors import TYPES, to_array

MAX_BYTES = 1 << 28  # of computed constants, besides GROWTH times those in the file
GROWTH = 4


class Room:
    """The memory that computed constants of one model may take."""

    def __init__(self) -> None:
        self.left = MAX_BYTES

    def read(self, array: Array) -> Array:
        """Count an array that was read from the file."""
        if array.dtype.kind == "O":
            raise FileError("its text tensors are no numbers")
        self.left += GROWTH * array.nbytes
        return array

    def take(self, shape: Sequence[int], itemsize: int = 8) -> None:
        """Reserve an array, before it is made."""
        self.left -= prod(max(0, int(n)) for n in shape) * itemsize
        if self.left < 0:
            raise FileError("its computed constants take too much memory for what is in the file")


class Arguments:
    """The inputs and attributes of a node whose inputs are constants."""

    def __init__(
        self,
        node: NodeProto,
        attributes: Mapping[str, Any],
        inputs: Sequence[Array | None],
        room: Room,
        folder: Any = None,
    ) -> None:
        self.node, self.attributes, self.inputs, self.room, self.folder = node, attributes, inputs, room, folder

    def __getitem__(self, place: int) -> Array:
        """An input that the operator needs."""
        found = self.optional(place)
        if found is None:
            raise FileError(f"{self.node.title} has no input {place}")
        return found

    def optional(self, place: int) -> Array | None:
        return self.inputs[place] if place < len(self.inputs) else None

    def ints(self, name: str, place: int = -1) -> list[int] | None:
        """Numbers that are an attribute, or the input at `place`; None where absent."""
        if name in self.attributes:
            return [int(n) for n in self.attributes[name]]
        found = self.optional(place) if place >= 0 else None
        return None if found is None else [int(n) for n in found.reshape(-1)]

    def int(self, name: str, default: int) -> int:
        return int(self.attributes.get(name, default))


def _constant(a: Arguments) -> Array:
    for name, value in a.attributes.items():
        if name == "value" and isinstance(value, TensorProto):
            return a.room.read(to_array(value, a.folder))
        if name in ("value_int", "value_ints"):
            return np.array(value, np.int64)
        if name in ("value_float", "value_floats"):
            return np.array(value, np.float32)
    raise FileError(f"{a.node.title} is a constant that is no tensor of numbers")


def _constant_of_shape(a: Arguments) -> Array:
    value = a.attributes.get("value")
    fill = np.zeros(1, np.float32) if value is None else a.room.read(to_array(value, a.folder))
    shape = [int(n) for n in a[0].reshape(-1)]
    a.room.take(shape, fill.itemsize)
    return np.full(shape, fill.reshape(-1)[0], fill.dtype)


def dtype_of(number: int) -> np.dtype[Any]:
    """The dtype of a type of ONNX, as `to_array` gives it."""
    of = TYPES.get(number)
    if of is None or of.dtype == "O":
        raise FileError(f"its type {number} is not that of numbers")
    return np.dtype(np.float32 if of.small is not None else of.dtype)


def _cast(a: Arguments) -> Array:
    to = a.attributes.get("to", 0)
    if isinstance(to, str):  # version 1: a name
        to = next((number for number, of in TYPES.items() if of.name == to.lower()), 0)
    of = TYPES.get(to)
    if of is not None and (of.small is not None or of.bits):  # rounding to what NumPy does not have
        raise FileError(f"{a.node.title} casts to {of.name}, which is not computed")
    dtype = dtype_of(to)
    a.room.take(a[0].shape, dtype.itemsize)
    return a[0].astype(dtype)


def _slice(a: Arguments) -> Array:
    starts, ends = a.ints("starts", 1), a.ints("ends", 2)
    axes, steps = a.ints("axes", 3), a.ints("steps", 4)
    if starts is None or ends is None:
        raise FileError(f"{a.node.title} does not say what it takes")
    parts = [slice(None)] * a[0].ndim
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = a[0].shape[axis]
        # A negative end beyond the beginning means "to the first", which Python writes as None.
        parts[axis] = slice(start, None if step < 0 and end < -size else end, step)
    return a[0][tuple(parts)]


def _concat(a: Arguments) -> Array:
    arrays = [a[k] for k in range(len(a.inputs))]
    a.room.take([sum(one.nbytes for one in arrays)], 1)
    return np.concatenate(arrays, a.int("axis", 1))


def _unsqueeze(a: Arguments) -> Array:
    axes = a.ints("axes", 1) or []
    rank = a[0].ndim + len(axes)
    if rank > 32:
        raise FileError(f"{a.node.title} makes an array of {rank} axes")
    return np.expand_dims(a[0], tuple(axes))


def _squeeze(a: Arguments) -> Array:
    axes = a.ints("axes", 1)
    return np.squeeze(a[0], None if axes is None else tuple(axes))


def _transpose(a: Arguments) -> Array:
    return a[0].transpose(a.ints("perm"))


def _reshape(a: Arguments) -> Array:
    shape = a.ints("shape", 1) or []
    if not a.int("allowzero", 0):
        shape = [a[0].shape[k] if n == 0 else n for k, n in enumerate(shape)]
    return a[0].reshape(shape)


def _flatten(a: Arguments) -> Array:
    axis = a.int("axis", 1)
    axis = axis + a[0].ndim if axis < 0 else axis
    return a[0].reshape(prod(a[0].shape[:axis]), prod(a[0].shape[axis:]))


def _split(a: Arguments) -> list[Array]:
    axis, sizes = a.int("axis", 0), a.ints("split", 1)
    if sizes is None:
        parts = max(1, a.int("num_outputs", len(a.node.output)))
        each = -(-a[0].shape[axis] // parts)
        sizes = [each] * parts
    if len(sizes) != len(a.node.output):
        raise FileError(f"{a.node.title} has {len(a.node.output)} outputs, expected {len(sizes)}")
    return np.split(a[0], np.cumsum(sizes)[:-1], axis)


def _gather(a: Arguments) -> Array:
    axis, ids = a.int("axis", 0), a[1]
    a.room.take([*a[0].shape[:axis], *ids.shape, *a[0].shape[axis:][1:]], a[0].itemsize)
    return np.take(a[0], ids, axis)


def _expand(a: Arguments) -> Array:
    shape = np.broadcast_shapes(a[0].shape, tuple(int(n) for n in a[1].reshape(-1)))
    a.room.take(shape, a[0].itemsize)
    return np.broadcast_to(a[0], shape).copy()


def _tile(a: Arguments) -> Array:
    repeats = [int(n) for n in a[1].reshape(-1)]
    a.room.take([*a[0].shape, *repeats], a[0].itemsize)
    return np.tile(a[0], repeats)


def _dequantize(a: Arguments) -> Array:
    """(x - zero point) * scale: one scale for all, for each place of an axis, or for each block along it."""
    x, scale, zero = a[0], a[1], a.optional(2)
    a.room.take(x.shape, 16)
    if scale.ndim and scale.size > 1:
        axis, block = a.int("axis", 1) % x.ndim, a.int("block_size", 0)
        if scale.ndim == x.ndim:
            reach = block or -(-x.shape[axis] // scale.shape[axis])
            cut = [slice(None)] * x.ndim
            cut[axis] = slice(0, x.shape[axis])
            a.room.take(x.shape, 16)
            scale = scale.repeat(reach, axis)[tuple(cut)]
            zero = None if zero is None else zero.repeat(reach, axis)[tuple(cut)]
        else:
            shape = [-1 if k == axis else 1 for k in range(x.ndim)]
            scale, zero = scale.reshape(shape), None if zero is None else zero.reshape(shape)
    whole = x.astype(np.float64) if zero is None else x.astype(np.float64) - zero.astype(np.float64)
    return (whole * scale.astype(np.float64)).astype(scale.dtype)


def _broadcast(function: Callable[..., Array]) -> Callable[[Arguments], Array]:
    """An element-wise operator of all inputs, in the type of the last."""

    def compute(a: Arguments) -> Array:
        arrays = [a[k] for k in range(len(a.inputs))]
        a.room.take(np.broadcast_shapes(*(one.shape for one in arrays)))
        with np.errstate(all="ignore"):
            return np.asarray(function(*arrays)).astype(arrays[-1].dtype, copy=False)

    return compute


def _divide(x: Array, y: Array) -> Array:
    """A quotient; of integers without its fraction, towards 0."""
    return np.trunc(x / y) if np.result_type(x, y).kind in "iu" else x / y


Computed = Array | list[Array]
OPERATORS: dict[str, Callable[[Arguments], Computed]] = {
    "Identity": lambda a: a[0],
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Cast": _cast,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Split": _split,
    "Gather": _gather,
    "Expand": _expand,
    "Tile": _tile,
    "Shape": lambda a: np.array(a[0].shape[a.int("start", 0) : a.attributes.get("end")], np.int64),
    "Size": lambda a: np.array(a[0].size, np.int64),
    "DequantizeLinear": _dequantize,
    "Add": _broadcast(np.add),
    "Sub": _broadcast(np.subtract),
    "Mul": _broadcast(np.multiply),
    "Div": _broadcast(_divide),
    "Neg": _broadcast(np.negative),
    "Sqrt": _broadcast(np.sqrt),
    "Where": _broadcast(np.where),
}


def foldable(node: NodeProto) -> bool:
    """Whether the operator is one that is computed here."""
    return node.op_type in OPERATORS and (
        node.standard or (node.domain == "com.microsoft" and node.op_type == "DequantizeLinear")
    )


def fold(node: NodeProto, arguments: Arguments) -> list[Array]:
    """The outputs of a foldable node.

    Raises
    ------
    FileError
        Its inputs or attributes do not fit the operator; the message names the node.
    """
    try:
        found = OPERATORS[node.op_type](arguments)
    except FileError:
        raise
    except (*DAMAGE, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{node.title} cannot be computed: {reason:.200}") from error
    results = found if isinstance(found, list) else [found]
    for result in results:
        if result.size and result.base is None:  # memory of its own
            arguments.room.take(result.shape, result.itemsize)
    return results
