"""NumPy's .npz archives, with arrays of lists too, for which NumPy would run a pickle. Nothing is run here."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

import numpy as np

from ..files import FileError, one_line
from ..layout import Array
from . import unpickle
from .archive import Archive
from .torch_values import CALLS, NumpyArray, NumpyType
from .unpickle import PickleError

MAX_ENTRY = 1 << 28  # bytes of one array


class _Type(NumpyType):
    """A NumPy dtype of numbers or of objects."""

    def __init__(self, code: Any, *rest: Any) -> None:
        self.of_objects = code in ("O", "O4", "O8", "|O")
        if not self.of_objects:
            super().__init__(code, *rest)

    def build(self, state: Any) -> None:
        if not self.of_objects:
            super().build(state)


class _Array(NumpyArray):
    """A NumPy array of numbers, or an array of objects along one axis as a list."""

    def build(self, state: Any) -> None:
        _version, shape, dtype, _fortran, data = state
        if not (isinstance(dtype, _Type) and dtype.of_objects):
            super().build(state)
            return
        if not isinstance(data, list) or shape != (len(data),):
            raise PickleError("it has an array of objects that is damaged, or has several axes")
        self.value = data  # type: ignore[assignment]


_CALLS = CALLS | {("numpy", "dtype"): _Type}
_CALLS |= {name: _Array for name in CALLS if name[1] == "_reconstruct"}


def read_npz(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The arrays of an archive by name.

    Returns
    -------
    arrays : dict
        An array of numbers as it is; an array of objects, each a list or an array of numbers, as a list of arrays.

    Raises
    ------
    OSError
        The file cannot be read.
    FileError
        It is no such archive, is damaged, or holds other objects.
    """
    with open(path, "rb") as file:
        try:
            archive = Archive(file, os.path.getsize(path))
            return {name.removesuffix(".npy"): _read(archive, name) for name in archive.names}
        except FileError as error:
            raise FileError(f"{path} cannot be read: {error}") from error


def _read(archive: Archive, name: str) -> Any:
    """One entry of an archive."""
    data = archive.read(name, MAX_ENTRY, compressed=True)
    file = io.BytesIO(data.data)
    try:
        shape, fortran, dtype = _header(file)
        if not dtype.hasobject:
            return np.frombuffer(data, dtype, -1 if np.prod(shape) else 0, file.tell()).reshape(
                shape, order="F" if fortran else "C"
            )
    except unpickle.DAMAGE as error:
        raise FileError(f"its entry {name!r:.80} is no array ({one_line(error)})") from error
    made = unpickle.load(file, len(data) - file.tell(), _CALLS, _no_persistent_ids)
    rows = made.value if isinstance(made, NumpyArray) else None
    if not isinstance(rows, list):
        raise FileError(f"its entry {name!r:.80} is no array of lists")
    return [_numbers(row, f"{name}[{at}]") for at, row in enumerate(rows)]


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether in Fortran's order, dtype), after which the file stands at the values."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return tuple(shape), bool(fortran), dtype


def _no_persistent_ids(_: Any) -> Any:
    raise PickleError("its pickle has a persistent id")


def _numbers(row: Any, name: str) -> Array:
    """An object of an array as an array of numbers."""
    value = row.value if isinstance(row, NumpyArray) else row
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, list) or not all(type(item) in (int, float) for item in value):
        raise FileError(f"{name} is {unpickle.describe(row)}, which is no list of numbers")
    try:
        return np.array(value, np.int64 if all(type(item) is int for item in value) else np.float64)
    except OverflowError as error:
        raise FileError(f"{name} has a number beyond 64 bits") from error
