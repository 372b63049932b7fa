"""Messages on standard error that cannot end a run, and results on standard output.

A run may outlive its terminal: the reader of a pipe leaves, the terminal closes, the disk under a log is full, or
standard error was closed from the beginning. A message that cannot be written is dropped, and so are all later ones.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import Any, TextIO


class Messages:
    """Standard error as a file that never raises: for `say`, progress bars and whatever else writes messages."""

    def __init__(self) -> None:
        self._lost: Any = None  # the stream that failed

    def write(self, text: str) -> int:
        """Write, or drop the text where standard error is closed or has failed."""
        self._attempt("write", text)
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing where standard error is closed or has failed."""
        self._attempt("flush")

    def _attempt(self, method: str, *arguments: Any) -> None:
        stream = sys.stderr
        if stream is None or stream is self._lost:
            return
        try:
            getattr(stream, method)(*arguments)
        except OSError:
            self._lose(stream)
        except ValueError:
            if not stream.closed:
                raise
            self._lose(stream)

    def _lose(self, stream: Any) -> None:
        self._lost = stream
        discard(stream)

    def isatty(self) -> bool:
        """Whether a terminal shows the messages."""
        stream = sys.stderr
        try:
            return stream is not None and stream is not self._lost and stream.isatty()
        except ValueError:  # closed
            return False

    def columns(self) -> int:
        """Width of the terminal; 0 without a terminal, or if its width is unknown."""
        try:
            return os.get_terminal_size(self.fileno()).columns
        except (OSError, ValueError):
            return 0

    def fileno(self) -> int:
        """The descriptor of standard error."""
        if sys.stderr is None:
            raise OSError("standard error is closed")
        return sys.stderr.fileno()

    @property
    def encoding(self) -> str:
        """The encoding of standard error."""
        return getattr(sys.stderr, "encoding", None) or "ascii"


messages = Messages()


def say(text: str) -> None:
    """Write a line to standard error, above a progress bar where one is shown."""
    if "tqdm" in sys.modules and messages.isatty():
        from tqdm import tqdm

        tqdm.write(text, file=messages)
    else:
        messages.write(text + "\n")
        messages.flush()


def tell(text: str) -> None:
    """Print a line of results on standard output; nothing if its reader has left or its terminal has closed.

    For commands with results in files too.

    Raises
    ------
    OSError
        Standard output cannot be written, say because its disk is full.
    """
    if sys.stdout is None:
        return
    try:
        print(text)
        sys.stdout.flush()
    except OSError as error:
        closed_terminal = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(sys.stdout.fileno()).st_mode)
        if not closed_terminal and not isinstance(error, BrokenPipeError):
            raise
        discard(sys.stdout)


def discard(stream: TextIO | Any) -> None:
    """Redirect a stream that has failed to the null device, so that Python's flush at exit succeeds."""
    try:
        descriptor = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
    except (OSError, ValueError):  # a stream without a descriptor
        return
    os.dup2(null, descriptor)
    os.close(null)


def fill_closed_descriptors() -> None:
    """Open the null device as each of the standard descriptors that is closed.

    Without that the next file that is opened, say a model, gets the descriptor of standard error, and C libraries write
    their messages into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, descriptor)  # inheritable, unlike what os.open gives
            if null != descriptor:
                os.close(null)
