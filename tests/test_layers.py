"""What the layers and cells mean, on every backend: lengths, shapes, dropout, versions, tapes, odd and bad input."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cases import CELLS, LAYERS, TOLERANCE, TWO, Case, Drawn, assert_all_near, assert_near, assert_same_bits, named

import fastlstm as fl
from fastlstm import packing, validation
from fastlstm.validation import check_ids

T, B, I, H = 5, 6, 4, 7  # noqa: E741
LENGTHS = (3, 0, 5, 1, 5, 2)
each_kind = pytest.mark.parametrize("kind", LAYERS)


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def sequences(state: Any, pick: Any) -> Any:
    """Some sequences of a state."""
    return tuple(s[:, pick] for s in state) if isinstance(state, tuple) else state[:, pick]


def near(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal but for the order of additions, which BLAS chooses by the batch's size."""
    assert_all_near(got, expected, TOLERANCE["values"], TOLERANCE["gradients"])


# ------------------------------------------------------------------------------------------------------------- lengths
@each_kind
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, TWO, {"num_layers": 3}], ids=str)
def test_a_ragged_batch_is_its_sequences_alone(kind: str, options: dict[str, Any], backend: str) -> None:
    """Values, states and gradients; so the reverse direction starts at the last valid step. What lies past a length is
    never read: it is NaN here."""
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
    """Where the last layer writes its outputs to their places, and where they come packed and are scattered later."""
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
    """Writing over it between forward and backward changes nothing; and no call writes to what it was given."""
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
    """Memory is used again between calls, but never while anything still refers to it: an array, a view, a buffer."""
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


# -------------------------------------------------------------------------------------------------------------- dropout
def constant(p: float, backend: str, layers: int = 2, H: int = 8) -> Any:
    """Layers that give 1 where their input is absent and else hand it on: what comes out is the mask itself."""
    rnn = fl.RNN(H, H, layers, nonlinearity="identity", dropout=p, backend=backend, seed=5)
    one = {"weight_ih": np.eye(H), "weight_hh": np.zeros((H, H)), "bias_ih": np.zeros(H), "bias_hh": np.zeros(H)}
    rnn.load_state_dict({name: one[name.rpartition("_l")[0]] for name in rnn.state_dict()})
    return rnn


def test_dropout_drops_between_layers_and_scales(backend: str) -> None:
    layer, x = constant(0.3, backend), np.ones((40, 25, 8), np.float32)
    y, _, _ = layer.forward(x)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    assert abs((y == 0).mean() - 0.3) < 0.02  # 8000 draws: four standard deviations
    assert not np.array_equal(y, layer.forward(x)[0]), "the mask must be fresh in every call"
    y, _, _ = constant(0.3, backend, layers=3).forward(x)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7) * np.float32(1 / 0.7)}


@pytest.mark.filterwarnings("ignore:dropout=0.5 has no effect")
def test_dropout_spares_inference_and_the_last_layer(backend: str) -> None:
    x = np.ones((4, 3, 8), np.float32)
    layer = constant(0.5, backend)
    np.testing.assert_array_equal(layer(x)[0], x)
    assert layer.eval() is layer
    np.testing.assert_array_equal(layer.forward(x)[0], x)
    assert layer.train() is layer
    assert not np.array_equal(layer.forward(x)[0], x)
    np.testing.assert_array_equal(constant(0.5, backend, layers=1).forward(x)[0], x)


def test_dropout_is_seeded(backend: str) -> None:
    x = normal(T, B, I)
    make: Callable[[int], Any] = lambda seed: fl.LSTM(I, H, 2, dropout=0.5, backend=backend, seed=seed)  # noqa: E731
    a, b, other = make(3), make(3), make(4)
    for _ in range(3):
        y = a.forward(x)[0]
        np.testing.assert_array_equal(y, b.forward(x)[0])
    other.load_state_dict(a.state_dict())
    assert not np.array_equal(a.forward(x)[0], other.forward(x)[0])


def test_dropout_of_everything_gives_zeros(backend: str) -> None:
    case = Case("lstm", T, B, I, H, {"num_layers": 2, "dropout": 1.0}, state=False, given="y")
    layer, drawn = case.layer("float32", backend), case.draw()
    y, (h, _), tape = layer.forward(drawn.x)
    second = fl.LSTM(H, H, backend=backend)
    second.load_state_dict({f"{n[:-1]}0": p for n, p in layer.state_dict().items() if n.endswith("_l1")})
    y_alone, (h_alone, _) = second(np.zeros((T, B, H), np.float32))
    near({"y": y, "h": h[1:]}, {"y": y_alone, "h": h_alone})
    dx, _, grads = layer.backward(tape, drawn.dy)
    assert not dx.any() and not any(g.any() for name, g in grads.items() if name.endswith("_l0"))
    assert not grads["weight_ih_l1"].any() and grads["weight_hh_l1"].any()


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_dropout_backward_has_forwards_mask(lengths: Any) -> None:
    """Against finite differences: a copy of the layer draws the same mask again."""
    case = Case("lstm", T, B, 3, 4, {**TWO, "dropout": 0.4}, lengths)
    layer, drawn = case.layer("float64", "numpy"), case.draw("float64")

    def loss() -> float:
        values, _ = drawn.forward(copy.deepcopy(layer))
        weights = {"y": drawn.dy, **named("{}_n", drawn.dstate)}
        return sum(float((values[name] * w).sum()) for name, w in weights.items())

    gradient = drawn.run(copy.deepcopy(layer))["dx"]
    rng = np.random.default_rng(0)
    for _ in range(30):
        at = tuple(int(rng.integers(n)) for n in drawn.x.shape)
        kept, sides = drawn.x[at], []
        for step in (1e-5, -1e-5):
            drawn.x[at] = kept + step
            sides.append(loss())
        drawn.x[at] = kept
        difference = (sides[0] - sides[1]) / 2e-5
        assert abs(gradient[at] - difference) < TOLERANCE["finite differences"] * np.abs(gradient).max()


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
    """The parameters may have changed, so the version has, and the packed weights are those of now."""
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
    """The door asks by identity. A copied or unpickled dtype, or one of the other byte order, is another object."""
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


# ---------------------------------------------------------------------------------------------------------------- cells
@each_kind
@pytest.mark.parametrize("ids", [False, True], ids=["numbers", "ids"])
@pytest.mark.parametrize("batched", [True, False], ids=["batch", "single"])
def test_a_cell_is_a_layer_of_one_step(kind: str, ids: bool, batched: bool, backend: str) -> None:
    case = Case(kind, 1, 3, I, H, ids=ids)
    layer, drawn = case.layer("float32", backend), case.draw()
    cell = CELLS[kind](I, H, backend=backend)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    assert cell.backend == layer.backend == backend
    drawn.dy = None
    if not batched:
        drawn = Drawn(drawn.x[:, 0], sequences(drawn.state, 0), None, None, sequences(drawn.dstate, 0))
    expected = drawn.run(layer)

    def first(state: Any) -> Any:
        return tuple(s[0] for s in state) if isinstance(state, tuple) else state[0]

    x, state, dstate = drawn.x[0], first(drawn.state), first(drawn.dstate)
    new, tape = cell.forward(x, state)
    dx, d_initial, grads = cell.backward(tape, dstate)
    assert (dx is None) == ids
    got = named("{}_n", new) | named("d{}_0", d_initial) | {f"d{name}_l0": g for name, g in grads.items()}
    got |= {} if dx is None else {"dx": dx}
    states = ("h_n", "c_n", "dh_0", "dc_0", "dx")
    assert_same_bits(got, {n: a[0] if n in states else a for n, a in expected.items() if n != "y"})
    assert_same_bits(named("{}_n", cell(x, state)), named("{}_n", new))
    zeros = tuple(map(np.zeros_like, state)) if isinstance(state, tuple) else np.zeros_like(state)
    assert_same_bits(named("{}", cell(x)), named("{}", cell(x, zeros)))


def test_a_cells_parameters_follow_the_rules_of_layers(backend: str) -> None:
    cell, x = fl.LSTMCell(I, H, backend=backend, seed=1), normal(B, I)
    assert list(cell.state_dict()) == ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    assert list(fl.GRUCell(I, H, bias=False).state_dict()) == ["weight_ih", "weight_hh"]
    before, (_, tape) = cell(x), cell.forward(x)
    with cell.update() as params:
        params["weight_ih"] *= 2
    assert cell.version == 1 and not np.array_equal(cell(x)[0], before[0])
    with pytest.raises(RuntimeError, match="version 0, now 1"):
        cell.backward(tape, before)
    with pytest.raises(RuntimeError, match=r"misshapen: weight_ih has shape \(4, 28\), expected \(28, 4\)"):
        cell.load_state_dict(cell.state_dict() | {"weight_ih": cell.state_dict()["weight_ih"].T})
    _, tape = cell.forward(x)
    with pytest.raises(RuntimeError, match="another layer"):
        fl.LSTMCell(I, H, backend=backend).backward(tape, before)
    with pytest.raises(ValueError, match=re.escape("dstate's h has shape (6, 8), expected (6, 7)")):
        cell.backward(tape, (np.zeros((6, 8), np.float32), None))
    cell.backward(tape, (None, before[1]))


# ------------------------------------------------------------------------------------------------------------ odd input
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
    """Each call gives what it gives alone; also the first, when all of them find the weights unpacked."""
    for case in (Case("lstm", 7, 5, 9, 33, TWO, (7, 0, 3, 7, 1)), Case("gru", 7, 16, 64, 64, {"num_layers": 2})):
        quiet, layer = case.layer("float32", backend), case.layer("float32", backend)
        draws = [case.draw(seed=seed) for seed in range(8)]
        expected = [drawn.run(quiet) for drawn in draws]

        def work(i: int, draws: Any = draws, layer: Any = layer, expected: Any = expected) -> None:
            for _ in range(5):
                near(draws[i].run(layer), expected[i])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))


# ------------------------------------------------------------------------------------------------------------ bad input
F32 = np.float32
X, HN = np.zeros((T, B, I), F32), np.zeros((1, B, H), F32)
BAD_CALLS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (
        np.zeros((T, B, 5), F32),
        {},
        ValueError,
        "x has shape (5, 6, 5), expected (T, B, 4), or (T, 4) without a batch: its last axis must be input_size = 4",
    ),
    (np.zeros((T, B, I, 1), F32), {}, ValueError, "x has shape (5, 6, 4, 1), expected (T, B, 4), or (T, 4)"),
    (np.zeros(I, F32), {}, ValueError, "x has shape (4,), expected (T, B, 4)"),
    (F32(1), {}, ValueError, "x has shape ()"),
    (
        np.zeros((T, B, I)),
        {},
        ValueError,
        "x has dtype float64, the layer float32. Convert it with x.astype('float32')",
    ),
    (np.zeros((T, B, I), np.float16), {}, ValueError, "x has dtype float16, the layer float32"),
    (np.zeros((T, B, I), int), {}, TypeError, "x of dtype int64 has shape (5, 6, 4): integers are token ids"),
    (np.zeros((T, B, I), bool), {}, TypeError, "got dtype bool"),
    (np.zeros((T, B), bool), {}, TypeError, "got dtype bool"),
    (np.zeros((T, B, I), object), {}, TypeError, "got dtype object"),
    (np.zeros((T, B, I), complex), {}, TypeError, "got dtype complex128"),
    ("text", {}, TypeError, "got dtype <U4"),
    (None, {}, TypeError, "got dtype object"),
    (np.zeros((T, B, I, 1), int), {}, ValueError, "x has shape (5, 6, 4, 1), expected (T, B)"),
    (np.full((T, B), 4), {}, ValueError, "token ids must lie between 0 and input_size - 1 = 3, got 4 to 4"),
    (np.full((T, B), -1), {}, ValueError, "got -1 to -1"),
    (np.full((T, B), 2**64 - 1, np.uint64), {}, ValueError, "token ids must lie between 0 and input_size - 1 = 3"),
    (
        X,
        {"lengths": [5] * 5},
        ValueError,
        "lengths has shape (5,), expected (6,): one entry for each of the 6 sequences",
    ),
    (X, {"lengths": [5] * 7}, ValueError, "lengths has shape (7,), expected (6,)"),
    (X, {"lengths": 5}, ValueError, "lengths has shape (), expected (6,)"),
    (X, {"lengths": [6, 1, 1, 1, 1, 1]}, ValueError, "lengths must lie between 0 and T = 5, got 1 to 6"),
    (X, {"lengths": [-1, 1, 1, 1, 1, 1]}, ValueError, "lengths must lie between 0 and T = 5, got -1 to 1"),
    (X, {"lengths": [1.0] * 6}, TypeError, "lengths must be integers, got dtype float64"),
    (X, {"lengths": [True] * 6}, TypeError, "lengths must be integers, got dtype bool"),
    (X[:, 0], {"lengths": [3]}, ValueError, "lengths goes with a batch"),
    (X, {"state": HN}, TypeError, "state of LSTM is a pair (h, c), got ndarray"),
    (X, {"state": (HN,)}, TypeError, "state of LSTM is a pair (h, c)"),
    (X, {"state": (HN, HN, HN)}, TypeError, "state of LSTM is a pair (h, c)"),
    (X, {"state": (HN, None)}, TypeError, "state's c"),
    (X, {"state": (HN[:, :5], HN)}, ValueError, "state's h has shape (1, 5, 7), expected (1, 6, 7)"),
    (X, {"state": (HN, HN[0])}, ValueError, "state's c has shape (6, 7), expected (1, 6, 7)"),
    (X, {"state": (HN, HN.astype(float))}, ValueError, "state's c has dtype float64, the layer float32"),
    (X[:, 0], {"state": (HN, HN)}, ValueError, "state's h has shape (1, 6, 7), expected (1, 7)"),
]


@pytest.mark.parametrize(("x", "arguments", "error", "message"), BAD_CALLS, ids=[m for *_, m in BAD_CALLS])
def test_a_bad_call_says_what_was_expected(
    x: Any, arguments: dict[str, Any], error: type[Exception], message: str, backend: str
) -> None:
    layer = fl.LSTM(I, H, backend=backend, seed=1)
    good = normal(T, B, I)
    before = layer(good)[0]
    for call in (layer, layer.forward):
        with pytest.raises(error, match=re.escape(message)):
            call(x, **arguments)
    assert layer.version == 0
    np.testing.assert_array_equal(layer(good)[0], before)


def test_states_of_other_kinds_are_refused() -> None:
    for layer in (fl.GRU(I, H), fl.RNN(I, H)):
        with pytest.raises(TypeError, match=r"state of \w+ is one array h, got a tuple"):
            layer(X, (HN, HN))


def test_batch_first_says_so_in_its_errors() -> None:
    with pytest.raises(ValueError, match=re.escape("expected (B, T, 4), or (T, 4) without a batch")):
        fl.LSTM(I, H, batch_first=True)(np.zeros(3, F32))


BAD_GRADIENTS: list[tuple[Any, Any, type[Exception], str]] = [
    (np.zeros((T, B, H + 1), F32), None, ValueError, "dy has shape (5, 6, 8), expected (5, 6, 7): the shape of y"),
    (np.zeros((B, T, H), F32), None, ValueError, "dy has shape (6, 5, 7), expected (5, 6, 7)"),
    (np.zeros((T, B, H)), None, ValueError, "dy has dtype float64, the layer float32"),
    (np.zeros((T, B, H), complex), None, TypeError, "dy must hold real numbers"),
    (None, HN, TypeError, "dstate of LSTM is a pair (h, c)"),
    (None, (HN[0], HN), ValueError, "dstate's h has shape (6, 7), expected (1, 6, 7)"),
    (None, (None, HN[:, :3]), ValueError, "dstate's c has shape (1, 3, 7), expected (1, 6, 7)"),
    (None, (HN.astype(float), None), ValueError, "dstate's h has dtype float64"),
]


@pytest.mark.parametrize(("dy", "dstate", "error", "message"), BAD_GRADIENTS, ids=[m for *_, m in BAD_GRADIENTS])
def test_a_bad_gradient_does_not_cost_the_tape(
    dy: Any, dstate: Any, error: type[Exception], message: str, backend: str
) -> None:
    case = Case("lstm", T, B, I, H)
    layer, drawn = case.layer("float32", backend), case.draw()
    expected = drawn.run(layer)
    values, tape = drawn.forward(layer)
    with pytest.raises(error, match=re.escape(message)):
        layer.backward(tape, dy, dstate)
    assert_same_bits(values | drawn.backward(layer, tape), expected)


BAD_LAYERS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: fl.LSTM(0, 5), ValueError, "input_size must be at least 1, got 0"),
    (lambda: fl.LSTM(3, -1), ValueError, "hidden_size must be at least 1, got -1"),
    (lambda: fl.GRU(3, 5, 0), ValueError, "num_layers must be at least 1, got 0"),
    (lambda: fl.GRU(3, 5.0), TypeError, "hidden_size must be an integer, got 5.0"),
    (lambda: fl.RNN("3", 5), TypeError, "input_size must be an integer, got '3'"),
    (lambda: fl.RNN(3, True), TypeError, "hidden_size must be an integer, got True"),
    (lambda: fl.LSTM(3, 5, dropout=1.5), ValueError, "dropout must be a number between 0 and 1, got 1.5"),
    (lambda: fl.LSTM(3, 5, dropout=-0.1), ValueError, "dropout must be a number between 0 and 1"),
    (lambda: fl.LSTM(3, 5, dropout=float("nan")), ValueError, "dropout must be a number between 0 and 1"),
    (lambda: fl.LSTM(3, 5, proj_size=5), ValueError, "proj_size must be smaller than hidden_size, got 5 and 5"),
    (lambda: fl.LSTM(3, 5, proj_size=-1), ValueError, "proj_size must be at least 0, got -1"),
    (lambda: fl.GRU(3, 5, proj_size=2), TypeError, "proj_size"),
    (lambda: fl.RNN(3, 5, peepholes=True), TypeError, "peepholes"),
    (lambda: fl.LSTM(3, 5, activations=("sigmoid", "tanh")), ValueError, "activations needs 3 entries for LSTM"),
    (lambda: fl.GRU(3, 5, activations="tanh"), ValueError, "activations needs 2 entries for GRU, got 'tanh'"),
    (lambda: fl.RNN(3, 5, nonlinearity="sine"), ValueError, "activation 'sine' is not known. Give a name"),
    (lambda: fl.RNN(3, 5, nonlinearity=("elu", 1, 2, 3)), ValueError, "is not known"),
    (lambda: fl.RNN(3, 5, nonlinearity=("tanh", "relu")), ValueError, "nonlinearity names two directions, but the lay"),
    (lambda: fl.LSTM(3, 5, clip=0), ValueError, "clip must be a finite number above 0, or None, got 0"),
    (lambda: fl.LSTM(3, 5, clip="1"), TypeError, "clip must be a number, got '1'"),
    (lambda: fl.LSTM(3, 5, bias=False, single_bias=True), ValueError, "single_bias is one of the biases"),
    (lambda: fl.GRU(3, 5, single_bias=True), ValueError, "a GRU with reset_after=True has two biases"),
    (lambda: fl.LSTM(3, 5, dtype="float16"), ValueError, "dtype 'float16' is not supported; expected one of float32"),
    (lambda: fl.LSTM(3, 5, dtype=int), ValueError, "is not supported; expected one of float32, float64"),
    (lambda: fl.LSTM(3, 5, backend="cuda"), ValueError, "backend 'cuda' is not known; expected auto, c, "),
    (lambda: fl.LSTMCell(3, 0), ValueError, "hidden_size must be at least 1, got 0"),
    (lambda: fl.LSTM(3, 5).stream(0), ValueError, "batch_size must be at least 1, got 0"),
    (lambda: fl.LSTM(3, 5, bidirectional=True).stream(), ValueError, "a bidirectional layer cannot stream"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), BAD_LAYERS, ids=[m for *_, m in BAD_LAYERS])
def test_a_bad_layer_says_what_was_expected(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


BAD_CELL_CALLS: list[tuple[Any, Any, type[Exception], str]] = [
    (np.zeros((B, 5), F32), None, ValueError, "x has shape"),
    (np.zeros((1, B, I), F32), None, ValueError, "x has shape (1, 6, 4), expected (B, 4), or (4,) without a batch"),
    (np.zeros((B, I)), None, ValueError, "x has dtype float64"),
    (np.zeros((B, I), F32), np.zeros((B, H), F32), TypeError, "is a pair (h, c)"),
    (np.zeros((B, I), F32), (np.zeros((B, H), F32),) * 3, TypeError, "is a pair (h, c)"),
    (
        np.zeros((B, I), F32),
        (np.zeros(H, F32),) * 2,
        ValueError,
        "state's h has shape (7,), expected (6, 7): (batch, hidden_size)",
    ),
    (
        np.zeros(I, F32),
        (np.zeros((B, H), F32),) * 2,
        ValueError,
        "state's h has shape (6, 7), expected (7,): (hidden_size,)",
    ),
    (np.zeros((B, I), F32), (np.zeros((5, H), F32),) * 2, ValueError, "state's h has shape (5, 7), expected (6, 7)"),
    (np.full(B, 9), None, ValueError, "token ids must lie between 0 and input_size - 1 = 3, got 9 to 9"),
]


@pytest.mark.parametrize(("x", "state", "error", "message"), BAD_CELL_CALLS, ids=[m for *_, m in BAD_CELL_CALLS])
def test_a_bad_call_of_a_cell_says_what_was_expected(x: Any, state: Any, error: type[Exception], message: str) -> None:
    cell = fl.LSTMCell(I, H)
    for call in (cell, cell.forward):
        with pytest.raises(error, match=re.escape(message)):
            call(x, state)


@pytest.mark.parametrize("call", ["inference", "training", "run", "step"])
def test_checked_ids_are_those_used(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another thread writes to the caller's ids after the check has no effect: they are places in memory."""
    layer = fl.LSTM(5, 4, backend="numpy", seed=0)
    ids = np.array([[1], [2], [3]])
    stream = layer.stream()
    calls: dict[str, Any] = {
        "inference": lambda: layer(ids)[0],
        "training": lambda: layer.forward(ids)[0],
        "run": lambda: stream.run(ids),
        "step": lambda: stream.step(ids[0]),
    }
    right = calls[call]().copy()
    stream.reset()

    def check_then_write(given: Any, *rest: Any) -> None:
        check_ids(given, *rest)
        ids[...] = 1 << 40

    for module in (packing, validation):
        monkeypatch.setattr(module, "check_ids", check_then_write)
    np.testing.assert_array_equal(calls[call](), right)
