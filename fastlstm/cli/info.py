"""``fastlstm info``: what is installed and in use, what a model file holds, or where the C library lies.

``config`` is its earlier name.
"""

from __future__ import annotations

import argparse

from .. import library
from ..info import config, lines
from .common import add_json, as_json
from .describe import describe

NAME = "info"
ALIASES = ("config",)
HELP = "show version, backends, instruction sets and threads; or the layers, sizes and parameters in a model file"
PRINTS = True
EXAMPLES = (
    "fastlstm info",
    "fastlstm info book.safetensors",
    "fastlstm info model.safetensors --json",
    "fastlstm info --cflags --libs",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("file", nargs="?", metavar="FILE", help="a model file (default: none, and so the installation)")
    c = parser.add_argument_group("the C library; these print one line in place of all else")
    c.add_argument("--cflags", action="store_true", help="the compiler's options")
    c.add_argument("--libs", action="store_true", help="the linker's options")
    c.add_argument("--cmake-dir", action="store_true", help="the folder for CMake's fastlstm_DIR")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the installation, or what a file holds."""
    wanted = {"cflags": library.cflags, "libs": library.libs, "cmake_dir": library.cmake_dir}
    asked = {name: tell for name, tell in wanted.items() if getattr(options, name)}
    if asked:
        if options.file is not None:
            raise ValueError(
                f"--{next(iter(asked)).replace('_', '-')} tells of the C library, not of a file: leave one out"
            )
        told = {name: tell() for name, tell in asked.items()}
        print(as_json(told) if options.json else " ".join(told.values()))
    elif options.file is None:
        print(as_json(config()) if options.json else "\n".join(lines()))
    else:
        found = describe(options.file)
        print(as_json(found.figures()) if options.json else found.text())
    return 0
