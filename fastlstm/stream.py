"""State kept between calls: a sequence fed step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
from numpy import ndarray  # a global name is found sooner than np.ndarray

from . import engine
from .layout import Array
from .packing import Batch
from .validation import StateForm, check_out, checked_ids, checked_input, rows_of


def no_pickle(owner: str) -> TypeError:
    """The error of pickling a stream of a layer or a model."""
    return TypeError(
        f"a stream cannot be pickled, for it holds weights in its backend's form: pickle ({owner}, stream.state), and "
        f"assign the state to {owner}.stream(batch_size).state"
    )


class Stream:
    """A recurrent layer with a state: its steps have the same outputs as one call over the whole sequence.

    Made by ``layer.stream(batch_size)``. It keeps the layer's weights of that moment; later changes to the layer do not
    reach it. Only one thread at a time may use a stream; any number of streams may share a layer.
    """

    def __init__(self, module: ModuleType, blocks: engine.Blocks, form: StateForm, batch_size: int) -> None:
        self._module, self._blocks = module, blocks
        self._form = replace(form, axes=("num_layers", "batch", "width"))
        self._dtype = dtype = form.dtype
        self.batch_size = batch_size
        self._size: int = blocks[0][0].spec.I
        # The arrays of the state are bound to C: every step changes them in place, and none replaces them.
        self._states = form.zeros((len(blocks), batch_size))
        # Input and result of every step. Copying x to a bound array is quicker than passing C a pointer to it.
        self._x: Array = np.zeros((batch_size, self._size), dtype)
        self._ids: Array = np.zeros(batch_size, np.int64)
        self._top: Array = self._states[0][-1]
        self._x_shape = self._x.shape
        # The result of a step by the shape of its input: a single sequence may come without a batch axis.
        self._results: dict[tuple[int, ...], Array] = {self._x_shape: self._top}
        if batch_size == 1:
            self._results[self._x_shape[1:]] = self._top[0]
        self._step = self._bind(self._x)
        self._step_ids: Callable[[], None] | None = None  # bound at the first step of token ids

    def _bind(self, x: Array) -> Callable[[], None]:
        """A step of all layers whose input is x."""
        step: Callable[[], None] = self._module.bind([of_layer[0] for of_layer in self._blocks], x, self._states)
        return step

    # ------------------------------------------------------------------------------------------------------------ step
    def step(self, x_t: Any, out: Array | None = None) -> Array:
        """One step of every sequence.

        Parameters
        ----------
        x_t : (B, I) array of the layer's dtype; (I,) where batch_size is 1; token ids (B,), or a scalar
        out : (B, R) array, optional
            Written and returned; (R,) where x_t is (I,) or a scalar. Without it a fresh array is returned.

        Returns
        -------
        y : (B, R) or (R,) array

        Raises
        ------
        ValueError, TypeError
            x_t or out do not fit; the state is as before.
        """
        # Fast path: all checks in one line, since they may cost more than a small step.
        if type(x_t) is ndarray and x_t.dtype is self._dtype and x_t.shape == self._x_shape and out is None:
            self._x[...] = x_t
            self._step()
            return self._top.copy()
        return self._step_any(x_t, out)

    def _step_any(self, x_t: Any, out: Array | None) -> Array:
        """`step` with all checks, for every kind of input and output."""
        if type(x_t) is ndarray and x_t.dtype is self._dtype and x_t.shape in self._results:
            rows, ids, y = x_t, False, self._results[x_t.shape]
        else:
            rows, ids, single = checked_input(x_t, (self.batch_size,), self._size, self._dtype, self.batch_size == 1)
            rows = checked_ids(rows, self._size, self._dtype) if ids else rows
            y = self._top[0] if single else self._top
        if out is not None:
            check_out(out, y.shape, self._dtype)
        if ids:
            self._ids[...] = rows
            if self._step_ids is None:
                self._step_ids = self._bind(self._ids)
            self._step_ids()
        else:
            self._x[...] = rows
            self._step()
        if out is None:
            return y.copy()
        out[...] = y
        return out

    # ------------------------------------------------------------------------------------------------------------- run
    def run(self, x: Any) -> Array:
        """Many steps in one call, with the same result as `step` after `step`.

        Parameters
        ----------
        x : (T, B, I) array, or (T, I) where batch_size is 1; token ids (T, B) or (T,)
            Time first, whatever the layer's batch_first.

        Returns
        -------
        y : (T, B, R) or (T, R) array

        Raises
        ------
        ValueError, TypeError
            x does not fit; the state is as before.
        """
        B = self.batch_size
        x, ids, single = checked_input(x, ("T", B), self._size, self._dtype, B == 1)
        T = len(x)
        rows = checked_ids(x, self._size, self._dtype).reshape(T * B) if ids else np.ascontiguousarray(x, self._dtype)
        y = engine.forward(self._module, self._blocks, rows, Batch.of(T, B, None), self._states)
        return y[:, 0] if single else y

    # ----------------------------------------------------------------------------------------------------------- state
    @property
    def state(self) -> Any:
        """A copy of the state, (h, c) for LSTM, h for the others: (L, B, R), (L, B, H). May be assigned; None: zeros.

        Raises
        ------
        TypeError, ValueError
            The assigned value does not fit; the state is as before.
        """
        parts = tuple(s.copy() for s in self._states)
        return parts if len(parts) > 1 else parts[0]

    @state.setter
    def state(self, state: Any) -> None:
        new = self._form.check(state, self._states[0].shape[:2], "state")
        for mine, given in zip(self._states, new, strict=True):
            mine[...] = given

    def reset(self, rows: Any = None) -> None:
        """Set the state to zero: of all sequences, or of some.

        Parameters
        ----------
        rows : integers, or (B,) bools; optional
            Indices, each once, or a mask that is True for the sequences to reset, such as an environment's `dones`.
            None resets all, an empty list none.

        Raises
        ------
        TypeError, ValueError
            An index out of range or given twice, or a mask that does not hold bools; the state is as before.
        """
        at = slice(None) if rows is None else rows_of(rows, self.batch_size)
        for part in self._states:
            part[:, at] = 0

    def copy(self) -> Stream:
        """A stream with the same weights and a copy of the state; copy.copy and copy.deepcopy do the same."""
        other = Stream(self._module, self._blocks, self._form, self.batch_size)
        other.state = self.state
        return other

    def __copy__(self) -> Stream:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Stream:
        return self.copy()  # packed weights never change, so that copies may share them

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise no_pickle("layer")
