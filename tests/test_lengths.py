"""Sequences of different lengths, batch axes, and calls over nothing, on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import LAYERS, TOLERANCE, TWO, Case, Drawn, assert_near, assert_same_bits, named
from small import LENGTHS, B, H, I, T, each_kind, near, normal, sequences

import fastlstm as fl


# -------------------------------------------------------------------------------------------------------------- lengths
@each_kind
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, TWO, {"num_layers": 3}], ids=str)
def test_a_ragged_batch_is_its_sequences_alone(kind: str, options: dict[str, Any], backend: str) -> None:
    """Values, states and gradients: the reverse direction starts at the last valid step. Values past a length are NaN,
    since they are never read."""
    case = Case(kind, T, B, I, H, options, LENGTHS)
    layer, drawn = case.layer("float32", backend), case.draw()
    for b, length in enumerate(LENGTHS):
        drawn.x[length:, b] = drawn.dy[length:, b] = np.nan
    got = drawn.run(layer)
    sums: dict[str, Any] = {}
    for b, n in enumerate(LENGTHS):
        one = Drawn(
            drawn.x[:n, [b]], sequences(drawn.state, [b]), None, drawn.dy[:n, [b]], sequences(drawn.dstate, [b])
        )
        alone = one.run(layer)
        for name in alone:
            if name in ("y", "dx"):
                assert_near(got[name][:n, [b]], alone[name], TOLERANCE["gradients"], f"{name} of sequence {b}")
                assert not got[name][n:, b].any(), f"{name} of sequence {b} past its length"
            elif name.endswith(("_n", "_0")):
                assert_near(got[name][:, [b]], alone[name], TOLERANCE["gradients"], f"{name} of sequence {b}")
            else:
                sums[name] = sums.get(name, 0) + alone[name]
    near({name: got[name] for name in sums}, sums)


@each_kind
def test_length_zero_keeps_the_initial_state(kind: str, backend: str) -> None:
    case = Case(kind, T, B, I, H, TWO, LENGTHS)
    drawn = case.draw()
    got = drawn.run(case.layer("float32", backend))
    for name, initial in named("{}", drawn.state).items():
        np.testing.assert_array_equal(got[f"{name}_n"][:, 1], initial[:, 1])
        np.testing.assert_array_equal(got[f"d{name}_0"][:, 1], named("{}", drawn.dstate)[name][:, 1])


def test_reverse_direction_is_a_layer_on_the_reversed_sequence(backend: str) -> None:
    both = fl.LSTM(I, H, bidirectional=True, backend=backend, seed=1)
    one = fl.LSTM(I, H, backend=backend)
    parameters = both.state_dict()
    one.load_state_dict({k.removesuffix("_reverse"): p for k, p in parameters.items() if k.endswith("_reverse")})
    x = normal(T, 1, I)
    for n in range(1, T + 1):
        y, (h, c) = both(x, lengths=[n])
        y_one, (h_one, c_one) = one(x[:n][::-1])
        near({"y": y[:n, :, H:], "h": h[1:], "c": c[1:]}, {"y": y_one[::-1], "h": h_one, "c": c_one})


@each_kind
@pytest.mark.parametrize("lengths", [None, LENGTHS, [T] * B, [0] * B, [2] * B])
@pytest.mark.parametrize("batch_first", [False, True])
def test_last_only_is_the_last_valid_step(kind: str, lengths: Any, batch_first: bool, backend: str) -> None:
    layer = LAYERS[kind](I, H, 2, batch_first=batch_first, bidirectional=True, backend=backend, seed=1)
    x = normal(B, T, I) if batch_first else normal(T, B, I)
    y, state = layer(x, lengths=lengths)
    last, same_state = layer(x, lengths=lengths, last_only=True)
    time_first = y.swapaxes(0, 1) if batch_first else y
    expected = [time_first[n - 1, b] if n else np.zeros(2 * H) for b, n in enumerate(lengths or [T] * B)]
    np.testing.assert_array_equal(last, np.array(expected, np.float32))
    assert_same_bits(named("{}", same_state), named("{}", state))


@each_kind
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 3}, TWO], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_inference_has_the_bits_of_training(kind: str, options: Any, batch_first: bool, backend: str) -> None:
    """Both where the last layer writes its outputs to their final rows and where packed outputs are scattered."""
    layer = LAYERS[kind](I, H, batch_first=batch_first, backend=backend, seed=1, **options)
    batches: list[tuple[int, int, Any]] = [(T, B, lengths) for lengths in (None, LENGTHS, [0] * B, [T] * B)]
    batches += [(T + 2, B, LENGTHS), (T, 1, None), (T, 1, [2]), (1, B, None), (1, B, [1, 0, 1, 1, 0, 0])]
    for t, b, lengths in batches:
        axes = (b, t) if batch_first else (t, b)
        for x in normal(*axes, I), np.arange(t * b).reshape(axes) % I:
            y, state, _ = layer.forward(x, None, lengths)
            got, got_state = layer(x, None, lengths)
            assert_same_bits({"y": got, **named("{}", got_state)}, {"y": y, **named("{}", state)}, f"{t} {b} {lengths}")


def test_full_lengths_are_no_lengths(backend: str) -> None:
    layer, x = fl.GRU(I, H, bidirectional=True, backend=backend, seed=1), normal(T, B, I)
    np.testing.assert_array_equal(layer(x, lengths=[T] * B)[0], layer(x)[0])


# ----------------------------------------------------------------------------------------------- batch axes and nothing
@each_kind
@pytest.mark.parametrize("ids", [False, True], ids=["numbers", "ids"])
def test_unbatched_is_a_batch_of_one(kind: str, ids: bool, backend: str) -> None:
    case = Case(kind, T, 1, I, H, TWO, ids=ids)
    layer, drawn = case.layer("float32", backend), case.draw()
    batched = drawn.run(layer)
    last = layer(drawn.x, drawn.state, last_only=True)[0]
    bare = Drawn(drawn.x[:, 0], sequences(drawn.state, 0), None, drawn.dy[:, 0], sequences(drawn.dstate, 0))
    squeezed = {name: a if name.startswith(("dweight", "dbias")) else a[:, 0] for name, a in batched.items()}
    assert_same_bits(bare.run(layer), squeezed)
    np.testing.assert_array_equal(layer(bare.x, bare.state, last_only=True)[0], last[0])


@each_kind
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_batch_first_turns_input_and_output_only(kind: str, lengths: Any, backend: str) -> None:
    case, turned = (Case(kind, T, B, I, H, {**TWO, "batch_first": first}, lengths) for first in (False, True))
    layer, drawn = case.layer("float32", backend), case.draw()
    expected = drawn.run(layer)
    drawn.x, drawn.dy = drawn.x.swapaxes(0, 1), drawn.dy.swapaxes(0, 1)
    got = drawn.run(turned.layer("float32", backend))
    assert_same_bits({name: a.swapaxes(0, 1) if name in ("y", "dx") else a for name, a in got.items()}, expected)


@each_kind
@pytest.mark.parametrize(("t", "b"), [(0, B), (T, 0), (0, 0)])
def test_nothing_gives_nothing_and_the_initial_state(kind: str, t: int, b: int, backend: str) -> None:
    case = Case(kind, t, b, I, H, TWO)
    drawn = case.draw()
    got = drawn.run(case.layer("float32", backend))
    assert got["y"].shape == (t, b, 2 * H) and got["dx"].shape == (t, b, I) and got["y"].dtype == np.float32
    for name, initial in named("{}", drawn.state).items():
        np.testing.assert_array_equal(got[f"{name}_n"], initial)
        np.testing.assert_array_equal(got[f"d{name}_0"], named("{}", drawn.dstate)[name])
    assert all(not a.any() for name, a in got.items() if name.startswith(("dweight", "dbias")))
    layer = case.layer("float32", backend)
    last, _ = layer(drawn.x, last_only=True)
    np.testing.assert_array_equal(last, np.zeros((b, 2 * H), np.float32))
    y, _ = layer(np.zeros((0, I), np.float32))  # unbatched
    assert y.shape == (0, 2 * H)
