"""Files of PyTorch (`.pt`, `.pth`, TorchScript) and safetensors, read without PyTorch into NumPy arrays.

`load` gives what a file holds as nested dictionaries, lists and plain values, every tensor an array; `flatten` gives
its arrays alone, by the names that a `state_dict` has. Nothing in a file can run code (see `unpickle`), and no memory
is taken that the file's bytes do not justify.

Formats: the zip archive of PyTorch 1.6 and later (`torch.save`, `torch.jit.save`), the stream before it
(`_use_new_zipfile_serialization=False`), and safetensors. A whole module is read as its parameters and buffers.
"""

from __future__ import annotations

import io
import os
import struct
from typing import Any, BinaryIO

import numpy as np

from ..files import FileError, one_line
from ..layout import Array
from .archive import Archive
from .torch_values import CALLS, DTYPES, Order, Storage, from_bfloat16, plain
from .unpickle import DAMAGE, MAX_BYTES, Global, describe, say
from .unpickle import load as load_pickle

LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle of PyTorch's magic number, in protocol 2
LEGACY_PROTOCOL = 1001
STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")

# safetensors' names of element types.
SAFETENSORS: dict[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "bfloat16",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
    "C64": "<c8",
}


def load(path: str | os.PathLike[str]) -> Any:
    """Read a file of PyTorch or safetensors.

    Parameters
    ----------
    path : path
        Its content, not its name, tells the format.

    Returns
    -------
    dict, list, array or plain value
        What was saved, with an array in the place of each tensor. bfloat16 becomes float32, exactly. Tensors that
        share memory give arrays that do. A module is a `Module`: its parameters, buffers and submodules by name.

    Raises
    ------
    OSError
        The file is missing or cannot be read.
    FileError
        It is damaged, no such file, or holds what is not read; the message says what.
    """
    with open(path, "rb") as file:
        start = file.read(512)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            if start.startswith(b"PK"):
                return _load_archive(Archive(file, size))
            if start.startswith(LEGACY_START):
                return _load_stream(file, size)
            if start[8:9] == b"{":
                return _load_safetensors(file.read())
            raise FileError(_unknown(start))
        except FileError as error:
            raise type(error)(f"{path} cannot be read: {error}") from error.__cause__
        except DAMAGE as error:
            raise FileError(f"{path} cannot be read: it is damaged ({one_line(error)})") from error


def _unknown(start: bytes) -> str:
    if start[257:262] == b"ustar":
        return "it is a tar archive, PyTorch's format before version 0.1.10; load it with torch and save it again"
    if start.startswith(b"\x80"):
        return "it is a pickle, but not one that torch.save has written; pickles of other programs are not read"
    return "it is neither a file of torch.save or torch.jit.save nor a safetensors file"


def flatten(value: Any) -> dict[str, Array]:
    """The arrays of what `load` gave, by their keys joined with dots, as in a `state_dict`; items of lists by number.

    Arrays of numbers that are not floating point are among them.
    """
    result: dict[str, Array] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, np.ndarray):
            result[name] = value
        elif isinstance(value, (dict, list, tuple)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                walk(item, f"{name}.{key}" if name else str(key))

    walk(value, "")
    return result


# ------------------------------------------------------------------------------------------------- the zip archive
class _Storages:
    """The storages that a description names, each once."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}
        self.views: dict[str, Storage] = {}

    def persistent(self, given: Any) -> Any:
        """What a persistent id stands for: a storage, or in old streams a module's class with its source text."""
        if not isinstance(given, tuple) or not given or given[0] not in ("storage", "module"):
            raise FileError("its pickle has a persistent id of an unknown kind")
        if given[0] == "module" and len(given) == 4 and isinstance(given[1], Global):
            return given[1]
        if given[0] != "storage" or len(given) not in (5, 6):
            raise FileError("its pickle has a persistent id of an unknown kind")
        kind, key, _device, size = given[1:5]
        if not isinstance(kind, Global) or kind.module not in STORAGE_MODULES or kind.name not in DTYPES:
            raise FileError(f"it has a storage of {describe(kind)}, which is not read")
        if not isinstance(key, str):
            raise FileError(f"its pickle has a storage with the key {say(key)}, which is no text")
        storage = self.by_key.setdefault(key, Storage(key, DTYPES[kind.name], size))
        if (storage.dtype, storage.size) != (DTYPES[kind.name], size):
            raise FileError(f"it says two things of its storage {key!r:.40}")
        return storage if len(given) == 5 or given[5] is None else self.view(storage, given[5])

    def view(self, root: Storage, given: Any) -> Storage:
        """The part of a storage that old streams save as a storage of its own."""
        key, start, size = given
        view = Storage(str(key), root.dtype, size)
        view.root, view.start = root, start
        if type(start) is not int or start < 0 or start + size > root.size:
            raise FileError(f"it has a part of the storage {root.key!r:.40} that reaches beyond it")
        return self.views.setdefault(str(key), view)


def _typed(raw: Array, storage: Storage, order: Order) -> Array:
    """The numbers in the bytes `raw` of a storage."""
    storage.order = order
    if storage.dtype == "bfloat16":
        return from_bfloat16(raw.view(f"{order}u2"))
    if storage.dtype == "b1":
        return np.not_equal(raw, 0)  # a byte other than 0 and 1 is no valid bool
    return raw.view(np.dtype(storage.dtype).newbyteorder(order))


def _load_archive(archive: Archive) -> Any:
    names = [name for name in archive.names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(names) != 1:
        raise FileError("it is a zip archive, but not one of torch.save or torch.jit.save: it has no data.pkl")
    prefix = names[0][: -len("data.pkl")]
    description = archive.read(names[0], MAX_BYTES).tobytes()
    storages = _Storages()
    built = load_pickle(io.BytesIO(description), len(description), CALLS, storages.persistent)
    order: Order = "<"
    if f"{prefix}byteorder" in archive.names:
        said = archive.read(f"{prefix}byteorder", 16).tobytes()
        if said not in (b"little", b"big"):
            raise FileError("its record 'byteorder' is neither 'little' nor 'big'")
        order = "<" if said == b"little" else ">"
    for key, storage in storages.by_key.items():
        name = f"{prefix}data/{key}"
        if name not in archive.names:
            raise FileError(f"its storage {key!r:.40} is not in the archive")
        if archive.size(name) != storage.nbytes:
            raise FileError(f"its storage {key!r:.40} should have {storage.nbytes} bytes and has {archive.size(name)}")
        storage.array = _typed(archive.read(name, storage.nbytes), storage, order)
    return plain(built)


# ------------------------------------------------------------------------------------------- the stream before 1.6
def _load_stream(file: BinaryIO, size: int) -> Any:
    def nothing(given: Any) -> Any:
        raise FileError("it has a persistent id where there can be none")

    def following(persistent: Any = nothing) -> Any:
        return load_pickle(file, size - file.tell(), CALLS, persistent)

    storages = _Storages()
    _magic, version, _system = following(), following(), following()
    if version != LEGACY_PROTOCOL:
        raise FileError(f"it has version {say(version)} of PyTorch's old format; {LEGACY_PROTOCOL} is read")
    built = following(storages.persistent)
    keys = following()
    if not isinstance(keys, list) or any(not isinstance(key, str) for key in keys):
        raise FileError("its list of storages is damaged")
    for key in keys:
        storage = storages.by_key.get(key)
        if storage is None or storage.array is not None:
            raise FileError(f"its list of storages names {key!r:.40}, which no tensor has, or names it twice")
        storage.array = _typed(_following_bytes(file, size, storage), storage, "<")
    return plain(built)


def _following_bytes(file: BinaryIO, size: int, storage: Storage) -> Array:
    """The bytes of one storage: after their number of elements, the numbers."""
    head = file.read(8)
    if len(head) < 8 or size - file.tell() < storage.nbytes:
        raise FileError("it is cut short")
    (count,) = struct.unpack("<q", head)
    if count != storage.size:
        raise FileError(f"its storage {storage.key!r:.40} should have {storage.size} elements and has {count}")
    raw = np.empty(storage.nbytes, np.uint8)
    if file.readinto(raw.data) != storage.nbytes:  # type: ignore[attr-defined]
        raise FileError("it is cut short")
    return raw


# ------------------------------------------------------------------------------------------------------ safetensors
def _load_safetensors(data: bytes) -> dict[str, Array]:
    import safetensors

    try:
        tensors = safetensors.deserialize(data)  # type: ignore[no-untyped-call] # checks the header, and every range of bytes against the file
    except (safetensors.SafetensorError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise FileError(f"damaged, cut short, or no safetensors file ({one_line(error)})") from error
    result: dict[str, Array] = {}
    for name, tensor in tensors:
        dtype = SAFETENSORS.get(tensor["dtype"])
        if dtype is None:
            raise FileError(f"its tensor {name!r:.80} has the type {tensor['dtype']}, which is not read")
        raw = np.frombuffer(tensor["data"], "<u2" if dtype == "bfloat16" else dtype)
        result[name] = (from_bfloat16(raw) if dtype == "bfloat16" else raw).reshape(tensor["shape"])
    return result
