"""ONNX models, read and written without the onnx package.

`protobuf` has the wire format, `messages` ONNX's messages (`read_model`), `tensors` the numbers of tensors; `nodes` what
a recurrent node says, `recurrence` runs it, `folding` and `graphs` find the nodes of a model and their constants,
`convert` makes layers of them (`from_onnx`).
"""

from __future__ import annotations

from .convert import from_onnx as from_onnx

__all__ = ["from_onnx"]
