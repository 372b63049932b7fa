"""Files of named arrays and a configuration: safetensors, with the configuration as JSON in its metadata.

Knows arrays and dictionaries only. A file appears whole or not at all, and none that is read can run code.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .layout import Array

METADATA_KEY = "fastlstm"  # of the one metadata entry that holds the configuration


class FileError(ValueError):
    """A file is not what it should be; the message says what is wrong with it."""


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Put `data` in the place of the file `path`, which at every moment is wholly the old or wholly the new one.

    Raises
    ------
    OSError
        The old file, if any, is untouched then.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    # In the same folder, since a rename is atomic only within one file system.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a crash may keep the rename and lose the content
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OSError if a file could not be written there: to be asked before the work, not after it."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write {path}: no permission to write in {target.parent}")


def save(path: str | os.PathLike[str], arrays: Mapping[str, Array], config: Mapping[str, Any]) -> None:
    """Write arrays and configuration to a file, atomically.

    Parameters
    ----------
    path : path
    arrays : dict of arrays
        Any order and byte order; read back equal, contiguous and native.
    config : dict
        What JSON can hold.

    Raises
    ------
    OSError, TypeError, ValueError
        The old file, if any, is untouched then.
    """
    import safetensors.numpy

    little = {name: np.asarray(a, a.dtype.newbyteorder("<"), order="C") for name, a in arrays.items()}
    metadata = {METADATA_KEY: json.dumps(config, ensure_ascii=False, sort_keys=True)}
    write_atomically(path, safetensors.numpy.save(little, metadata))


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read what `save` wrote.

    Returns
    -------
    arrays : dict of arrays
    config : dict

    Raises
    ------
    OSError
        The file is missing or cannot be read.
    FileError
        It is damaged, truncated, or no file of fastlstm.
    """
    import safetensors

    with open(path, "rb"):  # safetensors' own errors for missing files and folders are less plain
        pass
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            config = json.loads(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
            arrays = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(
            f"{path} cannot be read: damaged, cut short, or no safetensors file ({one_line(error)})"
        ) from error
    if not isinstance(config, dict):
        raise FileError(f"{path} is a safetensors file, but not one of fastlstm: its metadata has no configuration")
    return arrays, config


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
