"""Token ids to vectors."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from .._backends import choose, provides
from ..layer import Layer, check_tape
from ..layout import Array
from ..memory import buffers
from ..validation import check_shape, checked_dy, flag, positive
from .base import Module, ModuleTape, Shape, regularized
from .initializers import INITIALIZERS, initializer


class Table(Layer):
    """One row of numbers for each id: ``weight`` (V, E), as PyTorch's Embedding."""

    def __init__(self, weight: Array, backend: str) -> None:
        super().__init__(weight.dtype, backend)
        self._params = {"weight": weight}
        self._connect()

    def _choose(self) -> ModuleType:
        return choose(self._backend, self.dtype.name)


class Embedding(Module):
    """A vector for each token id: (B, T) ids -> (B, T, output_dim).

    Parameters
    ----------
    input_dim : int
        V: ids lie between 0 and V - 1.
    output_dim : int
        E, the vectors' width.
    mask_zero : bool
        Id 0 is padding: the layers behind this one leave its steps out.
    weights : (V, E) array, optional
        Given vectors; ``trainable=False`` keeps them as they are.
    embeddings_initializer : str
        A name of `fastlstm.nn.INITIALIZERS`.
    embeddings_regularizer : L1L2, optional
    trainable, dtype, backend, seed
        As in `Module`.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; the message says which.
    """

    REGULARIZED = (("embeddings_regularizer", "weight"),)

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        mask_zero: bool = False,
        *,
        weights: Any = None,
        embeddings_initializer: str = "uniform",
        embeddings_regularizer: Any = None,
        trainable: bool = True,
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(trainable=trainable, dtype=dtype, backend=backend, seed=seed)
        self.input_dim, self.output_dim = positive(input_dim, "input_dim"), positive(output_dim, "output_dim")
        self.mask_zero = flag(mask_zero, "mask_zero")
        self.embeddings_initializer = initializer(embeddings_initializer, "embeddings_initializer")
        regularized(self, {"embeddings_regularizer": embeddings_regularizer})
        if weights is not None:
            given = np.asarray(weights)
            check_shape(given, (self.input_dim, self.output_dim), "weights", "(input_dim, output_dim)")
            if not np.isfinite(given).all():
                raise ValueError("weights hold NaN or infinity")
            self._core = Table(np.array(given, self.dtype, order="C"), backend)

    def _check_shape(self, shape: Shape) -> None:
        if len(shape) != 1:
            raise ValueError(f"Embedding takes token ids (batch, T), got samples of shape {shape}")

    def _width(self, shape: Shape) -> Any:
        return None  # any number of steps

    def _make(self, shape: Shape) -> Layer:
        if self._core is not None:
            return self._core
        drawn = INITIALIZERS[self.embeddings_initializer]((self.input_dim, self.output_dim), self._initial_rng)
        return Table(drawn.astype(self.dtype), self._backend)

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape, self.output_dim)

    def output_mask(self, x: Any, mask: Array | None) -> Array | None:
        """Where ids are not 0, with mask_zero; and where the input's mask says."""
        if not self.mask_zero:
            return mask
        there: Array = np.asarray(x) != 0
        return there if mask is None else there & mask

    def _ids(self, x: Any) -> Array:
        ids = self._enter(x)
        self.check_ids(ids)
        return np.array(ids, np.int64)

    def check_ids(self, ids: Array) -> None:
        """Raise TypeError or ValueError unless all are rows of the table."""
        if ids.dtype.kind not in "iu":
            raise TypeError(f"Embedding takes token ids, which are integers, got dtype {ids.dtype}: x.astype('int64')")
        if ids.size and (ids.min() < 0 or ids.max() >= self.input_dim):
            raise ValueError(
                f"token ids must lie between 0 and input_dim - 1 = {self.input_dim - 1}, got {ids.min()} to {ids.max()}"
            )

    def __call__(self, x: Any, mask: Any = None) -> Array:
        """(B, T) ids -> (B, T, E)."""
        ids = self._ids(x)
        return self._take(ids)

    def _take(self, ids: Array) -> Array:
        y = buffers.empty((*ids.shape, self.output_dim), self.dtype)
        np.take(self.core._live()["weight"], ids, axis=0, out=y, mode="clip")  # checked before; clip needs no buffer
        return y

    def forward(self, x: Any, mask: Any = None) -> tuple[Array, ModuleTape]:
        """(B, T) ids -> (B, T, E), and the tape."""
        ids = self._ids(x)
        return self._take(ids), self._tape(ids=ids)

    def backward(self, tape: ModuleTape, dy: Any) -> tuple[None, dict[str, Array]]:
        """None, since ids have no gradient, and that of ``weight`` (V, E)."""
        check_tape(tape, self, ModuleTape)
        dy = checked_dy(dy, (*tape.kept["ids"].shape, self.output_dim), self.dtype)
        ids = self._use(tape)["ids"].reshape(-1)
        grad = buffers.zeros((self.input_dim, self.output_dim), self.dtype)
        backend = self._choose()
        summing = backend if provides(backend, "embedding") else choose("numpy", self.dtype.name)
        summing.add_rows(grad, ids, np.ascontiguousarray(dy).reshape(-1, self.output_dim))
        return None, {"weight": grad}
