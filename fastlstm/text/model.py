"""A character-level language model: an LSTM on token ids and a softmax over the next character."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import files
from .._backends import choose
from ..corpus import check_characters, encode, vocabulary_of
from ..dense import Dense
from ..layout import Array
from ..losses import softmax_cross_entropy
from ..recurrent import LSTM
from ..spec_layer import State
from ..validation import number, positive, probability
from ..weighting import IGNORE_INDEX

KIND = "character model"  # the kind in the configuration of a model file
EVALUATION_STEPS = 128  # steps of one call in evaluation: bounds its memory


class CharModel:
    """An LSTM over characters and a dense head that predicts the next one.

    Parameters
    ----------
    vocabulary : str
        All characters, sorted, as `corpus.vocabulary_of` makes it.
    hidden_size, num_layers : int
    dropout : float
        Between the layers, in training.
    backend : str
    seed : int, optional
        Seed of the initial weights and of dropout.

    Raises
    ------
    ValueError
        The vocabulary is empty, unsorted, or has a character twice.
    """

    def __init__(
        self,
        vocabulary: str,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        *,
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        check_characters(vocabulary)
        if not vocabulary or vocabulary_of(vocabulary) != vocabulary:
            raise ValueError(
                f"a vocabulary has every character once, sorted, got {vocabulary[:40]!r}: give vocabulary_of(text)"
            )
        self.vocabulary = vocabulary
        V = len(vocabulary)
        lstm_seed, head_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
        self.lstm = LSTM(V, hidden_size, num_layers, dropout=dropout, backend=backend, seed=lstm_seed)
        self.head = Dense(hidden_size, V, backend=backend, seed=head_seed)

    @property
    def layers(self) -> list[LSTM | Dense]:
        """The LSTM and the head, in the order of the optimiser's layers."""
        return [self.lstm, self.head]

    # ------------------------------------------------------------------------------------------------------- training
    def gradients(self, x: Array, targets: Array, state: State) -> tuple[float, State, list[dict[str, Any]]]:
        """(mean loss, state after the window, gradients of `layers`) of a window: ids and targets (T, B)."""
        y, state, tape = self.lstm.forward(x, state)
        loss, dy, of_head = self.head.cross_entropy(y, targets)
        _, _, of_lstm = self.lstm.backward(tape, dy, sparse=True)
        return loss, state, [of_lstm, of_head]

    def loss(self, x: Array, targets: Array) -> float:
        """Mean loss in nats of streams (S, B), walked from a zero state; targets of `IGNORE_INDEX` do not count."""
        total, state = 0.0, None
        for at in range(0, len(x), EVALUATION_STEPS):
            piece = slice(at, at + EVALUATION_STEPS)
            y, state = self.lstm(x[piece], state)
            total += softmax_cross_entropy(self.head(y), targets[piece], "sum")[0]
        counted = np.count_nonzero(targets != IGNORE_INDEX)
        return total / counted if counted else math.nan

    # ------------------------------------------------------------------------------------------------------- sampling
    def sample(self, prefix: str, length: int, temperature: float = 1.0, seed: int | None = None) -> Iterator[str]:
        """Characters after `prefix`, one by one, each drawn from the model's probabilities after all characters before.

        Parameters
        ----------
        prefix : str
            If empty, the text begins as after a line's end, if the vocabulary has one.
        length : int
            Number of characters to draw, without the prefix.
        temperature : float
            Divides the logits: probabilities are sharper below 1 and flatter above. 0 always takes the likeliest.
        seed : int, optional

        Raises
        ------
        ValueError, TypeError
            Raised by the call itself, before the first character: the prefix has characters outside the vocabulary, or
            a number is out of its range.
        """
        ids = encode(prefix or ("\n" if "\n" in self.vocabulary else ""), self.vocabulary)
        length, temperature = positive(length, "length", 0), number(temperature, "temperature")
        rng = np.random.default_rng(None if seed is None else positive(seed, "seed", 0))
        return self._draw(ids, length, temperature, rng)

    def _draw(self, ids: Array, length: int, temperature: float, rng: np.random.Generator) -> Iterator[str]:
        stream = self.lstm.stream()
        # The output before the first character is that of the zero state: zeros.
        y = stream.run(ids)[-1] if len(ids) else np.zeros(self.lstm.hidden_size, self.lstm.dtype)
        for _ in range(length):
            token = choose_token(self.head(y), temperature, rng)
            yield self.vocabulary[token]
            y = stream.step(token)

    # ---------------------------------------------------------------------------------------------------------- files
    def to_arrays(self) -> dict[str, Array]:
        """All parameters, ``lstm.`` or ``head.`` before their names."""
        parts = {"lstm": self.lstm, "head": self.head}
        return {f"{part}.{name}": p for part, layer in parts.items() for name, p in layer.state_dict().items()}

    def to_config(self) -> dict[str, Any]:
        """The configuration that belongs to `to_arrays`: kind, vocabulary, dropout."""
        return {"kind": KIND, "vocabulary": self.vocabulary, "dropout": self.lstm.dropout}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], config: Mapping[str, Any], backend: str = "auto") -> CharModel:
        """A model from the results of `to_arrays` and `to_config`.

        Raises
        ------
        KeyError, ValueError, TypeError, RuntimeError
            They do not fit together. Sizes come from the arrays, so a false number in a file cannot claim memory.
        """
        vocabulary = config.get("vocabulary")
        if config.get("kind") != KIND or not isinstance(vocabulary, str) or vocabulary_of(vocabulary) != vocabulary:
            raise ValueError("it holds no character model")
        lstm, head = below(arrays, "lstm."), below(arrays, "head.")
        V, H = len(vocabulary), lstm["weight_hh_l0"].shape[-1]
        if lstm["weight_hh_l0"].shape != (4 * H, H) or lstm["weight_ih_l0"].shape != (4 * H, V):
            raise ValueError(f"the matrices of its first layer do not fit {V} characters and {H} hidden units")
        layers = sum(name.startswith("weight_hh_l") and a.shape == (4 * H, H) for name, a in lstm.items())
        model = cls(vocabulary, H, layers, backend=backend, seed=0)
        model.lstm.dropout = probability(config["dropout"], "dropout")
        model.lstm.load_state_dict(lstm)
        model.head.load_state_dict(head)
        return model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a safetensors file, atomically; OSError if it cannot be written."""
        files.save(path, self.to_arrays(), self.to_config())

    @classmethod
    def load(cls, path: str | os.PathLike[str], backend: str = "auto") -> CharModel:
        """Read a model, or the model of a checkpoint.

        Raises
        ------
        OSError
            The file is missing or cannot be read.
        FileError
            It is damaged, or holds no character model.
        """
        choose(backend, "float32")  # raises before the file is read: the backend's errors are not the file's
        arrays, config = files.load(path)
        with explained(path):
            return cls.from_arrays(arrays, config, backend)


def choose_token(logits: Array, temperature: float, rng: np.random.Generator) -> int:
    """A token drawn from softmax(logits / temperature), (V,); the likeliest one at temperature 0."""
    if temperature == 0:
        return int(np.argmax(logits))
    shifted = logits.astype(np.float64) - logits.max()
    with np.errstate(over="ignore", under="ignore"):  # near temperature 0 logits become -inf: probability 0
        cumulated = np.cumsum(np.exp(shifted / temperature))
    drawn = np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right")
    return min(int(drawn), len(logits) - 1)  # rounding may reach the end of the cumulative sum


def below(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


@contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the errors of a file's wrong content into a `FileError` that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise files.FileError(f"{path} does not fit: {files.one_line(error)}") from error
