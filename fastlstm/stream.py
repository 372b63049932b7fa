"""State kept between calls: a sequence fed step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy import ndarray  # found sooner than np.ndarray

from .layout import Array
from .memory import buffers
from .packing import Batch
from .spec import Spec
from .validation import as_array, as_numbers, check_ids, check_shape, rows_of, shape_error, state_parts


class Stream:
    """A recurrent layer that remembers: step by step it gives what one call over the whole sequence gives.

    Made by ``layer.stream(batch_size)``. It keeps the weights it began with; later changes to the layer do not reach
    it. One stream belongs to one thread at a time; any number of streams may share a layer.
    """

    def __init__(
        self, module: ModuleType, specs: Sequence[Spec], blocks: list[Any], dtype: np.dtype[Any], batch_size: int
    ) -> None:
        self._module, self._specs, self._blocks, self._dtype = module, specs, blocks, dtype
        self.batch_size = batch_size
        L, R, H = len(specs), specs[0].R, specs[0].H
        self._h: Array = np.zeros((L, batch_size, R), dtype)
        self._c: Array | None = np.zeros((L, batch_size, H), dtype) if specs[0].kind == "lstm" else None
        # Where every step finds its input, which is quicker than telling C where x is, and where it leaves its result.
        self._x: Array = np.zeros((batch_size, specs[0].I), dtype)
        self._ids: Array = np.zeros(batch_size, np.int64)
        self._top: Array = self._h[-1]
        self._x_shape = self._x.shape
        # The result of a step by the shape of its input: a sequence alone may come without a batch axis.
        self._results: dict[tuple[int, ...], Array] = {self._x_shape: self._top}
        if batch_size == 1:
            self._results[self._x_shape[1:]] = self._top[0]
        self._step = module.bind(blocks, self._x, self._h, self._c)
        self._step_ids: Callable[[], None] | None = None  # once ids come

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
        # The usual case in few words: checks and copies may be the costlier half of a small step.
        if type(x_t) is ndarray and x_t.dtype is self._dtype and x_t.shape == self._x_shape and out is None:
            self._x[...] = x_t
            self._step()
            return self._top.copy()
        return self._step_any(x_t, out)

    def _step_any(self, x_t: Any, out: Array | None) -> Array:
        """A step of any input, into any array."""
        if type(x_t) is ndarray and x_t.dtype is self._dtype and x_t.shape in self._results:
            rows, of_ids, y = x_t, False, self._results[x_t.shape]
        else:
            rows, of_ids, y = self._check_step(x_t)
        if out is not None:
            self._check_out(out, y.shape)
        if of_ids:
            self._ids[...] = rows
            if self._step_ids is None:
                self._step_ids = self._module.bind(self._blocks, self._ids, self._h, self._c)
            self._step_ids()
        else:
            self._x[...] = rows
            self._step()
        if out is None:
            return y.copy()
        out[...] = y
        return out

    def _check_step(self, x_t: Any) -> tuple[Array, bool, Array]:
        """(the input of a step with a batch axis, whether it is ids, where the result will be), or an error."""
        x, B = x_t if type(x_t) is ndarray else as_array(x_t, "x"), self.batch_size
        of_ids = x.dtype.kind in "iu"
        single = B == 1 and x.ndim == (0 if of_ids else 1)
        rows = self._check_rows(x[None] if single else x, (B,))
        return rows, of_ids, self._top[0] if single else self._top

    def _check_rows(self, x: Array, leading: tuple[int, ...]) -> Array:
        """x (*leading, I), contiguous and native, or a copy of ids of shape `leading`; or an error."""
        size = self._specs[0].I
        if x.dtype.kind in "iu":
            if x.ndim != len(leading):
                raise TypeError(
                    f"x has dtype {x.dtype} and shape {x.shape}; integers are token ids of shape {leading}. "
                    f"For numbers, convert: x.astype('{self._dtype}')"
                )
            if x.shape != leading:
                meaning = f"batch_size is {self.batch_size}. For numbers, convert: x.astype('{self._dtype}')"
                raise shape_error(x, leading, "token ids", meaning)
            ids = np.array(x, np.int64, order="C")  # those that are checked must be those that are used
            check_ids(ids, size, self._dtype)
            return ids
        x = as_numbers(x, "x", self._dtype)
        if x.shape != (*leading, size):
            raise shape_error(x, (*leading, size), "x", f"batch_size is {self.batch_size}, input_size {size}")
        return np.ascontiguousarray(x, self._dtype)

    def _check_out(self, out: Array, shape: tuple[int, ...]) -> None:
        if type(out) is ndarray and out.dtype is self._dtype and out.shape == shape and out.flags.carray:
            return
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out must be a NumPy array to write to, got {type(out).__name__}")
        if out.dtype != self._dtype or out.shape != shape:
            raise ValueError(f"out has shape {out.shape} and dtype {out.dtype}, expected {shape} and {self._dtype}")
        if not (out.flags.c_contiguous and out.flags.writeable):
            raise ValueError(
                f"out must be C-contiguous and writeable: make it with numpy.empty({shape}, '{self._dtype}')"
            )

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
        """
        x = as_array(x, "x")
        rank = 1 if x.dtype.kind in "iu" else 2
        single = self.batch_size == 1 and x.ndim == rank
        if not single and x.ndim != rank + 1:
            numbers = f"(T, {self.batch_size}, {self._specs[0].I})"
            ids = f"token ids (T, {self.batch_size}), or {numbers} after x.astype('{self._dtype}')"
            raise ValueError(f"x has shape {x.shape}, expected {ids if rank == 1 else numbers}")
        wide = x[:, None] if single else x
        T, B, R = wide.shape[0], self.batch_size, self._h.shape[2]
        checked = self._check_rows(wide, (T, B))
        rows, flat = Batch.of(T, B, None).rows, checked.reshape(T * B, *checked.shape[2:])
        for layer, block in enumerate(self._blocks):
            y = buffers.empty((T * B, R), self._dtype)
            if T:
                self._module.forward([block], flat, rows, self._h, self._c, y, at=layer)
            flat = y
        return flat.reshape((T, R) if single else (T, B, R))

    # ----------------------------------------------------------------------------------------------------------- state
    @property
    def state(self) -> Any:
        """A copy of the state, (L, B, R) and (L, B, H): (h, c) for LSTM, h else. May be assigned, None for zeros.

        Raises
        ------
        TypeError, ValueError
            What is assigned does not fit; the state is as before.
        """
        return self._h.copy() if self._c is None else (self._h.copy(), self._c.copy())

    @state.setter
    def state(self, state: Any) -> None:
        if state is None:
            return self.reset()
        lstm, own = self._c is not None, [self._h] if self._c is None else [self._h, self._c]
        new = []
        for mine, given, which in zip(
            own, state_parts(state, lstm, "state", self._kind), "hc"[: len(own)], strict=True
        ):
            new.append(as_numbers(given, f"state's {which}", self._dtype))
            check_shape(new[-1], mine.shape, f"state's {which}", "(num_layers, batch_size, width)")
        for mine, given in zip(own, new, strict=True):
            mine[...] = given
        return None

    @property
    def _kind(self) -> str:
        """The layer's class, for messages."""
        return self._specs[0].kind.upper()

    def reset(self, rows: Any = None) -> None:
        """Back to the zero state: all sequences, or some.

        Parameters
        ----------
        rows : integers, or (B,) bools; optional
            Indices, each once, or a mask that is True for the sequences to be reset, such as an environment's `dones`.
            An empty list resets none.

        Raises
        ------
        TypeError, ValueError
            An index out of range or given twice, or a mask that does not hold bools; the state is as before.
        """
        at = slice(None) if rows is None else rows_of(rows, self.batch_size)
        for part in (self._h, self._c):
            if part is not None:
                part[:, at] = 0

    def copy(self) -> Stream:
        """Another stream with the same weights and, for now, the same state. So do copy.copy and copy.deepcopy."""
        other = Stream(self._module, self._specs, self._blocks, self._dtype, self.batch_size)
        other.state = self.state
        return other

    def __copy__(self) -> Stream:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Stream:
        return self.copy()  # packed weights never change, so that copies may share them

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a stream cannot be pickled, for it holds weights in its backend's form: pickle (layer, stream.state), and "
            "assign the state to layer.stream(batch_size).state"
        )
