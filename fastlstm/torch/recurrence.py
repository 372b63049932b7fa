"""One call of an accelerated module: the engine on the module's blocks, and its place in PyTorch's autograd.

Layers and cells of PyTorch are computed here, and Keras's layers on its PyTorch backend (`keras.recurrence` derives
their `Call`). Tensors and arrays share memory: an input is read where it lies, and outputs and gradients are tensors on
the arrays that the engine made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd import Function

from .. import engine
from .._backends import c
from ..layout import Array
from ..packing import Batch
from .threads import torch_threads
from .weights import FLOAT32, Form

Outputs = tuple[Any, ...]  # y, h_n and, for LSTM, c_n; of a cell without y


@dataclass
class Call:
    """What one call computes with, beside its tensors.

    Parameters
    ----------
    form : Form
    blocks : list of L lists of D blocks
    batch : Batch
    rows : bool
        The input is packed rows (N, I), and so is the output: of a PackedSequence, or of a cell, whose batch they are.
    dropout : float
        Probability with which outputs of every layer but the last are dropped now.
    native : function, optional
        From (x, h, c, weights) to the outputs, by PyTorch's own operations. None: the call cannot be differentiated
        twice.
    """

    form: Form
    blocks: Any
    batch: Batch
    rows: bool
    dropout: float
    native: Callable[..., Outputs] | None

    @property
    def flat(self) -> bool:
        """States are (B, width), of the one layer and direction that there is; else (L*D, B, width)."""
        return self.form.cell

    def array(self, x: Any) -> Array:
        """The input as the engine takes it: (T, B, I), or packed rows."""
        a: Array = x.detach().numpy()
        if self.rows:
            return np.ascontiguousarray(a)
        return a.swapaxes(0, 1) if self.batch.batch_first else a

    def states(self, h: Any, c_0: Any) -> engine.States:
        """The initial state as fresh arrays (L*D, B, width), zeros where h is None."""
        LD, B = len(self.blocks) * len(self.blocks[0]), self.batch.B
        if h is None:
            return tuple([np.zeros((LD, B, width), FLOAT32) for width in self.form.specs[0][0].initial.values()])
        given = (h, c_0) if self.form.has_c else (h,)
        return tuple([np.array(s.detach().numpy(), order="C").reshape(LD, B, -1) for s in given])

    def drop(self, shape: tuple[int, ...]) -> Array:
        """Dropout's factors of a layer's output (N, D*R): PyTorch's own draws, in its order."""
        if self.dropout == 1:
            return np.zeros(shape, FLOAT32)
        drawn: Array = torch.empty(shape).bernoulli_(1 - self.dropout).div_(1 - self.dropout).numpy()
        return drawn

    def run(self, x: Array, states: engine.States, record: engine.Record | None, drop: Any = None) -> Array:
        with torch_threads():
            return engine.forward(c, self.blocks, x, self.batch, states, record, drop, self.rows)

    def outputs(self, y: Array, states: engine.States) -> Outputs:
        tensors = tuple([torch.from_numpy(s[0] if self.flat else s) for s in states])
        return tensors if self.form.cell else (torch.from_numpy(y), *tensors)

    def input_gradient(self, dx: Any) -> Any:
        """The input's gradient (N, I) as a tensor of the input's shape; where it lies, unless a mask has gaps."""
        if self.rows:
            return torch.from_numpy(dx)
        if self.batch.order is not None:
            return torch.from_numpy(self.batch.unpack(dx))
        dx = dx.reshape(self.batch.T, self.batch.B, -1)
        return torch.from_numpy(dx.swapaxes(0, 1) if self.batch.batch_first else dx)

    def weight_gradients(self, grads: dict[str, Array]) -> list[Any]:
        """The gradients of the weights, by the form's names, as tensors in the order of the call's weights."""
        return [torch.from_numpy(grads[name]) for name in self.form.flat_names]


def recorded(tensors: Sequence[Any]) -> bool:
    """Whether autograd has to record a call with these tensors, None among them."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def infer(call: Call, x: Any, h: Any, c_0: Any) -> Outputs:
    """The outputs of a call that nothing is differentiated through."""
    states = call.states(h, c_0)
    if call.dropout:  # training mode without gradients drops too
        record = engine.Record(call.batch, copies=False)
        y = call.run(call.array(x), states, record, call.drop)
    else:
        y = call.run(call.array(x), states, None)
    return call.outputs(y, states)


# --------------------------------------------------------------------------------------------------------- the tape
def _save(record: engine.Record, x: Array) -> list[Any]:
    """A record's arrays as tensors, which PyTorch may keep elsewhere or drop and have computed again (checkpoints)."""
    own = record.inputs[0]
    first = None if np.may_share_memory(own, x) else own  # the input's own memory is saved as x
    arrays = [first, *record.inputs[1:], *record.kept, *record.masks]
    return [None if a is None else torch.from_numpy(a) for a in arrays]


def _load(call: Call, x: Array, saved: Sequence[Any]) -> engine.Record:
    """The record again."""
    L = len(call.blocks)
    arrays: list[Any] = [None if t is None else t.numpy() for t in saved]
    record = engine.Record(call.batch, copies=False)
    first = record.own(x, FLOAT32) if arrays[0] is None else arrays[0]
    record.inputs = [first, *arrays[1:L]]
    record.kept, record.masks = arrays[L : 2 * L], arrays[2 * L : 3 * L]
    return record


def _repeat(call: Call, x: Array, h: Any, c_0: Any, masks: Sequence[Array | None]) -> engine.Record:
    """The record of the same call made again, with the same factors of dropout: a tape serves one backward."""
    record = engine.Record(call.batch, copies=False)
    again = iter(masks)
    call.run(x, call.states(h, c_0), record, lambda shape: next(again))
    return record


class Recurrence(Function):
    """Forward and backward on the kernels. Inputs: x, h, c (None where zero or absent), weights."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Any, h: Any, c_0: Any, *weights: Any) -> Outputs:
        ctx.set_materialize_grads(False)
        record = engine.Record(call.batch, copies=False)
        array, states = call.array(x), call.states(h, c_0)
        y = call.run(array, states, record, call.drop if call.dropout else None)
        ctx.save_for_backward(x, h, c_0, *weights, *_save(record, array))
        ctx.call, ctx.used = call, False
        return call.outputs(y, states)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        call: Call = ctx.call
        P = len(ctx.needs_input_grad) - 4  # beside call, x, h and c
        x, h, c_0, *rest = ctx.saved_tensors
        weights, saved = rest[:P], rest[P:]
        if torch.is_grad_enabled():
            return None, *_differentiable(call, (x, h, c_0, *weights), grads)
        array = call.array(x)
        record = _load(call, array, saved)
        if ctx.used:
            record = _repeat(call, array, h, c_0, record.masks)
        ctx.used = True
        return None, *_backward(call, record, grads, ctx.needs_input_grad[1:])


def _backward(call: Call, record: engine.Record, grads: Sequence[Any], needed: Sequence[bool]) -> list[Any]:
    """The gradients of x, h, c and the weights, None where not needed, from those of the outputs, None where zero."""
    dy, dstates = (None, grads) if call.form.cell else (grads[0], grads[1:])
    batch, spec = call.batch, call.form.specs[-1][0]
    LD, N = len(call.blocks) * len(call.blocks[0]), batch.rows.N
    states = tuple(
        [
            np.zeros((LD, batch.B, width), FLOAT32)
            if given is None
            else np.array(given.detach().numpy(), order="C").reshape(LD, batch.B, width)
            for given, width in zip(dstates, spec.initial.values(), strict=True)
        ]
    )
    d_rows = None
    if dy is not None:
        d_rows = batch.pack(call.array(dy), FLOAT32).reshape(N, len(call.blocks[0]) * spec.R)
    of_weights = call.form.gradients.zeros()
    with torch_threads():
        dx = engine.backward(
            c, call.blocks, record, states, d_rows, of_weights, call.form.keys, input_gradient=needed[0]
        )
    found = [call.input_gradient(dx) if needed[0] else None]
    found += [torch.from_numpy(s[0] if call.flat else s) for s in states]
    found += [None] * (3 - len(found))
    found += call.weight_gradients(of_weights)
    return [gradient if wanted else None for gradient, wanted in zip(found, needed, strict=True)]


def _differentiable(call: Call, inputs: Sequence[Any], grads: Sequence[Any]) -> list[Any]:
    """The same gradients by PyTorch's operations, which can be differentiated again (create_graph=True)."""
    if call.native is None:
        raise RuntimeError(
            "an accelerated layer of Keras cannot be differentiated twice (create_graph=True): leave the model on Keras"
        )
    if call.dropout:
        raise RuntimeError(
            "an accelerated module cannot be differentiated twice (create_graph=True) while it drops outputs between "
            "its layers: call model.eval(), set dropout = 0, or leave this module on PyTorch"
        )
    # Views, so that an input that depends on another one is not differentiated through the other.
    own = [None if t is None else t.view_as(t) for t in inputs]
    outputs = call.native(*own[:3], own[3:])
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
    wanted = [t for t in own if t is not None and t.requires_grad]
    found = iter(
        torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True)
    )
    return [next(found) if t is not None and t.requires_grad else None for t in own]
