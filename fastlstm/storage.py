"""The table of storages: how the numbers of a matrix are kept, and what a product with such a matrix is.

Storage is not dtype. The dtype is that of the arithmetic, of inputs, outputs and states; the storage is that of the
weight matrices. Biases and peepholes always stay in the dtype.

A matrix of floats is multiplied as it is: each number is widened to the dtype. A matrix of integers has one scale for
each output, and its products are products of integers. The rows of the other operand are rounded to integers too, each
with a scale of its own (`Form`). With W (M, K) of scales s (M,) and rows x (b, K) of scales u (b,)::

    y[b, m] = start[b, m] + s[m] u[b] (x_0 W[m, 0] + ... + x_k W[m, k])

The sum of integers is exact; then it is rounded to the dtype. The product s u is rounded to the dtype, and scaling and
adding are one fused multiply-add. Where the sum might not fit 32 bits, k is cut into stretches (`stretch`), each with a
fused multiply-add, in order. A token id adds s[m] W[m, id], by one fused multiply-add as well. All roundings are to the
nearest, ties to even. No number depends on other rows, so results do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .layout import Array
from .spec import Spec

LEAST = 2.0**-100  # rows whose largest number is smaller count as zeros: 1 / LEAST and its like are no infinity
SCALE = "{}_scale"  # the name of the scales of a parameter that is a matrix of integers
MATRICES = ("weight_ih", "weight_hh", "weight_hr")  # the parameters of a direction that a storage concerns

# (largest integer of the matrix, of the other operand) -> how many products a signed 32-bit sum holds, as a power of 2.
# 8 bits by 8 bits leaves room for an operand that is moved up by 128, to be unsigned bytes.
STRETCHES = {(127, 127): 65536, (127, 8191): 2048, (8191, 8191): 32}


# ------------------------------------------------------------------------------------------------- the other operand
@dataclass(frozen=True)
class Form:
    """How the rows of the other operand of a matrix of integers are rounded to integers.

    A row v is rint(v * (largest / m)) with the scale m / largest, where m = max(least, |v_0|, ... |v_k|), in v's dtype.
    A row with NaN or infinity has the scale NaN, so that its products are NaN.

    Parameters
    ----------
    largest : int
        The largest integer: 127 for 8 bits, 8191 for 14 bits (in 16).
    least : float
        Lower bound of m. 1 gives rows within [-1, 1] one fixed scale; `LEAST` gives each row a scale of its own.
    """

    largest: int
    least: float = LEAST

    def rounded(self, rows: Array) -> tuple[Array, Array]:
        """((b, K) whole numbers, (b,) scales) of rows (b, K), in their dtype; zeros where the scale is NaN."""
        number = rows.dtype.type
        m = np.maximum(np.abs(rows).max(axis=1, initial=0), number(self.least))
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(m)
            m = np.where(finite, m, number(1))
            whole = np.rint(rows * (number(self.largest) / m)[:, None])
        whole = np.where(finite[:, None], whole, number(0))
        return whole, np.where(finite, m / number(self.largest), number(np.nan))


def bounded(spec: Spec) -> bool:
    """Whether h, before a projection, stays within [-1, 1] if the initial one does.

    It does if every gate is within [0, 1] and the other activations are within [-1, 1].
    """
    gates = {"sigmoid", "hard_sigmoid_keras2"}
    others = gates | {"tanh", "softsign"}
    names = [f.name if f.name != "hard_sigmoid" else "hard_sigmoid_keras2" for f in spec.activations]
    if spec.kind == "lstm":
        return names[0] in gates and names[2] in others
    return names[-1] in others and (spec.kind == "rnn" or names[0] in gates)


# ----------------------------------------------------------------------------------------------------------- storages
@dataclass(frozen=True)
class Kept:
    """A matrix as a storage keeps it.

    Parameters
    ----------
    values : (M, K) array
    scales : (M,) float32 array, optional
        For integers: entry [m, k] stands for values[m, k] * scales[m].
    """

    values: Array
    scales: Array | None = None

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def floats(self, dtype: Any) -> Array:
        """(M, K) the numbers that it stands for."""
        values: Array = self.values.astype(dtype)
        return values if self.scales is None else values * self.scales[:, None].astype(dtype)


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
        The largest finite number; of integers, the largest that is used.
    rounding : str
        How other numbers are rounded, in words.
    operand : int
        The largest integer of the other operand; 0 for storages of floats.
    pairs : bool
        Integers only: two neighbours (k even, k + 1) of like sign add up to at most 128, so that their products with
        unsigned bytes add up within 16 bits.
    """

    name: str
    bytes: int
    largest: float
    rounding: str
    operand: int = 0
    pairs: bool = False

    def keep(self, w: Array, name: str = "the matrix") -> Kept:
        """A copy of a float matrix (M, K) as this storage keeps it.

        Raises
        ------
        ValueError
            A finite number is larger than `largest` or, for integers, a number is not finite; the message calls the
            matrix `name`.
        """
        return self._integers(w, name) if self.operand else self._floats(w, name)

    def _floats(self, w: Array, name: str) -> Kept:
        with np.errstate(over="ignore"):
            kept: Array = np.array(w, self.name, order="C")
        lost = np.isinf(kept) & np.isfinite(w)
        if lost.any():
            raise ValueError(
                f"{name} has the entry {float(w[lost][0]):g}, but storage {self.name} holds numbers up to "
                f"{self.largest:g}: scale the weights down, or keep them as float32"
            )
        return Kept(kept)

    def _integers(self, w: Array, name: str) -> Kept:
        """The scale of a row is its largest |w|, or its largest sum of a pair of like sign, over `largest`."""
        if not np.isfinite(w).all():
            bad = float(w[~np.isfinite(w)][0])
            raise ValueError(
                f"{name} has the entry {bad:g}, for which storage {self.name} has no integer: mend the weights"
            )
        exact = w.astype(np.float64)
        m = np.abs(exact).max(axis=1, initial=0)
        if self.pairs and w.shape[1] > 1:
            even = w.shape[1] // 2 * 2
            first, second = exact[:, 0:even:2], exact[:, 1:even:2]
            m = np.maximum(m, np.where(first * second > 0, np.abs(first + second), 0).max(axis=1))
        with np.errstate(over="ignore"):
            scales = (m / self.largest).astype(np.float32)
        scales[m / self.largest < np.finfo(np.float32).tiny] = 1  # zeros, and numbers too small for float32's exponent
        return Kept(np.rint(exact / scales[:, None].astype(np.float64)).astype(self.name), scales)

    def matrix(self, params: Mapping[str, Array], name: str) -> Kept:
        """A parameter as this storage keeps it: rounded now if it is float, else with the scales beside it.

        Parameters
        ----------
        params : dict of arrays
            `name` (M, K) and, where it is in this storage already, its `SCALE` (M,).
        name : str

        Raises
        ------
        ValueError
            See `keep`.
        """
        w = params[name]
        if self.operand and w.dtype.name == self.name:
            kept = Kept(w, params[SCALE.format(name)])
            self._check(kept, name)
            return kept
        return self.keep(w, name)

    def _check(self, kept: Kept, name: str) -> None:
        """Raise ValueError where integers are larger than `keep` makes them, so that sums might not fit."""
        q, K = kept.values, kept.values.shape[1] // 2 * 2
        wide = int(q.max(initial=0)) > self.largest or int(q.min(initial=0)) < -self.largest
        if self.pairs and not wide:
            sums = q[:, 0:K:2].astype(np.int16) + q[:, 1:K:2]
            wide = bool(K) and (int(sums.max()) > 128 or int(sums.min()) < -128)
        if wide:
            raise ValueError(
                f"{name} has integers that storage {self.name} never has: they were changed after quantize()"
            )

    def form(self, of_bounded: bool = False) -> Form | None:
        """How the other operand is rounded: rows within [-1, 1], or any. None for storages of floats."""
        return Form(self.operand, 1.0 if of_bounded else LEAST) if self.operand else None


def _float(name: str) -> Storage:
    numbers: Any = np.finfo(name)
    return Storage(name, numbers.bits // 8, float(numbers.max), "to the nearest number, ties to even (IEEE 754)")


STORAGES: dict[str, Storage] = {
    **{name: _float(name) for name in ("float32", "float64", "float16")},
    "int8": Storage("int8", 1, 127, "to the nearest multiple of the row's scale, ties to even", 127, pairs=True),
    "int16": Storage("int16", 2, 8191, "to the nearest multiple of the row's scale, ties to even", 8191),
}
INPUTS = {"int8": 127, "int16": 8191}  # the largest integer of the first layer's x, by the name of the choice


def input_forms(
    specs: Sequence[Sequence[Spec]], storages: Sequence[str], inputs: str | None = None
) -> list[Form | None]:
    """How each layer's x is rounded. The x of every layer but the first is the h of the layer below.

    Parameters
    ----------
    specs : L lists of D specs
    storages : L names of `STORAGES`
    inputs : {"int8", "int16"}, optional
        For the first layer; None: its storage's own.

    Returns
    -------
    forms : list of L forms, None for a storage of floats
    """
    forms: list[Form | None] = []
    for layer, name in enumerate(storages):
        below = specs[layer - 1] if layer else ()
        form = STORAGES[name].form(bool(below) and all(bounded(spec) and not spec.proj_size for spec in below))
        if form is not None and not layer and inputs is not None:
            form = replace(form, largest=INPUTS[inputs])
        forms.append(form)
    return forms


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
