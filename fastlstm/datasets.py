"""Data of the classic programs: reviews in Keras's file, and sequences of token ids padded to one length."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._readers.npz import read_npz
from .files import FileError
from .layout import Array
from .validation import positive

PADDING, BEGIN, UNKNOWN = 0, 1, 2  # the token ids with which Keras's reviews are read
FIRST_WORD = 3  # what is added to a word's rank

Part = tuple[list[Array], Array]


def imdb(path: str | os.PathLike[str], num_words: int | None = None) -> tuple[Part, Part]:
    """The reviews of Keras's file ``imdb.npz``, read without running the pickle that it holds.

    Token ids are those of ``keras.datasets.imdb.load_data``: 0 is for padding, 1 begins each review, 2 is a word that
    is left out, and a word's id is its rank by frequency plus 3. The reviews come in the file's order.

    Parameters
    ----------
    path : path
    num_words : int, optional
        V: ids from V on become 2. All words are kept unless given.

    Returns
    -------
    (x, y), (x_test, y_test) : lists of arrays (T_i,) int64, and arrays (N,) int64 with 1 for a positive review

    Raises
    ------
    OSError
        The file cannot be read.
    FileError
        It is no such file.
    """
    V = None if num_words is None else positive(num_words, "num_words")
    arrays = read_npz(path)
    parts = []
    for part in ("train", "test"):
        x, y = arrays.get(f"x_{part}"), arrays.get(f"y_{part}")
        if x is None or y is None or np.ndim(y) != 1 or len(x) != len(y):
            raise FileError(f"{path} is no file of reviews: it needs lists x_{part} and labels y_{part} of one length")
        ids = []
        for review in x:
            own = np.concatenate(([BEGIN], np.asarray(review, np.int64) + FIRST_WORD))
            ids.append(own if V is None else np.where(own < V, own, UNKNOWN))
        parts.append((ids, np.asarray(y, np.int64)))
    return parts[0], parts[1]


def pad_sequences(
    sequences: Sequence[Any], maxlen: int, padding: str = "pre", truncating: str = "pre", value: int = PADDING
) -> Array:
    """Sequences of token ids in one array, as Keras's function of this name gives them.

    Parameters
    ----------
    sequences : list of N sequences (T_i,)
    maxlen : int
        T: longer ones are cut.
    padding, truncating : {"pre", "post"}
        At which end.
    value : int
        What stands in the padding.

    Returns
    -------
    ids : (N, T) int64 array
    """
    T = positive(maxlen, "maxlen")
    for name, side in (("padding", padding), ("truncating", truncating)):
        if side not in ("pre", "post"):
            raise ValueError(f"{name} must be 'pre' or 'post', got {side!r}")
    ids = np.full((len(sequences), T), value, np.int64)
    for row, sequence in zip(ids, sequences, strict=True):
        kept = np.asarray(sequence)
        if kept.ndim != 1 or (kept.size and kept.dtype.kind not in "iu"):
            raise ValueError(f"a sequence has shape {kept.shape} and dtype {kept.dtype}, expected token ids (T,)")
        kept = kept[-T:] if truncating == "pre" else kept[:T]
        if len(kept):
            row[slice(-len(kept), None) if padding == "pre" else slice(len(kept))] = kept
    return ids
