"""`History`: the figures of a training in columns by name, each value with its step or epoch."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..layout import Array

if TYPE_CHECKING:
    from typing_extensions import Self


class History:
    """Columns of figures: ``history["loss"]`` is a list of floats. Columns may have values at different steps.

    Values take 16 bytes each, so that every step of a long run can be kept.
    """

    def __init__(self) -> None:
        self._columns: dict[str, tuple[array[int], array[float]]] = {}

    def record(self, at: int, **values: float) -> None:
        """Add a value to each named column; new names begin new columns.

        Parameters
        ----------
        at : int
            The step or epoch, not before that of the column's last value.
        **values : float

        Raises
        ------
        ValueError
            `at` lies before the column's last value; nothing has been recorded then.
        """
        for name in values:
            if name in self._columns and at < self._columns[name][0][-1]:
                raise ValueError(f"column {name} has a value at {self._columns[name][0][-1]}; {at} lies before it")
        for name, value in values.items():
            when, figures = self._columns.setdefault(name, (array("q"), array("d")))
            figures.append(float(value))
            when.append(at)

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in the order in which they began."""
        return list(self._columns)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> list[float]:
        """All values of a column; KeyError if there is none of that name."""
        return self._columns[name][1].tolist()

    def points(self, name: str) -> list[tuple[int, float]]:
        """(step or epoch, value) of each value of a column; [] if there is no column of that name."""
        when, figures = self._columns.get(name, ((), ()))
        return list(zip(when, figures, strict=True))

    def last(self, name: str, count: int = 1) -> list[float]:
        """The last `count` values of a column, or all if there are fewer."""
        return self._columns[name][1][-count:].tolist() if name in self._columns and count else []

    def length(self, name: str) -> int:
        """How many values a column has."""
        return len(self._columns[name][0]) if name in self._columns else 0

    def rows(self) -> list[dict[str, float]]:
        """The history by rows: for each step or epoch a dict with ``at`` and the values measured there."""
        found: dict[int, dict[str, float]] = {}
        for name in self._columns:
            for at, value in self.points(name):
                found.setdefault(at, {"at": at})[name] = value
        return [found[at] for at in sorted(found)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self._columns == other._columns

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {self.length(name)}" for name in self._columns)
        return f"History({sizes})"

    # ---------------------------------------------------------------------------------------------------------- files
    def to_arrays(self) -> dict[str, Array]:
        """Arrays for a checkpoint: each column as (values, 2) float64, rows of (step or epoch, value)."""
        return {
            name: np.column_stack([np.array(when, np.float64), np.array(figures, np.float64)])
            for name, (when, figures) in self._columns.items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """The history of arrays that `to_arrays` made.

        Raises
        ------
        ValueError
            An array has another shape, or its steps are no whole numbers that rise.
        """
        history = cls()
        for name, column in arrays.items():
            values = np.asarray(column, np.float64)
            if values.ndim != 2 or values.shape[1] != 2:
                raise ValueError(f"column {name} of the history has shape {values.shape}, expected (values, 2)")
            when = values[:, 0]
            if not (np.isfinite(when).all() and (when == np.floor(when)).all() and (np.diff(when) >= 0).all()):
                raise ValueError(f"the steps of column {name} of the history are no whole numbers that rise")
            if len(values):
                history._columns[name] = (array("q", map(int, when.tolist())), array("d", values[:, 1].tolist()))
        return history
