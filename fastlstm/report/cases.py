"""What is measured, as data, one line a case; and a case's cost in operations and bytes, the same for every library."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from ..layout import Array
from ..recurrent import GRU, LSTM, RNN
from ..spec import GATES, Kind

Mode = Literal["forward", "step", "run", "train"]

LAYERS: dict[str, Any] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
CHECKED_STEPS = 5  # steps of a stream whose values are compared before its steps are timed
BATCHES = 8  # of a model's data, which come again and again
WORDS, VECTOR = 5000, 32  # of the sentiment model
LETTERS = 28  # of the character model
LONGEST, SHAPE, SCALE = 51, 2.2, 8.6  # lengths of reviews: a gamma distribution of mean 19, cut at 51


class Drawn(NamedTuple):
    """What a case computes with, the same for every contender."""

    x: Array  # (T, B, I), or token ids (T, B); T is CHECKED_STEPS for a stream
    lengths: Array | None  # (B,), longest first
    dy: Array  # (T, B, D*H)
    weights: dict[str, Array]  # by PyTorch's names


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Parameters
    ----------
    mode : {"forward", "step", "run", "train"}
        A call over whole sequences; one step of a stream; T steps of a stream in one call; forward and backward,
        gradients for input and parameters.
    kind : {"lstm", "gru", "rnn"}
    I, H, B, T, layers : int
        Sizes, in the alphabet of `spec`.
    bidirectional, reset_after : bool
    ragged : bool
        Lengths are drawn uniformly from 1 to T.
    ids : bool
        The input is token ids below I, of which none comes twice.
    """

    mode: Mode
    kind: Kind
    I: int  # noqa: E741
    H: int
    B: int = 1
    T: int = 1
    layers: int = 1
    bidirectional: bool = False
    reset_after: bool = True
    ragged: bool = False
    ids: bool = False

    def __str__(self) -> str:
        words = [self.kind, self.mode, f"{self.I},{self.H}"]
        words += [f"x{self.layers}"] * (self.layers > 1) + ["bidirectional"] * self.bidirectional
        words += ["reset first"] * (not self.reset_after)
        words += [f"B={self.B}"] + [f"T={self.T}"] * (self.mode != "step") + ["ragged"] * self.ragged
        words += ["ids"] * self.ids
        return " ".join(words)

    @property
    def D(self) -> int:
        return 2 if self.bidirectional else 1

    def layer(self, dtype: str = "float32", backend: str = "auto") -> Any:
        """A layer of fastlstm; always with the same weights."""
        options: dict[str, Any] = {"num_layers": self.layers, "bidirectional": self.bidirectional}
        options |= {"reset_after": self.reset_after} if self.kind == "gru" else {}
        make = functools.partial(LAYERS[self.kind], self.I, self.H, **options)
        layer = make(backend=backend, dtype=dtype)
        layer.load_state_dict(self._looked_up() if self.ids else make(backend="numpy", seed=0).state_dict())
        return layer

    def draw(self) -> Drawn:
        rng = np.random.default_rng(1)

        def numbers(width: int) -> Array:
            return rng.standard_normal((self._steps, self.B, width)).astype(np.float32)

        x = self._ids() if self.ids else numbers(self.I)
        return Drawn(x, self.lengths(), numbers(self.D * self.H), self.layer(backend="numpy").state_dict())

    @property
    def _steps(self) -> int:
        return CHECKED_STEPS if self.mode == "step" else self.T

    @property
    def of_size_1(self) -> Case:
        """The case that computes what this one does from the numbers that its ids stand for: an input of size 1."""
        return replace(self, I=1, ids=False)

    def _ids(self) -> Array:
        return np.random.default_rng(3).permutation(self.I)[: self._steps * self.B].reshape(self._steps, self.B)

    def _looked_up(self) -> dict[str, Array]:
        """Weights for ids: an id's column is the number that it stands for times the only column `of_size_1` has."""
        drawn = self.of_size_1.draw()
        numbers = np.zeros(self.I, np.float32)
        numbers[self._ids()] = drawn.x[..., 0]
        return {name: w * numbers if name.startswith("weight_ih_l0") else w for name, w in drawn.weights.items()}

    def lengths(self) -> Array | None:
        """(B,) lengths, the longest (T) first; None where all sequences are equally long."""
        if not self.ragged:
            return None
        drawn = np.random.default_rng(2).integers(1, self.T + 1, self.B)
        drawn[0] = self.T
        return np.sort(drawn)[::-1].copy()

    # ---------------------------------------------------------------------------------------------------- what it costs
    def _each_direction(self, first: int) -> Iterator[int]:
        """Input width of every direction of every layer, the first layer's being given."""
        for layer in range(self.layers):
            yield from [first if layer == 0 else self.D * self.H] * self.D

    def _each_product(self) -> Iterator[int]:
        """Input width of every product: ids are multiplied with nothing."""
        return self._each_direction(0 if self.ids else self.I)

    @property
    def _GH(self) -> int:
        return len(GATES[self.kind]) * self.H

    @property
    def parameters(self) -> int:
        return sum(self._GH * (width + self.H + 2) for width in self._each_direction(self.I))

    @property
    def flops(self) -> float:
        """Floating-point operations of the products, two a multiply-add. Training: forward, dx and weight gradients."""
        lengths = self.lengths()
        rows = self.B * self.T if lengths is None else int(lengths.sum())
        forward = sum(2.0 * rows * self._GH * (width + self.H) for width in self._each_product())
        return forward * (3 if self.mode == "train" else 1)

    @property
    def recurrent_bytes(self) -> int:
        """Bytes of one layer's recurrent float32 weights, all directions (LSTM: 16 H H each): every step reads them."""
        return 4 * self._GH * self.H * self.D

    @property
    def bytes_read(self) -> float:
        """Bytes of weights that must be read: the recurrent ones in every step, the input's at least once.

        Training walks through time twice.
        """
        walks = self.T * (2 if self.mode == "train" else 1)
        inputs = sum(4.0 * self._GH * width for width in self._each_product())
        return walks * self.layers * self.recurrent_bytes + inputs


class Samples(NamedTuple):
    """The data of a `ModelCase`, the same for every contender."""

    x: Any  # (N, T) token ids, or a list of N sequences of them
    y: Array  # (N,) labels 0 and 1, or (N, T) the next ids
    batches: list[Array]  # the samples of each batch


@dataclass(frozen=True)
class ModelCase:
    """One model whose training steps are measured.

    Parameters
    ----------
    model : {"sentiment", "characters"}
        Embedding, LSTM, one output with binary cross-entropy, Adam; or LSTM on token ids, one output for each id with
        cross-entropy, plain gradient descent, and the state carried from step to step.
    H, B, T : int
        Hidden units, sequences of a batch, steps.
    ragged : bool
        Sequences have the lengths of short reviews, up to 51 words; each batch has those of about one length.
    """

    model: Literal["sentiment", "characters"]
    H: int
    B: int
    T: int
    ragged: bool = False

    mode = "fit"

    def __str__(self) -> str:
        return f"{self.model} fit {self.H} B={self.B} T={self.T}" + " ragged" * self.ragged

    # ------------------------------------------------------------------------------------------------------- the data
    def draw(self) -> Samples:
        """Token ids, labels, and batches."""
        rng, N = np.random.default_rng(1), self.B * BATCHES
        if self.model == "characters":
            x = rng.integers(0, LETTERS, (BATCHES * self.T + 1, self.B))
            return Samples(x[:-1], x[1:], [np.arange(i * self.T, (i + 1) * self.T) for i in range(BATCHES)])
        y = rng.integers(0, 2, N).astype(np.float32)
        lengths = self._lengths(rng, N)
        words = [rng.integers(1, WORDS, n) for n in lengths]
        if not self.ragged:
            x = np.zeros((N, self.T), np.int64)
            for row, one in zip(x, words, strict=True):
                row[: len(one)] = one
            return Samples(x, y, [np.arange(i * self.B, (i + 1) * self.B) for i in range(BATCHES)])
        order = rng.permutation(np.argsort(lengths, kind="stable").reshape(BATCHES, self.B))
        return Samples(words, y, [*order])

    @staticmethod
    def _lengths(rng: np.random.Generator, N: int) -> Array:
        """How many words each of N reviews has."""
        drawn: Array = np.clip(rng.gamma(SHAPE, SCALE, N).round(), 1, LONGEST).astype(np.int64)
        return drawn

    # -------------------------------------------------------------------------------------------------- what it costs
    @property
    def layer_case(self) -> Case:
        """The recurrent layer alone."""
        inputs = VECTOR if self.model == "sentiment" else LETTERS
        return Case("train", "lstm", inputs, self.H, self.B, self.T, ids=self.model == "characters")

    @property
    def flops(self) -> float:
        """Of the recurrent layer's products, in a step (the mean of the batches)."""
        whole = self.layer_case.flops
        if not self.ragged:
            return whole
        return whole * float(np.mean([len(one) for one in self.draw().x])) / self.T

    @property
    def recurrent_bytes(self) -> int:
        """Of the recurrent weights."""
        return self.layer_case.recurrent_bytes

    @property
    def bytes_read(self) -> float:
        """Of the weights, in a step."""
        return self.layer_case.bytes_read

    @property
    def parameters(self) -> int:
        """Of the recurrent layer."""
        return self.layer_case.parameters


# ------------------------------------------------------------------------------------------------------------- the list
KINDS: tuple[Kind, ...] = ("lstm", "gru", "rnn")
CALLS: tuple[Mode, ...] = ("forward", "train")

SHAPES: list[tuple[int, int, dict[str, Any]]] = [
    (16, 32, {"T": 100}),
    (64, 64, {"T": 100}),
    (128, 128, {"T": 100}),
    (256, 256, {"T": 100}),
    (512, 512, {"T": 100}),
    (1024, 1024, {"T": 50}),
    (256, 256, {"B": 8, "T": 100}),
    (28, 256, {"B": 32, "T": 35}),
    (32, 100, {"B": 64, "T": 500}),
    (512, 512, {"B": 64, "T": 50}),
    (1024, 1024, {"B": 128, "T": 10}),
    (80, 256, {"T": 100, "layers": 2, "bidirectional": True}),
    (80, 256, {"B": 16, "T": 100, "layers": 2, "bidirectional": True}),
    (40, 256, {"B": 16, "T": 160, "layers": 3}),
]


def inference(kind: Kind) -> list[Case]:
    """Steps of a stream, and calls over sequences: the shapes by which libraries are compared."""
    steps = [Case("step", kind, H, H) for H in (64, 256, 512, 1024)]
    return steps + [Case("forward", kind, I, H, **rest) for I, H, rest in SHAPES]  # noqa: E741


INFERENCE = inference("lstm")

# Sizes that fit no vector, block or tile.
ODD = [
    *(Case("forward", "lstm", 64, H, B=B, T=50) for H in (1, 7, 100, 129, 200) for B in (1, 8)),
    *(Case("forward", "lstm", inputs, 128, B=B, T=50) for inputs in (1, 13) for B in (1, 8)),
    *(Case("forward", "lstm", 128, 128, B=B, T=50) for B in (2, 3, 5, 17)),
]

LENGTHS = [Case("forward", "lstm", 64, 256, B=64, T=200, ragged=True)]

# Token ids: an input of that size, without its product. Held against an input of size 1.
TOKENS = [Case("forward", "lstm", 10_000, 256, B=B, T=100, ids=True) for B in (1, 32)]

# The other cells, and GRU's other form.
OTHERS = [
    *(case for kind in KINDS[1:] for case in inference(kind)),
    *(Case("forward", kind, 256, 256, B=32, T=100) for kind in KINDS[1:]),
    *(Case("forward", "gru", 256, 256, B=B, T=100, reset_after=False) for B in (1, 32)),
]

TRAINING_SHAPES: list[tuple[int, int, dict[str, Any]]] = [
    (28, 256, {"B": 32, "T": 35}),
    (32, 100, {"B": 64, "T": 500}),
    (32, 64, {"B": 32, "T": 100}),
    (64, 64, {"B": 1, "T": 25}),
    (512, 512, {"B": 64, "T": 50}),
    (40, 256, {"B": 16, "T": 160, "layers": 3}),
    (8, 128, {"B": 256, "T": 20}),
]
TRAINING = [
    *(Case("train", kind, I, H, **rest) for kind in KINDS for I, H, rest in TRAINING_SHAPES),  # noqa: E741
    *(Case("train", kind, 256, 256, B=B, T=100) for kind in KINDS[1:] for B in (1, 32)),
    Case("train", "lstm", 64, 256, B=64, T=200, ragged=True),
]

# What a cell costs beside the others at equal hidden size.
CELLS = [
    Case(mode, kind, H, H, B=B, T=T, reset_after=reset_after)
    for H in (64, 256)
    for B, T in ((1, 100), (32, 35))
    for mode in CALLS
    for kind in KINDS
    for reset_after in ((True, False) if kind == "gru" else (True,))
]

# For a quick look, and for pytest-benchmark.
GRID = [
    *(Case(mode, kind, 64, 64, B=B, T=20) for kind in KINDS for mode in CALLS for B in (1, 16)),
    *(Case("step", kind, 64, 64) for kind in KINDS),
    *(Case(mode, "lstm", 256, 256, B=B, T=20) for mode in CALLS for B in (1, 16)),
    Case("step", "lstm", 256, 256),
]

# A whole step of training: batching, embedding, layer, head, loss, clipping and optimiser.
FIT = [
    ModelCase("sentiment", 100, 64, 60),
    ModelCase("sentiment", 100, 64, 60, ragged=True),
    ModelCase("characters", 256, 32, 35),
]

# Reduced storage beside float32, and other libraries' int8.
QUANTISED = [
    *(Case("step", "lstm", H, H) for H in (64, 128, 256, 512, 1024)),
    *(Case("forward", "lstm", H, H, T=50 if H == 1024 else 100) for H in (64, 128, 256, 512, 1024)),
    *(Case("forward", "lstm", H, H, B=B, T=T) for H, T in ((256, 100), (512, 50)) for B in (16, 64)),
]

GROUPS: dict[str, list[Any]] = {
    "inference": INFERENCE,
    "odd": ODD,
    "lengths": LENGTHS,
    "tokens": TOKENS,
    "others": OTHERS,
    "training": TRAINING,
    "cells": CELLS,
    "grid": GRID,
    "fit": FIT,
    "quantised": QUANTISED,
}


def select(groups: Iterable[str], words: Iterable[str] = ()) -> dict[str, list[Any]]:
    """The cases of these groups; with `words`, those that a word names: a group, of all, or a part of a case's name.

    Raises
    ------
    ValueError
        A word names nothing.
    """
    words = list(words)
    searched = {group: GROUPS[group] for group in GROUPS if group in words or group in groups}
    for word in words:
        if word not in GROUPS and not any(word in str(case) for cases in searched.values() for case in cases):
            raise ValueError(
                f"no case in {', '.join(searched)} is called {word!r}: give a group ({', '.join(GROUPS)}) "
                "or a part of a case's name"
            )
    if not words:
        return searched
    named = {
        group: [case for case in cases if group in words or any(word in str(case) for word in words)]
        for group, cases in searched.items()
    }
    return {group: cases for group, cases in named.items() if cases}
