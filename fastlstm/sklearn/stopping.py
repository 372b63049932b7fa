"""When a fit ends: the rule of scikit-learn's MLPClassifier, as a callback."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..training.callbacks import Callback

if TYPE_CHECKING:
    from ..training.loop import Loop


class Convergence(Callback):
    """Ends a training whose loss, or validation score, has not become better for some epochs.

    Parameters
    ----------
    tol : float
        By how much an epoch must be better than the best one to count.
    patience : int
        Epochs in a row that may not count.
    score : function of no argument, optional
        The score on held-out samples; without one the training loss decides.

    Attributes
    ----------
    losses, scores : list of float
        One for each epoch.
    best : float
        The lowest loss, or the highest score.
    converged : bool
        Whether this rule ended the training.
    parameters : dict, optional
        Those of the epoch with the best score.
    """

    def __init__(self, tol: float, patience: float, score: Callable[[], float] | None = None) -> None:
        self.tol, self.patience, self.score = tol, patience, score
        self.losses: list[float] = []
        self.scores: list[float] = []
        self.best = math.inf if score is None else -math.inf
        self.converged = False
        self.parameters: dict[str, Any] | None = None
        self._waited = 0

    def on_epoch_end(self, loop: Loop) -> None:
        """See `Callback`."""
        task: Any = loop.task
        self.losses.append(loop.history.last("loss")[0])
        if self.score is None:
            counts = self.losses[-1] <= self.best - self.tol
            self.best = min(self.best, self.losses[-1])
        else:
            self.scores.append(self.score())
            counts = self.scores[-1] >= self.best + self.tol
            if self.scores[-1] > self.best:
                self.best, self.parameters = self.scores[-1], task.model.state_dict()
        self._waited = 0 if counts else self._waited + 1
        if self._waited > self.patience:
            self.converged = True
            loop.stop(f"no better by {self.tol:g} for {self._waited} epochs")
