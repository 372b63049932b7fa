"""``fastlstm sample``: write text with a trained model."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterable

from .. import console
from ..terminal import typed
from ..text import TextModel
from .common import add_backend, add_json, as_json

NAME = "sample"
HELP = "write text with a model of train-text"
PRINTS = True
EXAMPLES = (
    'fastlstm sample book.safetensors --prefix "It was " --length 300 --temperature 0.7',
    "fastlstm sample book.safetensors --top-k 40 --top-p 0.95 --seed 1",
    "fastlstm sample words.safetensors --length 50 --json",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--prefix", default="", help="text to go on from")
    parser.add_argument("--length", type=int, default=300, help="characters, or words, to write (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest (default: %(default)s)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest only")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw among the likeliest that add up to P only")
    parser.add_argument("--seed", type=int, default=None, help="of the draws; a fresh one unless given")
    add_backend(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Write text, token by token as it is drawn."""
    model = TextModel.load(options.model, options.backend)
    prefix = typed(options.prefix)
    drawn = model.sample(
        prefix, options.length, options.temperature, options.seed, top_k=options.top_k, top_p=options.top_p
    )
    if options.temperature == 0:
        for name in ("seed", "top_k", "top_p"):
            if getattr(options, name) is not None:
                warnings.warn(
                    f"--{name.replace('_', '-')} has no effect at --temperature 0, which always takes the likeliest "
                    f"{model.tokens.unit}"
                )
    if options.json:
        console.tell(as_json({"prefix": prefix, "text": "".join(drawn)}))
    else:
        write(prefix, drawn)
    return 0


def write(prefix: str, pieces: Iterable[str]) -> None:
    """Print a text as it comes."""
    print(prefix, end="")
    for piece in pieces:
        print(piece, end="", flush=sys.stdout.isatty())
    print()
