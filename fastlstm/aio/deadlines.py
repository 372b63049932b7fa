"""Requests that end at a time, whether they are done or not."""

from __future__ import annotations

from asyncio import Future, TimerHandle
from typing import Any

from .counters import Counters
from .errors import DeadlineExceeded


class Deadlines:
    """The requests with a deadline.

    Parameters
    ----------
    counters : Counters
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.timers: dict[Future[Any], TimerHandle] = {}

    def add(self, answer: Future[Any], at: float) -> None:
        """Let a request end with DeadlineExceeded at a time of its loop's clock."""
        self.timers[answer] = answer.get_loop().call_at(at, self._expire, answer, False)
        answer.add_done_callback(self._forget)

    def begun(self, answer: Future[Any]) -> None:
        """Note that the batch of a request begins: from now on its stream takes the step."""
        if answer in self.timers:
            timer = self.timers[answer]
            timer.cancel()
            self.timers[answer] = answer.get_loop().call_at(timer.when(), self._expire, answer, True)

    def expire_until(self, now: float) -> None:
        """End the requests whose time is over, although the loop has not come round to their timers."""
        for answer in [answer for answer, timer in self.timers.items() if now >= timer.when()]:
            self._expire(answer, False)

    def _expire(self, answer: Future[Any], stepped: bool) -> None:
        self._forget(answer)
        if not answer.done():
            state = "its batch is under way, and the stream takes the step" if stepped else "the state is as before"
            answer.set_exception(DeadlineExceeded(f"the request's time is over; {state}", stepped))
            self._counters.add("expired", 1)

    def _forget(self, answer: Future[Any]) -> None:
        timer = self.timers.pop(answer, None)
        if timer is not None:
            timer.cancel()
