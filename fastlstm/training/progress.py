"""The progress of a training: a bar in a terminal, a line every ten seconds in a file or a pipe."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..console import messages
from ..terminal import load
from .callbacks import Callback

if TYPE_CHECKING:
    from .loop import Loop

INTERVAL = 10.0  # seconds between lines
SHOWN = 20  # figures are means over so many last steps


class Progress(Callback):
    """Shows steps, figures and speed on standard error.

    Parameters
    ----------
    figures : function
        Takes the loop and returns the figures to show, by name, as text.
    per_step : int
        Units of a step, such as tokens.
    unit : str
        The unit's name.
    """

    def __init__(self, figures: Callable[[Loop], Mapping[str, str]], per_step: int = 1, unit: str = "steps") -> None:
        self.figures, self.per_step, self.unit = figures, per_step, unit
        self._bar: Any = None
        self._shown = self._began = 0.0  # times of the last line and of the beginning, in seconds
        self._at_shown = self._first = 0  # steps at the last line and at the beginning

    def on_train_begin(self, loop: Loop) -> None:
        """See `Callback`."""
        self._shown = self._began = time.monotonic()
        self._at_shown = self._first = loop.steps
        if messages.isatty():
            tqdm = load("tqdm", "TQDM_").tqdm
            columns = messages.columns()
            total = None if loop.last_step is None else loop.last_step * self.per_step
            self._bar = tqdm(
                initial=loop.steps * self.per_step,
                total=total,
                unit=f" {self.unit}",
                unit_scale=True,
                dynamic_ncols=columns > 0,
                ncols=None if columns else 80,  # default for a terminal of unknown width
                file=messages,
            )

    def on_batch_end(self, loop: Loop) -> None:
        """See `Callback`."""
        if self._bar is not None:
            if self._bar.update(self.per_step):  # true if the bar was drawn: its next drawing shows these figures
                self._describe(loop)
        elif time.monotonic() - self._shown >= INTERVAL:
            self._line(loop, self._shown, self._at_shown)

    def on_train_end(self, loop: Loop) -> None:
        """See `Callback`."""
        if self._bar is not None:
            self._describe(loop)
            self._bar.close()
            self._bar = None
        elif loop.steps > self._first:
            self._line(loop, self._began, self._first)

    def _describe(self, loop: Loop) -> None:
        self._bar.set_description(self._step(loop), refresh=False)
        self._bar.set_postfix(self.figures(loop), refresh=False)

    def _line(self, loop: Loop, since: float, steps: int) -> None:
        now = time.monotonic()
        speed = (loop.steps - steps) * self.per_step / max(now - since, 1e-9)
        shown = [self._step(loop), *(f"{name}={value}" for name, value in self.figures(loop).items())]
        messages.write(", ".join([*shown, f"{speed:,.0f} {self.unit}/s"]) + "\n")
        messages.flush()
        self._shown, self._at_shown = now, loop.steps

    def _step(self, loop: Loop) -> str:
        return f"step {loop.steps}" + ("" if loop.last_step is None else f"/{loop.last_step}")


def mean_of_last(values: list[float]) -> float:
    """Mean of the last values, NaN without any."""
    return sum(values) / len(values) if values else math.nan
