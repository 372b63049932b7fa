"""ONNX models, read and written without the onnx package.

`protobuf` has the wire format, `messages` ONNX's messages (`read_model`), `tensors` the numbers of tensors; `nodes`
what a recurrent node says, `recurrence` runs it, `folding` and `graphs` find the nodes of a model and their constants,
__all__ = ["Summary", "accelerate", "from_onnx", "to_onnx"]
"""

from __future__ import annotations

from .acceleration import Summary as Summary
from .acceleration import accelerate as accelerate
from .convert import from_onnx as from_onnx
from .export import to_onnx as to_onnx

__all__ = ["Summary", "accelerate", "from_onnx", "to_onnx"]
