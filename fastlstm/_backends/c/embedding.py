"""The gradient of an embedding."""

from __future__ import annotations

from ...layout import Array
from .calls import INTS, from_buffer, pointer
from .extension import lib


def add_rows(table: Array, ids: Array, rows: Array) -> None:
    """See `_backends.numpy.add_rows`."""
    if ids.size:
        lib.fl_add_rows(pointer(table), table.shape[1], from_buffer(INTS, ids), pointer(rows), len(ids))
