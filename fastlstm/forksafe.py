"""Locks that a fork cannot leave locked for ever."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any


class Lock:
    """A re-entrant lock, unlocked in a forked child even where another thread of the parent held it.

    What it guards must be sound at every moment: that thread does not exist in the child, to finish what it began.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _all.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: Any) -> None:
        self._lock.release()


_all: weakref.WeakSet[Lock] = weakref.WeakSet()


def _renew() -> None:
    for lock in list(_all):
        if not lock._lock._is_owned():  # type: ignore[attr-defined]  # the thread that forked lives on, with what it holds
            lock._lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew)
