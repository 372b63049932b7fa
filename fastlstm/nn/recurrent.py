"""Recurrent modules with Keras's arguments: `LSTM`, `GRU`, `SimpleRNN`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .. import recurrent
from ..gradients import GradientLayout
from ..layer import Layer, check_tape
from ..layout import Array, suffix
from ..spec import GATES
from ..validation import as_numbers, checked_dy, flag, positive, probability
from . import variational
from .base import Module, ModuleTape, Shape, drop_factors, regularized
from .initializers import INITIALIZERS, initializer
from .masking import held, held_backward

FLAGS = (
    *("use_bias", "unit_forget_bias", "return_sequences", "go_backwards", "stateful", "zero_output_for_mask"),
    "reset_after",
)
KERAS_NAMES = {"linear": "identity"}  # Keras's names of activations -> fastlstm's, where they differ


class Recurrent(Module):
    """The base of the recurrent modules, with one direction or, for `Bidirectional`, two.

    Samples are (T, I). Steps that the mask leaves out are skipped: they change no state, and their outputs are 0, or
    those of the valid step before where `zero_output_for_mask` is False.
    """

    LAYER: ClassVar[Any]
    kernel_initializer: str
    recurrent_initializer: str
    use_bias: bool
    return_sequences: bool
    go_backwards: bool
    stateful: bool
    zero_output_for_mask: bool
    reset_after: bool
    REGULARIZED = (
        ("kernel_regularizer", "weight_ih"),
        ("recurrent_regularizer", "weight_hh"),
        ("bias_regularizer", "bias"),
    )

    def __init__(self, arguments: dict[str, Any], directions: int = 1) -> None:
        a = arguments
        super().__init__(trainable=a["trainable"], dtype=a["dtype"], backend=a["backend"], seed=a["seed"])
        self.units = positive(a["units"], "units")
        self.activation, self.recurrent_activation = a["activation"], a.get("recurrent_activation")
        self.dropout = probability(a["dropout"], "dropout")
        self.recurrent_dropout = probability(a["recurrent_dropout"], "recurrent_dropout")
        for name in FLAGS:
            if name in a:
                setattr(self, name, flag(a[name], name))
        for name in ("kernel_initializer", "recurrent_initializer"):
            setattr(self, name, initializer(a[name], name))
        regularized(self, a)
        self._directions = directions
        self._states: tuple[Array, ...] | None = None  # state of a stateful module after the last call
        self._layer(1)  # raises for arguments that do not fit, before the first call

    # --------------------------------------------------------------------------------------------------------- building
    def _layer(self, width: int) -> recurrent.Recurrent:
        """The layer inside, for inputs of this width."""
        name = KERAS_NAMES.get
        act, rec = (name(f, f) if isinstance(f, str) else f for f in (self.activation, self.recurrent_activation))
        options: dict[str, Any]
        if self.LAYER.kind == "lstm":
            options = {"activations": (rec, act, act), "single_bias": self.use_bias}
        elif self.LAYER.kind == "gru":
            options = {"activations": (rec, act), "reset_after": self.reset_after}
            options["single_bias"] = self.use_bias and not self.reset_after
        else:
            options = {"nonlinearity": act, "single_bias": self.use_bias}
        layer: recurrent.Recurrent = self.LAYER(
            width,
            self.units,
            bias=self.use_bias,
            batch_first=True,
            bidirectional=self._directions == 2,
            dtype=self.dtype,
            backend=self._backend,
            seed=0,
            **options,
        )
        return layer

    def _check_shape(self, shape: Shape) -> None:
        if len(shape) != 2 or shape[-1] is None:
            raise ValueError(f"{type(self).__name__} takes samples of shape (T, width), got {shape}")

    def _width(self, shape: Shape) -> Any:
        return shape[-1]

    def _make(self, shape: Shape) -> Layer:
        width = shape[-1]
        assert width is not None
        layer, rng = self._layer(width), self._initial_rng
        G, H = len(GATES[layer.kind]), self.units
        values: dict[str, Array] = {}
        for d in range(self._directions):
            end = suffix(0, d)
            kernel = INITIALIZERS[self.kernel_initializer]((width, G * H), rng)
            recurrent_kernel = INITIALIZERS[self.recurrent_initializer]((H, G * H), rng)
            values |= {"weight_ih" + end: kernel.T, "weight_hh" + end: recurrent_kernel.T}
        values |= {name: np.zeros_like(p) for name, p in layer._live().items() if name.startswith("bias")}
        if getattr(self, "unit_forget_bias", False) and self.use_bias:
            for d in range(self._directions):
                values["bias_ih" + suffix(0, d)][H : 2 * H] = 1  # bias of the forget gate (Gers et al. 2000)
        layer.load_state_dict(values)
        return layer

    def output_shape(self, shape: Shape) -> Shape:
        width = self.units * self._directions
        return (shape[0], width) if self.return_sequences else (width,)

    def output_mask(self, x: Any, mask: Array | None) -> Array | None:
        if mask is None or not self.return_sequences:
            return None
        return mask[:, ::-1] if self.go_backwards else mask

    # ------------------------------------------------------------------------------------------------------------ state
    def reset_state(self) -> None:
        """Set the state of a stateful module to zeros."""
        self._states = None

    def _initial(self, B: int) -> Any:
        """The initial state: the last one of a stateful module, or None; an error if the batch has another size."""
        if not self.stateful or self._states is None:
            return None
        if self._states[0].shape[1] != B:
            raise ValueError(
                f"{self!r} is stateful and remembers {self._states[0].shape[1]} sequences, the batch has {B}: "
                "call reset_state(), or give batches of one size"
            )
        return self._states if len(self._states) > 1 else self._states[0]

    def _remember(self, state: Any) -> None:
        if self.stateful:
            self._states = state if isinstance(state, tuple) else (state,)

    # ------------------------------------------------------------------------------------------------------------ calls
    def _input(self, x: Any, mask: Any) -> tuple[Array, Array | None]:
        """x (B, T, I) and its mask, reversed in time with go_backwards."""
        x = as_numbers(self._enter(x), "x", self.dtype)
        given = None if mask is None else np.asarray(mask)
        if self.go_backwards:
            x, given = x[:, ::-1], None if given is None else given[:, ::-1]
        return x, given

    def _last(self, state: Any) -> Array:
        """(B, D*H): each direction's h after its last step."""
        h: Array = state[0] if isinstance(state, tuple) else state
        return h[0].copy() if len(h) == 1 else np.concatenate(tuple(h), axis=-1)

    def __call__(self, x: Any, mask: Any = None) -> Array:
        """(B, T, I) -> (B, T, D*H), or (B, D*H) without return_sequences."""
        x, given = self._input(x, mask)
        layer: Any = self.core
        y, state = layer(x, self._initial(len(x)), mask=given)
        self._remember(state)
        if not self.return_sequences:
            return self._last(state)
        return y if given is None or self.zero_output_for_mask else held(y, given)

    def forward(self, x: Any, mask: Any = None) -> tuple[Array, ModuleTape]:
        """The output for training, as in `__call__`, with dropout unless `eval` was called; and the tape."""
        x, given = self._input(x, mask)
        layer: Any = self.core
        B = len(x)
        factors = None
        if self.training and self.dropout:
            factors = drop_factors(self._rng, (B, 1, x.shape[2]), self.dropout, self.dtype)
            x = x * factors
        if self.training and self.recurrent_dropout:
            y, state, inner = self._forward_dropped(x, given)
        else:
            y, state, inner = layer.forward(x, self._initial(B), mask=given)
        self._remember(state)
        holds = None if self.zero_output_for_mask or not self.return_sequences else given
        out = (y if holds is None else held(y, holds)) if self.return_sequences else self._last(state)
        return out, self._tape(inner=inner, factors=factors, shape=out.shape, holds=holds)

    def backward(self, tape: ModuleTape, dy: Any) -> tuple[Array, dict[str, Array]]:
        """Gradients of x (B, T, I) and of the parameters."""
        check_tape(tape, self, ModuleTape)
        dy = checked_dy(dy, tape.kept["shape"], self.dtype)
        kept, layer = self._use(tape), self.core
        d_state = None
        if kept["holds"] is not None:
            dy = held_backward(dy, kept["holds"])
        if not self.return_sequences:
            parts = np.stack(np.split(dy, self._directions, axis=-1))
            dy, d_state = None, (parts, None) if self.LAYER.kind == "lstm" else parts
        if isinstance(kept["inner"], Dropped):
            dx, grads = self._backward_dropped(kept["inner"], dy, d_state)
        else:
            dx, _, grads = layer.backward(kept["inner"], dy, d_state)  # type: ignore[attr-defined]
        if kept["factors"] is not None:
            dx = dx * kept["factors"]
        return dx[:, ::-1] if self.go_backwards else dx, grads

    # ------------------------------------------------------------------------------------------------ recurrent dropout
    def _forward_dropped(self, x: Array, mask: Array | None) -> tuple[Array, Any, Dropped]:
        """`forward` with the state multiplied by dropout's factors before every step; one draw for each direction."""
        layer: Any = self.core
        layer._check_trainable()
        by_time, B = np.ascontiguousarray(x.swapaxes(0, 1), self.dtype), len(x)
        valid = None if mask is None else np.ascontiguousarray(np.asarray(mask).T)
        _, blocks = layer._blocks()
        given = self._initial(B)
        leading = (self._directions, B)
        states = layer._state.zeros(leading) if given is None else layer._state.check(given, leading, "state")
        outputs, walks = [], []
        for d, block in enumerate(blocks[0]):
            factors = drop_factors(self._rng, (B, self.units), self.recurrent_dropout, self.dtype)
            y, walk = variational.forward(layer._module, block, by_time, valid, tuple(s[d] for s in states), factors)
            outputs.append(y)
            walks.append(walk)
        whole = np.concatenate(outputs, axis=-1).swapaxes(0, 1)
        return whole, states if len(states) > 1 else states[0], Dropped(walks, blocks[0])

    def _backward_dropped(self, kept: Dropped, dy: Any, d_state: Any) -> tuple[Array, dict[str, Array]]:
        """`backward` of `_forward_dropped`."""
        layer: Any = self.core
        B, H = kept.walks[0].x.shape[1], self.units
        dstates = layer._state.check(d_state, (self._directions, B), "dstate", optional=True)
        grads = GradientLayout({name: p.shape for name, p in layer._live().items()}, self.dtype).zeros()
        dx = np.zeros_like(kept.walks[0].x)
        for d, (walk, block) in enumerate(zip(kept.walks, kept.blocks, strict=True)):
            of_d = None if dy is None else dy[:, :, d * H : (d + 1) * H].swapaxes(0, 1)
            into = {name: grads[name + suffix(0, d)] for name in block.spec.parameters}
            dx += variational.backward(layer._module, block, walk, tuple(s[d] for s in dstates), of_d, into)
        return dx.swapaxes(0, 1), grads


class Dropped:
    """The tape of a forward pass with recurrent dropout: each direction's walk, and its block."""

    def __init__(self, walks: list[variational.Walk], blocks: list[Any]) -> None:
        self.walks, self.blocks = walks, blocks


class LSTM(Recurrent):
    """Long short-term memory, batch-first, with Keras's arguments and one bias.

    Parameters
    ----------
    units : int
    activation : name, or (name, alpha, beta)
        Activation of the candidate and of the output; names in `fastlstm.spec.ACTIVATIONS`, and "linear".
    recurrent_activation : name, or (name, alpha, beta)
        Activation of the gates. "hard_sigmoid" is Keras 3's (slope 1/6), "hard_sigmoid_keras2" Keras 2's (slope 0.2).
    use_bias : bool
    unit_forget_bias : bool
        The forget gate's bias begins at 1; all others begin at 0.
    kernel_initializer, recurrent_initializer : str
        Names of `fastlstm.nn.INITIALIZERS`.
    kernel_regularizer, recurrent_regularizer, bias_regularizer : L1L2, optional
    return_sequences : bool
        The output is that of every step (B, T, units). False: that of the last valid step (B, units).
    go_backwards : bool
        Walk from the last step to the first; outputs are in the order of the walk.
    zero_output_for_mask : bool
        The output of a step that the mask leaves out is 0 or, False, that of the last valid step before (0 before the
        first), which is Keras's default.
    stateful : bool
        Each batch begins with the last state of the batch before. `reset_state` sets the state to zeros.
    dropout, recurrent_dropout : float
        In training: probability of dropping an input, and an entry of h; the same ones at every step. With recurrent
        dropout each step is a call of its own, which is slower.
    trainable, dtype, backend, seed
        As in `Module`.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; the message says which.
    """

    LAYER = recurrent.LSTM

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        *,
        unit_forget_bias: bool = True,
        kernel_initializer: str = "glorot_uniform",
        recurrent_initializer: str = "orthogonal",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        return_sequences: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        zero_output_for_mask: bool = True,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        trainable: bool = True,
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(dict(locals()))


class GRU(Recurrent):
    """Gated recurrent unit, batch-first, with Keras's arguments. Other arguments as `LSTM`.

    Parameters
    ----------
    reset_after : bool
        The reset gate multiplies the recurrent product (Keras's default, with two biases). False: it multiplies the
        state before the product.
    """

    LAYER = recurrent.GRU

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        *,
        reset_after: bool = True,
        kernel_initializer: str = "glorot_uniform",
        recurrent_initializer: str = "orthogonal",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        return_sequences: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        zero_output_for_mask: bool = True,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        trainable: bool = True,
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(dict(locals()))


class SimpleRNN(Recurrent):
    """Elman network, batch-first, with Keras's arguments. Other arguments as `LSTM`.

    Parameters
    ----------
    activation : name, or (name, alpha, beta)
    """

    LAYER = recurrent.RNN

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        use_bias: bool = True,
        *,
        kernel_initializer: str = "glorot_uniform",
        recurrent_initializer: str = "orthogonal",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        return_sequences: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        zero_output_for_mask: bool = True,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        trainable: bool = True,
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(dict(locals()))
