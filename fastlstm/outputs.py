"""Checks of a command's outputs before its work: that no other file is lost, and that there is room."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from .files import destination

Name = str | os.PathLike[str]
EDGE = 1 << 16  # bytes at either end of a file in which `carries` searches


def check_distinct(outputs: Mapping[str, Name], inputs: Mapping[str, Name]) -> None:
    """Raise ValueError where an output is an input or another output: by name, spelling, link or letter case.

    Parameters
    ----------
    outputs, inputs : dict of paths
        By the user's name for each, say ``--out``.
    """
    seen = dict(inputs)
    for what, path in outputs.items():
        for other, taken in seen.items():
            if same_file(path, taken):
                lost = "would be lost" if other in inputs else "would replace each other"
                raise ValueError(
                    f"{what} {path} and {other} {taken} are the same file, which {lost}: give another name"
                )
        seen[what] = path


def same_file(a: Name, b: Name) -> bool:
    """Whether two names are, or would become, one file."""
    try:
        return os.path.samefile(a, b)
    except FileNotFoundError:
        if os.path.exists(a) or os.path.exists(b):
            return False
    first, second = Path(os.path.realpath(a)), Path(os.path.realpath(b))
    # Some file systems treat names as equal that differ in case or in the form of accents.
    if folded(first.name) != folded(second.name):
        return False
    if not (first.parent.is_dir() and second.parent.is_dir()):
        return first.parent == second.parent
    return os.path.samefile(first.parent, second.parent)


def folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def holds_something(path: Name) -> bool:
    """Whether writing to `path` would replace a file with content. An empty file, as of mktemp, does not count.

    Raises
    ------
    OSError
        See `files.destination`.
    """
    _, before = destination(path)
    return before is not None and before.st_size > 0


def carries(path: Name, mark: bytes) -> bool:
    """Whether a file has this mark near its beginning or its end."""
    with open(path, "rb") as file:
        first = file.read(EDGE)
        file.seek(max(0, os.fstat(file.fileno()).st_size - EDGE))
        return mark in first or mark in file.read(EDGE)
