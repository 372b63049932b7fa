"""``fastlstm fit``: train a model on a table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import callbacks, console, models, nn
from ..corpus import check_encoding
from ..recipes import Recipe, choose_task, scaled, windowed
from ..sequential import Sequential
from ..tables import HEADERS, KINDS, Table, kind_of, read_table
from ..text import Words
from ..training.fitting import OPTIMIZERS
from ..validation import number, positive, probability
from .common import INTERRUPTED, add_backend, add_json, check_new, check_outputs, complain, give

NAME = "fit"
HELP = f"train a model on a table ({', '.join(KIND.upper() for KIND in KINDS)})"
PRINTS = False
EXAMPLES = (
    "fastlstm fit reviews.tsv --text 2 --target 1 --above 0 --out sentiment.safetensors   # classes of texts",
    "fastlstm fit weather.csv --target temperature --window 24 --horizon 6               # forecast of a series",
    "fastlstm fit series.csv --target label --epochs 30                                  # a row is a sequence",
    "fastlstm fit arrays.npz --inputs x --target y                                       # x (N, T, I), y (N,)",
)
LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.SimpleRNN}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("data", metavar="DATA", help="the table")
    data = parser.add_argument_group("data")
    data.add_argument("--target", required=True, metavar="COLUMN", help="what is to be predicted, by name or number")
    data.add_argument("--text", metavar="COLUMN", help="a sample is the text in this column, read as words")
    data.add_argument("--inputs", nargs="+", metavar="COLUMN", help="of a sample (default: all but the target)")
    data.add_argument("--window", type=int, metavar="ROWS", help="forecast from so many rows, which are in time order")
    data.add_argument("--horizon", type=int, default=1, metavar="ROWS", help="rows to forecast (default: %(default)s)")
    data.add_argument("--task", choices=("classification", "regression"), help="(default: by the target's values)")
    data.add_argument("--above", type=float, metavar="NUMBER", help="two classes: target above NUMBER, or not")
    data.add_argument("--words", type=int, default=5000, help="entries of the vocabulary (default: %(default)s)")
    data.add_argument("--max-length", type=int, default=500, help="words of a text (default: %(default)s)")
    data.add_argument("--validation", type=float, default=0.1, help="share of the rows (default: %(default)s)")
    add_table_options(data)
    model = parser.add_argument_group("model and training")
    model.add_argument("--layer", choices=LAYERS, default="lstm", help="(default: %(default)s)")
    model.add_argument("--units", type=int, default=64, help="of each layer (default: %(default)s)")
    model.add_argument("--layers", type=int, default=1, help="(default: %(default)s)")
    model.add_argument("--embedding", type=int, default=32, help="numbers for a word (default: %(default)s)")
    model.add_argument("--dropout", type=float, default=0.0, help="of each layer's inputs (default: %(default)s)")
    model.add_argument("--epochs", type=int, default=10, help="(default: %(default)s)")
    model.add_argument("--batch", type=int, default=32, help="samples of a step (default: %(default)s)")
    model.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="(default: %(default)s)")
    model.add_argument("--lr", type=float, default=1e-3, help="learning rate (default: %(default)s)")
    model.add_argument("--clip", type=float, default=1.0, help="largest norm of all gradients (default: %(default)s)")
    model.add_argument("--seed", type=int, default=0, help="of weights, order and split (default: %(default)s)")
    add_backend(model)
    files = parser.add_argument_group("files")
    files.add_argument("--out", default="model.safetensors", metavar="MODEL", help="(default: %(default)s)")
    files.add_argument("--plot", metavar="PICTURE", help="draw the loss curve, e.g. loss.png")
    files.add_argument("--log", metavar="FILE", help="write each epoch's figures, as CSV")
    files.add_argument("--force", action="store_true", help="replace files that exist")
    add_json(parser)


def add_table_options(parser: Any) -> None:
    """The options that say how a table is read."""
    parser.add_argument("--encoding", metavar="NAME", help="of CSV and TSV (default: by its mark, else UTF-8)")
    parser.add_argument("--header", choices=HEADERS, default="auto", help="whether CSV and TSV begin with names")
    parser.add_argument("--skip-bad-rows", action="store_true", help="leave them out, with a warning")


def run(options: argparse.Namespace) -> int:
    """Train, and save the model with what makes samples of a table."""
    check(options)
    table = read_table(options.data, options.encoding, options.header)
    recipe = recipe_for(table, options)
    x, y, validation = split(table, recipe, options)
    model = build(recipe, options, 1 if y.ndim == 1 else y.shape[1])
    steps = "" if recipe.form == "text" else f", samples {x.shape[1:]}"
    console.say(
        f"{recipe.task} of {recipe.target!r}: {len(x)} samples to train on, {len(validation[0])} held out{steps}"
    )
    watching: list[callbacks.Callback] = [callbacks.LossCurve(options.plot)] if options.plot else []
    watching += [callbacks.CSVLog(options.log)] if options.log else []
    held_out = validation if len(validation[0]) else None
    history = model.fit(x, y, options.epochs, options.batch, validation_data=held_out, callbacks=watching)
    columns = {name: history.points(name) for name in history.columns}
    models.save(model, options.out, {"data": recipe.to_config(), "history": columns})
    reached = {name: history.last(name)[0] for name in history.columns if name != "lr"}
    if model.stopped_by is not None:
        done = history.length("loss")
        return complain(f"stopped after {done} epochs; {options.out} has the model", INTERRUPTED + model.stopped_by)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in reached.items())
    give(options, f"{shown}; model in {options.out}", model=options.out, task=recipe.task, **reached)
    return 0


def check(options: argparse.Namespace) -> None:
    """Find out before the work what would fail after it, and options that contradict each other."""
    kind_of(options.data)
    written = {"--out": options.out, "--plot": options.plot, "--log": options.log}
    check_outputs(written, {"the data": options.data}, options.force)
    for path in (options.out, options.log):
        check_new(path, options.force)
    if options.encoding is not None:
        check_encoding(options.encoding)
    if options.text is not None and (options.inputs or options.window):
        raise ValueError("--text names what a sample is, so leave --inputs and --window out")
    if options.window and (options.task or options.above is not None):
        raise ValueError("--window asks for a forecast, so leave --task and --above out")
    if options.task == "regression" and options.above is not None:
        raise ValueError("--above makes classes, so leave --task regression out")
    for name in ("horizon", "max_length", "units", "layers", "embedding", "epochs", "batch"):
        positive(getattr(options, name), f"--{name.replace('_', '-')}")
    positive(options.words, "--words", 2)
    number(options.validation, "--validation", below=1.0)
    probability(options.dropout, "--dropout")
    number(options.lr, "--lr")


def recipe_for(table: Table, options: argparse.Namespace) -> Recipe:
    """What the options and the columns ask for."""
    target = table.name(options.target)
    if options.text is not None:
        form, inputs = "text", [table.name(options.text)]
    else:
        form = "window" if options.window else "arrays" if kind_of(table.path) == "npz" else "cells"
        inputs = [table.name(name) for name in options.inputs or [n for n in table.columns if n != target]]
        if form == "window" and target not in inputs and not options.inputs:
            inputs.append(target)
    if not inputs:
        raise ValueError(f"{table.path} has only the column {target!r}: a sample needs another one")
    if form == "arrays" and len(inputs) > 1:
        raise ValueError(f"{table.path} has several arrays besides {target!r}: name one with --inputs")
    if form != "window" and target in inputs:
        raise ValueError(f"column {target!r} is the target, and no input as well")
    task = options.task or choose_task(table, target, form, options.above)
    recipe = Recipe(form, task, inputs, target, above=options.above, horizon=options.horizon)
    recipe.window, recipe.max_length = options.window or 0, options.max_length
    if options.above is not None:
        recipe.classes = [f"not above {options.above:g}", f"above {options.above:g}"]
    return recipe


def split(table: Table, recipe: Recipe, options: argparse.Namespace) -> tuple[Any, Any, tuple[Any, Any]]:
    """Samples and targets to train on, and those held out: the last rows of a series, else rows drawn by the seed."""
    samples, targets = recipe.samples(table), recipe.targets(table)
    rows = table.good_rows(options.skip_bad_rows)
    if recipe.form == "window":
        if len(rows) < len(table):
            raise ValueError(f"{table.path} has bad rows, and a series cannot have gaps: correct them")
        return split_series(samples, targets, recipe, options)
    if len(rows) < 2:
        raise ValueError(f"{table.path} has {len(rows)} samples, training needs at least 2")
    order = np.random.default_rng(options.seed).permutation(rows)
    kept = max(1, len(order) - round(len(order) * options.validation))
    parts = [[pick(one, at) for one in (samples, targets)] for at in (order[:kept], order[kept:])]
    (x, y), (x_held, y_held) = parts
    if recipe.form == "text":
        recipe.words = Words.of("\n".join(x), options.words, lower=True).to_config()
    recipe.fit_inputs(x)
    recipe.fit_targets(pick(targets, rows) if recipe.task == "classification" else y)
    return recipe.prepared(x), recipe.numbered(y), (recipe.prepared(x_held), recipe.numbered(y_held))


def split_series(series: Any, target: Any, recipe: Recipe, options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Windows of the first rows, and windows whose targets lie in the last ones."""
    kept = len(series) - round(len(series) * options.validation)
    recipe.fit_inputs(series[:kept])
    recipe.fit_targets(target[:kept])
    x = recipe.prepared(series)
    y = scaled(target.reshape(-1, 1), recipe.scales["target"]).astype(np.float32)
    train = windowed(recipe, x[:kept], y[:kept])
    if len(series) - kept < recipe.horizon:
        return *train, (train[0][:0], train[1][:0])
    return *train, windowed(recipe, x[kept - recipe.window :], y[kept - recipe.window :])


def pick(values: Any, rows: Any) -> Any:
    """The values of some rows, of a list or an array."""
    return [values[row] for row in rows] if isinstance(values, list) else values[rows]


def build(recipe: Recipe, options: argparse.Namespace, outputs: int) -> Sequential:
    """The model: words to vectors, recurrent layers, and a dense one."""
    backend, modules = options.backend, []
    if recipe.form == "text":
        # Of the ids, 0 is padding and 1 the unknown word.
        entries = len(recipe.words["vocabulary"]) + 2
        modules.append(nn.Embedding(entries, options.embedding, mask_zero=True, backend=backend))
    for at in range(options.layers):
        last = at == options.layers - 1
        modules.append(
            LAYERS[options.layer](options.units, return_sequences=not last, dropout=options.dropout, backend=backend)
        )
    classes = len(recipe.classes)
    if recipe.task != "classification":
        head, loss, metrics = nn.Dense(outputs, backend=backend), "mse", ("mae",)
    elif classes == 2:
        head, loss, metrics = nn.Dense(1, "sigmoid", backend=backend), "binary_crossentropy", ("binary_accuracy",)
    else:
        head, loss = nn.Dense(classes, "softmax", backend=backend), "sparse_categorical_crossentropy"
        metrics = ("sparse_categorical_accuracy",)
    model = Sequential([*modules, head], seed=options.seed)
    made: Sequence[str] = metrics
    model.compile({"name": options.optimizer, "lr": options.lr}, loss, made, clip_norm=options.clip or None)
    return model
