"""Arguments of constructors: flags, probabilities, sizes, seeds, dtypes and activations of wrong kinds are refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cases import LAYERS

import fastlstm as fl
from fastlstm import Dense
from fastlstm.text import Settings

CELLS = {"LSTMCell": fl.LSTMCell, "GRUCell": fl.GRUCell, "RNNCell": fl.RNNCell}
X = np.ones((2, 3, 3), np.float32)


def rising(make: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A schedule of an optimiser of a fresh layer."""
    return lambda **given: make(fl.SGD(fl.RNN(3, 5)), **{**options, **given})


def of_layer(make: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """An optimiser of a fresh layer."""
    return lambda **given: make(fl.RNN(3, 5), **{**options, **given})


def lstm(**given: Any) -> Any:
    return fl.LSTM(3, 5, **{"num_layers": 2, **given})


def called(**given: Any) -> Any:
    return fl.LSTM(3, 5, seed=0)(X, **given)


# Every flag and every probability of a call: (the call, a function that makes it, the argument's name).
FLAGS: list[tuple[str, Callable[..., Any], str]] = [
    *[
        (kind, lambda make=make, **given: make(3, 5, **given), name)
        for kind, make in LAYERS.items()
        for name in ("bias", "batch_first", "bidirectional")
    ],
    *[(kind, lambda make=make, **given: make(3, 5, **given), "bias") for kind, make in CELLS.items()],
    ("lstm", lstm, "peepholes"),
    ("gru", lambda **given: fl.GRU(3, 5, **given), "reset_after"),
    ("Dense", lambda **given: Dense(3, 5, **given), "bias"),
    ("a call", called, "last_only"),
    ("SGD", of_layer(fl.SGD, momentum=0.5), "nesterov"),
    ("RMSprop", of_layer(fl.RMSprop), "centered"),
]
PROBABILITIES: list[tuple[str, Callable[..., Any], str]] = [
    *[(kind, lambda make=make, **given: make(3, 5, 2, **given), "dropout") for kind, make in LAYERS.items()],
    ("Settings", Settings, "dropout"),
]
each_flag = pytest.mark.parametrize(("what", "make", "name"), FLAGS, ids=[f"{what} {name}" for what, _, name in FLAGS])
each_probability = pytest.mark.parametrize(
    ("what", "make", "name"), PROBABILITIES, ids=[what for what, *_ in PROBABILITIES]
)


@each_flag
@pytest.mark.parametrize(
    "value", ["False", "true", "", 0, 1, 0.0, None, [], (), np.array([True]), np.int64(1)], ids=repr
)
def test_a_flag_is_a_bool(what: str, make: Callable[..., Any], name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must be True or False, got .*: give {name}=True or {name}=False$"):
        make(**{name: value})


@each_flag
def test_a_flag_may_be_numpys_bool(what: str, make: Callable[..., Any], name: str) -> None:
    """Parameter searches pass numpy.bool_."""
    for value in (np.True_, np.False_):
        made = make(**{name: value})
        if hasattr(made, name):
            assert getattr(made, name) is bool(value)


@each_probability
@pytest.mark.parametrize(
    "value", [True, False, np.True_, "0.5", None, -0.1, 1.5, float("nan"), float("inf"), 50, [0.5], 0.5j], ids=repr
)
def test_a_probability_is_a_number_between_0_and_1(what: str, make: Callable[..., Any], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a number between 0 and 1, got "):
        make(**{name: value})


@each_probability
@pytest.mark.parametrize("value", [0, 1, 0.25, np.float32(0.25), np.float64(1), np.int64(0)], ids=repr)
def test_probabilities_of_any_number_type_serve(what: str, make: Callable[..., Any], name: str, value: Any) -> None:
    assert getattr(make(**{name: value}), name) == value


# ----------------------------------------------------------------------------------------------------- beside PyTorch
def outcome(make: Callable[..., Any], **options: Any) -> tuple[str, int]:
    """The name of the error, or "made", and how many warnings were given."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            make(3, 5, **options)
        except (TypeError, ValueError) as error:
            return type(error).__name__, len(told)
    return "made", len(told)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "options",
    [
        *[{name: value} for name in ("bias", "batch_first") for value in ("False", "", 0, 1, None, 0.0)],
        *[{"dropout": value} for value in (True, False, "0.5", -0.1, 1.5, float("nan"))],
        *[{"dropout": value, "num_layers": layers} for value in (0, 0.0, 0.5, 1, np.float32(0.5)) for layers in (1, 2)],
        {"num_layers": 1.0},
        {"num_layers": 0},
        {"num_layers": "2"},
    ],
    ids=str,
)
def test_torch_takes_refuses_and_warns_of_the_same(kind: str, options: dict[str, Any]) -> None:
    """nn.LSTM(dropout=0.5) of one layer warns, and nn.LSTM(batch_first="False") is a TypeError, as here."""
    nn = pytest.importorskip("torch", reason="PyTorch is not installed: make test-peers").nn
    torchs = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind]
    assert outcome(LAYERS[kind], **options) == outcome(torchs, **options)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_dropout_of_one_layer_warns_at_the_callers_line(make: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match="dropout=0.9 has no effect.* num_layers=2 or more, or dropout=0$") as told:
        make(3, 5, dropout=0.9)
    assert [w.filename for w in told] == [__file__]


# -------------------------------------------------------------------------------------------------- other bad arguments
def bad_arguments() -> Iterator[tuple[str, Callable[[], Any], type[Exception], str]]:
    """(name, a call, its error, a part of the message)."""
    for kind, make in LAYERS.items():
        for value in (2.0, True, np.True_, "2", None, np.array([2])):
            yield f"{kind} sizes {value!r}", lambda m=make, v=value: m(v, 5), TypeError, "input_size must be an integer"
            yield f"{kind} layers {value!r}", lambda m=make, v=value: m(3, 5, v), TypeError, "num_layers must be an int"
        for value in (True, 1.5, "7", [1, 2], np.random.default_rng()):
            yield (
                f"{kind} seed {value!r}",
                lambda m=make, v=value: m(3, 5, seed=v),
                TypeError,
                "seed must be an integer",
            )
        yield f"{kind} seed -1", lambda m=make: m(3, 5, seed=-1), ValueError, "seed must be at least 0, got -1"
        for value in (None, "float33", 3, len, ["float32"]):
            yield (
                f"{kind} dtype {value!r}",
                lambda m=make, v=value: m(3, 5, dtype=v),
                TypeError,
                "dtype must be 'float32' or 'float64', got ",
            )
    for value in (True, 1.5, "7"):
        yield f"Dense seed {value!r}", lambda v=value: Dense(3, 5, seed=v), TypeError, "seed must be an integer"
    yield (
        "Dense dtype None",
        lambda: Dense(3, 5, dtype=None),
        TypeError,
        "dtype must be 'float32' or 'float64', got None",
    )
    for value in (None, 3, np.tanh, {"sigmoid", "tanh", "relu"}, iter("abc"), {"a": 1, "b": 2, "c": 3}):
        yield f"activations {value!r}", lambda v=value: lstm(activations=v), ValueError, "activations needs 3 entries"
    for value in (None, 3, np.tanh, b"tanh", {"tanh": 1}, (), (3, 1.0)):
        yield (
            f"activation {value!r}",
            lambda v=value: fl.RNN(3, 5, nonlinearity=v),
            TypeError,
            "an activation is a name or a tuple (name, alpha, beta), got ",
        )
    for value in ("1", None, True, float("nan"), float("inf"), [1.0]):
        yield (
            f"alpha {value!r}",
            lambda v=value: fl.RNN(3, 5, nonlinearity=("elu", v)),
            TypeError,
            "alpha and beta of activation 'elu' must be finite numbers, got ",
        )
    for value in (0.9, (0.9,), (0.9, 0.99, 0.999), "ab", None, {0.9, 0.99}):
        yield (
            f"betas {value!r}",
            lambda v=value: of_layer(fl.Adam)(betas=v),
            TypeError,
            "betas must be a pair of",
        )
    for value in (None, "1", True, [1.0], np.ones(2)):
        yield f"max_norm {value!r}", lambda v=value: fl.clip_by_norm({}, v), TypeError, "max_norm must be a number"
    for value in (None, 3, "ab", {1}):
        yield (
            f"milestones {value!r}",
            lambda v=value: rising(fl.SequentialLR, schedulers=[])(milestones=v),
            TypeError,
            "milestones must be a list",
        )
    yield (
        "schedulers",
        lambda: rising(fl.SequentialLR, milestones=[1])(schedulers=[1, 2]),
        TypeError,
        "schedulers must be fastlstm schedules",
    )
    for value in ("0.5", None, True, [0.5, 0.4], np.ones(2)):
        yield (
            f"measure {value!r}",
            lambda v=value: rising(fl.ReduceLROnPlateau)().step(v),
            TypeError,
            "a measure must be one number, got ",
        )


BAD_ARGUMENTS = list(bad_arguments())


@pytest.mark.parametrize(
    ("call", "error", "message"), [c[1:] for c in BAD_ARGUMENTS], ids=[c[0] for c in BAD_ARGUMENTS]
)
def test_an_argument_of_the_wrong_kind_says_what_was_expected(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as told:
        call()
    assert message in str(told.value)


PUT: list[tuple[str, Any, str]] = [
    ("bias_ih_l0", np.ones(14), "bias_ih_l0 has dtype float64 and shape (14,), expected (15,)"),
    ("bias_ih_l0", np.ones((15, 1)), "bias_ih_l0 has dtype float64 and shape (15, 1), expected (15,)"),
    ("bias_ih_l0", np.ones(1), "bias_ih_l0 has dtype float64 and shape (1,), expected (15,)"),
    ("bias_ih_l0", None, "bias_ih_l0 has dtype object and shape (), expected (15,)"),
    ("bias_ih_l0", [[1.0], [1.0, 2.0]], "no array: bias_ih_l0"),
    ("bias_ih_l1", np.ones(15), "unexpected: bias_ih_l1"),
]


@pytest.mark.parametrize(("name", "value", "message"), PUT, ids=[m for *_, m in PUT])
def test_what_does_not_fit_is_not_put_into_a_layer(name: str, value: Any, message: str) -> None:
    """The parameter is not changed in part, the value is not broadcast over it, and it is not ignored."""
    layer = fl.GRU(3, 5, seed=1)
    before = layer.state_dict()
    with pytest.raises(RuntimeError) as told, layer.update() as params:
        params["bias_hh_l0"] = np.zeros(15)
        params[name] = value
    assert message in str(told.value)
    for key, p in layer.state_dict().items():
        np.testing.assert_array_equal(p, before[key])
    with layer.update() as params:
        params["bias_hh_l0"] = 0.5
    assert (layer.state_dict()["bias_hh_l0"] == 0.5).all() and layer.version == 2


STATES: list[tuple[Any, type[Exception], str]] = [
    (None, TypeError, "a state_dict is a mapping from names to numbers, got NoneType"),
    ({}, RuntimeError, "missing: steps"),
    ({"steps": 7}, RuntimeError, "missing: base_lr"),
    ({"steps": 7, "base_lr": 0.5, "gamma": 1}, RuntimeError, "unexpected: gamma"),
    ({"steps": "7", "base_lr": 0.5}, RuntimeError, "no number: steps"),
    ({"steps": 7, "base_lr": [0.5, 0.5]}, RuntimeError, "no number: base_lr"),
]


@pytest.mark.parametrize(("state", "error", "message"), STATES, ids=[m for *_, m in STATES])
def test_a_schedules_state_is_taken_whole_or_not(state: Any, error: type[Exception], message: str) -> None:
    optimizer = fl.SGD(fl.RNN(3, 5), lr=1.0)
    parts = [fl.LinearLR(optimizer), fl.StepLR(optimizer, 2)]
    for schedule in (*parts, fl.SequentialLR(optimizer, parts, [3])):
        before = (schedule.steps, schedule.base_lr, optimizer.lr, [s.base_lr for s in parts])
        with pytest.raises(error) as told:
            schedule.load_state_dict(state)
        assert message in str(told.value)
        assert before == (schedule.steps, schedule.base_lr, optimizer.lr, [s.base_lr for s in parts])
    with pytest.raises((TypeError, RuntimeError)):
        fl.ReduceLROnPlateau(optimizer).load_state_dict(state)


def test_a_mask_given_as_lengths_is_told_where_it_belongs() -> None:
    with pytest.raises(TypeError, match=r"got dtype bool; a mask is given as mask=$"):
        fl.GRU(3, 5)(X, lengths=np.ones((2, 3), bool))


def test_a_refused_last_only_returns_nothing_and_leaves_the_layer() -> None:
    layer = fl.GRU(3, 5, seed=1)
    y = layer(X)[0]
    with pytest.raises(TypeError, match="last_only"):
        layer(X, last_only="False")
    np.testing.assert_array_equal(layer(X, last_only=np.False_)[0], y)
    np.testing.assert_array_equal(layer(X, last_only=np.True_)[0], y[-1])
