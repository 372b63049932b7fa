"""What a `Batcher` raises beside the errors of `StreamBatch`."""

from __future__ import annotations


class BatcherClosed(RuntimeError):
    """The batcher drains or is closed, and takes no more requests."""


class QueueFull(RuntimeError):
    """As many requests wait as `max_queue` allows; or, with overload="oldest", a newer one took the place.

    Parameters
    ----------
    waiting, max_queue : int
        Requests that wait, and most that may.
    retry_after : float
        Seconds in which the requests that wait now will be done, at the present speed.
    displaced : bool
        Whether a newer request took the place of this one.
    """

    def __init__(self, waiting: int, max_queue: int, retry_after: float, displaced: bool = False) -> None:
        super().__init__(waiting, max_queue, retry_after, displaced)
        self.retry_after = retry_after

    def __str__(self) -> str:  # made only where it is read: under overload most of the work is refusing
        waiting, max_queue, retry_after, displaced = self.args
        if displaced:
            return f"a newer request took the place: {max_queue} wait, and overload is 'oldest'"
        return f"{waiting} requests wait and max_queue is {max_queue}: come again in {retry_after:.3g} s"


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
