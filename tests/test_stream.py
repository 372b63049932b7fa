"""Streams: their steps have the outputs of one call."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from cases import LAYERS, TOLERANCE, Case, assert_near, named

import fastlstm as fl

T, B, I, H = 9, 3, 4, 7  # noqa: E741
F32 = np.float32

STREAMED = [
    Case("lstm", T, B, I, H),
    Case("lstm", T, B, I, H, {"num_layers": 3, "proj_size": 2, "peepholes": True}),
    Case("lstm", T, B, I, H, {"batch_first": True, "dropout": 0.5, "num_layers": 2}),
    Case("gru", T, B, I, H, {"num_layers": 2}),
    Case("gru", T, B, I, H, {"reset_after": False, "bias": False}),
    Case("rnn", T, B, I, H, {"num_layers": 2, "nonlinearity": "relu"}),
    Case("gru", T, B, I, H, {"num_layers": 2}, ids=True),
]


def state_near(got: Any, expected: Any) -> None:
    for (name, a), b in zip(named("{}", got).items(), named("{}", expected).values(), strict=True):
        assert_near(a, b, TOLERANCE["values"], name)


def whole(case: Case, layer: Any, x: Any, state: Any) -> Any:
    """(y, state) of one call; x and y time first, whatever the layer's batch_first."""
    if not case.options.get("batch_first"):
        return layer(x, state)
    y, state = layer(x.swapaxes(0, 1), state)
    return y.swapaxes(0, 1), state


@pytest.mark.parametrize("case", STREAMED, ids=str)
def test_steps_and_runs_are_one_call(case: Case, backend: str) -> None:
    layer, drawn = case.layer("float32", backend), case.draw()
    x = drawn.x.swapaxes(0, 1) if case.options.get("batch_first") else drawn.x
    for state in (None, drawn.state):
        expected, final = whole(case, layer, x, state)
        stepped, ran, mixed = (layer.stream(B) for _ in range(3))
        for s in (stepped, ran, mixed):
            if state is not None:
                s.state = state
        assert_near(np.array([stepped.step(x_t) for x_t in x]), expected, TOLERANCE["values"])
        assert_near(ran.run(x), expected, TOLERANCE["values"])
        parts = [mixed.run(x[:4]), mixed.step(x[4])[None], mixed.run(x[5:5]), mixed.run(x[5:])]
        assert_near(np.concatenate(parts), expected, TOLERANCE["values"])
        for s in (stepped, ran, mixed):
            state_near(s.state, final)


@pytest.mark.parametrize("ids", [False, True], ids=["numbers", "ids"])
def test_one_sequence_needs_no_batch_axis(ids: bool, backend: str) -> None:
    case = Case("lstm", T, 1, I, H, {"num_layers": 2}, ids=ids, state=False)
    layer, x = case.layer("float32", backend), case.draw().x
    expected = layer(x)[0]
    bare, wide = layer.stream(), layer.stream()
    for t in range(T):
        y = bare.step(x[t, 0])
        assert y.shape == (H,)
        np.testing.assert_array_equal(y, wide.step(x[t])[0])
        assert_near(y, expected[t, 0], TOLERANCE["values"])
    assert bare.step(x[0]).shape == (1, H) and bare.run(x).shape == (T, 1, H) and bare.run(x[:, 0]).shape == (T, H)
    if ids:
        again = layer.stream()
        np.testing.assert_array_equal(again.step(int(x[0, 0])), layer.stream().step(x[0, 0]))


def test_out_is_written_and_without_it_each_result_is_fresh(backend: str) -> None:
    layer = fl.GRU(I, H, 2, backend=backend, seed=1)
    x = np.random.default_rng(0).standard_normal((T, B, I)).astype(F32)
    with_out, without = layer.stream(B), layer.stream(B)
    out = np.full((B, H), np.nan, F32)
    results = []
    for x_t in x:
        assert with_out.step(x_t, out=out) is out
        results.append(without.step(x_t))
        np.testing.assert_array_equal(out, results[-1])
    kept = [r.copy() for r in results]
    without.step(x[0])
    for r, k in zip(results, kept, strict=True):
        np.testing.assert_array_equal(r, k)
    results[-1][...] = 7
    assert not (without.state == 7).any()
    single, out = layer.stream(), np.empty(H, F32)
    assert single.step(x[0, 0], out=out) is out
    np.testing.assert_array_equal(out, layer.stream().step(x[0, 0]))


def test_out_may_be_the_input(backend: str) -> None:
    for kind in LAYERS:
        layer = LAYERS[kind](H, H, 2, backend=backend, seed=1)
        x = np.random.default_rng(0).standard_normal((B, H)).astype(F32)
        expected = layer.stream(B).step(x)
        np.testing.assert_array_equal(layer.stream(B).step(x, out=x), expected)


def test_state_is_a_copy_and_can_be_set(backend: str) -> None:
    layer = fl.LSTM(I, H, 2, backend=backend, seed=1)
    s, x = layer.stream(B), np.ones((B, I), F32)
    h, c = s.state
    assert h.shape == c.shape == (2, B, H) and not h.any() and not c.any()
    s.step(x)
    after = s.state
    assert not h.any() and after[0].any()
    after[0][...] = after[1][...] = 5
    second = s.step(x)
    s.reset()
    s.step(x)
    np.testing.assert_array_equal(s.step(x), second)
    s.state = (h, c)
    h[...] = 3
    s.step(x)
    np.testing.assert_array_equal(s.step(x), second)


def test_reset_of_some_sequences(backend: str) -> None:
    layer = fl.LSTM(I, H, 2, backend=backend, seed=1)
    x = np.random.default_rng(0).standard_normal((3, B, I)).astype(F32)
    for rows in ([1], np.array([False, True, False]), 1):
        s, fresh = layer.stream(B), layer.stream(B)
        s.run(x)
        before = s.state
        s.reset(rows)
        for part, old in zip(s.state, before, strict=True):
            assert not part[:, 1].any()
            np.testing.assert_array_equal(part[:, [0, 2]], old[:, [0, 2]])
        np.testing.assert_array_equal(s.step(x[0])[1], fresh.step(x[0])[1])
        s.reset()
        assert not any(part.any() for part in s.state)


def test_a_copy_goes_its_own_way(backend: str) -> None:
    layer = fl.GRU(I, H, backend=backend, seed=1)
    x = np.random.default_rng(0).standard_normal((4, B, I)).astype(F32)
    s = layer.stream(B)
    s.run(x[:2])
    other = s.copy()
    third = s.step(x[2])
    other_fourth = other.step(x[3])
    np.testing.assert_array_equal(other.state[0], other_fourth)
    np.testing.assert_array_equal(s.state[0], third)
    again = layer.stream(B)
    again.run(x[:2])
    np.testing.assert_array_equal(again.step(x[3]), other_fourth)


def test_a_stream_keeps_the_weights_it_began_with(backend: str) -> None:
    layer = fl.LSTM(I, H, backend=backend, seed=1)
    x = np.ones((B, I), F32)
    old, reference = layer.stream(B), layer.stream(B)
    first = old.step(x)
    reference.step(x)
    second = reference.step(x)
    with layer.update() as params:
        for p in params.values():
            p *= 2
    np.testing.assert_array_equal(old.step(x), second)
    old.reset()
    np.testing.assert_array_equal(old.step(x), first)
    np.testing.assert_array_equal(old.copy().run(x[None])[0], second)
    assert not np.array_equal(layer.stream(B).step(x), first)


def test_a_stream_outlives_its_layer(backend: str) -> None:
    def make() -> Any:
        return fl.LSTM(I, H, 2, backend=backend, seed=1).stream(B)

    x = np.ones((B, I), F32)
    s, expected = make(), fl.LSTM(I, H, 2, backend=backend, seed=1)(np.ones((1, B, I), F32))[0][0]
    for _ in range(20):  # memory that was freed would be taken again
        fl.LSTM(I, H, 2, backend=backend, seed=2).stream(B).step(x)
    assert_near(s.step(x), expected, TOLERANCE["values"])


@pytest.mark.parametrize("change", [lambda a: a.T.copy().T, lambda a: a.astype(">f4"), lambda a: a[::-1].copy()[::-1]])
def test_input_of_any_layout(change: Any, backend: str) -> None:
    layer, x = fl.RNN(I, H, backend=backend, seed=1), np.random.default_rng(0).standard_normal((B, I)).astype(F32)
    np.testing.assert_array_equal(layer.stream(B).step(change(x)), layer.stream(B).step(x))
    np.testing.assert_array_equal(layer.stream(B).run(change(x)[None]), layer.stream(B).run(x[None]))


def unwritable() -> Any:
    a = np.zeros((B, H), F32)
    a.flags.writeable = False
    return a


GOOD = np.ones((B, I), F32)
BAD_STEPS: list[tuple[Any, Any, type[Exception], str]] = [
    (
        np.ones((B, 5), F32),
        None,
        ValueError,
        "x has shape (3, 5), expected (3, 4): its last axis must be input_size = 4",
    ),
    (np.ones((2, I), F32), None, ValueError, "x has shape (2, 4), expected (3, 4)"),
    (np.ones(I, F32), None, ValueError, "x has shape (4,), expected (3, 4)"),
    (np.ones((1, B, I), F32), None, ValueError, "x has shape (1, 3, 4), expected (3, 4)"),
    (np.ones((B, I)), None, ValueError, "x has dtype float64, the layer float32. Convert it with x.astype('float32')"),
    (np.ones((B, I), int), None, TypeError, "integers are token ids, of shape (3,)"),
    (np.ones((B, I), bool), None, TypeError, "got dtype bool"),
    (None, None, TypeError, "got dtype object"),
    (np.array([0, 1, 4]), None, ValueError, "token ids must lie between 0 and input_size - 1 = 3, got 0 to 4"),
    (np.array([0, 1]), None, ValueError, "x has shape (2,), expected (3,) for token ids: batch_size is 3"),
    (GOOD, np.ones((B, I), F32), ValueError, "out has shape (3, 4) and dtype float32, expected (3, 7) and float32"),
    (GOOD, np.ones((B, H)), ValueError, "out has shape (3, 7) and dtype float64, expected (3, 7) and float32"),
    (GOOD, np.ones((H, B), F32).T, ValueError, "out must be C-contiguous and writeable"),
    (GOOD, unwritable(), ValueError, "out must be C-contiguous and writeable"),
    (GOOD, np.ones((B, H), ">f4"), ValueError, "out has shape (3, 7) and dtype >f4"),
    (GOOD, [[0.0] * H] * B, TypeError, "out must be a NumPy array to write to, got list"),
]


@pytest.mark.parametrize(("x", "out", "error", "message"), BAD_STEPS, ids=[m for *_, m in BAD_STEPS])
def test_a_bad_step_leaves_the_state(x: Any, out: Any, error: type[Exception], message: str, backend: str) -> None:
    s = fl.LSTM(I, H, backend=backend, seed=1).stream(B)
    s.step(GOOD)
    before = s.state
    with pytest.raises(error, match=re.escape(message)):
        s.step(x, out=out)
    if out is None:
        with pytest.raises((TypeError, ValueError)):
            s.run(None if x is None else x[None])
    for part, old in zip(s.state, before, strict=True):
        np.testing.assert_array_equal(part, old)


def test_a_bad_state_changes_nothing(backend: str) -> None:
    s = fl.LSTM(I, H, backend=backend, seed=1).stream(B)
    s.step(GOOD)
    h, c = s.state
    for bad, error, message in (
        ((h, c[:, :2]), ValueError, "state's c has shape (1, 2, 7), expected (1, 3, 7)"),
        ((h.astype(float), c), ValueError, "state's h has dtype float64"),
        ((h + 1, c, c), TypeError, "state of LSTM is a pair (h, c), got a tuple of 3"),
        ((h + 1,), TypeError, "state of LSTM is a pair (h, c), got a tuple of 1"),
        (h + 1, TypeError, "state of LSTM is a pair (h, c), got ndarray"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            s.state = bad
    np.testing.assert_array_equal(s.state[0], h)
    np.testing.assert_array_equal(s.state[1], c)


def test_a_stream_times_prefetching_and_keeps_the_bits(compiled: str) -> None:
    """Weights of 1 MiB and more are prefetched in some of a stream's first steps, and later if that took less time."""
    steps, H = 80, 192
    layer = fl.LSTM(H, H, backend=compiled, seed=1)
    x = np.random.default_rng(0).standard_normal((steps, 1, H)).astype(F32)
    s = layer.stream()
    in_c = s._step.args[0]
    ys, spent = [], []
    for x_t in x:
        ys.append(s.step(x_t))
        spent.append(tuple(in_c.prefetch_spent))
    np.testing.assert_array_equal(np.array(ys), layer(x)[0])
    assert all(spent[-1])
    timed = [after != before for before, after in pairwise(spent)]
    assert timed == [True] * 67 + [False] * (steps - 68)


def test_many_streams_share_a_layer(backend: str) -> None:
    """Steps of several streams in any order: each stream has its own state and scratch memory."""
    layer = fl.LSTM(I, H, 2, backend=backend, seed=1)
    x = np.random.default_rng(0).standard_normal((5, T, I)).astype(F32)
    streams = [layer.stream() for _ in x]
    ys = np.array([[s.step(x_t) for s, x_t in zip(streams, x[:, t], strict=True)] for t in range(T)])
    for i in range(5):
        np.testing.assert_array_equal(ys[:, i], [y for s in [layer.stream()] for y in map(s.step, x[i])])
