"""Layers beside the recurrent ones."""

from .dense import Dense

__all__ = ["Dense"]
