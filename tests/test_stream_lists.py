"""Models that are lists: their streams have the values of the parts one after another."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import TOLERANCE, assert_near
from small import stepped

import fastlstm as fl
from fastlstm import nn, spec
from fastlstm._backends import module
from fastlstm._backends.numpy.activations import act
from fastlstm.nn import stepping
from fastlstm.nn.activation import activate

F32 = np.float32
I, H, U = 5, 19, 7  # noqa: E741


def draw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def built(*modules: Any, x: Any) -> Any:
    model = fl.Sequential(modules, seed=4)
    model(x)
    return model


def parts(name: str, backend: str) -> Any:
    """A model that is a list, by name."""
    lstm = fl.LSTM(I, H, 2, backend=backend, seed=1)
    gru = fl.GRU(U, H, reset_after=False, backend=backend, seed=2)
    dense, square = fl.Dense(H, U, backend=backend, seed=3), fl.Dense(H, H, False, backend=backend, seed=5)
    before = fl.Dense(I, U, backend=backend, seed=6)
    return {
        "head": [lstm, dense],
        "head and sigmoid": [lstm, dense, "sigmoid"],
        "activations between": [before, "relu", gru, ("leaky_relu", 0.2), square, "tanh", dense, "softmax"],
        "a wide head": [lstm, fl.Dense(H, 150, backend=backend, seed=7), "softmax"],
        "layers alone": [before, gru, fl.RNN(H, 3, backend=backend, seed=8)],
        "cells of many widths": [fl.RNN(I, U, backend=backend, seed=9), gru, dense],
    }[name]


NAMES = ("head", "head and sigmoid", "activations between", "a wide head", "layers alone", "cells of many widths")


def one_after_another(model: Any, x: Any) -> Any:
    """Outputs (n, T, U) of the parts one after another, each stream alone."""
    y = []
    for rows in x:
        streams = [part.stream() if hasattr(part, "stream") else None for part in model]
        y.append([])
        for row in rows:
            for part, stream in zip(model, streams, strict=True):
                if stream is not None:
                    row = stream.step(row)
                elif callable(part):
                    row = part(row)
                else:
                    row = activate(part, row)
            y[-1].append(row)
    return np.array(y)


def assert_equal_bits(got: Any, expected: Any) -> None:
    np.testing.assert_array_equal(np.asarray(got).view(np.uint32), np.asarray(expected).view(np.uint32))


# --------------------------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("name", NAMES)
def test_a_list_has_the_values_of_its_parts(name: str, backend: str) -> None:
    model, x = parts(name, backend), draw(9, 4, I)
    batch = fl.StreamBatch(model)
    y = stepped(batch, np.array([batch.open() for _ in x]), x)
    expected = one_after_another(model, x)
    if backend == "c" and not any(isinstance(part, (str, tuple)) for part in model):
        assert_equal_bits(y, expected)
    else:  # NumPy's exp differs in the last place, and so do BLAS's sums
        assert_near(y, expected, TOLERANCE["values"])


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_its_neighbours(name: str) -> None:
    model, x = parts(name, "c"), draw(150, 3, I)
    batch = fl.StreamBatch(model)
    alone = [batch.open() for _ in x]
    y = np.array([[batch.step(h, row) for row in rows] for h, rows in zip(alone, x, strict=True)])
    together = np.array([batch.open() for _ in x])
    assert_equal_bits(np.stack([batch.step(together, x[:, t]) for t in range(3)], axis=1), y)
    assert_equal_bits(stepped(batch, np.array([batch.open() for _ in x]), x), y)
    pieces = [batch.open() for _ in x]
    assert_equal_bits(batch.feed(pieces, x.reshape(-1, I), [3] * len(x)).reshape(y.shape), y)
    one_piece = [batch.feed([batch.open()], rows, [3]) for rows in x[:9]]
    assert_equal_bits(one_piece, y[:9])
    unequal = batch.feed(pieces[:3], x[:3, :2].reshape(-1, I)[:5], [2, 2, 1])
    single = [batch.step(h, row) for h, row in zip(together[:3], x[:3, 0], strict=True)]
    assert_equal_bits(unequal[[0, 2, 4]], single)
    two = fl.StreamBatch([fl.LSTM(I, 64, seed=1), fl.Dense(64, 150, seed=2), "softmax"], threads=2)
    one = fl.StreamBatch([fl.LSTM(I, 64, seed=1), fl.Dense(64, 150, seed=2), "softmax"])
    for n in (16, 17, 150):
        got = [b.step(np.array([b.open() for _ in range(n)]), x[:n, 0]) for b in (two, one)]
        assert_equal_bits(*got)


@pytest.mark.parametrize("name", [*spec.ACTIVATIONS, "softmax", "linear"])
def test_every_activation(name: str, backend: str) -> None:
    x = draw(13, I) * F32(4)
    for given in [name] if name in ("softmax", "linear") else [name, (name, 0.3, 0.7)]:
        rnn = fl.RNN(I, 33, nonlinearity="identity", backend=backend, seed=1)
        batch, plain = fl.StreamBatch([rnn, given]), fl.StreamBatch(rnn)
        got = batch.step([batch.open() for _ in x], x)
        a = plain.step([plain.open() for _ in x], x).astype(np.float64)
        expected = activate(name, a) if name in ("softmax", "linear") else act(spec.activation(given), a)
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-7)


def test_a_softmax_of_nan_and_infinity_stays_in_its_row(backend: str) -> None:
    x = draw(4, I)
    x[1, 2], x[2, 0] = np.nan, np.inf
    batch = fl.StreamBatch([fl.RNN(I, H, nonlinearity="identity", backend=backend, seed=1), "softmax"])
    with np.errstate(invalid="ignore"):
        y = batch.step([batch.open() for _ in x], x)
    assert np.isnan(y[1]).all() and np.isnan(y[2]).any()
    np.testing.assert_allclose(y[[0, 3]].sum(axis=1), 1, rtol=1e-6)


def test_a_sequential_with_an_embedding_and_residuals(backend: str) -> None:
    ids = np.random.default_rng(0).integers(0, 11, (8, 6))
    options = {"backend": backend}
    model = built(
        fl.nn.Embedding(11, 16, **options),
        fl.nn.Residual(fl.nn.LSTM(16, return_sequences=True, **options)),
        fl.nn.Dropout(0.5, **options),
        fl.nn.Residual(fl.nn.Dense(16, "relu", **options)),
        fl.nn.Activation("softsign", **options),
        fl.nn.Dense(U, "softmax", **options),
        x=ids,
    )
    batch = fl.StreamBatch(model)
    handles = np.array([batch.open() for _ in ids])
    assert_near(stepped(batch, handles, ids), model.eval()(ids), TOLERANCE["values"])
    with pytest.raises(TypeError, match="begins with an Embedding, which takes token ids"):
        batch.step(handles, draw(8, 11))
    before = batch.export(handles)
    with pytest.raises(ValueError, match="token ids must lie between 0 and input_size - 1 = 10, got 0 to 11"):
        batch.step(handles, np.array([0, 1, 2, 3, 4, 5, 6, 11]))
    assert batch.export(handles) == before


@pytest.mark.parametrize("storage", ["float16", "int8", "int16"])
def test_recurrent_layers_keep_their_storage(storage: str) -> None:
    layer, dense, x = fl.LSTM(I, H, 2, seed=1).quantize(storage), fl.Dense(H, U, seed=2), draw(30, 3, I)
    batch, floats = fl.StreamBatch([layer, dense]), fl.StreamBatch([fl.LSTM(I, H, 2, seed=1), dense])
    handles = np.array([batch.open() for _ in x])
    assert_equal_bits(stepped(batch, handles, x), one_after_another([layer, dense], x))
    assert batch.weights_id != floats.weights_id
    copies, ids = [batch.copy(int(h)) for h in handles[:3]], [0, 4, 2]
    assert_equal_bits(batch.step(handles[:3], ids), [batch.step(h, i) for h, i in zip(copies, ids, strict=True)])


# --------------------------------------------------------------------------------------------------- states and weights
def test_states_come_back_and_weights_are_exchanged(backend: str, tmp_path: Any) -> None:
    model, x = parts("activations between", backend), draw(5, 4, I)
    batch = fl.StreamBatch(model)
    handles = np.array([batch.open(key=i) for i in range(5)])
    batch.step(handles, x[:, 0])
    states = batch.export(handles)
    batch.snapshot(tmp_path / "streams")
    expected = batch.step(handles, x[:, 1])
    other = fl.StreamBatch(parts("activations between", backend))
    assert other.weights_id == batch.weights_id
    assert_near(other.step(other.restore(states), x[:, 1]), expected, 1e-6)
    loaded = fl.StreamBatch.load(model, tmp_path / "streams")
    assert_near(loaded.step([loaded.handle_of(i) for i in range(5)], x[:, 1]), expected, 1e-6)
    with pytest.raises(fl.StateError, match="of another model"):
        fl.StreamBatch(parts("head", backend)).restore(states)
    trained = parts("activations between", backend)
    with trained[0].update() as params:
        params["weight"][...] *= 2
    fresh = fl.StreamBatch(trained)
    assert fresh.weights_id != batch.weights_id
    with pytest.raises(fl.StateError, match="other weights"):
        fresh.restore(states)
    batch.swap(trained)
    restored = fresh.restore(states_after_two(model, x), other_weights=True)
    assert_near(batch.step(handles, x[:, 2]), fresh.step(restored, x[:, 2]), 1e-6)
    with pytest.raises(ValueError, match="make another StreamBatch"):
        batch.swap(parts("head", backend))


def states_after_two(model: Any, x: Any) -> list[bytes]:
    """The states after two steps."""
    batch = fl.StreamBatch(model)
    handles = [batch.open() for _ in x]
    batch.feed(handles, x[:, :2].reshape(-1, I), [2] * len(x))
    return batch.export(handles)


def test_later_changes_do_not_reach_the_streams() -> None:
    model, x = parts("head", "c"), draw(2, I)
    batch = fl.StreamBatch(model)
    expected = batch.step([batch.open(), batch.open()], x)
    for part in model:
        with part.update() as params:
            for p in params.values():
                p[...] = 0
    assert_equal_bits(batch.step([batch.open(), batch.open()], x), expected)


def test_the_instruction_sets_of_the_parts_may_differ() -> None:
    c = module("c")
    names = [name for name, why in c.isas().items() if why is None]
    model, x = parts("layers alone", "c"), draw(7, I)
    with c.use_isa(names[-1]):
        model[1](draw(1, 1, U))  # packs the GRU
    batch = fl.StreamBatch(model)
    y = batch.step([batch.open() for _ in x], x)
    assert_near(y, one_after_another(parts("layers alone", "numpy"), x[:, None])[:, 0], TOLERANCE["values"])


# ------------------------------------------------------------------------------------------------------------- refusals
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "empty": (list, ValueError, "a model needs at least one layer, got an empty list"),
    "no recurrent layer": (lambda: [fl.Dense(3, 4), "tanh"], ValueError, "has no recurrent layer"),
    "two directions": (
        lambda: [fl.LSTM(3, 4, bidirectional=True), fl.Dense(8, 2)],
        ValueError,
        "cannot run step by step: its reverse direction begins at the sequence's end",
    ),
    "not built": (
        lambda: fl.Sequential([fl.nn.LSTM(4), fl.nn.Dense(2)]),
        ValueError,
        "the model is not built yet: call it once",
    ),
    "float64": (
        lambda: [fl.LSTM(3, 4, dtype="float64"), fl.Dense(4, 2, dtype="float64")],
        ValueError,
        "has dtype float64, but a step runs in float32",
    ),
    "widths": (
        lambda: [fl.LSTM(3, 4), fl.Dense(5, 2)],
        ValueError,
        "gives 4 numbers, but Dense.5, 2, 'linear'. behind",
    ),
    "two backends": (
        lambda: [fl.LSTM(3, 4, backend="numpy"), fl.GRU(4, 4, backend="c")],
        ValueError,
        "the layers of a list have the backends c and numpy: make all of them with the same one",
    ),
    "a dense layer of another backend": (
        lambda: [fl.LSTM(3, 4, backend="c"), fl.Dense(4, 4, backend="numpy")],
        ValueError,
        "the layers of a list have the backends c and numpy",
    ),
    "no part of a model": (lambda: [fl.LSTM(3, 4), 5], TypeError, "a model is a list of recurrent layers, .*got int"),
    "an unknown activation": (lambda: [fl.LSTM(3, 4), "sigmoit"], ValueError, "activation 'sigmoit' is not known"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_stream_is_refused_by_name(case: str) -> None:
    make, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        fl.StreamBatch(make())


def test_input_that_does_not_fit(backend: str) -> None:
    batch = fl.StreamBatch(parts("activations between", backend))
    h = batch.open()
    before = batch.export(h)
    with pytest.raises(
        TypeError, match=r"begins with a dense layer, which takes numbers of dtype float32 and shape \(1, 5\)"
    ):
        batch.step(h, 3)
    with pytest.raises(ValueError, match=r"x has shape \(4,\), expected"):
        batch.step(h, draw(4))
    with pytest.raises(ValueError, match="out"):
        batch.step(h, draw(I), out=np.empty(3, F32))
    assert batch.export(h) == before


# ---------------------------------------------------------------------------------------------------- Sequential.stream
def recurrent_model(**options: Any) -> Any:
    x = draw(2, 3, I).astype(options.get("dtype", "float32"))
    return built(
        fl.nn.Dense(U, "relu", **options),
        fl.nn.GRU(H, return_sequences=True, **options),
        fl.nn.Residual(fl.nn.LSTM(H, return_sequences=True, **options)),
        fl.nn.Dense(3, "softmax", **options),
        x=x,
    )


@pytest.mark.parametrize("by_parts", [False, True])
def test_a_stream_of_a_sequential_is_one_call_of_c(by_parts: bool, monkeypatch: Any) -> None:
    if by_parts:
        monkeypatch.setattr(stepping, "MUCH_WORK", 0)
    model, x = recurrent_model(backend="c"), draw(4, 6, I)
    streams = fl.StreamBatch(model)
    handles = [streams.open() for _ in x]
    expected = np.stack([streams.step(handles, x[:, t]) for t in range(6)], axis=1)
    stream = model.stream(4)
    assert isinstance(stream._steps, stepping.BoundSteps) and len(stream._steps._calls) == (5 if by_parts else 1)
    for p in model._live().values():
        p[...] = 0  # later changes do not reach the stream
    first = [stream.step(x[:, t]) for t in range(3)]
    kept = stream.state
    assert [np.shape(part) for part in (kept[0], *kept[1])] == [(1, 4, H)] * 3
    assert_equal_bits(np.stack(first + [stream.step(x[:, t]) for t in range(3, 6)], axis=1), expected)
    stream.state = kept
    assert_equal_bits(stream.step(np.asfortranarray(x[:, 3])), expected[:, 3])
    stream.reset([1, 2])
    y = stream.step(x[:, 0])
    assert_equal_bits(y[[1, 2]], expected[[1, 2], 0])
    before = stream.state
    with pytest.raises(ValueError, match="state's c has shape"):
        stream.state = [kept[0], (kept[1][0], kept[1][1][:, :2])]
    with pytest.raises(ValueError, match="the model has 2 recurrent modules, got 1 states"):
        stream.state = kept[:1]
    with pytest.raises(ValueError, match="x has shape"):
        stream.step(x[:3, 0])
    for got, wanted in zip(stream.state, before, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_stream_of_token_ids_and_of_one_sequence() -> None:
    ids = np.random.default_rng(0).integers(0, 11, 6)
    model = built(fl.nn.Embedding(11, 4, backend="c"), fl.nn.LSTM(H, backend="c"), x=ids[None])
    stream, batch = model.stream(), fl.StreamBatch(model)
    handle = batch.open()
    for i in ids:
        assert_equal_bits(stream.step(np.array([i])), batch.step([handle], [i]))
    assert stream.step(3).shape == (H,)
    before = stream.state[0][0]
    with pytest.raises(ValueError, match="token ids must lie between 0 and input_size - 1 = 10"):
        stream.step([11])
    np.testing.assert_array_equal(stream.state[0][0], before)
    both = built(fl.nn.LSTM(H, backend="c"), fl.nn.Dense(2, backend="c"), x=draw(1, 2, 11))  # numbers or one-hot ids
    one, other = both.stream(), both.stream()
    for i in (3, 0):
        assert_equal_bits(one.step([i]), other.step(np.eye(11, dtype=F32)[[i]]))


@pytest.mark.parametrize(
    "options", [{"backend": "numpy"}, {"backend": "numba"}, {"dtype": "float64", "backend": "numpy"}]
)
def test_other_streams_go_module_by_module(options: dict[str, str]) -> None:
    if options["backend"] == "numba":
        pytest.importorskip("numba")
    model = recurrent_model(**options)
    x = draw(2, 5, I).astype(model.dtype)
    whole, stream = model(x), model.stream(2)
    assert isinstance(stream._steps, stepping.ModuleSteps)
    for p in model.modules[-1]._live().values():
        p[...] = 0
    assert_near(np.stack([stream.step(x[:, t]) for t in range(5)], axis=1), whole, TOLERANCE["values"])
    assert len(stream.state) == 2


def test_token_ids_into_a_residual_path_are_refused() -> None:
    model = fl.Sequential([nn.Residual(nn.LSTM(8, return_sequences=True)), nn.Dense(2)], seed=0)
    model.build((3, 8))
    batch = fl.StreamBatch(model)
    handle = batch.open()
    before = batch.export(handle)
    calls: list[Callable[[], object]] = [
        lambda: batch.step([handle], np.array([3])),
        lambda: batch.feed([handle], np.array([3, 1]), [2]),
        lambda: model.stream(2).step(np.array([3, 1])),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="begins with a residual path, which takes numbers of dtype float32"):
            call()
    assert batch.export(handle) == before


def test_numbers_are_no_token_ids_of_a_stream() -> None:
    model = fl.Sequential([nn.Embedding(10, 4), nn.LSTM(8), nn.Dense(2)], seed=0)
    model(np.zeros((1, 3), np.int64))
    stream = model.stream(1)
    for wrong in (np.array(2.7, np.float32), np.array(np.nan, np.float32), np.array(-1e12, np.float32)):
        with pytest.raises(TypeError, match="the model begins with an Embedding"):
            stream.step(wrong)
    np.testing.assert_array_equal(stream.step(np.array(2)), model.stream(1).step(2))


def test_streams_of_chains_in_chains_and_their_copies() -> None:
    model = fl.Sequential(
        [fl.Sequential([nn.LSTM(8, return_sequences=True)]), nn.GRU(5, return_sequences=True)], seed=0
    )
    model.build((3, 8))
    x = np.random.default_rng(0).standard_normal((3, 2, 8)).astype(np.float32)
    stream = model.stream(2)
    stream.step(x[0])
    assert len(stream.state) == 2
    others = [copy.deepcopy(stream), copy.copy(stream), model.stream(2)]
    others[2].state = stream.state
    y = stream.step(x[1])
    for other in others:
        assert np.array_equal(other.step(x[1]), y)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(stream)
