"""What becomes of a table before a model sees it, and of its outputs after: `Recipe`, kept in the model file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .forecast import StandardScaler, windows
from .layout import Array
from .tables import Table, one_length
from .text import Words

FORMS = ("text", "cells", "window", "arrays")
TASKS = ("classification", "regression", "forecast")
MOST_CLASSES = 20  # different whole numbers in a target that is taken for classes unless the task is given


@dataclass
class Recipe:
    """How samples and targets are made of a table.

    Parameters
    ----------
    form : {"text", "cells", "window", "arrays"}
        A sample is a text, read as words; the cells of a row, one after the other; a window of rows, in order of time;
        or an entry of an array (N, T, I).
    task : {"classification", "regression", "forecast"}
    inputs : list of str
        The columns of a sample.
    target : str
    classes : list of str
        The labels, in the order of their ids.
    above : float, optional
        The target is a number, and the classes are whether it is above this one.
    window, horizon : int
        Rows that a forecast is made from, and rows that are forecast.
    max_length : int
        The number of words read from the beginning of a text.
    words : dict
        Configuration of the vocabulary, for texts.
    scales : dict
        (offset, scale) of inputs and target.
    """

    form: str
    task: str
    inputs: list[str]
    target: str
    classes: list[str] = field(default_factory=list)
    above: float | None = None
    window: int = 0
    horizon: int = 1
    max_length: int = 0
    words: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, Any] = field(default_factory=dict)

    def to_config(self) -> dict[str, Any]:
        """For a file, as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: Any) -> Recipe:
        """What `to_config` gave.

        Raises
        ------
        ValueError
            It is no recipe.
        """
        try:
            recipe = cls(**config)
        except TypeError as error:
            raise ValueError(f"its recipe of data does not fit: {error}") from error
        if recipe.form not in FORMS or recipe.task not in TASKS:
            raise ValueError(f"its recipe of data has form {recipe.form!r} and task {recipe.task!r}")
        return recipe

    # ---------------------------------------------------------------------------------------------------------- samples
    def samples(self, table: Table) -> Any:
        """The samples of a table, unscaled: a list of texts, or an array (N, T, I), (T, V) for windows."""
        names = [table.name(name) for name in self.inputs]
        one_length(table, names)
        if self.form == "text":
            return table.texts(names[0])
        if self.form == "arrays":
            x = table.numbers(names[0])
            if x.ndim not in (2, 3):
                raise ValueError(f"{table.path}: array {names[0]!r} has shape {x.shape}, expected (N, T) or (N, T, I)")
            return x[..., None] if x.ndim == 2 else x
        columns = [table.numbers(name) for name in names]
        wide = next((name for name, c in zip(names, columns, strict=True) if c.ndim > 1), None)
        if wide is not None:
            raise ValueError(f"{table.path}: column {wide!r} has several numbers a row; take one array as --inputs")
        x = np.stack(columns, axis=1)
        return x if self.form == "window" else x[..., None]

    def fit_inputs(self, samples: Any) -> None:
        """Find the vocabulary or the scales: of the samples to train on, and of no others."""
        if self.form != "text":
            flat = samples.reshape(-1, samples.shape[-1])
            self.scales["inputs"] = scale_of(flat)

    def prepared(self, samples: Any) -> Any:
        """Samples as the model takes them: lists of word ids, or float32 arrays."""
        if self.form == "text":
            words = Words.from_config(self.words)
            # 1 is added, for id 0 pads; a text without a word is one unknown word.
            ids = [words.encode(text)[: self.max_length].astype(np.int32) + 1 for text in samples]
            return [one if len(one) else np.ones(1, np.int32) for one in ids]
        return scaled(samples, self.scales["inputs"]).astype(np.float32)

    # ---------------------------------------------------------------------------------------------------------- targets
    def targets(self, table: Table) -> Any:
        """The targets of a table as they stand there: labels as str, or numbers (N,)."""
        name = table.name(self.target)
        if self.task == "classification" and self.above is None:
            labels = table.columns[name]
            if isinstance(labels, np.ndarray) and labels.dtype.kind in "fiub":
                return [number_label(value) for value in table.numbers(name).tolist()]
            return [text.strip() for text in table.texts(name)]
        values = table.numbers(name)
        return [self.classes[int(v > self.above)] for v in values.tolist()] if self.above is not None else values

    def fit_targets(self, values: Any) -> None:
        """Find the classes, or the scale: of the targets to train on."""
        if self.task != "classification":
            self.scales["target"] = scale_of(np.asarray(values).reshape(len(values), -1))
        elif not self.classes:
            self.classes = sorted(set(values), key=lambda label: (as_sorted(label), label))
        if self.task == "classification" and len(self.classes) < 2:
            raise ValueError(f"column {self.target!r} has only the class {self.classes[0]!r}: nothing can be learnt")

    def numbered(self, values: Any) -> Array:
        """Targets as the loss takes them."""
        if self.task != "classification":
            return scaled(np.asarray(values, np.float64).reshape(len(values), -1), self.scales["target"]).astype("f4")
        place = {label: i for i, label in enumerate(self.classes)}
        strange = sorted({value for value in values if value not in place})
        if strange:
            raise ValueError(f"column {self.target!r} has the class {strange[0]!r}, which was not trained on")
        ids = np.array([place[value] for value in values])
        return ids.astype(np.float32)[:, None] if len(self.classes) == 2 else ids

    # ---------------------------------------------------------------------------------------------------------- outputs
    def read_out(self, y: Array) -> list[dict[str, Any]]:
        """What the model's outputs (N, K) say, a row each."""
        if self.task == "classification":
            p = np.column_stack([1 - y, y]) if len(self.classes) == 2 else y
            return [{"class": self.classes[int(row.argmax())], "probability": float(row.max())} for row in p]
        offset, scale = (np.asarray(one) for one in self.scales["target"])
        values = y.astype(np.float64) * scale + offset
        if self.task == "forecast":
            return [{"step": at, self.target: float(v)} for at, v in enumerate(values[-1].tolist(), 1)]
        return [{self.target: float(row[0])} for row in values]


def windowed(recipe: Recipe, series: Array, target: Array) -> tuple[Array, Array]:
    """Windows (N, window, V) of a prepared series (T, V), and scaled targets (N, horizon)."""
    both = np.concatenate([series, target.reshape(-1, 1)], axis=1)
    x, y = windows(both, recipe.window, recipe.horizon, targets=series.shape[1])
    return x[:, :, :-1], y[:, :, 0]


def choose_task(table: Table, target: str, form: str, above: float | None) -> str:
    """The task that a target column asks for."""
    if form == "window":
        return "forecast"
    if above is not None or not table.is_numeric(target):
        return "classification"
    values = table.numbers(target)
    finite = values[np.isfinite(values)]
    return "classification" if len(set(finite.tolist())) <= MOST_CLASSES and (finite % 1 == 0).all() else "regression"


def scale_of(rows: Array) -> list[list[float]]:
    """(offset, scale) of each column of (N, V)."""
    fitted = StandardScaler().fit(rows)
    assert fitted.offset is not None and fitted.scale is not None
    return [fitted.offset.tolist(), fitted.scale.tolist()]


def scaled(x: Array, how: Any) -> Array:
    """x (..., V) by an (offset, scale) of `scale_of`."""
    offset, scale = (np.asarray(one, np.float64) for one in how)
    result: Array = (x - offset) / scale
    return result


def number_label(value: float) -> str:
    """A number as a label: 3 and not 3.0."""
    return str(int(value)) if np.isfinite(value) and value == int(value) else str(value)


def as_sorted(label: str) -> tuple[int, float]:
    """Numbers in order of size before other labels."""
    try:
        return 0, float(label)
    except ValueError:
        return 1, 0.0


def recipe_in(notes: Mapping[str, Any]) -> Recipe:
    """The recipe in a model file's notes.

    Raises
    ------
    ValueError
        There is none: the model was not made by `fastlstm fit`.
    """
    if "data" not in notes:
        raise ValueError("it has no recipe of data, as `fastlstm fit` writes one: use the model in Python")
    return Recipe.from_config(notes["data"])
