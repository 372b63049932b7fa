"""Steps of a chain and its state: by one call of a backend's extra functions "rows", or module by module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy import ndarray  # a global name is found sooner than np.ndarray

from ..layout import Array
from ..num_threads import get_num_threads
from ..streams.lists import PackedList, packed_list
from ..validation import StateForm, rows_of
from .embedding import Embedding
from .quantised import recurrent_core
from .residual import Residual

# A step of fewer rows and of more multiply-adds goes part by part: threads share out the units of a cell only in a
# step of its own. Results are the same.
FEW_ROWS, MUCH_WORK = 12, 400_000

Bound = tuple[Array, list[Callable[[], None]], Array]  # the input of a step, its calls, and its output


def bound(model: Any, batch_size: int) -> BoundSteps | None:
    """The steps of a model, or None where a module of it has no stage, or its backend none of the functions."""
    try:
        packed = packed_list(model)
    except (TypeError, ValueError):  # float64, several backends, no recurrent module, modules of a user's own
        return None
    if packed.rows is None:
        return None
    return BoundSteps(packed, [(core._state, len(core._specs)) for core in _cores(model)], batch_size)


def _cores(model: Any) -> list[Any]:
    """The recurrent layers of a chain and of the chains in it, in their order."""
    found: list[Any] = []
    for module in model.modules:
        if hasattr(module, "modules"):
            found += _cores(module)
        elif (own := recurrent_core(module)) is not None:
            found.append(own[1])
    return found


class BoundSteps:
    """A state for each of B sequences, and a step of all of them with every array bound.

    Parameters
    ----------
    packed : PackedList
        With `rows`.
    forms : list of (StateForm, int)
        The form of a layer's state, and the number of layers, of each recurrent module.
    batch_size : int
    """

    def __init__(self, packed: PackedList, forms: Sequence[tuple[StateForm, int]], batch_size: int) -> None:
        self._packed, self._B, self._dtype = packed, batch_size, packed.dtype
        self._forms = [(replace(form, axes=("num_layers", "batch", "width")), L) for form, L in forms]
        # (B, width) for each part of the state: of each cell h and, for LSTM, c. A step changes them in place.
        self._by_parts = batch_size < FEW_ROWS and batch_size * packed.rows.work >= MUCH_WORK
        if self._by_parts:
            self._states = [self._zeros(width) for width in packed.widths]
        else:
            self._records = self._zeros(sum(packed.widths))
            ends = np.cumsum((0, *packed.widths))
            self._states = [self._records[:, i:j] for i, j in pairwise(ends)]
        self._bound: dict[bool, Bound] = {}  # by whether the input is token ids
        # Of x that needs no other check: none of token ids.
        self._x_shape = (batch_size, packed.input_size) if packed.takes_numbers else None
        self._x, self._calls, self._y = self._bind(not packed.takes_numbers)

    def _zeros(self, width: int) -> Array:
        return np.zeros((self._B, width), self._dtype)

    def _bind(self, of_ids: bool) -> Bound:
        """A step of numbers or of token ids, bound at the first call."""
        if of_ids not in self._bound:
            x: Array = np.zeros(self._B, np.int64) if of_ids else self._zeros(self._packed.input_size)
            calls: list[Callable[[], None]] = []
            y = self._bind_parts(x, calls) if self._by_parts else self._bind_all(x, calls)
            self._bound[of_ids] = x, calls, y
        return self._bound[of_ids]

    def _bind_all(self, x: Array, calls: list[Callable[[], None]]) -> Array:
        """Add one call of all stages, and return its output."""
        packed, y = self._packed, self._zeros(self._packed.output_size)
        calls.append(packed.module.bind_records(packed.rows, x, self._records, y, get_num_threads()))
        return y

    def _bind_parts(self, x: Array, calls: list[Callable[[], None]]) -> Array:
        """Add a call for each cell and for the stages between cells, and return the output of the last one."""
        packed, part = self._packed, 0
        for first, end in packed.runs():
            stage = packed.stages[first]
            if stage.kind == "cell":
                states = self._states[part : part + len(stage.widths)]
                calls.append(packed.module.bind([stage.block], x, tuple(s[None] for s in states)))
                part += len(states)
                y = states[0]
                if stage.skip:
                    y = self._zeros(stage.sizes[1])
                    calls.append(partial(np.add, x, states[0], y))
            else:
                y, none = self._zeros(packed.stages[end - 1].sizes[1]), self._zeros(0)
                calls.append(packed.module.bind_records(packed.rows.part(first, end), x, none, y, get_num_threads()))
            x = y
        return x

    def step(self, x_t: Any) -> Array:
        """See `fastlstm.nn.chain.SequentialStream.step`."""
        if type(x_t) is ndarray and x_t.dtype is self._dtype and x_t.shape == self._x_shape:  # fast path
            self._x[...] = x_t
            for call in self._calls:
                call()
            return self._y.copy()
        rows, ids, single = self._packed.checked(x_t, (self._B,), self._B == 1)
        x, calls, y = self._bind(ids)
        x[...] = rows
        for call in calls:
            call()
        return y[0].copy() if single else y.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> BoundSteps:
        other = BoundSteps(self._packed, self._forms, self._B)  # packed weights never change: both have the same ones
        for mine, own in zip(other._states, self._states, strict=True):
            mine[...] = own
        return other

    # ----------------------------------------------------------------------------------------------------------- state
    def state(self) -> list[Any]:
        """Copies of the recurrent modules' states."""
        states, at = [], 0
        for form, L in self._forms:
            parts = len(form.widths)
            own = [np.array(self._states[at + i : at + L * parts : parts]) for i in range(parts)]  # (L, B, width) each
            states.append(tuple(own) if parts > 1 else own[0])
            at += L * parts
        return states

    def take_state(self, states: Sequence[Any]) -> None:
        """Set the recurrent modules' states, or raise TypeError or ValueError and set none."""
        new = [form.check(state, (L, self._B), "state") for (form, L), state in zip(self._forms, states, strict=True)]
        ordered = [part for of_module in new for of_layer in zip(*of_module, strict=True) for part in of_layer]
        for mine, given in zip(self._states, ordered, strict=True):
            mine[...] = given

    def reset(self, rows: Any) -> None:
        """See `fastlstm.nn.chain.SequentialStream.reset`."""
        at = slice(None) if rows is None else rows_of(rows, self._B)
        for part in self._states:
            part[at] = 0


class ModuleSteps:
    """The same module by module, for every backend and every module.

    Parameters
    ----------
    model : Chain
    batch_size : int
    """

    def __init__(self, model: Any, batch_size: int) -> None:
        self._streams: dict[int, Any] = {}
        self._modules: list[Any] = []
        for at, module in enumerate(model.modules):
            core: Any = (module.module if isinstance(module, Residual) else module)._core
            if hasattr(core, "stream"):
                self._streams[at] = core.stream(batch_size)
                self._modules.append(module)
            else:
                self._modules.append(copy.deepcopy(module))

    def step(self, x_t: Any) -> Array:
        """See `fastlstm.nn.chain.SequentialStream.step`."""
        y: Any = np.asarray(x_t)
        for at, module in enumerate(self._modules):
            if at in self._streams:
                out = self._streams[at].step(y)
                y = y + out if isinstance(module, Residual) else out
            elif isinstance(module, Embedding):
                y = module(y[:, None])[:, 0]
            else:
                y = module(y)
        return y  # type: ignore[no-any-return]

    def state(self) -> list[Any]:
        """Copies of the recurrent modules' states."""
        return [stream.state for stream in self._streams.values()]

    def take_state(self, states: Sequence[Any]) -> None:
        """Set the recurrent modules' states, or raise TypeError or ValueError and set none."""
        before = self.state()
        try:
            for stream, state in zip(self._streams.values(), states, strict=True):
                stream.state = state
        except (TypeError, ValueError):
            for stream, state in zip(self._streams.values(), before, strict=True):
                stream.state = state
            raise

    def reset(self, rows: Any) -> None:
        """See `fastlstm.nn.chain.SequentialStream.reset`."""
        for stream in self._streams.values():
            stream.reset(rows)
