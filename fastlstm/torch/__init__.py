"""PyTorch's models here and back, and its models on our kernels. PyTorch itself is imported only when it is needed.

(Inside this package `import torch` is PyTorch: imports of fastlstm's own modules are relative.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .convert import from_torch as from_torch
from .convert import to_torch as to_torch

if TYPE_CHECKING:
    from .acceleration import Summary as Summary
    from .acceleration import accelerate as accelerate

MODULES = ("GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell")  # PyTorch's, on our kernels
__all__ = ["Summary", "accelerate", "from_torch", "to_torch", *MODULES]


def __getattr__(name: str) -> Any:
    if name in ("accelerate", "Summary"):
        from . import acceleration as home
    elif name in MODULES:
        from . import modules as home  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module 'fastlstm.torch' has no attribute {name!r}")
    globals()[name] = value = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
