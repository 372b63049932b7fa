"""Schedules of the learning rate: against PyTorch where it is installed, and resumed."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import numpy as np
import pytest

import fastlstm as fl


def optimizer(lr: float = 0.1) -> Any:
    return fl.SGD(fl.Dense(1, 1, seed=0), lr)


# name -> (PyTorch's and our name, arguments)
SCHEDULES: dict[str, tuple[str, dict[str, Any]]] = {
    "step": ("StepLR", {"step_size": 7, "gamma": 0.5}),
    "step-default": ("StepLR", {"step_size": 30}),
    "cosine": ("CosineAnnealingLR", {"T_max": 100}),
    "cosine-min": ("CosineAnnealingLR", {"T_max": 60, "eta_min": 0.01}),
    "warm-up": ("LinearLR", {}),
    "warm-up-options": ("LinearLR", {"start_factor": 0.01, "end_factor": 0.8, "total_iters": 40}),
}
PLATEAUS: dict[str, dict[str, Any]] = {
    "default": {},
    "patient": {"patience": 3, "factor": 0.5, "cooldown": 2, "min_lr": 1e-3},
    "max": {"mode": "max", "patience": 2, "threshold": 0.1},
    "absolute": {"threshold_mode": "abs", "threshold": 0.05, "patience": 2, "factor": 0.7},
    "max-absolute": {"mode": "max", "threshold_mode": "abs", "threshold": 0.05, "patience": 1, "eps": 1e-3},
}


def torchs(lr: float = 0.1) -> Any:
    torch = pytest.importorskip("torch")
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr)


def lr_of(theirs: Any) -> float:
    return theirs.param_groups[0]["lr"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_as_torch(name: str) -> None:
    theirs_, ours = torchs(), optimizer()
    kind, arguments = SCHEDULES[name]
    torch = pytest.importorskip("torch")
    one, other = getattr(fl, kind)(ours, **arguments), getattr(torch.optim.lr_scheduler, kind)(theirs_, **arguments)
    for _ in range(100):
        assert ours.lr == pytest.approx(lr_of(theirs_), rel=1e-9, abs=1e-15)
        theirs_.step()
        one.step()
        other.step()


def test_sequence_as_torch() -> None:
    theirs_, ours = torchs(), optimizer()
    schedulers = pytest.importorskip("torch").optim.lr_scheduler

    def built(of: Any, optimizer: Any) -> Any:
        parts = [of.LinearLR(optimizer, 0.1, 1.0, 10), of.CosineAnnealingLR(optimizer, 50), of.StepLR(optimizer, 9)]
        return of.SequentialLR(optimizer, parts, [10, 60])

    one, other = built(fl, ours), built(schedulers, theirs_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's SequentialLR warns about its own calls
        for _ in range(100):
            assert ours.lr == pytest.approx(lr_of(theirs_), rel=1e-9, abs=1e-12)
            theirs_.step()
            one.step()
            other.step()


@pytest.mark.parametrize("name", PLATEAUS)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_plateau_as_torch(name: str, noise: float) -> None:
    theirs_, ours, rng = torchs(), optimizer(), random.Random(0)
    torch = pytest.importorskip("torch")
    one = fl.ReduceLROnPlateau(ours, **PLATEAUS[name])
    other = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs_, **PLATEAUS[name])
    for step in range(100):
        measure = (1.0 / (1 + step) if step < 95 else math.nan) + noise * rng.random()
        one.step(measure)
        other.step(measure)
        assert ours.lr == pytest.approx(lr_of(theirs_), rel=1e-12)


@pytest.mark.parametrize("name", [*SCHEDULES, "sequence", *PLATEAUS])
def test_resumes(name: str) -> None:
    def made(optimizer: Any) -> Any:
        if name in PLATEAUS:
            return fl.ReduceLROnPlateau(optimizer, **PLATEAUS[name])
        if name == "sequence":
            parts = [fl.LinearLR(optimizer, 0.1, total_iters=4), fl.CosineAnnealingLR(optimizer, 50)]
            return fl.SequentialLR(optimizer, parts, [4])
        return getattr(fl, SCHEDULES[name][0])(optimizer, **SCHEDULES[name][1])

    def steps(schedule: Any, count: int) -> None:
        for _ in range(count):
            schedule.step(*([1.0] if name in PLATEAUS else []))

    through, before, after = optimizer(), optimizer(), optimizer(0.7)
    whole, first, second = made(through), made(before), made(after)
    steps(whole, 30)
    steps(first, 13)
    after.load_state_dict(before.state_dict())
    second.load_state_dict({key: np.array(a) for key, a in first.state_dict().items()})
    assert after.lr == before.lr
    steps(second, 17)
    assert after.lr == through.lr


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda o: fl.StepLR(o, 0), ValueError, "step_size"),
        (lambda o: fl.StepLR(o.layers, 3), TypeError, "optimizer"),
        (lambda o: fl.CosineAnnealingLR(o, 2.5), TypeError, "T_max"),
        (lambda o: fl.LinearLR(o, -1), ValueError, "start_factor"),
        (lambda o: fl.SequentialLR(o, [fl.StepLR(o, 2)], [3]), ValueError, "milestones"),
        (lambda o: fl.SequentialLR(o, [fl.StepLR(optimizer(), 2)], []), ValueError, "another optimizer"),
        (lambda o: fl.ReduceLROnPlateau(o, "best"), ValueError, "mode"),
        (lambda o: fl.ReduceLROnPlateau(o, factor=1), ValueError, "factor"),
        (lambda o: fl.ReduceLROnPlateau(None), TypeError, "optimizer"),
    ],
    ids=lambda value: None,
)
def test_refuses(make: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make(optimizer())
