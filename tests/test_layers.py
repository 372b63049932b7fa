"""Gradients, parameters, versions, copies and tapes of layers, on every backend."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import CELLS, LAYERS, TWO, Case, Drawn, assert_same_bits, named
from small import LENGTHS, B, H, I, T, each_kind, near, normal

import fastlstm as fl


# ------------------------------------------------------------------------------------------------------------ gradients
def test_an_absent_gradient_is_a_zero_one(backend: str) -> None:
    case = Case("lstm", T, B, I, H, TWO, LENGTHS)
    layer, full = case.layer("float32", backend), case.draw()
    zero_y, (zero_h, zero_c) = np.zeros_like(full.dy), (np.zeros_like(s) for s in full.dstate)
    dh, dc = full.dstate
    for dy, dstate, dy_full, dstate_full in (
        (None, (dh, dc), zero_y, (dh, dc)),
        (full.dy, None, full.dy, (zero_h, zero_c)),
        (full.dy, (dh, None), full.dy, (dh, zero_c)),
        (None, (None, dc), zero_y, (zero_h, dc)),
        (None, None, zero_y, (zero_h, zero_c)),
    ):
        some = Drawn(full.x, full.state, full.lengths, dy, dstate).run(layer)
        assert_same_bits(some, Drawn(full.x, full.state, full.lengths, dy_full, dstate_full).run(layer))
        assert any(a.any() for name, a in some.items() if name.startswith("d")) == (
            dy is not None or dstate is not None
        )


def test_state_none_is_zeros_and_still_has_a_gradient(backend: str) -> None:
    for kind in LAYERS:
        case = Case(kind, T, B, I, H, TWO)
        layer, drawn = case.layer("float32", backend), case.draw()
        zeros = tuple(map(np.zeros_like, drawn.state)) if kind == "lstm" else np.zeros_like(drawn.state)
        with_zeros = Drawn(drawn.x, zeros, None, drawn.dy, drawn.dstate).run(layer)
        assert_same_bits(Drawn(drawn.x, None, None, drawn.dy, drawn.dstate).run(layer), with_zeros)
        assert with_zeros["dh_0"].any()


def test_token_ids_have_a_dense_gradient_and_no_dx(backend: str) -> None:
    layer = fl.GRU(9, H, backend=backend, seed=1)
    ids = np.array([[1, 4], [4, 4], [7, 1]])
    y, _, tape = layer.forward(ids)
    dx, _, grads = layer.backward(tape, np.ones_like(y))
    assert dx is None
    touched = grads["weight_ih_l0"].any(axis=0)
    assert touched.tolist() == [i in (1, 4, 7) for i in range(9)]


def test_tapes_are_independent(backend: str) -> None:
    case = Case("lstm", T, B, I, H, TWO)
    layer, first, second = case.layer("float32", backend), case.draw(seed=1), case.draw(seed=2)
    expected = first.run(layer), second.run(layer)
    (values_1, tape_1), (values_2, tape_2) = first.forward(layer), second.forward(layer)
    assert_same_bits(values_2 | second.backward(layer, tape_2), expected[1])
    assert_same_bits(values_1 | first.backward(layer, tape_1), expected[0])


@each_kind
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_what_the_caller_gave_and_got_is_the_callers(kind: str, lengths: Any, backend: str) -> None:
    """Overwriting arguments and results between forward and backward has no effect; no call writes to its arguments."""
    case = Case(kind, T, B, I, H, lengths=lengths)
    layer, drawn = case.layer("float32", backend), case.draw()
    expected = drawn.run(layer)
    given = copy.deepcopy(drawn)
    values, tape = drawn.forward(layer)
    kept = copy.deepcopy(values)
    for part in (drawn.x, *named("{}", drawn.state).values(), *values.values()):
        part[...] = np.nan
    again = drawn.backward(layer, tape)
    assert_same_bits(kept | again, expected)
    for name, array in named("{}", drawn.dstate).items():
        np.testing.assert_array_equal(array, named("{}", given.dstate)[name])
    np.testing.assert_array_equal(drawn.dy, given.dy)
    fresh = copy.deepcopy(given)
    fresh.run(layer)
    layer(fresh.x, fresh.state, fresh.lengths)
    for a, b in (
        (fresh.x, given.x),
        *zip(named("", fresh.state).values(), named("", given.state).values(), strict=True),
    ):
        np.testing.assert_array_equal(a, b)


def test_large_results_survive_later_calls(backend: str) -> None:
    """The pool reuses memory between calls, but never while an array, a view or a buffer refers to it."""
    case = Case("lstm", 24, 32, 64, 128, {"num_layers": 2})
    layer = case.layer("float32", backend)
    kept: list[tuple[Any, Any]] = []
    tapes: list[tuple[Drawn, Any, dict[str, Any]]] = []
    for seed in range(6):
        drawn = case.draw(seed=seed)
        y, _ = layer(drawn.x, drawn.state)
        kept.append((y[3:5, ::2].T, y[3:5, ::2].T.copy()))  # a view only: the array itself is let go
        result = drawn.run(layer)
        kept.append((memoryview(result["dx"]), result["dx"].copy()))
        kept.append((result["y"].reshape(-1)[7:].view(np.int32), result["y"].reshape(-1)[7:].view(np.int32).copy()))
        kept += [(result[name], result[name].copy()) for name in ("c_n", "dh_0", "dweight_hh_l1")]
        tapes.append((drawn, drawn.forward(layer)[1], {n: a.copy() for n, a in result.items() if n.startswith("d")}))
        del y, result
    for a, copied in kept:
        np.testing.assert_array_equal(np.asarray(a), copied)
    for drawn, tape, gradients in tapes:
        near(drawn.backward(layer, tape), gradients)


# ----------------------------------------------------------------------------------------- parameters, versions, copies
def test_initial_parameters_are_torchs_uniform() -> None:
    layer = fl.LSTM(50, 100, 2, bidirectional=True, proj_size=30, seed=0)
    d = layer.state_dict()
    assert list(d)[:5] == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_hr_l0"]
    assert len(d) == 20 and {p.shape for n, p in d.items() if n.startswith("weight_ih_l1")} == {(400, 60)}
    for name, p in d.items():
        assert p.dtype == np.float32 and np.abs(p).max() <= 0.1, name
        assert p.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.1), name
    assert_same_bits(fl.LSTM(50, 100, 2, bidirectional=True, proj_size=30, seed=0).state_dict(), d)
    assert not np.array_equal(fl.LSTM(50, 100, seed=1).state_dict()["weight_ih_l0"], d["weight_ih_l0"])
    assert not np.array_equal(d["weight_ih_l1"], d["weight_ih_l1_reverse"])
    unseeded = [fl.RNN(2, 3).state_dict()["weight_ih_l0"] for _ in range(2)]
    assert not np.array_equal(*unseeded)


def test_state_dict_gives_copies() -> None:
    layer = fl.GRU(I, H, seed=1)
    before = layer.state_dict()
    for p in layer.state_dict().values():
        p[...] = 0
    assert_same_bits(layer.state_dict(), before)
    assert layer.version == 0


def test_load_state_dict_copies_and_casts(backend: str) -> None:
    layer, x = fl.LSTM(I, H, backend=backend, seed=1), normal(T, B, I)
    y = layer(x)[0]
    new = {name: p * 0.5 for name, p in fl.LSTM(I, H, dtype="float64", seed=2).state_dict().items()}
    new["bias_ih_l0"] = np.ones(4 * H, int)
    layer.load_state_dict(new)
    assert layer.version == 1
    assert_same_bits(layer.state_dict(), {name: p.astype(np.float32) for name, p in new.items()})
    changed = layer(x)[0]
    assert not np.array_equal(changed, y)
    for p in new.values():
        p[...] = 0
    np.testing.assert_array_equal(layer(x)[0], changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("bias_hh_l0"), "missing: bias_hh_l0 (28,)"),
        (lambda d: d.update(extra=np.zeros(3)), "unexpected: extra (3,)"),
        (lambda d: d.update(weight_ih_l0=np.zeros((28, 5))), "weight_ih_l0 has shape (28, 5), expected (28, 4)"),
        (lambda d: d.update(weight_ih_l0=np.zeros((4, 28))), "weight_ih_l0 has shape (4, 28), expected (28, 4)"),
        (lambda d: d.update(bias_ih_l0=np.array(["a"] * 28)), "not numbers: bias_ih_l0"),
        (lambda d: d.update(bias_ih_l0=np.zeros(28, complex)), "not numbers: bias_ih_l0"),
    ],
)
def test_load_state_dict_is_strict(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    layer = fl.LSTM(I, H, seed=1)
    before = layer.state_dict()
    d = {name: p + 1 for name, p in before.items()}
    change(d)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        layer.load_state_dict(d)
    assert_same_bits(layer.state_dict(), before)
    assert layer.version == 0


def test_update_changes_parameters_in_place(backend: str) -> None:
    layer, x = fl.GRU(I, H, backend=backend, seed=1), normal(T, B, I)
    layer(x)
    with layer.update() as params:
        for p in params.values():
            p *= 0.5
    assert layer.version == 1
    fresh = fl.GRU(I, H, backend=backend, seed=1)
    fresh.load_state_dict({name: p * np.float32(0.5) for name, p in fresh.state_dict().items()})
    np.testing.assert_array_equal(layer(x)[0], fresh(x)[0])
    with layer.update() as params:
        params["bias_ih_l0"] = np.full(3 * H, 0.25, np.float32)  # put in the dict instead of written to
    assert (layer.state_dict()["bias_ih_l0"] == 0.25).all()
    fresh.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(layer(x)[0], fresh(x)[0])


def test_an_update_that_fails_half_way_is_not_overlooked(backend: str) -> None:
    """The block may have changed parameters, so the version is raised, and weights are packed again."""
    layer, x = fl.RNN(I, H, backend=backend, seed=1), normal(T, B, I)
    layer(x)
    with pytest.raises(ZeroDivisionError), layer.update() as params:
        params["bias_ih_l0"][...] = 3
        _ = 1 // 0
    assert layer.version == 1
    np.testing.assert_array_equal(layer(x)[0], copy.deepcopy(layer)(x)[0])


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda layer: pickle.loads(pickle.dumps(layer))}
CONFIGURED = [
    fl.LSTM(3, 5, 2, batch_first=True, dropout=0.25, bidirectional=True, proj_size=2, peepholes=True, seed=1),
    fl.LSTM(3, 5, bias=False, activations=("hard_sigmoid", "tanh", ("leaky_relu", 0.2)), dtype="float64", seed=1),
    fl.GRU(3, 5, reset_after=False, activations=("sigmoid", "softsign"), seed=1),
    fl.RNN(3, 5, nonlinearity="relu", seed=1),
    fl.LSTMCell(3, 5, seed=1),
    fl.GRUCell(3, 5, bias=False, dtype="float64", seed=1),
    fl.RNNCell(3, 5, nonlinearity="relu", seed=1),
]


@pytest.mark.parametrize("layer", CONFIGURED, ids=repr)
@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_are_equal_and_independent(layer: Any, make: Callable[[Any], Any]) -> None:
    x = normal(2, 3, 3, dtype=layer.dtype)
    x = x[0] if isinstance(layer, tuple(CELLS.values())) else x

    def out(of: Any) -> Any:
        return named("{}", of(x) if isinstance(of, tuple(CELLS.values())) else (of(x)[0],))

    before = out(layer)  # packs the weights: a copy must not take or share them
    again = make(layer)
    assert repr(again) == repr(layer) and again.version == layer.version and again.training == layer.training
    assert_same_bits(out(again), before)
    with again.update() as params:
        for p in params.values():
            p += 1
    assert_same_bits(out(layer), before)
    assert not np.array_equal(out(again)["h"], before["h"])
    assert_same_bits(out(make(again)), out(again))


def test_a_copy_goes_on_with_the_same_dropout() -> None:
    layer, x = fl.LSTM(I, H, 2, dropout=0.5, seed=1), normal(T, B, I)
    layer.forward(x)
    for make in COPIES.values():
        assert np.array_equal(make(layer).forward(x)[0], make(layer).forward(x)[0])
    later = copy.deepcopy(layer)
    np.testing.assert_array_equal(later.forward(x)[0], layer.forward(x)[0])


def test_the_dtype_is_numpys_own_object() -> None:
    """Fast paths compare dtypes by identity, but a copied or unpickled dtype, or one of other byte order, differs."""
    own = np.dtype("float32")
    assert fl.LSTM(I, H, dtype=own.newbyteorder()).dtype is own
    assert all(make(fl.LSTM(I, H)).dtype is own for make in COPIES.values())


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (fl.LSTM(3, 5), "LSTM(3, 5)"),
        (CONFIGURED[0], "LSTM(3, 5, num_layers=2, batch_first=True, dropout=0.25, bidirectional=True, proj_size=2, "
            "peepholes=True)"),
        (CONFIGURED[1], "LSTM(3, 5, bias=False, activations=('hard_sigmoid', 'tanh', ('leaky_relu', 0.2, 0.0)), "
            "dtype='float64')"),
        (CONFIGURED[2], "GRU(3, 5, reset_after=False, activations=('sigmoid', 'softsign'))"),
        (CONFIGURED[3], "RNN(3, 5, nonlinearity='relu')"),
        (CONFIGURED[4], "LSTMCell(3, 5)"),
        (CONFIGURED[5], "GRUCell(3, 5, bias=False, dtype='float64')"),
        (CONFIGURED[6], "RNNCell(3, 5, nonlinearity='relu')"),
    ],
)  # fmt: skip
def test_repr_makes_the_layer_again(layer: Any, text: str) -> None:
    assert repr(layer) == text
    again = eval(text, vars(fl) | {name: getattr(fl, name) for name in ("LSTM", "GRU", "RNN", *dir(fl))})
    assert repr(again) == text and again.state_dict().keys() == layer.state_dict().keys()
    assert [p.shape for p in again.state_dict().values()] == [p.shape for p in layer.state_dict().values()]


# ---------------------------------------------------------------------------------------------------------------- tapes
def test_a_tape_serves_once_its_layer_and_its_weights(backend: str) -> None:
    case = Case("lstm", T, B, I, H)
    layer, drawn = case.layer("float32", backend), case.draw()
    expected = drawn.run(layer)

    _, tape = drawn.forward(layer)
    with pytest.raises(RuntimeError, match="made by another layer"):
        drawn.backward(case.layer("float32", backend), tape)
    with pytest.raises(RuntimeError, match="made by another layer"):
        drawn.backward(copy.deepcopy(layer), tape)
    drawn.backward(layer, tape)
    with pytest.raises(RuntimeError, match="serves once: call forward again"):
        drawn.backward(layer, tape)

    _, tape = drawn.forward(layer)
    with layer.update():
        pass
    with pytest.raises(RuntimeError, match=r"version 1, now 2\): call forward again"):
        drawn.backward(layer, tape)
    _, tape = drawn.forward(layer)
    layer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="version 2, now 3"):
        drawn.backward(layer, tape)
    assert_same_bits(drawn.run(layer), expected)


@pytest.mark.parametrize("not_a_tape", [None, 3, "tape", (1, 2)])
def test_what_is_no_tape_is_refused(not_a_tape: Any) -> None:
    with pytest.raises(TypeError, match="tape"):
        fl.LSTM(I, H).backward(not_a_tape, None)
    with pytest.raises(TypeError, match="tape"):
        fl.LSTMCell(I, H).backward(not_a_tape, None)
