"""What an `accelerate` has taken and what it has left: the base of the summaries for PyTorch and ONNX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar


class Part(Protocol):
    """A module or a node, and why it was left; None where it runs on the kernels."""

    name: str
    why: str | None


AnyPart = TypeVar("AnyPart", bound=Part)


class Taken(Generic[AnyPart]):
    """The parts of a model, in order.

    Attributes
    ----------
    entries : sequence of Part
    """

    entries: Sequence[AnyPart]

    @property
    def accelerated(self) -> list[str]:
        """The names of the parts that run on the kernels."""
        return [entry.name for entry in self.entries if entry.why is None]

    @property
    def left(self) -> dict[str, str]:
        """Why the others were left where they were, by name."""
        return {entry.name: entry.why for entry in self.entries if entry.why is not None}

    def __iter__(self) -> Iterator[AnyPart]:
        return iter(self.entries)
