"""PyTorch's models here and back. PyTorch itself is imported only where a live object of it is made.

(Inside this package `import torch` is PyTorch: imports of fastlstm's own modules are relative.)
"""

from .convert import from_torch as from_torch
from .convert import to_torch as to_torch

__all__ = ["from_torch", "to_torch"]
