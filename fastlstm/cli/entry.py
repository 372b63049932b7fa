"""``main``: the parser of all commands, and what becomes of their errors."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from typing import Any

from .. import __version__, console
from .._backends import BackendError
from ..terminal import shown
from ..training import Diverged, SaveError
from . import bench, convert, demo, fit, info, plot, predict, quantize, sample, to_c, train_text
from .common import FAILED, INTERRUPTED, WRONG, complain

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # errors of writing

# A command is a module: NAME, HELP, EXAMPLES, `add_options(parser)`, `run(options)`; PRINTS says whether its result is
# what it prints. `left(options)`, where a module has it, says what an interrupted command has left in files.
COMMANDS: list[Any] = [train_text, sample, fit, predict, convert, quantize, to_c, bench, plot, info, demo]


@shown()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors are one line on stderr."""
    console.fill_closed_descriptors()
    options = parser().parse_args(argv)
    try:
        if sys.stdout is None and options.command.PRINTS:
            raise OSError("standard output is closed, and there the result would go")
        status: int = options.command.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reading end of the pipe, say `head`, is closed
        console.discard(sys.stdout)
        return 0 if options.command.PRINTS else INTERRUPTED + 13
    except KeyboardInterrupt:
        return complain(f"interrupted{state_of(options)}", INTERRUPTED + 2)
    except Diverged as error:
        return complain(f"{error}{state_of(options)}", FAILED)
    except SaveError as error:
        return complain(str(error), FAILED)
    except MemoryError as error:
        return complain(f"there is not enough memory{f': {error}' if str(error) else ''}{state_of(options)}", FAILED)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else "standard output: " if error.errno in FULL else ""
        return complain(f"{name}{error.strerror or error}", WRONG)
    except (ValueError, BackendError, ImportError, Warning) as error:  # a warning where PYTHONWARNINGS says so
        return complain(str(error), WRONG)
    finally:
        flush_or_discard()


def flush_or_discard() -> None:
    """Empty the buffer of standard output, which Python would else do at its end with an error text of its own."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        console.discard(sys.stdout)


def state_of(options: argparse.Namespace) -> str:
    """What the files of an interrupted command hold by now, as the end of a message."""
    left = getattr(options.command, "left", None)
    return f"; {left(options)}" if left else ""


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="fastlstm",
        description="LSTM, GRU and RNN on CPUs: train, predict, write texts, draw, measure.",
        epilog="`fastlstm COMMAND --help` has the options of a command, and examples.",
    )
    top.add_argument("--version", action="version", version=f"fastlstm {__version__}")
    commands = top.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        one = commands.add_parser(
            command.NAME,
            aliases=getattr(command, "ALIASES", ()),
            help=command.HELP,
            description=f"{command.HELP[0].upper()}{command.HELP[1:]}.",
            epilog="examples:\n" + "\n".join(f"  {line}" for line in command.EXAMPLES),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_options(one)
        one.set_defaults(command=command)
    return top
