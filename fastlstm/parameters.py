"""Where pickles of version 0.1.0 look for tapes and sparse gradients; nothing else imports it."""

import pickle
from typing import Any

from .gradients import SparseGradient as RowGradient

__all__ = ["RowGradient"]


def __getattr__(name: str) -> Any:
    if name == "Tape":  # not an AttributeError, which pickle would replace by its own
        raise pickle.UnpicklingError(
            "this pickle holds a tape of fastlstm 0.1.0, which serves one backward of the layer that made it: call "
            "layer.forward(x) again. To take layers over, pickle them without tapes, or save layer.state_dict()"
        )
    raise AttributeError(f"module 'fastlstm.parameters' has no attribute {name!r}")
