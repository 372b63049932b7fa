"""ONNX models: layers from their nodes, models from our layers, models on our kernels. Needs no onnx package.

`protobuf` has the wire format, `messages` ONNX's messages (`read_model`), `tensors` the numbers of tensors; `nodes` has
what a recurrent node says, `recurrence` runs it, `folding` and `graphs` find the nodes of a model and their constants.
`convert` makes layers of nodes (`from_onnx`), `export` models of layers (`to_onnx`). `acceleration` cuts a model
(`cutting`) into `pieces` and runs them in a `session`: recurrent nodes here, axes rearranged as `views`, the rest on
ONNX Runtime, with values of `types`. `backend` is one of the onnx package, which it needs: `prepare`, `run_model`,
`run_node`, `supports_device`, `is_compatible`; it runs a `program`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .acceleration import Summary as Summary
from .acceleration import accelerate as accelerate
from .convert import from_onnx as from_onnx
from .export import to_onnx as to_onnx

if TYPE_CHECKING:
    from .backend import Backend as Backend
    from .backend import is_compatible as is_compatible
    from .backend import prepare as prepare
    from .backend import run_model as run_model
    from .backend import run_node as run_node
    from .backend import supports_device as supports_device

BACKEND = ("Backend", "is_compatible", "prepare", "run_model", "run_node", "supports_device")
__all__ = ["Summary", "accelerate", "from_onnx", "to_onnx", *BACKEND]


def __getattr__(name: str) -> Any:
    if name not in BACKEND:
        raise AttributeError(f"module 'fastlstm.onnx' has no attribute {name!r}")
    from . import backend

    globals()[name] = value = getattr(backend, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
