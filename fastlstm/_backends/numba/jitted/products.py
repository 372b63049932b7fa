"""Products of matrices: the sums of a tile, a few rows by one panel, stay in registers while all of k goes by.

A packed matrix is cut into panels of columns. A panel (K, P) has the P columns of every k side by side, so that a tile
reads it from one end to the other. This is as quick as the processor multiplies from 3 rows on, where BLAS, which
packs its operands at every call, needs some 100.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ....layout import Array
from .compiling import jit, jit_inner, jit_parallel

FEATURES = llvmlite.binding.get_host_cpu_features()
AVX512, ARM = FEATURES.get("avx512f", False), FEATURES.get("neon", False)
REGISTER = 64 if AVX512 else 32 if FEATURES.get("avx2", False) else 16  # bytes
VECTORS = 4  # registers of a panel's row
# Rows of a tile: with its 4 * ROWS sums, a row of the panel and an x, all registers are in use.
ROWS = 6 if AVX512 or ARM else 3

# Multiply-adds of a product that threads share: some 20 us, several times what a parallel region costs.
SHARED = 1_000_000


def panels(matrix: Array) -> Array:
    """A matrix (K, M) in panels (ceil(M / P), K, P), filled up with zeros, from the beginning of a cache line on."""
    (K, M), dtype = matrix.shape, matrix.dtype
    P = VECTORS * REGISTER // dtype.itemsize
    count = -(-M // P)
    memory = np.zeros(count * K * P * dtype.itemsize + 64, np.uint8)
    packed: Array = np.ndarray((count, K, P), dtype, memory, -memory.__array_interface__["data"][0] % 64)
    for p in range(count):
        columns = matrix[:, p * P : (p + 1) * P]
        packed[p, :, : columns.shape[1]] = columns
    return packed


def unpacked(packed: Array, M: int) -> Array:
    """The matrix (K, M) of these panels."""
    count, K, P = packed.shape
    return packed.transpose(1, 0, 2).reshape(K, count * P)[:, :M]


@intrinsic
def tile(_context: Any, rows: Any, half: Any, x: Any, r: Any, w: Any, p: Any, out: Any, begin: Any) -> Any:
    """out[r : r + rows, begin : begin + P] += x[r : r + rows] @ w[p] for 1 to ROWS rows; `half`: only P / 2 columns.

    Written in LLVM's own language, since only there a sum is a register; one loop for each number of rows. The columns
    of out lie side by side; x may have any strides.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, half = arguments[:2]
        x, w, out = (context.make_array(signature.args[at])(context, builder, arguments[at]) for at in (2, 4, 6))
        loops = Loops(context, builder, signature.args[2].dtype, x, w, out, *arguments[3::2])
        for vectors, wanted in ((VECTORS, builder.not_(half)), (VECTORS // 2, half)):
            with builder.if_then(wanted):
                for count in range(1, ROWS + 1):
                    with builder.if_then(builder.icmp_signed("==", rows, rows.type(count))):
                        loops.add(count, vectors)
        return context.get_dummy_value()

    return types.void(types.intp, types.boolean, x, types.intp, w, types.intp, out, types.intp), generate


class Loops:
    """Writes the loops of `tile`: x, w and out are arrays in LLVM's language, r, p and begin indices."""

    def __init__(
        self, context: Any, builder: Any, number: Any, x: Any, w: Any, out: Any, r: Any, p: Any, begin: Any
    ) -> None:
        self.builder, self.x, self.w, self.out, self.r, self.p, self.begin = builder, x, w, out, r, p, begin
        self.bytes = number.bitwidth // 8
        self.lanes = REGISTER // self.bytes
        self.scalar = context.get_value_type(number)
        self.vector = ir.VectorType(self.scalar, self.lanes)

    def add(self, rows: int, vectors: int) -> None:
        """The loop for so many rows and registers of a panel's row: sums[i, v] += x[r + i, k] * vector v of w[p, k]."""
        builder, grid = self.builder, [(i, v) for i in range(rows) for v in range(vectors)]
        sums = {at: cgutils.alloca_once_value(builder, self.load(self.out_at(*at))) for at in grid}
        with cgutils.for_range(builder, cgutils.unpack_tuple(builder, self.w.shape)[1]) as loop:
            k = loop.index
            x_k = [self.in_all_lanes(self.place(self.x, self.scalar, self.plus(self.r, i), k)) for i in range(rows)]
            w_k = [self.load(self.w_at(k, v)) for v in range(vectors)]
            for i, v in grid:
                product = builder.fmul(x_k[i], w_k[v], flags=("contract",))
                builder.store(builder.fadd(product, builder.load(sums[i, v]), flags=("contract",)), sums[i, v])
        for at in grid:
            builder.store(builder.load(sums[at]), self.out_at(*at)).align = self.bytes

    def plus(self, index: Any, more: int) -> Any:
        return self.builder.add(index, index.type(more))

    def place(self, array: Any, kind: Any, *indices: Any) -> Any:
        """A pointer to the scalar or vector that begins at these indices."""
        offset = self.r.type(0)
        for index, stride in zip(indices, cgutils.unpack_tuple(self.builder, array.strides), strict=True):
            offset = self.builder.add(offset, self.builder.mul(index, stride))
        return cgutils.pointer_add(self.builder, array.data, offset, kind.as_pointer())

    def w_at(self, k: Any, v: int) -> Any:
        return self.place(self.w, self.vector, self.p, k, k.type(v * self.lanes))

    def out_at(self, i: int, v: int) -> Any:
        return self.place(self.out, self.vector, self.plus(self.r, i), self.plus(self.begin, v * self.lanes))

    def load(self, pointer: Any) -> Any:
        loaded = self.builder.load(pointer)
        loaded.align = self.bytes
        return loaded

    def in_all_lanes(self, pointer: Any) -> Any:
        """A vector that has the number at the pointer in every lane."""
        undefined, zeros = ir.Constant(self.vector, ir.Undefined), ir.VectorType(ir.IntType(32), self.lanes)
        first = self.builder.insert_element(undefined, self.load(pointer), ir.IntType(32)(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(zeros, None))  # every lane takes lane 0


@jit_inner
def tile_of_some(rows, x, r, w, p, out, begin, end):
    """The tile with a last panel of which out has only the columns begin to end."""
    room = np.zeros((rows, w.shape[2]), out.dtype)
    tile(rows, 2 * (end - begin) <= w.shape[2], x[r : r + rows], 0, w, p, room, 0)
    for i in range(rows):
        for j in range(end - begin):
            out[r + i, begin + j] += room[i, j]


@jit_inner
def add_part(x, w, out, begin, end, row, last_row, panel, last_panel):
    """`add_product` of some rows and panels. Tiles are about equally high: a low one waits for its weights."""
    P = w.shape[2]
    for p in range(panel, last_panel):
        at = begin + p * P
        tiles = (last_row - row + ROWS - 1) // ROWS
        r = row
        while r < last_row:
            rows = (last_row - r + tiles - 1) // tiles
            if at + P <= end:
                tile(rows, False, x, r, w, p, out, at)
            else:
                tile_of_some(rows, x, r, w, p, out, at, end)
            r += rows
            tiles -= 1


@jit_parallel
def add_product_in_pieces(pieces, x, w, out, begin, end):
    """`add_product` by several threads: each has some rows or, where there are few, some panels."""
    N, count = x.shape[0], w.shape[0]
    by_rows = 2 * ROWS * pieces <= N
    for i in numba.prange(pieces):
        if by_rows:
            add_part(x, w, out, begin, end, i * N // pieces, (i + 1) * N // pieces, 0, count)
        else:
            add_part(x, w, out, begin, end, 0, N, i * count // pieces, (i + 1) * count // pieces)


@jit
def add_product(threads, x, w, out, begin, end):
    """out[:, begin:end] += x @ w: x (b, K), w in panels (., K, P).

    Each sum begins with what is in out and goes through k in order, so its bits depend on no other row. `threads` is
    None where one thread does all: then Numba compiles no parallel region.
    """
    if threads is not None and x.size * (end - begin) >= SHARED:
        add_product_in_pieces(threads, x, w, out, begin, end)
    else:
        add_part(x, w, out, begin, end, 0, x.shape[0], 0, w.shape[0])
