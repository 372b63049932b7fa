"""Reset, assignment of states, and copies of streams: good arguments, and bad ones, which only raise."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import numpy as np
import pytest
from cases import LAYERS, assert_same_bits, named

import fastlstm as fl

B, I, H = 4, 3, 5  # noqa: E741
F32 = np.float32
DONES = np.array([False, False, True, True])


def stream_of(kind: str = "lstm", backend: str = "auto", batch_size: int = B, layers: int = 2) -> Any:
    """A stream that has taken a step, so that none of its states is zero."""
    s = LAYERS[kind](I, H, layers, backend=backend, seed=1).stream(batch_size)
    s.step(np.ones((batch_size, I), F32))
    return s


def zeroed(s: Any) -> list[bool]:
    """For each sequence of a stream whether its state is zero."""
    parts = [part.any(axis=(0, 2)) for part in named("{}", s.state).values()]
    assert all((part == parts[0]).all() for part in parts)
    return [not on for on in parts[0].tolist()]


# ---------------------------------------------------------------------------------------------------------------- reset
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (None, [True] * 4),
        *[(empty, [False] * 4) for empty in ([], (), np.array([]), np.array([], int), np.array([], bool), range(0))],
        *[
            (indices, [False, False, True, True])
            for indices in ([2, 3], (3, 2), range(2, 4), np.array([2, 3], np.uint8))
        ],
        *[(mask, DONES.tolist()) for mask in (DONES, DONES.tolist(), DONES[:, None])],
        (2, [False, False, True, False]),
        (np.int64(0), [True, False, False, False]),
        (np.zeros(4, bool), [False] * 4),
        (np.flatnonzero(DONES), DONES.tolist()),
    ],
    ids=str,
)
def test_reset_of_the_sequences_named(kind: str, rows: Any, expected: list[bool], backend: str) -> None:
    s = stream_of(kind, backend)
    before = named("{}", s.state)
    s.reset(rows)
    assert zeroed(s) == expected
    for name, part in named("{}", s.state).items():
        np.testing.assert_array_equal(part[:, ~np.array(expected)], before[name][:, ~np.array(expected)])


@pytest.mark.parametrize("done", [True, np.True_, [True], np.array([[True]]), np.array(True)], ids=repr)
def test_one_sequences_done_may_be_a_single_bool(done: Any) -> None:
    s = stream_of(batch_size=1)
    s.reset(np.logical_not(done))
    assert zeroed(s) == [False]
    s.reset(done)
    assert zeroed(s) == [True]


MASK_CURE = "Is it a mask? Convert it with rows.astype('bool')"
BAD_ROWS: list[tuple[Any, type[Exception], str]] = [
    (DONES.astype(F32), TypeError, "rows must be indices or a bool mask, got dtype float32. " + MASK_CURE),
    (DONES.astype(float)[:, None], TypeError, "got dtype float64. " + MASK_CURE),
    (DONES.astype(int), ValueError, "rows names a sequence twice: [0, 0, 1, 1]. " + MASK_CURE),
    (DONES.astype(np.uint8), ValueError, "rows names a sequence twice: [0, 0, 1, 1]. " + MASK_CURE),
    (DONES.astype(int).tolist(), ValueError, "Is it a mask? Convert it with numpy.asarray(rows, 'bool')"),
    (
        DONES.astype(int)[:, None],
        ValueError,
        "rows has shape (4, 1), expected indices of one axis or a bool mask (4,). ",
    ),
    ([0.0], TypeError, "rows must be indices or a bool mask, got dtype float64"),
    (1.0, TypeError, "rows must be indices or a bool mask, got dtype float64"),
    ([1, 2, 1], ValueError, "rows names a sequence twice: [1, 2, 1]"),
    ([True, 0, 3, 1], ValueError, "rows names a sequence twice: [1, 0, 3, 1]"),
    ([4], ValueError, "rows must lie between 0 and batch_size - 1 = 3, got 4 to 4"),
    ([2, -1], ValueError, "rows must lie between 0 and batch_size - 1 = 3, got -1 to 2"),
    (np.array([2**64 - 1], np.uint64), ValueError, "rows must lie between 0 and batch_size - 1 = 3"),
    (2**70, TypeError, "got dtype object"),
    ([[0], [1]], ValueError, "rows has shape (2, 1), expected indices of one axis or a bool mask (4,)"),
    (DONES[:3], ValueError, "rows has shape (3,), expected (4,): a mask has one entry for each sequence of the stream"),
    (DONES[None], ValueError, "rows has shape (1, 4), expected (4,)"),
    (True, ValueError, "rows has shape (), expected (4,)"),
    ("2", TypeError, "got dtype <U1"),
    ([None], TypeError, "got dtype object"),
    (slice(0, 2), TypeError, "got dtype object"),
    ([[0], [1, 2]], TypeError, "rows cannot be made an array"),
]


@pytest.mark.parametrize(("rows", "error", "message"), BAD_ROWS, ids=[repr(rows) for rows, *_ in BAD_ROWS])
def test_a_bad_reset_resets_nothing(rows: Any, error: type[Exception], message: str) -> None:
    s = stream_of()
    before = named("{}", s.state)
    with pytest.raises(error, match=re.escape(message)):
        s.reset(rows)
    assert_same_bits(named("{}", s.state), before)


def test_two_small_integers_are_not_guessed() -> None:
    """An int8 array [0, 1] may be the indices of both sequences or a mask from C++ for the second: it is refused."""
    s = stream_of(batch_size=2)
    with pytest.raises(
        TypeError, match=re.escape("rows of dtype uint8 may be a mask or indices: [0, 1]. Is it a mask?")
    ):
        s.reset(np.array([0, 1], np.uint8))
    assert zeroed(s) == [False, False]
    s.reset(np.array([0, 1]))
    assert zeroed(s) == [True, True]


# ---------------------------------------------------------------------------------------------------------------- state
HN = np.ones((2, B, H), F32)
BAD_STATES: list[tuple[str, Any, type[Exception], str]] = [
    ("lstm", HN, TypeError, "state of LSTM is a pair (h, c), got ndarray"),
    ("lstm", np.stack([HN, HN]), TypeError, "state of LSTM is a pair (h, c), got ndarray"),
    ("lstm", {"h": HN, "c": HN}, TypeError, "state of LSTM is a pair (h, c), got dict"),
    ("lstm", (part for part in (HN, HN)), TypeError, "state of LSTM is a pair (h, c), got generator"),
    ("lstm", "hc", TypeError, "state of LSTM is a pair (h, c), got str"),
    ("lstm", (HN,), TypeError, "state of LSTM is a pair (h, c), got a tuple of 1"),
    ("lstm", (HN, None), TypeError, "state's c must hold real numbers, got dtype object"),
    ("lstm", (HN, HN > 0), TypeError, "state's c must hold real numbers, got dtype bool"),
    ("lstm", (HN, HN * 1j), TypeError, "state's c must hold real numbers, got dtype complex64"),
    ("lstm", (HN, HN.astype(float)), ValueError, "state's c has dtype float64, the layer float32"),
    ("lstm", (HN, HN[:1]), ValueError, "state's c has shape (1, 4, 5), expected (2, 4, 5): (num_layers, batch,"),
    ("lstm", (HN, HN[:, 0]), ValueError, "state's c has shape (2, 5), expected (2, 4, 5)"),
    ("gru", (HN,), TypeError, "state of GRU is one array h, got a tuple"),
    ("gru", [HN], TypeError, "state of GRU is one array h, got a list"),
    ("rnn", (HN, HN), TypeError, "state of RNN is one array h, got a tuple"),
    ("rnn", HN[0], ValueError, "state's h has shape (4, 5), expected (2, 4, 5)"),
    ("rnn", np.ma.array(HN, mask=HN > 0), TypeError, "state's h is a masked array, whose mask would be lost"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "state", "error", "message"), BAD_STATES, ids=[m for *_, m in BAD_STATES])
def test_a_bad_state_is_not_taken_in_part(kind: str, state: Any, error: type[Exception], message: str) -> None:
    s = stream_of(kind)
    before = named("{}", s.state)
    with pytest.raises(error, match=re.escape(message)):
        s.state = state
    assert_same_bits(named("{}", s.state), before)


@pytest.mark.parametrize("kind", LAYERS)
def test_no_state_is_the_zero_state(kind: str) -> None:
    """None means zeros, as in a call of a layer."""
    s = stream_of(kind)
    s.state = None
    assert zeroed(s) == [True] * B


# --------------------------------------------------------------------------------------------------------------- copies
@pytest.mark.parametrize(
    "make", [copy.copy, copy.deepcopy, lambda s: copy.deepcopy([s])[0]], ids=["copy", "deep", "in"]
)
@pytest.mark.parametrize("kind", LAYERS)
def test_copies_of_a_stream_go_their_own_way(kind: str, make: Any, backend: str) -> None:
    s = stream_of(kind, backend)
    before = named("{}", s.state)
    other, x = make(s), np.full((B, I), 0.5, F32)
    expected = s.copy().step(x)
    np.testing.assert_array_equal(other.step(x), expected)
    assert_same_bits(named("{}", s.state), before)
    np.testing.assert_array_equal(s.step(x), expected)
    other.reset()
    assert zeroed(s) == [False] * B and zeroed(other) == [True] * B


def test_a_stream_that_is_pickled_names_the_way(backend: str) -> None:
    s = stream_of("gru", backend)
    with pytest.raises(
        TypeError, match=re.escape("pickle (layer, stream.state), and assign the state to layer.stream(")
    ):
        pickle.dumps(s)
    layer, state = pickle.loads(pickle.dumps((fl.GRU(I, H, 2, backend=backend, seed=1), s.state)))
    again = layer.stream(B)
    again.state = state
    x = np.full((B, I), 0.5, F32)
    np.testing.assert_array_equal(again.step(x), s.step(x))


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_a_tape_is_not_copied(make: Any, backend: str) -> None:
    """Backward writes to a tape: two tapes with the same arrays would give wrong gradients without an error."""
    for layer in (fl.LSTM(I, H, backend=backend, seed=1), fl.Dense(I, H, seed=1)):
        *_, tape = layer.forward(np.ones((2, B, I), F32))
        with pytest.raises(
            TypeError, match=re.escape("can be neither copied nor pickled: call layer.forward(x) again")
        ):
            make(tape)


@pytest.mark.parametrize(
    "make", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["c", "d", "p"]
)
def test_copies_of_an_optimiser_have_moments_of_their_own(make: Any) -> None:
    layer = fl.RNN(I, H, seed=1)
    optimizer = fl.Adam(layer)
    gradients = {name: np.ones_like(p) for name, p in layer.state_dict().items()}
    optimizer.step(gradients)
    before = optimizer.state_dict()
    other = make(optimizer)
    assert_same_bits(other.state_dict(), before)
    other.step(gradients)
    assert_same_bits(optimizer.state_dict(), before)
    assert other.steps == 2 and not np.array_equal(other.state_dict()["0.bias_ih_l0.m"], before["0.bias_ih_l0.m"])


@pytest.mark.parametrize("make", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_training_copied_as_a_whole_stays_one(make: Any) -> None:
    """Layer, optimiser and schedules refer to one another; copied together, the copies refer to one another too."""
    layer = fl.RNN(I, H, seed=1)
    optimizer = fl.SGD(layer, lr=1.0)
    parts = (layer, optimizer, fl.SequentialLR(optimizer, [fl.LinearLR(optimizer), fl.StepLR(optimizer, 2)], [3]))
    layer_2, optimizer_2, schedule_2 = make(parts)
    assert optimizer_2.layers[0] is layer_2 and schedule_2.optimizer is optimizer_2
    assert all(s.optimizer is optimizer_2 for s in schedule_2.schedulers)
    schedule_2.step()
    optimizer_2.step({name: np.ones_like(p) for name, p in layer.state_dict().items()})
    assert (layer.version, layer_2.version) == (0, 1) and optimizer.lr != optimizer_2.lr
