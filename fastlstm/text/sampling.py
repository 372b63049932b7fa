"""Drawing the next token: temperature, top-k and top-p."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..layout import Array
from ..validation import number, positive


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn.

    Parameters
    ----------
    temperature : float
        Divides the logits: below 1 probabilities are sharper, above 1 flatter. 0 takes the likeliest token.
    top_k : int, optional
        Only the k likeliest tokens are drawn; of equally likely ones those with lower ids (Fan et al. 2018).
    top_p : float, optional
        Only the likeliest tokens whose probabilities, after temperature and top-k, add up to p; as few as reach it
        (nucleus sampling, Holtzman et al. 2020).

    Raises
    ------
    ValueError, TypeError
        A number is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        number(self.temperature, "temperature")
        if self.top_k is not None:
            positive(self.top_k, "top_k")
        if self.top_p is not None and not 0 < number(self.top_p, "top_p") <= 1:
            raise ValueError(f"top_p must be a number above 0 and at most 1, got {self.top_p}")

    def token(self, logits: Array, rng: np.random.Generator) -> int:
        """A token drawn from softmax(logits / temperature), (V,), cut to `top_k` and `top_p`."""
        if self.temperature == 0:
            return int(np.argmax(logits))
        shifted = logits.astype(np.float64) - logits.max()
        with np.errstate(over="ignore", under="ignore"):  # towards temperature 0: -inf, and so probability 0
            weights = np.exp(shifted / self.temperature)
        cumulated = np.cumsum(self._cut(weights))
        drawn = np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right")
        return min(int(drawn), int(np.searchsorted(cumulated, cumulated[-1])))  # the product may round up to the whole

    def _cut(self, weights: Array) -> Array:
        """The weights (V,), 0 where a token is not to be drawn."""
        if self.top_k is None and self.top_p is None:
            return weights
        order = np.argsort(-weights, kind="stable")[: self.top_k]
        if self.top_p is not None:
            before = np.concatenate(([0.0], np.cumsum(weights[order])))
            order = order[before[:-1] < self.top_p * before[-1]]
        kept: Array = np.zeros_like(weights)
        kept[order] = weights[order]
        return kept


def choose_token(
    logits: Array, temperature: float, rng: np.random.Generator, top_k: int | None = None, top_p: float | None = None
) -> int:
    """A token drawn as `Draw` says; the likeliest one at temperature 0."""
    return Draw(temperature, top_k, top_p).token(logits, rng)
