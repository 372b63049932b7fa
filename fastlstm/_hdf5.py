"""HDF5 files of others, read through h5py within bounds: groups, arrays of numbers and attributes of text.

HDF5's own code (a C library) parses the file. What can be checked from here is checked before it reads values: links
lead to objects of the same file, groups and arrays are counted, values lie in the file itself without a filter, and
all that are read are no larger than its bytes justify. (HDF5's gzip filter unpacks to any size; Keras uses none.) What is left to the C library is
the parsing of the file's structures, which can still meet an error of its own; SECURITY.md says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ._torch_values import from_bfloat16
from ._unpickle import DAMAGE
from .files import FileError, one_line
from .layout import Array

MAX_RATIO = 4  # of the bytes of all values read to those of the file: an array can have several names
MAX_SMALL = 1 << 20  # bytes of values that are read from any file
MAX_TEXT = 1 << 24  # bytes of an attribute
MAX_OBJECTS = 100_000

# What h5py raises for damaged files, beside what plain Python does.
ERRORS = (*DAMAGE, OSError, RuntimeError, NotImplementedError, EOFError, AssertionError)


def import_h5py() -> Any:
    """The module h5py.

    Raises
    ------
    ImportError
        It is not installed; the message says how to get it.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "Keras files are read with h5py, which is not installed: pip install fastlstm[keras]"
        ) from error
    return h5py


class Hdf5:
    """An open HDF5 file.

    Parameters
    ----------
    source : path or bytes
        The file, or its content.

    Raises
    ------
    FileError
        It is damaged, or no HDF5 file.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes) -> None:
        self.h5py = import_h5py()
        try:
            if isinstance(source, bytes):
                self.size = len(source)
                self.file = self.h5py.File(self.h5py.h5f.open_file_image(source))
            else:
                self.size = os.stat(source).st_size
                self.file = self.h5py.File(source, "r")
        except ERRORS as error:
            raise FileError(f"damaged, cut short, or no HDF5 file ({one_line(error)})") from error
        self.budget = MAX_RATIO * self.size + MAX_SMALL
        self.objects = 0

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Hdf5:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- groups
    def _count(self) -> None:
        self.objects += 1
        if self.objects > MAX_OBJECTS:
            raise FileError(f"it has more than {MAX_OBJECTS} groups and arrays, or some that contain themselves")

    def child(self, group: Any, name: str) -> Any:
        """The group or array of that name in a group, or None."""
        if not name or name in (".", "..") or "/" in name:
            raise FileError(f"it names {name!r:.80}, which is no name within a group")
        raw = name.encode("utf-8")
        links = group.id.links
        if not links.exists(raw):
            return None
        if links.get_info(raw).type != self.h5py.h5l.TYPE_HARD:
            raise FileError(f"its {name!r:.80} is a link to another place or file, which is not followed")
        self._count()
        found = group[name]
        if not isinstance(found, (self.h5py.Group, self.h5py.Dataset)):
            raise FileError(f"its {name!r:.80} is neither a group nor an array")
        return found

    def at(self, group: Any, path: str) -> Any:
        """The group or array at a path of several names, or None."""
        for name in path.split("/"):
            if not isinstance(group, self.h5py.Group):
                return None
            group = self.child(group, name)
        return group

    def group(self, group: Any, path: str) -> Any:
        """The group at a path, or None where there is none."""
        found = self.at(group, path)
        return found if isinstance(found, self.h5py.Group) else None

    def names(self, group: Any) -> list[str]:
        """The names in a group, in the order of their bytes."""
        if group.id.get_num_objs() > MAX_OBJECTS:
            raise FileError(f"a group of it has more than {MAX_OBJECTS} members")
        return sorted(raw.decode("utf-8") for raw in group.id)

    def groups(self, group: Any) -> Iterator[tuple[str, Any]]:
        """The groups in a group, with their names."""
        for name in self.names(group):
            found = self.child(group, name)
            if isinstance(found, self.h5py.Group):
                yield name, found

    # ---- values
    def array(self, dataset: Any, name: str) -> Array:
        """The values of an array, bfloat16 widened to float32.

        Raises
        ------
        FileError
            It holds something other than numbers, lies outside of the file, or is larger than the file justifies.
        """
        if not isinstance(dataset, self.h5py.Dataset):
            raise FileError(f"its array {name!r:.80} is missing")
        kind = dataset.id.get_type()
        wide = kind.get_class() == self.h5py.h5t.OPAQUE and kind.get_size() == 2
        if wide and self.texts(dataset, "dtype") != ["bfloat16"]:
            raise FileError(f"its array {name!r:.80} holds bytes of an unknown meaning")
        if not wide and dataset.dtype.kind not in "biuf":
            raise FileError(f"its array {name!r:.80} holds {dataset.dtype}; numbers alone are read")
        self._check_storage(dataset, name, 2 if wide else dataset.dtype.itemsize)
        if wide:
            raw = np.empty(dataset.shape, "V2")
            dataset.id.read(self.h5py.h5s.ALL, self.h5py.h5s.ALL, raw)
            return from_bfloat16(raw.view("<u2"))
        return np.asarray(dataset[()])

    def _check_storage(self, dataset: Any, name: str, itemsize: int) -> None:
        """Raise FileError unless an array's values lie in the file and fit what is left to be read of it."""
        if dataset.shape is None or any(n < 0 for n in dataset.shape) or len(dataset.shape) > 16:
            raise FileError(f"its array {name!r:.80} has no shape, or too many axes")
        plan = dataset.id.get_create_plist()
        if plan.get_external_count() or plan.get_layout() == self.h5py.h5d.VIRTUAL:
            raise FileError(f"its array {name!r:.80} lies in another file, which is not read")
        if plan.get_nfilters():
            raise FileError(
                f"its array {name!r:.80} is compressed or filtered, which is not read; unpack the file with "
                "h5repack -f NONE"
            )
        count = 1
        for n in dataset.shape:
            count *= n
        stored = dataset.id.get_storage_size()
        needed = count * itemsize
        if stored > self.size or needed > stored:
            raise FileError(f"its array {name!r:.80} of shape {dataset.shape} has {stored} bytes in the file")
        if plan.get_layout() == self.h5py.h5d.CHUNKED:
            chunk = itemsize
            for n in plan.get_chunk():
                chunk *= n
            needed += chunk
        self.budget -= needed
        if self.budget < 0:
            raise FileError(f"its arrays take more than {MAX_RATIO} times its own bytes ({name!r:.80} is one too many)")

    def texts(self, item: Any, name: str) -> list[str] | None:
        """The text or texts of an attribute; None without such an attribute.

        Raises
        ------
        FileError
            It is no text, or larger than the file.
        """
        raw = name.encode("utf-8")
        if not self.h5py.h5a.exists(item.id, raw):
            return None
        attribute = self.h5py.h5a.open(item.id, raw)
        kind = attribute.get_type()
        count = int(np.prod(attribute.shape, dtype=np.float64)) if attribute.shape else 1
        if len(attribute.shape) > 1 or count * kind.get_size() > min(MAX_TEXT, self.size):
            raise FileError(f"its attribute {name!r:.80} is larger than the file justifies")
        if kind.get_class() != self.h5py.h5t.STRING:
            if count == 0:  # Keras writes an empty list of names as an empty array of numbers
                return []
            raise FileError(f"its attribute {name!r:.80} is no text")
        value = item.attrs[name]
        values = np.ravel(value).tolist() if isinstance(value, np.ndarray) else [value]
        texts = [one.decode("utf-8") if isinstance(one, bytes) else str(one) for one in values]
        if sum(map(len, texts)) > min(MAX_TEXT, self.size):
            raise FileError(f"its attribute {name!r:.80} is larger than the file justifies")
        return texts

    def text(self, item: Any, name: str) -> str | None:
        """The one text of an attribute; None without such an attribute."""
        texts = self.texts(item, name)
        if texts is not None and len(texts) != 1:
            raise FileError(f"its attribute {name!r:.80} has {len(texts)} texts in the place of one")
        return None if texts is None else texts[0]

    def long_texts(self, item: Any, name: str) -> list[str] | None:
        """The texts of an attribute that Keras cuts into several (name0, name1, ...) where it is long."""
        texts = self.texts(item, name)
        if texts is not None:
            return texts
        parts: list[str] = []
        for i in range(MAX_OBJECTS):
            part = self.texts(item, f"{name}{i}")
            if part is None:
                return parts if i else None
            parts += part
        raise FileError(f"its attribute {name!r:.80} has too many parts")
