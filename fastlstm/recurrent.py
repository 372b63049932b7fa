"""The layers that users hold: LSTM, GRU, RNN.

Everything here is written once, for every backend: a call has its input checked and packed into rows (`packing`), runs
the engine with the layer's packed weights, and returns what the engine made. Shapes use the alphabet of `spec`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import engine
from .layer import Layer, check_tape, given
from .layout import Array
from .packing import Batch, enter
from .spec import DEFAULT_ACTIVATIONS
from .spec_layer import RecurrentTape, SpecLayer, State, check_trainable, unwrapped
from .stream import Stream
from .validation import checked_dy, flag, positive, probability

OF_ONE = slice(None), 0  # the part of a state (L*D, B, .) where x came without a batch


class Recurrent(SpecLayer):
    """Layers of one kind of cell, in one or two directions. Use `LSTM`, `GRU` or `RNN`."""

    _state_axes = ("num_layers * directions", "batch", "width")

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        options = dict(arguments)
        self.num_layers = positive(options.pop("num_layers"), "num_layers")
        self.batch_first = flag(options.pop("batch_first"), "batch_first")
        self.bidirectional = flag(options.pop("bidirectional"), "bidirectional")
        self.dropout = probability(options.pop("dropout"), "dropout")
        directions = 2 if self.bidirectional else 1
        self._LD = self.num_layers * directions  # arrays of a state have one entry for each layer and direction
        super().__init__(options, self.num_layers, directions)
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                f"dropout={self.dropout:g} has no effect: it drops the outputs of every layer but the last, and "
                f"num_layers is 1. Give num_layers=2 or more, or dropout=0",
                UserWarning,
                stacklevel=3,  # the caller of LSTM, GRU or RNN
            )

    def _leading(self, B: int, unbatched: bool) -> tuple[int, ...]:
        """The axes of a state before its width."""
        return (self._LD,) if unbatched else (self._LD, B)

    def _take_state(self, state: Any, batch: Batch, unbatched: bool) -> engine.States:
        """A call's state as fresh arrays (L*D, B, .)."""
        if state is None:
            return self._state.zeros((self._LD, batch.B))
        states = self._state.check(state, self._leading(batch.B, unbatched), "state")
        return tuple(s[:, None] for s in states) if unbatched else states

    # ------------------------------------------------------------------------------------------------------- forward
    def __call__(
        self, x: Any, state: Any = None, lengths: Any = None, last_only: bool = False, *, mask: Any = None
    ) -> tuple[Array, State]:
        """Run the layers for inference: nothing is dropped, nothing kept.

        Parameters
        ----------
        x : (T, B, I) array, (B, T, I) with batch_first, or (T, I) without a batch
            Of the layer's dtype. Integers of rank 2 (rank 1 without a batch) are token ids, equal to one-hot rows.
        state : (h_0, c_0) for LSTM, h_0 else; optional
            (L*D, B, R) and (L*D, B, H), layer then direction, never batch-first; zeros where None.
        lengths : (B,) integers, optional
            Steps of each sequence, any order, zeros allowed. What lies past a length is never read.
        last_only : bool
            Return only each sequence's last valid step.
        mask : (T, B) bools, (B, T) with batch_first, (T,) without a batch; optional
            True at the steps that are valid, wherever they lie: padding on the left, gaps. The layers run over these
            alone, as if the others were cut out; what stands there is never read. Not together with lengths.

        Returns
        -------
        y : (T, B, D*R) array, or as x came; (B, D*R) with last_only
            Zeros past a sequence's length and where the mask is False.
        state : as given
            The state after each sequence's last valid step (the initial one without any).

        Raises
        ------
        ValueError, TypeError
            Wrong rank, size, dtype, lengths, mask, ids or state; the message names what was given and expected.
        """
        if last_only is not True and last_only is not False:  # asked so, since a call of `flag` takes time
            last_only = flag(last_only, "last_only")
        x, batch, unbatched = enter(x, lengths, mask, self.input_size, self.dtype, self.batch_first)
        states = self._state.zeros((self._LD, batch.B)) if state is None else self._take_state(state, batch, unbatched)
        y = engine.forward(self._module, self._blocks()[1], x, batch, states, None, None, last_only)
        if last_only:
            y = batch.last(y)
        if unbatched:
            return y[0] if last_only else y[:, 0], unwrapped(states, OF_ONE)
        return y, states if len(states) > 1 else states[0]

    def forward(
        self,
        x: Any,
        state: Any = None,
        lengths: Any = None,
        checkpoint_every: int | None = None,
        *,
        mask: Any = None,
    ) -> tuple[Array, State, RecurrentTape]:
        """Run the layers for training: drops between layers (unless `eval` was called) and keeps a tape.

        x, state, lengths and mask, and the first two results, are those of `__call__`.

        Parameters
        ----------
        checkpoint_every : int, optional
            Keep only each layer's input and, every so many steps, its state; backward runs each such stretch forward
            once more (Chen et al. 2016). For long sequences: the tape is then a stretch long.

        Returns
        -------
        y, state : as `__call__`
        tape : Tape
            Serves one `backward`. It holds, for each valid step and layer, a copy of the layer's input and for each
            direction 6 H floats for LSTM (gates, c, h; with a projection 6 H + proj_size), 5 H for GRU, H for RNN; and
            dropout's factors, where it drops.

        Raises
        ------
        ValueError, TypeError
            As `__call__`; and an activation that serves for inference only, such as leaky_relu with alpha < 0.
        """
        check_trainable(self._specs[0])
        every = None if checkpoint_every is None else positive(checkpoint_every, "checkpoint_every")
        x, batch, unbatched = enter(x, lengths, mask, self.input_size, self.dtype, self.batch_first)
        states = self._take_state(state, batch, unbatched)
        version, blocks = self._blocks()
        tape = RecurrentTape(self, version, unbatched, engine.Record(batch, every))
        drop = self._drop if self.training and self.dropout else None
        y = engine.forward(self._module, blocks, x, batch, states, tape.record, drop)
        if unbatched:
            return y[:, 0], unwrapped(states, OF_ONE), tape
        return y, unwrapped(states), tape

    def _drop(self, shape: tuple[int, ...]) -> Array:
        """Fresh dropout factors: 0 with probability p, else 1/(1-p) (Srivastava et al. 2014, inverted)."""
        if self.dropout == 1:
            return np.zeros(shape, self.dtype)
        with self._lock:
            kept = self._rng.random(shape, np.float32) >= self.dropout
        mask: Array = kept * self.dtype.type(1 / (1 - self.dropout))
        return mask

    # ------------------------------------------------------------------------------------------------------ backward
    def backward(
        self, tape: RecurrentTape, dy: Any, dstate: Any = None, *, sparse: bool = False
    ) -> tuple[Array | None, State, dict[str, Any]]:
        """Back-propagate through time (Werbos 1990). Uses up the tape.

        Parameters
        ----------
        tape : Tape
            Of this layer's `forward`, with the weights unchanged since.
        dy : array like y, or None
            Gradient of the output; what lies past a length, or where the mask is False, is not read.
        dstate : like state, or None
            Gradient of the final state; either half of an LSTM's pair may be None.
        sparse : bool
            Give the gradient of an input matrix that token ids went through as a `SparseGradient`, of the ids seen.

        Returns
        -------
        dx : array like x, or None for token ids
            Zeros past a length and where the mask is False.
        dstate : like state
            Gradient of the initial state, in full even where the state was None.
        grads : dict of arrays
            Gradients of all parameters, with `state_dict`'s keys and shapes; views of one array, ``grads.flat``.

        Raises
        ------
        RuntimeError
            The tape was used before, belongs to another layer, or the weights have changed.
        ValueError, TypeError
            dy or dstate do not fit; the tape still serves then.
        """
        check_tape(tape, self, RecurrentTape)
        batch, unbatched = tape.record.batch, tape.unbatched
        d_rows = None if dy is None else self._pack_dy(dy, tape)
        dstates = self._state.check(dstate, self._leading(batch.B, unbatched), "dstate", optional=True)
        dstates = tuple(s[:, None] for s in dstates) if unbatched else dstates
        sparse = sparse if sparse is True or sparse is False else flag(sparse, "sparse")
        tape.used = True
        dx, grads = self._gradients(tape, d_rows, dstates, sparse)
        dx = None if dx is None else batch.unpack(dx)
        if unbatched:
            return None if dx is None else dx[:, 0], unwrapped(dstates, OF_ONE), grads
        return dx, unwrapped(dstates), grads

    def _pack_dy(self, dy: Any, tape: RecurrentTape) -> Array:
        """dy as packed rows (N, D*R)."""
        batch, W = tape.record.batch, self._D * self._R
        dy = checked_dy(dy, (batch.T, W) if tape.unbatched else (*batch.axes, W), self.dtype)
        dy = dy[:, None] if tape.unbatched else dy.swapaxes(0, 1) if batch.batch_first else dy
        return batch.pack(dy, self.dtype).reshape(batch.rows.N, W)

    # ----------------------------------------------------------------------------------------------------- streaming
    def stream(self, batch_size: int = 1) -> Stream:
        """State kept between calls: feed a sequence step by step. See `Stream`.

        Parameters
        ----------
        batch_size : int
            How many sequences go side by side.

        Raises
        ------
        ValueError
            The layer is bidirectional: the reverse direction begins at an end that a stream does not have.
        """
        if self.bidirectional:
            raise ValueError("a bidirectional layer cannot stream: its reverse direction begins at the sequence's end")
        return Stream(self._module, self._blocks()[1], self._state, positive(batch_size, "batch_size"))

    def to_arrays(self, form: str, head: Layer | None = None) -> dict[str, Array]:
        """The parameters as people write them by hand; see `fastlstm.from_arrays` for the forms."""
        from .arrays import to_arrays

        return to_arrays(self, form, head)

    def to_torch(self) -> Any:
        """A PyTorch module with these weights; see `fastlstm.torch.to_torch`."""
        from .torch import to_torch

        return to_torch(self)


class LSTM(Recurrent):
    """Long short-term memory (equations in `fastlstm.spec`), with PyTorch's arguments and semantics.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
    bias : bool
    batch_first : bool
        x and y are (B, T, .) instead of (T, B, .); states never are.
    dropout : float
        Probability with which `forward` drops each output of every layer but the last: of one layer nothing, which a
        UserWarning says.
    bidirectional : bool
    proj_size : int
        Width of a projected output, smaller than hidden_size; 0 for none.
    peepholes : bool
        The gates see the cell state; parameters ``weight_peep_l{k}`` (3, H), order i, f, o.
    activations : three names or (name, alpha, beta), or two tuples of three
        Of the gates, the candidate and the output; names in `fastlstm.spec.ACTIVATIONS`. Two tuples are those of the
        two directions. Some serve for inference only: leaky_relu and elu with alpha < 0, scaled_tanh with alpha = 0.
    clip : float, optional
        Pre-activations are clipped to +-clip, but for the cell state on its way into the output activation (ONNX's
        attribute of that name, as ONNX Runtime computes it). Where a gate was clipped its gradient is 0.
    input_forget : bool
        The forget gate is 1 - i (ONNX). The parameters' rows of f stay, are not read, and have gradients of 0.
    single_bias : bool
        One bias, ``bias_ih_l{k}``, instead of two whose sum counts, of which training would move both (Keras's way).
    dtype : {"float32", "float64"}
    backend : str
        "auto", or a name from `fastlstm.backends()`; a forced one never falls back.
    seed : int, optional
        Of the initial weights (uniform in +-1/sqrt(H)) and the dropout.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; the message says which.
    BackendError
        The forced backend cannot be used.
    """

    kind = "lstm"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        peepholes: bool = False,
        activations: Sequence[Any] = DEFAULT_ACTIVATIONS["lstm"],
        clip: float | None = None,
        input_forget: bool = False,
        single_bias: bool = False,
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(given(locals()))


class GRU(Recurrent):
    """Gated recurrent unit. Arguments as `LSTM`, without proj_size, peepholes and input_forget.

    Parameters
    ----------
    activations : two names or (name, alpha, beta), or two tuples of two
        Of the gates and the candidate; two tuples are those of the two directions.
    reset_after : bool
        Reset the recurrent product (PyTorch, cuDNN, Keras) or, False, the state that goes into it (the paper).
    single_bias : bool
        As in `LSTM`; only with reset_after=False, since the other form has a bias inside the reset.
    """

    kind = "gru"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        activations: Sequence[Any] = DEFAULT_ACTIVATIONS["gru"],
        clip: float | None = None,
        single_bias: bool = False,
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(given(locals()))


class RNN(Recurrent):
    """Elman network. Arguments as `LSTM`, without proj_size, peepholes, input_forget and activations.

    Parameters
    ----------
    nonlinearity : name or (name, alpha, beta), or a tuple of two
        Two are those of the two directions.
    """

    kind = "rnn"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        nonlinearity: Any = "tanh",
        clip: float | None = None,
        single_bias: bool = False,
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(given(locals()))
