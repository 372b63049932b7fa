"""The compiled backend: kernels in csrc/, one text for every instruction set; float32.

This file only hands pointers over: what is computed, and by which contract, stands in `_backends.numpy` and csrc/api.h.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..forksafe import Lock
from ..layout import Array, RowMap, Rows
from ..memory import LARGE, buffers
from ..num_threads import get_num_threads
from ..spec import ACTIVATIONS, Spec
from ..storage import problem

try:
    from .._fastlstm_c import ffi, lib
except ImportError as error:
    ffi = lib = None
    _why_missing = str(error)

DTYPES = ("float32",)
STORAGES = ("float32",)  # enum fl_storage; every other storage is refused by name
EXTRAS = ("dense", "optimisers")
FLOAT32 = np.dtype(np.float32)
LEAST_CLIP = float(np.finfo(np.float32).tiny)  # fl_spec.clip == 0 means that there is none

if ffi is not None:  # module-level aliases: cheaper than attribute lookups, of which a short call does dozens
    NULL, new, from_buffer = ffi.NULL, ffi.new, ffi.from_buffer
    FLOATS, INTS, DOUBLES = ffi.typeof("float[]"), ffi.typeof("int64_t[]"), ffi.typeof("double[]")
    BYTES, GRADS = ffi.typeof("char[]"), ffi.typeof("fl_grads *")
    # A call of fewer multiply-adds keeps Python's lock; what a row counts for beside its own. See csrc/api.h.
    LOCKED_WORK, ROW_WORK = lib.fl_locked_work, lib.fl_row_work
    NO_MAP = (0, NULL)  # fl_row_map of packed outputs
KINDS = ("lstm", "gru", "rnn")  # enum fl_kind
ACTIVATION_IDS = {name: i for i, name in enumerate(ACTIVATIONS)}  # enum fl_activation


# --------------------------------------------------------------------------------------------------------- what is here
def unusable() -> str | None:
    """Why this backend cannot be used here, with the cure; None where it can."""
    if lib is None:
        note = Path(__file__).parent.parent / "_build_failed.txt"
        why = note.read_text(encoding="utf-8").strip() if note.exists() else _why_missing
        cure = "install a C compiler, then pip install --force-reinstall fastlstm"
        return f"its extension is missing ({why}). To get it: {cure}"
    return forced_isa_problem()


def supports(spec: Spec, storage: str, dtype: str) -> str | None:
    """See `_backends.numpy.supports`."""
    return problem(storage, dtype, STORAGES)


def isas() -> dict[str, str | None]:
    """Every compiled instruction set, best first: None where this machine has it, else why it cannot be used."""
    if lib is None:
        return {}
    names: dict[str, str | None] = {}
    while (name := lib.fl_isa_name(len(names))) != NULL:
        usable = lib.fl_isa_usable(len(names))
        names[ffi.string(name).decode()] = None if usable else "this processor does not have it"
    return names


def active_isa() -> str:
    """The instruction set for which weights are packed from now on."""
    at: int = lib.fl_isa_chosen()
    return list(isas())[at]


def choose_isa(name: str) -> None:
    """Pack weights for this instruction set from now on. What is packed already keeps its own."""
    known = isas()
    why = known.get(name, "it is not compiled in")
    if why is not None:
        usable = ", ".join(n for n, reason in known.items() if reason is None)
        raise ValueError(f"instruction set {name!r} cannot be used: {why}. Usable here: {usable}.")
    lib.fl_isa_choose(list(known).index(name))


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """`choose_isa` for a while."""
    before = active_isa()
    choose_isa(name)
    try:
        yield
    finally:
        choose_isa(before)


def forced_isa_problem() -> str | None:
    """Why the instruction set that FASTLSTM_ISA forces cannot be used; None where it can, or none is forced."""
    name = os.environ.get("FASTLSTM_ISA")
    if not name or lib is None:
        return None
    try:
        choose_isa(name)
    except ValueError as error:
        return f"FASTLSTM_ISA: {error}"
    return None


# -------------------------------------------------------------------------------------------------------------- memory
def aligned(floats: int) -> Array:
    """Uninitialised float32 memory that begins at a cache line."""
    return buffers.empty((floats,), FLOAT32) if 4 * floats >= LARGE else of_its_own(floats)


def of_its_own(floats: int) -> Array:
    """The same, never from the arena: what is kept for long would keep a piece that may be many times as large."""
    memory = np.empty(floats + 16, np.float32)
    skip = -(memory.__array_interface__["data"][0] // 4) % 16
    return memory[skip : skip + floats]


class Call:
    """The structs that C calls take, and their scratch memory, kept between calls.

    New structs would cost a short call their allocations, and fresh memory its page faults. Fields that rarely change
    are set only when they do: `rows`, `row_map`, `second` and `threads` are what `forward` has. Pointers to arrays of a
    call that is over stay in the structs, and are never used.
    """

    __slots__ = ("backward", "dense", "forward", "row_map", "rows", "scratch", "second", "threads")

    def __init__(self) -> None:
        self.forward, self.backward = new("fl_call *"), new("fl_backward_call *")
        self.dense = new("fl_dense_call *")
        self.scratch: tuple[Any, int] = (NULL, 0)  # fl_scratch
        self.rows: Rows | None = None
        self.row_map: RowMap | None = None
        self.second: Any = NULL  # fl_block *
        self.threads = 0

    def set_forward(self, second: Any, rows: Rows, row_map: RowMap | None, threads: int) -> None:
        """Set the fields of the struct for forward that rarely change."""
        struct = self.forward
        struct.second = second
        struct.rows = (NULL, NULL, _sizes(rows), rows.T)
        struct.row_map = NO_MAP if row_map is None else (row_map.step, from_buffer(INTS, row_map.sequences))
        struct.threads = threads
        struct.scratch = self.scratch
        self.second, self.rows, self.row_map, self.threads = second, rows, row_map, threads

    def grow(self, floats: int) -> None:
        """Scratch memory of so many floats."""
        self.scratch = self.forward.scratch = (pointer(of_its_own(floats)), floats)


_free: deque[Call] = deque(maxlen=16)  # calls of more threads at the same time are rare, and made anew


def run(kind: str, function: Any, fields: Any) -> None:
    """Set all fields of the struct `kind` but the scratch memory, and call a C function until that is large enough."""
    try:
        call = _free.pop()
    except IndexError:
        call = Call()
    struct = getattr(call, kind)
    struct[0] = fields
    struct.scratch = call.scratch
    while (need := function(struct)) > call.scratch[1]:
        call.grow(need)
        struct.scratch = call.scratch
    _free.append(call)


def pointer(a: Array | None) -> Any:
    """C pointer to a contiguous float32 array, which must outlive it; NULL for None."""
    return NULL if a is None else from_buffer(FLOATS, a)


# ------------------------------------------------------------------------------------------------------------- packing
@dataclass
class Block:
    """Packed weights of one direction of one layer, for the instruction set that was active."""

    spec: Spec
    reverse: bool
    handle: Any  # fl_block *
    params: Any  # fl_params *
    keep: list[Array]  # what the handle and the params point to
    packed: set[int]  # enum fl_panels: those that are there
    lock: Lock
    work: int  # multiply-adds of a row
    work_of_ids: int  # of a token id, which has no product with the input matrix


def pack(spec: Spec, params: dict[str, Array], storage: str | None = None, reverse: bool = False) -> Block:
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
    handle.isa, handle.storage, handle.reverse = lib.fl_isa_chosen(), STORAGES.index(storage or "float32"), reverse
    GH = spec.G * spec.H
    given = {name: pointer(np.ascontiguousarray(p)) for name, p in params.items()}
    if spec.biases == 1:  # C adds the two
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
        GH * (spec.I + spec.R) + ROW_WORK,
        GH * spec.R + ROW_WORK,
    )
    _pack(block, lib.FL_FORWARD)
    return block


def _pack(block: Block, panels: int) -> None:
    memory = aligned(-(-lib.fl_pack_size(block.handle, panels) // 4))
    lib.fl_pack(block.handle, block.params, panels, from_buffer(BYTES, memory))
    block.keep.append(memory)
    block.packed |= {panels, lib.FL_BACKWARD_IDS} if panels == lib.FL_BACKWARD else {panels}


# --------------------------------------------------------------------------------------------------- forward, backward
# A C pointer does not keep its array alive: the arrays are arguments of the call that uses it, and so outlive it.


def _sizes(rows: Rows) -> Any:
    """C pointer to the batch sizes, made once."""
    sizes = rows.handles.get("c")
    if sizes is None:
        sizes = rows.handles["c"] = from_buffer(INTS, rows.batch_sizes)
    return sizes


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
        call = _free.pop()
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
    while (need := function(struct, *changing)) > call.scratch[1]:  # the next attempt may be planned otherwise
        call.grow(need)
    _free.append(call)


def _rows_apart(a: Array | None) -> tuple[Any, int]:
    """C pointer to columns of a perhaps wider array, whose rows then lie apart, and how far; NULL for None."""
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
            _sizes(rows),
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
    """See `_backends.numpy.bind`. Every pointer is taken here, once: a step is one C call."""
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
    vars(step)["alive"] = handles, pointers, blocks, memory  # what the stream points to
    return step


# --------------------------------------------------------------------------------------------------------- dense layer
@dataclass
class DenseBlock:
    """Packed weights of a dense layer, for the instruction set that was active."""

    handle: Any  # fl_dense *
    weight: Array  # (U, I), as it was
    keep: list[Array]  # what the handle points to
    lock: Lock


def dense_pack(params: dict[str, Array]) -> DenseBlock:
    """See `_backends.numpy.dense_pack`. The panels for backward are packed when it is first called."""
    handle = new("fl_dense *")
    (handle.U, handle.I), handle.isa = params["weight"].shape, lib.fl_isa_chosen()
    block = DenseBlock(handle, params["weight"].copy(), [], Lock())
    _dense_pack(block, params.get("bias"), backward=0)
    return block


def _dense_pack(block: DenseBlock, bias: Array | None, backward: int) -> None:
    memory = aligned(-(-lib.fl_dense_size(block.handle, backward) // 4))
    lib.fl_dense_pack(block.handle, pointer(block.weight), pointer(bias), backward, from_buffer(BYTES, memory))
    block.keep.append(memory)


def dense_forward(block: DenseBlock, x: Array) -> Array:
    """See `_backends.numpy.dense_forward`."""
    y = buffers.empty((len(x), block.handle.U), FLOAT32)
    if len(x):
        lib.fl_dense_forward(block.handle, pointer(x), len(x), pointer(y), get_num_threads())
    return y


def dense_backward(block: DenseBlock, x: Array, dy: Array, grads: dict[str, Array]) -> Array:
    """See `_backends.numpy.dense_backward`."""
    dx = buffers.empty(x.shape, FLOAT32)
    if len(x):
        _dense_call(lib.fl_dense_backward, block, x, dx, grads, dy=pointer(dy))
    return dx


def dense_cross_entropy(
    block: DenseBlock, x: Array, targets: Array, factor: float, grads: dict[str, Array]
) -> tuple[Array, Array]:
    """See `_backends.numpy.dense_cross_entropy`."""
    losses, logits = np.empty(len(x)), buffers.empty((len(x), block.handle.U), FLOAT32)
    dx = buffers.empty(x.shape, FLOAT32)
    if len(x):
        given = {"targets": from_buffer(INTS, targets), "factor": factor}
        made = {"logits": pointer(logits), "losses": from_buffer(DOUBLES, losses)}
        _dense_call(lib.fl_dense_cross_entropy, block, x, dx, grads, **given, **made)
    return losses, dx


def _dense_call(function: Any, block: DenseBlock, x: Array, dx: Array, grads: dict[str, Array], **fields: Any) -> None:
    """Call one of the two functions with a backward in them; `fields` of fl_dense_call are those that only it reads."""
    with block.lock:
        if block.handle.backward == NULL:
            _dense_pack(block, None, backward=1)
    given = {
        "dense": block.handle,
        "x": pointer(x),
        "N": len(x),
        "dx": pointer(dx),
        "dweight": pointer(grads["weight"]),
        "dbias": pointer(grads.get("bias")),
        "threads": get_num_threads(),
        **fields,
    }
    run("dense", function, given)


# ---------------------------------------------------------------------------------------------------------- optimisers
RULES = ("sgd", "adam", "rmsprop", "adagrad")  # enum fl_rule_kind


def _spans(arrays: Sequence[Sequence[Array | None]]) -> Any:
    """fl_span[] of (p,) or (p, g, whatever is kept), contiguous float32 arrays, None where a thing is not kept."""
    spans = new("fl_span[]", len(arrays))
    for span, one in zip(spans, arrays, strict=True):
        span.p, span.n = pointer(one[0]), 0 if one[0] is None else one[0].size
        if len(one) > 1:
            span.g = pointer(one[1])
        for place, kept in enumerate(one[2:]):
            span.kept[place] = pointer(kept)
    return spans


def update(rule: str, numbers: Mapping[str, float], arrays: Sequence[Sequence[Array | None]]) -> None:
    """One step of an optimiser over many parameters, in one pass.

    Parameters
    ----------
    rule : str
        Of `RULES`.
    numbers : dict
        Fields of fl_rule; 0 where absent.
    arrays : sequence of (p, g, whatever is kept)
        Contiguous float32 arrays of one size each; None where a thing is not kept.
    """
    handle = new("fl_rule *", {"kind": RULES.index(rule), **numbers})
    lib.fl_update(handle, _spans(arrays), len(arrays), get_num_threads())


def update_columns(p: Array, ids: Array, rows: Array, lr: float) -> None:
    """p[:, ids] -= lr * rows.T; no id comes twice."""
    J, V = p.shape
    data = pointer(p), J, V, from_buffer(INTS, ids), len(ids), pointer(rows)
    lib.fl_update_columns(*data, lr, get_num_threads())


def square_sum(arrays: Sequence[Array]) -> float:
    """Sum of the squares of all numbers, in float64; the order is that of `optim.square_sum`."""
    spans = _spans([(a,) for a in arrays])
    sums = new("double[]", max(1, lib.fl_blocks(spans, len(arrays))))
    total: float = lib.fl_square_sum(spans, len(arrays), sums, get_num_threads())
    return total


def scale(arrays: Sequence[Array], factor: float) -> None:
    """Multiply all numbers, in place."""
    lib.fl_scale(_spans([(a,) for a in arrays]), len(arrays), factor, get_num_threads())
