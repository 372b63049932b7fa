"""All streams of a `StreamBatch` in one file."""

from __future__ import annotations

import os
import zlib
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from ..files import FileError
from ..layout import Array
from .errors import StateError, StreamsFull

if TYPE_CHECKING:
    from .open import OpenStreams

FORMAT = 1


def write(batch: OpenStreams, path: str | os.PathLike[str]) -> None:
    """See `StreamBatch.snapshot`."""
    slabs, packed = batch._slabs, batch._packed
    handles = slabs.handles()
    slots = slabs.find(handles.tolist())
    arrays = {
        "handles": handles,
        "states": np.array([slabs.record(slot) for slot in slots], slabs.dtype).reshape(len(slots), slabs.width),
        "steps": np.array([slabs.info(slot)["steps"] for slot in slots], np.uint64),
        "generations": np.concatenate([info["generation"] for info in slabs.slots])[: slabs.fresh],
    }
    config = {
        "streams": FORMAT,
        "equation": packed.equation,
        "weights": packed.weights_id.hex(),
        "keys": [_written(batch.key_of(handle)) for handle in handles.tolist()],
        "crc": _checksum(arrays),
    }
    files.save(path, arrays, config)


def read(batch: OpenStreams, path: str | os.PathLike[str]) -> None:
    """Take the streams of a file into a StreamBatch that never had a stream."""
    arrays, config = files.load(path)
    slabs, packed = batch._slabs, batch._packed
    if "streams" not in config:
        raise FileError(f"{path} is no snapshot of streams, but another file of fastlstm")
    if config["streams"] != FORMAT:
        raise FileError(
            f"{path} has version {config['streams']} of snapshots, and this fastlstm reads version {FORMAT}"
        )
    try:
        handles, states, steps, generations = (arrays[n] for n in ("handles", "states", "steps", "generations"))
        keys = [_key(one) for one in config["keys"]]
        whole = config["crc"] == _checksum(arrays) and len(keys) == len(handles) == len(states) == len(steps)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} is damaged: {files.one_line(error)}") from None
    if not whole:
        raise FileError(f"{path} is damaged: it does not have the checksum that was written with it")
    if config["equation"] != packed.equation:
        raise StateError(
            f"{path} belongs to another model: its equation is {config['equation']}, not {packed.equation}"
        )
    if config["weights"] != packed.weights_id.hex():
        raise StateError(
            f"{path} belongs to other weights: to those with number {config['weights']}, and these have "
            f"{packed.weights_id.hex()}"
        )
    if batch.max_streams is not None and len(handles) > batch.max_streams:
        raise StreamsFull(f"{path} has {len(handles)} streams, and max_streams is {batch.max_streams}")
    batch._reserve(len(generations))
    slabs.put(generations)
    now = batch._clock()
    for handle, state, done, key in zip(handles.tolist(), states, steps.tolist(), keys, strict=True):
        (slot,) = slabs.find([handle])
        slabs.record(slot)[...] = state
        info = slabs.info(slot)
        info["steps"], info["used"] = done, now
        if key is not None:
            batch._handles[key] = handle
            batch._keys[handle] = key


def _checksum(arrays: dict[str, Array]) -> int:
    """CRC-32 of arrays in the order of their names."""
    crc = 0
    for name in sorted(arrays):
        a = arrays[name]
        crc = zlib.crc32(np.ascontiguousarray(a, a.dtype.newbyteorder("<")).data, crc)
    return crc


def _written(key: Hashable) -> Any:
    """A key as JSON."""
    if key is None or (isinstance(key, (str, int)) and not isinstance(key, bool)):
        return key
    if isinstance(key, bytes):
        return {"bytes": key.hex()}
    raise TypeError(
        f"a snapshot holds keys that are str, bytes or int, and stream key {key!r} is of type {type(key).__name__}: "
        "use such keys, or keep the states yourself: export(handles)"
    )


def _key(written: Any) -> Hashable:
    """The key of `_written`."""
    return bytes.fromhex(written["bytes"]) if isinstance(written, dict) else written
