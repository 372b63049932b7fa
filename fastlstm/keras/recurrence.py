"""One call of an accelerated Keras layer: Keras's weights and shapes for `torch.recurrence`, which computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .. import engine
from .._backends import c
from .._keras_weights import from_keras, to_keras
from ..layout import Array
from ..packing import Batch
from ..spec import Spec
from ..torch.recurrence import Call, Outputs, Recurrence, infer, recorded
from ..torch.threads import torch_threads
from ..torch.weights import Form


@dataclass
class KerasCall(Call):
    """What one call computes with, beside its tensors: x and y are (B, T, .), states (B, H), weights Keras's.

    Parameters
    ----------
    sequences : bool
        The outputs of all steps are wanted. False: y is packed rows that are not read, none in inference.
    """

    sequences: bool

    @property
    def flat(self) -> bool:
        return True

    def run(self, x: Array, states: engine.States, record: engine.Record | None, drop: Any = None) -> Array:
        wanted = self.sequences or record is not None
        with torch_threads():
            return engine.forward(c, self.blocks, x, self.batch, states, record, drop, not self.sequences, wanted)

    def weight_gradients(self, grads: dict[str, Array]) -> list[Any]:
        spec = self.form.specs[0][0]
        return [torch.from_numpy(np.ascontiguousarray(g)) for g in to_keras(grads, spec.kind, spec.reset_after)]


def run(
    spec: Spec, batch: Batch, sequences: bool, x: Any, states: Sequence[Any], weights: Sequence[Any]
) -> tuple[Any, ...]:
    """The outputs of a layer's call, recorded by autograd where something of it is differentiated.

    Parameters
    ----------
    spec : Spec
        Of a layer with Keras's biases.
    batch : Batch
        Batch-first.
    sequences : bool
        The outputs of all steps are wanted.
    x : tensor (B, T, I)
    states : tensors (B, H)
    weights : kernel (I, G*H), recurrent kernel (H, G*H) and, where there is one, bias
        Packed in each call: that takes less time than telling whether they have changed.

    Returns
    -------
    y : tensor (B, T, H), not to be read without `sequences`
    states : tensors (B, H)
        The final ones.
    """
    block = c.pack(spec, from_keras([w.detach().numpy() for w in weights], spec.kind))
    form = Form([[spec]], [[list(spec.parameters)]], False)
    call = KerasCall(form, [[block]], batch, False, 0.0, None, sequences)
    h, c_0 = (*states, None)[:2]
    given = (x, h, c_0, *weights)
    outputs: Outputs = Recurrence.apply(call, *given) if recorded(given) else infer(call, x, h, c_0)
    return outputs
