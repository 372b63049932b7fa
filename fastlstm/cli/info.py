"""``fastlstm info``: what is installed and in use, or what a model file holds. ``config`` is its earlier name."""

from __future__ import annotations

import argparse

from ..info import config, lines
from .common import add_json, as_json
from .describe import describe

NAME = "info"
ALIASES = ("config",)
HELP = "show version, backends, instruction sets and threads; or the layers, sizes and parameters in a model file"
PRINTS = True
EXAMPLES = ("fastlstm info", "fastlstm info book.safetensors", "fastlstm info model.safetensors --json")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("file", nargs="?", metavar="FILE", help="a model file (default: none, and so the installation)")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the installation, or what a file holds."""
    if options.file is None:
        print(as_json(config()) if options.json else "\n".join(lines()))
    else:
        found = describe(options.file)
        print(as_json(found.figures()) if options.json else found.text())
    return 0
