"""The table of storages: how the numbers of a matrix are kept.

Storage is not dtype. The dtype is that of the arithmetic, of inputs, outputs and states; the storage is that of the
packed weight matrices. Biases and peepholes always stay in the dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .layout import Array


@dataclass(frozen=True)
class Storage:
    """One way of keeping a matrix.

    Parameters
    ----------
    name : str
        Also NumPy's name of the numbers' type.
    bytes : int
        Bytes of one number.
    largest : float
        The largest finite number.
    rounding : str
        How other numbers are rounded, in words.
    """

    name: str
    bytes: int
    largest: float
    rounding: str

    def keep(self, w: Array, name: str = "the matrix") -> Array:
        """A contiguous copy of a float matrix as this storage keeps it.

        Raises
        ------
        ValueError
            A finite number is larger than `largest`; the message calls the matrix `name`.
        """
        with np.errstate(over="ignore"):
            kept: Array = np.array(w, self.name, order="C")
        lost = np.isinf(kept) & np.isfinite(w)
        if lost.any():
            raise ValueError(
                f"{name} has the entry {float(w[lost][0]):g}, but storage {self.name} holds numbers up to "
                f"{self.largest:g}: scale the weights down, or keep them as float32"
            )
        return kept


def _float(name: str) -> Storage:
    numbers: Any = np.finfo(name)
    return Storage(name, numbers.bits // 8, float(numbers.max), "to the nearest number, ties to even (IEEE 754)")


STORAGES: dict[str, Storage] = {name: _float(name) for name in ("float32", "float64", "float16")}


def problem(storage: str, dtype: str, of_backend: tuple[str, ...]) -> str | None:
    """Why a backend cannot keep weights in this storage for layers of this dtype, with the cure; None where it can.

    Parameters
    ----------
    storage, dtype : str
    of_backend : tuple of str
        The backend's storages.
    """
    if storage not in STORAGES:
        return f"knows no storage {storage!r}: use one of {', '.join(of_backend)}"
    if storage not in of_backend:
        return f"does not keep weights as {storage}, only as {', '.join(of_backend)}: use one of these"
    if STORAGES[storage].bytes > STORAGES[dtype].bytes:
        return f"does not keep weights as {storage} for a layer of {dtype}: use storage {dtype}"
    return None
