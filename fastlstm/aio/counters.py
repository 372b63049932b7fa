"""What a `Batcher` counts."""

from __future__ import annotations

from typing import Any

REASONS = ("turn", "full", "wait")  # why a batch began: the turn's end, max_batch, max_wait_us
NEW = 0.2  # weight of the last batch in the mean time of a row


class Counters:
    """Counts of requests and batches.

    Parameters
    ----------
    max_batch : int
    """

    def __init__(self, max_batch: int) -> None:
        self.counts = dict.fromkeys(("rows", "rejected", "displaced", "cancelled", "expired", "dropped"), 0)
        self.batches = dict.fromkeys(REASONS, 0)
        self.sizes = [0] * ((max_batch - 1).bit_length() + 1)  # batches of up to 1, 2, 4 ... rows
        self.compute_seconds = self.queue_seconds = 0.0
        self.seconds_per_row = 0.0  # the mean over the last batches
        self.alone, self.alone_seconds = 0, 0.0  # lone requests, which `Batches` counts here

    def add(self, name: str, n: int) -> None:
        """Count n requests."""
        self.counts[name] += n

    def batch(self, why: str, rows: int, seconds: float, waited: float) -> None:
        """Count a batch, and the time that it and its first row took."""
        self.counts["rows"] += rows
        self.batches[why] += 1
        self.sizes[(rows - 1).bit_length()] += 1
        self.compute_seconds += seconds
        self.queue_seconds += waited
        per_row = seconds / rows
        self.seconds_per_row += (per_row - self.seconds_per_row) * (NEW if self.seconds_per_row else 1.0)

    def expected(self, rows: int) -> float:
        """Seconds that a batch will take, by the last ones; by lone requests where there was none."""
        return rows * (self.seconds_per_row or self.alone_seconds / max(1, self.alone))

    def shown(self) -> dict[str, Any]:
        """All counts, by name."""
        sizes = {2**k: count for k, count in enumerate(self.sizes)}
        return {
            **self.counts,
            "rows": self.counts["rows"] + self.alone,
            "batches": {"alone": self.alone, **self.batches},
            "sizes": sizes | {1: sizes[1] + self.alone},
            "compute_seconds": self.compute_seconds + self.alone_seconds,
            "queue_seconds": self.queue_seconds,
        }
