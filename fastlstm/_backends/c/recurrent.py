"""Recurrent layers: packed weights, forward, backward, and a step of a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ...forksafe import Lock
from ...layout import Array, RowMap, Rows
from ...num_threads import get_num_threads
from ...spec import ACTIVATIONS, Spec
from ...storage import MATRICES, SCALE, Form, Storage, bounded, problem
from ...storage import STORAGES as STORAGES_OF
from .calls import (
    BYTES,
    FLOAT32,
    FLOATS,
    INTS,
    NULL,
    Call,
    aligned,
    free_calls,
    from_buffer,
    new,
    pointer,
    run,
    sizes_of,
)
from .extension import ffi, lib

STORAGES = ("float32", "float16", "int8", "int16")  # enum fl_storage; every other storage is refused by name
KINDS = ("lstm", "gru", "rnn")  # enum fl_kind
ACTIVATION_IDS = {name: i for i, name in enumerate(ACTIVATIONS)}  # enum fl_activation
LEAST_CLIP = float(np.finfo(np.float32).tiny)  # smallest clip: fl_spec.clip == 0 means no clip

if ffi is not None:
    GRADS = ffi.typeof("fl_grads *")
    # Calls of fewer multiply-adds keep Python's lock, and a row counts as this many more. See csrc/api.h.
    LOCKED_WORK, ROW_WORK = lib.fl_locked_work, lib.fl_row_work


def supports(spec: Spec, storage: str, dtype: str) -> str | None:
    """See `_backends.numpy.supports`."""
    return problem(storage, dtype, STORAGES)


@dataclass
class Block:
    """Packed weights of one direction of one layer, for the instruction set that was active at packing."""

    spec: Spec
    reverse: bool
    handle: Any  # fl_block *
    params: Any  # fl_params *
    keep: list[Array]  # arrays that the handle and the params point to
    packed: set[int]  # enum fl_panels: the panels packed so far
    lock: Lock
    work: int  # multiply-adds of a row of numbers
    work_of_ids: int  # multiply-adds of a token id's row, without a product with the input matrix


def pack(
    spec: Spec,
    params: dict[str, Array],
    storage: str | None = None,
    reverse: bool = False,
    x_form: Form | None = None,
) -> Block:
    """See `_backends.numpy.pack`. The panels for backward are packed when it is first called."""
    why = supports(spec, storage or "float32", "float32")
    if why is not None:
        raise ValueError(f"backend 'c' {why}.")
    handle = new("fl_block *")
    s = handle.spec
    s.kind, s.I, s.H, s.R = KINDS.index(spec.kind), spec.I, spec.H, spec.R
    s.projected, s.peepholes, s.reset_after = bool(spec.proj_size), spec.peepholes, spec.reset_after
    s.input_forget, s.clip = spec.input_forget, 0 if spec.clip is None else max(spec.clip, LEAST_CLIP)
    for at, f in enumerate(spec.activations):
        s.act[at].id, s.act[at].alpha, s.act[at].beta = ACTIVATION_IDS[f.name], f.alpha, f.beta
    storage = storage or "float32"
    handle.isa, handle.storage, handle.reverse = lib.fl_isa_chosen(), STORAGES.index(storage), reverse
    _set_forms(handle, spec, storage, x_form)
    GH, speed = spec.G * spec.H, lib.fl_integers_speed(handle.storage)
    given = _given(params, STORAGES_OF[storage])
    if spec.biases == 1:  # C adds two biases: the second one is zero
        given["bias_hh"] = pointer(np.zeros(GH, np.float32))
    keep = list(given.values())
    block = Block(
        spec,
        reverse,
        handle,
        new("fl_params *", given),
        keep,
        set(),
        Lock(),
        int(GH * (spec.I + spec.R) / speed) + ROW_WORK,
        int(GH * spec.R / speed) + ROW_WORK,
    )
    _pack(block, lib.FL_FORWARD)
    return block


def _set_forms(handle: Any, spec: Spec, storage: str, x_form: Form | None) -> None:
    """Set the fields of a block that say how the other operands of a matrix of integers are rounded."""
    kept = STORAGES_OF[storage]
    x_form = x_form or kept.form()
    h_form, m_form = kept.form(bounded(spec) and not spec.proj_size), kept.form(bounded(spec))
    handle.x_planes = 1
    if x_form is not None and h_form is not None and m_form is not None:
        handle.x_least, handle.h_least, handle.m_least = x_form.least, h_form.least, m_form.least
        handle.x_planes = 1 if x_form.largest <= kept.operand else 2


def _given(params: dict[str, Array], storage: Storage) -> dict[str, Any]:
    """The fields of fl_params: pointers to contiguous arrays, the matrices in their storage."""
    given: dict[str, Any] = {}
    for name, p in params.items():
        if name not in MATRICES:
            if not name.endswith(SCALE.format("")):
                given[name] = pointer(np.ascontiguousarray(p))
            continue
        kept = storage.matrix(params, name)
        values = np.ascontiguousarray(kept.values)
        given[name] = pointer(values) if values.dtype == FLOAT32 else from_buffer(BYTES, values.view(np.int8))
        if kept.scales is not None:
            given[name.replace("weight", "scale")] = pointer(kept.scales)
    return given


def _pack(block: Block, panels: int) -> None:
    memory = aligned(-(-lib.fl_pack_size(block.handle, panels) // 4))
    lib.fl_pack(block.handle, block.params, panels, from_buffer(BYTES, memory))
    block.keep.append(memory)
    block.packed |= {panels, lib.FL_BACKWARD_IDS} if panels == lib.FL_BACKWARD else {panels}


def packed_for(block: Block, isa: int) -> Block:
    """The block, or its weights packed anew for another instruction set."""
    if block.handle.isa == isa:
        return block
    handle = new("fl_block *", block.handle[0])
    handle.isa = isa
    other = replace(block, handle=handle, keep=list(block.keep), packed=set(), lock=Lock())
    _pack(other, lib.FL_FORWARD)
    return other


def pack_for_backward(blocks: Sequence[Sequence[Block]]) -> None:
    """Pack, of blocks that no other thread has, what `backward` would pack at its first call over numbers."""
    for of_layer in blocks:
        for block in of_layer:
            _pack(block, lib.FL_BACKWARD)


# --------------------------------------------------------------------------------------------------- forward, backward
# A C pointer does not keep its array alive. The arrays are arguments of the Python call, and so live until it returns.


def forward(
    blocks: list[Block],
    x: Array,
    rows: Rows,
    states: tuple[Array, ...],
    y: Array | None,
    tapes: Array | None = None,
    at: int = 0,
    row_map: RowMap | None = None,
) -> None:
    """See `_backends.numpy.forward`."""
    first, D, of_ids = blocks[0], len(blocks), x.ndim == 1
    h, c = states if len(states) > 1 else (states[0], None)
    work = rows.N * D * (first.work_of_ids if of_ids else first.work)
    threads, second = get_num_threads(), blocks[1].handle if D > 1 else NULL
    try:
        call = free_calls.pop()
    except IndexError:
        call = Call()
    if call.rows is not rows or call.threads != threads or call.row_map is not row_map or call.second is not second:
        call.set_forward(second, rows, row_map, threads)
    changing: tuple[Any, ...] = (
        first.handle,
        NULL if of_ids else from_buffer(FLOATS, x),
        from_buffer(INTS, x) if of_ids else NULL,
        from_buffer(FLOATS, h[at:] if at else h),
        NULL if c is None else from_buffer(FLOATS, c[at:] if at else c),
        NULL if tapes is None else from_buffer(FLOATS, tapes),
        NULL if y is None else from_buffer(FLOATS, y),
    )
    struct, function = call.forward, lib.flq_forward
    if work >= LOCKED_WORK:
        lib.fl_set(struct, *changing)
        function, changing = lib.fl_forward, ()
    while (need := function(struct, *changing)) > call.scratch[1]:  # the plan of the next attempt may differ
        call.grow(need)
    free_calls.append(call)


def _rows_apart(a: Array | None) -> tuple[Any, int]:
    """(C pointer, floats from one row to the next) of rows, perhaps columns of a wider array; NULL for None."""
    if a is None:
        return NULL, 0
    if a.flags.c_contiguous:
        return from_buffer(FLOATS, a), a.shape[1]
    return ffi.cast("float *", a.__array_interface__["data"][0]), a.strides[0] // a.itemsize


def backward(
    block: Block,
    x: Array,
    rows: Rows,
    states: tuple[Array, ...],
    tape: Array,
    dy: Array | None,
    dx: Array | None,
    grads: dict[str, Array],
) -> None:
    """See `_backends.numpy.backward`."""
    of_ids = x.ndim == 1
    h, c = states if len(states) > 1 else (states[0], None)
    panels = lib.FL_BACKWARD_IDS if of_ids else lib.FL_BACKWARD
    if panels not in block.packed:
        with block.lock:
            if panels not in block.packed:
                _pack(block, panels)
    gradients = new(GRADS, {name: from_buffer(FLOATS, g) for name, g in grads.items()})
    fields = (  # fl_backward_call
        block.handle,
        (
            NULL if of_ids else from_buffer(FLOATS, x),
            from_buffer(INTS, x) if of_ids else NULL,
            sizes_of(rows),
            rows.T,
        ),
        from_buffer(FLOATS, h),
        pointer(c),
        from_buffer(FLOATS, tape),
        *_rows_apart(dy),
        pointer(dx),
        gradients,
        get_num_threads(),
    )
    run("backward", lib.fl_backward, fields)


# ----------------------------------------------------------------------------------------------------------- streaming
def bind(blocks: list[Block], x: Array, states: tuple[Array, ...]) -> Callable[[], None]:
    """See `_backends.numpy.bind`. Pointers are taken once, so that a step is one C call."""
    h, c = states if len(states) > 1 else (states[0], None)
    L, B = h.shape[:2]
    handles = new("fl_block *[]", [k.handle for k in blocks])
    given = {"ids": from_buffer(INTS, x)} if x.ndim == 1 else {"x": from_buffer(FLOATS, x)}
    pointers = {"blocks": handles, "h": pointer(h), "c": pointer(c), **given}
    stream = new("fl_stream *", {"L": L, "threads": get_num_threads(), "B": B, **pointers})
    memory = aligned(lib.fl_step_scratch(stream))
    stream.scratch = pointer(memory)
    work = B * (blocks[0].work_of_ids if x.ndim == 1 else blocks[0].work) + B * sum(k.work for k in blocks[1:])
    step = partial(lib.flq_step if work < LOCKED_WORK else lib.fl_step, stream)
    vars(step)["alive"] = handles, pointers, blocks, memory  # keeps the arrays alive that the stream points to
    return step
