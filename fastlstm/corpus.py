"""Texts: read in any encoding, numbered by a vocabulary, cut into parallel streams.

A text of N characters takes N bytes as token ids where its vocabulary has at most 256 characters.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from .layout import Array

PIECE = 1 << 20  # bytes or characters that are converted at once: bounds the memory of a conversion
NAMED, KNOWN = 20, 120  # characters that a message lists: unknown ones, and the beginning of the vocabulary

# Byte order marks and their encodings. UTF-32 comes first, since its little-endian mark begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
CURE = "Name its encoding, say --encoding cp1252 (Windows), latin-1 or utf-16-le, or convert it to UTF-8"
ALPHABETS = 8  # a UTF-16 text has at most so many different high bytes, unless it is Chinese or the like
# Characters that decode without an error but are signs of a mistake, and the warnings about them.
ODDITIES = {
    "\ufeff": "byte order mark{s} (U+FEFF) within the text, as files joined together have: trained on as characters",
    "\ufffd": "replacement character{s} (U+FFFD), which an earlier conversion left where it could not read the text",
    "[\x80-\x9f]": "control character{s} U+0080 to U+009F, as cp1252 read as latin-1 has: try --encoding cp1252",
}


# ------------------------------------------------------------------------------------------------------------- reading
def read_text(path: str | os.PathLike[str], encoding: str | None = None) -> str:
    """The text of a file, with line ends of any system as ``\\n``.

    Parameters
    ----------
    path : path
        ``-`` for standard input.
    encoding : str, optional
        A name of Python's. None: the encoding of the byte order mark at the file's beginning, or UTF-8 without a mark.

    Returns
    -------
    text : str
        Without the byte order mark.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The encoding is unknown, or the file is no text in it; the message names the cure.

    Warns
    -----
    UserWarning
        The text has characters that are signs of a wrong encoding, see `ODDITIES`.
    """
    if encoding is not None:
        check_encoding(encoding)
    if os.fspath(path) == "-":
        if sys.stdin is None:
            raise ValueError("there is no standard input to read the text from: it is closed")
        text = decoded(sys.stdin.buffer, "standard input", encoding)
    else:
        with open(path, "rb") as file:
            text = decoded(file, os.fspath(path), encoding)
    for pattern, meaning in ODDITIES.items():
        if count := sum(1 for _ in re.finditer(pattern, text)):
            warnings.warn(f"{os.fspath(path)} has {count} {meaning.format(s='s' * (count > 1))}", stacklevel=2)
    return text


def check_encoding(encoding: str) -> None:
    """Raise ValueError unless this is the name of an encoding of texts."""
    try:
        io.TextIOWrapper(
            io.BytesIO(), encoding=encoding
        )  # raises for codecs that are not encodings of texts, say base64
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"encoding {encoding!r} is not one that Python has for texts: give utf-8, cp1252, latin-1 or utf-16-le"
        ) from error


def decoded(file: BinaryIO, name: str, encoding: str | None) -> str:
    """The text of an open file, converted piece by piece. Errors as `read_text`."""
    data = file.read(PIECE)
    found = encoding_of(data, name, encoding)
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    data = data[len(mark) :] + file.read(len(mark))
    decoder = codecs.getincrementaldecoder(found)()
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    pieces, before = [], len(mark)  # bytes before `data`
    while True:
        pending = len(decoder.getstate()[0])
        try:
            piece = decoder.decode(data, final=not data)
        except UnicodeError as error:
            why = f"{name} is no text in {found.upper()}: {where(error, before - pending)}"
            raise ValueError(f"{why}. {likely(data, found) or CURE}") from error
        if "\0" in piece:
            check_nulls(data, piece, found, name, encoding)
        pieces.append(line_ends.decode(piece, final=not data))
        if not data:
            return "".join(pieces)
        before += len(data)
        data = file.read(PIECE)


def where(error: UnicodeError, before: int) -> str:
    """The place of the byte that cannot be decoded; `before` bytes precede the piece of the error."""
    if not isinstance(error, UnicodeDecodeError):
        return str(error)
    byte = f" is {error.object[error.start]:#04x}" if error.start < len(error.object) else ""
    return f"byte {before + error.start}{byte}"


def encoding_of(data: bytes, name: str, encoding: str | None) -> str:
    """The encoding of a file that begins with these bytes, or ValueError where mark and named encoding disagree."""
    marked = next((found for mark, found in MARKS.items() if data.startswith(mark)), None)
    if encoding is None:
        return marked or "utf-8"
    found = codecs.lookup(encoding).name.removesuffix("-sig")
    if marked is None:
        if found in ("utf-16", "utf-32"):
            raise ValueError(
                f"{name} has no byte order mark, so {found} may be either of two: "
                f"give --encoding {found}-le (Windows) or --encoding {found}-be"
            )
        return found
    if found in (marked, marked[:6]):
        return marked
    raise ValueError(
        f"{name} begins with the byte order mark of {marked.upper()}, which is not {encoding}: leave --encoding out"
    )


def likely(data: bytes, found: str) -> str | None:
    """The cure for bytes that are no text in the encoding `found`, if their zeros show the right one."""
    zeros = [data[i::4].count(0) for i in range(4)]
    if sum(zeros) * 2 > len(data) > 0 and not found.startswith("utf-32"):
        width, little = 32, zeros[3] > zeros[0]
    else:
        # In UTF-16 the blanks and line ends of any language, and all ASCII letters, have a zero on the same side.
        even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
        width, little = 16, odd > even
        if (found.startswith("utf-") and found != "utf-8") or max(even, odd) * 25 < len(data) + 1:
            return None
        if min(even, odd) * 10 > max(even, odd) or len(set(data[little::2])) > ALPHABETS:
            return None
    guess = f"utf-{width}-{'le' if little else 'be'}"
    return f"It looks like UTF-{width} without a byte order mark: give --encoding {guess}"


def check_nulls(data: bytes, piece: str, found: str, name: str, encoding: str | None) -> None:
    """Raise ValueError for a text with NUL characters, unless `encoding` is given and the NULs are few."""
    if encoding is None or likely(data, found) or piece.count("\0") * 4 > len(piece):
        cure = likely(data, found) or f"{CURE}; if they belong to the text, give --encoding {found}"
        raise ValueError(f"{name} has NUL characters when read as {encoding or 'UTF-8'}, as no plain text has. {cure}")


# ---------------------------------------------------------------------------------------------------------- characters
def vocabulary_of(text: str) -> str:
    """The characters of a text, each once, sorted: a character's place is its token id."""
    return "".join(sorted(set(text)))


def check_characters(vocabulary: str) -> None:
    """Raise ValueError where a vocabulary has halves of surrogate pairs, which no file can hold."""
    halves = [character for character in vocabulary if "\ud800" <= character <= "\udfff"]
    if halves:
        raise ValueError(
            f"{' '.join(map(repr, halves[:5]))} {'are no characters' if len(halves) > 1 else 'is no character'} but "
            "undecoded bytes or halves of characters, which no file can hold: decode the text with its own encoding"
        )


def named(characters: str) -> str:
    """Characters as a message names them, `NAMED` at most."""
    shown = " ".join(map(repr, characters[:NAMED]))
    return shown if len(characters) <= NAMED else f"{shown} and {len(characters) - NAMED} more"


def encode(text: str, vocabulary: str, unknown: int | None = None) -> Array:
    """Token ids of a text: (N,), in the smallest unsigned integers that hold every id of the vocabulary.

    Parameters
    ----------
    text, vocabulary : str
    unknown : int, optional
        The id of all characters that the vocabulary lacks.

    Raises
    ------
    ValueError
        Characters that the vocabulary has not, without an id for them; the message names them and counts them.
    """
    strange = "".join(sorted(set(text) - set(vocabulary)))
    if strange and unknown is None:
        places = sum(map(text.count, strange)) if len(strange) <= NAMED else sum(c in set(strange) for c in text)
        raise ValueError(
            f"the model does not know the character{'s' * (len(strange) > 1)} {named(strange)}, which "
            f"{'stand' if len(strange) > 1 else 'stands'} at {places} of the text's {len(text)} places; "
            f"it knows {len(vocabulary)}: {vocabulary[:KNOWN]!r}{'...' * (len(vocabulary) > KNOWN)}"
        )
    dtype = np.min_scalar_type(max(0, len(vocabulary) - 1))
    known = code_points(vocabulary)
    id_of = np.full(int(known.max(initial=0)) + 2, unknown or 0, dtype)  # by code point; the last: of all higher ones
    id_of[known] = np.arange(len(known))
    ids = np.empty(len(text), dtype)
    for at, piece in pieces_of(text):
        points = code_points(piece)
        ids[at : at + len(piece)] = id_of[points if unknown is None else np.minimum(points, len(id_of) - 1)]
    return ids


def pieces_of(text: str) -> Iterator[tuple[int, str]]:
    """(begin, piece) for each piece of at most `PIECE` characters."""
    for at in range(0, len(text), PIECE):
        yield at, text[at : at + PIECE]


def code_points(text: str) -> Array:
    """(N,) uint32; halves of surrogate pairs pass."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def side_by_side(ids: Array, streams: int) -> tuple[Array, Array]:
    """A text as parallel streams: inputs and, one character later, targets, (S, streams) each; views of `ids`.

    The last ``(N - 1) % streams`` characters are in no stream.
    """
    S = (len(ids) - 1) // streams
    return ids[: S * streams].reshape(streams, S).T, ids[1 : S * streams + 1].reshape(streams, S).T


def fingerprint(text: str) -> str:
    """SHA-256 of a text in UTF-8."""
    digest = hashlib.sha256()
    for _, piece in pieces_of(text):
        digest.update(piece.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
