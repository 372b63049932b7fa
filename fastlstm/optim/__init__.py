"""Optimisers and gradient clipping, with PyTorch's arithmetic.

Gradients come as `backward` gives them: a dict for one layer, a list of dicts for several, in the layers' order.
"""

from __future__ import annotations

from .base import Optimizer
from .clipping import clip_by_norm, clip_by_value, square_sum
from .rules import SGD, Adagrad, Adam, AdamW, RMSprop

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Optimizer", "RMSprop", "clip_by_norm", "clip_by_value", "square_sum"]
