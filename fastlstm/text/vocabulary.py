"""Vocabularies: the tokens of a text, characters or words, and their numbers."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..corpus import check_characters, encode, vocabulary_of
from ..layout import Array
from ..validation import flag, positive

UNKNOWN = "<unk>"  # the word that stands for all words outside a vocabulary, in texts too
# A token of a text as words: a line end, the unknown word, a number, a word with its apostrophes and hyphens, a dash,
# or any other character that is no blank.
TOKEN = re.compile(rf"\n|{UNKNOWN}|\d+(?:[.,]\d+)+|\w+(?:['’-]\w+)*|-{{2,}}|[^\s]")
NO_BLANK_AFTER = frozenset("([{“‘$£€\n")
NO_BLANK_BEFORE = frozenset(")]}”’.,;:!?%'\n")


class Vocabulary(ABC):
    """The tokens of texts, each with its number (its id).

    Attributes
    ----------
    entries : sequence of str
        All tokens; a token's place is its id.
    unknown : str or None
        The entry that stands for every token that is none of the others.
    unit : str
        What a token is called in messages.
    """

    unit: ClassVar[str]
    entries: Sequence[str]
    unknown: str | None

    def __len__(self) -> int:
        return len(self.entries)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.to_config() == self.to_config()

    __hash__ = None  # type: ignore[assignment]

    @property
    def unknown_id(self) -> int | None:
        """The id of the unknown token."""
        return None if self.unknown is None else self.entries.index(self.unknown)

    @property
    def known(self) -> list[str]:
        """The entries without the unknown one."""
        return [entry for entry in self.entries if entry != self.unknown]

    @property
    def start(self) -> str:
        """The text after which an empty prefix begins: a line end, where it is known."""
        return "\n" if "\n" in self.entries else ""

    @abstractmethod
    def encode(self, text: str) -> Array:
        """Token ids of a text: (N,), in the smallest unsigned integers that hold every id.

        Raises
        ------
        ValueError
            The text has unknown tokens, and the vocabulary has none that stands for them.
        """

    @abstractmethod
    def spelled(self, tokens: Iterable[str], before: str = "") -> Iterator[str]:
        """What each token adds to the text `before` and the tokens before it."""

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """What a file keeps, as JSON can hold it."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Vocabulary:
        """What `to_config` gave.

        Raises
        ------
        KeyError, ValueError, TypeError
            It is no vocabulary.
        """

    def decode(self, ids: Any) -> str:
        """The text of token ids (N,)."""
        return "".join(self.spelled(self.entries[i] for i in np.asarray(ids).tolist()))


class Characters(Vocabulary):
    """The characters of texts.

    Parameters
    ----------
    characters : str
        Every character once, sorted, as `corpus.vocabulary_of` gives them.
    unknown : str, optional
        One of them, that stands for all others. Without one, a text with others is refused.

    Raises
    ------
    ValueError
        The characters are empty, unsorted, or one stands there twice; or `unknown` is none of them.
    """

    unit = "character"

    def __init__(self, characters: str, unknown: str | None = None) -> None:
        check_characters(characters)
        if not characters or vocabulary_of(characters) != characters:
            raise ValueError(
                f"a vocabulary has every character once, sorted, got {characters[:40]!r}: give vocabulary_of(text)"
            )
        if unknown is not None and (len(unknown) != 1 or unknown not in characters):
            raise ValueError(f"unknown {unknown!r} is none of the vocabulary's characters: give one of them")
        self.entries: str = characters
        self.unknown = unknown

    @classmethod
    def of(cls, text: str, min_count: int = 1, unknown: str = "\ufffd") -> Characters:
        """The characters of a text.

        Parameters
        ----------
        text : str
        min_count : int
            Rarer characters count as unknown; with 1 the vocabulary has no unknown character.
        unknown : str
            The character that stands for them.
        """
        least = positive(min_count, "min_count")
        if least == 1:
            return cls(vocabulary_of(text))
        return cls(vocabulary_of("".join(c for c, n in Counter(text).items() if n >= least) + unknown), unknown)

    def encode(self, text: str) -> Array:
        """See `Vocabulary`; the message names and counts the unknown characters."""
        return encode(text, self.entries, self.unknown_id)

    def spelled(self, tokens: Iterable[str], before: str = "") -> Iterator[str]:
        """See `Vocabulary`."""
        return iter(tokens)

    def to_config(self) -> dict[str, Any]:
        """See `Vocabulary`."""
        return {"vocabulary": self.entries} | ({} if self.unknown is None else {"unknown": self.unknown})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Characters:
        """See `Vocabulary`."""
        characters, unknown = config["vocabulary"], config.get("unknown")
        if not isinstance(characters, str) or not isinstance(unknown, str | None):
            raise TypeError("its vocabulary is no text")
        return cls(characters, unknown)


class Words(Vocabulary):
    """The words of texts, their punctuation marks and line ends; `UNKNOWN`, with id 0, stands for all other words.

    Parameters
    ----------
    words : sequence of str
        Each a single token of `TOKEN`, once, without `UNKNOWN`.
    lower : bool
        Whether texts are read in small letters.

    Raises
    ------
    ValueError, TypeError
        There is no word, or one is no single token or stands there twice.
    """

    unit = "word"

    def __init__(self, words: Sequence[str], lower: bool = False) -> None:
        self.lower = flag(lower, "lower")
        if isinstance(words, str) or not all(isinstance(word, str) for word in words):
            raise TypeError("words must be a list of str; of a text: Words.of(text)")
        if not words:
            raise ValueError("a vocabulary has at least one word besides the unknown one")
        check_characters("".join(words))
        for word in words:
            if self.split(word) != [word] or word == UNKNOWN:
                raise ValueError(f"{word!r} is no single word, as Words.split cuts texts: leave it out")
        twice = [word for word, count in Counter(words).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} stands in the vocabulary {Counter(words)[twice[0]]} times: give words once")
        self.entries, self.unknown = (UNKNOWN, *words), UNKNOWN
        self._ids = {word: i for i, word in enumerate(self.entries)}

    @classmethod
    def of(cls, text: str, size: int | None = None, min_count: int = 1, lower: bool = False) -> Words:
        """The words of a text, the most frequent first.

        Parameters
        ----------
        text : str
        size : int, optional
            The most entries, the unknown word among them.
        min_count : int
            Rarer words are left out, and so unknown.
        lower : bool
            See `Words`.

        Raises
        ------
        ValueError
            No word is left.
        """
        least, most = positive(min_count, "min_count"), None if size is None else positive(size, "size", 2) - 1
        counts = Counter(pieces(text.lower() if lower else text))
        counts.pop(UNKNOWN, None)
        ordered = sorted((word for word, count in counts.items() if count >= least), key=lambda w: (-counts[w], w))
        if not ordered:
            raise ValueError(f"the text has no word that stands there {least} times: give a longer text or min_count=1")
        return cls(ordered[:most], lower)

    def split(self, text: str) -> list[str]:
        """The tokens of a text, unknown words as they stand there."""
        return list(pieces(text.lower() if self.lower else text))

    def encode(self, text: str) -> Array:
        """See `Vocabulary`."""
        ids = (self._ids.get(token, 0) for token in pieces(text.lower() if self.lower else text))
        return np.fromiter(ids, np.min_scalar_type(len(self) - 1))

    def spelled(self, tokens: Iterable[str], before: str = "") -> Iterator[str]:
        """See `Vocabulary`: words with a blank between them, but none before a comma and the like."""
        last = before[-1:]
        for token in tokens:
            apart = last != "" and not last.isspace() and last not in NO_BLANK_AFTER and token not in NO_BLANK_BEFORE
            yield " " + token if apart else token
            last = token[-1]

    def to_config(self) -> dict[str, Any]:
        """See `Vocabulary`."""
        return {"vocabulary": list(self.entries[1:]), "lower": self.lower}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Words:
        """See `Vocabulary`."""
        if not isinstance(config["vocabulary"], list):
            raise TypeError("its vocabulary is no list of words")
        return cls(config["vocabulary"], config["lower"])

    def __repr__(self) -> str:
        return f"Words({len(self)}: {named_words(self.entries)}{', lower=True' if self.lower else ''})"


def pieces(text: str) -> Iterator[str]:
    """The tokens of a text, one by one."""
    return (found.group() for found in TOKEN.finditer(text))


def named_words(words: Sequence[str], most: int = 5) -> str:
    """The first of some words, as a message names them."""
    return " ".join(map(repr, words[:most])) + (" ..." if len(words) > most else "")
