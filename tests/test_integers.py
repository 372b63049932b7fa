"""Storages of integers: the reference against plain loops and exact fractions."""

from __future__ import annotations

from typing import Any

import integers
import numpy as np
import pytest
from cases import EQUATIONS, OPTIONS, TOLERANCE, Case, assert_near, assert_same_bits, named

import fastlstm as fl
from fastlstm._backends.numpy.products import Matrix, fma, rows_of, times
from fastlstm.spec import Spec
from fastlstm.storage import LEAST, STORAGES, STRETCHES, Form, Kept, bounded, input_forms

F32 = np.float32
INTEGERS = ("int8", "int16")


# --------------------------------------------------------------------------------------------------------- definitions
def test_a_rows_scale_is_its_largest_number_or_pair_of_like_sign() -> None:
    w = np.array([[1, 0.5, -0.25], [0.75, 0.5, 2], [0.75, -0.5, 0], [3, 3, 1]], F32)
    kept = STORAGES["int8"].keep(w)
    assert kept.scales is not None
    np.testing.assert_array_equal(kept.scales, (np.array([1.5, 2, 0.75, 6]) / 127).astype(F32))
    np.testing.assert_array_equal(kept.values, [[85, 42, -21], [48, 32, 127], [127, -85, 0], [64, 64, 21]])
    wide = STORAGES["int16"].keep(w)
    assert wide.scales is not None and wide.values.dtype == np.int16
    np.testing.assert_array_equal(wide.scales, (np.array([1, 2, 0.75, 3]) / 8191).astype(F32))


def test_pairs_never_add_up_to_more_than_16_bits_hold() -> None:
    """255 (q1 + q2) stays within 16 bits, so that AVX2's instruction cannot saturate."""
    rng = np.random.default_rng(0)
    for w in (
        rng.uniform(-1, 1, (200, 31)),
        rng.standard_normal((200, 30)) ** 3,
        np.ones((3, 4)),
        np.full((3, 5), 1e-30),
    ):
        q = STORAGES["int8"].keep(w.astype(F32)).values.astype(int)
        K = q.shape[1] // 2 * 2
        assert np.abs(q).max() <= 127 and np.abs(q[:, 0:K:2] + q[:, 1:K:2]).max() <= 128
        assert 255 * 128 < 2**15


@pytest.mark.parametrize("storage", INTEGERS)
def test_a_matrix_is_as_by_plain_loops(storage: str) -> None:
    rng = np.random.default_rng(1)
    w = (rng.standard_normal((20, 7)) * 10.0 ** rng.integers(-30, 30, (20, 1))).astype(F32)
    w[3], w[4, 2:], w[5] = 0, 0, 1e-44  # zeros, half zeros, numbers below float32's normal ones
    kept, (rows, scales) = STORAGES[storage].keep(w), integers.matrix(w, storage)
    np.testing.assert_array_equal(kept.values, rows)
    np.testing.assert_array_equal(kept.scales, scales)
    assert kept.nbytes == w.size * STORAGES[storage].bytes + 4 * len(w)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_without_an_integer_are_refused(bad: float) -> None:
    w = np.ones((2, 3), F32)
    w[1, 2] = bad
    with pytest.raises(ValueError, match=f"weight_hh has the entry {bad:g}, for which storage int8 has no integer"):
        STORAGES["int8"].keep(w, "weight_hh")


def test_integers_that_were_changed_are_refused() -> None:
    params: dict[str, Any] = {"w": np.array([[100, 100]], np.int8), "w_scale": np.ones(1, F32)}
    for values in ([[100, 100]], [[-128, 0]], [[-65, -64]]):
        params["w"] = np.array(values, np.int8)
        with pytest.raises(ValueError, match="w has integers that storage int8 never has"):
            STORAGES["int8"].matrix(params, "w")
    params["w"] = np.array([[8192, 0]], np.int16)
    with pytest.raises(ValueError, match="w has integers that storage int16 never has"):
        STORAGES["int16"].matrix(params, "w")
    params["w"] = np.array([[64, 64], [127, -127]], np.int8)
    assert isinstance(STORAGES["int8"].matrix(params | {"w_scale": np.ones(2, F32)}, "w"), Kept)


def test_rows_round_to_even_and_have_scales_of_their_own() -> None:
    rows = np.array([[127, 0.5, 1.5, 2.5, -0.5, -3.5], [1, 0.5, 0, 0, 0, 0], [0] * 6, [1e-40] * 6], F32)
    whole, scales = Form(127).rounded(rows)
    np.testing.assert_array_equal(whole, [[127, 0, 2, 2, 0, -4], [127, 64, 0, 0, 0, 0], [0] * 6, [0] * 6])
    np.testing.assert_array_equal(scales, np.array([127, 1, LEAST, LEAST], F32) / F32(127))
    whole, scales = Form(127, 1.0).rounded(np.array([[0.5, -0.25], [3, 1]], F32))
    np.testing.assert_array_equal(whole, [[64, -32], [127, 42]])
    np.testing.assert_array_equal(scales, np.array([1, 3], F32) / F32(127))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_gives_nan_and_leaves_the_others(bad: float) -> None:
    rng = np.random.default_rng(2)
    w = Matrix.of({"w": rng.standard_normal((4, 3)).astype(F32)}, "w", "int8", Form(127, 1.0))
    x = rng.standard_normal((3, 3)).astype(F32)
    good = times(x, w, np.zeros(4, F32))
    x[1, 2] = bad
    y = times(x, w, np.zeros(4, F32))
    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(y[[0, 2]], good[[0, 2]])


def test_a_fused_multiply_add_is_rounded_once() -> None:
    rng = np.random.default_rng(3)
    a, b, c = (rng.standard_normal(4000).astype(F32) for _ in range(3))
    c[:2000] = -(a * b)[:2000] * (1 + F32(2) ** -20)  # cancellation
    b[2000:3000] *= F32(2) ** -24  # products near half a last bit of c
    from fractions import Fraction

    exact = [Fraction(float(p)) * Fraction(float(q)) + Fraction(float(r)) for p, q, r in zip(a, b, c, strict=True)]
    assert_same_bits({"fma": fma(a, b, c)}, {"fma": np.array([integers.to_float32(v) for v in exact])})
    # The sum is 2**-70 below the middle between c and the next number, and float64 rounds it to the middle.
    a, b, c = (np.array([v], F32) for v in (2.0**-12 * (1 + 2.0**-23), 2.0**-12 * (1 - 2.0**-23), 1 + 2.0**-23))
    assert fma(a, b, c) == c < (a.astype(float) * b + c).astype(F32)


@pytest.mark.parametrize("K", [1, 2, 31, 33, 100, 5000])
@pytest.mark.parametrize(("storage", "largest"), [("int8", 127), ("int8", 8191), ("int16", 8191)])
def test_products_are_those_of_exact_arithmetic(storage: str, largest: int, K: int) -> None:
    rng = np.random.default_rng(K)
    for least in (LEAST, 1.0):
        w, x, start = (rng.standard_normal(shape).astype(F32) for shape in ((3, K), (2, K), (2, 3)))
        w[0, :] = np.abs(w[0, :])  # the largest sums
        x[0, :] = np.abs(x[0, :])
        m = Matrix.of({"w": w}, "w", storage, Form(largest, least))
        by_hand = integers.matrix(w, storage)
        every = integers.STRETCH[storage, largest]
        expected = [integers.product(r, by_hand, s, (largest, least), every) for r, s in zip(x, start, strict=True)]
        assert_same_bits({"y": times(x, m, start)}, {"y": np.array(expected)})
        assert_same_bits({"y": times(x, m.columns(1, 3), start[:, 1:])}, {"y": np.array(expected)[:, 1:].copy()})
        assert np.abs(times(x, m, start) - (start + x @ w.T)).max() > 0, "nothing was rounded"


def test_stretches_fit_32_bits() -> None:
    for (own, other), every in STRETCHES.items():
        assert own * other * every < 2**31
        assert own > 127 or other > 127 or 255 * own * every < 2**31, "unsigned bytes too"


def test_token_ids_are_rows_of_the_same_integers() -> None:
    rng = np.random.default_rng(4)
    w, b = rng.standard_normal((6, 9)).astype(F32), rng.standard_normal(6).astype(F32)
    m = Matrix.of({"w": w}, "w", "int8", Form(127))
    rows = rows_of(np.array([3, 8]), m, b)
    assert_near(rows, times(np.eye(9, dtype=F32)[[3, 8]], m, b), 1e-6)
    assert m.scales is not None
    np.testing.assert_array_equal(rows[1], fma(m.scales, m.values[8].astype(F32), b))


def test_h_has_a_fixed_scale_where_the_cell_bounds_it() -> None:
    for options, expected in (
        ({}, True), ({"nonlinearity": "relu"}, False), ({"nonlinearity": ("hard_sigmoid", 0.3, 0.4)}, True),
        ({"nonlinearity": ("scaled_tanh", 2.0, 1.0)}, False),
    ):  # fmt: skip
        assert bounded(fl.RNN(3, 4, **options)._specs[0][0]) is expected, options
    assert bounded(Spec("lstm", 3, 4)) and bounded(Spec("gru", 3, 4))
    assert not bounded(fl.LSTM(3, 4, activations=("relu", "tanh", "tanh"))._specs[0][0])
    assert bounded(fl.LSTM(3, 4, activations=("sigmoid", "relu", "tanh"))._specs[0][0]), "tanh of any c"
    assert not bounded(fl.GRU(3, 4, activations=("sigmoid", "relu"))._specs[0][0])
    layer = fl.LSTM(3, 4, 2, bidirectional=True)
    assert input_forms(layer._specs, ("int8", "int8"), "int16") == [Form(8191), Form(127, 1.0)]
    assert input_forms(fl.LSTM(3, 4, 2, proj_size=2)._specs, ("int16",) * 2) == [Form(8191), Form(8191)]
    assert input_forms(layer._specs, ("int8", "float16")) == [Form(127), None]
    mixed = fl.RNN(3, 4, 2, bidirectional=True, nonlinearity=("tanh", "relu"))
    assert input_forms(mixed._specs, ("int8",) * 2) == [Form(127), Form(127)]


# ----------------------------------------------------------------------------------------------- layers, by plain loops
WIDER = [case for case in OPTIONS + EQUATIONS if case.options.get("num_layers") or case.T == 5]


@pytest.mark.parametrize(
    ("case", "storage", "inputs"),
    [(case, "int8", "int8") for case in OPTIONS + EQUATIONS]
    + [(case, *how) for how in (("int8", "int16"), ("int16", "int16")) for case in WIDER],
    ids=str,
)
def test_the_reference_is_as_by_plain_loops(case: Case, storage: str, inputs: str) -> None:
    """Outputs and states; the plain loops round the same way, so that only the activations' last bits may differ."""
    layer, drawn = case.layer(backend="numpy"), case.draw()
    expected = integers.run(layer, drawn, storage, inputs)
    got = inference(layer.quantize(storage, inputs=inputs if storage == "int8" else None), drawn)
    for name, array in expected.items():
        assert_near(got[name], array, TOLERANCE["values"], name)
    floats = inference(layer, drawn)
    flat = len(np.unique(got["y"])) < 5  # an activation whose outputs are all at an end
    assert flat or any((got[name] != array).any() for name, array in floats.items()), "nothing was rounded"


def inference(layer: Any, drawn: Any) -> dict[str, Any]:
    y, state = layer(drawn.x, drawn.state, drawn.lengths)
    return {"y": y, **named("{}_n", state)}
