"""Initial values of matrices, by Keras's names and in Keras's shapes (inputs, outputs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..layout import Array

Initializer = Callable[[tuple[int, int], np.random.Generator], Array]


def glorot_uniform(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Uniform in +-sqrt(6 / (inputs + outputs)) (Glorot & Bengio 2010)."""
    limit = np.sqrt(6 / max(1, sum(shape)))
    return rng.uniform(-limit, limit, shape)


def glorot_normal(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Normal with variance 2 / (inputs + outputs), not truncated (Glorot & Bengio 2010)."""
    drawn: Array = rng.standard_normal(shape) * np.sqrt(2 / max(1, sum(shape)))
    return drawn


def he_uniform(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Uniform in +-sqrt(6 / inputs) (He et al. 2015)."""
    limit = np.sqrt(6 / max(1, shape[0]))
    return rng.uniform(-limit, limit, shape)


def orthogonal(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Orthonormal rows or columns, whichever are fewer (Saxe et al. 2014)."""
    tall = rng.standard_normal((max(shape), min(shape)))
    q, r = np.linalg.qr(tall)
    q = q * np.where(np.diag(r) < 0, -1, 1)  # so that q is uniformly distributed
    return q if shape[0] >= shape[1] else q.T


def uniform(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Uniform in +-0.05, Keras's choice for embeddings."""
    return rng.uniform(-0.05, 0.05, shape)


def zeros(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Zeros."""
    return np.zeros(shape)


def ones(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Ones."""
    return np.ones(shape)


INITIALIZERS: dict[str, Initializer] = {
    f.__name__: f for f in (glorot_uniform, glorot_normal, he_uniform, orthogonal, uniform, zeros, ones)
}


def initializer(given: Any, argument: str) -> str:
    """The name of a known initialiser.

    Raises
    ------
    ValueError
        It is not known; the message lists the names.
    """
    if not isinstance(given, str) or given not in INITIALIZERS:
        raise ValueError(f"{argument} {given!r} is not known; expected one of {', '.join(INITIALIZERS)}")
    return given
