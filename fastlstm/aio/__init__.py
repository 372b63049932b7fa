"""An asyncio front of `fastlstm.StreamBatch`: requests of many clients become steps of many streams. See docs/aio.md.

`batcher` has `Batcher`, over `batches` (when a batch begins, and where it runs) and `queue` (its requests); `client` is
one client's stream from open to close, `errors` what is raised.
"""

from .batcher import Batcher
from .client import ClientStream
from .errors import BatcherClosed, DeadlineExceeded, QueueFull

__all__ = ["Batcher", "BatcherClosed", "ClientStream", "DeadlineExceeded", "QueueFull"]
