"""Keras's layers, models and files here, and Keras models made faster in place.

Keras itself is imported only for a live object of it. (Inside this package `import keras` is Keras: imports of
fastlstm's own modules are relative.)
"""

from .acceleration import accelerate as accelerate
from .convert import from_keras as from_keras

__all__ = ["accelerate", "from_keras"]
