"""One call of an accelerated Keras layer: the engine on its weights, and its place in PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .. import engine
from .._backends import c
from .._keras_weights import from_keras, to_keras
from ..gradients import GradientLayout
from ..layout import Array
from ..packing import Batch
from ..spec import Spec
from ..torch.threads import torch_threads

FLOAT32 = np.dtype(np.float32)


@dataclass
class Call:
    """What one call computes with, beside its tensors.

    Parameters
    ----------
    spec : Spec
        Of a layer with Keras's biases.
    batch : Batch
        Batch-first.
    sequences : bool
        The outputs of all steps are wanted. False: y is packed rows that are not read.
    """

    spec: Spec
    batch: Batch
    sequences: bool

    def block(self, weights: Sequence[Any]) -> Any:
        """The weights packed for this call: packing takes less time than telling whether they have changed."""
        arrays = [w.detach().numpy() for w in weights]
        return c.pack(self.spec, from_keras(arrays, self.spec.kind))

    def run(self, block: Any, x: Array, states: engine.States, record: engine.Record | None) -> Array:
        with torch_threads():
            return engine.forward(c, [[block]], x, self.batch, states, record, packed=not self.sequences)

    def array(self, x: Any) -> Array:
        """(B, T, W) -> (T, B, W), the same memory."""
        a: Array = x.detach().numpy().swapaxes(0, 1)
        return a

    def gradients(self, record: engine.Record, block: Any, dy: Any, dstates: engine.States) -> tuple[Any, list[Any]]:
        """(gradient of x (B, T, I), those of Keras's weights); dstates is overwritten with the initial state's."""
        spec, batch = self.spec, self.batch
        grads = GradientLayout(dict(spec.parameters), FLOAT32).zeros()
        rows = None if dy is None else batch.pack(self.array(dy), FLOAT32).reshape(batch.rows.N, spec.R)
        names = {name: name for name in spec.parameters}
        with torch_threads():
            dx = engine.backward(c, [[block]], record, dstates, rows, grads, [[names]])
        assert dx is not None
        of_keras = to_keras(grads, spec.kind, spec.reset_after)
        return torch.from_numpy(batch.unpack(dx)), [torch.from_numpy(np.ascontiguousarray(g)) for g in of_keras]


def fresh(states: Sequence[Any]) -> engine.States:
    """Tensors (B, W) as arrays (1, B, W) of their own."""
    return tuple(np.array(s.detach().numpy(), FLOAT32, order="C")[None] for s in states)


class Recurrence(Function):  # type: ignore[misc,unused-ignore]
    """(x, states, weights) -> (y, final states). x and y are (B, T, .), states (B, H), weights Keras's."""

    @staticmethod
    def forward(ctx: Any, call: Call, n_states: int, x: Any, *rest: Any) -> tuple[Any, ...]:
        ctx.set_materialize_grads(False)
        given, weights = rest[:n_states], rest[n_states:]
        block, states, record = call.block(weights), fresh(given), engine.Record(call.batch)
        y = call.run(block, call.array(x), states, record)
        ctx.save_for_backward(x, *given)
        ctx.call, ctx.block, ctx.record = call, block, record
        return torch.from_numpy(y), *(torch.from_numpy(s[0]) for s in states)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, dy: Any, *d_final: Any) -> tuple[Any, ...]:
        call, (x, *given) = ctx.call, ctx.saved_tensors
        if ctx.record is None:  # a tape serves one backward: the forward pass is made again
            record = engine.Record(call.batch)
            call.run(ctx.block, call.array(x), fresh(given), record)
        else:
            record, ctx.record = ctx.record, None
        dstates = fresh([torch.zeros_like(s) if d is None else d for d, s in zip(d_final, given, strict=True)])
        dx, of_weights = call.gradients(record, ctx.block, dy, dstates)
        return None, None, dx, *(torch.from_numpy(d[0]) for d in dstates), *of_weights


def run(call: Call, x: Any, states: Sequence[Any], weights: Sequence[Any]) -> tuple[Any, ...]:
    """(y (B, T, H), final states (B, H)) of a call, recorded by autograd where something of it is differentiated."""
    tensors = [x, *states, *weights]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        apply: Any = Recurrence.apply
        return tuple(apply(call, len(states), *tensors))
    own = fresh(states)
    y = call.run(call.block(weights), call.array(x), own, None)
    return torch.from_numpy(y), *(torch.from_numpy(s[0]) for s in own)
