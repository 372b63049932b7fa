"""PyTorch's modules beside themselves after `fl.torch.accelerate`: training shapes, packed sequences, a mixed model.

Each case runs as the model was, accelerated, and as it was once more (A/A), interleaved; values are checked first. A
training call is forward and backward, and packs the weights anew, as after an optimiser's step.

    python bench/torch_models.py [--threads 1 2] [--rounds 7] [--groups training packed mixed] [words of cases]
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import fastlstm as fl
from fastlstm.report import contenders, machine, measure
from fastlstm.report.cases import LENGTHS, TRAINING, Case

BEFORE, AFTER, AGAIN = "as it was", "accelerated", "as it was, again"
PACKED = [
    *LENGTHS,
    *(case for case in TRAINING if case.ragged),
    Case("forward", "gru", 64, 128, B=32, T=100, ragged=True),
    Case("train", "gru", 64, 128, B=32, T=100, ragged=True),
    Case("forward", "lstm", 64, 128, B=32, T=100, ragged=True, layers=2, bidirectional=True),
    Case("train", "lstm", 64, 128, B=32, T=100, ragged=True, layers=2, bidirectional=True),
]
DENSE = [case for case in TRAINING if not case.ragged]


# -------------------------------------------------------------------------------------------------------- mixed models
class Mixed(nn.Module):
    """A convolution, recurrent layers and a linear layer, batch first."""

    def __init__(self, inputs: int, channels: int, hidden: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, channels, 3, padding=1)
        self.lstm = nn.LSTM(channels, hidden, layers, batch_first=True)
        self.linear = nn.Linear(hidden, outputs)

    def forward(self, x: Any) -> Any:  # (B, T, I)
        x = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        return self.linear(self.lstm(x)[0])


MIXED: dict[str, tuple[tuple[int, int, int, int, int], tuple[int, int]]] = {  # sizes of the model; (B, T)
    "conv 40 to 64, lstm 64,256 x2, linear, 16 x 100": ((40, 64, 256, 2, 32), (16, 100)),
    "conv 40 to 64, lstm 64,128 x1, linear, 8 x 100": ((40, 64, 128, 1, 32), (8, 100)),
    "conv 80 to 512, lstm 512,64 x1, linear, 16 x 100": ((80, 512, 64, 1, 512), (16, 100)),
}


def mixed(sizes: tuple[int, ...], shape: tuple[int, int], train: bool, threads: int, fast: bool) -> measure.Contender:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Mixed(*sizes)  # type: ignore[arg-type]
    x = torch.randn(*shape, sizes[0])
    if fast:
        fl.torch.accelerate(model)
    parameters = list(model.parameters())

    def forward() -> Any:
        with torch.inference_mode():
            return model(x)

    def step() -> Any:
        y = model(x)
        return y, torch.autograd.grad(y.square().mean(), parameters)

    def values() -> Mapping[str, Any]:
        if not train:
            return {"y": forward().numpy()}
        y, grads = step()
        return {"y": y.detach().numpy(), **{f"d{i}": g.numpy() for i, g in enumerate(grads)}}

    return measure.Contender(step if train else forward, values)


def compare_mixed(threads: int, rounds: int, words: list[str]) -> None:
    for name, (sizes, shape) in MIXED.items():
        for train in (False, True):
            label = f"{name}, {'train' if train else 'forward'}"
            if words and not any(word in label for word in words):
                continue
            three = {n: mixed(sizes, shape, train, threads, n == AFTER) for n in (BEFORE, AFTER, AGAIN)}
            wrong = measure.difference(three[AFTER].values(), three[BEFORE].values())
            if wrong is not None:
                raise SystemExit(f"{label}: {wrong}")
            show(label, threads, measure.in_turns({n: one.call for n, one in three.items()}, threads, rounds))


# ------------------------------------------------------------------------------------------------------------ measuring
def show(label: str, threads: int, results: Mapping[str, measure.Result]) -> float:
    """Print a line; the ratio of the times before and after."""
    rng = np.random.default_rng(0)
    before, after, again = (results[name] for name in (BEFORE, AFTER, AGAIN))
    ratio, aa = measure.ratio(before, after, rng), measure.ratio(before, again, rng)
    times = "  ".join(f"{1e3 * one.median:9.3f}" for one in (before, after))
    print(f"{label:62s} {threads}  {times}  {ratio!s:22s} A/A {aa!s}", flush=True)
    return ratio.value


def compare(cases: list[Case], threads: int, rounds: int) -> list[float]:
    makers = {
        BEFORE: contenders.torch,
        AFTER: functools.partial(contenders.torch, prepare=fl.torch.accelerate),
        AGAIN: contenders.torch,
    }
    ratios = []
    for case in cases:
        expected = contenders.reference(case)
        results = measure.measure(case, threads, makers, expected, rounds, np.random.default_rng(0))
        for one in results:
            if one.problem is not None:
                raise SystemExit(f"{case}: {one.contender}: {one.problem}")
        ratios.append(show(str(case), threads, {one.contender: one for one in results}))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only cases whose names hold one of these")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--groups", nargs="+", choices=["training", "packed", "mixed"], default=None)
    given = parser.parse_args()
    groups = given.groups or ["training", "packed", "mixed"]
    for name, value in machine.facts().items():
        print(f"{name}: {value}")
    print(f"\n{'case':62s} n  {'ms before':>9s}  {'ms after':>9s}  times as fast")
    for threads in given.threads:
        with fl.threads(threads):
            for group, cases in (("training", DENSE), ("packed", PACKED)):
                some = [c for c in cases if not given.words or any(word in str(c) for word in given.words)]
                if group not in groups or not some:
                    continue
                ratios = compare(some, threads, given.rounds)
                print(
                    f"{group}, {threads} threads: geometric mean {measure.geometric_mean(ratios):.2f}, "
                    f"least {min(ratios):.2f}"
                )
            if "mixed" in groups:
                compare_mixed(threads, given.rounds, given.words)


if __name__ == "__main__":
    main()
