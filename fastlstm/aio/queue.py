"""How the next batch is taken out of the requests that wait."""

from __future__ import annotations

from asyncio import Future
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..layout import Array

Answer = Future[Any]  # of a row (U,)
# (handle, the bytes of a row (I,) or an int, a token id, answer). A plain tuple is the quickest to make, and bytes are
# quicker to copy and to join than arrays.
Request = tuple[int, Any, Answer]
done = Future.done


class Taken(NamedTuple):
    """The requests of a batch, column by column."""

    handles: Sequence[int]
    rows: Sequence[Any]
    answers: Sequence[Answer]


def take(waiting: deque[Request], most: int) -> tuple[Taken, int]:
    """(the requests of the next batch, number of requests that were cancelled); both are taken out of `waiting`.

    A batch has at most `most` requests, of different streams, and either rows or token ids. A request that does not fit
    stays, and so do all later ones of its stream: the requests of a stream keep their order.
    """
    if 0 < len(waiting) <= most:
        handles, rows, answers = zip(*waiting, strict=True)
        unlike = len(set(handles)) < len(handles) or len(set(map(type, rows))) > 1
        if not unlike and not any(map(done, answers)):
            waiting.clear()
            return Taken(handles, rows, answers), 0
    return picked(waiting, most)


def picked(waiting: deque[Request], most: int) -> tuple[Taken, int]:
    """`take` where some requests are cancelled or have to stay."""
    batch: list[Request] = []
    streams: set[int] = set()  # with a request in the batch, or one that stays
    stay: list[Request] = []
    cancelled = 0
    while waiting and len(batch) < most:
        request = waiting.popleft()
        handle, x, answer = request
        if answer.done():
            cancelled += answer.cancelled()
            continue
        fits = handle not in streams and (not batch or type(x) is type(batch[0][1]))
        streams.add(handle)
        (batch if fits else stay).append(request)
    waiting.extendleft(reversed(stay))
    return Taken(*zip(*batch, strict=True)) if batch else Taken((), (), ()), cancelled


def stacked(batch: Taken, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """((n,) handles, (n, I) rows or (n,) token ids) of a batch."""
    rows = batch.rows
    try:
        handles = np.array(batch.handles, np.int64)
    except OverflowError:  # a step refuses ints that no 64 bits hold
        handles = np.array(batch.handles, object)
    if type(rows[0]) is int:
        return handles, np.array(rows, np.int64)
    return handles, np.frombuffer(b"".join(rows), dtype).reshape(len(rows), -1)
