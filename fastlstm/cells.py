"""Where pickles of version 0.1.0 look for the specs of layers; nothing else imports it. See `fastlstm._old_pickles`."""

from .spec import Activation, Spec

__all__ = ["Activation", "Spec"]
