"""Modules: layers with Keras's arguments, batch-first, built at the first call. See docs/modules.md."""

from .base import Module
from .bidirectional import Bidirectional
from .dense import Dense
from .dropout import Dropout
from .embedding import Embedding
from .initializers import INITIALIZERS
from .recurrent import GRU, LSTM, SimpleRNN
from .regularizers import L1L2
from .residual import Residual

__all__ = [
    "GRU",
    "INITIALIZERS",
    "L1L2",
    "LSTM",
    "Bidirectional",
    "Dense",
    "Dropout",
    "Embedding",
    "Module",
    "Residual",
    "SimpleRNN",
]
