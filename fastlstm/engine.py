"""The one loop over depth, directions and stretches of time, on packed rows.

It takes packed blocks as arguments and owns no parameters: layers, cells and streams call it with their blocks, and any
other owner of parameters can. A state is a tuple of arrays by the names of ``spec.initial``: (h, c) for LSTM, (h,) for
the others, (L*D, B, width) each, layer then direction. `blocks` has for each layer a list of one block for each
direction; a block has its ``spec`` and its direction, ``reverse``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from .layout import Array, Rows
from .memory import buffers
from .packing import Batch

States = tuple[Array, ...]
Blocks = Sequence[Sequence[Any]]


@dataclass
class Record:
    """What `forward` keeps for one `backward`.

    Parameters
    ----------
    batch : Batch
        How the sequences were packed.
    every : int, optional
        Steps of a stretch: of each stretch only the state before it is kept, and `backward` runs it forward once more
        (Chen et al. 2016). None keeps a tape of everything.
    copies: bool
        Whether an input in the caller's memory is copied. Without a copy the caller must not write to it before
        `backward`.
    """

    batch: Batch
    every: int | None = None
    copies: bool = True
    # For each layer: its input (N, I), or (N,) token ids.
    inputs: list[Array] = field(default_factory=list)
    # For each layer: its tapes, one row for each direction; with `every`, the states by direction and stretch.
    kept: list[Any] = field(default_factory=list)
    # For each layer: dropout's factors of its output (N, D*R), or None.
    masks: list[Array | None] = field(default_factory=list)

    def own(self, x: Array, dtype: np.dtype[Any]) -> Array:
        """The first layer's input as packed rows; with `copies`, in memory of its own."""
        packed = self.batch.pack(x, dtype) if x.ndim == 3 else x
        if self.copies and x.ndim > 1 and (packed is x or np.may_share_memory(packed, x)):
            packed = buffers.copy(packed)
        return packed.reshape(self.batch.rows.N, x.shape[-1]) if x.ndim == 3 else packed

    def walk(self, block: Any) -> list[tuple[Rows, slice]]:
        """The stretches in a block's walking order: (its rows, their slice of all rows) each."""
        stretches = self.batch.rows.cut(self.every or max(1, self.batch.rows.T))
        return stretches[::-1] if block.reverse else stretches


def forward(
    module: ModuleType,
    blocks: Blocks,
    x: Array,
    batch: Batch,
    states: States,
    record: Record | None = None,
    drop: Callable[[tuple[int, ...]], Array | None] | None = None,
    packed: bool = False,
    wanted: bool = True,
) -> Array:
    """Run all layers over a batch.

    Parameters
    ----------
    module : module
        The backend that packed the blocks.
    blocks : list of L lists of D blocks
    x : (T, B, I) array, or packed rows: (N, I), or (N,) int64 token ids
        Not read where no sequence has a step.
    batch : Batch
    states : tuple of (L*D, B, width) arrays
        The initial states, overwritten with the final ones.
    record : Record, optional
        Filled with what `backward` needs; None: inference.
    drop : function, optional
        Takes the shape (N, D*R) of a layer's outputs and returns their factors, or None. Called for every layer but the
        last.
    packed : bool
        Return the outputs as packed rows.
    wanted : bool
        False, in inference only: the final states are all that is wanted. The last layer's outputs are not written, and
        an empty array is returned.

    Returns
    -------
    y : (T, B, D*R) array, (B, T, D*R) for a batch that came batch-first; (N, D*R) with `packed`
        Zeros where no sequence has a step.
    """
    rows, D, last, dense = batch.rows, len(blocks[0]), len(blocks) - 1, batch.order is None
    N = rows.N
    width, dtype = D * states[0].shape[2], states[0].dtype
    to_places = not (packed or (record is not None and record.every)) and batch.regular
    own = states if dense else batch.pack_states(states)
    if record is not None:
        x = record.own(x, dtype)
    elif x.ndim == 3 and not (dense and x.dtype is dtype and x.flags.c_contiguous):
        x = batch.pack(x, dtype)  # rebinds x: the packed rows are freed after the first layer
    for layer, of_layer in enumerate(blocks):
        row_map = None
        if not wanted and layer == last:
            y = np.empty((0, width), dtype)
        elif not to_places or layer < last:
            y = buffers.empty((N, width), dtype)
        elif batch.row_map is None:
            y = buffers.empty((*batch.axes, width), dtype)
        else:
            y, row_map = batch.room(width, dtype), batch.row_map
        if record is None:
            if N:
                needed = wanted or layer < last
                module.forward(of_layer, x, rows, own, y if needed else None, None, layer * D, row_map)
            x = y
            continue
        record.inputs.append(x)
        if record.every is None:
            tapes = buffers.empty((D, of_layer[0].spec.tape_size(N, rows.B)), dtype)
            if N:
                module.forward(of_layer, x, rows, own, y, tapes, layer * D, row_map)
            record.kept.append(tapes)
        else:
            record.kept.append(_forward_stretches(module, of_layer, x, own, y, layer * D, record))
        mask = drop(y.shape) if drop is not None and layer < last else None
        record.masks.append(mask)
        x = y if mask is None else y * mask
    if not dense:
        batch.unpack_states(states, own)
    return y if to_places or packed or not wanted else batch.unpack(y)


def _forward_stretches(
    module: ModuleType, blocks: Sequence[Any], x: Array, states: States, y: Array, at: int, record: Record
) -> list[list[States]]:
    """Run a layer stretch by stretch and return the states before each. Its states begin at ``states[.][at]``."""
    kept = []
    for d, block in enumerate(blocks):
        before: list[States] = []
        for rows, now in record.walk(block):
            alive = tuple(s[at + d : at + d + 1, : rows.B] for s in states)
            before.append(tuple(s[0].copy() for s in alive))
            part = buffers.empty((rows.N, block.spec.R), y.dtype)
            module.forward([block], x[now], rows, alive, part)
            y[now, d * block.spec.R : (d + 1) * block.spec.R] = part
        kept.append(before)
    return kept


def backward(
    module: ModuleType,
    blocks: Blocks,
    record: Record,
    dstates: States,
    dy: Array | None,
    grads: Mapping[str, Array],
    keys: Sequence[Sequence[dict[str, str]]],
    ids: Array | None = None,
    input_gradient: bool = True,
) -> Array | None:
    """Back-propagate through all layers. Uses up the record.

    Parameters
    ----------
    module, blocks
        As in `forward`.
    record : Record
        Of `forward` with the same blocks.
    dstates : tuple of (L*D, B, width) arrays
        Gradient of the final states, overwritten with that of the initial ones.
    dy : (N, D*R) array, optional
        Gradient of the outputs, as packed rows.
    grads : dict of arrays
        Added to: the gradients of all parameters.
    keys : list of L lists of D dicts
        The names in `grads` of each block's parameters, by their names in ``spec.parameters``.
    ids : (N,) int64 array, optional
        For token ids: the row of the first layer's gradient ``weight_ih`` (rows, G*H) that each packed row adds to.
    input_gradient : bool
        Whether the gradient of the input is wanted.

    Returns
    -------
    dx : (N, I) array, or None for token ids and where it is not wanted
    """
    batch, rows, D = record.batch, record.batch.rows, len(blocks[0])
    own = dstates if batch.order is None else batch.pack_states(dstates)
    for layer in reversed(range(len(blocks) if rows.N else 0)):
        x = ids if ids is not None and layer == 0 else record.inputs[layer]
        dx = buffers.zeros(x.shape, own[0].dtype) if x.ndim == 2 and (layer or input_gradient) else None
        for d, block in enumerate(blocks[layer]):
            R = block.spec.R
            carried = tuple([s[layer * D + d] for s in own])
            into = {name: grads[key] for name, key in keys[layer][d].items()}
            of_d = None if dy is None else dy if D == 1 else dy[:, d * R : (d + 1) * R]
            if record.every is None:
                module.backward(block, x, rows, carried, record.kept[layer][d], of_d, dx, into)
                continue
            for stretch, now, tape in _tapes(module, block, record, layer, d):
                alive = tuple([s[: stretch.B] for s in carried])
                dy_now, dx_now = None if of_d is None else of_d[now], None if dx is None else dx[now]
                module.backward(block, x[now], stretch, alive, tape, dy_now, dx_now, into)
        mask = record.masks[layer - 1] if layer else None
        dy = dx if mask is None or dx is None else dx * mask
    batch.unpack_states(dstates, own)
    if record.inputs[0].ndim == 1 or not input_gradient:
        return None
    return dy if rows.N else record.inputs[0]  # without rows the gradient is empty, as the input is


def _tapes(module: ModuleType, block: Any, record: Record, layer: int, d: int) -> Iterator[tuple[Rows, slice, Array]]:
    """(rows, their slice of all rows, tape) of each stretch of a direction, in the opposite of walking order.

    The tape is made by running the stretch forward again.
    """
    for (rows, now), before in zip(reversed(record.walk(block)), reversed(record.kept[layer][d]), strict=True):
        tapes = buffers.empty((1, block.spec.tape_size(rows.N, rows.B)), before[0].dtype)
        module.forward([block], record.inputs[layer][now], rows, tuple(s[None] for s in before), None, tapes)
        yield rows, now, tapes[0]
