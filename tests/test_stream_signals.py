"""Streams of signals: contexts, framing, spectra and convolutions in a list, against plain NumPy."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from cases import TOLERANCE, assert_near

import fastlstm as fl
from fastlstm.nn.activation import activate
from fastlstm.report import silero
from fastlstm.steps import Context, Gather, Magnitude, steps_of

F32 = np.float32
HOP, KEEP, WINDOW, BINS, H = 24, 9, 12, 5, 8
FRAMES = (HOP + KEEP - WINDOW) // 7 + 1


def draw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def signal_model(backend: str) -> list[Any]:
    """Windows with strides of 7, a transform, magnitudes, softmax over each frame, a convolution, an RNN, a head."""
    index = np.arange(FRAMES)[:, None] * 7 + np.arange(WINDOW)
    index[-1, -3:] = [-1, 4, -1]
    taps, used = silero.columns(FRAMES, BINS, 2, 3)
    assert used == [0, 1, 2] and taps.min() == -1
    return [
        Context(HOP, KEEP),
        Gather(index),
        fl.Dense(WINDOW, 2 * BINS, backend=backend, seed=1),
        Magnitude(),
        "softmax",
        Gather(taps),
        fl.Dense(3 * BINS, 3, backend=backend, seed=2),
        "relu",
        fl.RNN(3 * len(taps), H, backend=backend, seed=3),
        fl.Dense(H, 2, backend=backend, seed=4),
    ]


def by_numpy(model: list[Any], x: Any) -> Any:
    """Outputs (T, 2) of the signal (T, HOP), from the equations."""
    _, gather, transform, _, _, taps, convolution, _, rnn, head = model
    p, past, h, y = rnn.state_dict(), np.zeros(KEEP), np.zeros(H), []
    for now in x.astype(np.float64):
        whole = np.concatenate((past, now))
        past = whole[-KEEP:]
        frames = np.array([[0 if i < 0 else whole[i] for i in row] for row in gather.index])
        z = frames @ transform.state_dict()["weight"].T.astype(float) + transform.state_dict()["bias"]
        spectrum = activate("softmax", np.hypot(z[:, :BINS], z[:, BINS:])).reshape(-1)
        columns = np.array([[0 if i < 0 else spectrum[i] for i in row] for row in taps.index])
        w = convolution.state_dict()
        flat = np.maximum(columns @ w["weight"].T.astype(float) + w["bias"], 0).reshape(-1)
        h = np.tanh(p["weight_ih_l0"] @ flat + p["bias_ih_l0"] + p["weight_hh_l0"] @ h + p["bias_hh_l0"])
        y.append(head.state_dict()["weight"] @ h + head.state_dict()["bias"])
    return np.array(y)


def test_a_signal_has_the_values_of_its_equations(backend: str) -> None:
    model, x = signal_model(backend), draw(5, 4, HOP)
    batch = fl.StreamBatch(model)
    handles = np.array([batch.open() for _ in x])
    expected = np.array([by_numpy(model, one) for one in x])
    y = [batch.step(handles[[4, 1, 0, 3, 2]], x[[4, 1, 0, 3, 2], 0])[[2, 1, 4, 3, 0]], batch.step(handles, x[:, 1])]
    kept = batch.export(handles)
    y += [batch.step(handles, x[:, t]) for t in (2, 3)]
    assert_near(np.stack(y, axis=1), expected, TOLERANCE["values"])
    other = fl.StreamBatch(signal_model(backend))
    restored = other.restore(kept)
    assert_near(other.step(restored, x[:, 2]), expected[:, 2], TOLERANCE["values"])
    pieces = [other.open() for _ in x]
    fed = other.feed(pieces, np.concatenate((x[0], x[1, :1], x[2, :3])), [4, 1, 3, 0, 0])
    assert_near(fed, np.concatenate((expected[0], expected[1, :1], expected[2, :3])), TOLERANCE["values"])
    assert_near(other.step(pieces[2], x[2, 3]), expected[2, 3], TOLERANCE["values"])


def test_bits_of_a_signal_do_not_depend_on_its_neighbours() -> None:
    model, x = signal_model("c"), draw(130, HOP)
    one, two = fl.StreamBatch(model), fl.StreamBatch(model, threads=2)
    alone = [one.step(one.open(), row) for row in x]
    for batch in (one, two):
        np.testing.assert_array_equal(batch.step([batch.open() for _ in x], x), alone)
        np.testing.assert_array_equal(batch.feed([batch.open() for _ in x], x, [1] * len(x)), alone)


def test_a_context_may_be_longer_than_the_input(backend: str) -> None:
    with_identity = fl.RNN(7, 7, nonlinearity="identity", backend=backend, seed=0)
    zeros = {name: np.zeros_like(p) for name, p in with_identity.state_dict().items()}
    with_identity.load_state_dict(zeros | {"weight_ih_l0": np.eye(7, dtype=F32)})
    batch, rows = fl.StreamBatch([Context(2, 5), with_identity]), np.arange(1, 9, dtype=F32).reshape(4, 2)
    h = batch.open()
    for t, row in enumerate(rows):
        whole = np.concatenate((np.zeros(5, F32), rows[: t + 1].reshape(-1)))
        np.testing.assert_array_equal(batch.step(h, row), whole[-7:])


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "an index beyond the input": (
        lambda: [Context(4, 2), Gather(np.array([[0, 6]])), fl.RNN(2, 3)],
        ValueError,
        "index must lie between -1 and 5, got 0 to 6",
    ),
    "an index below -1": (lambda: [Gather(np.array([[-2]]), 4)], ValueError, "between -1 and 3, got -2 to -2"),
    "an index of numbers": (lambda: [Gather(np.ones((1, 2)), 4)], ValueError, r"integers \(F, K\), got dtype float64"),
    "an index of one axis": (lambda: [Gather(np.array([1, 2]), 4)], ValueError, r"got dtype int64 and shape \(2,\)"),
    "odd halves": (
        lambda: [fl.RNN(2, 3), Magnitude()],
        ValueError,
        r"takes pairs of halves, and RNN\(2, 3\) gives 3 numbers in 1 frames",
    ),
    "a gather of what": (lambda: [Gather(np.array([[0]]))], ValueError, "is the first step, so its width is not known"),
    "a context of nothing": (lambda: [Context(4, 0)], ValueError, "keep must be at least 1, got 0"),
    "frames and a layer of another width": (
        lambda: [Gather(np.array([[0, 1], [1, 2]]), 3), fl.Dense(3, 2), fl.RNN(2, 2)],
        ValueError,
        "gives 4 numbers, but Dense",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case: str) -> None:
    make, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        fl.StreamBatch(make())


def test_c_sources_have_no_signals(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"Context\(24, 9\) is for streams of fastlstm only"):
        fl.to_c(signal_model("numpy"), tmp_path / "model.c")
    assert len(steps_of(signal_model("numpy"), native=True)) == 10


# --------------------------------------------------------------------------------------------------------- Silero VAD
def test_silero_has_the_probabilities_of_onnx_runtime() -> None:
    pytest.importorskip("onnxruntime")
    if importlib.util.find_spec("silero_vad") is None:
        pytest.skip("needs silero-vad: pip install --no-deps silero-vad==6.2.3")
    found = silero.timings((1, 5), rounds=1, seconds=0.0)
    assert all(one["off"] < 1e-5 and min(one["reference"], one["ours"]) > 0 for one in found.values())
    streams, sound = fl.StreamBatch(silero.model()), silero.noise(3)
    handles = [streams.open() for _ in range(3)]
    step = silero.reference(3)
    for _ in range(2):
        x = next(sound)
        assert np.abs(streams.step(handles, x) - step(x)).max() < 1e-5
    other = fl.StreamBatch(silero.model())
    x = next(sound)
    np.testing.assert_array_equal(other.step(other.restore(streams.export(handles)), x), streams.step(handles, x))
