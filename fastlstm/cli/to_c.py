"""``fastlstm to-c``: a model as C99 source."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from .. import files, models
from ..export_c import WEIGHTS, to_c
from ..text.model import KINDS
from .common import add_json, check_new, check_outputs, give

NAME = "to-c"
HELP = "write a model as one C99 source and header that need no library"
PRINTS = False
EXAMPLES = (
    "fastlstm to-c model.safetensors model.c",
    "fastlstm to-c model.safetensors model.c --weights int8 --calibrate inputs.npy",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("model", metavar="MODEL", help="a file of layer.save or Sequential.save")
    parser.add_argument("out", metavar="OUT.c", help="the source; the header OUT.h lies beside it")
    parser.add_argument("--name", help="the beginning of every public name (default: OUT)")
    parser.add_argument("--weights", choices=WEIGHTS, default=WEIGHTS[0], help="(default: %(default)s)")
    parser.add_argument("--calibrate", metavar="FILE.npy", help="typical inputs (T, I): what int8 changes on these")
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Write the two files, and say their sizes."""
    header = str(Path(options.out).with_suffix(".h"))
    inputs = {"MODEL": options.model} | ({"--calibrate": options.calibrate} if options.calibrate else {})
    check_outputs({"OUT.c": options.out, "the header": header}, inputs, options.force)
    for path in (options.out, header):
        check_new(path, options.force)
    _, config = files.load(options.model)
    if config.get("kind") in KINDS:
        raise ValueError(f"{options.model} holds a model of texts; to-c writes layers and Sequential models")
    sample = None if options.calibrate is None else read_array(options.calibrate)
    done = to_c(models.load(options.model), options.out, options.name, options.weights, sample)
    text = (
        f"{done.source} and {done.header}: {done.flash_bytes:,} bytes of constants, {done.state_bytes:,} of state, "
        f"{done.stack_bytes:,} of stack"
    )
    if done.change is not None:
        text += f"; int8 changes outputs by {done.change['mean']:.2g} (mean), {done.change['largest']:.2g} (largest)"
    give(options, text, **done._asdict())
    return 0


def read_array(path: str) -> np.ndarray:
    """The array of a ``.npy`` file, read without pickle.

    Raises
    ------
    ValueError
        It is none.
    """
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} holds several arrays: save one with numpy.save")
    return array
