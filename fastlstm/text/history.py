"""The history of a text model's training, in files of this version and of version 0.1.0."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..layout import Array
from ..training import History


class Losses(list[float]):
    """The losses of all steps, with the list interface of version 0.1.0."""

    def append(self, value: float) -> None:
        """Do nothing: steps record their losses. Programs for version 0.1.0 recorded them by this call."""


class TextHistory(History):
    """A history whose columns are ``loss`` of every step and ``held_out``, both in nats."""

    @property
    def losses(self) -> Losses:
        """The column ``loss``, by its name in version 0.1.0."""
        return Losses(value for _, value in self.points("loss"))


def read_history(arrays: Mapping[str, Array]) -> TextHistory:
    """The history of a file. Version 0.1.0 wrote the losses of all steps as ``losses`` (steps,)."""
    columns = dict(arrays)
    if "losses" in columns:
        losses = columns.pop("losses")
        columns = {"loss": np.column_stack([np.arange(1, len(losses) + 1), losses])} | columns
    return TextHistory.from_arrays(columns)
