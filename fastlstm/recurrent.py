"""The layers that users hold: LSTM, GRU, RNN.

The code is the same for every backend: a call checks its input and packs it into rows (`packing`), runs the engine with
the layer's packed weights, and returns the engine's outputs. Shapes use the alphabet of `spec`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import engine
from .layer import Layer, check_tape, given
from .layout import Array
from .packing import Batch, enter
from .spec import DEFAULT_ACTIVATIONS
from .spec_layer import RecurrentTape, SpecLayer, State, unwrapped
from .stream import Stream
from .validation import checked_dy, flag, positive, probability

OF_ONE = slice(None), 0  # index into a state (L*D, 1, .) for x without a batch axis


class Recurrent(SpecLayer):
    """Layers of one kind of cell, in one or two directions. Use `LSTM`, `GRU` or `RNN`."""

    _state_axes = ("num_layers * directions", "batch", "width")

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        options = dict(arguments)
        self.num_layers = positive(options.pop("num_layers"), "num_layers")
        self.batch_first = flag(options.pop("batch_first"), "batch_first")
        self.bidirectional = flag(options.pop("bidirectional"), "bidirectional")
        self.reverse = flag(options.pop("reverse"), "reverse")
        if self.reverse and self.bidirectional:
            raise ValueError("a bidirectional layer walks in both directions: leave out reverse=True")
        self.dropout = probability(options.pop("dropout"), "dropout")
        directions = 2 if self.bidirectional else 1
        self._LD = self.num_layers * directions  # leading axis of a state's arrays
        super().__init__(options, self.num_layers, directions)
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                f"dropout={self.dropout:g} has no effect: it drops the outputs of every layer but the last, and "
                f"num_layers is 1. Give num_layers=2 or more, or dropout=0",
                UserWarning,
                stacklevel=3,  # the caller of LSTM, GRU or RNN
            )

    def _leading(self, B: int, unbatched: bool) -> tuple[int, ...]:
        """The axes of a state's arrays before the width."""
        return (self._LD,) if unbatched else (self._LD, B)

    def _take_state(self, state: Any, batch: Batch, unbatched: bool) -> engine.States:
        """A call's state as fresh arrays (L*D, B, .)."""
        if state is None:
            return self._state.zeros((self._LD, batch.B))
        states = self._state.check(state, self._leading(batch.B, unbatched), "state")
        return tuple(s[:, None] for s in states) if unbatched else states

    def _sampled(self, x: Any, mask: Any = None) -> tuple[Array, Batch]:
        return enter(x, None, mask, self.input_size, self.dtype, self.batch_first)[:2]

    # ------------------------------------------------------------------------------------------------------- forward
    def __call__(
        self, x: Any, state: Any = None, lengths: Any = None, last_only: bool = False, *, mask: Any = None
    ) -> tuple[Array, State]:
        """Run the layers for inference: without dropout and without a tape.

        Parameters
        ----------
        x : (T, B, I) array, (B, T, I) with batch_first, or (T, I) without a batch
            Of the layer's dtype. Integers of rank 2 (rank 1 without a batch) are token ids, equal to one-hot rows.
        state : (h_0, c_0) for LSTM, h_0 for the others; optional
            (L*D, B, R) and (L*D, B, H), layer then direction, never batch-first; (L*D, R) and (L*D, H) without a batch.
            None: zeros.
        lengths : (B,) integers, optional
            Steps of each sequence, any order, zeros allowed. Values past a length are never read.
        last_only : bool
            Return only each sequence's last valid step.
        mask : (T, B) bools, (B, T) with batch_first, (T,) without a batch; optional
            True at valid steps; padding may be on the left, and there may be gaps. The layers run over the valid steps
            alone, as if the others were cut out; x is never read there. Not together with lengths.

        Returns
        -------
        y : (T, B, D*R) array, (B, T, D*R) with batch_first, (T, D*R) without a batch; (B, D*R) with last_only
            Zeros past a sequence's length and where the mask is False.
        state : (h_n, c_n) for LSTM, h_n for the others
            The state after each sequence's last valid step (the initial state of a sequence without valid steps).

        Raises
        ------
        ValueError, TypeError
            Wrong rank, size, dtype, lengths, mask, ids or state; the message names what was given and expected.
        """
        if last_only is not True and last_only is not False:  # quicker than a call of `flag`
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
        """Run the layers for training: with dropout between layers (unless `eval` was called) and with a tape.

        Parameters
        ----------
        x, state, lengths, mask
            As in `__call__`.
        checkpoint_every : int, optional
            Keep only each layer's input and its state at every so many steps; backward runs each stretch between them
            forward once more (Chen et al. 2016). For long sequences: there is a tape for one stretch only.

        Returns
        -------
        y, state : as `__call__`
        tape : Tape
            Serves one `backward`. For each valid step and layer it holds a copy of the layer's input and for each
            direction 6 H floats for LSTM (gates, c, h; with a projection 6 H + proj_size), 5 H for GRU, H for RNN. With
            dropout it holds the factors too.

        Raises
        ------
        ValueError, TypeError
            As `__call__`; and an activation that serves for inference only, such as leaky_relu with alpha < 0.
        """
        self._check_trainable()
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
            Gradient of the output; not read past a length or where the mask is False.
        dstate : like state, or None
            Gradient of the final state; either half of an LSTM's pair may be None.
        sparse : bool
            For token ids: the gradient of the input matrices is a `SparseGradient`, of the ids seen.

        Returns
        -------
        dx : array like x, or None for token ids
            Zeros past a length and where the mask is False.
        dstate : like state
            Gradient of the initial state, also if the state was None.
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
            Number of sequences, which are fed together.

        Raises
        ------
        ValueError
            The layer is bidirectional, or reverse: it begins at an end that a stream does not have.
        """
        self._check_streams()
        return Stream(self._module, self._blocks()[1], self._state, positive(batch_size, "batch_size"))

    def _check_streams(self) -> None:
        """Raise ValueError where the layer begins at an end that a stream does not have."""
        if self.bidirectional or self.reverse:
            which = "bidirectional" if self.bidirectional else "reverse"
            raise ValueError(f"a {which} layer cannot stream: its reverse direction begins at the sequence's end")

    def to_arrays(self, form: str, head: Layer | None = None) -> dict[str, Array]:
        """The parameters in a form of `fastlstm.from_arrays`; see `fastlstm.arrays.to_arrays`."""
        from .arrays import to_arrays

        return to_arrays(self, form, head)

    def to_torch(self) -> Any:
        """A PyTorch module with these weights; see `fastlstm.torch.to_torch`."""
        from .torch import to_torch

        return to_torch(self)

    def to_onnx(self, path: str | os.PathLike[str], stateful: bool = False, *, lengths: bool = False) -> None:
        """Write the layers as an ONNX model, atomically; see `fastlstm.onnx.to_onnx`."""
        from .onnx import to_onnx

        to_onnx(self, path, stateful, lengths=lengths)


class LSTM(Recurrent):
    """Long short-term memory (equations in `fastlstm.spec`), with PyTorch's arguments and semantics.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
    bias : bool
    batch_first : bool
        x and y are (B, T, .) instead of (T, B, .); states never are.
    dropout : float
        Probability with which `forward` drops each output of every layer but the last. With one layer it has no effect,
        and a UserWarning says so.
    bidirectional : bool
    proj_size : int
        Width of a projected output, smaller than hidden_size; 0 for none.
    peepholes : bool
        The cell state enters the gates, with parameters ``weight_peep_l{k}`` (3, H) in the order i, f, o.
    activations : three names or (name, alpha, beta), or two tuples of three
        Activations of the gates, the candidate and the output; names in `fastlstm.spec.ACTIVATIONS`. Two tuples are
        one for each direction. leaky_relu and elu with alpha < 0 and scaled_tanh with alpha = 0 serve for inference
        only.
    clip : float, optional
        Pre-activations are clipped to +-clip; the argument of the output activation, the cell state, is not (ONNX's
        attribute of that name, as ONNX Runtime computes it). Where a gate was clipped its gradient is 0.
    input_forget : bool
        The forget gate is 1 - i (ONNX). The parameters keep their rows of f, which are not read and have gradients
        of 0.
    single_bias : bool
        One bias, ``bias_ih_l{k}``, as in Keras. With two biases only their sum counts, and training moves both.
    reverse : bool
        Walk from the last step to the first; outputs stay in the input's order. Not together with bidirectional.
    dtype : {"float32", "float64"}
    backend : str
        "auto", or a name from `fastlstm.backends()`; a forced one never falls back.
    seed : int, optional
        Seed of the initial weights (uniform in +-1/sqrt(H)) and of dropout.

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
        reverse: bool = False,
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
        Activations of the gates and the candidate; two tuples are one for each direction.
    reset_after : bool
        The reset gate multiplies the recurrent product (PyTorch, cuDNN, Keras). False: it multiplies the state before
        the product (Cho et al. 2014).
    single_bias : bool
        As in `LSTM`; only with reset_after=False, since reset_after=True needs a bias inside the product with the
        reset gate.
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
        reverse: bool = False,
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
        Two are one for each direction.
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
        reverse: bool = False,
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(given(locals()))
