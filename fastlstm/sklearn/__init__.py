"""LSTM models as scikit-learn's estimators. See docs/sklearn.md.

(Inside this package `import sklearn` is scikit-learn: imports of fastlstm's own modules are relative.)
"""

try:
    from sklearn.utils.validation import validate_data as _needed  # noqa: F401  (scikit-learn 1.6 and later)
except ImportError as error:
    raise ImportError(
        f"fastlstm.sklearn needs scikit-learn, version 1.6 or later ({error}). "
        'To get it: pip install "fastlstm[sklearn]"'
    ) from error

from .classifier import LSTMClassifier as LSTMClassifier
from .regressor import LSTMRegressor as LSTMRegressor

__all__ = ["LSTMClassifier", "LSTMRegressor"]
