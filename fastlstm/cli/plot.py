"""``fastlstm plot``: the loss curve of a training, or the gates of a model over a text or a series."""

from __future__ import annotations

import argparse
import csv
import io
import math
from pathlib import Path
from typing import Any

from .. import files, gates_page, models, plot
from ..corpus import check_encoding, read_text
from ..recipes import recipe_in
from ..tables import read_table
from ..terminal import typed
from ..text import TextModel, Words, read_history
from ..text.model import KINDS, below
from ..trace import Trace, trace, with_labels
from ..training import History
from ..validation import positive
from .common import add_backend, add_json, check_outputs, give
from .fit import add_table_options

NAME = "plot"
HELP = "draw the loss curve of a training, or the gates of a model over a text or a series"
PRINTS = False
EXAMPLES = (
    "fastlstm plot book.safetensors --out loss.png                            # the loss curve of its training",
    'fastlstm plot book.safetensors --text "It was raining." --out gates.png   # gates and cell state, a heat map',
    "fastlstm plot book.safetensors --text-file page.txt --out gates.html     # a page: choose a unit, see the text",
    "fastlstm plot weather.safetensors --data weather.csv --out gates.html    # over the last rows of a series",
)
MOST_STEPS = 5000  # of a page: some 1.3 MB for every 256 units and part


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("file", metavar="FILE", help="a model of train-text or fit; or the CSV of fit --log")
    parser.add_argument(
        "--out", required=True, metavar="PICTURE", help="its ending says the kind: .png, .svg, .html ..."
    )
    over = parser.add_mutually_exclusive_group()
    over.add_argument("--text", metavar="TEXT", help="draw the gates over this text")
    over.add_argument("--text-file", metavar="FILE", help="draw the gates over the text in a file")
    over.add_argument("--data", metavar="TABLE", help="draw the gates over a row of a table, or over a series")
    parser.add_argument("--row", type=int, default=1, help="of TABLE, counted from 1 (default: %(default)s)")
    parser.add_argument("--layer", type=int, default=0, help="counted from 0 (default: %(default)s)")
    parser.add_argument("--reverse", action="store_true", help="the reverse direction of a bidirectional layer")
    parser.add_argument("--unit", type=int, help="that a page shows first (default: the one that varies most)")
    parser.add_argument("--force", action="store_true", help="replace a PICTURE that was not drawn by fastlstm")
    add_table_options(parser)
    add_backend(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Draw the loss curve, or the gates."""
    over = next((name for name in ("text", "text_file", "data") if getattr(options, name) is not None), None)
    page = plot.kind_of(options.out) in ("html", "htm")
    inputs = {"the model": options.file, "--text-file": options.text_file, "--data": options.data}
    read = {name: path for name, path in inputs.items() if path is not None}
    check_outputs({"--out" if page else "--plot": options.out}, read, options.force)
    if page:
        gates_page.check(options.out, options.force)
    if options.encoding is not None:
        check_encoding(options.encoding)
    if over is None:
        if page:
            raise ValueError("a page shows gates over a text or a series: give --text, --text-file or --data")
        draw_loss(options)
        give(options, f"loss curve in {options.out}", picture=options.out)
        return 0
    found = gates_of(options)
    if page:
        gates_page.write(found, options.out, options.unit)
    else:
        plot.gates(found, options.out)
    shown = f"{len(found)} steps of {found.units} units in {options.out}"
    give(options, shown, picture=options.out, steps=len(found), units=found.units, parts=list(found.parts))
    return 0


# ------------------------------------------------------------------------------------------------------------- history
def draw_loss(options: argparse.Namespace) -> None:
    """The loss curve of a model file or of a CSV log."""
    if Path(options.file).suffix.lower() == ".csv":
        plot.epoch_curve(history_of_csv(options.file), options.out, options.file)
        return
    arrays, config = files.load(options.file)
    kept = below(arrays, "history.")
    if kept:
        model = TextModel.load(options.file)
        plot.loss_curve(read_history(kept), options.out, f"{model.lstm!r}", model.tokens.unit)
        return
    columns = models.notes_of(config).get("history")
    if not columns:
        raise files.FileError(
            f"{options.file} has no history of a training: train-text and fit keep one in the model file; "
            "for the gates over a text give --text"
        )
    history = History()
    try:
        for name, points in columns.items():
            for at, value in points:
                history.record(int(at), **{name: float("nan") if value is None else float(value)})
    except (TypeError, ValueError, AttributeError) as error:
        raise files.FileError(f"{options.file} has a history that does not fit: {error}") from error
    plot.epoch_curve(history, options.out, options.file)


def history_of_csv(path: str) -> History:
    """The history in a file of ``fit --log`` or `callbacks.CSVLog`."""
    text = read_text(path)
    rows = csv.DictReader(io.StringIO(text))
    if rows.fieldnames is None or "epoch" not in rows.fieldnames or "loss" not in rows.fieldnames:
        raise ValueError(f"{path} is no log of a training: its first line has no columns epoch and loss")
    history = History()
    for row in rows:
        try:
            values = {name: float(cell) for name, cell in row.items() if name != "epoch" and cell}
            history.record(int(row["epoch"]), **values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} line {rows.line_num}: {error}") from error
    return history


# --------------------------------------------------------------------------------------------------------------- gates
def gates_of(options: argparse.Namespace) -> Trace:
    """The trace that the options ask for."""
    direction, layer = int(options.reverse), positive(options.layer, "--layer", 0)
    _, config = files.load(options.file)
    text = text_of(options)
    if config.get("kind") in KINDS:
        if text is None:
            raise ValueError(f"{options.file} is a model of texts: give --text or --text-file")
        return limited(trace(TextModel.load(options.file, options.backend), text, layer=layer, direction=direction))
    try:
        recipe = recipe_in(models.notes_of(config))
    except ValueError as error:
        raise files.FileError(f"{options.file}: {error}: fastlstm.trace.trace(model, x)") from error
    model: Any = models.load(options.file, options.backend)
    if recipe.form == "text":
        words = Words.from_config(recipe.words)
        text = text if text is not None else pick_row(recipe.samples(table_of(options)), options)
        x = recipe.prepared([text])[0]
        labels = list(words.spelled(words.entries[i - 1] for i in x.tolist()))
        return limited(with_labels(trace(model, x, layer=layer, direction=direction), labels, is_text=True))
    if options.data is None:
        raise ValueError(f"{options.file} is a model of numbers: give --data")
    samples = recipe.samples(table_of(options))
    x = recipe.prepared(samples[-MOST_STEPS:] if recipe.form == "window" else pick_row(samples, options)[None])
    return trace(model, x if recipe.form == "window" else x[0], layer=layer, direction=direction)


def text_of(options: argparse.Namespace) -> str | None:
    """The text of --text or --text-file."""
    if options.text_file is not None:
        return read_text(options.text_file, options.encoding)
    return None if options.text is None else typed(options.text)


def table_of(options: argparse.Namespace) -> Any:
    """The table of --data."""
    if options.data is None:
        raise ValueError("give --text, --text-file or --data")
    return read_table(options.data, options.encoding, options.header)


def pick_row(samples: Any, options: argparse.Namespace) -> Any:
    """The sample of --row."""
    if not 1 <= options.row <= len(samples):
        raise ValueError(f"{options.data} has {len(samples)} rows, and no row {options.row}")
    sample = samples[options.row - 1]
    if not isinstance(sample, str) and any(not math.isfinite(v) for v in sample.ravel().tolist()):
        raise ValueError(f"{options.data}: row {options.row} has a cell that is no number: choose another --row")
    return sample


def limited(found: Trace) -> Trace:
    """The trace, unless it is too long for a picture."""
    if len(found) > MOST_STEPS:
        raise ValueError(f"the text has {len(found)} steps, and a picture at most {MOST_STEPS}: give a shorter one")
    return found
