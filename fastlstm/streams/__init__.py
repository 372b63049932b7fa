"""Many independent streams over one set of weights, their states as bytes, and stores for these.

`batch` has `StreamBatch`, over `open` (which streams are open, by which handle and key). `slabs` is the memory of the
states, `model` the packed weights, `gathered` the step by copies, `records` and `snapshots` the states in bytes and in
files, `stores` where they are kept, `errors` what is raised.
"""

from .batch import StreamBatch
from .errors import StateError, StreamClosed, StreamsFull
from .stores import FileStore, MemoryStore, Store

__all__ = ["FileStore", "MemoryStore", "StateError", "Store", "StreamBatch", "StreamClosed", "StreamsFull"]
