"""The layers that users hold: LSTM, GRU, RNN and the cells; depth, directions, dropout.

Everything here is written once, for every backend: a call checks its input at the door, which packs it into rows,
runs the backend layer by layer, and scatters the result. Shapes use the alphabet of `spec`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy import ndarray  # found sooner than np.ndarray

from ._backends import choose
from .layer import Layer, SparseGradient, Tape
from .layout import Array, Rows, draw, suffix
from .memory import buffers
from .packing import Batch, compact_ids
from .spec import ACTIVATIONS, DEFAULT_ACTIVATIONS, Kind, Spec, activation_sets, untrainable
from .stream import Stream
from .validation import (
    as_array,
    as_numbers,
    check_ids,
    check_shape,
    checked_mask,
    conversion,
    flag,
    float_dtype,
    positive,
    positive_number,
    probability,
    seed_or_none,
    state_parts,
)

INT64 = np.dtype(np.int64)  # of token ids inside

State = Any  # (h, c) for LSTM, h for GRU and RNN


def _part(a: Array | None, at: Any) -> Any:
    """a[at], None of None."""
    return None if a is None else a[at]


class Recurrent(Layer):
    """Layers of one kind of cell, in one or two directions. Use `LSTM`, `GRU` or `RNN`."""

    kind: ClassVar[Kind]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        *,
        activations: Any,
        clip: float | None,
        single_bias: bool,
        dtype: Any,
        backend: str,
        seed: int | None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.input_size = positive(input_size, "input_size")
        self.hidden_size = positive(hidden_size, "hidden_size")
        self.num_layers = positive(num_layers, "num_layers")
        self.bias, self.batch_first = flag(bias, "bias"), flag(batch_first, "batch_first")
        self.bidirectional = flag(bidirectional, "bidirectional")
        self.dropout = probability(dropout, "dropout")
        self.proj_size = positive(options.get("proj_size", 0), "proj_size", 0)
        if self.proj_size >= self.hidden_size:
            raise ValueError(f"proj_size must be smaller than hidden_size, got {self.proj_size} and {hidden_size}")
        self.dtype = float_dtype(dtype)
        self._storage = self.dtype.name  # what the backend keeps the matrices as
        self._backend = backend
        self._R = R = self.proj_size or self.hidden_size
        self._D = D = 2 if self.bidirectional else 1
        self._activations = activation_sets(self.kind, activations, D)  # of each direction
        options["clip"] = None if clip is None else positive_number(clip, "clip")
        biases = self._count_biases(single_bias, options.get("reset_after", True))
        self._specs = [
            Spec(
                self.kind,
                self.input_size if layer == 0 else D * R,
                self.hidden_size,
                biases=biases,
                activations=self._activations[0],
                **options,
            )
            for layer in range(self.num_layers)
        ]
        self._connect()
        for_weights, for_dropout = np.random.SeedSequence(seed_or_none(seed)).spawn(2)
        self._rng = np.random.default_rng(for_dropout)
        rng = np.random.default_rng(for_weights)
        for layer, spec in enumerate(self._specs):
            for d in range(D):
                self._params |= {n + suffix(layer, d): p for n, p in draw(spec, rng, self.dtype).items()}
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                f"dropout={self.dropout:g} has no effect: it drops the outputs of every layer but the last, and "
                f"num_layers is 1. Give num_layers=2 or more, or dropout=0",
                UserWarning,
                stacklevel=3,  # the caller of LSTM, GRU or RNN
            )

    def _connect(self) -> None:
        """Choose the backend; done at construction and after unpickling, perhaps on another machine."""
        self._module = choose(self._backend, self.dtype.name, self._direction_specs(0), self._storage)
        # The object that arrays have, by which the door knows it: a pickle's is not.
        self.dtype = np.dtype(self.dtype.name)
        self._packed: tuple[int, list[list[Any]]] | None = None

    def _count_biases(self, single_bias: bool, reset_after: bool) -> int:
        """How many biases a direction has: 0, 1 or 2."""
        if single_bias and not self.bias:
            raise ValueError("single_bias=True needs bias=True: with bias=False there is none")
        if single_bias and self.kind == "gru" and reset_after:
            raise ValueError(
                "a GRU with reset_after=True has two biases, since bias_hh of n is inside r * (...): "
                "leave out single_bias, or take reset_after=False"
            )
        return 0 if not self.bias else 1 if single_bias else 2

    def _direction_specs(self, layer: int) -> list[Spec]:
        """The spec of each direction of a layer: one but for the activations."""
        return [replace(self._specs[layer], activations=of_one) for of_one in self._activations]

    def _check_trainable(self) -> None:
        """Raise ValueError where an activation serves for inference only."""
        for f in dict.fromkeys(f for of_one in self._activations for f in of_one):
            if (why := untrainable(f)) is not None:
                raise ValueError(f"activation {tuple(f)} cannot be trained: {why}. For inference call the layer itself")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._connect()

    def __repr__(self) -> str:
        spec = self._specs[0]
        given: dict[str, Any] = {
            "num_layers": (self.num_layers, 1),
            "bias": (self.bias, True),
            "batch_first": (self.batch_first, False),
            "dropout": (self.dropout, 0.0),
            "bidirectional": (self.bidirectional, False),
            "proj_size": (self.proj_size, 0),
            "peepholes": (spec.peepholes, False),
            "reset_after": (spec.reset_after, True),
            "clip": (spec.clip, None),
            "input_forget": (spec.input_forget, False),
            "single_bias": (spec.biases == 1, False),
        }
        shown = [f"{name}={value!r}" for name, (value, default) in given.items() if value != default]
        standard = tuple(ACTIVATIONS[a] for a in DEFAULT_ACTIVATIONS[self.kind])
        if any(of_one != standard for of_one in self._activations):
            sets: list[Any] = [
                tuple(a.name if a == ACTIVATIONS[a.name] else tuple(a) for a in of_one) for of_one in self._activations
            ]
            sets = [of_one[0] for of_one in sets] if self.kind == "rnn" else sets
            value = sets[0] if sets[0] == sets[-1] else tuple(sets)
            shown.append(f"{'nonlinearity' if self.kind == 'rnn' else 'activations'}={value!r}")
        shown += [f"dtype='{self.dtype}'"] if self.dtype != np.float32 else []
        return f"{type(self).__name__}({', '.join([str(self.input_size), str(self.hidden_size), *shown])})"

    # ------------------------------------------------------------------------------------------------------- weights
    def _direction_params(self, layer: int, d: int) -> dict[str, Array]:
        """Canonical parameters of one direction, without the suffix."""
        return {name: self._params[name + suffix(layer, d)] for name in self._specs[layer].parameters}

    def _blocks(self) -> tuple[int, list[list[Any]]]:
        """(version, packed weights of each layer and direction), packed anew only after a change."""
        packed = self._packed
        if packed is not None and packed[0] == self._version:
            return packed
        with self._lock:
            if self._packed is None or self._packed[0] != self._version:
                blocks = [
                    [
                        self._module.pack(spec, self._direction_params(layer, d), self._storage, bool(d))
                        for d, spec in enumerate(self._direction_specs(layer))
                    ]
                    for layer in range(self.num_layers)
                ]
                self._packed = (self._version, blocks)
            return self._packed

    # ------------------------------------------------------------------------------------------------------ the door
    def _enter(self, x: Any, lengths: Any, mask: Any) -> tuple[Array, Batch, bool]:
        """(x as packed rows, (N, I) or if dense (T, B, I), or ids (N,); its batch; whether it came without a batch)."""
        # The usual cases in few words: what it asks one by one takes longer than a short call.
        if type(x) is ndarray and x.dtype is self.dtype and lengths is mask is None and x.flags.c_contiguous:
            shape = x.shape
            if len(shape) == 3 and shape[2] == self.input_size and not self.batch_first:
                return x, Batch.of(shape[0], shape[1], None), False
            if len(shape) == 2 and shape[1] == self.input_size:
                return x[:, None], Batch.of(shape[0], 1, None), True
        x, ids, unbatched = self._check_x(x)
        T, B = x.shape[:2]
        if mask is None:
            batch = Batch.of(T, B, self._check_lengths(lengths, T, B, unbatched), self.batch_first and not unbatched)
        else:
            batch = self._masked(mask, lengths, T, B, unbatched)
        if not ids:
            return batch.pack(x, self.dtype), batch, unbatched
        rows = batch.pack(x, INT64).reshape(batch.rows.N)
        if np.may_share_memory(rows, x):
            rows = rows.copy()  # ids are places in memory: those that are checked must be those that are used
        check_ids(rows, self.input_size, self.dtype)
        return rows, batch, unbatched

    def _check_x(self, x: Any) -> tuple[Array, bool, bool]:
        """(x as (T, B, I) or ids (T, B), whether ids, whether it came without a batch axis)."""
        given, x = x, as_array(x, "x")
        ids = x.dtype.kind in "iu"
        rank = 2 if ids else 3
        if ids and x.ndim == 3:
            raise TypeError(
                f"x of dtype {x.dtype} has shape {x.shape}: integers are token ids, of rank 2 (rank 1 without a "
                f"batch). For numbers, convert: x.astype('{self.dtype}')"
            )
        if not ids:
            x = as_numbers(given, "x", self.dtype)
        axes = "(B, T" if self.batch_first else "(T, B"
        tail = ")" if ids else f", {self.input_size})"
        if x.ndim not in (rank, rank - 1):
            hint = "" if ids else self._hint_of_ids(x)
            raise ValueError(f"x has shape {x.shape}, expected {axes}{tail}, or (T{tail} without a batch{hint}")
        if not ids and x.shape[-1] != self.input_size:
            raise ValueError(
                f"x has shape {x.shape}, its last axis must be input_size = {self.input_size}: {axes}{tail}"
                + self._hint_of_ids(x)
            )
        unbatched = x.ndim == rank - 1
        if unbatched:
            x = x[:, None]
        elif self.batch_first:
            x = x.swapaxes(0, 1)
        return x, ids, unbatched

    def _hint_of_ids(self, x: Array) -> str:
        """The end of a message about a shape, for numbers that would be token ids if they were integers."""
        ids = x.ndim in (1, 2) and bool(((x == np.floor(x)) & (x >= 0) & (x < self.input_size)).all())
        return ". Token ids are integers: x.astype(int)" if ids else ""

    def _check_lengths(self, lengths: Any, T: int, B: int, unbatched: bool) -> Array | None:
        if lengths is None:
            return None
        if unbatched:
            raise ValueError("lengths goes with a batch; x came without one: cut x to its length instead")
        given = as_array(lengths, "lengths")
        if given.dtype.kind not in "iu" and given.size:
            cure = conversion(lengths, given, "lengths", "int64") if given.dtype.kind == "f" else ""
            cure = "; a mask is given as mask=" if given.dtype == bool else cure
            raise TypeError(f"lengths must be integers, got dtype {given.dtype}{cure}")
        check_shape(given, (B,), "lengths", f"one entry for each of the {B} sequences")
        if given.size and (given.min() < 0 or given.max() > T):
            raise ValueError(f"lengths must lie between 0 and T = {T}, got {given.min()} to {given.max()}")
        return given.astype(np.int64)

    def _masked(self, mask: Any, lengths: Any, T: int, B: int, unbatched: bool) -> Batch:
        """The batch of the steps that a mask marks as valid."""
        if lengths is not None:
            raise ValueError("mask and lengths both say which steps are valid: give one of them")
        turned = self.batch_first and not unbatched
        axes, names = ((T,), "(T,)") if unbatched else ((B, T), "(B, T)") if turned else ((T, B), "(T, B)")
        given = checked_mask(mask, axes, "mask", f"{names}, True at the steps that are valid")
        return Batch.of_mask(given[:, None] if unbatched else given.T if turned else given, turned)

    def _check_state(
        self, state: Any, name: str, B: int, unbatched: bool, optional: bool = False
    ) -> tuple[Array, Array | None]:
        """The state as fresh arrays (L*D, B, R) and (L*D, B, H) (None but for LSTM); zeros for what is absent."""
        LD, lstm = self.num_layers * self._D, self.kind == "lstm"
        if state is None:
            h = np.zeros((LD, B, self._R), self.dtype)
            return h, np.zeros((LD, B, self.hidden_size), self.dtype) if lstm else None
        widths = {"h": self._R, "c": self.hidden_size} if lstm else {"h": self._R}
        usual = lstm and type(state) is tuple and len(state) == 2
        parts: Sequence[Any] = state if usual else state_parts(state, lstm, name, type(self).__name__)
        arrays: list[Array] = []
        for part, (which, width) in zip(parts, widths.items(), strict=True):
            if part is None and optional:
                arrays.append(np.zeros((LD, B, width), self.dtype))
                continue
            shape = (LD, width) if unbatched else (LD, B, width)
            if not (type(part) is ndarray and part.dtype is self.dtype and part.shape == shape):
                label, axes = f"{name}'s {which}", "width)" if unbatched else "batch, width)"
                part = as_numbers(part, label, self.dtype).astype(self.dtype, copy=False)
                check_shape(part, shape, label, "(num_layers * directions, " + axes)
            part = part.copy()
            arrays.append(part.reshape(LD, B, width) if unbatched else part)
        return arrays[0], arrays[1] if len(arrays) == 2 else None

    @staticmethod
    def _give(y: Array | None, h: Array, c: Array | None, unbatched: bool) -> tuple[Any, State]:
        """(y, the state), without a batch axis where x came without."""
        if unbatched:
            of_one = slice(None), 0
            y, h, c = _part(y, of_one), h[of_one], _part(c, of_one)
        return y, h if c is None else (h, c)

    # ------------------------------------------------------------------------------------------------------- forward
    def _forward_whole(
        self, blocks: list[Any], x: Array, rows: Rows, h: Array, c: Array | None, y: Array, at: int, every: int
    ) -> Array:
        """Run a layer, the first of its states being h[at]; what each direction kept: everything, (D, its tape)."""
        tapes = buffers.empty((len(blocks), blocks[0].spec.tape_size(rows.N, rows.B)), self.dtype)
        if rows.N:
            self._module.forward(blocks, x, rows, h, c, y, tapes, at)
        return tapes

    def _forward_stretches(
        self, blocks: list[Any], x: Array, rows: Rows, h: Array, c: Array | None, y: Array, at: int, every: int
    ) -> list[list[tuple[Array, Array | None]]]:
        """The same, stretch by stretch; each direction keeps the states before each, to run it from there again."""
        stretches = rows.cut(every)
        states, R = [], self._R
        for d, block in enumerate(blocks):
            before: list[tuple[Array, Array | None]] = []
            for stretch, now in reversed(stretches) if d else stretches:
                alive = slice(at + d, at + d + 1), slice(stretch.B)
                h_now, c_now = h[alive], _part(c, alive)
                before.append((h_now[0].copy(), None if c_now is None else c_now[0].copy()))
                part = buffers.empty((stretch.N, R), self.dtype)
                self._module.forward([block], x[now], stretch, h_now, c_now, part)
                y[now, d * R : (d + 1) * R] = part
            states.append(before)
        return states

    def _backward_stretches(
        self,
        block: Any,
        states: list[tuple[Array, Array | None]],
        walk: list[tuple[Rows, slice]],
        x: Array,
        x_back: Array,
        h: Array,
        c: Array | None,
        dy: Array | None,
        dx: Array | None,
        into: dict[str, Array],
    ) -> None:
        """Backward of one direction, the stretch walked last first, each run forward once more for its tape.

        x is the input; x_back is what backward takes for it: the same or, for token ids, their places.
        """
        for (rows, at), (h0, c0) in zip(reversed(walk), reversed(states), strict=True):
            tapes = buffers.empty((1, block.spec.tape_size(rows.N, rows.B)), self.dtype)
            self._module.forward([block], x[at], rows, h0[None], _part(c0, None), None, tapes)
            alive = slice(rows.B)
            h_now, c_now = h[alive], _part(c, alive)
            self._module.backward(block, x_back[at], rows, h_now, c_now, tapes[0], _part(dy, at), _part(dx, at), into)

    def _mask(self, shape: tuple[int, ...]) -> Array | None:
        """Fresh dropout factors: 0 with probability p, else 1/(1-p) (Srivastava et al. 2014, inverted)."""
        if not self.training or self.dropout == 0:
            return None
        if self.dropout == 1:
            return np.zeros(shape, self.dtype)
        with self._lock:
            kept = self._rng.random(shape, np.float32) >= self.dropout
        mask: Array = kept * self.dtype.type(1 / (1 - self.dropout))
        return mask

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
        rows, batch, unbatched = self._enter(x, lengths, mask)
        h, c = self._check_state(state, "state", batch.B, unbatched)
        D, N, dense = self._D, batch.rows.N, batch.order is None
        h_rows, c_rows = (h, c) if dense else batch.pack_states(h, c)
        final = None if last_only else batch.row_map  # where the last layer writes to; packed rows where None
        for layer, blocks in enumerate(self._blocks()[1]):
            if final is None or layer < self.num_layers - 1:
                y, at = buffers.empty((*batch.shape, D * self._R), self.dtype), None  # packed
            else:
                y, at = batch.room(D * self._R, self.dtype), final
            if N:
                self._module.forward(blocks, rows, batch.rows, h_rows, c_rows, y, None, layer * D, at)
            rows = y
        if not dense:
            batch.unpack_states(h, c, h_rows, c_rows)
        if not last_only:
            return self._give(rows if dense or final is not None else batch.unpack(rows), h, c, unbatched)
        y = self._last(rows, batch)
        return y[0] if unbatched else y, self._give(None, h, c, unbatched)[1]

    def _last(self, rows: Array, batch: Batch) -> Array:
        """Packed rows of every sequence's last valid step: (B, D*R), zeros for length 0."""
        if batch.order is None and batch.T:
            last: Array = rows.reshape(batch.T, batch.B, rows.shape[-1])[-1].copy()
            return last
        r = batch.rows
        y = np.zeros((batch.B, rows.shape[-1]), rows.dtype)
        if r.N:
            lengths = np.searchsorted(-r.batch_sizes, -np.arange(r.B), side="left")
            y[batch.order] = rows[r.offsets[lengths - 1] + np.arange(r.B)]
        return y

    def forward(
        self,
        x: Any,
        state: Any = None,
        lengths: Any = None,
        checkpoint_every: int | None = None,
        *,
        mask: Any = None,
    ) -> tuple[Array, State, Tape]:
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
        self._check_trainable()
        every = None if checkpoint_every is None else positive(checkpoint_every, "checkpoint_every")
        rows, batch, unbatched = self._enter(x, lengths, mask)
        h, c = self._check_state(state, "state", batch.B, unbatched)
        if np.may_share_memory(rows, x):
            rows = buffers.copy(rows)  # the tape's own: the caller may write to x before backward
        if rows.ndim > 1:
            rows = rows.reshape(batch.rows.N, self.input_size)
        version, blocks = self._blocks()
        tape = Tape(self, version, batch, unbatched, [], [], [], checkpoint_every=every)
        h_rows, c_rows = batch.pack_states(h, c)
        for layer, of_layer in enumerate(blocks):
            y = buffers.empty((batch.rows.N, self._D * self._R), self.dtype)
            run = self._forward_whole if every is None else self._forward_stretches
            kept = run(of_layer, rows, batch.rows, h_rows, c_rows, y, layer * self._D, every or 0)
            mask = self._mask(y.shape) if layer < self.num_layers - 1 else None
            tape.x.append(rows)
            tape.kept.append(kept)
            tape.masks.append(mask)
            rows = y if mask is None else y * mask
        batch.unpack_states(h, c, h_rows, c_rows)
        return *self._give(batch.unpack(rows), h, c, unbatched), tape

    # ------------------------------------------------------------------------------------------------------ backward
    def _check_dy(self, dy: Any, batch: Batch, unbatched: bool) -> Array:
        """dy as packed rows (N, D*R)."""
        dy = as_numbers(dy, "dy", self.dtype)
        W = self._D * self._R
        shape = (batch.T, W) if unbatched else (*batch.axes, W)
        check_shape(dy, shape, "dy", "the shape of y")
        dy = dy[:, None] if unbatched else dy.swapaxes(0, 1) if self.batch_first else dy
        return batch.pack(dy, self.dtype).reshape(batch.rows.N, W)

    def backward(self, tape: Tape, dy: Any, dstate: Any = None) -> tuple[Array | None, State, dict[str, Array]]:
        """Back-propagate through time (Werbos 1990). Uses up the tape.

        Parameters
        ----------
        tape : Tape
            Of this layer's `forward`, with the weights unchanged since.
        dy : array like y, or None
            Gradient of the output; what lies past a length, or where the mask is False, is not read.
        dstate : like state, or None
            Gradient of the final state; either half of an LSTM's pair may be None.

        Returns
        -------
        dx : array like x, or None for token ids
            Zeros past a length and where the mask is False.
        dstate : like state
            Gradient of the initial state, in full even where the state was None.
        grads : dict of arrays
            Gradients of all parameters, with `state_dict`'s keys and shapes.

        Raises
        ------
        RuntimeError
            The tape was used before, belongs to another layer, or the weights have changed.
        ValueError, TypeError
            dy or dstate do not fit; the tape still serves then.
        """
        dx, dstate, grads = self._backward(tape, dy, dstate)
        return dx, dstate, {name: g.dense() if isinstance(g, SparseGradient) else g for name, g in grads.items()}

    def _backward(self, tape: Tape, dy: Any, dstate: Any = None) -> tuple[Array | None, State, dict[str, Any]]:
        """`backward`, with a `SparseGradient` for the input matrix where the input was token ids."""
        self._check_tape(tape)
        batch, unbatched, D = tape.batch, tape.unbatched, self._D
        d_rows = None if dy is None else self._check_dy(dy, batch, unbatched)
        dh, dc = self._check_state(dstate, "dstate", batch.B, unbatched, optional=True)
        tape.used = True
        x = tape.x[0]
        seen, place = compact_ids(x, self.input_size) if x.ndim == 1 else (None, None)
        grads: dict[str, Any] = {
            name: buffers.zeros(p.shape, self.dtype)
            if seen is None or not name.startswith("weight_ih_l0")
            else SparseGradient(seen, buffers.zeros((len(seen), len(p)), self.dtype), p.shape)
            for name, p in self._params.items()
        }
        _, blocks = self._blocks()
        h, c = batch.pack_states(dh, dc)
        for layer in reversed(range(self.num_layers if batch.rows.N else 0)):
            x = tape.x[layer] if layer or place is None else place
            dx = buffers.zeros(x.shape, self.dtype) if x.ndim == 2 else None
            for d, block in enumerate(blocks[layer]):
                at, R, kept, end = layer * D + d, self._R, tape.kept[layer][d], suffix(layer, d)
                into = {name: grads[name + end] for name in self._specs[layer].parameters}
                if isinstance(of_ids := into["weight_ih"], SparseGradient):
                    into["weight_ih"] = of_ids.rows  # the backend adds to these, however large the vocabulary
                columns = None if d_rows is None else d_rows[:, d * R : (d + 1) * R]
                if tape.checkpoint_every is None:
                    self._module.backward(block, x, batch.rows, h[at], _part(c, at), kept, columns, dx, into)
                else:
                    stretches, inputs = batch.rows.cut(tape.checkpoint_every), tape.x[layer]
                    walk = stretches[::-1] if d else stretches
                    self._backward_stretches(block, kept, walk, inputs, x, h[at], _part(c, at), columns, dx, into)
            mask = tape.masks[layer - 1] if layer else None
            d_rows = dx if mask is None or dx is None else dx * mask
        batch.unpack_states(dh, dc, h, c)
        dx = None
        if tape.x[0].ndim == 2:  # without any row, tape.x[0] is as empty as its gradient
            dx = batch.unpack(tape.x[0] if d_rows is None or not batch.rows.N else d_rows)
        return *self._give(dx, dh, dc, unbatched), grads

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
        _, blocks = self._blocks()
        flat = [of_layer[0] for of_layer in blocks]
        return Stream(self._module, self._specs, flat, self.dtype, positive(batch_size, "batch_size"))

    def to_arrays(self, form: str, head: Layer | None = None) -> dict[str, Array]:
        """The parameters as people write them by hand; see `fastlstm.from_arrays` for the forms."""
        from .arrays import to_arrays

        return to_arrays(self, form, head)


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
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size=proj_size,
            peepholes=flag(peepholes, "peepholes"),
            input_forget=flag(input_forget, "input_forget"),
            activations=activations,
            clip=clip,
            single_bias=flag(single_bias, "single_bias"),
            dtype=dtype,
            backend=backend,
            seed=seed,
        )


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
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            reset_after=flag(reset_after, "reset_after"),
            activations=activations,
            clip=clip,
            single_bias=flag(single_bias, "single_bias"),
            dtype=dtype,
            backend=backend,
            seed=seed,
        )


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
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            activations=nonlinearity,
            clip=clip,
            single_bias=flag(single_bias, "single_bias"),
            dtype=dtype,
            backend=backend,
            seed=seed,
        )
