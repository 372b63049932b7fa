"""Operators that only rearrange axes, as views of arrays: next to recurrent nodes they cost no copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..files import FileError
from ..layout import Array
from .graphs import Scope
from .messages import NodeProto

Dims = list[int | None]  # of a shape, as far as it is known


@dataclass
class View:
    """An operator that rearranges axes.

    Parameters
    ----------
    node : NodeProto
    of_array : function
        The view of an array.
    of_dims : function
        The shape of the view, of a shape that may be partly unknown.
    """

    node: NodeProto
    of_array: Callable[[Array], Array]
    of_dims: Callable[[Dims], Dims]

    def __call__(self, x: Array) -> Array:
        """The view.

        Raises
        ------
        ValueError
            The shape does not fit the operator; the message names the node.
        """
        try:
            return self.of_array(x)
        except ValueError as error:
            raise ValueError(f"{self.node.title} got an array of shape {x.shape}: {error}") from error


def view_of(node: NodeProto, scope: Scope) -> View | None:
    """The view that a node is, or None: another operator, or arguments that are known in a call only."""
    make = OPERATORS.get(node.op_type) if node.standard else None
    if make is None or not node.input or not node.input[0] or len(list(filter(None, node.output))) != 1:
        return None
    return make(node, scope)


def _ints(node: NodeProto, scope: Scope, attribute: str, place: int) -> list[int] | None:
    """Numbers that are an attribute, or a constant input; None where absent or known in a call only."""
    held = node.attributes.get(attribute)
    if held is not None:
        return list(held) if isinstance(held, list) else None
    name = node.input[place] if 0 < place < len(node.input) else ""
    if not name:
        return None
    try:
        array = scope.constant(name)
    except FileError:
        return None
    return [int(n) for n in array.reshape(-1)] if array.dtype.kind in "iu" and array.size <= 32 else None


def _identity(node: NodeProto, scope: Scope) -> View | None:
    return View(node, lambda x: x, lambda dims: dims)


def _transpose(node: NodeProto, scope: Scope) -> View | None:
    perm = _ints(node, scope, "perm", 0)
    if perm is None or sorted(perm) != list(range(len(perm))):
        return None
    axes = tuple(perm)
    return View(node, lambda x: x.transpose(axes), lambda dims: [dims[axis] for axis in axes])


def _squeeze(node: NodeProto, scope: Scope) -> View | None:
    axes = _ints(node, scope, "axes", 1)
    if axes is None:
        return None
    chosen = tuple(axes)

    def of_dims(dims: Dims) -> Dims:
        gone = {axis % len(dims) for axis in chosen}
        return [n for axis, n in enumerate(dims) if axis not in gone]

    return View(node, lambda x: x.squeeze(chosen), of_dims)


def _unsqueeze(node: NodeProto, scope: Scope) -> View | None:
    axes = _ints(node, scope, "axes", 1)
    if axes is None:
        return None
    chosen = tuple(axes)

    def of_dims(dims: Dims) -> Dims:
        rank = len(dims) + len(chosen)
        new = {axis % rank for axis in chosen}
        rest = iter(dims)
        return [1 if axis in new else next(rest) for axis in range(rank)]

    return View(node, lambda x: np.expand_dims(x, chosen), of_dims)


def _reshape(node: NodeProto, scope: Scope) -> View | None:
    shape = _ints(node, scope, "shape", 1)
    if shape is None or node.attributes.get("allowzero", 0) or any(n < -1 for n in shape):
        return None

    def of_array(x: Array) -> Array:
        return x.reshape([x.shape[axis] if n == 0 and axis < x.ndim else n for axis, n in enumerate(shape)])

    def of_dims(dims: Dims) -> Dims:
        return [dims[axis] if n == 0 and axis < len(dims) else n if n > 0 else None for axis, n in enumerate(shape)]

    return View(node, of_array, of_dims)


OPERATORS: dict[str, Callable[[NodeProto, Scope], View | None]] = {
    "Identity": _identity,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
}
