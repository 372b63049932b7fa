"""What the programs of this folder share: one training as the model is and one accelerated, from the same seed.

It compares what both have learnt and prints the time of each.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

import fastlstm as fl


class Trained(NamedTuple):
    """A training that has ended."""

    model: torch.nn.Module
    losses: list[float]  # in the order of training
    seconds: float


class Compared(NamedTuple):
    """What `compare` found."""

    before: Trained
    after: Trained
    parameters: float  # largest difference of a parameter, over the largest parameter of its tensor
    losses: float  # largest difference of a loss, over the mean loss
    calls: int  # that ran on the kernels


def timed(train: Callable[[], list[float]], model: torch.nn.Module) -> Trained:
    """The losses of a training, and the seconds that it took."""
    begin = time.perf_counter()
    losses = train()
    return Trained(model, losses, time.perf_counter() - begin)


def compare(run: Callable[[Callable[[torch.nn.Module], Any]], Trained]) -> Compared:
    """Run a program as it is and with `fl.torch.accelerate`, and print the differences and the times.

    Parameters
    ----------
    run : function
        The program, from its seed on. It calls its argument with the model once, before the training.

    Raises
    ------
    RuntimeError
        A call of a recurrent module did not run on the kernels.
    """
    before = run(lambda model: None)
    summaries: list[Any] = []
    after = run(lambda model: summaries.append(fl.torch.accelerate(model)))
    print(summaries[0])
    kernels = [entry.module._kernels for entry in summaries[0] if entry.why is None]
    if summaries[0].left or any(one.left for one in kernels):
        raise RuntimeError("something was left on PyTorch: see above")
    pairs = zip(before.model.parameters(), after.model.parameters(), strict=True)
    parameters = max(float((p - q).detach().abs().max() / p.detach().abs().max().clamp(min=1e-3)) for p, q in pairs)
    a, b = np.array(before.losses), np.array(after.losses)
    losses = float(np.abs(a - b).max() / np.abs(a).mean())
    print(f"last loss {a[-1]:.5f} and {b[-1]:.5f}")
    print(f"largest difference of a loss {losses:.0e}, of a parameter {parameters:.0e}")
    print(
        f"as it was {before.seconds:.1f} s, accelerated {after.seconds:.1f} s: "
        f"{before.seconds / after.seconds:.2f} times as fast ({torch.get_num_threads()} threads)"
    )
    return Compared(before, after, parameters, losses, sum(one.calls for one in kernels))
