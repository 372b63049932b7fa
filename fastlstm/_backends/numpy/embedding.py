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
    if not ids.size:
        return
    order = np.argsort(ids, kind="stable")
    in_order = ids[order]
    begins = np.flatnonzero(np.concatenate(([True], in_order[1:] != in_order[:-1])))
    table[in_order[begins]] += np.add.reduceat(rows[order], begins, axis=0)
