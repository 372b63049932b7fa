"""The jitted backend: element-wise parts fused by Numba, matrix products through BLAS; float32 and float64.

It is for float64, and for machines without a C compiler. `_backends.numpy` has the contract. The package `jitted` is
imported at the first call (by `runtime`), since numba is slow to import. The first call of a kind of layer in a dtype
compiles its kernels (some seconds); later processes read them from Numba's cache on disk.

Threads: `num_threads.get_num_threads` threads share the element-wise part of a large step, but no more than Numba has
started (NUMBA_NUM_THREADS). The threads of the matrix products are set by BLAS's own means: OPENBLAS_NUM_THREADS and
the like, or threadpoolctl.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ...layout import Array, RowMap, Rows, begin_tape, parts_of_tape
from ...memory import buffers
from ...spec import Spec
from ...storage import Form, problem
from .. import numpy as reference
from .runtime import kernels, team

__all__ = ["DTYPES", "EXTRAS", "STORAGES", "backward", "bind", "forward", "kernels", "pack", "supports", "unusable"]

DTYPES = ("float32", "float64")
STORAGES = ("float32", "float64")
EXTRAS = ()

NO_IDS = np.empty(0, np.int64)
PACKED = RowMap(0, np.empty(0, np.int64))


def unusable() -> str | None:
    """Why this backend cannot be used here, with the cure; None where it can. Imports neither numba nor scipy."""
    for name in ("numba", "scipy"):  # np.dot in jitted code calls SciPy's BLAS
        if importlib.util.find_spec(name) is None:
            return f'No module named {name!r}. To get it: pip install "fastlstm[numba]"'
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
    """Weights of one direction of one layer: the reference's arrays and, made when needed, the kernels' form."""

    spec: Spec
    reverse: bool
    W_x: Array  # (I, GH)
    W_h: Array  # (R, GH)
    W_r: Array  # (H, R), or empty
    b_x: Array  # (GH,)
    extra: Array  # (3, H) peepholes, or (1, H) b_hn, or empty
    act: Array  # (roles + 1,) ids of the activations, and whether f = 1 - i
    par: Array  # (roles, 5) alpha, beta, bound of the argument, value at -bound, value at bound

    @cached_property
    def forward(self) -> tuple[Array, ...]:
        """The weights of the forward kernels: a matrix for each phase."""
        first, second, H = self.W_h, self.W_r, self.spec.H
        if self.spec.kind == "gru" and not self.spec.reset_after:
            first, second = np.ascontiguousarray(first[:, : 2 * H]), np.ascontiguousarray(first[:, 2 * H :])
        return self.W_x, self.b_x, first, second, self.extra, self.act, self.par

    @cached_property
    def backward(self) -> tuple[Array, ...]:
        """The weights of the backward kernels."""
        v_h, v_r = np.ascontiguousarray(self.W_h.T), np.ascontiguousarray(self.W_r.T)
        return v_h, v_r, self.extra, self.act, self.par

    @cached_property
    def v_x(self) -> Array:
        return np.ascontiguousarray(self.W_x.T)  # (GH, I)


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
    k = reference.pack(spec, params, storage, reverse, x_form)
    W_r = np.zeros((spec.H, 0), dtype) if k.W_r is None else k.W_r.values
    extra = k.peep if spec.peepholes else k.b_hn[None] if spec.kind == "gru" else nothing(dtype)
    act = np.array([*(kernels().IDS[f.name] for f in spec.activations), spec.input_forget], np.int64)
    return Block(spec, reverse, k.W_x.values, k.W_h.values, W_r, k.b_x, extra, act, activation_numbers(k))


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


def plain(x: Array) -> Array:
    """x as the kernels' one array type, contiguous and writeable: a copy if x is not."""
    return np.require(x, requirements=("C", "A", "W"))


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
    with team(rows.B * spec.H) as threads:
        for d, block in enumerate(blocks):
            own = tuple(s[at + d] for s in states)
            tape = {} if tapes is None else begin_tape(spec, tapes[d], rows, own)
            run(block, x, rows.offsets, own, y, d * spec.R, row_map or PACKED, tape, threads)


def run(
    block: Block,
    x: Array,
    offsets: Array,
    states: tuple[Array, ...],
    y: Array | None,
    column: int,
    row_map: RowMap,
    tape: dict[str, Array],
    threads: int,
) -> None:
    """Run one direction; its outputs go to the columns of y from `column` on."""
    empty = nothing(states[0].dtype)
    h, c = states if len(states) > 1 else (states[0], empty)
    kernel = getattr(kernels(), f"{block.spec.kind}_forward")
    rows, ids = (empty, x) if x.ndim == 1 else (x, NO_IDS)
    y = empty if y is None else y
    kept = tuple(tape.get(name, empty) for name in ("gates", "c", "h", "m"))
    at = row_map.step, row_map.sequences
    kernel(threads, offsets, block.reverse, rows, ids, block.forward, h, c, y, column, at, kept)


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
    with team(rows.B * block.spec.H) as threads:
        for part in back(threads, block, states, parts_of_tape(block.spec, tape, rows), rows.offsets, dy, grads):
            add_up(part, block, plain(x), dx, grads)


def previous(k: Block, tape: dict[str, Array], offsets: Array, name: str) -> Array:
    """The tape's part `name` one step before each row in walking order; the initial state at a sequence's start."""
    out = buffers.empty(tape[name].shape, tape[name].dtype)
    kernels().previous(offsets, k.reverse, tape[name], tape[name + "0"], out)
    return out


def lstm_backward(
    threads: int,
    k: Block,
    states: tuple[Array, ...],
    tape: dict[str, Array],
    offsets: Array,
    dy: Array,
    grads: dict[str, Array],
) -> list[Part]:
    d, cells, spec = tape["gates"], tape["c"], k.spec
    h_prev, c_prev = previous(k, tape, offsets, "h"), previous(k, tape, offsets, "c")
    dh_all = buffers.empty(tape["h"].shape, d.dtype) if spec.proj_size else nothing(d.dtype)
    kernels().lstm_backward(threads, offsets, k.reverse, dy, k.backward, *states, d, cells, c_prev, dh_all)
    if spec.proj_size:
        kernels().add_weights(dh_all, tape["m"], grads["weight_hr"])
    if spec.peepholes:
        for row, gate, cell in ((0, 0, c_prev), (1, 1, c_prev), (2, 3, cells)):
            kernels().add_scaled_sum(d, cell, gate * spec.H, grads["weight_peep"][row])
    return [Part(0, d, d, h_prev)]


def gru_backward(
    threads: int,
    k: Block,
    states: tuple[Array, ...],
    tape: dict[str, Array],
    offsets: Array,
    dy: Array,
    grads: dict[str, Array],
) -> list[Part]:
    gates, h_prev, after = tape["gates"], previous(k, tape, offsets, "h"), k.spec.reset_after
    N, H = h_prev.shape
    d_rz, d_n, d_m = (buffers.empty(shape, gates.dtype) for shape in ((N, 2 * H), (N, H), (N if after else 0, H)))
    kernels().gru_backward(threads, offsets, k.reverse, dy, k.backward, *states, gates, h_prev, d_rz, d_n, d_m)
    recurrent = (d_m, h_prev) if after else (d_n, gates[:, 3 * H :].copy())  # the tape's last column: r * h
    return [Part(0, d_rz, d_rz, h_prev), Part(2 * H, d_n, *recurrent)]


def rnn_backward(
    threads: int,
    k: Block,
    states: tuple[Array, ...],
    tape: dict[str, Array],
    offsets: Array,
    dy: Array,
    grads: dict[str, Array],
) -> list[Part]:
    d = buffers.empty(tape["h"].shape, tape["h"].dtype)
    kernels().rnn_backward(offsets, k.reverse, dy, k.backward, *states, tape["h"], d)
    return [Part(0, d, d, previous(k, tape, offsets, "h"))]


def add_up(part: Part, block: Block, x: Array, dx: Array | None, grads: dict[str, Array]) -> None:
    """Add the part's sums over rows to the gradients of parameters and input."""
    k = kernels()
    columns = slice(part.at, part.at + part.d_x.shape[1])
    k.add_weights(part.d_h, part.left, grads["weight_hh"][columns])
    if x.ndim == 1:
        k.add_to_ids(part.d_x, x, part.at, grads["weight_ih"])
    else:
        k.add_weights(part.d_x, x, grads["weight_ih"][columns])
    for name, d in (("bias_ih", part.d_x), ("bias_hh", part.d_h))[: block.spec.biases]:
        k.add_sum(d, grads[name][columns])
    if dx is not None:
        k.add_input(part.d_x, block.v_x[columns], dx)


# ----------------------------------------------------------------------------------------------------------- streaming
def bind(blocks: list[Block], x: Array, states: tuple[Array, ...]) -> Callable[[], None]:
    """See `_backends.numpy.bind`."""
    h = states[0]
    offsets = np.array([0, h.shape[1]])
    work = h.shape[1] * max(k.spec.H for k in blocks)
    inputs = [x, *h[:-1]]
    layers = [(k, inputs[i], tuple(s[i] for s in states)) for i, k in enumerate(blocks)]

    def step() -> None:
        with team(work) as threads:
            for k, below, own in layers:
                run(k, below, offsets, own, None, 0, PACKED, {}, threads)

    return step
