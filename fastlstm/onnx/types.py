"""ONNX's types of values: as ONNX Runtime writes them ("tensor(float)"), and as NumPy's dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..validation import as_array, conversion
from .messages import Dimension, TensorShapeProto, TensorType, TypeProto, ValueInfoProto
from .tensors import TYPES

# ONNX Runtime's names of the types of numbers: their number in TensorProto.DataType.
NAMES = {of.name: number for number, of in TYPES.items() if of.name not in ("float32", "float64")}
NAMES |= {"float": 1, "double": 11}
NAME_OF = {number: name for name, number in NAMES.items()}
# Those that NumPy has, and that pass between ONNX Runtime and NumPy as they are.
PLAIN = {number: np.dtype(of.dtype) for number, of in TYPES.items() if of.small is None and not of.bits}


@dataclass(frozen=True)
class Argument:
    """An input or an output of a model, like ONNX Runtime's NodeArg.

    Attributes
    ----------
    name : str
    type : str
        Such as "tensor(float)"; "" where the model does not say it.
    shape : list
        An int, a name or None for each axis; empty where the model does not say it.
    """

    name: str
    type: str
    shape: list[int | str | None]

    def __str__(self) -> str:
        return f"{self.name} {self.type} ({', '.join('?' if n is None else str(n) for n in self.shape)})".strip()

    @classmethod
    def of(cls, value: ValueInfoProto) -> Argument:
        held = None if value.type is None else value.type.tensor_type
        if held is None:
            return cls(value.name, "", [])
        dims = [] if held.shape is None else held.shape.dim
        shape = [d.dim_value if d.dim_value is not None else d.dim_param or None for d in dims]
        return cls(value.name, f"tensor({NAME_OF.get(held.elem_type, held.elem_type)})", shape)


def tensor_type(number: int, dims: Sequence[Any] | None) -> TypeProto:
    """The type of a tensor; of dims, those that are ints above 0 are kept."""
    shape = None
    if dims is not None:
        known = [n if isinstance(n, int) and n > 0 else None for n in dims]
        shape = TensorShapeProto(dim=[Dimension(dim_value=n) for n in known])
    return TypeProto(tensor_type=TensorType(elem_type=number, shape=shape))


def parsed(text: str, dims: Sequence[Any]) -> TypeProto | None:
    """The type that ONNX Runtime gives as text, or None: no tensor, or of numbers that NumPy does not have."""
    number = NAMES.get(text.removeprefix("tensor(").removesuffix(")")) if text.startswith("tensor(") else None
    return None if number not in PLAIN else tensor_type(number, dims)


class Check:
    """What a model says of one of its inputs.

    Parameters
    ----------
    expected : ValueInfoProto
    """

    def __init__(self, expected: ValueInfoProto) -> None:
        held = None if expected.type is None else expected.type.tensor_type
        self._expected = expected
        self._dtype = None if held is None else PLAIN.get(held.elem_type)
        self._sizes = None if held is None or held.shape is None else [d.dim_value for d in held.shape.dim]

    def __call__(self, value: Any) -> Any:
        """The value; as an array, if it is to be a tensor.

        Raises
        ------
        ValueError, TypeError
            Its type, number of axes or a fixed size is another one.
        """
        dtype, sizes, name = self._dtype, self._sizes, self._expected.name
        if dtype is None:
            return value
        array = value if type(value) is np.ndarray else as_array(value, f"the input {name!r}")
        if array.dtype != dtype and not (dtype.kind == "O" and array.dtype.kind in "USO"):
            cure = conversion(value, array, "value", dtype)
            raise TypeError(f"the input {name!r} takes {dtype}, got {array.dtype}{cure}")
        if sizes is not None:
            shape, fits = array.shape, len(sizes) == array.ndim
            if fits:
                for wanted, size in zip(sizes, shape, strict=True):
                    fits = fits and (wanted is None or wanted == size)
            if not fits:
                shown = ", ".join(str(n) for n in Argument.of(self._expected).shape)
                raise ValueError(f"the input {name!r} takes the shape ({shown}), got {shape}")
        return array
