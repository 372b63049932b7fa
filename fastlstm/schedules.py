"""Learning rates that change over time, by PyTorch's names and formulas.

A schedule is made after its optimiser, whose learning rate at that moment is the base; `step` is called after each
step of the optimiser, or each epoch, and sets ``optimizer.lr``. All but `ReduceLROnPlateau` are closed formulas of the
number of steps taken, so that number is all that a checkpoint has to keep, and a resumed run has the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from .layout import Array
from .optim import Optimizer
from .validation import is_real, number, positive


def checked_state(d: Any, own: Mapping[str, Array], what: object) -> dict[str, float]:
    """The numbers of a `state_dict`, or an error if any of them does not fit."""
    if not isinstance(d, Mapping):
        raise TypeError(f"a state_dict is a mapping from names to numbers, got {type(d).__name__}")
    wrong = [f"missing: {name}" for name in own if name not in d] + [f"unexpected: {n}" for n in d if n not in own]
    new = {name: np.asarray(value) for name, value in d.items() if name in own}
    wrong += [f"no number: {name} {a!r}" for name, a in new.items() if a.size != 1 or not is_real(a.dtype)]
    if wrong:
        raise RuntimeError(f"state does not fit {type(what).__name__}:\n  " + "\n  ".join(wrong))
    return {name: a.item() for name, a in new.items()}


class Schedule:
    """Base of the schedules whose learning rate depends on the number of steps alone.

    Parameters
    ----------
    optimizer : Optimizer
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a fastlstm optimiser, got {optimizer!r}")
        self.optimizer, self.base_lr, self.steps = optimizer, optimizer.lr, 0
        optimizer.lr = self.lr_of(0)

    def lr_of(self, steps: int) -> float:
        """The learning rate after `steps` steps."""
        raise NotImplementedError

    def step(self) -> None:
        """Set the optimiser's lr for the next step or epoch."""
        self.steps += 1
        self.optimizer.lr = self.lr_of(self.steps)

    def state_dict(self) -> dict[str, Array]:
        """The state from which a later run continues, with a schedule made of the same arguments."""
        return {"steps": np.array(self.steps, np.int64), "base_lr": np.array(self.base_lr, np.float64)}

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`; sets the optimiser's lr too.

        Raises
        ------
        TypeError
            d is no mapping; nothing has changed then.
        RuntimeError
            Keys or values do not fit; nothing has changed then.
        """
        new = checked_state(d, self.state_dict(), self)
        self.steps, self.base_lr = int(new["steps"]), float(new["base_lr"])
        self.optimizer.lr = self.lr_of(self.steps)


class StepLR(Schedule):
    """lr * gamma every `step_size` steps.

    Parameters
    ----------
    optimizer : Optimizer
    step_size : int
    gamma : float
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size, self.gamma = positive(step_size, "step_size"), number(gamma, "gamma")
        super().__init__(optimizer)

    def lr_of(self, steps: int) -> float:
        """See `Schedule`."""
        return self.base_lr * self.gamma ** (steps // self.step_size)


class CosineAnnealingLR(Schedule):
    """From lr to `eta_min` and back along a cosine of period 2 `T_max` (Loshchilov & Hutter 2017).

    Parameters
    ----------
    optimizer : Optimizer
    T_max : int
        Steps to the minimum.
    eta_min : float
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max, self.eta_min = positive(T_max, "T_max"), number(eta_min, "eta_min")
        super().__init__(optimizer)

    def lr_of(self, steps: int) -> float:
        """See `Schedule`."""
        return self.eta_min + (self.base_lr - self.eta_min) * (1 + math.cos(math.pi * steps / self.T_max)) / 2


class LinearLR(Schedule):
    """lr times a factor that goes from `start_factor` to `end_factor` in a straight line: a warm-up, by default.

    Parameters
    ----------
    optimizer : Optimizer
    start_factor, end_factor : float
    total_iters : int
        Steps until `end_factor`, which stays from then on.
    """

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1.0 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        self.start_factor, self.end_factor = number(start_factor, "start_factor"), number(end_factor, "end_factor")
        self.total_iters = positive(total_iters, "total_iters")
        super().__init__(optimizer)

    def lr_of(self, steps: int) -> float:
        """See `Schedule`."""
        done = min(steps, self.total_iters) / self.total_iters
        return self.base_lr * (self.start_factor + (self.end_factor - self.start_factor) * done)


class LambdaLR(Schedule):
    """lr times what a function of the number of steps taken returns.

    Parameters
    ----------
    optimizer : Optimizer
    lr_lambda : function
        Takes the number of steps, an int, and returns the factor, at least 0. It is no part of `state_dict`.
    """

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float]) -> None:
        self.lr_lambda = lr_lambda
        super().__init__(optimizer)

    def lr_of(self, steps: int) -> float:
        """See `Schedule`."""
        return self.base_lr * self.lr_lambda(steps)


class SequentialLR(Schedule):
    """One schedule after another, each from its own step 0: say a warm-up, then a cosine.

    Parameters
    ----------
    optimizer : Optimizer
    schedulers : list of Schedule
        Schedules of this optimiser.
    milestones : list of int
        The steps at which the second and each further one begins.
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[Schedule], milestones: Sequence[int]) -> None:
        for given, name in ((schedulers, "schedulers"), (milestones, "milestones")):
            if not isinstance(given, (tuple, list)):
                raise TypeError(f"{name} must be a list, got {given!r}")
        if not all(isinstance(s, Schedule) for s in schedulers):
            raise TypeError(f"schedulers must be fastlstm schedules other than ReduceLROnPlateau, got {schedulers!r}")
        self.schedulers, self.milestones = list(schedulers), [positive(m, "milestones") for m in milestones]
        if len(self.schedulers) != len(self.milestones) + 1 or self.milestones != sorted(set(self.milestones)):
            raise ValueError(
                f"milestones must rise and be one fewer than the {len(self.schedulers)} schedulers, got {milestones!r}"
            )
        if any(s.optimizer is not optimizer for s in self.schedulers):
            raise ValueError("a scheduler belongs to another optimizer")
        for scheduler in self.schedulers:  # each constructor changed the lr that the next scheduler took as its base
            scheduler.base_lr = self.schedulers[0].base_lr
        super().__init__(optimizer)
        self.base_lr = self.schedulers[0].base_lr

    def lr_of(self, steps: int) -> float:
        """See `Schedule`."""
        place = sum(steps >= m for m in self.milestones)
        return self.schedulers[place].lr_of(steps - (self.milestones[place - 1] if place else 0))

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """See `Schedule`."""
        base_lr = float(checked_state(d, self.state_dict(), self)["base_lr"])
        for scheduler in self.schedulers:
            scheduler.base_lr = base_lr
        super().load_state_dict(d)


class ReduceLROnPlateau:
    """lr * factor whenever a measure has not improved for more than `patience` steps.

    Parameters
    ----------
    optimizer : Optimizer
    mode : {"min", "max"}
        Whether smaller or larger is better.
    factor : float
        Below 1.
    patience : int
        Steps without improvement before a reduction.
    threshold : float
        Least improvement over the best measure that counts as one.
    threshold_mode : {"rel", "abs"}
        Whether `threshold` is a share of the best measure or a difference.
    cooldown : int
        Steps after a reduction in which `patience` is not counted.
    min_lr : float
        Lower bound of lr.
    eps : float
        A reduction of lr by less than this is not made.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a fastlstm optimiser, got {optimizer!r}")
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(f"threshold_mode must be 'rel' or 'abs', got {threshold_mode!r}")
        self.optimizer, self.mode, self.threshold_mode = optimizer, mode, threshold_mode
        self.factor, self.threshold = number(factor, "factor", below=1), number(threshold, "threshold")
        self.patience, self.cooldown = positive(patience, "patience", 0), positive(cooldown, "cooldown", 0)
        self.min_lr, self.eps = number(min_lr, "min_lr"), number(eps, "eps")
        self.best, self.bad_steps, self.resting = math.inf if mode == "min" else -math.inf, 0, 0

    def step(self, measure: float) -> None:
        """Count a measure, and reduce the learning rate after more than `patience` measures without improvement."""
        if isinstance(measure, bool) or not isinstance(measure, (Real, np.ndarray)) or np.size(measure) != 1:
            raise TypeError(f"a measure must be one number, got {measure!r}")
        better = self._better(float(measure))
        self.best = float(measure) if better else self.best
        self.bad_steps = 0 if better else self.bad_steps + 1
        if self.resting:
            self.resting, self.bad_steps = self.resting - 1, 0
        if self.bad_steps > self.patience:
            lr = max(self.optimizer.lr * self.factor, self.min_lr)
            if self.optimizer.lr - lr > self.eps:
                self.optimizer.lr = lr
            self.resting, self.bad_steps = self.cooldown, 0

    def _better(self, measure: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "abs":
            return sign * (measure - self.best) > self.threshold
        return sign * (measure - self.best * (1 + sign * self.threshold)) > 0

    def state_dict(self) -> dict[str, Array]:
        """The state from which a later run continues; the learning rate itself is in the optimiser's state."""
        counts = {"bad_steps": self.bad_steps, "resting": self.resting}
        return {"best": np.array(self.best, np.float64)} | {k: np.array(n, np.int64) for k, n in counts.items()}

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`, or raise as `Schedule.load_state_dict`."""
        new = checked_state(d, self.state_dict(), self)
        self.best, self.bad_steps, self.resting = float(new["best"]), int(new["bad_steps"]), int(new["resting"])
