"""The engine with blocks that belong to no layer, and its calls by layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import LAYERS, TWO, Case, assert_same_bits, named

import fastlstm as fl
from fastlstm import engine
from fastlstm._backends import module
from fastlstm.packing import Batch
from fastlstm.spec import Kind, Spec

T, B, I, H = 6, 3, 4, 5  # noqa: E741
LENGTHS = np.array([4, 0, 6])


def spec_of(kind: Kind, input_size: int = I) -> Spec:
    return Spec(kind, input_size, H)


def weights(spec: Spec, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in spec.parameters.items()}


def states_of(spec: Spec, entries: int, seed: int | None = None) -> tuple[Any, ...]:
    draw = np.zeros if seed is None else np.random.default_rng(seed).standard_normal
    return tuple(draw((entries, B, width)).astype(np.float32) for width in spec.initial.values())


def both(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
    """The states of two layers as one."""
    return tuple(np.concatenate(parts) for parts in zip(first, second, strict=True))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dense", "lengths"])
@pytest.mark.parametrize("every", [None, 4])
@pytest.mark.parametrize("kind", LAYERS)
def test_it_serves_blocks_that_no_layer_owns(kind: Any, every: int | None, lengths: Any, backend: str) -> None:
    """Two layers in one call equal two calls, bit for bit. The second has only a reverse direction, as no layer has."""
    m, batch = module(backend), Batch.of(T, B, lengths)
    specs = spec_of(kind), spec_of(kind, H)
    params = {f"{i}.{name}": p for i, spec in enumerate(specs) for name, p in weights(spec, 1 + i).items()}
    keys = [[{name: f"{i}.{name}" for name in spec.parameters}] for i, spec in enumerate(specs)]
    blocks = [
        [m.pack(spec, {name: params[key] for name, key in keys[i][0].items()}, None, bool(i))]
        for i, spec in enumerate(specs)
    ]
    rng = np.random.default_rng(3)
    x, dy = (rng.standard_normal((T, B, width)).astype(np.float32) for width in (I, H))
    dy = batch.pack(dy, dy.dtype).reshape(batch.rows.N, H)

    record = engine.Record(batch, every)
    states = both(states_of(specs[0], 1, 5), states_of(specs[0], 1, 6))
    inference = tuple(s.copy() for s in states)
    y = engine.forward(m, blocks, x, batch, states, record)
    np.testing.assert_array_equal(engine.forward(m, blocks, x, batch, inference), y)
    grads = {name: np.zeros_like(p) for name, p in params.items()}
    dstates = states_of(specs[0], 2)
    dx = engine.backward(m, blocks, record, dstates, dy, grads, keys)
    assert y.shape == (T, B, H) and dx is not None and all(g.any() for g in grads.values())

    records = [engine.Record(batch, every), engine.Record(batch, every)]
    alone, own, between = {name: np.zeros_like(p) for name, p in params.items()}, [], x
    for i in (0, 1):
        own.append(states_of(specs[0], 1, 5 + i))
        between = engine.forward(m, [blocks[i]], between, batch, own[i], records[i])
    np.testing.assert_array_equal(between, y)
    assert_same_bits(named("{}", both(own[0], own[1])), named("{}", states))
    d: Any = dy
    for i in (1, 0):
        own[i] = states_of(specs[0], 1)
        d = engine.backward(m, [blocks[i]], records[i], own[i], d, alone, [keys[i]])
    assert_same_bits({"dx": d, **alone}, {"dx": dx, **grads})
    assert_same_bits(named("{}", both(own[0], own[1])), named("{}", dstates))


def test_a_record_copies_the_input_only_where_that_is_asked_for(backend: str) -> None:
    m, spec = module(backend), spec_of("gru")
    blocks, batch = [[m.pack(spec, weights(spec, 1))]], Batch.of(T, B, None)
    x = np.ones((T, B, I), np.float32)
    for copies in (True, False):
        record = engine.Record(batch, copies=copies)
        engine.forward(m, blocks, x, batch, states_of(spec, 1), record)
        assert np.may_share_memory(record.inputs[0], x) != copies


@pytest.mark.parametrize("batch_first", [False, True])
def test_training_has_one_way_out(batch_first: bool, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend writes the last layer's outputs to their final rows, in training as in inference; no copy follows."""
    case = Case("lstm", T, B, I, H, {**TWO, "batch_first": batch_first}, (4, 0, 6))
    layer, drawn = case.layer("float32", backend), Case("lstm", T, B, I, H, TWO, (4, 0, 6)).draw()
    if batch_first:
        drawn.x = drawn.x.swapaxes(0, 1)
    expected, _ = layer(drawn.x, drawn.state, drawn.lengths)
    monkeypatch.setattr(Batch, "unpack", lambda *_: pytest.fail("outputs were moved"))
    y, _, _ = layer.forward(drawn.x, drawn.state, drawn.lengths)
    np.testing.assert_array_equal(y, expected)


def test_a_streams_run_is_the_layers_call(backend: str) -> None:
    for kind in LAYERS:
        layer = LAYERS[kind](I, H, 3, backend=backend, seed=1)
        x = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
        y, state = layer(x)
        stream = layer.stream(B)
        np.testing.assert_array_equal(stream.run(x), y)
        assert_same_bits(named("{}", stream.state), named("{}", state))


def test_states_of_every_kind_are_tuples_inside_and_as_users_know_them_outside(backend: str) -> None:
    for kind, cls in LAYERS.items():
        _, state = cls(I, H, backend=backend)(np.zeros((T, B, I), np.float32))
        assert isinstance(state, tuple) == (kind == "lstm")
    assert fl.LSTM(I, H)._state.zeros((1, 2))[1].shape == (1, 2, H)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dense", "lengths"])
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_that_are_not_wanted_change_no_state(kind: Any, lengths: Any, backend: str) -> None:
    """Two layers: the outputs of the first one are the second one's input."""
    m, batch = module(backend), Batch.of(T, B, lengths)
    blocks = [[m.pack(spec, weights(spec, 1), None, False)] for spec in (spec_of(kind), spec_of(kind, H))]
    x = np.random.default_rng(3).standard_normal((T, B, I)).astype(np.float32)
    expected = states_of(spec_of(kind), 2, 5)
    states = tuple(s.copy() for s in expected)
    assert engine.forward(m, blocks, x, batch, expected).shape == (T, B, H)
    assert engine.forward(m, blocks, x, batch, states, wanted=False).size == 0
    for got, want in zip(states, expected, strict=True):
        np.testing.assert_array_equal(got, want)
