"""HDF5 files of others as groups, arrays of numbers and attributes of text, read in a process of its own.

HDF5's C library parses the file; see `hdf5_process`. A crash or an endless loop there is a `FileError` here. What that
process gives back is not trusted either.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import FileError
from ..layout import Array
from . import hdf5_process as process
from .torch_values import from_bfloat16

SECONDS = 10  # of computing that a small file may take; some damaged ones keep HDF5 busy for ever
SPEED = 10_000_000  # bytes a second; the slowest disks read so much
# HDF5 loads no plugins, and reads files of folders where locks cannot be had.
ENVIRONMENT = {"HDF5_PLUGIN_PRELOAD": "::", "HDF5_USE_FILE_LOCKING": "BEST_EFFORT"}
MAX_DESCRIPTION = 1 << 26  # bytes of JSON
DTYPE = re.compile(r"[<>|][biuf](1|2|4|8|16)\Z")


@dataclass
class Group:
    """A group of an HDF5 file.

    Attributes
    ----------
    attributes : dict of lists of texts
    groups : dict of groups
    arrays : dict of arrays
        bfloat16 is widened to float32.
    unread : dict of texts
        The names of arrays that are not read, and why.
    """

    attributes: dict[str, list[str]] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    def group(self, path: str) -> Group | None:
        """The group at a path of several names, or None where there is none."""
        found: Group | None = self
        for name in path.split("/"):
            found = found.groups.get(name) if found is not None else None
        return found

    def array(self, path: str) -> Array:
        """The array at a path.

        Raises
        ------
        FileError
            It is missing, or not read.
        """
        room, _, name = path.rpartition("/")
        found = self.group(room) if room else self
        if found is not None and name in found.unread:
            raise FileError(f"its array {path!r:.200}: {found.unread[name]}")
        if found is None or name not in found.arrays:
            raise FileError(f"its array {path!r:.200} is missing")
        return found.arrays[name]

    def text(self, name: str) -> str | None:
        """The one text of an attribute; None without such an attribute."""
        texts = self.attributes.get(name)
        if texts is not None and len(texts) != 1:
            raise FileError(f"its attribute {name!r} has {len(texts)} texts in the place of one")
        return None if texts is None else texts[0]

    def texts(self, name: str) -> list[str] | None:
        """The texts of an attribute, which Keras cuts into several (name0, name1, ...) where it is long."""
        if name in self.attributes:
            return self.attributes[name]
        parts: list[str] = []
        at = 0
        while (part := self.attributes.get(f"{name}{at}")) is not None:
            parts += part
            at += 1
        return parts if at else None


def read(path: str | os.PathLike[str]) -> Group:
    """Read an HDF5 file.

    Returns
    -------
    Group
        The root.

    Raises
    ------
    ImportError
        h5py is not installed; the message says how to get it.
    FileError
        The file is damaged, no HDF5 file, or too large for its bytes.
    """
    found = importlib.util.find_spec("h5py")
    if found is None or found.origin is None:
        raise ImportError("Keras files are read with h5py, which is not installed: pip install fastlstm[keras]")
    if not sys.executable:
        raise ImportError("HDF5 files are read in a process of its own, and this program has no Python interpreter")
    seconds = SECONDS + os.stat(path).st_size // SPEED
    folder = str(Path(found.origin).parent.parent)
    command = [sys.executable, process.__file__, os.path.abspath(path), str(seconds), folder]
    environment = {**os.environ, **ENVIRONMENT}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        try:
            # The time limit is that of a busy machine; the process's own counts its computing alone.
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=said, timeout=60 + 4 * seconds
            )
        except subprocess.TimeoutExpired as error:
            raise FileError("damaged: HDF5 does not come to an end with it") from error
        if done.returncode:
            said.seek(0)
            raise FileError(_what_went_wrong(done.returncode, said.read(2000)))
        return _Reading(out).root


def _what_went_wrong(status: int, said: bytes) -> str:
    text = " ".join(said.decode("utf-8", "replace").split())
    if text.startswith("Refused: "):
        return text[len("Refused: ") :]
    if status == 3:
        return f"damaged, cut short, or no HDF5 file ({text:.300})"
    return f"damaged: HDF5 ended with status {status} while it read the file" + (f" ({text:.300})" if text else "")


class _Reading:
    """The description and the arrays that `hdf5_process` has written."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.size = out.seek(0, os.SEEK_END)
        if self.size < 8:
            raise FileError("damaged: HDF5 gave nothing of it")
        out.seek(self.size - 8)
        (length,) = struct.unpack("<Q", out.read(8))
        if length > min(self.size - 8, MAX_DESCRIPTION):
            raise FileError("it holds too many groups, arrays and texts")
        out.seek(self.size - 8 - length)
        description = json.loads(out.read(length))
        self.end = self.size - 8 - length  # of the arrays
        self.given = 0
        self.root = self.group(description)

    def group(self, tree: process.Tree) -> Group:
        return Group(
            tree["attributes"],
            {name: self.group(inner) for name, inner in tree["groups"].items()},
            {name: self.array(what) for name, what in tree["arrays"].items()},
            tree["unread"],
        )

    def array(self, what: dict[str, Any]) -> Array:
        dtype, shape, at = what["dtype"], tuple(what["shape"]), what["at"]
        brain = dtype == "bfloat16"
        if not (brain or DTYPE.match(dtype)) or any(type(n) is not int or n < 0 for n in (*shape, at)):
            raise FileError("damaged: HDF5 gave an array of impossible type or shape")
        kind = np.dtype("<u2" if brain else dtype)
        size = math.prod(shape) * kind.itemsize
        self.given += size
        if at + size > self.end or self.given > self.end:
            raise FileError("damaged: HDF5 gave an array that is not there")
        values: Array = np.empty(shape, kind)
        self.out.seek(at)
        if size and self.out.readinto(values.data.cast("B")) != size:  # type: ignore[attr-defined]
            raise FileError("damaged: HDF5 gave an array that is not there")
        return from_bfloat16(values) if brain else values
