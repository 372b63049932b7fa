"""The jitted functions of the numba backend. Importing them imports numba: `_backends.numba` does so at its first call.

LLVM makes vector code of an inner loop that runs along one row and writes one array. (A loop that writes two arrays, or
reads more than eight, needs more overlap checks than LLVM makes.) A row stays in the first-level cache between several
such loops, so they cost little.

All arrays are of one dtype and, but for an operand of `add_product`, C-contiguous; options are integers, and an empty
array stands for an absent one. So every function is compiled once for float32 and once for float64, when it is first
needed, and cached on disk.

Names: a (b, GH) begins as W_x x + b of a step's rows; the product with h is added, and it becomes the gates. act
(roles + 1,) has the activations' ids and then, for LSTM, input_forget. A row of par (roles, 5) has an activation's
alpha and beta, the bound of its argument (infinite where nothing is clipped) and its values at minus and plus that
bound. Other names are those of `_backends.numpy`.
"""

from __future__ import annotations

from .activations import IDS, SIGMOID, TANH, activate, multiply_derivative
from .gru import gru_backward, gru_backward_in_pieces, gru_forward, gru_forward_in_pieces
from .lstm import lstm_backward, lstm_backward_in_pieces, lstm_forward, lstm_forward_in_pieces
from .products import ROWS, add_product, panels, unpacked
from .rnn import rnn_backward, rnn_backward_in_pieces, rnn_forward, rnn_forward_in_pieces
from .sums import add_scaled_sum, add_sum, add_to_ids, add_weights
from .walk import previous

__all__ = [
    "IDS",
    "ROWS",
    "SIGMOID",
    "TANH",
    "activate",
    "add_product",
    "add_scaled_sum",
    "add_sum",
    "add_to_ids",
    "add_weights",
    "gru_backward",
    "gru_backward_in_pieces",
    "gru_forward",
    "gru_forward_in_pieces",
    "lstm_backward",
    "lstm_backward_in_pieces",
    "lstm_forward",
    "lstm_forward_in_pieces",
    "multiply_derivative",
    "panels",
    "previous",
    "rnn_backward",
    "rnn_backward_in_pieces",
    "rnn_forward",
    "rnn_forward_in_pieces",
    "unpacked",
]
