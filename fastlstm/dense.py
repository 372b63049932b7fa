"""`Dense`: the fully connected layer, and its fused softmax cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ._backends import choose, provides
from ._backends.numpy import cross_entropy
from .gradients import GradientLayout, Gradients
from .layer import Layer, Tape, check_tape
from .layout import Array, uniform
from .losses.base import share_of_row
from .quantise import Quantisation, check_floats, check_types
from .storage import SCALE, STORAGES, Kept
from .validation import checked_dy, checked_rows, flag, positive, seed_or_none
from .weighting import IGNORE_INDEX, labels


@dataclass
class DenseTape(Tape):
    """What `Dense.forward` kept."""

    x: Array  # (..., I)


class Dense(Layer):
    """A fully connected layer, y = x @ weight.T + bias, as PyTorch's Linear.

    Parameters
    ----------
    input_size, units : int
        I and U.
    bias : bool
    dtype : {"float32", "float64"}
    backend : str
        "auto", or a name from `fastlstm.backends()`; a forced one never falls back. (Backend numba computes dense
        layers with NumPy.)
    seed : int, optional
        Of the initial parameters, uniform in +-1/sqrt(I): ``weight`` (U, I) and ``bias`` (U,).

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; the message says which.
    BackendError
        The forced backend cannot be used, or does not have the dtype.
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
        super().__init__(dtype, backend)
        self.input_size, self.units = positive(input_size, "input_size"), positive(units, "units")
        self._tail = (self.input_size,)
        self.bias = flag(bias, "bias")
        self._connect()
        rng = np.random.default_rng(seed_or_none(seed))
        shapes = {"weight": (self.units, self.input_size)} | ({"bias": (self.units,)} if self.bias else {})
        self._params = {name: uniform(shape, self.input_size, rng, self.dtype) for name, shape in shapes.items()}
        self._layout = GradientLayout(shapes, self.dtype)

    # -------------------------------------------------------------------------------------------------- reduced storage
    _quantisation: Quantisation | None = None  # of `Sequential.quantize(dense=True)`

    @property
    def _quantised(self) -> Quantisation | None:
        return self._quantisation

    def _keep(self, how: Any) -> None:
        self._keep_as(Quantisation.from_config(how))

    def _keep_as(self, how: Quantisation) -> None:
        """Keep the weights in a reduced storage from now on; products take the rounded numbers as floats.

        Raises
        ------
        ValueError
            The weights have numbers that the storage does not hold; the layer is unchanged then.
        """
        kept = STORAGES[how.storages[0]].keep(self._params["weight"], "weight")
        scales = {} if kept.scales is None else {SCALE.format("weight"): kept.scales}
        rest = {name: p for name, p in self._params.items() if name != "weight"}
        self._replace({"weight": kept.values} | scales | rest, how)

    def _widen(self) -> None:
        """Keep the weights as floats again, with the numbers that were kept."""
        self._replace(self.floats(), None)

    def _replace(self, params: dict[str, Array], how: Quantisation | None) -> None:
        with self._lock:
            self._params, self._quantisation = params, how
            self._version += 1

    def floats(self) -> dict[str, Array]:
        """``weight`` (U, I) and ``bias`` (U,) in the layer's dtype: of a reduced storage, the numbers that it keeps."""
        if self._quantisation is None:
            return self.state_dict()
        kept = Kept(self._params["weight"], self._params.get(SCALE.format("weight")))
        return {"weight": kept.floats(self.dtype)} | ({"bias": self._params["bias"].copy()} if self.bias else {})

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """See `Layer.load_state_dict`. Weights in a reduced storage are loaded from arrays of that storage's type."""
        if self._quantisation is not None and isinstance(d, Mapping):
            check_types(self, self._params, d)
        super().load_state_dict(d)

    # ------------------------------------------------------------------------------------------------------------ calls
    def _choose(self) -> ModuleType:
        module = super()._choose()
        return module if provides(module, "dense") else choose("numpy", self.dtype.name)

    def _pack(self) -> Any:
        return self._module.dense_pack(self._params if self._quantisation is None else self.floats())

    def _block(self) -> Any:
        """The packed weights of the current version."""
        return self._blocks()[1]

    def _check_x(self, x: Any) -> Array:
        if type(x) is np.ndarray and x.dtype is self.dtype and x.flags.c_contiguous and x.shape[-1:] == self._tail:
            return x  # fast path: nothing to convert
        return np.ascontiguousarray(checked_rows(x, self.input_size, self.dtype), self.dtype)

    def _product(self, x: Array) -> Array:
        """(..., I) -> (..., U)."""
        y: Array = self._module.dense_forward(self._blocks()[1], x.reshape(-1, self.input_size))
        return y.reshape(*x.shape[:-1], self.units)

    def __call__(self, x: Any) -> Array:
        """y (..., U) for x (..., I), an array of the layer's dtype, for inference.

        Raises
        ------
        ValueError, TypeError
            x has another width or dtype.
        """
        return self._product(self._check_x(x))

    def forward(self, x: Any) -> tuple[Array, DenseTape]:
        """y for training, and the tape for one `backward`.

        Parameters
        ----------
        x : (..., I) array of the layer's dtype

        Returns
        -------
        y : (..., U) array
        tape : Tape
            Holds a copy of x.

        Raises
        ------
        ValueError, TypeError
            x has another width or dtype.
        """
        check_floats(self, "training")
        x = self._check_x(x).copy()
        return self._product(x), DenseTape(self, self.version, x)

    def backward(self, tape: DenseTape, dy: Any) -> tuple[Array, dict[str, Array]]:
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
        check_tape(tape, self, DenseTape)
        x, grads = tape.x, self._layout.zeros()
        dy = checked_dy(dy, (*x.shape[:-1], self.units), self.dtype)
        tape.used = True
        rows = np.ascontiguousarray(dy, self.dtype).reshape(-1, self.units)
        dx: Array = self._module.dense_backward(self._block(), x.reshape(-1, self.input_size), rows, grads)
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
        """Product, softmax, cross-entropy and all gradients in one call: a language model's head.

        The logits' gradient takes the place of the logits, so there is one array of N*U numbers instead of four. Rows
        that do not count cost no product.

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
            In nats.
        dx : (..., I) array
            0 in rows that do not count.
        grads : dict of arrays
            With `state_dict`'s keys and shapes.

        Raises
        ------
        TypeError, ValueError
            As `fastlstm.softmax_cross_entropy`.
        """
        check_floats(self, "training")
        x = self._check_x(x)
        flat, rows = labels(targets, (*x.shape[:-1], self.units), ignore_index, mask, weights)
        share = share_of_row(reduction, rows)
        kept, grads = rows.take(x.reshape(-1, self.input_size)), self._layout.zeros()
        if rows.weights is None:
            losses, dx = self._module.dense_cross_entropy(self._block(), kept, flat, share, grads)
            loss = float(losses.sum()) * share
        else:
            loss, dx = self._weighted_cross_entropy(kept, flat, rows.weights, share, grads)
        return loss, rows.spread(dx).reshape(x.shape), grads

    def _weighted_cross_entropy(
        self, x: Array, targets: Array, weights: Array, share: float, grads: Gradients
    ) -> tuple[float, Array]:
        """`cross_entropy` for rows x (K, I) of weights (K,), unfused: the fused kernel has one factor for all rows."""
        logits = self._product(x)
        losses = cross_entropy(logits, targets, 1.0)
        logits *= (weights * share).astype(logits.dtype)[:, None]
        return float(losses @ weights) * share, self._module.dense_backward(self._block(), x, logits, grads)
