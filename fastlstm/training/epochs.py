"""The progress of `fit`: a bar for each epoch in a terminal, a line every ten seconds in a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..console import messages
from .callbacks import Callback

if TYPE_CHECKING:
    from .loop import Loop

INTERVAL = 10.0  # least seconds between two lines; the last epoch always has one


class EpochProgress(Callback):
    """Shows each epoch's figures on standard error.

    Parameters
    ----------
    results : function
        The epoch's figures so far, by name.
    steps : int, optional
        Batches of an epoch, if known.
    epochs : int
        Total number of epochs.
    """

    def __init__(self, results: Callable[[], Mapping[str, float]], steps: int | None, epochs: int) -> None:
        self.results, self.steps, self.epochs = results, steps, epochs
        self._bar: Any = None
        self._began = self._shown = 0.0  # seconds
        self._batches = 0  # trained on in this epoch

    def on_train_begin(self, loop: Loop) -> None:
        """See `Callback`."""
        self._began = time.monotonic()
        self._shown = self._began - INTERVAL  # the first epoch has a line, however short

    def on_epoch_begin(self, loop: Loop) -> None:
        """See `Callback`."""
        self._batches = 0
        if messages.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.steps, unit=" batches", dynamic_ncols=True, file=messages)
            self._bar.set_description(f"epoch {loop.epochs + 1}/{self.epochs}", refresh=False)

    def on_batch_end(self, loop: Loop) -> None:
        """See `Callback`."""
        self._batches += 1
        if self._bar is not None:
            if self._bar.update():
                self._bar.set_postfix({n: f"{v:.4g}" for n, v in self.results().items()}, refresh=False)
        elif time.monotonic() - max(self._shown, self._began) >= INTERVAL and self._batches != self.steps:
            of = "" if self.steps is None else f"/{self.steps}"
            self._line(f"epoch {loop.epochs + 1}/{self.epochs}, batch {self._batches}{of}", self.results())

    def on_epoch_end(self, loop: Loop) -> None:
        """See `Callback`."""
        figures = {name: value[0] for name in loop.history.columns if (value := loop.history.last(name))}
        if self._bar is not None:
            self._bar.set_postfix({n: f"{v:.4g}" for n, v in figures.items()}, refresh=True)
            self._close()
        elif loop.epochs == self.epochs or time.monotonic() - self._shown >= INTERVAL:
            self._line(f"epoch {loop.epochs}/{self.epochs}", figures)

    def on_train_end(self, loop: Loop) -> None:
        """See `Callback`."""
        self._close()

    def _line(self, where: str, figures: Mapping[str, float]) -> None:
        messages.write(f"{where}: {', '.join(f'{name} {value:.4g}' for name, value in figures.items())}\n")
        messages.flush()
        self._shown = time.monotonic()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
