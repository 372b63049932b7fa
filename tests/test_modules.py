"""Modules with Keras's arguments: gradients by finite differences, values beside Keras's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm import nn

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 5, 4))
MASK = np.array([[0, 1, 1, 0, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], bool)
IDS = RNG.integers(0, 7, (3, 5))
F64: dict[str, Any] = {"dtype": "float64"}
RECURRENT = [nn.LSTM, nn.GRU, nn.SimpleRNN]

MODULES: dict[str, Any] = {
    **{
        f"{cls.__name__} {options}": lambda cls=cls, options=options: cls(6, seed=1, **options, **F64)
        for cls in RECURRENT
        for options in (
            {},
            {"return_sequences": True},
            {"go_backwards": True, "return_sequences": True},
            {"dropout": 0.3, "recurrent_dropout": 0.4},
            {"recurrent_dropout": 0.4, "return_sequences": True},
            {"zero_output_for_mask": False, "return_sequences": True},
            {"zero_output_for_mask": False, "return_sequences": True, "go_backwards": True},
        )
    },
    **{
        f"Bidirectional {cls.__name__} {mode} {options}": lambda cls=cls, mode=mode, options=options: nn.Bidirectional(
            cls(6, **options, **F64), mode, seed=1
        )
        for cls in RECURRENT
        for mode in ("concat", "sum", "mul", "ave")
        for options in ({}, {"return_sequences": True, "recurrent_dropout": 0.2})
    },
    "GRU reset_after=False": lambda: nn.GRU(6, reset_after=False, seed=1, **F64),
    "LSTM without bias": lambda: nn.LSTM(6, use_bias=False, seed=1, **F64),
    "Residual": lambda: nn.Residual(nn.LSTM(4, return_sequences=True, **F64), seed=1),
    "Dropout": lambda: nn.Dropout(0.4, seed=1, **F64),
    "Dropout over time": lambda: nn.Dropout(0.4, noise_shared_over_time=True, seed=1, **F64),
    **{f"Dense {act}": lambda act=act: nn.Dense(3, act, seed=1, **F64) for act in nn.activation.ACTIVATIONS},
    **{f"Activation {act}": lambda act=act: nn.Activation(act, **F64) for act in ("linear", "softmax", ("elu", 0.3))},
    "Masking": lambda: nn.Masking(**F64),
}


def generator(module: Any) -> Any:
    """The module that draws dropout's factors."""
    inner = getattr(module, "_both", module)
    return getattr(inner, "module", inner) if isinstance(inner, nn.Residual) else inner


def worst_difference(module: Any, x: Any, mask: Any) -> float:
    """The largest difference between gradients and finite differences, at some places of every array."""
    module.build(x.shape[1:])
    drawn = generator(module)
    state = copy.deepcopy(drawn.rng_state)

    def forward(x: Any) -> Any:
        drawn.rng_state = copy.deepcopy(state)
        return module.forward(x, mask)

    weights = np.random.default_rng(1).standard_normal(forward(x)[0].shape)

    def loss(x: Any) -> float:
        return float((forward(x)[0] * weights).sum())

    _, tape = forward(x)
    dx, grads = module.backward(tape, weights)
    rng, eps, worst = np.random.default_rng(2), 1e-6, 0.0
    for _ in range(6 if dx is not None else 0):
        at = tuple(rng.integers(0, n) for n in x.shape)
        up, down = x.copy(), x.copy()
        up[at] += eps
        down[at] -= eps
        worst = max(worst, abs((loss(up) - loss(down)) / (2 * eps) - dx[at]))
    assert grads.keys() == module.state_dict().keys()
    for name, grad in grads.items():
        for _ in range(3):
            at = tuple(rng.integers(0, n) for n in grad.shape)
            values = []
            for step in (eps, -2 * eps, eps):
                with module.update() as params:
                    params[name][at] += step
                values.append(loss(x))
            worst = max(worst, abs((values[0] - values[1]) / (2 * eps) - grad[at]))
    return worst


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_agree_with_finite_differences(name: str, masked: bool) -> None:
    assert worst_difference(MODULES[name](), X, MASK if masked else None) < 1e-7


def test_a_wrong_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.dense, "activation_backward", lambda name, y, dy: dy)
    assert worst_difference(nn.Dense(3, "tanh", seed=1, **F64), X, None) > 1e-3


def test_steps_left_out_repeat_the_step_before() -> None:
    mask = np.array([[0, 1, 0, 0, 1], [1, 1, 0, 1, 0], [0] * 5], bool)
    x = np.random.default_rng(3).standard_normal((3, 5, 4))
    y = nn.GRU(2, return_sequences=True, seed=1, **F64)(x, mask)
    held = nn.GRU(2, return_sequences=True, zero_output_for_mask=False, seed=1, **F64)(x, mask)
    before = [[None, 1, 1, 1, 4], [0, 1, 1, 3, 3], [None] * 5]
    for b in range(3):
        for t, at in enumerate(before[b]):
            np.testing.assert_array_equal(held[b, t], 0 if at is None else y[b, at])


def test_both_directions_apart_are_those_of_concat() -> None:
    x = np.random.default_rng(3).standard_normal((2, 5, 4))
    whole, pair = (
        nn.Bidirectional(nn.LSTM(3, return_sequences=True, **F64), mode, seed=1) for mode in ("concat", None)
    )
    (y, tape), ((one, other), of_pair) = whole.forward(x), pair.forward(x)
    np.testing.assert_array_equal(np.concatenate((one, other), axis=-1), y)
    dy = np.random.default_rng(4).standard_normal(y.shape)
    dx, grads = whole.backward(tape, dy)
    same_dx, same_grads = pair.backward(of_pair, (dy[..., :3], dy[..., 3:]))
    np.testing.assert_array_equal(dx, same_dx)
    assert all(np.array_equal(grads[name], same_grads[name]) for name in grads)


def test_masking_tells_padding_by_its_values() -> None:
    x = np.ones((1, 4, 2), "float32")
    x[0, 1], x[0, 2, 0] = -1, -1
    model = fl.Sequential([nn.Masking(-1.0), nn.LSTM(3, seed=1)])
    without = np.delete(x, 1, axis=1)
    np.testing.assert_array_equal(model(x), model.modules[1](without))
    np.testing.assert_array_equal(model.modules[0](x)[0, 1], [0, 0])
    again = fl.Sequential([nn.Masking(-1.0), nn.LSTM(3, seed=1)])
    y, tape = again.forward(x)
    assert np.array_equal(again.backward(tape, np.ones_like(y))[0][0, 1], [0, 0])


def test_embedding() -> None:
    module = nn.Embedding(7, 3, mask_zero=True, seed=1, **F64)
    assert worst_difference(module, IDS, None) < 1e-7
    np.testing.assert_array_equal(module(IDS), module.state_dict()["weight"][IDS])
    np.testing.assert_array_equal(module.output_mask(IDS, None), IDS != 0)
    given = nn.Embedding(7, 3, weights=np.arange(21).reshape(7, 3), trainable=False)
    np.testing.assert_array_equal(given(np.array([[2, 0]])), [[[6, 7, 8], [0, 1, 2]]])
    with pytest.raises(ValueError, match="between 0 and input_dim - 1 = 6, got 0 to 7"):
        module(np.array([[0, 7]]))


def test_penalties_and_their_gradients() -> None:
    module = nn.Dense(3, kernel_regularizer=nn.L1L2(0.1, 0.2), bias_regularizer=0.5, seed=1, **F64)
    module.build((5, 4))
    with module.update() as params:
        params["bias"][...] = [1, -2, 3]
    w, b = module.state_dict()["weight"], module.state_dict()["bias"]
    grads = {"weight": np.zeros_like(w), "bias": np.zeros_like(b)}
    expected = 0.1 * np.abs(w).sum() + 0.2 * (w**2).sum() + 0.5 * (b**2).sum()
    assert module.penalty(grads) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(grads["weight"], 0.1 * np.sign(w) + 0.4 * w, rtol=1e-12)
    np.testing.assert_allclose(grads["bias"], b, rtol=1e-12)


def test_masked_steps_are_skipped() -> None:
    """A masked batch has the outputs of each sequence alone, without the masked steps."""
    for cls in RECURRENT:
        module = cls(6, seed=1, **F64)
        whole = module(X, MASK)
        for b in range(3):
            np.testing.assert_allclose(whole[b], module(X[b : b + 1, MASK[b]])[0], atol=1e-12)


def test_stateful_modules_go_on_where_the_last_batch_ended() -> None:
    module = nn.LSTM(6, stateful=True, return_sequences=True, seed=1, **F64)
    once = nn.LSTM(6, return_sequences=True, seed=1, **F64)(X)
    np.testing.assert_allclose(np.concatenate((module(X[:, :2]), module(X[:, 2:])), axis=1), once, atol=1e-12)
    module.reset_state()
    np.testing.assert_allclose(module(X), once, atol=1e-12)
    with pytest.raises(ValueError, match="remembers 3 sequences, the batch has 2"):
        module(X[:2])


def test_wrong_arguments_are_refused_at_once() -> None:
    for make, told in (
        (lambda: nn.LSTM(6, activation="swish"), "activation 'swish' is not known"),
        (lambda: nn.LSTM(6, kernel_initializer="xavier"), "kernel_initializer 'xavier' is not known"),
        (lambda: nn.Dense(3, "gelu"), "activation 'gelu' is not known"),
        (lambda: nn.Dropout(1.5), "rate must"),
        (lambda: nn.Bidirectional(nn.LSTM(6), "max"), "merge_mode 'max' is not known"),
        (lambda: nn.Residual(nn.LSTM(5, return_sequences=True))(X.astype("f")), "as many units as the input is wide"),
    ):
        with pytest.raises((TypeError, ValueError), match=told):
            make()
    with pytest.raises(RuntimeError, match="has no parameters yet"):
        nn.LSTM(6).core  # noqa: B018


def test_a_module_survives_pickle_and_deepcopy() -> None:
    module = nn.Bidirectional(nn.GRU(6), seed=1)
    x = X.astype("f")
    y = module(x)
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        np.testing.assert_array_equal(other(x), y)


KERAS = {
    "lstm": (nn.LSTM, "LSTM", {}),
    "lstm, sequences": (nn.LSTM, "LSTM", {"return_sequences": True}),
    "lstm, backwards": (nn.LSTM, "LSTM", {"return_sequences": True, "go_backwards": True}),
    "lstm, hard_sigmoid": (nn.LSTM, "LSTM", {"recurrent_activation": "hard_sigmoid"}),
    "gru": (nn.GRU, "GRU", {"return_sequences": True}),
    "gru, reset before": (nn.GRU, "GRU", {"reset_after": False}),
    "rnn": (nn.SimpleRNN, "SimpleRNN", {"return_sequences": True}),
}


@pytest.mark.parametrize("name", KERAS)
def test_values_are_those_of_keras(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    from fastlstm._keras_weights import to_keras

    cls, theirs, options = KERAS[name]
    module = cls(6, seed=1, **options)
    x = X.astype("f")
    y = module(x)
    layer = getattr(keras.layers, theirs)(6, **options)
    layer.build(x.shape)
    params = {n.removesuffix("_l0"): p for n, p in module.state_dict().items()}
    arrays = to_keras(params, module.core.kind)
    layer.set_weights([a.reshape(w.shape) for a, w in zip(arrays, layer.get_weights(), strict=True)])
    np.testing.assert_allclose(y, keras.ops.convert_to_numpy(layer(x)), atol=2e-6)


def test_two_heads_composed_by_hand() -> None:
    """The example of docs/modules.md: one recurrent body, two dense heads, gradients added."""
    body, price, risk = nn.GRU(8, seed=0), nn.Dense(1, seed=1), nn.Dense(1, "sigmoid", seed=2)
    x = np.random.default_rng(0).standard_normal((64, 12, 3)).astype("f")
    prices, risks = x.sum((1, 2))[:, None], (x[:, -1, :1] > 0).astype("f")
    for module in (body, price, risk):
        module.build((12, 3) if module is body else (8,))
    optimizer, losses = fl.Adam([body.core, price.core, risk.core], lr=1e-2), []
    for _ in range(60):
        h, of_body = body.forward(x)
        p, of_price = price.forward(h)
        r, of_risk = risk.forward(h)
        loss_p, dp = fl.losses.get("mse")(p, prices)
        loss_r, dr = fl.losses.get("binary_crossentropy")(r, risks)
        dh_p, g_price = price.backward(of_price, dp)
        dh_r, g_risk = risk.backward(of_risk, dr)
        _, g_body = body.backward(of_body, dh_p + dh_r)
        optimizer.step([g_body, g_price, g_risk])
        losses.append(loss_p + loss_r)
    assert losses[-1] < 0.3 * losses[0]
