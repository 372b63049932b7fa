"""The jitted functions of the numba backend. Importing them imports numba: `_backends.numba` does so at its first call.

Written so that LLVM makes vector code of it: an inner loop runs along one row and writes one array. (A loop that
writes two, or reads more than eight, would need more overlap checks than LLVM is ready to make.) A row that several
such loops go over stays in the first-level cache, so this costs little.

All arrays are C-contiguous and of one dtype, options plain integers, and what is absent is an array without entries:
every function is compiled once for float32 and once for float64, when it is first needed, and cached on disk.

Names: a (b, GH) is W_x x + b of a step's rows and u (b, .) the product with h. act (roles + 1,) has the activations'
ids and then, for LSTM, input_forget. A row of par (roles, 5) has an activation's alpha and beta, the bound of its
argument (infinite where nothing is clipped) and its values at minus and plus that bound. The rest is the reference's.
"""

from __future__ import annotations

from .activations import IDS, SIGMOID, TANH, activate, deactivate
from .gru import gru_backward, gru_forward
from .lstm import lstm_backward, lstm_forward
from .rnn import rnn_backward, rnn_forward
from .sums import add_input, add_scaled_sum, add_sum, add_to_ids, add_weights
from .walk import PARALLEL, previous

__all__ = [
    "IDS",
    "PARALLEL",
    "SIGMOID",
    "TANH",
    "activate",
    "add_input",
    "add_scaled_sum",
    "add_sum",
    "add_to_ids",
    "add_weights",
    "deactivate",
    "gru_backward",
    "gru_forward",
    "lstm_backward",
    "lstm_forward",
    "previous",
    "rnn_backward",
    "rnn_forward",
]
