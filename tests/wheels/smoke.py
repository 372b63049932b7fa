"""A check of an installed wheel, in a Python with nothing but it: `make test-wheels` runs this."""

from __future__ import annotations

import ctypes
import importlib.resources
import os
import sys

import numpy as np

import fastlstm as fl


def trained() -> fl.LSTM:
    """A layer after some steps of training; they must have reduced the loss."""
    rng = np.random.default_rng(0)
    x, answers = rng.standard_normal((12, 8, 5)).astype(np.float32), rng.integers(0, 3, (12, 8))
    lstm, head = fl.LSTM(5, 16, seed=0), fl.Dense(16, 3, seed=1)
    optimizer, losses = fl.Adam([lstm, head], lr=1e-2), []
    for _ in range(20):
        y, _, tape = lstm.forward(x)
        loss, dy, of_head = head.cross_entropy(y, answers)
        _, _, of_lstm = lstm.backward(tape, dy)
        optimizer.step([of_lstm, of_head])
        losses.append(float(loss))
    assert losses[-1] < 0.95 * losses[0], losses
    return lstm


def streamed(lstm: fl.LSTM) -> None:
    """A stream's steps have the outputs of one call."""
    x = np.random.default_rng(1).standard_normal((9, 1, 5)).astype(np.float32)
    stream = lstm.stream()
    assert np.array_equal(np.stack([stream.step(x_t) for x_t in x]), lstm(x)[0])


def forked(lstm: fl.LSTM) -> None:
    """A child of a process with a used thread pool computes the same."""
    x = np.random.default_rng(2).standard_normal((50, 64, 5)).astype(np.float32)
    with fl.threads(2):
        expected = lstm(x)[0]
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(lstm(x)[0], expected) else 1)
        assert os.waitpid(child, 0)[1] == 0, "the child failed"


def main() -> None:
    assert fl.backends()["c"] is None, fl.backends()["c"]
    lstm = trained()
    assert lstm.backend == "c"
    streamed(lstm)
    if hasattr(os, "fork"):
        forked(lstm)
    assert ctypes.CDLL(fl.get_library()).fastlstm_abi() == 1 and os.path.isfile(f"{fl.get_include()}/fastlstm.h")
    text = (importlib.resources.files("fastlstm") / "data" / "shakespeare.txt").read_text(encoding="utf-8")
    assert len(text) > 1_000_000
    print(f"Python {sys.version.split()[0]}, NumPy {np.__version__}: {lstm!r} trained, streamed and forked")


if __name__ == "__main__":
    main()
