"""What a `StreamBatch` raises beside ValueError and TypeError."""

from __future__ import annotations


class StreamClosed(LookupError):
    """A handle does not name an open stream: it was closed or evicted, or this StreamBatch never gave it out."""


class StreamsFull(RuntimeError):
    """As many streams are open as `max_streams` allows."""


class StateError(ValueError):
    """The bytes of a state are damaged, or belong to another model or version; the message says which."""
