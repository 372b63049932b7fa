"""What the commands share: exit statuses, results as text or JSON, checks of what is written."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from .. import console, files, outputs

FAILED, WRONG = 1, 2  # exit statuses: the work failed; what was given is wrong
INTERRUPTED = 128  # plus the number of the signal, as shells have it


def complain(message: str, status: int) -> int:
    """Write a message of one line to standard error; returns the status."""
    console.say(f"fastlstm: {' '.join(message.split())}")
    return status


def give(options: argparse.Namespace, text: str, /, **figures: Any) -> None:
    """Print a command's result: the text, or with ``--json`` one JSON object of the figures."""
    console.tell(as_json(figures) if options.json else text)


def as_json(value: Any) -> str:
    """The value as one line of JSON; what JSON has no number for, NaN and infinity, is null."""
    return json.dumps(without_nan(value), ensure_ascii=False, allow_nan=False)


def without_nan(value: Any) -> Any:
    """The value with None for every NaN and infinity in it, and Python's numbers for NumPy's."""
    if isinstance(value, dict):
        return {str(key): without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    if hasattr(value, "tolist"):  # of NumPy
        return without_nan(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option ``--json``."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def add_backend(parser: Any) -> None:
    """The option ``--backend``."""
    parser.add_argument("--backend", default="auto", help="see `fastlstm info` (default: %(default)s)")


def check_outputs(written: dict[str, str | None], inputs: dict[str, str], force: bool) -> None:
    """Check, before the work, that the outputs can be written and replace nothing unasked.

    Parameters
    ----------
    written, inputs : dict
        Files by what the user calls them; ``--plot`` is a picture. None: not asked for.
    force : bool
        Whether any picture may be replaced.
    """
    asked = {name: path for name, path in written.items() if path is not None}
    outputs.check_distinct(asked, inputs)
    for name, path in asked.items():
        if name == "--plot":
            from .. import plot

            plot.check(path, force)
        else:
            files.check_writable(path)


def check_new(path: str | None, force: bool) -> None:
    """Raise ValueError where writing to `path` would replace something, unless `force`."""
    if path is not None and not force and outputs.holds_something(path):
        raise ValueError(f"{path} exists: --force replaces it, another name keeps it")
