"""One step of one layer, for loops that users write themselves: `LSTMCell`, `GRUCell`, `RNNCell`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .layer import Layer, Tape
from .layout import Array
from .recurrent import GRU, LSTM, RNN, Recurrent, State
from .validation import as_array, check_shape, checked_mask


class Cell(Layer):
    """One step of one layer. Use `LSTMCell`, `GRUCell` or `RNNCell`.

    A cell is a layer of which every call sees one step; its parameters carry PyTorch's cell names, without a suffix.
    """

    def __init__(self, layer: Recurrent) -> None:
        super().__init__()
        self._layer = layer
        self._params = {name.removesuffix("_l0"): p for name, p in layer._params.items()}

    @property
    def version(self) -> int:
        """How often the parameters have changed."""
        return self._layer.version

    @contextmanager
    def update(self) -> Iterator[dict[str, Array]]:
        """The live parameters, to be changed in place."""
        with self._layer.update(), super().update() as params:
            yield params

    @property
    def backend(self) -> str:
        """The backend in use."""
        return self._layer.backend

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of parameters, input and state."""
        dtype: np.dtype[Any] = self._layer.dtype
        return dtype

    def __repr__(self) -> str:
        return repr(self._layer).replace("(", "Cell(", 1)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._params = {name.removesuffix("_l0"): p for name, p in self._layer._params.items()}

    def _wide(self, state: Any, name: str, batch: tuple[int, ...]) -> Any:
        """A cell's state, (B, H) or (H,), as the layer's (1, B, H) or (1, H)."""
        if state is None or (isinstance(state, (tuple, list)) and len(state) != 2):
            return state  # the layer knows what to say
        if isinstance(state, (tuple, list)):
            return tuple(self._wide(part, f"{name}'s {which}", batch) for part, which in zip(state, "hc", strict=True))
        state = state if type(state) is np.ndarray else as_array(state, name)
        meaning = "(batch, hidden_size)" if batch else "(hidden_size,), since x has no batch"
        check_shape(state, (*batch, self._layer.hidden_size), name, meaning)
        return state[None]

    @staticmethod
    def _narrow(state: Any) -> Any:
        return tuple(part[0] for part in state) if isinstance(state, tuple) else state[0]

    def _one_step(self, x: Any) -> tuple[Array, tuple[int, ...]]:
        """x (B, I), (I,) or ids (B,) as a sequence of one step, and (B,) or, without a batch, ()."""
        x = x if type(x) is np.ndarray else as_array(x, "x")
        rank = 0 if x.dtype.kind in "iu" else 1
        if x.ndim not in (rank, rank + 1):
            raise ValueError(f"x has shape {x.shape}, expected (batch, {self._layer.input_size}) or token ids (batch,)")
        return x[None], x.shape[: x.ndim - rank]

    @staticmethod
    def _wide_mask(mask: Any, batch: tuple[int, ...]) -> Array:
        """A cell's mask, (B,) or a single bool, as the layer's (1, B) or (1,)."""
        return checked_mask(mask, batch, "mask", "one entry for each sequence")[None]

    def __call__(self, x: Any, state: Any = None, *, mask: Any = None) -> State:
        """One step for inference.

        Parameters
        ----------
        x : (B, I) or (I,) array, or token ids (B,) or a scalar
        state : (h, c) for LSTMCell, h else: (B, H) or (H,); zeros where None
        mask : (B,) bools, or one without a batch; optional
            Where it is False, the sequence has no step now: x is not read, and its state stays.

        Returns
        -------
        state : as given
        """
        x, batch = self._one_step(x)
        wide = None if mask is None else self._wide_mask(mask, batch)
        _, state = self._layer(x, self._wide(state, "state", batch), mask=wide)
        return self._narrow(state)

    def forward(self, x: Any, state: Any = None, *, mask: Any = None) -> tuple[State, Tape]:
        """One step for training: (state, tape). Arguments as `__call__`."""
        x, batch = self._one_step(x)
        wide = None if mask is None else self._wide_mask(mask, batch)
        _, state, tape = self._layer.forward(x, self._wide(state, "state", batch), mask=wide)
        return self._narrow(state), tape

    def backward(self, tape: Tape, dstate: Any) -> tuple[Array | None, State, dict[str, Array]]:
        """Gradients of one step: (dx, dstate, grads); see `Recurrent.backward`."""
        self._layer._check_tape(tape)
        batch = () if tape.unbatched else (tape.batch.B,)
        dx, dstate, grads = self._layer.backward(tape, None, self._wide(dstate, "dstate", batch))
        grads = {name.removesuffix("_l0"): g for name, g in grads.items()}
        return None if dx is None else dx[0], self._narrow(dstate), grads


class LSTMCell(Cell):
    """One step of an `LSTM`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(LSTM(input_size, hidden_size, bias=bias, dtype=dtype, backend=backend, seed=seed))


class GRUCell(Cell):
    """One step of a `GRU`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(GRU(input_size, hidden_size, bias=bias, dtype=dtype, backend=backend, seed=seed))


class RNNCell(Cell):
    """One step of an `RNN`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Any = "tanh",
        *,
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        layer = RNN(
            input_size, hidden_size, bias=bias, nonlinearity=nonlinearity, dtype=dtype, backend=backend, seed=seed
        )
        super().__init__(layer)
