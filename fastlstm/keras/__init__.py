"""Keras's layers, models and files here. Keras itself is imported only where a live object of it is at hand.

(Inside this package `import keras` is Keras: imports of fastlstm's own modules are relative.)
"""

from .convert import from_keras as from_keras

__all__ = ["from_keras"]
