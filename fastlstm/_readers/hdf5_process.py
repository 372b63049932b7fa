"""A program of its own that turns an HDF5 file into JSON and raw numbers. It uses h5py and the standard library alone.

    python hdf5_process.py FILE SECONDS FOLDER

SECONDS of computing are allowed; h5py is looked for in FOLDER too.

HDF5's C library parses the file, and damaged files can make it crash or loop for ever; so it runs here, in a process
with limits of memory and time (see `hdf5.read`). Standard output gets the arrays' bytes one after another, then a JSON
object (`Tree`), then its length (8 bytes).

What can be checked before HDF5 reads values is checked: links lead to objects of the same file, objects are counted,
values lie in the file itself without a filter, and all that are read are no larger than its bytes justify. (HDF5's gzip
filter unpacks to any size; Keras uses no filter.)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import sys
from typing import Any, BinaryIO

MAX_RATIO = 4  # of the bytes of all values read to those of the file: an array can have several names
MAX_SMALL = 1 << 20  # bytes of values that are read from any file
MAX_TEXT = 1 << 24  # bytes of an attribute
MAX_OBJECTS = 100_000
MAX_DEPTH = 64
MAX_RANK = 16
MEMORY = 1 << 30  # bytes beyond the file's size that the process may take

# The attributes that Keras's files are read by. The others are left alone.
ATTRIBUTES = re.compile(r"(model_config|keras_version|(layer|weight)_names\d*|name|dtype)\Z")
LEFT_OUT = ("optimizer", "optimizer_weights")  # groups of the root

Tree = dict[
    str, Any
]  # of a group: "attributes" {name: texts}, "groups" {name: Tree}, "arrays" and "unread" {name: why}


class Refused(Exception):
    """The file holds what is not read."""


class Dump:
    """The reading of one file."""

    def __init__(self, path: str, out: BinaryIO) -> None:
        import h5py

        self.h5py, self.out = h5py, out
        self.size = os.stat(path).st_size
        self.budget = MAX_RATIO * self.size + MAX_SMALL
        self.objects = 0
        self.written = 0
        with h5py.File(path, "r") as file:
            tree = json.dumps(self.group(file, 0)).encode()
        out.write(tree + struct.pack("<Q", len(tree)))

    def group(self, group: Any, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise Refused(f"its groups are nested more than {MAX_DEPTH} deep, or contain themselves")
        tree: Tree = {"attributes": self.attributes(group), "groups": {}, "arrays": {}, "unread": {}}
        for raw in group.id:
            name = raw.decode("utf-8")
            if depth == 0 and name in LEFT_OUT:
                continue
            self.objects += 1
            if self.objects > MAX_OBJECTS:
                raise Refused(f"it has more than {MAX_OBJECTS} groups and arrays, or some that contain themselves")
            if group.id.links.get_info(raw).type != self.h5py.h5l.TYPE_HARD:
                raise Refused(f"its {name!r:.80} is a link to another place or file, which is not followed")
            found = group[name]
            if isinstance(found, self.h5py.Group):
                tree["groups"][name] = self.group(found, depth + 1)
            elif isinstance(found, self.h5py.Dataset):
                try:
                    tree["arrays"][name] = self.array(found)
                except Refused as why:
                    tree["unread"][name] = str(why)
        return tree

    def attributes(self, item: Any) -> dict[str, list[str]]:
        found = {}
        for i in range(self.h5py.h5a.get_num_attrs(item.id)):
            attribute = self.h5py.h5a.open(item.id, index=i)
            name = attribute.name.decode("utf-8")
            if ATTRIBUTES.match(name):
                found[name] = self.texts(item, name, attribute)
        return found

    def texts(self, item: Any, name: str, attribute: Any) -> list[str]:
        """The texts of an attribute; of an empty array of numbers none, since Keras writes an empty list so."""
        kind, shape = attribute.get_type(), attribute.shape
        count = shape[0] if shape else 1
        if len(shape) > 1 or count * kind.get_size() > min(MAX_TEXT, self.size):
            raise Refused(f"its attribute {name!r} is larger than the file justifies")
        if count == 0:
            return []
        if kind.get_class() != self.h5py.h5t.STRING:
            raise Refused(f"its attribute {name!r} is no text")
        value = item.attrs[name]
        values = value.ravel().tolist() if hasattr(value, "ravel") else [value]
        texts = [one.decode("utf-8") if isinstance(one, bytes) else str(one) for one in values]
        if sum(map(len, texts)) > min(MAX_TEXT, self.size):
            raise Refused(f"its attribute {name!r} is larger than the file justifies")
        return texts

    def array(self, dataset: Any) -> dict[str, Any]:
        """Write an array's values; where and what they are."""
        import numpy as np

        kind = dataset.id.get_type()
        brain = kind.get_class() == self.h5py.h5t.OPAQUE and kind.get_size() == 2
        if brain and self.attributes(dataset).get("dtype") != ["bfloat16"]:
            raise Refused("it holds bytes of an unknown meaning")
        if not brain and dataset.dtype.kind not in "biuf":
            raise Refused(f"it holds {dataset.dtype}; numbers alone are read")
        self.check_storage(dataset, 2 if brain else dataset.dtype.itemsize)
        values = np.empty(dataset.shape, "V2" if brain else dataset.dtype)
        if values.size:
            dataset.id.read(self.h5py.h5s.ALL, self.h5py.h5s.ALL, values)
        begin = self.written
        self.out.write(values.tobytes())
        self.written += values.nbytes
        return {"dtype": "bfloat16" if brain else values.dtype.str, "shape": list(values.shape), "at": begin}

    def check_storage(self, dataset: Any, itemsize: int) -> None:
        """Refuse an array unless its values lie in the file and fit what is left to be read of it."""
        shape = dataset.shape
        if shape is None or len(shape) > MAX_RANK:
            raise Refused("it has no shape, or too many axes")
        plan = dataset.id.get_create_plist()
        if plan.get_external_count() or plan.get_layout() == self.h5py.h5d.VIRTUAL:
            raise Refused("its values lie in another file, which is not read")
        if plan.get_nfilters():
            raise Refused("it is compressed or filtered, which is not read; unpack the file with h5repack -f NONE")
        needed = itemsize
        for n in shape:
            needed *= n
        stored = dataset.id.get_storage_size()
        if stored > self.size or needed > stored:
            raise Refused(f"it has the shape {shape} and only {stored} bytes in the file")
        self.budget -= needed
        for n in plan.get_chunk() if plan.get_layout() == self.h5py.h5d.CHUNKED else ():
            itemsize *= n
        if self.budget < 0 or itemsize > self.size:
            raise Refused(f"the file's arrays take more than {MAX_RATIO} times its own bytes")


def set_limits(size: int, seconds: int) -> None:
    """Limit this process's memory, computing time and output, where the system can."""
    try:
        import resource
    except ImportError:  # Windows: the caller's time limit is the only one
        return
    for what, limit in (
        (resource.RLIMIT_AS, MEMORY + (2 * MAX_RATIO + 1) * size),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, MAX_RATIO * size + 4 * MAX_TEXT),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # a lower limit may hold already
            resource.setrlimit(what, (limit, limit))


def main(path: str, seconds: str, folder: str) -> None:
    sys.path.pop(0)  # this file's folder: nothing is to be imported from there
    try:
        import h5py
    except ImportError:
        sys.path.append(folder)
        import h5py  # noqa: F401
    set_limits(os.stat(path).st_size, int(seconds))
    try:
        Dump(path, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        sys.stderr.flush()
        os._exit(3)  # without HDF5's clearing up, which a damaged file can disturb too
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
