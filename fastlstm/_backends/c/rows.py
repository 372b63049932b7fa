"""Steps of models whose states lie anywhere: in records, or in the slabs of many streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...layout import Array
from ...spec import activation
from .calls import BYTES, FLOATS, INTS, NULL, aligned, from_buffer, new, of_its_own, pointer
from .extension import ffi, lib
from .recurrent import ACTIVATION_IDS, Block, packed_for

if ffi is not None:
    ROW_WORK: int = lib.fl_row_work
    SLOTS = ffi.typeof("fl_slot[]")
    UNSIGNED, SHORTS = ffi.typeof("uint64_t[]"), ffi.typeof("int32_t[]")


class Model:
    """Stages in the form of C: fl_model, and the memory that it points to."""

    def __init__(self, stages: Sequence[Any]) -> None:
        self.stages = stages
        self._keep: list[Any] = []
        blocks: list[Block] = [stage.block for stage in stages if stage.kind == "cell"]
        isa = blocks[0].handle.isa if blocks else lib.fl_isa_chosen()
        self._array = new("fl_stage[]", len(stages))
        for made, stage in zip(self._array, stages, strict=True):
            (made.I, made.U), made.skip, made.frames = stage.sizes, stage.skip, stage.frames
            getattr(self, f"_set_{stage.kind}")(made, stage, isa)
        self.handle = new("fl_model *", {"stages": self._array, "S": len(stages), "isa": isa})
        self.work = sum(map(work_of, stages))  # multiply-adds of a row

    def part(self, first: int, end: int) -> Model:
        """The stages from `first` to `end`, with the same memory."""
        other = object.__new__(Model)
        other.stages, other._keep, other._array = self.stages[first:end], self._keep, self._array
        other.handle = new("fl_model *", {"stages": self._array + first, "S": end - first, "isa": self.handle.isa})
        other.work = sum(map(work_of, other.stages))
        return other

    def _set_lookup(self, made: Any, stage: Any, isa: int) -> None:
        made.kind, made.table = lib.FL_STAGE_LOOKUP, pointer(stage.weight)
        made.act.id = ACTIVATION_IDS["identity"]

    def _set_cell(self, made: Any, stage: Any, isa: int) -> None:
        block = packed_for(stage.block, isa)
        made.kind, made.block = lib.FL_STAGE_CELL, block.handle
        self._keep.append(block)

    def _set_dense(self, made: Any, stage: Any, isa: int) -> None:
        dense = new("fl_dense *")
        (dense.U, dense.I), dense.isa = stage.weight.shape, isa
        memory = aligned(-(-lib.fl_dense_size(dense, 0) // 4))
        lib.fl_dense_pack(dense, pointer(stage.weight), pointer(stage.bias), 0, from_buffer(BYTES, memory))
        made.kind, made.dense = lib.FL_STAGE_DENSE, dense
        self._keep += [dense, memory]
        _set_activation(made, stage)

    def _set_context(self, made: Any, stage: Any, isa: int) -> None:
        made.kind = lib.FL_STAGE_CONTEXT

    def _set_gather(self, made: Any, stage: Any, isa: int) -> None:
        runs = runs_of(stage.weight)
        made.kind, made.count, made.runs = lib.FL_STAGE_GATHER, len(runs), from_buffer(SHORTS, runs)
        self._keep.append(runs)

    def _set_magnitude(self, made: Any, stage: Any, isa: int) -> None:
        made.kind = lib.FL_STAGE_MAGNITUDE

    def _set_pointwise(self, made: Any, stage: Any, isa: int) -> None:
        made.kind = lib.FL_STAGE_POINTWISE
        _set_activation(made, stage)


def work_of(stage: Any) -> int:
    """Multiply-adds of a row of a stage, and what a row costs beside them, in the same unit."""
    if stage.kind == "cell":
        return int(stage.block.work)
    return ROW_WORK + (stage.frames * stage.weight.size if stage.kind == "dense" else 0)


def runs_of(index: Array) -> Array:
    """(count, 2) int32 place and length of each run of places that follow one another, or of -1."""
    follows = np.where(index[:-1] < 0, index[1:] < 0, index[1:] == index[:-1] + 1)
    begins = np.flatnonzero(np.concatenate(([True], ~follows)))
    lengths = np.diff(np.append(begins, len(index)))
    return np.ascontiguousarray(np.stack((index[begins], lengths), axis=1), np.int32)


def _set_activation(made: Any, stage: Any) -> None:
    """The activation of a stage: softmax, or one of `spec.ACTIVATIONS`."""
    if stage.activation == "softmax":
        made.act.id = lib.FL_SOFTMAX
        return
    f = activation("identity" if stage.activation == "linear" else stage.activation)
    made.act.id, made.act.alpha, made.act.beta = ACTIVATION_IDS[f.name], f.alpha, f.beta


def pack_rows(stages: Sequence[Any]) -> Model:
    """The stages of a model in the form that `bind_rows` and `bind_records` take.

    Parameters
    ----------
    stages : list of fastlstm.streams.stages.Stage
        Cells with blocks of this backend, of one direction each.
    """
    return Model(stages)


def bind_records(model: Model, x: Array, records: Array, y: Array, threads: int) -> Callable[[], None]:
    """One step of n rows, with everything bound.

    Parameters
    ----------
    model : Model
        Of `pack_rows`.
    x : (n, I) array, or (n,) int64 token ids from 0 to I - 1
        Read by every step.
    records : (n, width) array
        The states, which every step changes: for each cell h and, for LSTM, c; for each context the kept
        inputs. The width is 0 where there is no state.
    y : (n, U) array
        Written by every step.
    threads : int
        Most threads of a step.
    """
    n, of_ids, width = len(x), x.ndim == 1, records.shape[1]
    begin, stride = records.__array_interface__["data"][0], records.strides[0]
    pointers = new("float *[]", [ffi.cast("float *", begin + i * stride) for i in range(n)]) if width else NULL
    given = from_buffer(INTS, x) if of_ids else from_buffer(FLOATS, x)
    memory = of_its_own(lib.fl_records_scratch(model.handle, n, threads))
    fields = {
        "model": model.handle,
        "n": n,
        "records": pointers,
        "ids" if of_ids else "x": given,
        "y": from_buffer(FLOATS, y),
        "threads": threads,
        "scratch": pointer(memory),
    }
    step = new("fl_records *", fields)
    function = partial(lib.flq_step_records if n * model.work < lib.fl_locked_work else lib.fl_step_records, step)
    vars(function)["alive"] = model, x, records, y, pointers, given, memory  # what the struct points to
    return function


class BoundRows:
    """Packed weights and slabs, bound to C; see `bind_rows`."""

    def __init__(self, model: Model, slabs: Any, threads: int) -> None:
        self._slabs, self._known, self._room = slabs, 0, 0
        self._model = model
        self._alive: list[Any] = []  # the arrays that the pointers point to
        self._records, self._slots = new("float *[]", 1), new("fl_slot *[]", 1)
        self._struct = new(
            "fl_streams *",
            {
                "model": model.handle,
                "threads": threads,
                "stride": slabs.stride,
                "counted": from_buffer(UNSIGNED, slabs.counted),
            },
        )
        self.most_locked = max(0, (lib.fl_locked_work - 1) // model.work)
        self.add()
        self.reserve(1)

    def add(self) -> None:
        """Bind the slabs that are new; called after the slabs have grown."""
        have = len(self._slabs.records)
        if have > self._known:
            if have > len(self._records):
                room = 2 * have
                records, slots = new("float *[]", room), new("fl_slot *[]", room)
                size = ffi.sizeof("float *") * self._known
                ffi.memmove(records, self._records, size)
                ffi.memmove(slots, self._slots, size)
                self._records, self._slots = records, slots
            for i in range(self._known, have):
                record, slot = pointer(self._slabs.records[i]), from_buffer(SLOTS, self._slabs.slots[i])
                self._records[i], self._slots[i] = record, slot
                self._alive.append((record, slot))
            self._struct.records, self._struct.slots = self._records, self._slots
            self._known = self._struct.slabs = have

    def reserve(self, n: int) -> None:
        """Scratch memory for steps of at most n rows."""
        self._memory = of_its_own(lib.fl_rows_scratch(self._struct, n))
        self._struct.scratch = pointer(self._memory)
        self._room = n

    def step(self, handles: Array, x: Array, y: Array, now: float) -> bool:
        """One step of streams; see `bind_rows`."""
        n = handles.size
        if n == 1 and x.ndim == 2 and self.most_locked:
            return self.step_one(handles.item(), x, y, now)
        if n > self._room:
            self.reserve(max(n, 2 * self._room))
        function = lib.flq_step_rows if n <= self.most_locked else lib.fl_step_rows
        try:
            rows = (from_buffer(FLOATS, x), NULL) if x.ndim == 2 else (NULL, from_buffer(INTS, x))
            done = function(self._struct, from_buffer(INTS, handles), n, *rows, from_buffer(FLOATS, y), now)
        except ValueError:  # an array is not contiguous
            return False
        return bool(done)

    def step_one(self, handle: int, x: Array, y: Array, now: float) -> bool:
        """The same for one stream, x (I,) and y (U,), where most_locked is not 0."""
        try:
            done = lib.flq_step_row(self._struct, handle, from_buffer(FLOATS, x), from_buffer(FLOATS, y), now)
        except (ValueError, OverflowError):
            return False
        return bool(done)


def bind_rows(model: Model, slabs: Any, threads: int) -> BoundRows:
    """One step of some of many streams, with weights and slabs bound.

    Parameters
    ----------
    model : Model
        Of `pack_rows`.
    slabs : fastlstm.streams.slabs.Slabs
        The states. After they have grown, ``add`` is called.
    threads : int
        Most threads of a step.

    Returns
    -------
    rows : object
        Its ``step(handles, x, y, now)`` takes handles (n,), x (n, I) or token ids (n,), y (n, U), which is overwritten,
        and the time; it returns False, with no state changed, where a handle is not that of an open stream or comes
        twice, or an array is not contiguous. ``step_one`` is the same for one stream. Steps of at most ``most_locked``
        rows keep Python's lock.
    """
    return BoundRows(model, slabs, threads)
