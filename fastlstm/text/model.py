"""Language models of texts: an LSTM on token ids and a softmax over the next token, a character or a word."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import files
from .._backends import choose
from ..dense import Dense
from ..layout import Array
from ..losses import softmax_cross_entropy
from ..metrics import perplexity
from ..recurrent import LSTM
from ..spec_layer import State
from ..step_files import steps_entry
from ..validation import positive, probability
from ..weighting import IGNORE_INDEX
from .sampling import Draw
from .vocabulary import Characters, Vocabulary, Words

if TYPE_CHECKING:
    from typing_extensions import Self

EVALUATION_STEPS = 128  # steps of one call in evaluation: bounds its memory


class TextModel:
    """An LSTM over the tokens of a text and a dense head that tells the next one.

    Parameters
    ----------
    tokens : Vocabulary
        `Characters` or `Words`.
    hidden_size, num_layers : int
    dropout : float
        Between the layers, in training.
    backend : str
    seed : int, optional
        Seed of the initial weights and of dropout.

    Attributes
    ----------
    tokens : Vocabulary
    lstm : LSTM
    head : Dense
    """

    KIND: ClassVar[str] = ""  # in the configuration of a model file
    TOKENS: ClassVar[type[Vocabulary]]

    def __init__(
        self,
        tokens: Vocabulary,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        *,
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        if not self.KIND:
            raise TypeError("a TextModel is a CharModel or a WordModel: make one of these, or text_model(tokens, ...)")
        if not isinstance(tokens, self.TOKENS):
            raise TypeError(
                f"the vocabulary of a {type(self).__name__} is of class {self.TOKENS.__name__}, "
                f"got {type(tokens).__name__}: give {self.TOKENS.__name__}.of(text)"
            )
        self.tokens = tokens
        V = len(tokens)
        lstm_seed, head_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
        self.lstm = LSTM(V, hidden_size, num_layers, dropout=dropout, backend=backend, seed=lstm_seed)
        self.head = Dense(hidden_size, V, backend=backend, seed=head_seed)

    @property
    def vocabulary(self) -> Sequence[str]:
        """All tokens; a token's place is its id."""
        return self.tokens.entries

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

    def perplexity(self, text: str) -> float:
        """exp of the mean loss of every token of a text after the first, each predicted from all tokens before it.

        Parameters
        ----------
        text : str

        Returns
        -------
        perplexity : float
            Between 1, where the model is always certain and right, and infinity; the vocabulary's size where the model
            knows nothing. With an unknown token, all unknown tokens count as that one.

        Raises
        ------
        ValueError
            The text has fewer than two tokens, or characters outside a vocabulary without an unknown one.
        """
        ids = self.tokens.encode(text)
        if len(ids) < 2:
            raise ValueError(f"the text has {len(ids)} {self.tokens.unit}s, and perplexity needs at least 2")
        return perplexity(self.loss(ids[:-1, None], ids[1:, None]))

    # ------------------------------------------------------------------------------------------------------- sampling
    def sample(
        self,
        prefix: str,
        length: int,
        temperature: float = 1.0,
        seed: int | None = None,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Iterator[str]:
        """Text that may follow `prefix`, token by token, each drawn from what the model expects after all before it.

        Parameters
        ----------
        prefix : str
            If empty, the text begins as after a line's end, if the vocabulary has one.
        length : int
            How many tokens to give; the prefix is not among them.
        temperature : float
            Divides the logits: probabilities are sharper below 1 and flatter above. 0 always takes the likeliest.
        seed : int, optional
        top_k, top_p : int and float, optional
            See `Draw`.

        Returns
        -------
        pieces : iterator of str
            What each token adds to the text; words come with the blank before them. The unknown token is never drawn.

        Raises
        ------
        ValueError, TypeError
            Raised by the call itself, before the first character: the prefix has characters outside the vocabulary, or
            a number is out of its range.
        """
        ids = self.tokens.encode(prefix or self.tokens.start)
        length, draw = positive(length, "length", 0), Draw(temperature, top_k, top_p)
        rng = np.random.default_rng(None if seed is None else positive(seed, "seed", 0))
        drawn = (self.vocabulary[token] for token in self._drawn(ids, length, draw, rng))
        return self.tokens.spelled(drawn, prefix)

    def predict_prefix(self, prefix: str, n: int) -> str:
        """`prefix` and the `n` tokens that follow, each the likeliest after all before it. Errors as `sample`."""
        return prefix + "".join(self.sample(prefix, n, temperature=0))

    def _drawn(self, ids: Array, length: int, draw: Draw, rng: np.random.Generator) -> Iterator[int]:
        stream, unknown = self.lstm.stream(), self.tokens.unknown_id
        # Before the first token the output is that of the zero state: zeros.
        y = stream.run(ids)[-1] if len(ids) else np.zeros(self.lstm.hidden_size, self.lstm.dtype)
        for _ in range(length):
            logits = self.head(y)
            if unknown is not None:
                logits[unknown] = -np.inf
            token = draw.token(logits, rng)
            yield token
            y = stream.step(token)

    # -------------------------------------------------------------------------------------------------- reduced storage
    def quantize(self, storage: str, sample: str | None = None, tolerance: float | None = None) -> Self:
        """A model for inference whose LSTM keeps its weights in a reduced storage. This one stays; the head is shared.

        Parameters
        ----------
        storage, tolerance
            As `LSTM.quantize` takes them.
        sample : str, optional
            A text; the LSTM's outputs over it are compared for the report, ``model.lstm.report``.

        Raises
        ------
        ValueError
            See `LSTM.quantize`; a sample with characters outside a vocabulary without an unknown one.
        """
        made = copy.copy(self)
        ids = None if sample is None else self.tokens.encode(sample)[:, None]
        made.lstm = self.lstm.quantize(storage, sample=ids, tolerance=tolerance)
        return made

    # ---------------------------------------------------------------------------------------------------------- files
    def to_arrays(self) -> dict[str, Array]:
        """All parameters, ``lstm.`` or ``head.`` before their names."""
        parts = {"lstm": self.lstm, "head": self.head}
        return {f"{part}.{name}": p for part, layer in parts.items() for name, p in layer.state_dict().items()}

    def to_config(self) -> dict[str, Any]:
        """What `to_arrays` does not tell."""
        how = self.lstm._quantised
        kept = {} if how is None else {"quantised": how.to_config()}
        return {"kind": self.KIND, **self.tokens.to_config(), "dropout": self.lstm.dropout, **kept}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], config: Mapping[str, Any], backend: str = "auto") -> Self:
        """A model from what `to_arrays` and `to_config` gave; `TextModel.from_arrays` gives one of the kind they name.

        Raises
        ------
        KeyError, ValueError, TypeError, RuntimeError
            They do not make a model of this class. Sizes come from the arrays, so that no false number can claim
            memory.
        """
        kind, kinds = config.get("kind"), {name: one for name, one in KINDS.items() if issubclass(one, cls)}
        if kind not in kinds:
            other = kind in KINDS and f", but a {kind}: TextModel.load reads both"
            raise ValueError(f"it holds no {' and no '.join(kinds)}{other or ''}")
        kept = kinds[kind].TOKENS.from_config(config)
        lstm, head = below(arrays, "lstm."), below(arrays, "head.")
        V, H = len(kept), lstm["weight_hh_l0"].shape[-1]
        if lstm["weight_hh_l0"].shape != (4 * H, H) or lstm["weight_ih_l0"].shape != (4 * H, V):
            raise ValueError(f"the matrices of its first layer do not fit {V} {kept.unit}s and {H} hidden units")
        layers = sum(name.startswith("weight_hh_l") and a.shape == (4 * H, H) for name, a in lstm.items())
        model: Any = kinds[kind](kept, H, layers, backend=backend, seed=0)
        model.lstm.dropout = probability(config["dropout"], "dropout")
        if config.get("quantised") is not None:
            model.lstm._keep(config["quantised"])
        model.lstm.load_state_dict(lstm)
        model.head.load_state_dict(head)
        return model  # type: ignore[no-any-return]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a safetensors file, atomically; OSError if it cannot be written."""
        arrays = self.to_arrays()
        files.save(path, arrays, self.to_config() | {"steps": steps_entry([self.lstm, self.head], arrays)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], backend: str = "auto") -> Self:
        """Read a model, or the model of a checkpoint; `TextModel.load` gives one of the kind that the file holds.

        Raises
        ------
        OSError
            The file is missing or cannot be read.
        FileError
            It is damaged, or holds no model of this class.
        """
        choose(backend, "float32")  # raises before the file is read: the backend's errors are not the file's
        arrays, config = files.load(path)
        with explained(path):
            return cls.from_arrays(arrays, config, backend)


class CharModel(TextModel):
    """A language model over characters.

    Parameters
    ----------
    vocabulary : str or Characters
        Of `corpus.vocabulary_of`, or `Characters` with an unknown character.
    hidden_size, num_layers, dropout, backend, seed
        See `TextModel`.

    Raises
    ------
    ValueError
        The vocabulary is empty, unsorted, or has a character twice.
    """

    KIND = "character model"
    TOKENS = Characters

    def __init__(self, vocabulary: str | Characters, *sizes: Any, **options: Any) -> None:
        super().__init__(Characters(vocabulary) if isinstance(vocabulary, str) else vocabulary, *sizes, **options)

    @property
    def vocabulary(self) -> str:
        """All characters, sorted: a character's place is its id."""
        return "".join(self.tokens.entries)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also that of a pickle from before models had vocabularies of several kinds."""
        if "tokens" not in state:
            state = {**state, "tokens": Characters(state["vocabulary"])}
            del state["vocabulary"]
        self.__dict__.update(state)


class WordModel(TextModel):
    """A language model over words.

    Parameters
    ----------
    tokens : Words
    hidden_size, num_layers, dropout, backend, seed
        See `TextModel`.
    """

    KIND = "word model"
    TOKENS = Words


KINDS: dict[str, type[TextModel]] = {CharModel.KIND: CharModel, WordModel.KIND: WordModel}


def text_model(tokens: Vocabulary, *sizes: Any, **options: Any) -> TextModel:
    """A `CharModel` or a `WordModel`, as the vocabulary says."""
    kind = next(one for one in KINDS.values() if isinstance(tokens, one.TOKENS))
    return kind(tokens, *sizes, **options)


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
