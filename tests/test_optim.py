"""Optimisers and clipping: against values worked out by hand, and against PyTorch where it is installed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm.gradients import SparseGradient
from fastlstm.optim import Optimizer, square_sum

# name -> (class of fastlstm, arguments, PyTorch's name)
OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], dict[str, Any], str]] = {
    "sgd": (fl.SGD, {"lr": 0.1}, "SGD"),
    "momentum": (fl.SGD, {"lr": 0.1, "momentum": 0.9}, "SGD"),
    "nesterov": (fl.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, "SGD"),
    "adam": (fl.Adam, {"lr": 0.01}, "Adam"),
    "sgd-decay": (fl.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}, "SGD"),
    "adam-options": (fl.Adam, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}, "Adam"),
    "adamw": (fl.AdamW, {"lr": 0.01}, "AdamW"),
    "adamw-options": (fl.AdamW, {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.3}, "AdamW"),
    "rmsprop": (fl.RMSprop, {}, "RMSprop"),
    "rmsprop-options": (
        fl.RMSprop,
        {"lr": 1e-3, "alpha": 0.9, "momentum": 0.9, "centered": True, "eps": 1e-4, "weight_decay": 0.1},
        "RMSprop",
    ),
    "adagrad": (fl.Adagrad, {}, "Adagrad"),
    "adagrad-options": (
        fl.Adagrad,
        {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-4},
        "Adagrad",
    ),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def layers(backend: str = "auto", dtype: str = "float32") -> list[Any]:
    return [
        fl.LSTM(3, 4, seed=1, backend=backend, dtype=dtype),
        fl.Dense(4, 2, seed=2, backend=backend, dtype=dtype),
    ]


def draws(of: list[Any], steps: int) -> list[list[dict[str, Any]]]:
    """Gradients for each step and layer."""
    rng = np.random.default_rng(0)
    return [
        [{k: rng.standard_normal(p.shape).astype(p.dtype) for k, p in layer.state_dict().items()} for layer in of]
        for _ in range(steps)
    ]


def parameters(of: list[Any]) -> list[Any]:
    return [p for layer in of for p in layer.state_dict().values()]


# -------------------------------------------------------------------------------------------------------- optimisers
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        # p = 1, gradients 2 then -1
        (lambda d: fl.SGD(d, 0.1), [0.8, 0.9]),
        (lambda d: fl.SGD(d, 0.1, momentum=0.5), [0.8, 0.8]),  # m = 2, then 1 - 1 = 0
        (lambda d: fl.SGD(d, 0.1, momentum=0.5, nesterov=True), [0.7, 0.8]),  # 2 + 1, then -1 + 0
        # m = 0.2, 0.08; v = 0.004, 0.004996; corrected by 0.1, 0.19 and 0.001, 0.001999
        (lambda d: fl.Adam(d, 0.1), [0.9, 0.9 - 0.1 * (0.08 / 0.19) / math.sqrt(0.004996 / 0.001999)]),
    ],
    ids=["sgd", "momentum", "nesterov", "adam"],
)
def test_by_hand(make: Any, expected: list[float]) -> None:
    dense = fl.Dense(1, 1, bias=False, dtype="float64")
    dense.load_state_dict({"weight": np.ones((1, 1))})
    optimizer = make(dense)
    for gradient, value in zip((2.0, -1.0), expected, strict=True):
        optimizer.step({"weight": np.full((1, 1), gradient)})
        assert dense.state_dict()["weight"][0, 0] == pytest.approx(value, abs=1e-8)


@each_optimizer
def test_as_torch(name: str, backend: str) -> None:
    torch = pytest.importorskip("torch")
    make, arguments, theirs_name = OPTIMIZERS[name]
    ours = layers(backend)
    theirs = [torch.nn.Parameter(torch.tensor(p)) for p in parameters(ours)]
    optimizer, torchs = make(ours, **arguments), getattr(torch.optim, theirs_name)(theirs, **arguments)
    for grads in draws(ours, 100):
        for p, g in zip(theirs, [g for of_layer in grads for g in of_layer.values()], strict=True):
            p.grad = torch.tensor(g)
        optimizer.step(grads)
        torchs.step()
    for p, q in zip(parameters(ours), theirs, strict=True):
        largest = max(1.0, float(q.detach().abs().max()))
        assert np.abs(p - q.detach().numpy()).max() <= 1e-6 * largest


@each_optimizer
def test_the_kernels_are_the_reference_to_the_bit(name: str, compiled: str) -> None:
    """Also over arrays of several blocks, and with any number of threads."""
    make, arguments, _ = OPTIMIZERS[name]
    results = []
    for backend, threads in (("numpy", 1), (compiled, 1), (compiled, 2), (compiled, 3)):
        dense = fl.Dense(333, 200, backend=backend, seed=0)
        optimizer = make(dense, **arguments)
        with fl.threads(threads):
            for grads in draws([dense], 5):
                optimizer.step(grads[0])
        results.append([*dense.state_dict().values(), *optimizer.state_dict().values()])
    for one in results[1:]:
        assert all((a == b).all() for a, b in zip(results[0], one, strict=True))


@each_optimizer
def test_float64(name: str) -> None:
    """The reference in double agrees with the kernels in single precision."""
    make, arguments, _ = OPTIMIZERS[name]
    ours, exact = layers(), layers("numpy", "float64")
    for one, other in zip(ours, exact, strict=True):
        other.load_state_dict(one.state_dict())
    optimizers = make(ours, **arguments), make(exact, **arguments)
    for grads in draws(ours, 20):
        for optimizer in optimizers:
            optimizer.step(grads)
    for p, q in zip(parameters(ours), parameters(exact), strict=True):
        assert np.abs(p - q).max() <= 1e-5


def token_gradients(V: int, backend: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A layer over V token ids, and its gradients twice: dense, and sparse."""
    rng = np.random.default_rng(3)
    layer, ids = fl.LSTM(V, 5, bidirectional=True, backend=backend, seed=0), rng.integers(0, V, (7, 3))
    dy = rng.standard_normal((7, 3, 10)).astype("float32")
    _, _, tape = layer.forward(ids)
    _, _, dense = layer.backward(tape, dy)
    _, _, tape = layer.forward(ids)
    _, _, sparse = layer.backward(tape, dy, sparse=True)
    return layer, dense, sparse


@pytest.mark.parametrize("V", [10, 1000])  # nearly all ids are seen; few are seen
def test_gradients_of_token_ids(V: int, backend: str) -> None:
    """Sparse gradients hold the ids seen only; clipping and every optimiser treat them like dense ones."""
    for make, arguments, _ in OPTIMIZERS.values():
        layer, dense, sparse = token_gradients(V, backend)
        for name in ("weight_ih_l0", "weight_ih_l0_reverse"):
            assert isinstance(sparse[name], SparseGradient) and len(sparse[name].ids) <= 21
            assert (sparse[name].dense() == dense[name]).all()
        assert fl.clip_by_norm(sparse, 0.5) == pytest.approx(fl.clip_by_norm(dense, 0.5), rel=1e-12)
        fl.clip_by_value(sparse, 0.01), fl.clip_by_value(dense, 0.01)
        other = copy.deepcopy(layer)
        make(layer, **arguments).step(dense)
        make(other, **arguments).step(sparse)
        assert all((p == q).all() for p, q in zip(parameters([layer]), parameters([other]), strict=True))


def test_gradients_of_no_token_ids() -> None:
    layer = fl.LSTM(10, 5, seed=0)
    _, _, tape = layer.forward(np.zeros((0, 2), int))
    _, _, grads = layer.backward(tape, None, sparse=True)
    before = layer.state_dict()
    fl.SGD(layer, 1.0).step(grads)
    assert all((before[name] == p).all() for name, p in layer.state_dict().items())


@each_optimizer
def test_resumes_exactly(name: str) -> None:
    make, arguments, _ = OPTIMIZERS[name]
    through, first, second = layers(), layers(), layers()
    one = make(through, **arguments)
    for grads in draws(through, 6):
        one.step(grads)
    two = make(first, **arguments)
    for grads in draws(first, 6)[:3]:
        two.step(grads)
    for new, old in zip(second, first, strict=True):
        new.load_state_dict(old.state_dict())
    three = make(second, **arguments | {"lr": 0.5})
    three.load_state_dict(two.state_dict())
    assert three.steps == 3 and three.lr == one.lr
    for grads in draws(second, 6)[3:]:
        three.step(grads)
    assert all((p == q).all() for p, q in zip(parameters(through), parameters(second), strict=True))


def test_step_raises_versions_and_leaves_gradients_alone() -> None:
    ours = layers()
    (grads,) = draws(ours, 1)
    before = [g.copy() for of_layer in grads for g in of_layer.values()]
    optimizer = fl.SGD(ours, 0.1, momentum=0.9)
    versions = [layer.version for layer in ours]
    optimizer.step(grads)
    optimizer.step(grads)
    assert [layer.version for layer in ours] == [v + 2 for v in versions]
    assert all((g == b).all() for g, b in zip([g for d in grads for g in d.values()], before, strict=True))


def test_lr_can_be_assigned() -> None:
    dense = fl.Dense(1, 1, bias=False)
    optimizer, grads = fl.SGD(dense, 1.0), {"weight": np.ones((1, 1), "float32")}
    dense.load_state_dict({"weight": np.zeros((1, 1))})
    optimizer.step(grads)
    optimizer.lr /= 4
    optimizer.step(grads)
    assert dense.state_dict()["weight"][0, 0] == -1.25
    with pytest.raises(ValueError, match="lr"):
        optimizer.lr = -1


def without(grads: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [{k: g for k, g in d.items() if k != name} for d in grads]


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda g: without(g, "bias"), ValueError, r"missing: bias \(2,\)"),
        (lambda g: [g[0], g[1] | {"extra": g[1]["bias"]}], ValueError, "unexpected: extra"),
        (lambda g: [g[0], g[1] | {"bias": np.zeros(3, "float32")}], ValueError, r"bias has shape \(3,\).*\(2,\)"),
        (lambda g: [g[0], g[1] | {"bias": [0.0, 0.0]}], ValueError, "bias has list"),
        (lambda g: [g[0], g[1] | {"bias": np.zeros(2, int)}], ValueError, "int64"),
        (lambda g: g[0], ValueError, "1 layer.*expected 2"),
        (lambda g: 3, TypeError, "got int"),
        (lambda g: [g[0], None], TypeError, "NoneType"),
    ],
    ids=lambda value: None,
)
@each_optimizer
def test_bad_gradients_change_nothing(name: str, spoil: Any, error: type[Exception], said: str) -> None:
    make, arguments, _ = OPTIMIZERS[name]
    ours = layers()
    optimizer = make(ours, **arguments)
    before, state = parameters(ours), optimizer.state_dict()
    versions = [layer.version for layer in ours]
    with pytest.raises(error, match=said):
        optimizer.step(spoil(draws(ours, 1)[0]))
    assert all((p == q).all() for p, q in zip(before, parameters(ours), strict=True))
    assert all((a == optimizer.state_dict()[key]).all() for key, a in state.items())
    assert versions == [layer.version for layer in ours]


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda d: fl.SGD([], 0.1), TypeError, "layers"),
        (lambda d: fl.SGD([d, d], 0.1), ValueError, "twice"),
        (lambda d: fl.SGD(d.state_dict(), 0.1), TypeError, "layers"),
        (lambda d: fl.SGD(d, -0.1), ValueError, "lr"),
        (lambda d: fl.SGD(d, math.nan), ValueError, "lr"),
        (lambda d: fl.SGD(d, "0.1"), TypeError, "lr"),
        (lambda d: fl.SGD(d, 0.1, nesterov=True), ValueError, "momentum"),
        (lambda d: fl.Adam(d, betas=(0.9, 1.0)), ValueError, r"betas\[1\]"),
    ],
    ids=lambda value: None,
)
def test_optimizers_refuse(make: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make(fl.Dense(1, 1))


def test_load_state_dict_refuses_and_changes_nothing() -> None:
    optimizer = fl.Adam(fl.Dense(2, 3))
    before = optimizer.state_dict()
    for spoilt in (
        {k: a for k, a in before.items() if k != "steps"},
        before | {"0.weight.m": np.zeros((3, 3), "float32")},
        before | {"0.weight.m": np.zeros((3, 2))},
        before | {"1.weight.m": np.zeros((3, 2), "float32")},
    ):
        with pytest.raises(RuntimeError, match=r"steps|weight"):
            optimizer.load_state_dict(spoilt)
    assert all((a == optimizer.state_dict()[key]).all() for key, a in before.items())


# ---------------------------------------------------------------------------------------------------------- clipping
def test_clip_by_norm_by_hand() -> None:
    grads = [{"a": np.array([3.0])}, {"b": np.array([[4.0]])}]
    assert fl.clip_by_norm(grads, 1.0) == 5.0
    assert grads[0]["a"][0] == pytest.approx(3 / 5.000001, rel=1e-15)
    assert grads[1]["b"][0, 0] == pytest.approx(4 / 5.000001, rel=1e-15)
    small = {"a": np.array([3.0, 4.0])}
    assert fl.clip_by_norm(small, 6.0) == 5.0 and small["a"].tolist() == [3.0, 4.0]
    assert fl.clip_by_norm(small, math.inf) == 5.0 and small["a"].tolist() == [3.0, 4.0]


def test_clip_by_norm_as_torch() -> None:
    torch = pytest.importorskip("torch")
    (grads,) = draws(layers(), 1)
    flat = [g for d in grads for g in d.values()]
    theirs = [torch.nn.Parameter(torch.zeros(g.shape)) for g in flat]
    for p, g in zip(theirs, flat, strict=True):
        p.grad = torch.tensor(g)
    norm = torch.nn.utils.clip_grad_norm_(theirs, 0.7)
    assert fl.clip_by_norm(grads, 0.7) == pytest.approx(float(norm), rel=1e-6)
    for p, g in zip(theirs, flat, strict=True):
        assert np.abs(p.grad.numpy() - g).max() <= 1e-7


@pytest.mark.parametrize("sizes", [[1], [7, 0, 9], [16384, 16385, 3], [200_000]], ids=str)
def test_norm_has_the_references_bits(sizes: list[int], compiled: str) -> None:
    rng = np.random.default_rng(1)
    grads = {str(at): rng.standard_normal(size).astype("float32") for at, size in enumerate(sizes)}
    norm = math.sqrt(square_sum(list(grads.values())))
    exact = math.sqrt(math.fsum(float(v) ** 2 for g in grads.values() for v in g))
    assert norm == pytest.approx(exact, rel=1e-14)
    expected = [g * np.float32(0.5 * norm / (norm + 1e-6)) for g in grads.values()]
    for threads in (1, 2, 3):
        given = {name: g.copy() for name, g in grads.items()}
        with fl.threads(threads):
            assert fl.clip_by_norm(given, 0.5 * norm) == norm
        assert all((g == e).all() for g, e in zip(given.values(), expected, strict=True))


def test_clip_by_norm_at_extremes() -> None:
    large = {"a": np.full(3, 1e30, "float32")}  # the squares overflow float32
    assert fl.clip_by_norm(large, 1.0) == pytest.approx(math.sqrt(3) * 1e30, rel=1e-6)
    assert large["a"] == pytest.approx(1 / math.sqrt(3), rel=1e-6)
    for bad in (math.nan, math.inf):
        grads = {"a": np.array([1.0, bad])}
        assert not math.isfinite(fl.clip_by_norm(grads, 1.0))
        assert grads["a"][0] == 1.0


def test_clip_by_value() -> None:
    grads = [{"a": np.array([-3.0, 0.5, math.nan, math.inf])}]
    fl.clip_by_value(grads, 1.0)
    assert np.array_equal(grads[0]["a"], [-1.0, 0.5, math.nan, 1.0], equal_nan=True)


@pytest.mark.parametrize("clip", [fl.clip_by_value, fl.clip_by_norm])
def test_clipping_refuses(clip: Any) -> None:
    fixed = np.zeros(2)
    fixed.flags.writeable = False
    for grads, limit, error in (
        ({"a": np.zeros(2)}, -1, ValueError),
        ({"a": np.zeros(2)}, math.nan, ValueError),
        ({"a": [1.0]}, 1, TypeError),
        ({"a": np.zeros(2, int)}, 1, TypeError),
        ({"a": fixed}, 1, ValueError),
        (np.zeros(2), 1, TypeError),
    ):
        with pytest.raises(error):
            clip(grads, limit)


def test_ids_then_numbers_through_one_layer(backend: str) -> None:
    """Backward of numbers after backward of token ids, with the same weights: it needs further panels."""
    layer, fresh = (fl.LSTM(6, 5, backend=backend, seed=0) for _ in range(2))
    ids = np.array([[0, 5], [3, 3]])
    one_hot, dy = np.eye(6, dtype="float32")[ids], np.ones((2, 2, 5), "float32")
    _, _, tape = layer.forward(ids)
    _, _, of_ids = layer.backward(tape, dy)
    _, _, tape = layer.forward(one_hot)
    dx, _, grads = layer.backward(tape, dy)
    _, _, tape = fresh.forward(one_hot)
    expected, _, _ = fresh.backward(tape, dy)
    assert (dx == expected).all() and dx.any()
    for name, g in grads.items():
        assert np.abs(g - of_ids[name]).max() < 1e-6
