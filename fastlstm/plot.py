"""Pictures: loss curves, and gates over a sequence as heat maps. matplotlib is loaded only when one is drawn."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .files import check_writable, write_atomically
from .layout import Array
from .metrics import perplexity
from .outputs import carries, holds_something
from .terminal import load
from .trace import FROM_0_TO_1, NAMES, Trace
from .training import Callback, History, Loop

Name = str | os.PathLike[str]
TRAINING, HELD_OUT, GRID = "#4c72b0", "#c44e52", "#d9d9d9"  # blue and red of different brightness; grey
MARK = "fastlstm loss curve"  # an entry in a picture's metadata
MARKED = {"png": "Software", "svg": "Creator", "pdf": "Creator", "ps": "Creator", "eps": "Creator"}
ROOM = 1 << 17  # approximate bytes that curves add to an empty picture
TICKS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000)  # perplexities, about even on a log scale


def figure(size: tuple[float, float] = (8, 4.5)) -> Any:
    """An empty matplotlib figure that no window system has to show.

    Parameters
    ----------
    size : (width, height)
        In inches.

    Raises
    ------
    ImportError
        matplotlib is absent; the message says how to get it.
    """
    try:
        load("matplotlib", "MPLBACKEND")
        from matplotlib.figure import Figure  # draws with Agg; pyplot would look for a window system
    except ImportError as error:
        raise ImportError(f'plots need matplotlib ({error}). To get it: pip install "fastlstm[plot]"') from error
    return Figure(figsize=size, layout="constrained")


@contextmanager
def own_style() -> Iterator[None]:
    """Within this context matplotlib's defaults hold, not the user's matplotlibrc, which may need TeX and fail late."""
    figure()  # raises if matplotlib is missing
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def kind_of(path: Name) -> str:
    """The kind of picture: a file's ending."""
    return Path(path).suffix.lstrip(".").lower()


def check_kind(path: Name) -> None:
    """Raise ImportError without matplotlib, ValueError if it cannot draw pictures with the file's ending."""
    kinds = figure().canvas.get_supported_filetypes()
    if kind_of(path) not in kinds:
        raise ValueError(f"cannot draw {path}: its ending must be one of {', '.join(sorted(kinds))}")


def drawn(fig: Any, path: Name) -> bytes:
    """The bytes of a picture file of this name; with `MARK` in its metadata if the kind has metadata."""
    picture, kind = io.BytesIO(), kind_of(path)
    key = MARKED.get(kind)
    mark = {"metadata": {key: MARK}} if key else {}
    fig.savefig(picture, format=kind, dpi=150, **mark)
    return picture.getvalue()


@own_style()
def check(path: Name, replace: bool = False) -> None:
    """Raise before the work what drawing to `path` would raise after it.

    Parameters
    ----------
    path : path
    replace : bool
        Whether any file may be replaced. Without it only a picture of fastlstm.

    Raises
    ------
    ImportError
        matplotlib is absent.
    OSError
        The file cannot be written.
    ValueError
        matplotlib cannot draw this kind, or the file exists and is no picture of fastlstm.
    """
    check_kind(path)
    try:
        size = len(drawn(figure(), path))
    except Exception as error:  # the kind of picture needs a program or a library that is missing
        raise ValueError(f"cannot draw {path}: {type(error).__name__}: {error}. Choose another ending") from error
    check_writable(path, ROOM + size)
    if not replace and holds_something(path) and not carries(path, MARK.encode()):
        raise ValueError(f"{path} exists and is no picture of fastlstm: give another name, or --force to replace it")


def smooth(values: Array) -> Array:
    """Moving average over a tenth of the values so far, at most 50: the steep beginning of a curve stays steep."""
    ends = np.arange(1, len(values) + 1)
    begins = ends - np.clip(ends // 10, 1, 50)
    total = np.concatenate(([0.0], np.cumsum(values)))
    means: Array = (total[ends] - total[begins]) / (ends - begins)
    return means


def logarithm(values: Any) -> Any:
    """log, without a warning for the 0 at which matplotlib tests it."""
    return np.log(np.maximum(values, np.finfo(float).tiny))


class LossCurve(Callback):
    """Draws the loss curve at the end of a run, unless an error ended it.

    Parameters
    ----------
    path, title, unit
        See `loss_curve`.
    """

    def __init__(self, path: Name, title: str = "", unit: str = "character") -> None:
        self.path, self.title, self.unit = path, title, unit

    def on_train_end(self, loop: Loop) -> None:
        """See `Callback`."""
        if loop.error is None:
            loss_curve(loop.history, self.path, self.title, self.unit)


@own_style()
def loss_curve(history: History, path: Name, title: str = "", unit: str = "character") -> None:
    """Draw the training loss, smoothed, and the held-out loss; the right axis tells both as perplexity.

    Parameters
    ----------
    history : History
        Its columns ``loss`` and ``held_out``.
    path : path
        Its ending is the kind of picture: .png, .svg, .pdf and others.
    title : str
    unit : str
        What a token is called.

    Raises
    ------
    ImportError, OSError, ValueError
        As `check`.
    """
    check_kind(path)
    fig = figure()
    axes = fig.add_subplot()
    if points := history.points("loss"):
        steps, losses = np.array(points).T
        axes.plot(steps, losses, color=TRAINING, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(losses), color=TRAINING, linewidth=1.8, label="training")
    if points := history.points("held_out"):
        at, held_out = zip(*points, strict=True)
        label = f"held out (last perplexity {perplexity(held_out[-1]):.2f})"
        axes.plot(at, held_out, color=HELD_OUT, linewidth=1.8, marker="o", markersize=4, label=label)
    axes.set(xlabel="step", ylabel=f"loss (nats per {unit})", title=title)
    axes.set_xlim(left=0)
    axes.set_ylim(*axes.get_ylim())  # fixes the range of the loss before the other axis adds its ticks
    right = axes.secondary_yaxis("right", functions=(np.exp, logarithm))
    right.set_yticks(TICKS, map(str, TICKS))
    right.set_ylabel("perplexity")
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines["top"].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    write_atomically(path, drawn(fig, path))


@own_style()
def epoch_curve(history: History, path: Name, title: str = "") -> None:
    """Draw loss and validation loss by epoch; and, below them, the other figures but the learning rate.

    Parameters
    ----------
    history : History
        Of `Sequential.fit`.
    path : path
        Its ending says the kind of picture.
    title : str

    Raises
    ------
    ImportError, OSError, ValueError
    """
    check_kind(path)
    own = [name for name in history.columns if name != "lr" and not name.startswith("val_")]
    figures = [name for name in own if name != "loss"]
    panels = ["loss", *figures][:4]
    fig = figure((8, 1.5 + 3 * len(panels)))
    for at, name in enumerate(panels, 1):
        axes = fig.add_subplot(len(panels), 1, at)
        for column, colour, label in ((name, TRAINING, "training"), (f"val_{name}", HELD_OUT, "held out")):
            if points := history.points(column):
                text = f"{label} (last {points[-1][1]:.4g})"
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.8, marker="o", markersize=3, label=text)
        axes.set(ylabel=name.replace("_", " "), title=title if at == 1 else "")
        axes.grid(color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
        if at == len(panels):
            axes.set_xlabel("epoch")
    write_atomically(path, drawn(fig, path))


MOST_LABELS = 120  # steps that are labelled one by one
PANELS = {"lstm": ("i", "f", "o", "c"), "gru": ("r", "z", "n", "h"), "rnn": ("h",)}  # of a picture, by kind


@own_style()
def gates(found: Trace, path: Name) -> None:
    """Draw gates and state over a sequence as heat maps: a row for each unit, a column for each step.

    Parameters
    ----------
    found : Trace
        Of `trace.trace`. Of an LSTM input, forget and output gate and cell state are drawn.
    path : path
        Its ending says the kind of picture.

    Raises
    ------
    ImportError, OSError, ValueError
    """
    check_kind(path)
    names = PANELS[found.kind]
    T, H = len(found), found.units
    labelled = T <= MOST_LABELS
    size = (min(20.0, max(7.0, 2.2 + T * (0.16 if labelled else 0.05))), 1.0 + len(names) * min(3.2, 1.2 + H * 0.04))
    fig = figure(size)
    rows = fig.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(rows, names, strict=True):
        low, high = found.range_of(name)
        colours = "Blues" if name in FROM_0_TO_1 else "RdBu"
        image = axes.imshow(
            found.parts[name].T, aspect="auto", interpolation="nearest", vmin=low, vmax=high, cmap=colours
        )
        axes.set_ylabel(f"{NAMES[name]}\nunit")
        axes.yaxis.get_major_locator().set_params(integer=True)
        fig.colorbar(image, ax=axes, pad=0.01, fraction=0.05, extend="neither" if low == 0 else "both")
        axes.tick_params(axis="x", length=0)
    if labelled and found.is_text:
        shown = [label.replace("\n", "⏎").replace("\t", "⇥").replace("$", "\\$") for label in found.labels]
        long = max(map(len, shown), default=1) > 2
        rows[-1].set_xticks(range(T), shown, rotation=90 if long else 0, fontsize=8, family="monospace")
    else:
        rows[-1].set_xlabel("step")
    fig.suptitle(found.title.replace("$", "\\$"), fontsize=10)
    write_atomically(path, drawn(fig, path))
