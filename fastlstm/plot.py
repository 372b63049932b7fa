"""Pictures. matplotlib is loaded only when one is drawn."""

from __future__ import annotations

import io as memory
import os
from pathlib import Path
from typing import Any

import numpy as np

from .files import check_writable, write_atomically
from .layout import Array
from .train import History, perplexity

TRAINING, HELD_OUT, GRID = "#4c72b0", "#c44e52", "#d9d9d9"  # blue and red that also differ in brightness
TICKS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000)  # of perplexity, about evenly far apart


def figure() -> Any:
    """An empty matplotlib figure that no window system has to show.

    Raises
    ------
    ImportError
        matplotlib is absent; the message says how to get it.
    """
    try:
        from matplotlib.figure import Figure  # draws with Agg; pyplot would look for a window system
    except ImportError as error:
        raise ImportError(f'plots need matplotlib ({error}). To get it: pip install "fastlstm[plot]"') from error
    return Figure(figsize=(8, 4.5), layout="constrained")


def check(path: str | os.PathLike[str]) -> None:
    """Raise what drawing to `path` would raise: to be asked before the work, not after it.

    Raises
    ------
    ImportError, OSError, ValueError
    """
    kinds = figure().canvas.get_supported_filetypes()
    if Path(path).suffix.lstrip(".").lower() not in kinds:
        raise ValueError(f"cannot draw {path}: its ending must be one of {', '.join(sorted(kinds))}")
    check_writable(path)


def smooth(values: Array) -> Array:
    """Mean of the values before each place: of a tenth of them, so that the steep beginning stays steep, 50 at most."""
    ends = np.arange(1, len(values) + 1)
    begins = ends - np.clip(ends // 10, 1, 50)
    total = np.concatenate(([0.0], np.cumsum(values)))
    means: Array = (total[ends] - total[begins]) / (ends - begins)
    return means


def logarithm(values: Any) -> Any:
    """log, defined for the 0 that matplotlib tries too."""
    return np.log(np.maximum(values, np.finfo(float).tiny))


def loss_curve(history: History, path: str | os.PathLike[str], title: str = "") -> None:
    """Draw the training loss, smoothed, and the held-out loss; the right axis tells both as perplexity.

    Parameters
    ----------
    history : History
    path : path
        Its ending says the kind of picture: .png, .svg, .pdf and others.
    title : str

    Raises
    ------
    ImportError, OSError, ValueError
        As `check`.
    """
    check(path)
    fig = figure()
    axes = fig.add_subplot()
    losses = np.array(history.losses)
    steps = np.arange(1, len(losses) + 1)
    if len(losses):
        axes.plot(steps, losses, color=TRAINING, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(losses), color=TRAINING, linewidth=1.8, label="training")
    if history.held_out:
        at, held_out = zip(*history.held_out, strict=True)
        label = f"held out (last perplexity {perplexity(held_out[-1]):.2f})"
        axes.plot(at, held_out, color=HELD_OUT, linewidth=1.8, marker="o", markersize=4, label=label)
    axes.set(xlabel="step", ylabel="loss (nats per character)", title=title)
    axes.set_xlim(left=0)
    axes.set_ylim(*axes.get_ylim())  # as the loss wants it, whatever ticks the other axis has
    right = axes.secondary_yaxis("right", functions=(np.exp, logarithm))
    right.set_yticks(TICKS, map(str, TICKS))
    right.set_ylabel("perplexity")
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines["top"].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    picture = memory.BytesIO()
    fig.savefig(picture, format=Path(path).suffix.lstrip(".").lower(), dpi=150)
    write_atomically(path, picture.getvalue())
