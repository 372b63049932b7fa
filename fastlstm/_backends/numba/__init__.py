"""The jitted backend: products, element-wise parts and the walk through time compiled by Numba; float32 and float64.

It is for float64, and for machines without a C compiler. `_backends.numpy` has the contract. The package `jitted` is
imported at the first call (by `runtime`), since numba is slow to import. The first call of a kind of layer in a dtype
compiles its kernels (some seconds); later processes read them from Numba's cache on disk.

Threads: `num_threads.get_num_threads` threads share out the sequences of a batch or, where there are few, the columns
of a large product, but no more threads than Numba has started (NUMBA_NUM_THREADS).
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ...layout import Array, RowMap, Rows, begin_tape, parts_of_tape
from ...memory import buffers
from ...spec import Spec
from ...storage import Form, problem
from .. import numpy as reference
from .runtime import SHARED, alone, kernels, team

__all__ = ["DTYPES", "EXTRAS", "STORAGES", "backward", "bind", "forward", "kernels", "pack", "supports", "unusable"]

DTYPES = ("float32", "float64")
STORAGES = ("float32", "float64")
EXTRAS = ()

NO_IDS = np.empty(0, np.int64)
PACKED = RowMap(0, np.empty(0, np.int64))


def unusable() -> str | None:
    """Why this backend cannot be used here, with the cure; None where it can. Does not import numba."""
    if importlib.util.find_spec("numba") is None:
        return "No module named 'numba'. To get it: pip install \"fastlstm[numba]\""
    return unusable_environment()


# The values of NUMBA_THREADING_LAYER in Numba's documentation.
THREADING_LAYERS = ("default", "safe", "forksafe", "threadsafe", "tbb", "omp", "workqueue")


def unusable_environment() -> str | None:
    """The environment variable, perhaps set for another program, with which Numba cannot be imported or compile."""
    threads, layer = os.environ.get("NUMBA_NUM_THREADS"), os.environ.get("NUMBA_THREADING_LAYER")
    if whole_number("NUMBA_NUM_THREADS", 1) < 1:
        return f"Numba refuses the environment variable NUMBA_NUM_THREADS={threads}: unset it, or set it to at least 1"
    if whole_number("NUMBA_DISABLE_JIT", 0):
        return "the environment variable NUMBA_DISABLE_JIT keeps Numba from compiling: unset it, or set it to 0"
    if layer is not None and layer not in THREADING_LAYERS:
        known = ", ".join(THREADING_LAYERS)
        return (
            f"Numba refuses the environment variable NUMBA_THREADING_LAYER={layer!r}: unset it, or take one of {known}"
        )
    return None


def whole_number(name: str, default: int) -> int:
    """The value of an environment variable; the default where it is no whole number, as in Numba."""
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        return default


def supports(spec: Spec, storage: str, dtype: str) -> str | None:
    """See `_backends.numpy.supports`."""
    return problem(storage, dtype, STORAGES) or (
        None if storage == dtype else f"keeps weights as the layer's dtype: use storage {dtype}, not {storage}"
    )


# ------------------------------------------------------------------------------------------------------------- packing
@dataclass
class Block:
    """Weights of one direction of one layer in the kernels' form; what only some calls need is made when needed."""

    spec: Spec
    reverse: bool
    W_x: Array  # (I, GH), whose rows token ids read
    w_h: tuple[Array, ...]  # panels of (R, GH); for GRU of r and z, and of n
    w_r: Array  # panels of (H, R), or empty
    b_x: Array  # (GH,)
    extra: Array  # (3, H) peepholes, or (1, H) b_hn, or empty
    act: Array  # (roles + 1,) ids of the activations, and whether f = 1 - i
    par: Array  # (roles, 5) alpha, beta, bound of the argument, value at -bound, value at bound

    @cached_property
    def of_numbers(self) -> tuple[Any, ...]:
        """The weights of the forward kernels."""
        return self._forward((kernels().panels(self.W_x), nothing(self.W_x.dtype), self.b_x))

    @cached_property
    def of_ids(self) -> tuple[Any, ...]:
        """The same where the input is token ids."""
        return self._forward((no_panels(self.W_x.dtype), self.W_x, self.b_x))

    def _forward(self, of_x: tuple[Array, ...]) -> tuple[Any, ...]:
        if self.spec.kind == "lstm":
            return *of_x, *self.w_h, self.w_r, self.extra, self.act, self.par
        if self.spec.kind == "gru":
            return *of_x, *self.w_h, self.extra[0], self.act, self.par, self.spec.reset_after
        return *of_x, *self.w_h, self.act, self.par

    @cached_property
    def backward(self) -> tuple[Any, ...]:
        """The weights of the backward kernels."""
        spec, k = self.spec, kernels()
        v_h = tuple(k.panels(k.unpacked(w, M).T) for w, M in zip(self.w_h, recurrent_widths(spec), strict=True))
        if spec.kind == "lstm":
            v_r = k.panels(k.unpacked(self.w_r, spec.R).T) if spec.proj_size else self.w_r
            return *v_h, v_r, self.extra, self.act, self.par
        if spec.kind == "gru":
            return *v_h, self.act, self.par, spec.reset_after
        return *v_h, self.act, self.par

    @cached_property
    def v_x(self) -> dict[int, Array]:
        """Panels of (., I), the transpose of W_x's columns, by the first column of each of the `Part` of backward."""
        ends = np.cumsum(recurrent_widths(self.spec))
        return {int(a): kernels().panels(self.W_x[:, a:b].T) for a, b in zip([0, *ends], ends, strict=False)}


def recurrent_widths(spec: Spec) -> tuple[int, ...]:
    """Columns of the matrices of x and h that are packed apart: all or, for GRU, those of r and z, and of n."""
    return (2 * spec.H, spec.H) if spec.kind == "gru" else (spec.G * spec.H,)


def pack(
    spec: Spec,
    params: dict[str, Array],
    storage: str | None = None,
    reverse: bool = False,
    x_form: Form | None = None,
) -> Block:
    """See `_backends.numpy.pack`, which transposes the matrices and adds the biases."""
    dtype = params["weight_hh"].dtype
    why = supports(spec, storage or dtype.name, dtype.name)
    if why is not None:
        raise ValueError(f"backend 'numba' {why}.")
    k, panels = reference.pack(spec, params, storage, reverse, x_form), kernels().panels
    ends = np.cumsum(recurrent_widths(spec))
    w_h = tuple(panels(k.W_h.values[:, a:b]) for a, b in zip([0, *ends], ends, strict=False))
    w_r = no_panels(dtype) if k.W_r is None else panels(k.W_r.values)
    extra = k.peep if spec.peepholes else k.b_hn[None] if spec.kind == "gru" else nothing(dtype)
    act = np.array([*(kernels().IDS[f.name] for f in spec.activations), spec.input_forget], np.int64)
    return Block(spec, reverse, k.W_x.values, w_h, w_r, k.b_x, extra, act, activation_numbers(k))


def activation_numbers(k: reference.Block) -> Array:
    """(roles, 5) numbers of each activation; see `Block.par`."""
    spec, dtype = k.spec, k.b_x.dtype
    par = np.zeros((len(spec.activations), 5), dtype)
    par[:, :2] = [(f.alpha, f.beta) for f in spec.activations]
    par[:, 2] = np.inf
    if spec.clip is not None and k.ends is not None:
        par[:, 2], par[:, 3:] = spec.clip, k.ends
        if spec.kind == "lstm":
            par[2, 2] = np.inf  # the cell state is not clipped on its way into the output
    return par


@functools.cache
def nothing(dtype: np.dtype[np.floating]) -> Array:
    """An empty array, in place of an absent one."""
    return np.empty((0, 0), dtype)


@functools.cache
def no_panels(dtype: np.dtype[np.floating]) -> Array:
    """The panels of an absent matrix."""
    return np.empty((0, 0, 0), dtype)


def plain(x: Array) -> Array:
    """x as the kernels' one array type, contiguous and writeable: a copy if x is not."""
    return np.require(x, requirements=("C", "A", "W"))


# ----------------------------------------------------------------------------------------------------------- threads
def work_of(spec: Spec, N: int, of_ids: bool = False) -> int:
    """Multiply-adds of N rows of a direction."""
    return N * spec.G * spec.H * (spec.R + (0 if of_ids else spec.I))


def bounds(rows: Rows, threads: int) -> Array | None:
    """(pieces + 1,) first sequences of the pieces that threads take, with about equal numbers of packed rows.

    None where all sequences are one piece: a tile of each thread would be far from full.
    """
    pieces = min(threads, rows.B // kernels().ROWS)
    if pieces < 2:
        return None
    steps = np.searchsorted(-rows.batch_sizes, -np.arange(rows.B), side="left")  # of each sequence
    done = np.concatenate(([0], np.cumsum(steps)))  # rows of the sequences before each
    cut: Array = np.searchsorted(done, np.arange(pieces + 1) * rows.N // pieces)
    return cut


def walk(name: str, threads: int | None, rows: Rows, *arguments: Any) -> None:
    """Call a kernel for all sequences, in pieces where several threads have enough to do."""
    cut = bounds(rows, threads) if threads else None
    if cut is None:
        getattr(kernels(), name)(threads, (0, rows.B), *arguments)
    else:
        getattr(kernels(), name + "_in_pieces")(cut, *arguments)


# ------------------------------------------------------------------------------------------------------------- forward
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
    spec = blocks[0].spec
    x = plain(x if x.ndim == 1 else x.reshape(rows.N, -1))
    y = None if y is None else y.reshape(-1, y.shape[-1])
    with team(work_of(spec, rows.N, x.ndim == 1)) as threads:
        for d, block in enumerate(blocks):
            own = tuple(s[at + d] for s in states)
            tape = {} if tapes is None else begin_tape(spec, tapes[d], rows, own)
            arguments = arguments_of(block, x, rows, own, y, d * spec.R, row_map or PACKED, tape)
            walk(f"{spec.kind}_forward", threads, rows, *arguments)


def arguments_of(
    block: Block,
    x: Array,
    rows: Rows,
    states: tuple[Array, ...],
    y: Array | None,
    column: int,
    row_map: RowMap,
    tape: dict[str, Array],
) -> tuple[Any, ...]:
    """What the forward kernel of a direction takes beside threads and sequences.

    Its outputs go to the columns of y from `column` on.
    """
    kind, empty = block.spec.kind, nothing(states[0].dtype)
    inputs, weights = ((empty, x), block.of_ids) if x.ndim == 1 else ((x, NO_IDS), block.of_numbers)
    outputs = empty if y is None else y, column, row_map.step, row_map.sequences
    kept = tuple(tape.get(name, empty) for name in TAPES[kind])
    return (rows.offsets, block.reverse), inputs, weights, states, outputs, kept


# The parts of a tape that the forward kernels write.
TAPES = {"lstm": ("gates", "c", "h", "m"), "gru": ("gates", "h"), "rnn": ("h",)}


# ------------------------------------------------------------------------------------------------------------ backward
class Part(NamedTuple):
    """Gradients of some columns of the products, side by side: all gates, or for GRU r and z, then n."""

    at: int  # the first of these columns, among the GH of all gates
    d_x: Array  # (N, columns) gradient of the input's product W_x x
    d_h: Array  # (N, columns) gradient of the recurrent product W_h left
    left: Array  # (N, .) operand of the recurrent product: the h before each step, or r * h


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
    dy = nothing(states[0].dtype) if dy is None else plain(dy)
    back = {"lstm": lstm_backward, "gru": gru_backward, "rnn": rnn_backward}[block.spec.kind]
    with team(work_of(block.spec, rows.N, x.ndim == 1)) as threads:
        for part in back(threads, block, states, parts_of_tape(block.spec, tape, rows), rows, dy, grads):
            add_up(threads, part, block, plain(x), dx, grads)


def previous(k: Block, tape: dict[str, Array], rows: Rows, name: str) -> Array:
    """The tape's part `name` one step before each row in walking order; the initial state at a sequence's start."""
    out = buffers.empty(tape[name].shape, tape[name].dtype)
    kernels().previous(rows.offsets, k.reverse, tape[name], tape[name + "0"], out)
    return out


def lstm_backward(
    threads: int | None,
    k: Block,
    states: tuple[Array, ...],
    tape: dict[str, Array],
    rows: Rows,
    dy: Array,
    grads: dict[str, Array],
) -> list[Part]:
    d, cells, spec = tape["gates"], tape["c"], k.spec
    h_prev, c_prev = previous(k, tape, rows, "h"), previous(k, tape, rows, "c")
    dh_all = buffers.empty(tape["h"].shape, d.dtype) if spec.proj_size else nothing(d.dtype)
    kept = d, cells, c_prev
    walk("lstm_backward", threads, rows, (rows.offsets, k.reverse), k.backward, dy, states, kept, dh_all)
    if spec.proj_size:
        kernels().add_weights(threads, dh_all, tape["m"], grads["weight_hr"])
    if spec.peepholes:
        for row, gate, cell in ((0, 0, c_prev), (1, 1, c_prev), (2, 3, cells)):
            kernels().add_scaled_sum(d, cell, gate * spec.H, grads["weight_peep"][row])
    return [Part(0, d, d, h_prev)]


def gru_backward(
    threads: int | None,
    k: Block,
    states: tuple[Array, ...],
    tape: dict[str, Array],
    rows: Rows,
    dy: Array,
    grads: dict[str, Array],
) -> list[Part]:
    gates, h_prev, after = tape["gates"], previous(k, tape, rows, "h"), k.spec.reset_after
    N, H = h_prev.shape
    d_rz, d_n, d_m = d = tuple(
        buffers.empty(shape, gates.dtype) for shape in ((N, 2 * H), (N, H), (N if after else 0, H))
    )
    walk("gru_backward", threads, rows, (rows.offsets, k.reverse), k.backward, dy, states, (gates, h_prev), d)
    recurrent = (d_m, h_prev) if after else (d_n, gates[:, 3 * H :].copy())  # the tape's last column: r * h
    return [Part(0, d_rz, d_rz, h_prev), Part(2 * H, d_n, *recurrent)]


def rnn_backward(
    threads: int | None,
    k: Block,
    states: tuple[Array, ...],
    tape: dict[str, Array],
    rows: Rows,
    dy: Array,
    grads: dict[str, Array],
) -> list[Part]:
    d = buffers.empty(tape["h"].shape, tape["h"].dtype)
    walk("rnn_backward", threads, rows, (rows.offsets, k.reverse), k.backward, dy, states, tape["h"], d)
    return [Part(0, d, d, previous(k, tape, rows, "h"))]


def add_up(threads: int | None, part: Part, block: Block, x: Array, dx: Array | None, grads: dict[str, Array]) -> None:
    """Add the part's sums over rows to the gradients of parameters and input."""
    k = kernels()
    columns = slice(part.at, part.at + part.d_x.shape[1])
    k.add_weights(threads, part.d_h, part.left, grads["weight_hh"][columns])
    if x.ndim == 1:
        k.add_to_ids(part.d_x, x, part.at, grads["weight_ih"])
    else:
        k.add_weights(threads, part.d_x, x, grads["weight_ih"][columns])
    for name, d in (("bias_ih", part.d_x), ("bias_hh", part.d_h))[: block.spec.biases]:
        k.add_sum(d, grads[name][columns])
    if dx is not None:
        k.add_product(threads, part.d_x, block.v_x[part.at], dx, 0, dx.shape[1])


# ----------------------------------------------------------------------------------------------------------- streaming
def bind(blocks: list[Block], x: Array, states: tuple[Array, ...]) -> Callable[[], None]:
    """See `_backends.numpy.bind`."""
    h = states[0]
    rows = Rows.dense(1, h.shape[1])
    work = max(work_of(k.spec, h.shape[1], i == 0 and x.ndim == 1) for i, k in enumerate(blocks))
    inputs = [x, *h[:-1]]
    layers = [
        (k.spec.kind + "_forward", arguments_of(k, inputs[i], rows, tuple(s[i] for s in states), None, 0, PACKED, {}))
        for i, k in enumerate(blocks)
    ]
    of_one_thread = [(getattr(kernels(), name), (None, (0, rows.B), *arguments)) for name, arguments in layers]

    def step() -> None:
        with alone() if work < SHARED else team(work) as threads:
            if threads is None:
                for kernel, arguments in of_one_thread:
                    kernel(*arguments)
            else:
                for name, arguments in layers:
                    walk(name, threads, rows, *arguments)

    return step
