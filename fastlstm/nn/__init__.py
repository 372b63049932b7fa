"""Modules: layers with Keras's arguments, batch-first, built at the first call. See docs/modules.md."""

from .activation import Activation
from .base import Module
from .bidirectional import Bidirectional
from .dense import Dense
from .dropout import Dropout
from .embedding import Embedding
from .initializers import INITIALIZERS
from .masking import Masking
from .recurrent import GRU, LSTM, SimpleRNN
from .regularizers import L1L2
from .residual import Residual

__all__ = [
    "GRU",
    "INITIALIZERS",
    "L1L2",
    "LSTM",
    "Activation",
    "Bidirectional",
    "Dense",
    "Dropout",
    "Embedding",
    "Masking",
    "Module",
    "Residual",
    "SimpleRNN",
]
