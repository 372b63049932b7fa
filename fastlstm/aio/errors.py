"""What a `Batcher` raises beside the errors of `StreamBatch`."""

from __future__ import annotations


class BatcherClosed(RuntimeError):
    """The batcher drains or is closed, and takes no more requests."""


class QueueFull(RuntimeError):
    """As many requests wait as `max_queue` allows; or, with overload="oldest", a newer one took the place.

    Parameters
    ----------
    message : str
    retry_after : float
        Seconds in which the requests that wait now will be done, at the present speed.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(TimeoutError):
    """A request's time is over.

    Parameters
    ----------
    message : str
    stepped : bool
        Whether the stream has taken the step all the same: its batch was under way. False: its state is as before.
    """

    def __init__(self, message: str, stepped: bool) -> None:
        super().__init__(message)
        self.stepped = stepped
