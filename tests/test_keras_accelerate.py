"""Keras models on the kernels, in place: values, gradients and fits held against Keras's own."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(fl.backends()["c"] is not None, reason=f"c: {fl.backends()['c']}")
L = keras.layers

B, T, I, H = 4, 6, 3, 5  # noqa: E741
RNG = np.random.default_rng(0)
X = RNG.standard_normal((B, T, I)).astype("float32")
GAPS = np.array([[1, 1, 0, 1, 0, 1], [0, 0, 1, 1, 1, 0], [0] * 6, [1] * 6], bool)
KINDS = ["LSTM", "GRU", "SimpleRNN"]
OPTIONS = [
    {},
    {"return_sequences": True},
    {"return_sequences": True, "go_backwards": True},
    {"return_sequences": True, "zero_output_for_mask": True},
    {"use_bias": False},
    {"activation": "relu", "recurrent_activation": "hard_sigmoid"},
    {"reset_after": False, "return_sequences": True},
    {"return_state": True},
    {"dropout": 0.4, "return_sequences": True, "seed": 3},
]


def drawn(layer: Any) -> Any:
    rng = np.random.default_rng(1)
    layer.set_weights([(rng.standard_normal(w.shape) * 0.5).astype(w.dtype) for w in layer.get_weights()])
    return layer


def made(kind: str, options: dict[str, Any]) -> Any:
    options = {k: v for k, v in options.items() if k != "recurrent_activation" or kind != "SimpleRNN"}
    options = {k: v for k, v in options.items() if k != "reset_after" or kind == "GRU"}
    layer = getattr(L, kind)(H, **options)
    layer.build((B, T, I))
    return drawn(layer)


def results(layer: Any, **call: Any) -> list[Any]:
    """Outputs, and the gradients of the input, the initial states and the weights."""
    x = torch.tensor(X, requires_grad=True)
    states = [torch.tensor(s, requires_grad=True) for s in call.pop("states", ())]
    out = layer(x, **({"initial_state": states} if states else {}), **call)
    outputs = list(out) if isinstance(out, (list, tuple)) else [out]
    rng = np.random.default_rng(5)
    loss = sum((y * torch.tensor(rng.standard_normal(y.shape).astype("float32"))).sum() for y in outputs)
    leaves = [x, *states, *(v.value for v in layer.trainable_variables)]
    grads = torch.autograd.grad(loss, leaves)
    return [t.detach().numpy() for t in (*outputs, *grads)]


def agree(ours: list[Any], kerass: list[Any]) -> None:
    assert len(ours) == len(kerass)
    for a, b in zip(ours, kerass, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()), rtol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_states_and_gradients(kind: str, options: dict[str, Any], masked: bool) -> None:
    call: dict[str, Any] = {"mask": torch.tensor(GAPS)} if masked else {}
    call |= {"training": True} if "dropout" in options else {}
    expected = results(made(kind, options), **call)
    layer = made(kind, options)
    summary = fl.keras.accelerate(layer)
    agree(results(layer, **call), expected)
    assert summary.calls == 1 and not summary.left


@pytest.mark.parametrize("kind", KINDS)
def test_an_initial_state(kind: str) -> None:
    options = {"return_state": True, "return_sequences": True}
    states = [RNG.standard_normal((B, H)).astype("float32") for _ in range(2 if kind == "LSTM" else 1)]
    expected = results(made(kind, options), states=states)
    layer = made(kind, options)
    summary = fl.keras.accelerate(layer)
    agree(results(layer, states=states), expected)
    assert summary.calls == 1


@pytest.mark.parametrize("kind", KINDS)
def test_stateful(kind: str) -> None:
    plain, layer = made(kind, {"stateful": True}), made(kind, {"stateful": True})
    summary = fl.keras.accelerate(layer)
    for _ in range(3):
        agree([layer(X).detach().numpy()], [plain(X).detach().numpy()])
    plain.reset_state(), layer.reset_state()
    agree([layer(X).detach().numpy()], [plain(X).detach().numpy()])
    assert summary.calls == 4


def network(seed: int = 0) -> Any:
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((12,), dtype="int32"),
            L.Embedding(30, 6, mask_zero=True),
            L.Bidirectional(L.LSTM(H, return_sequences=True), name="both"),
            L.RNN(L.GRUCell(4), return_sequences=True, name="rnn"),
            L.SimpleRNN(4, dropout=0.2, name="plain"),
            L.Dense(3, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    return model


IDS, LABELS = RNG.integers(0, 30, (48, 12)), RNG.integers(0, 3, 48)


def test_fit_and_predict_of_a_model(tmp_path: Path) -> None:
    plain, model = network(), network()
    summary = fl.keras.accelerate(model)
    both = model.get_layer("both")
    inner = [f"both/{one.name}" for one in (both.forward_layer, both.backward_layer)]
    assert list(summary.layers) == [f"{model.name}/{path}" for path in (*inner, "rnn", "plain")]
    losses = []
    for one in (plain, model):
        keras.utils.set_random_seed(1)
        losses.append(one.fit(IDS, LABELS, epochs=3, batch_size=16, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert summary.calls == 4 * 3 * 3
    before = summary.calls
    agree([model.predict(IDS, batch_size=16, verbose=0)], [plain.predict(IDS, batch_size=16, verbose=0)])
    assert summary.calls == before + 4 * 3 and all(not one.left for one in summary.layers.values())
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    agree([again.predict(IDS, verbose=0)], [model.predict(IDS, verbose=0)])
    twice = fl.keras.accelerate(model)
    assert all(one is summary.layers[path] for path, one in twice.layers.items()), "the layers are accelerated once"


def test_weights_that_change_in_any_way_are_noticed() -> None:
    plain, layer = made("LSTM", {}), made("LSTM", {})
    fl.keras.accelerate(layer)
    layer(X)
    for one in (plain, layer):
        one.cell.kernel.value.data.numpy()[...] *= 0.5
        one.cell.bias.value.data.add_(0.3)
    agree([layer(X).detach().numpy()], [plain(X).detach().numpy()])


def test_a_graph_that_is_kept_serves_twice() -> None:
    layer = made("GRU", {"return_sequences": True})
    fl.keras.accelerate(layer)
    x = torch.tensor(X, requires_grad=True)
    loss = layer(x).square().sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_mask_without_any_valid_step() -> None:
    options = {"return_sequences": True, "return_state": True}
    nothing = torch.zeros((B, T), dtype=torch.bool)
    expected = results(made("LSTM", options), mask=nothing)
    layer = made("LSTM", options)
    summary = fl.keras.accelerate(layer)
    agree(results(layer, mask=nothing), expected)
    assert summary.calls == 1


def test_a_second_derivative_is_refused() -> None:
    layer = made("GRU", {"return_sequences": True})
    fl.keras.accelerate(layer)
    x = torch.tensor(X, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"Keras cannot be differentiated twice \(create_graph=True\): leave the mo"):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)


def test_what_is_kept_passes_through_the_hooks_of_saved_tensors() -> None:
    """Hooks may keep tensors elsewhere: here as bytes."""
    layer = made("LSTM", {"return_sequences": True})
    fl.keras.accelerate(layer)
    expected = results(layer)
    packed: list[int] = []

    def pack(tensor: Any) -> bytes:
        packed.append(tensor.numel())
        return pickle.dumps(tensor.detach().numpy())

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: torch.from_numpy(pickle.loads(kept))):
        agree(results(layer), expected)
    assert max(packed) >= B * T * 4 * H, "the tape is among the tensors"


def test_a_change_between_forward_and_backward_is_an_error() -> None:
    layer = made("LSTM", {})
    fl.keras.accelerate(layer)
    x = torch.tensor(X)
    y = layer(x).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_regions_of_torch_compile_run_on_the_kernels() -> None:
    """The graph breaks at a layer; torch.export, which must not break it, gets Keras's operations."""

    def compiled() -> Any:
        return keras.Sequential([keras.Input((T, I)), drawn_after(L.LSTM(H)), drawn_after(L.Dense(2))])

    def drawn_after(layer: Any) -> Any:
        layer.build((B, T, I) if isinstance(layer, L.LSTM) else (B, H))
        return drawn(layer)

    plain, model = compiled(), compiled()
    summary = fl.keras.accelerate(model)
    x = torch.tensor(X)
    try:
        y = torch.compile(model, backend="eager")(x)
        assert summary.calls == 1
        y.square().sum().backward()
        plain(x).square().sum().backward()
        grads = [[v.value.grad.numpy() for v in one.trainable_variables] for one in (model, plain)]
        agree([y.detach().numpy(), *grads[0]], [plain(x).detach().numpy(), *grads[1]])
        exported = torch.export.export(model, (x,), strict=False).module()
        agree([exported(x).detach().numpy()], [plain(x).detach().numpy()])
    finally:
        torch.compiler.reset()
    assert summary.calls == 1


def test_autocast_and_states_of_another_shape_are_keras_s() -> None:
    plain, layer = (made("GRU", {"return_sequences": True}) for _ in range(2))
    summary = fl.keras.accelerate(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        agree([layer(X).detach().float().numpy()], [plain(X).detach().float().numpy()])
    one = torch.full((1, H), 0.5)  # broadcast to all sequences
    agree([layer(X, initial_state=one).detach().numpy()], [plain(X, initial_state=one).detach().numpy()])
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        layer(X, initial_state=torch.zeros(B, 2 * H))
    assert dict(summary.layers[layer.name].left) == {"autocast": 1, "an initial state of another shape": 2}
    assert str(summary) == (
        f"{layer.name}: 0 calls on the kernels, 1 left on Keras (autocast), "
        "2 left on Keras (an initial state of another shape)"
    )


def test_copies_and_pickles_are_layers_of_their_own() -> None:
    """Keras makes them anew from the configuration; another call accelerates them."""
    layer = made("LSTM", {})
    fl.keras.accelerate(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        agree([other(X).detach().numpy()], [layer(X).detach().numpy()])
        before = layer(X).detach().numpy()
        other.cell.bias.assign(other.cell.bias + 1)
        assert np.array_equal(layer(X).detach().numpy(), before)
        assert np.abs(other(X).detach().numpy() - before).max() > 0.1
        assert fl.keras.accelerate(other).calls == 0


def test_frozen_layers_and_inference_mode() -> None:
    plain, layer = (made("LSTM", {"return_sequences": True}) for _ in range(2))
    summary = fl.keras.accelerate(layer)
    with torch.inference_mode():
        agree([layer(X).numpy()], [plain(X).numpy()])
    found = []
    for one in (plain, layer):
        one.trainable = False
        x = torch.tensor(X, requires_grad=True)
        found.append(torch.autograd.grad(one(x).square().sum(), x)[0].numpy())
    agree([found[1]], [found[0]])
    assert summary.calls == 2


def test_what_is_left_on_keras_is_counted_and_right() -> None:
    plain, layer = (made("LSTM", {"recurrent_dropout": 0.3, "seed": 2}) for _ in range(2))
    summary = fl.keras.accelerate(layer)
    agree([layer(X, training=True).detach().numpy()], [plain(X, training=True).detach().numpy()])
    assert summary.calls == 0 and dict(summary.layers[layer.name].left) == {"recurrent_dropout in training": 1}
    agree([layer(X).detach().numpy()], [plain(X).detach().numpy()])
    assert summary.calls == 1
    double = L.GRU(H, dtype="float64")
    summary = fl.keras.accelerate(double)
    double(X.astype("float64"))
    assert dict(summary.layers[double.name].left) == {"another dtype than float32": 1}


def test_layers_without_counterpart_are_listed() -> None:
    class Mine(L.LSTM):
        def inner_loop(self, *args: Any, **options: Any) -> Any:
            return super().inner_loop(*args, **options)

    stacked = L.RNN(L.StackedRNNCells([L.LSTMCell(2), L.GRUCell(2)]), name="stacked")
    layers = [
        L.LSTM(H, activation="gelu", return_sequences=True, name="gelu"),
        Mine(3, return_sequences=True, name="mine"),
    ]
    model = keras.Sequential([keras.Input((T, I)), *layers, stacked], name="m")
    summary = fl.keras.accelerate(model)
    assert list(summary.left) == ["m/gelu", "m/mine", "m/stacked"] and not summary.layers
    assert "gelu" in summary.left["m/gelu"] and "StackedRNNCells" in summary.left["m/stacked"]
    model(X)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="accelerate takes a model or layer of Keras, got int"):
        fl.keras.accelerate(3)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match=r"Keras runs on jax: set the environment variable KERAS_BACKEND=torch"):
        fl.keras.accelerate(L.LSTM(3))
