"""Standard output and warnings of the commands, where a terminal or pipe cannot show every character."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from . import console


@contextmanager
def shown() -> Iterator[None]:
    """Within this context standard output has ``?`` for characters that its encoding lacks; a warning is a line."""
    stream: Any = sys.stdout
    before = getattr(stream, "errors", None)
    # The encoding stays that of the terminal or of PYTHONIOENCODING. Python sets surrogateescape in the locale C.
    changed = before in ("strict", "surrogateescape") and hasattr(stream, "reconfigure")
    if changed:
        stream.reconfigure(errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            yield
    finally:
        with suppress(OSError, ValueError):  # reconfigure flushes, and the reader of a pipe may have left
            if changed:
                stream.reconfigure(errors=before)


def show_warning(message: Any, *_: Any, **__: Any) -> None:
    """A replacement of `warnings.showwarning` that shows the message without file and line."""
    console.say(f"fastlstm: warning: {' '.join(str(message).split())}")


def load(name: str, prefix: str) -> Any:
    """Import a module that reads environment variables with this prefix, without the variables that it refuses.

    These may be set for another program: a notebook sets MPLBACKEND for every process that it starts.

    Warns
    -----
    UserWarning
        Variables are ignored.
    """
    before = set(sys.modules)
    try:
        return importlib.import_module(name)
    except ValueError as error:
        refused = {key: value for key, value in os.environ.items() if key.startswith(prefix)}
        if not refused:
            raise
        words = ", ".join(f"{key}={value}" for key, value in refused.items())
        warnings.warn(f"{words} passed over, for {name} refuses it: {str(error).partition(';')[0]}", stacklevel=2)
    try:
        for key in refused:
            del os.environ[key]
        for half in set(sys.modules) - before:  # submodules of the failed import
            if half.split(".")[0] == name:
                del sys.modules[half]
        return importlib.import_module(name)
    finally:
        os.environ.update(refused)


def typed(argument: str) -> str:
    """An argument of the command line, decoded as UTF-8 if the locale could not decode it."""
    try:
        argument.encode("utf-8")
        return argument
    except UnicodeEncodeError:
        try:
            return os.fsencode(argument).decode("utf-8")
        except UnicodeError:
            return argument
