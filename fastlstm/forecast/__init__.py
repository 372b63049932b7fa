"""Forecasting: windows, scaling, back-testing that never sees the future, and models. See docs/forecast.md."""

from .judged import Judged as Judged
from .model import Forecaster as Forecaster
from .series import SCALERS as SCALERS
from .series import Fold as Fold
from .series import FoldWindows as FoldWindows
from .series import MinMaxScaler as MinMaxScaler
from .series import NoScaler as NoScaler
from .series import Scaler as Scaler
from .series import StandardScaler as StandardScaler
from .series import fold_windows as fold_windows
from .series import folds as folds
from .series import windows as windows

__all__ = [
    "SCALERS",
    "Fold",
    "FoldWindows",
    "Forecaster",
    "Judged",
    "MinMaxScaler",
    "NoScaler",
    "Scaler",
    "StandardScaler",
    "fold_windows",
    "folds",
    "windows",
]
