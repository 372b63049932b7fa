"""LSTM, GRU and RNN on CPUs: inference, streaming and training. See the README, or `fastlstm.show_config()`."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._backends import BackendError, backends

__version__ = "0.1.0"


def _check_built() -> None:
    """Python run in the repository's root finds this folder before the installed package: say so, if not built."""
    here = Path(__file__).parent
    built = any(here.glob("_fastlstm_c*")) or (here / "_build_failed.txt").exists()
    if not built and (here.parent / "csrc").is_dir():
        raise ImportError(
            f"fastlstm was imported from its source folder {here.parent}, where its C extension is not built. "
            "Build it there (pip install -e .), or run Python from another folder to use an installed fastlstm."
        )


_check_built()

if TYPE_CHECKING:
    from . import aio as aio
    from . import forecast as forecast
    from . import keras as keras
    from . import losses as losses
    from . import metrics as metrics
    from . import nn as nn
    from . import onnx as onnx
    from . import sklearn as sklearn
    from . import streams as streams
    from . import torch as torch
    from . import training as training
    from .arrays import from_arrays as from_arrays
    from .cell import GRUCell as GRUCell
    from .cell import LSTMCell as LSTMCell
    from .cell import RNNCell as RNNCell
    from .dense import Dense as Dense
    from .export_c import to_c as to_c
    from .gradients import SparseGradient as SparseGradient
    from .info import show_config as show_config
    from .keras import from_keras as from_keras
    from .library import get_include as get_include
    from .library import get_library as get_library
    from .losses import softmax_cross_entropy as softmax_cross_entropy
    from .models import load as load
    from .num_threads import get_num_threads as get_num_threads
    from .num_threads import set_num_threads as set_num_threads
    from .num_threads import threads as threads
    from .onnx import from_onnx as from_onnx
    from .optim import SGD as SGD
    from .optim import Adagrad as Adagrad
    from .optim import Adam as Adam
    from .optim import AdamW as AdamW
    from .optim import RMSprop as RMSprop
    from .optim import clip_by_norm as clip_by_norm
    from .optim import clip_by_value as clip_by_value
    from .recurrent import GRU as GRU
    from .recurrent import LSTM as LSTM
    from .recurrent import RNN as RNN
    from .schedules import CosineAnnealingLR as CosineAnnealingLR
    from .schedules import LambdaLR as LambdaLR
    from .schedules import LinearLR as LinearLR
    from .schedules import ReduceLROnPlateau as ReduceLROnPlateau
    from .schedules import SequentialLR as SequentialLR
    from .schedules import StepLR as StepLR
    from .sequential import Sequential as Sequential
    from .streams import StateError as StateError
    from .streams import StreamBatch as StreamBatch
    from .streams import StreamClosed as StreamClosed
    from .streams import StreamsFull as StreamsFull
    from .torch import from_torch as from_torch

# Public name -> the module that has it. Loaded when first asked for, so that importing fastlstm costs next to nothing.
_HOME = {
    "show_config": "info",
    "get_num_threads": "num_threads",
    "set_num_threads": "num_threads",
    "threads": "num_threads",
    "get_include": "library",
    "get_library": "library",
    "from_arrays": "arrays",
    "from_torch": "torch",
    "from_keras": "keras",
    "from_onnx": "onnx",
    "GRU": "recurrent",
    "LSTM": "recurrent",
    "RNN": "recurrent",
    "GRUCell": "cell",
    "LSTMCell": "cell",
    "RNNCell": "cell",
    "SparseGradient": "gradients",
    "softmax_cross_entropy": "losses",
    "Dense": "dense",
    "to_c": "export_c",
    "load": "models",
    "Sequential": "sequential",
    "SGD": "optim",
    "Adagrad": "optim",
    "Adam": "optim",
    "AdamW": "optim",
    "RMSprop": "optim",
    "clip_by_norm": "optim",
    "clip_by_value": "optim",
    "CosineAnnealingLR": "schedules",
    "LambdaLR": "schedules",
    "LinearLR": "schedules",
    "ReduceLROnPlateau": "schedules",
    "SequentialLR": "schedules",
    "StepLR": "schedules",
    "StateError": "streams",
    "StreamBatch": "streams",
    "StreamClosed": "streams",
    "StreamsFull": "streams",
}
# Public submodules, loaded in the same way.
_SUBMODULES = (
    "aio",
    "callbacks",
    "files",
    "forecast",
    "keras",
    "losses",
    "metrics",
    "nn",
    "onnx",
    "streams",
    "torch",
    "training",
)
# Those that cannot be loaded without an installed library of the same name; `from fastlstm import *` leaves them out.
_WITH_LIBRARY = ("sklearn",)
__all__ = ["BackendError", "__version__", "backends", *_HOME, *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES or name in _WITH_LIBRARY:
        return importlib.import_module(f".{name}", __name__)  # which makes it an attribute of the package
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'fastlstm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *filter(find_spec, _WITH_LIBRARY)])
