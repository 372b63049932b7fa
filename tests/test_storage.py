"""Storage is not dtype: stored matrices in the reference, end to end, and storages that other backends refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import LAYERS, TOLERANCE, TWO, Case, assert_all_near, assert_same_bits

import fastlstm as fl
from fastlstm._backends import choose, module
from fastlstm._backends import numpy as reference
from fastlstm._backends.numpy.products import Matrix, rows_of, times, times_transposed
from fastlstm.spec import Spec
from fastlstm.storage import STORAGES, problem


def test_the_table_says_what_numpy_does() -> None:
    for name, storage in STORAGES.items():
        kept = storage.keep(np.array([[1.0, 2.0]])).values
        assert (kept.dtype.name, kept.itemsize) == (name, storage.bytes)
        assert storage.operand or storage.largest == np.finfo(name).max


def test_float16_rounds_to_nearest_even() -> None:
    """Between 1 and 2 the step of float16 is 1/1024; half a step rounds to the even neighbour."""
    step = 1 / 1024
    w = np.array([[1 + 0.5 * step, 1 + 1.5 * step, 1 + 0.51 * step, -1 - 0.5 * step, 65504.0]])
    assert STORAGES["float16"].keep(w).values[0].tolist() == [1, 1 + 2 * step, 1 + step, -1, 65504]


def test_what_float16_cannot_hold_is_refused() -> None:
    w = np.array([[1.0, 7e4], [np.nan, -np.inf]], np.float32)
    with pytest.raises(
        ValueError, match=r"weight_hh has the entry 70000, but storage float16 holds numbers up to 6550"
    ):
        STORAGES["float16"].keep(w, "weight_hh")
    w[0, 1] = 6e4  # NaN and infinity are kept as they are
    np.testing.assert_array_equal(STORAGES["float16"].keep(w).values, w.astype(np.float16))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_are_those_of_the_rounded_matrix(dtype: str) -> None:
    rng = np.random.default_rng(0)
    w, x, d = (rng.standard_normal(shape).astype(dtype) for shape in ((4, 3), (2, 3), (2, 4)))
    rounded = w.astype(np.float16).astype(dtype)
    none = np.zeros(4, dtype)
    m = Matrix.of({"w": w}, "w", "float16")
    assert m.values.dtype == np.float16 and m.values.nbytes == 2 * w.size
    for got, expected in (
        (times(x, m, none), x @ rounded.T),
        (times_transposed(d, m), d @ rounded),
        (rows_of(np.array([2, 0]), m, none), rounded.T[[2, 0]]),
        (times(x, m.columns(1, 3), none[1:3]), x @ rounded[1:3].T),
    ):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert np.abs(times(x, m, none) - x @ w.T).max() > 1e-5, "nothing was rounded"


RAGGED = (3, 0, 5, 1, 5, 2)
END_TO_END = [
    *(Case(kind, 5, 6, 4, 6, TWO, RAGGED) for kind in LAYERS),
    Case("lstm", 5, 6, 11, 6, {**TWO, "proj_size": 3, "peepholes": True}, RAGGED, ids=True),
    Case("gru", 5, 3, 4, 6, {"reset_after": False, "clip": 0.5}),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", END_TO_END, ids=str)
def test_a_layer_with_float16_weights_is_one_with_rounded_matrices(case: Case, dtype: str) -> None:
    """Outputs, states and gradients equal those of matrices rounded by hand. Biases and peepholes are not rounded."""
    layer, by_hand = case.layer(dtype, "numpy"), case.layer(dtype, "numpy")
    with layer.update() as params:
        for name, p in params.items():
            params[name] = p * 1.001  # so that float16 does not hold them exactly
    kept = ("weight_ih", "weight_hh", "weight_hr")
    by_hand.load_state_dict(
        {n: p.astype(np.float16) if n.startswith(kept) else p for n, p in layer.state_dict().items()}
    )
    wide = case.draw(dtype).run(layer)
    layer._storage = "float16"
    with layer.update():
        pass
    narrow = case.draw(dtype).run(layer)
    assert_all_near(narrow, case.draw(dtype).run(by_hand), TOLERANCE["values"], TOLERANCE["gradients"])
    assert all(a.dtype == dtype for a in narrow.values())
    assert np.abs(narrow["y"] - wide["y"]).max() > 1e-6, "nothing was rounded"


def test_float32_storage_of_a_float64_layer_rounds() -> None:
    params = {name: np.full(shape, 0.1) for name, shape in Spec("rnn", 2, 3).parameters.items()}
    block = reference.pack(Spec("rnn", 2, 3), params, "float32")
    assert block.W_h.values.dtype == np.float32 and block.b_x.dtype == np.float64


C = ", ".join(module("c").STORAGES)


@pytest.mark.parametrize(
    ("name", "storage", "dtype", "why"),
    [
        ("c", "float64", "float32", f"does not keep weights as float64, only as {C}: use one of these"),
        ("numba", "float16", "float32", "does not keep weights as float16, only as float32, float64: use one of these"),
        ("numba", "float32", "float64", "keeps weights as the layer's dtype: use storage float64, not float32"),
        ("numpy", "float64", "float32", "does not keep weights as float64 for a layer of float32: use storage float32"),
        ("numpy", "int3", "float32", "knows no storage 'int3': use one of float32, float64, float16, int8, int16"),
        ("numpy", "float16", "float32", None),
        ("numpy", "float32", "float64", None),
    ],
)
def test_a_backend_says_which_storages_it_supports(name: str, storage: str, dtype: str, why: Any) -> None:
    spec = Spec("lstm", 2, 3)
    assert module(name).supports(spec, storage, dtype) == why
    if why is None or module(name).unusable() is not None:
        return
    with pytest.raises(fl.BackendError) as error:
        choose(name, dtype, [spec], storage)
    assert str(error.value) == f"backend {name!r} {why}."


def test_no_block_is_packed_in_a_storage_that_the_backend_lacks(backend: str) -> None:
    spec = Spec("rnn", 2, 3)
    params = {name: np.zeros(shape, np.float32) for name, shape in spec.parameters.items()}
    if backend == "numpy":
        assert_same_bits({"W": reference.pack(spec, params, "float16").W_x.values}, {"W": np.zeros((2, 3), np.float16)})
    else:
        for storage in STORAGES.keys() - {*module(backend).STORAGES}:
            with pytest.raises(ValueError, match=f"backend '{backend}' does not keep weights as {storage}"):
                module(backend).pack(spec, params, storage)


def test_auto_takes_the_next_backend_that_has_the_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("c", "numba"):
        monkeypatch.setattr(
            module(name), "supports", lambda spec, storage, dtype: problem(storage, dtype, ("float32",))
        )
    assert choose("auto", "float32", [Spec("lstm", 2, 3)], "float16") is reference
    assert choose("auto", "float32", [Spec("lstm", 2, 3)], ("float32", "float16")) is reference
