"""Files of named arrays and a configuration: safetensors, with the configuration as JSON in its metadata.

It handles arrays and dictionaries only. A file appears whole or not at all, and reading a file never runs code.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from .layout import Array

METADATA_KEY = "fastlstm"  # the metadata entry that holds the configuration
STANDARD_STREAMS = ("standard input", "standard output", "standard error")  # descriptors 0, 1, 2
SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe (FIFO) or a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class FileError(ValueError):
    """A file is damaged or of another kind; the message says what is wrong with it."""


# ------------------------------------------------------------------------------------------------------------- writing
def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file `path` by `data`; at every moment the file is wholly the old or wholly the new one.

    A symbolic link stays one, and its target is replaced. Owner, group, permissions and extended attributes (access
    control lists among them) of a replaced file are kept.

    Raises
    ------
    OSError
        The file cannot be written, or `path` is a folder, a device, a pipe, a socket or a read-only file. The old file
        is untouched then.
    """
    target, before = destination(path)
    with naming(path):
        handle, temporary = temporary_beside(target, before)
        try:
            with os.fdopen(handle, "wb") as file:
                keep_access(file.fileno(), target, before)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # without it a crash may keep the rename and lose the content
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_folder(target.parent)


def destination(path: str | os.PathLike[str]) -> tuple[Path, os.stat_result | None]:
    """(the file that writing to `path` makes or replaces, links followed; its status, or None if there is none).

    Raises
    ------
    OSError
        `path` is something that is never replaced: a folder, a device, a pipe, a socket, a read-only file.
    """
    name = os.fspath(path)
    if not name:
        raise FileNotFoundError("the name of the file to write is empty")
    target = Path(os.path.realpath(path))
    try:
        before = os.stat(path)
    except FileNotFoundError:
        if str(name).endswith(os.sep):
            raise IsADirectoryError(f"cannot write {name}: the name is that of a folder") from None
        return target, None
    kind = SPECIAL.get(stat.S_IFMT(before.st_mode))
    if kind:
        raise (IsADirectoryError if kind == "a folder" else OSError)(f"cannot write {name}: it is {kind}")
    for descriptor, stream in enumerate(STANDARD_STREAMS):
        with suppress(OSError):  # closed
            if os.path.samestat(before, os.fstat(descriptor)):
                kind = stream
    if kind:
        raise OSError(f"cannot write {name}: it is the {kind} of this process")
    if not before.st_mode & 0o222:
        raise PermissionError(f"cannot write {name}: it is read-only. To allow it: chmod u+w {name}")
    return target, before


def temporary_beside(target: Path, before: os.stat_result | None) -> tuple[int, Path]:
    """A new file, open for writing, in the folder of `target`: a rename is atomic only within one file system."""
    # The temporary name does not grow with the target's, which may have the greatest length allowed.
    temporary = target.with_name(f".fastlstm-{secrets.token_hex(6)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    # The replacement of a private file is private from the start.
    return os.open(temporary, flags, 0o666 if before is None else 0o600), temporary


def keep_access(handle: int, target: Path, before: os.stat_result | None) -> None:
    """Give an open file the owner, group, permissions and extended attributes of the file that it is to replace.

    Raises
    ------
    PermissionError
        That file has another owner, and this process may not give a file to another owner.
    """
    if before is None or not hasattr(os, "fchown"):
        return
    mode, ours = stat.S_IMODE(before.st_mode), os.fstat(handle)
    if ours.st_gid != before.st_gid:
        try:
            os.fchown(handle, -1, before.st_gid)
        except OSError:  # the group cannot be kept: the new group gets the permissions of all other users
            mode = (mode & ~0o070) | (mode & 0o070 & ((mode & 0o007) << 3))
    if ours.st_uid != before.st_uid:
        try:
            os.fchown(handle, before.st_uid, -1)
        except OSError:
            raise PermissionError(
                f"cannot replace {target}: it belongs to user {before.st_uid}, and only that user or root can keep it "
                "so. Make a copy of your own, and name that one"
            ) from None
    os.fchmod(handle, mode)
    if hasattr(os, "listxattr"):
        with suppress(OSError):  # the file system has no extended attributes
            for name in os.listxattr(target):
                with suppress(OSError):  # the attribute is set by the system only
                    os.setxattr(handle, name, os.getxattr(target, name))


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within this context the system's errors name `path`, not the temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"cannot be written: {error.strerror}", os.fspath(path)) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, if the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders, and a folder may be unreadable
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # errors of file systems that cannot sync a folder
            raise
    finally:
        os.close(handle)


def check_writable(path: str | os.PathLike[str], size: int = 0) -> None:
    """Raise before the work what writing `size` bytes to `path` would raise after it.

    A temporary file is made in the folder, of that size if the system can reserve room, and removed.

    Raises
    ------
    OSError
        See `write_atomically`; or the folder is missing, not writeable or full.
    """
    target, before = destination(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {target.parent}")
    if str(target) in mount_points():
        raise OSError(
            f"cannot write {path}: it is mounted by itself and so cannot be replaced. Mount its folder instead"
        )
    with naming(path):
        if before is not None:
            os.close(os.open(target, os.O_WRONLY))
            check_sticky(target, before)
        handle, temporary = temporary_beside(target, before)
        try:
            keep_access(handle, target, before)
            reserve(handle, size, path)
        finally:
            os.close(handle)
            temporary.unlink(missing_ok=True)


def reserve(handle: int, size: int, path: str | os.PathLike[str]) -> None:
    """Reserve `size` bytes for an open file, or raise OSError."""
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # the file system cannot reserve room
            return
        raise OSError(error.errno, f"{error.strerror}: {size:,} bytes are needed", os.fspath(path)) from error


def check_sticky(target: Path, before: os.stat_result) -> None:
    """Raise PermissionError where only the file's owner may replace it: in a sticky folder, such as /tmp."""
    folder = target.parent.stat()
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    if folder.st_mode & stat.S_ISVTX and user not in (0, before.st_uid, folder.st_uid):
        raise PermissionError(errno.EPERM, "only its owner may replace it in this folder", os.fspath(target))


def mount_points() -> set[str]:
    """The mount points, on Linux; elsewhere none. Containers mount single files too."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return set()
    names = (re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), line.split()[4]) for line in lines)
    return {os.fsdecode(name) for name in names}


# ---------------------------------------------------------------------------------------------- arrays, configuration
def save(path: str | os.PathLike[str], arrays: Mapping[str, Array], config: Mapping[str, Any]) -> None:
    """Write arrays and configuration to a file, atomically.

    Parameters
    ----------
    path : path
    arrays : dict of arrays
        Any memory and byte order; `load` returns them equal, contiguous and in native byte order.
    config : dict
        Of JSON's types.

    Raises
    ------
    OSError
        See `write_atomically`; the old file is untouched then.
    TypeError, ValueError
        An array or the configuration cannot be stored; the old file is untouched then.
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

    with open(path, "rb"):  # clearer errors than safetensors' for missing files and for folders
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
