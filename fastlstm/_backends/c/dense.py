"""Dense layers: packed weights, forward, backward, and the head with its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...forksafe import Lock
from ...layout import Array
from ...memory import buffers
from ...num_threads import get_num_threads
from .calls import BYTES, DOUBLES, FLOAT32, INTS, NULL, aligned, from_buffer, new, pointer, run
from .extension import lib


@dataclass
class DenseBlock:
    """Packed weights of a dense layer, for the instruction set that was active at packing."""

    handle: Any  # fl_dense *
    weight: Array  # (U, I) the weight at packing
    keep: list[Array]  # arrays that the handle points to
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
    """Call the C function of backward or cross-entropy; `fields`: the fields of fl_dense_call that only it reads."""
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
