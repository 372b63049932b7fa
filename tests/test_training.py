"""Training as a whole: equal bits for all numbers of threads, and constant memory on long texts."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm.memory import buffers
from fastlstm.text import Settings, TextTraining

LETTERS = "abcdefghijklmnopqrstuvwxyz "


def random_text(length: int) -> str:
    return "".join(np.random.default_rng(0).choice(list(LETTERS), length))


def trained(path: Path, threads: int, cut: int = 0, **settings: Any) -> dict[str, Any]:
    """All arrays of a model after 12 steps with so many threads; with `cut`, after a stop and a resumption there."""
    text = random_text(30_000)
    with fl.threads(threads):
        job = TextTraining(text, Settings(hidden=72, layers=2, dropout=0.3, batch=20, seq_len=30, **settings), path)
        for step in range(12):
            if cut and step == cut:
                job.save()
                job = TextTraining.resume(text, path, {})
            job.step()
    return job.model.to_arrays() | job.optimizer.state_dict() | job.history.to_arrays()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_same_bits_for_every_number_of_threads_and_resumed(tmp_path: Path, optimizer: str, compiled: str) -> None:
    first = trained(tmp_path / "model", 1, optimizer=optimizer, backend=compiled)
    for threads, cut in ((1, 5), (2, 0), (3, 7)):
        again = trained(tmp_path / "model", threads, cut, optimizer=optimizer, backend=compiled)
        assert all((a == again[name]).all() for name, a in first.items())


def test_long_texts_take_constant_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truncated back-propagation keeps one window's tape: a thousand windows, over a million characters, have the peak
    memory of the first hundred. Only the list of losses may grow."""
    settings = Settings(hidden=32, batch=32, seq_len=25, optimizer="sgd")
    job = TextTraining(random_text(1_000_000), settings, tmp_path / "model")
    windows = len(job._inputs) // settings.seq_len
    assert windows > 1100

    def peak(steps: int) -> int:
        tracemalloc.reset_peak()
        for _ in range(steps):
            job.step()
        return tracemalloc.get_traced_memory()[1]

    monkeypatch.setattr(buffers, "_pieces", [])  # memory of earlier tests in the pool would not be counted
    tracemalloc.start()
    try:
        peak(10)
        few, many = peak(100), peak(1000)
    finally:
        tracemalloc.stop()
    a_tape = settings.seq_len * settings.batch * 6 * settings.hidden * 4
    losses = 1000 * 40
    assert few > a_tape  # the measurement sees the tape
    assert many - few < losses + a_tape / 20
    assert np.mean(job.history["loss"][-50:]) < np.mean(job.history["loss"][:5])
