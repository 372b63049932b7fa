"""Where pickles of version 0.1.0 look for layers and cells; nothing else imports it. See `fastlstm._old_pickles`."""

from .cell import GRUCell, LSTMCell, RNNCell
from .recurrent import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]
