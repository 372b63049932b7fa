"""The gradient of an embedding."""

from __future__ import annotations

import numpy as np

from ...layout import Array


def add_rows(table: Array, ids: Array, rows: Array) -> None:
    """table[ids[k]] += rows[k] for every k, in order.

    Parameters
    ----------
    table : (V, E) array
    ids : (n,) int64 array
        Between 0 and V - 1; an id may come often.
    rows : (n, E) array
    """
    np.add.at(table, ids, rows)
