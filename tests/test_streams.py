"""`StreamBatch`: its values, its handles, and what it refuses."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest
from cases import LAYERS, TOLERANCE, assert_near
from small import stepped

import fastlstm as fl
from fastlstm._backends import backends
from fastlstm.streams.slabs import SLAB, SLOT_BITS, Slabs

F32 = np.float32
I, H = 5, 19  # noqa: E741

# Every kind of layer; H is no multiple of a vector.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("lstm", {}),
    "gru": ("gru", {}),
    "rnn": ("rnn", {}),
    "lstm of three layers": ("lstm", {"num_layers": 3}),
    "gru of two layers": ("gru", {"num_layers": 2}),
    "rnn of two layers": ("rnn", {"num_layers": 2}),
    "projection": ("lstm", {"proj_size": 7, "num_layers": 2}),
    "peepholes": ("lstm", {"peepholes": True}),
    "input_forget, clip": ("lstm", {"input_forget": True, "clip": 0.3}),
    "reset_after=False": ("gru", {"reset_after": False, "num_layers": 2}),
    "other activations": ("gru", {"activations": ("hard_sigmoid", "softsign")}),
    "no bias": ("rnn", {"bias": False, "nonlinearity": "relu"}),
}


def made(model: str, backend: str, **options: Any) -> Any:
    kind, given = MODELS[model]
    return LAYERS[kind](I, H, backend=backend, seed=3, **given, **options)


def draw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def alone(layer: Any, x: Any) -> Any:
    """The outputs (n, T, U) of streams x (n, T, I) or token ids (n, T), each in a stream of its own."""
    streams = [layer.stream() for _ in x]
    return np.array([[s.step(row) for row in rows] for s, rows in zip(streams, x, strict=True)])


def assert_as_alone(got: Any, expected: Any, backend: str) -> None:
    """Equal in every bit for the compiled backend; BLAS's sums depend on the number of rows."""
    if backend == "c":
        np.testing.assert_array_equal(np.asarray(got).view(np.uint32), np.asarray(expected).view(np.uint32))
    else:
        assert_near(got, expected, TOLERANCE["values"])


# --------------------------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("model", MODELS)
def test_each_stream_gets_what_it_would_get_alone(model: str, backend: str) -> None:
    layer, x = made(model, backend), draw(40, 5, I)
    batch = fl.StreamBatch(layer, capacity=1)
    others = [batch.open() for _ in range(300)]  # the streams lie in two slabs
    handles = np.array([batch.open() for _ in x])
    assert batch.stats()["capacity"] == 2 * SLAB
    batch.close(others[5:295])
    handles[1] = batch.copy(handles[1])  # into a slot far from the others
    assert_as_alone(stepped(batch, handles, x), alone(layer, x), backend)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 12, 13, 100])
@pytest.mark.parametrize("model", ["lstm", "gru", "projection", "reset_after=False"])
def test_bits_do_not_depend_on_the_neighbours(model: str, n: int, backend: str) -> None:
    layer, x = made(model, backend), draw(n, 3, I)
    batch = fl.StreamBatch(layer)
    handles = np.array([batch.open() for _ in x])
    y = np.stack([batch.step(handles, x[:, t]) for t in range(3)], axis=1)
    assert_as_alone(y, alone(layer, x), backend)


def test_token_ids(backend: str) -> None:
    for model in ("lstm", "gru of two layers", "reset_after=False"):
        layer, ids = made(model, backend), np.random.default_rng(0).integers(0, I, (30, 4))
        batch = fl.StreamBatch(layer)
        handles = np.array([batch.open() for _ in ids])
        assert_as_alone(stepped(batch, handles, ids), alone(layer, ids), backend)
        a, b = batch.copy(int(handles[0])), batch.copy(int(handles[0]))
        assert_as_alone(batch.step(a, 3), batch.step([b], [3])[0], backend)


@pytest.mark.parametrize("storage", ["float16", "int8", "int16"])
@pytest.mark.parametrize("model", ["lstm", "projection", "reset_after=False", "rnn of two layers"])
def test_reduced_storage(model: str, storage: str, compiled: str) -> None:
    layer, x = made(model, compiled).quantize(storage), draw(40, 5, I)
    batch = fl.StreamBatch(layer)
    handles = np.array([batch.open() for _ in x])
    assert_as_alone(stepped(batch, handles, x), alone(layer, x), compiled)
    floats = fl.StreamBatch(made(model, compiled))
    assert floats.weights_id != batch.weights_id
    (state,) = batch.export(handles[:1])
    with pytest.raises(fl.StateError, match="other weights"):
        floats.restore([state])
    floats.restore([state], other_weights=True)
    floats.swap(layer)  # the same equation
    assert floats.weights_id == batch.weights_id


def test_float64() -> None:
    layer, x = made("projection", "numpy", dtype="float64"), draw(9, 4, I).astype(np.float64)
    batch = fl.StreamBatch(layer)
    handles = np.array([batch.open() for _ in x])
    y = stepped(batch, handles, x)
    assert y.dtype == np.float64
    assert_near(y, alone(layer, x), TOLERANCE["float64"])
    (again,) = batch.restore(batch.export(int(handles[2])))
    np.testing.assert_array_equal(batch.step(int(again), x[0, 0]), batch.step(int(handles[2]), x[0, 0]))


@pytest.mark.parametrize("model", MODELS)
def test_pieces_of_unequal_length(model: str, backend: str) -> None:
    layer, x = made(model, backend), draw(8, 9, I)
    batch = fl.StreamBatch(layer)
    handles = np.array([batch.open() for _ in x])
    lengths = np.array([3, 0, 9, 1, 1, 4, 0, 2])
    first = batch.feed(handles, np.concatenate([rows[:n] for rows, n in zip(x, lengths, strict=True)]), lengths)
    back = range(7, -1, -1)
    rest = batch.feed(handles[::-1], np.concatenate([x[i, lengths[i] :] for i in back]), (9 - lengths)[::-1])
    expected = alone(layer, x)
    assert_as_alone(first, np.concatenate([y[:n] for y, n in zip(expected, lengths, strict=True)]), backend)
    assert_as_alone(rest, np.concatenate([expected[i, lengths[i] :] for i in back]), backend)


@pytest.mark.parametrize("model", MODELS)
def test_pieces_of_one_stream(model: str, backend: str) -> None:
    """As steps, and with nothing changed in the streams beside it."""
    layer, x = made(model, backend), draw(3, 9, I)
    batch = fl.StreamBatch(layer)
    first, handle, last = (batch.open() for _ in x)
    expected = alone(layer, x[1:2])[0]
    wide = np.repeat(x[1], 2, axis=1)[:, ::2]  # not contiguous
    y = [batch.feed([handle], x[1, :4], [4]), batch.feed(handle, wide[4:6], [2]), batch.step(handle, x[1, 6])[None]]
    y.append(batch.feed(np.array([handle]), x[1, 7:], np.array([2]), np.empty_like(y[1])))
    assert_as_alone(np.concatenate(y), expected, backend)
    assert [batch.steps(h) for h in (first, handle, last)] == [0, 9, 0]
    assert_as_alone(batch.step([first, last], x[::2, 0]), alone(layer, x[::2, :1])[:, 0], backend)


def test_pieces_of_token_ids_and_of_equal_length(backend: str) -> None:
    layer, ids = made("gru", backend), np.random.default_rng(0).integers(0, I, (4, 6))
    batch = fl.StreamBatch(layer)
    handles, out = [batch.open() for _ in ids], np.empty((24, H), F32)
    assert batch.feed(handles, ids.reshape(-1), [6] * 4, out) is out
    assert_as_alone(out.reshape(4, 6, H), alone(layer, ids), backend)
    assert batch.feed(handles, ids[:0, 0], [0] * 4).shape == (0, H)
    assert batch.feed([], ids[:0, 0], []).shape == (0, H)


def test_nan_stays_in_its_stream(backend: str) -> None:
    for model in ("lstm", "gru", "reset_after=False", "projection"):
        layer, x = made(model, backend), draw(13, 2, I)
        batch = fl.StreamBatch(layer)
        handles = np.array([batch.open() for _ in x])
        expected = alone(layer, x)
        x[4, 0, 0] = np.nan
        y = np.stack([batch.step(handles, x[:, t]) for t in range(2)], axis=1)
        assert np.isnan(y[4]).all()
        others = np.arange(13) != 4
        assert_as_alone(y[others], expected[others], backend)
        batch.reset(handles[4])
        assert np.isfinite(batch.step(handles, x[:, 1])).all()


# ----------------------------------------------------------------------------------------------- forms of the arguments
def test_one_stream_and_out(backend: str) -> None:
    layer, x = made("lstm", backend), draw(3, I)
    batch = fl.StreamBatch(layer)
    a, b = batch.open("a"), batch.open("b")
    y = alone(layer, x[None])[0]
    assert_as_alone(batch.step(a, x[0]), y[0], backend)
    assert_as_alone(batch.step(a, x[1:2]), y[1:2], backend)
    out = np.empty(H, F32)
    assert batch.step(np.int64(a), x[2], out) is out
    assert_as_alone(out, y[2], backend)
    both = np.empty((2, H), F32)
    assert batch.step((b, a), x[:2], both) is both
    assert_as_alone(both[0], y[0], backend)
    assert batch.step([], x[:0]).shape == (0, H)
    assert batch.stats()["rows"] == 5 and batch.stats()["calls"] == 4


def test_strided_input_and_input_as_output(backend: str) -> None:
    layer = fl.LSTM(H, H, 2, backend=backend, seed=1)
    x = draw(4, 3, H)
    expected = alone(layer, x)
    batch = fl.StreamBatch(layer)
    handles = np.array([batch.open() for _ in x])
    assert_as_alone(batch.step(np.repeat(handles, 2)[::2], x[:, 0]), expected[:, 0], backend)
    row = x[:, 1].copy()
    assert batch.step(handles, row, row) is row
    assert_as_alone(row, expected[:, 1], backend)
    assert_as_alone(batch.step(handles, np.asfortranarray(x[:, 2]).astype(">f4")), expected[:, 2], backend)


REFUSED: dict[str, tuple[type[Exception], str, Any]] = {
    "a closed stream": (fl.StreamClosed, "is closed", lambda b, h, x: b.step([h[0], b.shut, h[1]], x[:3])),
    "a stream that comes twice": (ValueError, "comes twice", lambda b, h, x: b.step([h[0], h[1], h[0]], x[:3])),
    "the same as an array": (ValueError, "comes twice", lambda b, h, x: b.step(np.array(h)[[0, 1, 0]], x[:3])),
    "a number that is no handle": (fl.StreamClosed, "never given out", lambda b, h, x: b.step([h[0], 7], x[:2])),
    "a negative number": (fl.StreamClosed, "never given out", lambda b, h, x: b.step([h[0], -1], x[:2])),
    "a slot beyond all slabs": (fl.StreamClosed, "never given out", lambda b, h, x: b.step(h[0] + 5000, x[0])),
    "a later generation": (
        fl.StreamClosed, "never given out", lambda b, h, x: b.step(np.array([h[0] + (2 << SLOT_BITS)]), x[:1]),
    ),
    "a handle of a free slot's count": (
        fl.StreamClosed, "never given out", lambda b, h, x: b.step(np.array([b.shut + (1 << SLOT_BITS)]), x[:1]),
    ),
    "fewer rows": (ValueError, "x has 2 rows for 3 handles", lambda b, h, x: b.step(h[:3], x[:2])),
    "another width": (ValueError, "last axis must be input_size = 5", lambda b, h, x: b.step(h[:2], x[:2, :4])),
    "another dtype": (ValueError, "float64", lambda b, h, x: b.step(h[:2], x[:2].astype(float))),
    "token ids beyond the rows": (ValueError, "token ids must lie", lambda b, h, x: b.step(h[:2], [0, 5])),
    "handles that are floats": (TypeError, "handles are integers", lambda b, h, x: b.step([0.5, 1.0], x[:2])),
    "handles that are bools": (TypeError, "handles are integers", lambda b, h, x: b.step([True, False], x[:2])),
    "handles of two axes": (ValueError, "expected one handle", lambda b, h, x: b.step([h[:2], h[:2]], x[:2])),
    "an array of two axes": (ValueError, "expected one handle", lambda b, h, x: b.step(np.array([h[:2]]), x[:2])),
    "nested handles": (TypeError, "handles cannot be made an array", lambda b, h, x: b.step([h[0], h[:2]], x[:2])),
    "a key for a handle": (TypeError, "open and handle_of return", lambda b, h, x: b.steps("k")),
    "the key's handle, of a key": (TypeError, "open and handle_of return", lambda b, h, x: b.key_of("k")),
    "a key to be copied": (TypeError, "open and handle_of return", lambda b, h, x: b.copy("k")),
    "a fraction of a handle": (TypeError, "handles are integers", lambda b, h, x: b.steps(h[0] + 0.5)),
    "no handle but a row": (ValueError, "x has 1 rows for 0", lambda b, h, x: b.step(np.array([], np.int64), x[:1])),
    "a word for drop": (TypeError, "drop must be True or False", lambda b, h, x: b.export(h[0], drop="no")),
    "one state, no list": (TypeError, r"got bytes: .* \[state\]", lambda b, h, x: b.restore(b.export(h[0])[0])),
    "a word for other_weights": (
        TypeError, "other_weights must be", lambda b, h, x: b.restore(b.export(h[0]), other_weights="no"),
    ),
    "more room than handles can name": (fl.StreamsFull, "67,108,864", lambda b, h, x: b.reserve(10**12)),
    "no time to be idle for": (ValueError, "needs a time", lambda b, h, x: b.evict_idle()),
    "huge handles": (ValueError, "below 2", lambda b, h, x: b.step(np.array([1 << 63], np.uint64), x[:1])),
    "an output of another shape": (
        ValueError, "out has shape", lambda b, h, x: b.step(h[:2], x[:2], np.empty((3, H), F32)),
    ),
    "pieces: other lengths": (ValueError, "lengths say 4", lambda b, h, x: b.feed(h[:2], x[:3], [2, 2])),
    "pieces: a negative length": (ValueError, "0 or more", lambda b, h, x: b.feed(h[:2], x[:3], [4, -1])),
    "pieces: lengths that are floats": (TypeError, "integers", lambda b, h, x: b.feed(h[:2], x[:3], [1.0, 2.0])),
    "one piece: another length": (ValueError, "lengths say 2", lambda b, h, x: b.feed([int(h[0])], x[:3], [2])),
    "one piece: a bool": (TypeError, "integers", lambda b, h, x: b.feed([int(h[0])], x[:1], [True])),
    "one piece: a closed stream": (fl.StreamClosed, "is closed", lambda b, h, x: b.feed([b.shut], x[:3], [3])),
    "one piece: no number": (fl.StreamClosed, "never given", lambda b, h, x: b.feed([-1], x[:3], [3])),
    "pieces: too few lengths": (ValueError, "one entry for each handle", lambda b, h, x: b.feed(h[:2], x[:3], [3])),
    "pieces: a stream twice": (ValueError, "comes twice", lambda b, h, x: b.feed([h[0]] * 2, x[:3], [1, 2])),
    "pieces: a closed stream": (fl.StreamClosed, "is closed", lambda b, h, x: b.feed([h[0], b.shut], x[:3], [3, 0])),
    "closing twice": (fl.StreamClosed, "is closed", lambda b, h, x: b.close([h[0], b.shut])),
    "closing one two times": (ValueError, "comes twice", lambda b, h, x: b.close([h[0], h[0]])),
    "resetting a closed one": (fl.StreamClosed, "is closed", lambda b, h, x: b.reset([h[0], b.shut])),
    "copying a closed one": (fl.StreamClosed, "is closed", lambda b, h, x: b.copy(b.shut)),
    "exporting a closed one": (fl.StreamClosed, "is closed", lambda b, h, x: b.export([h[0], b.shut], drop=True)),
    "a key that is open": (ValueError, "key 'k' has an open stream", lambda b, h, x: b.open("k")),
    "the weights of another equation": (ValueError, "same equation, sizes", lambda b, h, x: b.swap(fl.GRU(I, H))),
    "weights of another size": (ValueError, "same equation, sizes", lambda b, h, x: b.swap(fl.LSTM(I, H + 1))),
    "weights of no layer": (TypeError, "model must be", lambda b, h, x: b.swap(fl.Dense(I, H))),
}  # fmt: skip


class WithShut(fl.StreamBatch):
    shut: int  # a handle of a stream that was closed


@pytest.mark.parametrize("what", REFUSED)
def test_an_error_comes_before_any_state_changes(what: str, backend: str) -> None:
    error, message, call = REFUSED[what]
    batch, x = WithShut(made("lstm", backend)), draw(8, I)
    handles = [batch.open() for _ in range(6)] + [batch.open("k")]
    batch.shut = batch.open()
    batch.close(batch.shut)
    batch.step(handles, x[:7])
    before = batch.export(handles), len(batch), list(batch.keys()), batch.stats()["capacity"]
    with pytest.raises(error, match=message):
        call(batch, handles, x)
    assert (batch.export(handles), len(batch), list(batch.keys()), batch.stats()["capacity"]) == before


def test_a_step_of_no_stream(backend: str) -> None:
    batch, none = fl.StreamBatch(made("lstm", backend)), np.empty((0, I), F32)
    for handles in (np.array([], np.int64), [], ()):
        assert batch.step(handles, none).shape == (0, H)
        assert batch.feed(handles, none, handles).shape == (0, H)
    assert batch.stats()["rows"] == 0


def test_what_cannot_stream_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="a bidirectional layer cannot stream"):
        fl.StreamBatch(fl.LSTM(I, H, bidirectional=True))
    for model in (fl.Dense(I, H), fl.LSTMCell(I, H), "lstm", None):
        with pytest.raises(TypeError, match=f"model must be an LSTM, .* or a Sequential, got {type(model).__name__}"):
            fl.StreamBatch(model)
    for options in ({"capacity": 0}, {"max_streams": 0}, {"idle_seconds": -1}, {"threads": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            fl.StreamBatch(fl.GRU(I, H), **options)
    with pytest.raises(TypeError, match="on_evict must be a function"):
        fl.StreamBatch(fl.GRU(I, H), on_evict=3)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- handles and keys
def test_a_stale_handle_never_reads_another_stream(backend: str) -> None:
    batch, x = fl.StreamBatch(made("lstm", backend)), draw(2, I)
    stale = batch.open("a")
    batch.step(stale, x[0])
    batch.close(stale)
    for _ in range(5):
        new = batch.open("a")
        assert new != stale and new % (1 << SLOT_BITS) == stale % (1 << SLOT_BITS), "the slot was taken again"
        with pytest.raises(fl.StreamClosed, match="is closed"):
            batch.step(stale, x[0])
        with pytest.raises(fl.StreamClosed, match="is closed"):
            batch.export(stale)
        assert stale not in batch and new in batch and batch.handle_of("a") == new
        assert_as_alone(batch.step(new, x[1]), alone(made("lstm", backend), x[1:, None])[0, 0], backend)
        batch.close(new)
        stale = new


def test_a_slot_whose_generations_are_used_up_rests() -> None:
    from fastlstm.streams.slabs import LAST_GENERATION

    slabs = Slabs(4, np.dtype(F32))
    slabs.grow()
    slabs.info(0)["generation"] = LAST_GENERATION - 1
    last = slabs.take(0.0)
    assert last == (LAST_GENERATION << SLOT_BITS) and last < 2**63
    slabs.give_back(0)
    assert slabs.take(0.0) & ((1 << SLOT_BITS) - 1) == 1
    with pytest.raises(fl.StreamClosed):
        slabs.find([last])


def test_keys() -> None:
    batch = fl.StreamBatch(fl.GRU(I, H))
    a, b, c = batch.open("a"), batch.open(), batch.open(("tuple", 3))
    assert list(batch.keys()) == ["a", ("tuple", 3)] and batch.handle_of(("tuple", 3)) == c
    assert batch.key_of(a) == "a" and batch.key_of(b) is None and len(batch) == 3
    assert a in batch and np.int64(b) in batch and 0 not in batch and True not in batch and "a" not in batch
    np.testing.assert_array_equal(batch.handles(), [a, b, c])
    batch.close([a, c])
    assert list(batch.keys()) == [] and len(batch) == 1
    with pytest.raises(KeyError):
        batch.handle_of("a")
    d = batch.copy(b, key="d")
    assert batch.key_of(d) == "d"


# ------------------------------------------------------------------------------------------------------ room, idle ones
@pytest.mark.parametrize("width", [1, 16, 17, 256, 300, 1000, 3000])
@pytest.mark.parametrize("capacity", [1, 5000])
def test_records_lie_apart_at_cache_lines(width: int, capacity: int) -> None:
    slabs = Slabs(width, np.dtype(F32))
    while slabs.capacity < capacity:
        slabs.grow(-(-(capacity - slabs.capacity) // SLAB))
    slabs.grow()
    starts = np.array([a.__array_interface__["data"][0] + 4 * slabs.stride * np.arange(SLAB) for a in slabs.records])
    ordered = np.sort(starts.reshape(-1))
    assert (starts % 64 == 0).all() and (np.diff(ordered) >= 4 * width).all()
    for a in slabs.records:
        assert not a.any()
        a[...] = 1
    assert all((a == 1).all() for a in slabs.records)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("capacity", [1, 40_000])
def test_after_a_fork_the_child_has_states_of_its_own(capacity: int) -> None:
    layer, x = fl.LSTM(I, 64, seed=1), draw(1, 3, I)
    batch = fl.StreamBatch(layer, capacity=capacity)
    handle = batch.open()
    batch.step(handle, x[0, 0])
    pid = os.fork()
    if pid == 0:
        try:
            for _ in range(5):
                batch.step(handle, x[0, 2])
            batch.close(handle)
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    np.testing.assert_array_equal(batch.step(handle, x[0, 1]), alone(layer, x)[0, 1])


def test_growth_moves_no_state(backend: str) -> None:
    batch, x = fl.StreamBatch(made("lstm", backend), capacity=1), draw(1, 2, I)
    first = batch.open()
    batch.step(first, x[0, 0])
    at = [a.__array_interface__["data"][0] for a in batch._slabs.records]
    assert all(address % 64 == 0 for address in at)
    for _ in range(3 * SLAB):
        batch.open()
    now = [a.__array_interface__["data"][0] for a in batch._slabs.records]
    assert now[: len(at)] == at and batch.stats()["capacity"] == 4 * SLAB
    assert_as_alone(batch.step(first, x[0, 1]), alone(made("lstm", backend), x)[0, 1], backend)
    batch.reserve(10 * SLAB)
    assert batch.stats()["capacity"] == 10 * SLAB and batch.stats()["streams"] == 3 * SLAB + 1


def test_free_places_are_taken_again_lowest_first() -> None:
    batch = fl.StreamBatch(fl.GRU(I, H))
    handles = [batch.open() for _ in range(600)]
    batch.close(handles[::-1][100:500])
    again = [batch.open() % (1 << SLOT_BITS) for _ in range(400)]
    assert again == list(range(100, 500)) and batch.stats()["capacity"] == 3 * SLAB


def test_no_more_than_max_streams() -> None:
    batch = fl.StreamBatch(fl.GRU(I, H), max_streams=3)
    a = batch.open()
    batch.open(), batch.open()
    with pytest.raises(fl.StreamsFull, match="3 streams are open and max_streams is 3; idle_seconds is not set"):
        batch.open()
    with pytest.raises(fl.StreamsFull, match="3 streams are open"):
        batch.copy(a)
    with pytest.raises(fl.StreamsFull, match="3 streams are open"):
        batch.restore(batch.export(a), keys=["x"])
    assert len(batch) == 3 and not batch.keys()
    with pytest.raises(fl.StreamsFull, match="max_streams is 3"):
        batch.reserve(4)
    batch.close(a)
    batch.open()


def test_idle_streams_make_room() -> None:
    now, kept = [100.0], {}  # type: ignore[var-annotated]
    layer, x = fl.GRU(I, H, seed=1), draw(3, I)
    batch = fl.StreamBatch(layer, max_streams=2, idle_seconds=10, on_evict=kept.__setitem__, clock=lambda: now[0])
    a, b = batch.open("a"), batch.open("b")
    batch.step([a, b], x[:2])
    now[0] += 8
    batch.step(b, x[2])
    with pytest.raises(fl.StreamsFull, match="none has been idle for so long"):
        batch.open("c")
    now[0] += 3  # a is idle for 11 s, b for 3 s
    state = batch.export(a)[0]
    c = batch.open("c")
    assert kept == {"a": state} and a not in batch and b in batch and list(batch.keys()) == ["b", "c"]
    assert batch.stats()["evicted"] == 1
    batch.close(c)
    a = batch.open("a", state=kept["a"])
    np.testing.assert_array_equal(batch.step(a, x[2]), expected_after(layer, x[[0, 2]]))


def expected_after(layer: Any, rows: Any) -> Any:
    """The last output of a stream over these rows."""
    return alone(layer, rows[None])[0, -1]


def test_eviction_by_hand_and_an_on_evict_that_fails() -> None:
    now = [0.0]
    fails: list[Any] = ["b"]

    def keep(key: Any, state: bytes) -> None:
        if key in fails:
            raise OSError("the database is away")

    batch = fl.StreamBatch(fl.GRU(I, H), on_evict=keep, clock=lambda: now[0])
    handles = [batch.open(key) for key in "abc"]
    with pytest.raises(ValueError, match="needs a time"):
        batch.evict_idle()
    now[0] = 5.0
    batch.feed(handles[2:], draw(2, I), [2])
    assert batch.evict_idle(6) == [] and batch.evict_idle(4, at_most=0) == []
    with pytest.raises(OSError, match="the database is away"):
        batch.evict_idle(4)
    assert list(batch.keys()) == ["b", "c"], "what on_evict has is closed, what it refused is open"
    fails.clear()
    ((key, state),) = batch.evict_idle(4)
    assert key == "b" and len(batch) == 1 and batch.restore([state], keys=["b"])


# -------------------------------------------------------------------------------------------------------- new weights
def test_new_weights_between_two_steps(backend: str) -> None:
    old, new, x = made("lstm", backend), made("lstm", backend), draw(2, 3, I)
    with new.update() as params:
        for p in params.values():
            p *= 0.5
    batch = fl.StreamBatch(old)
    handles = [batch.open() for _ in x]
    batch.step(handles, x[:, 0])
    one = old.stream(2)
    one.step(x[:, 0])
    before = batch.weights_id
    batch.swap(new)
    other = new.stream(2)
    other.state = one.state
    assert_as_alone(batch.step(handles, x[:, 1]), other.step(x[:, 1]), backend)
    assert batch.weights_id != before and batch.weights_id == fl.StreamBatch(new).weights_id
    batch.swap(old, keep_states=False)
    assert batch.weights_id == before
    assert_as_alone(batch.step(handles, x[:, 1]), old.stream(2).step(x[:, 1]), backend)
    assert batch.stats()["calls"] == 3


def test_later_changes_of_the_layer_do_not_reach_the_streams(backend: str) -> None:
    layer, x = made("gru", backend), draw(1, I)
    batch = fl.StreamBatch(layer)
    expected = layer.stream().step(x)
    with layer.update() as params:
        for p in params.values():
            p *= 2
    assert_as_alone(batch.step([batch.open()], x), expected, backend)


# ------------------------------------------------------------------------------------------------------------- threads
def test_threads_do_not_change_bits() -> None:
    for backend in (name for name, why in backends().items() if why is None):
        layer, x = fl.LSTM(64, 96, 2, backend=backend, seed=1), draw(700, 2, 64)
        y = []
        for threads in (1, 2, 3):
            batch = fl.StreamBatch(layer, threads=threads)
            handles = np.array([batch.open() for _ in x])[::-1].copy()
            y.append([batch.step(handles, x[:, t]) for t in range(2)])
        assert_as_alone(y[1], y[0], backend)
        assert_as_alone(y[2], y[0], backend)


def test_another_thread_in_the_midst_of_a_step_is_told_so(backend: str) -> None:
    layer, x = fl.LSTM(16, 64, backend=backend, seed=1), draw(3000, 16)
    batch = fl.StreamBatch(layer)
    handles = np.array([batch.open() for _ in x])
    errors: list[RuntimeError] = []
    stop = threading.Event()

    def meddle() -> None:
        while not stop.is_set():
            try:
                batch.open()
                batch.close(batch.handles()[-1:])
            except RuntimeError as error:
                errors.append(error)
            except fl.StreamClosed:
                pass

    thread = threading.Thread(target=meddle)
    single = fl.StreamBatch(layer)
    own = np.array([single.open() for _ in x])
    thread.start()
    try:
        for turn in range(1000):
            np.testing.assert_array_equal(batch.step(handles, x), single.step(own, x))
            if errors and turn >= 3:
                break
    finally:
        stop.set()
        thread.join()
    assert errors and "another thread is in the midst of a step" in str(errors[0])
