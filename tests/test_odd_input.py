"""Arrays of any layout, integers of any type, and many threads at once, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cases import TWO, Case, Drawn, assert_same_bits
from small import LENGTHS, B, H, I, T, near, normal

import fastlstm as fl


def strided(a: Any) -> Any:
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def read_only(a: Any) -> Any:
    a = a.copy()
    a.flags.writeable = False
    return a


ODD = {
    "strided": strided,
    "reversed": lambda a: a[::-1].copy()[::-1],
    "fortran": np.asfortranarray,
    "transposed": lambda a: a.T.copy().T,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "read-only": read_only,
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("case", [
    Case("lstm", T, B, I, H, {**TWO, "proj_size": 3}, LENGTHS),
    Case("gru", T, B, I, H, ids=True),
    Case("rnn", T, 1, I, H),
], ids=str)  # fmt: skip
def test_arrays_of_any_layout_serve(odd: Callable[[Any], Any], case: Case, backend: str) -> None:
    layer, drawn = case.layer("float32", backend), case.draw()
    expected = drawn.run(layer)

    def state(s: Any) -> Any:
        return tuple(map(odd, s)) if isinstance(s, tuple) else odd(s)

    lengths = None if drawn.lengths is None else odd(drawn.lengths)
    strange = Drawn(odd(drawn.x), state(drawn.state), lengths, odd(drawn.dy), state(drawn.dstate))
    got = strange.run(layer)
    assert_same_bits(got, expected)
    assert all(a.dtype.isnative and a.flags.writeable for a in got.values())
    other = case.layer("float32", backend, seed=9)
    other.load_state_dict({name: odd(p) for name, p in layer.state_dict().items()})
    assert_same_bits(drawn.run(other), expected)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64", ">i4"])
def test_token_ids_and_lengths_of_any_integer_type(dtype: str, backend: str) -> None:
    layer = fl.LSTM(11, H, backend=backend, seed=1)
    ids, lengths = np.random.default_rng(0).integers(0, 11, (T, B)), np.array(LENGTHS)
    y, _ = layer(ids, lengths=lengths)
    np.testing.assert_array_equal(layer(ids.astype(dtype), lengths=lengths.astype(dtype))[0], y)
    np.testing.assert_array_equal(layer(ids.tolist(), lengths=list(LENGTHS))[0], y)


def test_float64_layers_take_lists(backend: str) -> None:
    layer = fl.LSTM(I, H, dtype="float64", seed=1)
    x = normal(T, B, I, dtype="float64")
    np.testing.assert_array_equal(layer(x.tolist())[0], layer(x)[0])


def test_one_layer_serves_eight_threads(backend: str) -> None:
    """Each call has the same results as alone, also the first calls, when the weights are not packed yet."""
    for case in (Case("lstm", 7, 5, 9, 33, TWO, (7, 0, 3, 7, 1)), Case("gru", 7, 16, 64, 64, {"num_layers": 2})):
        quiet, layer = case.layer("float32", backend), case.layer("float32", backend)
        draws = [case.draw(seed=seed) for seed in range(8)]
        expected = [drawn.run(quiet) for drawn in draws]

        def work(i: int, draws: Any = draws, layer: Any = layer, expected: Any = expected) -> None:
            for _ in range(5):
                near(draws[i].run(layer), expected[i])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
