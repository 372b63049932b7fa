"""Tables from files: CSV, TSV, NPZ and, where pyarrow is installed, Parquet. What is wrong is told by its line."""

from __future__ import annotations

import csv
import io
import os
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .corpus import read_text
from .layout import Array

KINDS = ("csv", "tsv", "npz", "parquet")  # by the file's ending
NAMED = 5  # further bad rows that a message names
HEADERS = ("auto", "yes", "no")


@dataclass
class Table:
    """Columns of equal length.

    Parameters
    ----------
    path : str
    columns : dict
        By name: a list of str (CSV, TSV), or an array (N, ...) (NPZ, Parquet).
    places : list of int, or None
        The line of each row in the file; None where rows have no lines, and so are counted from 1.
    problems : dict
        What is wrong, by row; `checked` refuses these rows or leaves them out.
    """

    path: str
    columns: dict[str, Any]
    places: list[int] | None = None
    problems: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def where(self, row: int) -> str:
        """A row by its line in the file, or by its number."""
        return f"row {row + 1}" if self.places is None else f"line {self.places[row]}"

    def name(self, given: str) -> str:
        """The name of a column that is given by its name or by its number, counted from 1.

        Raises
        ------
        ValueError
            There is no such column; the message lists all.
        """
        names = list(self.columns)
        if given in names:
            return given
        if given.isdecimal() and 1 <= int(given) <= len(names):
            return names[int(given) - 1]
        known = ", ".join(names[:40]) + (" ..." if len(names) > 40 else "")
        raise ValueError(f"{self.path} has no column {given!r}; it has {known}: give a name, or a number from 1 on")

    def numbers(self, name: str) -> Array:
        """A column as float64, (N, ...); a cell that is no finite number is a problem of its row, and NaN."""
        cells = self.columns[name]
        if isinstance(cells, np.ndarray) and cells.dtype.kind in "fiub":
            values = cells.astype(np.float64)
        else:
            values = np.array([as_number(cell) for cell in cells], np.float64)
        wrong = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1) if values.size else np.zeros(0, bool)
        for row in np.flatnonzero(wrong).tolist():
            cell = cells[row] if np.ndim(cells[row]) == 0 else "an array with NaN or infinity"
            self.problems.setdefault(row, f"column {name!r} has {shortened(cell)}, which is no finite number")
        return values

    def texts(self, name: str) -> list[str]:
        """A column as texts; an empty one is a problem of its row."""
        cells = self.columns[name]
        if isinstance(cells, np.ndarray) and cells.ndim > 1:
            raise ValueError(f"{self.path}: column {name!r} has shape {cells.shape}, expected one text a row")
        values = ["" if cell is None else str(cell) for cell in cells]
        for row, text in enumerate(values):
            if not text.strip():
                self.problems.setdefault(row, f"column {name!r} is empty")
        return values

    def is_numeric(self, name: str) -> bool:
        """Whether most cells of a column are numbers: the others are problems then, and not another class."""
        cells = self.columns[name]
        if isinstance(cells, np.ndarray) and cells.dtype.kind in "fiub":
            return True
        return bool(np.isfinite([as_number(cell) for cell in cells]).mean() > 0.5) if len(cells) else False

    def good_rows(self, skip: bool = False) -> Array:
        """The rows without a problem, (K,) indices in order.

        Parameters
        ----------
        skip : bool
            Leave the others out, with a warning, instead of refusing the file.

        Raises
        ------
        ValueError
            A row has a problem; the message names the file, the first lines, what is wrong and the cure. Or no row is
            left.
        """
        bad = sorted(self.problems)
        if bad:
            more = ", ".join(self.where(row) for row in bad[1 : NAMED + 1]) + (" ..." if len(bad) > NAMED + 1 else "")
            what = f"{self.path} {self.where(bad[0])}: {self.problems[bad[0]]}"
            what += f" (and {len(bad) - 1} more bad rows: {more})" if more else ""
            if not skip:
                raise ValueError(f"{what}. Correct them, or leave them out with --skip-bad-rows")
            warnings.warn(f"{len(bad)} of {len(self)} rows left out; the first is {what}")
        rows = np.setdiff1d(np.arange(len(self)), bad)
        if not len(rows):
            raise ValueError(f"{self.path} has no row of data")
        return rows


def as_number(cell: Any) -> float:
    """The number that a cell holds, NaN where it holds none."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")


def shortened(cell: Any) -> str:
    """A cell as a message shows it."""
    text = repr(str(cell)) if not isinstance(cell, str) else repr(cell)
    return text if len(text) <= 40 else text[:36] + "...'"


def kind_of(path: str | os.PathLike[str]) -> str:
    """The kind of a table file, by its ending.

    Raises
    ------
    ValueError
        It is none of `KINDS`.
    """
    kind = Path(path).suffix.lower().lstrip(".")
    if kind not in KINDS:
        raise ValueError(f"{path} is none of the tables that are read: its ending must be one of {', '.join(KINDS)}")
    return kind


def read_table(path: str | os.PathLike[str], encoding: str | None = None, header: str = "auto") -> Table:
    """Read a table.

    Parameters
    ----------
    path : path
        Its ending says the kind, see `KINDS`.
    encoding : str, optional
        Of CSV and TSV, as for `corpus.read_text`.
    header : {"auto", "yes", "no"}
        Whether the first line of a CSV or TSV file has the columns' names; "auto": where none of its cells is a number
        or empty. Columns without names are called 1, 2 and so on.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is none of these files, or it is damaged.
    ImportError
        Parquet without pyarrow; the message says how to get it.
    """
    name, kind = os.fspath(path), kind_of(path)
    if header not in HEADERS:
        raise ValueError(f"header must be one of {', '.join(HEADERS)}, got {header!r}")
    if kind == "npz":
        return read_npz(name)
    return read_parquet(name) if kind == "parquet" else read_csv(name, kind, encoding, header)


def read_csv(path: str, kind: str, encoding: str | None, header: str) -> Table:
    """A CSV file, with quoted cells, separated by commas or semicolons; or a TSV file, without quotes."""
    text = read_text(path, encoding)
    first = text.partition("\n")[0]
    if kind == "tsv":
        reader = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(io.StringIO(text), delimiter=";" if first.count(";") > first.count(",") else ",")
    before = csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num}: {error}") from error
    finally:
        csv.field_size_limit(before)
    if not lines:
        raise ValueError(f"{path} is empty: a table has a row for each sample")
    names = [cell.strip() for cell in lines[0][1]]
    plain = all(names) and not any(np.isfinite(as_number(cell)) for cell in names)
    if header == "yes" or (header == "auto" and plain):
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{path} line {lines[0][0]}: two columns are called {twice[0]!r}: give each its own name")
        lines = lines[1:]
    else:
        names = [str(at) for at in range(1, len(names) + 1)]
    table = Table(path, {name: [] for name in names}, [line for line, _ in lines])
    for at, (_, row) in enumerate(lines):
        if len(row) != len(names):
            table.problems[at] = f"has {len(row)} cells, the first line has {len(names)}"
        for name, cell in zip(names, [*row, *[""] * len(names)], strict=False):
            table.columns[name].append(cell)
    return table


def read_npz(path: str) -> Table:
    """The arrays of an NPZ file; objects, which could run code, are refused."""
    with open(path, "rb") as file:  # errors of the system name the file
        is_zip = zipfile.is_zipfile(file)
    try:
        if not is_zip:
            raise zipfile.BadZipFile("it is no ZIP archive")
        with np.load(path, allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in arrays.files}
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        pickled = "allow_pickle" in str(error)
        cure = "holds Python objects, which could run code" if pickled else f"is no NPZ file ({error})"
        raise ValueError(f"{path} {cure}: save arrays of numbers with numpy.savez") from error
    if not columns:
        raise ValueError(f"{path} holds no array")
    return Table(path, columns)


def read_parquet(path: str) -> Table:
    """The columns of a Parquet file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{path} is Parquet, which needs pyarrow ({error}). "
            'To get it: pip install "fastlstm[parquet]"; or save it as CSV'
        ) from error
    with open(path, "rb") as file:  # errors of the system name the file
        try:
            found = parquet.read_table(file)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path} is no Parquet file: {' '.join(str(error).split())}") from error
    columns: dict[str, Any] = {}
    for name, column in zip(found.column_names, found.columns, strict=True):
        numeric = pyarrow.types.is_floating(column.type) or pyarrow.types.is_integer(column.type)
        columns[name] = (
            column.cast(pyarrow.float64(), safe=False).to_numpy() if numeric else [c.as_py() for c in column]
        )
    return Table(path, columns)


def one_length(table: Table, names: Sequence[str]) -> None:
    """Raise ValueError unless the arrays of these columns have as many rows as one another."""
    lengths = {name: len(table.columns[name]) if np.ndim(table.columns[name]) else 0 for name in names}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise ValueError(f"{table.path}: the arrays have different numbers of rows ({shown}): one for each sample")
