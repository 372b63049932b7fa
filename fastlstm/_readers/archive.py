"""Zip archives that others have made: entries read one by one, each within the bytes that the archive really has."""

from __future__ import annotations

import struct
import zipfile
import zlib
from typing import BinaryIO

import numpy as np

from ..files import FileError, one_line
from ..layout import Array

MAX_DIRECTORY = 1 << 24  # bytes of the list of entries: some 200,000 of them, each ten times as large in memory
PIECE = 1 << 24  # bytes read at once
HEADER = 30  # bytes before an entry's name, at least

# What the standard library raises for damaged archives, as long runs with damaged ones have shown.
ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    OverflowError,
    OSError,
    LookupError,
    struct.error,
    zlib.error,
)


class _Bounded:
    """A file that reads no more than `MAX_DIRECTORY` bytes at once while `zipfile` reads the directory."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell
        self.seekable = file.seekable
        self.limit = MAX_DIRECTORY

    def read(self, n: int = -1) -> bytes:
        if n > self.limit:
            raise FileError(f"its directory has {n} bytes; up to {self.limit} are read")
        return self.file.read(self.limit if n < 0 else n)


class Archive:
    """The entries of a zip archive, none of which overlaps another.

    Parameters
    ----------
    file : binary file
    size : int
        Its bytes.

    Raises
    ------
    FileError
        It is damaged, or made to look larger than it is.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        try:
            self.zip = zipfile.ZipFile(_Bounded(file))
        except FileError:
            raise
        except ERRORS as error:
            raise FileError(f"it is damaged or cut short ({one_line(error)})") from error
        self.names: dict[str, zipfile.ZipInfo] = {}
        end = 0
        for info in sorted(self.zip.infolist(), key=lambda info: info.header_offset):
            if info.filename in self.names:
                raise FileError(f"it has two entries {info.filename!r:.80}")
            if info.header_offset < end:
                raise FileError(f"its entry {info.filename!r:.80} overlaps another one")
            end = info.header_offset + HEADER + info.compress_size
            if end > size:
                raise FileError(f"its entry {info.filename!r:.80} reaches beyond the file: damaged, or cut short")
            self.names[info.filename] = info

    def size(self, name: str) -> int:
        """How many bytes an entry has."""
        return self.names[name].file_size

    def read(self, name: str, limit: int, compressed: bool = False) -> Array:
        """The bytes of an entry.

        Parameters
        ----------
        name : str
        limit : int
            An entry with more bytes is refused.
        compressed : bool
            Whether it may be compressed; the limit is then that of its size when unpacked.

        Returns
        -------
        array (bytes,) of uint8
        """
        info = self.names[name]
        if info.file_size > limit:
            raise FileError(f"its entry {name!r:.80} has {info.file_size} bytes; up to {limit} are read")
        if info.flag_bits & 1:
            raise FileError(f"its entry {name!r:.80} is encrypted")
        if info.compress_type != zipfile.ZIP_STORED and not (compressed and info.compress_type == zipfile.ZIP_DEFLATED):
            raise FileError(f"its entry {name!r:.80} is compressed, which is not read here; store it without")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise FileError(f"its entry {name!r:.80} says two things of its size")
        data = np.empty(info.file_size, np.uint8)
        try:
            self._fill(info, data.data)
        except FileError:
            raise
        except ERRORS as error:
            raise FileError(f"its entry {name!r:.80} is damaged ({one_line(error)}){self.cure(error)}") from error
        return data

    @staticmethod
    def cure(error: BaseException) -> str:
        if "CRC" not in str(error):
            return ""
        return (
            "; PyTorch writes no valid checksums after torch.serialization.set_crc32_options(False): save it with them"
        )

    def _fill(self, info: zipfile.ZipInfo, room: memoryview) -> None:
        at = 0
        with self.zip.open(info) as entry:
            while piece := entry.read(min(PIECE, len(room) - at + 1)):
                if at + len(piece) > len(room):
                    raise FileError(f"its entry {info.filename!r:.80} is larger than it says")
                room[at : at + len(piece)] = piece
                at += len(piece)
        if at != len(room):
            raise FileError(f"its entry {info.filename!r:.80} is cut short")
