"""The stages of a model: what happens to a row of one time step, part by part, for `StreamBatch` and streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from types import ModuleType
from typing import Any

import numpy as np

from .. import engine
from .._backends import module as backend_named
from .._backends import provides
from ..layout import Array
from ..packing import Batch


@dataclass(frozen=True)
class Stage:
    """One part of a model.

    Parameters
    ----------
    kind : {"lookup", "cell", "dense", "pointwise", "context", "gather", "magnitude"}
        A token id becomes a row of a table; one layer of recurrent cells advances, and its h is the output; an
        activation of a product; an activation; the others are those of `fastlstm.steps`.
    sizes : (int, int)
        Width of the input, for "lookup" the number of ids, and of the output.
    block : block of the backend
        Of a cell.
    weight : (U, I) array; of a lookup (V, E); of a gather (F * K,) places in the input, -1 for 0
    bias : (U,) array or None
    activation : activation
        "linear", "softmax", a name of `spec.ACTIVATIONS`, or (name, alpha, beta).
    skip : bool
        Whether the input is added to the output.
    frames : int
        Equal parts of the input, each of which a dense stage multiplies.
    """

    kind: str
    sizes: tuple[int, int]
    block: Any = None
    weight: Array | None = None
    bias: Array | None = None
    activation: Any = "linear"
    skip: bool = False
    frames: int = 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of each part of the state: h and, for LSTM, c; the kept inputs; empty without a state."""
        if self.kind == "context":
            return (self.sizes[1] - self.sizes[0],)
        return tuple(self.block.spec.initial.values()) if self.kind == "cell" else ()

    @property
    def equation(self) -> dict[str, Any]:
        """What the stage computes, as JSON has it, without its weights."""
        own = {"spec": asdict(self.block.spec)} if self.kind == "cell" else {"activation": self.activation}
        bias = {"bias": self.bias is not None} if self.kind == "dense" else {}
        return {"kind": self.kind, "sizes": self.sizes, "frames": self.frames, "skip": self.skip, **own, **bias}


def run(backend: ModuleType, stage: Stage, x: Array, batch: Batch, states: engine.States) -> Array:
    """Packed outputs (N, U) of packed rows (N, I) or token ids (N,): the reference of csrc/kernels/rows.h.

    The states of the stage, (1, B, width) each, are overwritten.
    """
    if stage.kind == "context":
        return _with_context(stage, x, batch, states)
    if stage.kind == "gather":
        assert stage.weight is not None
        return np.concatenate((x, np.zeros((len(x), 1), x.dtype)), axis=1)[:, stage.weight]  # place -1 is the last one
    if stage.kind == "magnitude":
        re, im = np.moveaxis(x.reshape(len(x), stage.frames, 2, -1), 2, 0)
        found: Array = np.sqrt(re * re + im * im)
        return found.reshape(len(x), -1)
    if stage.kind == "cell":
        y = engine.forward(backend, [[stage.block]], x, batch, states, packed=True)
    elif stage.kind == "lookup":
        assert stage.weight is not None
        y = stage.weight[x]
    else:
        y = _activated(stage, _product(backend, stage, x) if stage.kind == "dense" else x)
    return x + y if stage.skip else y


def _product(backend: ModuleType, stage: Stage, x: Array) -> Array:
    """weight x + bias of rows (N, I)."""
    serving = backend if provides(backend, "dense") else backend_named("numpy")
    assert stage.weight is not None
    params = {"weight": stage.weight} | ({} if stage.bias is None else {"bias": stage.bias})
    frames = np.ascontiguousarray(x).reshape(-1, stage.weight.shape[1])
    y: Array = serving.dense_forward(serving.dense_pack(params), frames)
    return y.reshape(len(x), -1)


def _with_context(stage: Stage, x: Array, batch: Batch, states: engine.States) -> Array:
    """The kept inputs and the input, step by step; the state becomes the last inputs."""
    own = states if batch.order is None else batch.pack_states(states)
    (size, width), kept, at = stage.sizes, own[0][0], 0
    y: Array = np.empty((len(x), width), x.dtype)
    for n in batch.rows.batch_sizes:
        rows = y[at : at + n]
        rows[:, : width - size], rows[:, width - size :] = kept[:n], x[at : at + n]
        kept[:n] = rows[:, size:]
        at += n
    if batch.order is not None:
        batch.unpack_states(states, own)
    return y


def _activated(stage: Stage, a: Array) -> Array:
    from ..nn.activation import activate

    with np.errstate(all="ignore"):  # NaN and infinity pass without a warning
        y: Array = activate(stage.activation, a.reshape(len(a), stage.frames, -1))
    return y.astype(a.dtype, copy=False).reshape(a.shape)


def split_at(widths: Sequence[int], record: Array) -> list[Array]:
    """The parts (..., width) of records (..., sum of widths): views."""
    ends = list(accumulate(widths))
    return [record[..., end - width : end] for width, end in zip(widths, ends, strict=True)]
