"""One step of one layer, for loops that users write themselves: `LSTMCell`, `GRUCell`, `RNNCell`."""

from __future__ import annotations

from typing import Any

from . import engine
from .layer import check_tape, given
from .layout import Array
from .packing import INT64, Batch
from .spec_layer import RecurrentTape, SpecLayer, State, unwrapped
from .validation import checked_ids, checked_input, checked_mask

OF_BATCH, OF_ONE = 0, (0, 0)  # the part of a state (1, B, H) that is the caller's


class Cell(SpecLayer):
    """One step of one layer. Use `LSTMCell`, `GRUCell` or `RNNCell`.

    A cell is a layer with one step in every call; its parameters have the names of PyTorch's cells, without a suffix.
    """

    _state_axes = ("batch", "hidden_size")

    @staticmethod
    def _ending(layer: int, d: int) -> str:
        return ""

    def _enter(self, x: Any, state: Any, mask: Any) -> tuple[Array, Batch, engine.States, bool]:
        """(x (1, B, I) or ids (N,), the batch of one step, the state as (1, B, H), whether x has no batch)."""
        x, ids, unbatched = checked_input(x, ("B",), self.input_size, self.dtype)
        leading: tuple[int, ...] = () if unbatched else x.shape[:1]
        x = x[None] if unbatched else x
        batch = Batch.of(1, len(x), None)
        if mask is not None:
            given_mask = checked_mask(mask, leading, "mask", "one entry for each sequence")
            batch = Batch.of_mask(given_mask.reshape(1, len(x)))
        if ids:
            x = checked_ids(batch.pack(x[None], INT64).reshape(batch.rows.N), self.input_size, self.dtype)
        return x if ids else x[None], batch, self._take_state(state, "state", leading), unbatched

    def _sampled(self, x: Any, mask: Any = None) -> tuple[Array, Batch]:
        return self._enter(x, None, mask)[:2]

    def _take_state(self, state: Any, name: str, leading: tuple[int, ...]) -> engine.States:
        """A state, (B, H) or (H,) each, as fresh arrays (1, B, H); one half of an LSTM's gradient may be None."""
        states = self._state.check(state, leading, name, optional=name == "dstate")
        return tuple(s.reshape(1, *(leading or (1,)), self.hidden_size) for s in states)

    def __call__(self, x: Any, state: Any = None, *, mask: Any = None) -> State:
        """One step for inference.

        Parameters
        ----------
        x : (B, I) or (I,) array, or token ids (B,) or a scalar
        state : (h, c) for LSTMCell, h for the others: (B, H) or (H,); zeros where None
        mask : (B,) bools, or one without a batch; optional
            Where it is False, the sequence has no step now: x is not read, and its state stays.

        Returns
        -------
        state : (h, c) or h
            Fresh arrays, shaped like the state given: (B, H), or (H,) without a batch.

        Raises
        ------
        ValueError, TypeError
            Wrong rank, size, dtype, ids, mask or state; the message names what was given and expected.
        """
        x, batch, states, unbatched = self._enter(x, state, mask)
        engine.forward(self._module, self._blocks()[1], x, batch, states, None, None, True)
        return unwrapped(states, OF_ONE if unbatched else OF_BATCH)

    def forward(self, x: Any, state: Any = None, *, mask: Any = None) -> tuple[State, RecurrentTape]:
        """One step for training: (state, tape). Arguments as `__call__`."""
        self._check_trainable()
        x, batch, states, unbatched = self._enter(x, state, mask)
        version, blocks = self._blocks()
        tape = RecurrentTape(self, version, unbatched, engine.Record(batch))
        engine.forward(self._module, blocks, x, batch, states, tape.record, None, True)
        return unwrapped(states, OF_ONE if unbatched else OF_BATCH), tape

    def backward(self, tape: RecurrentTape, dstate: Any) -> tuple[Array | None, State, dict[str, Array]]:
        """Gradients of one step. Uses up the tape.

        Parameters
        ----------
        tape : RecurrentTape
            Of this cell's `forward`, with the weights unchanged since.
        dstate : like state
            Gradient of the new state; either half of an LSTM's pair may be None.

        Returns
        -------
        dx : (B, I) or (I,) array, or None for token ids
        dstate : like state
            Gradient of the state before the step.
        grads : dict of arrays
            Gradients of all parameters, with `state_dict`'s keys and shapes.

        Raises
        ------
        RuntimeError
            The tape was used before, belongs to another cell, or the weights have changed.
        ValueError, TypeError
            dstate does not fit; the tape still serves then.
        """
        check_tape(tape, self, RecurrentTape)
        batch, unbatched = tape.record.batch, tape.unbatched
        dstates = self._take_state(dstate, "dstate", () if unbatched else (batch.B,))
        tape.used = True
        dx, grads = self._gradients(tape, None, dstates, sparse=False)
        dx = None if dx is None else batch.unpack(dx)[OF_ONE if unbatched else OF_BATCH]
        return dx, unwrapped(dstates, OF_ONE if unbatched else OF_BATCH), grads

    def to_torch(self) -> Any:
        """A PyTorch module with these weights; see `fastlstm.torch.to_torch`."""
        from .torch import to_torch

        return to_torch(self)


class LSTMCell(Cell):
    """One step of an `LSTM`."""

    kind = "lstm"

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
        super().__init__(given(locals()))


class GRUCell(Cell):
    """One step of a `GRU`."""

    kind = "gru"

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
        super().__init__(given(locals()))


class RNNCell(Cell):
    """One step of an `RNN`."""

    kind = "rnn"

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
        super().__init__(given(locals()))
