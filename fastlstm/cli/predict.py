"""``fastlstm predict``: apply a model to a table, or a model of texts to a text."""

from __future__ import annotations

import argparse
import csv
import io
from typing import Any

import numpy as np

from .. import console, files, models
from ..corpus import read_text
from ..recipes import Recipe, recipe_in
from ..tables import Table, kind_of, read_table
from ..text import TextModel
from ..text.model import KINDS
from .common import add_backend, add_json, as_json, check_new, check_outputs
from .fit import add_table_options, pick

NAME = "predict"
HELP = "predict with a model of fit on a table, or give the perplexity of a text by a model of train-text"
PRINTS = True
EXAMPLES = (
    "fastlstm predict sentiment.safetensors new.tsv --out predicted.csv",
    "fastlstm predict weather.safetensors weather.csv --json   # the rows after the last one",
    "fastlstm predict book.safetensors chapter.txt             # perplexity",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("data", metavar="DATA", help="a table with the columns of the training; or a text, - for stdin")
    parser.add_argument("--out", metavar="FILE", help="write the predictions there, as CSV (default: print them)")
    parser.add_argument("--force", action="store_true", help="replace a FILE that exists")
    add_table_options(parser)
    add_backend(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Predict for each row, and print or write the predictions."""
    check_outputs({"--out": options.out}, {"the model": options.model, "the data": options.data}, options.force)
    check_new(options.out, options.force)
    _, config = files.load(options.model)
    if config.get("kind") in KINDS:
        result, rows = perplexity(options)
    else:
        result, rows = predict(options, config)
    for name, value in result.items():
        if not options.json and isinstance(value, float):
            console.say(f"{name} {value:.4f}, of {result['rows']} rows with a target")
    written = as_json(result | {"predictions": rows}) if options.json else as_csv(rows)
    if options.out:
        files.write_atomically(options.out, as_csv(rows).encode())
        print(as_json(result | {"out": options.out}) if options.json else f"{len(rows)} predictions in {options.out}")
    else:
        print(written.rstrip("\n"))
    return 0


def perplexity(options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The perplexity of a whole text."""
    model = TextModel.load(options.model, options.backend)
    text = read_text(options.data, options.encoding)
    return {}, [{"text": options.data, f"{model.tokens.unit}s": len(model.tokens.encode(text)),
                 "perplexity": model.perplexity(text)}]  # fmt: skip


def predict(options: argparse.Namespace, config: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(score, where the table has targets; a row for each prediction)."""
    kind_of(options.data)
    try:
        recipe = recipe_in(models.notes_of(config))
    except ValueError as error:
        raise files.FileError(f"{options.model}: {error}") from error
    model = models.load(options.model, options.backend)
    table = read_table(options.data, options.encoding, options.header)
    samples = recipe.samples(table)
    rows = table.good_rows(options.skip_bad_rows)
    if recipe.form == "window":
        return {}, forecast(model, recipe, samples, table, rows)
    predictions = recipe.read_out(model.predict(recipe.prepared(pick(samples, rows))))
    unit = "row" if table.places is None else "line"
    places = [row + 1 if table.places is None else table.places[row] for row in rows]
    result = score(recipe, table, rows, predictions)
    return result, [{unit: place} | one for place, one in zip(places, predictions, strict=True)]


def forecast(model: Any, recipe: Recipe, series: Any, table: Table, rows: Any) -> list[dict[str, Any]]:
    """The rows after the last one."""
    if len(rows) < len(table):
        raise ValueError(f"{table.path} has bad rows, and a series cannot have gaps: correct them")
    if len(series) < recipe.window:
        raise ValueError(f"{table.path} has {len(series)} rows, and the model forecasts from {recipe.window}")
    return recipe.read_out(model.predict(recipe.prepared(series[-recipe.window :])[None]))


def score(recipe: Recipe, table: Table, rows: Any, predictions: list[dict[str, Any]]) -> dict[str, Any]:
    """How good the predictions are, where the table has the target."""
    if recipe.target not in table.columns:
        return {}
    before = dict(table.problems)
    targets = recipe.targets(table)
    right = [row not in table.problems for row in rows]
    table.problems = before
    pairs = [(targets[row], one) for row, one, good in zip(rows, predictions, right, strict=True) if good]
    if not pairs:
        return {}
    if recipe.task == "classification":
        return {"accuracy": float(np.mean([a == one["class"] for a, one in pairs])), "rows": len(pairs)}
    errors = [float(a) - one[recipe.target] for a, one in pairs]
    return {"mean absolute error": float(np.mean(np.abs(errors))), "rows": len(pairs)}


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Rows of equal columns as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return text.getvalue()
