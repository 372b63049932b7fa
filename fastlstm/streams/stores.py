"""Where states are kept between processes: bytes by key."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

from ..files import write_atomically


@runtime_checkable
class Store(Protocol):
    """A place for the bytes of states. Three methods, each for many keys, so that a database needs one round trip."""

    def get_many(self, keys: Iterable[str]) -> list[bytes | None]:
        """The bytes of each key, in order; None for a key that has none."""
        ...

    def put_many(self, states: Mapping[str, bytes]) -> None:
        """Keep the bytes of each key, in place of older ones."""
        ...

    def delete_many(self, keys: Iterable[str]) -> None:
        """Forget keys; a key that has no bytes is no error."""
        ...


class MemoryStore:
    """A store in this process's memory, for tests and for one process."""

    def __init__(self) -> None:
        self._states: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._states)

    def get_many(self, keys: Iterable[str]) -> list[bytes | None]:
        return [self._states.get(key) for key in keys]

    def put_many(self, states: Mapping[str, bytes]) -> None:
        self._states.update({key: bytes(state) for key, state in states.items()})

    def delete_many(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._states.pop(key, None)


class FileStore:
    """A store in a folder: a file for each key, replaced atomically. Any number of processes may share it.

    A file's name is a hash of the key, so that a key may hold any text and cannot name another place.

    Parameters
    ----------
    folder : path
        Made where it does not exist.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        name = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.state"

    def get_many(self, keys: Iterable[str]) -> list[bytes | None]:
        states: list[bytes | None] = []
        for key in keys:
            try:
                states.append(self._path(key).read_bytes())
            except FileNotFoundError:
                states.append(None)
        return states

    def put_many(self, states: Mapping[str, bytes]) -> None:
        for key, state in states.items():
            path = self._path(key)
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, state)

    def delete_many(self, keys: Iterable[str]) -> None:
        for key in keys:
            with suppress(FileNotFoundError):
                self._path(key).unlink()
