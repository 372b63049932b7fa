"""ONNX models, read and written without the onnx package.

`protobuf` has the wire format, `messages` ONNX's messages (`read_model`), `tensors` the numbers of tensors; `nodes`
what a recurrent node says, `recurrence` runs it, `folding` and `graphs` find the nodes of a model and their constants,
`convert` makes layers of them (`from_onnx`), `export` writes models (`to_onnx`). `acceleration` cuts a model
(`cutting`) into `pieces` and runs them in a `session`: recurrent nodes here, axes rearranged as `views`, the rest on
ONNX Runtime, with values of `types`.
"""

from __future__ import annotations

from .acceleration import Summary as Summary
from .acceleration import accelerate as accelerate
from .convert import from_onnx as from_onnx
from .export import to_onnx as to_onnx

__all__ = ["Summary", "accelerate", "from_onnx", "to_onnx"]
