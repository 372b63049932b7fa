"""Layers beside the recurrent ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._backends import choose
from .._backends.numpy import cross_entropy
from ..layer import Layer, Tape
from ..layout import Array, uniform
from ..losses.base import share_of_row
from ..packing import Batch
from ..validation import as_numbers, check_shape, flag, float_dtype, positive, seed_or_none
from ..weighting import IGNORE_INDEX, labels


class Dense(Layer):
    """A fully connected layer, y = x @ weight.T + bias, as PyTorch's Linear.

    Parameters
    ----------
    input_size, units : int
        I and U.
    bias : bool
    dtype : {"float32", "float64"}
    backend : str
        "auto", or a name from `fastlstm.backends()`; a forced one never falls back. (numba has no dense layer of its
        own: there it is NumPy's.)
    seed : int, optional
        Of the initial parameters, uniform in +-1/sqrt(I): ``weight`` (U, I) and ``bias`` (U,).

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; the message says which.
    BackendError
        The forced backend cannot be used, or has not this dtype.
    """

    def __init__(
        self,
        input_size: int,
        units: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.input_size, self.units = positive(input_size, "input_size"), positive(units, "units")
        self.bias = flag(bias, "bias")
        self.dtype = float_dtype(dtype)
        self._backend = backend
        self._connect()
        rng = np.random.default_rng(seed_or_none(seed))
        shapes = {"weight": (self.units, self.input_size)} | ({"bias": (self.units,)} if self.bias else {})
        self._params = {name: uniform(shape, self.input_size, rng, self.dtype) for name, shape in shapes.items()}

    def _connect(self) -> None:
        """Choose the backend; done at construction and after unpickling, perhaps on another machine."""
        module = choose(self._backend, self.dtype.name)
        self._module = module if hasattr(module, "dense_forward") else choose("numpy", self.dtype.name)
        self._packed: tuple[int, Any] | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._connect()

    def __repr__(self) -> str:
        shown = [str(self.input_size), str(self.units)]
        shown += [] if self.bias else ["bias=False"]
        shown += [f"dtype='{self.dtype}'"] if self.dtype != np.float32 else []
        return f"Dense({', '.join(shown)})"

    def _check_x(self, x: Any) -> Array:
        x = as_numbers(x, "x", self.dtype)
        if x.ndim == 0 or x.shape[-1] != self.input_size:
            raise ValueError(f"x has shape {x.shape}, its last axis must be input_size = {self.input_size}")
        return np.ascontiguousarray(x, self.dtype)

    def _block(self) -> Any:
        """The packed weights, packed anew only after a change."""
        packed = self._packed
        if packed is None or packed[0] != self._version:
            with self._lock:
                packed = self._packed = self._version, self._module.dense_pack(self._params)
        return packed[1]

    def _product(self, x: Array) -> Array:
        """(..., I) -> (..., U)."""
        y: Array = self._module.dense_forward(self._block(), x.reshape(-1, self.input_size))
        return y.reshape(*x.shape[:-1], self.units)

    def __call__(self, x: Any) -> Array:
        """y (..., U) for x (..., I), for inference."""
        return self._product(self._check_x(x))

    def forward(self, x: Any) -> tuple[Array, Tape]:
        """y for training, and the tape for one `backward`.

        Parameters
        ----------
        x : (..., I) array of the layer's dtype

        Returns
        -------
        y : (..., U) array
        tape : Tape
            Holds a copy of x.
        """
        x = self._check_x(x).copy()
        tape = Tape(self, self.version, Batch.of(1, x.size // self.input_size, None), False, [x], [], [])
        return self._product(x), tape

    def backward(self, tape: Tape, dy: Any) -> tuple[Array, dict[str, Array]]:
        """Gradients of x and of the parameters. Uses up the tape.

        Parameters
        ----------
        tape : Tape
            Of this layer's `forward`, with the weights unchanged since.
        dy : (..., U) array, like y

        Returns
        -------
        dx : (..., I) array, like x
        grads : dict of arrays
            With `state_dict`'s keys and shapes.

        Raises
        ------
        RuntimeError
            The tape was used before, belongs to another layer, or the weights have changed.
        ValueError, TypeError
            dy does not fit; the tape still serves then.
        """
        self._check_tape(tape)
        x = tape.x[0]
        dy = as_numbers(dy, "dy", self.dtype)
        check_shape(dy, (*x.shape[:-1], self.units), "dy", "the shape of y")
        tape.used = True
        rows = np.ascontiguousarray(dy, self.dtype).reshape(-1, self.units)
        dx, grads = self._module.dense_backward(self._block(), x.reshape(-1, self.input_size), rows)
        return dx.reshape(x.shape), grads

    def cross_entropy(
        self,
        x: Any,
        targets: Any,
        reduction: str = "mean",
        *,
        ignore_index: int | None = IGNORE_INDEX,
        mask: Any = None,
        weights: Any = None,
    ) -> tuple[float, Array, dict[str, Array]]:
        """Product, softmax, cross-entropy and all gradients in one: a language model's head.

        The logits' gradient takes the place of the logits, so there is one array of N*U numbers, not four. Rows that do
        not count cost no product.

        Parameters
        ----------
        x : (..., I) array of the layer's dtype
        targets : (...) integer array
            The right class of every row, or `ignore_index`.
        reduction : {"mean", "sum"}
            Over the rows that count; see `fastlstm.softmax_cross_entropy`.
        ignore_index : int or None
            Rows with this target do not count.
        mask : (...) bool array, optional
            True where a row counts.
        weights : (...) array, optional
            Multiply the rows' losses.

        Returns
        -------
        loss : float
        dx : (..., I) array
            0 in rows that do not count.
        grads : dict of arrays

        Raises
        ------
        TypeError, ValueError
            As `fastlstm.softmax_cross_entropy`.
        """
        x = self._check_x(x)
        flat, rows = labels(targets, (*x.shape[:-1], self.units), ignore_index, mask, weights)
        share = share_of_row(reduction, rows)
        kept = rows.take(x.reshape(-1, self.input_size))
        if rows.weights is None:
            losses, dx, grads = self._module.dense_cross_entropy(self._block(), kept, flat, share)
            loss = float(losses.sum()) * share
        else:
            loss, dx, grads = self._weighted_cross_entropy(kept, flat, rows.weights, share)
        return loss, rows.spread(dx).reshape(x.shape), grads

    def _weighted_cross_entropy(
        self, x: Array, targets: Array, weights: Array, share: float
    ) -> tuple[float, Array, dict[str, Array]]:
        """The same for rows x (K, I) of weights (K,), step by step: the fused kernel knows one factor for all rows."""
        logits = self._product(x)
        losses = cross_entropy(logits, targets, 1.0)
        logits *= (weights * share).astype(logits.dtype)[:, None]
        return float(losses @ weights) * share, *self._module.dense_backward(self._block(), x, logits)
