"""``fastlstm quantize``: a model whose recurrent weights are kept as int8, int16 or float16, for inference."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from .. import console, convert, files, models
from .._readers.npz import read_npz
from ..corpus import read_text
from ..quantise import REDUCED, Report
from ..recipes import Recipe, recipe_in
from ..sequential import Sequential
from ..storage import INPUTS
from ..tables import read_table
from ..text import TextModel
from ..text.model import KINDS
from .common import add_backend, add_json, check_new, check_outputs, give
from .fit import add_table_options, pick

NAME = "quantize"
HELP = "keep a model's recurrent weights as int8 or float16, for quicker inference, and say what its outputs lose"
PRINTS = False
EXAMPLES = (
    "fastlstm quantize book.safetensors --to int8 --sample chapter.txt",
    "fastlstm quantize weather.safetensors --to int8 --sample weather.csv --tolerance 0.01",
    "fastlstm quantize model.keras --to float16 --out small.safetensors",
)
MOST_TOKENS, MOST_SAMPLES = 20_000, 512  # of a sample: more would take long and tell nothing new


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("model", metavar="MODEL", help="of fastlstm, or of another library as `convert` reads it")
    parser.add_argument("--to", required=True, choices=REDUCED, help="how weights are kept")
    parser.add_argument("--inputs", choices=tuple(INPUTS), help="integers of the first layer's x (default: int8)")
    parser.add_argument(
        "--sample",
        metavar="FILE",
        help="inputs on which outputs are compared: a text, a table with the columns of the training, or .npy, .npz",
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="X", help="layers that change by more in the mean stay float16"
    )
    parser.add_argument("--dense", action="store_true", help="the weights of a model's dense layers too")
    parser.add_argument("--out", metavar="FILE", help="(default: MODEL with -int8 or the like behind its name)")
    parser.add_argument("--force", action="store_true", help="replace a FILE that exists")
    add_table_options(parser)
    add_backend(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Quantise, write the model, and print the report."""
    out = options.out or str(Path(options.model).with_suffix("")) + f"-{options.to}.safetensors"
    inputs = {"the model": options.model} | ({"--sample": options.sample} if options.sample else {})
    check_outputs({"--out": out}, inputs, options.force)
    check_new(out, options.force)
    if options.tolerance is not None and options.sample is None:
        raise ValueError("--tolerance is compared with the changes on a sample: give --sample FILE too")
    if convert.library_of(options.model) == "fastlstm" and files.load(options.model)[1].get("kind") in KINDS:
        report = of_text(options, out)
    else:
        report = of_layer(options, out)
    give(options, f"{report}\nmodel in {out}", out=out, storage=options.to, report=report.to_config())
    return 0


def of_text(options: argparse.Namespace, out: str) -> Report:
    """A model of texts."""
    if options.inputs is not None:
        raise ValueError("a model of texts reads token ids, which --inputs does not concern: leave it out")
    if options.dense:
        raise ValueError("--dense is for models of several modules, and a model of texts is none: leave it out")
    model = TextModel.load(options.model, options.backend)
    text = None if options.sample is None else read_text(options.sample, options.encoding)[:MOST_TOKENS]
    made = model.quantize(options.to, text, options.tolerance)
    made.save(out)
    assert made.lstm.report is not None
    return made.lstm.report


def of_layer(options: argparse.Namespace, out: str) -> Report:
    """A layer, a cell or a Sequential."""
    model: Any = convert.read(options.model, backend=options.backend)
    if not hasattr(model, "quantize"):
        raise ValueError(
            f"{options.model} holds a {type(model).__name__}, which has no quantize: it is for recurrent layers, cells "
            "and Sequential"
        )
    own = convert.library_of(options.model) == "fastlstm"
    notes = models.notes_of(files.load(options.model)[1]) if own else {}
    sample = None if options.sample is None else sample_of(options, notes)
    more = {}
    if options.dense:
        if not isinstance(model, Sequential):
            raise ValueError(f"--dense is for a Sequential, and {options.model} holds {model!r}: leave it out")
        more = {"dense": True}
    made = model.quantize(options.to, options.inputs, sample, options.tolerance, **more)
    models.save(made, out, notes)
    report: Report = made.report
    return report


def sample_of(options: argparse.Namespace, notes: dict[str, Any]) -> Any:
    """The inputs in the file of --sample."""
    ending = Path(options.sample).suffix.lower()
    if "data" in notes:
        return of_recipe(recipe_in(notes), options)
    if ending == ".npy":
        try:
            return np.load(options.sample, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise files.FileError(f"{options.sample} is no array: {files.one_line(error)}") from error
    if ending == ".npz":
        arrays = read_npz(options.sample)
        if len(arrays) != 1:
            raise ValueError(f"{options.sample} has the arrays {', '.join(arrays) or 'none'}: give a file with one")
        return next(iter(arrays.values()))
    raise ValueError(f"{options.sample}: a model without a recipe of data takes its sample as .npy or .npz")


def of_recipe(recipe: Recipe, options: argparse.Namespace) -> Any:
    """The first samples of a table, as `fastlstm fit` made them for the training."""
    table = read_table(options.sample, options.encoding, options.header)
    samples = recipe.samples(table)
    if recipe.form == "window":
        rows = recipe.prepared(samples)
        if len(rows) < recipe.window:
            raise ValueError(f"{options.sample} has {len(rows)} rows, and a window of the model {recipe.window}")
        windows = np.lib.stride_tricks.sliding_window_view(rows, recipe.window, axis=0)
        return np.ascontiguousarray(windows[:MOST_SAMPLES].swapaxes(1, 2))
    good = table.good_rows(options.skip_bad_rows)[:MOST_SAMPLES]
    if len(table) > len(good):
        console.say(f"the sample is {len(good)} of the {len(table)} rows")
    return recipe.prepared(pick(samples, good))
