"""Modules and models from Keras's layers, models and files: values held against Keras's own."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest

import fastlstm as fl

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
pytest.importorskip("h5py")
L = keras.layers

B, T, I, H = 3, 7, 4, 5  # noqa: E741
RNG = np.random.default_rng(0)
X = RNG.standard_normal((B, T, I)).astype("float32")
GAPS = np.array([[1, 1, 0, 1, 0, 1, 1], [0, 0, 1, 1, 1, 0, 0], [0] * 7], bool)


def drawn(layer: Any, scale: float = 0.6) -> Any:
    """The layer with weights that are all different, biases too."""
    rng = np.random.default_rng(1)
    layer.set_weights([(rng.standard_normal(w.shape) * scale).astype(w.dtype) for w in layer.get_weights()])
    return layer


def built(layer: Any, width: int = I) -> Any:
    layer.build((B, T, width))
    return drawn(layer)


def arrays(y: Any) -> list[Any]:
    ops = keras.ops
    return [ops.convert_to_numpy(one) for one in (y if isinstance(y, (tuple, list)) else [y])]


def same(ours: Any, kerass: Any, tolerance: float = 3e-6) -> None:
    mine, theirs = ours if isinstance(ours, tuple) else (ours,), arrays(kerass)
    for a, b in zip(mine, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=tolerance * max(1, np.abs(b).max()), rtol=0)


OPTIONS = [
    {},
    {"return_sequences": True},
    {"use_bias": False},
    {"go_backwards": True},
    {"go_backwards": True, "return_sequences": True},
    {"activation": "relu"},
    {"activation": "elu", "return_sequences": True},
    {"activation": None},
    {"activation": "softsign"},
    {"activation": "softplus"},
    {"activation": "leaky_relu"},
    {"activation": "hard_sigmoid"},
    {"recurrent_activation": "hard_sigmoid", "return_sequences": True},
    {"recurrent_activation": "linear"},
    {"zero_output_for_mask": True, "return_sequences": True},
    {"dtype": "float64", "return_sequences": True},
    {"unroll": True},
    {"reset_after": False, "return_sequences": True},
    {"reset_after": False, "use_bias": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_every_option_with_and_without_a_mask(kind: str, options: dict[str, Any]) -> None:
    if ("reset_after" in options and kind != "GRU") or ("recurrent_activation" in options and kind == "SimpleRNN"):
        pytest.skip("no such option")
    if kind == "GRU" and options.get("recurrent_activation") == "linear":
        pytest.skip("gates without bounds let the values grow beyond all numbers")
    layer = built(getattr(L, kind)(H, **options))
    module = fl.from_keras(layer)
    x = X.astype(options.get("dtype", "float32"))
    assert np.isfinite(module(x)).all()
    same(module(x), layer(x))
    if not options.get("unroll"):
        same(module(x, GAPS), layer(x, mask=keras.ops.convert_to_tensor(GAPS)))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_states_are_those_of_the_layer_inside(kind: str) -> None:
    layer = built(getattr(L, kind)(H, return_state=True, return_sequences=True))
    module = fl.from_keras(layer)
    first = [RNG.standard_normal((B, H)).astype("float32") for _ in range(2 if kind == "LSTM" else 1)]
    y, *states = layer(X, initial_state=[keras.ops.convert_to_tensor(s) for s in first])
    ours, last = module.core(X, tuple(s[None] for s in first) if kind == "LSTM" else first[0][None])
    same(ours, y)
    for mine, theirs in zip(last if kind == "LSTM" else (last,), states, strict=True):
        same(mine[0], theirs)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_stateful_layers_go_on_from_zeros(kind: str) -> None:
    layer = built(getattr(L, kind)(H, stateful=True))
    module = fl.from_keras(layer)
    for _ in range(3):
        same(module(X), layer(X))
    layer.reset_state(), module.reset_state()
    same(module(X), layer(X))


@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_both_directions(kind: str, sequences: bool, mode: str | None) -> None:
    layer = built(L.Bidirectional(getattr(L, kind)(H, return_sequences=sequences), merge_mode=mode))
    module = fl.from_keras(layer)
    same(module(X), layer(X))
    mask = GAPS if sequences else GAPS[:2]
    same(module(X[: len(mask)], mask), layer(X[: len(mask)], mask=keras.ops.convert_to_tensor(mask)))


@pytest.mark.parametrize("options", [{}, {"return_sequences": True}, {"return_sequences": True, "go_backwards": True}])
def test_stacked_cells(options: dict[str, Any]) -> None:
    cells = [L.LSTMCell(4, activation="relu"), L.GRUCell(3, reset_after=False), L.SimpleRNNCell(2, use_bias=False)]
    layer = built(L.RNN(L.StackedRNNCells(cells), **options))
    model = fl.from_keras(layer)
    assert isinstance(model, fl.Sequential)
    same(model(X), layer(X))
    same(model(X, GAPS), layer(X, mask=keras.ops.convert_to_tensor(GAPS)))
    single = built(L.RNN(L.LSTMCell(4), **options))
    same(fl.from_keras(single)(X), single(X))


# ------------------------------------------------------------------------------------------------------- whole models
def tokens() -> Any:
    model = keras.Sequential(
        [
            keras.Input((T,), dtype="int32"),
            L.Embedding(20, 6, mask_zero=True, name="words"),
            L.SpatialDropout1D(0.2),
            L.Bidirectional(L.LSTM(H, return_sequences=True), name="both"),
            L.Dropout(0.3),
            L.GRU(H, return_sequences=True, name="middle"),
            L.SimpleRNN(3, name="last"),
            L.Dense(4, activation="elu"),
            L.Dense(3, activation="softmax", name="head"),
        ]
    )
    return drawn(model)


IDS = np.array([[3, 4, 0, 5, 0, 19, 1], [0, 0, 7, 8, 9, 0, 0], [1, 2, 3, 4, 5, 6, 7]])


def numbers() -> Any:
    model = keras.Sequential(
        [
            keras.Input((T, I)),
            L.Masking(-1.0),
            L.TimeDistributed(L.Dense(6)),
            L.LeakyReLU(negative_slope=0.1),
            L.LSTM(H, return_sequences=True),
            L.Activation("tanh"),
            L.RNN(L.StackedRNNCells([L.GRUCell(3), L.LSTMCell(4)]), return_sequences=True),
            L.ReLU(),
            L.ELU(),
            L.Dense(2, use_bias=False),
            L.Activation("softmax"),
        ]
    )
    return drawn(model)


@pytest.mark.parametrize("suffix", ["", ".keras", ".h5"])
def test_a_sequential_of_token_ids(suffix: str, tmp_path: Path) -> None:
    model = tokens()
    ours = fl.from_keras(saved(model, suffix, tmp_path))
    assert isinstance(ours, fl.Sequential) and ours.built
    same(ours(IDS), model(IDS))
    same(ours.predict(IDS), model.predict(IDS, verbose=0))


@pytest.mark.parametrize("suffix", ["", ".keras", ".h5"])
def test_a_sequential_of_numbers_with_masking(suffix: str, tmp_path: Path) -> None:
    model = numbers()
    ours = fl.from_keras(saved(model, suffix, tmp_path))
    x = X.copy()
    x[0, 2:4] = -1
    x[1, :3] = -1
    x[2, 5] = -1
    same(ours(x), model(x))


def saved(model: Any, suffix: str, folder: Path) -> Any:
    if not suffix:
        return model
    path = folder / f"model{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path)
    return path


@pytest.mark.parametrize("suffix", ["", ".keras", ".h5"])
def test_a_functional_model_that_is_a_chain(suffix: str, tmp_path: Path) -> None:
    x = keras.Input((T, I))
    inner = keras.Sequential([keras.Input((T, H)), L.GRU(3, return_sequences=True), L.Dense(4)], name="inner")
    model = drawn(keras.Model(x, L.Dense(2)(L.LSTM(4)(inner(L.LSTM(H, return_sequences=True)(x))))))
    same(fl.from_keras(saved(model, suffix, tmp_path))(X), model(X))


@pytest.mark.parametrize("suffix", ["", ".keras", ".h5"])
def test_a_functional_model_that_is_no_chain_lists_its_recurrent_layers(suffix: str, tmp_path: Path) -> None:
    x = keras.Input((T, I))
    one, other = L.LSTM(H, name="one")(x), L.Bidirectional(L.GRU(3), name="other")(x)
    model = drawn(keras.Model(x, L.Concatenate()([one, other])))
    path = saved(model, suffix, tmp_path)
    with pytest.raises(
        ValueError, match=r"no chain of layers(.|\n)*'one': LSTM, 5 units\n  'other': Bidirectional\(GRU"
    ):
        fl.from_keras(path)
    same(fl.from_keras(path, "one")(X), model.get_layer("one")(X))
    same(fl.from_keras(path, "other")(X), model.get_layer("other")(X))
    with pytest.raises(ValueError, match="there are 0 layers named 'none'"):
        fl.from_keras(path, "none")


def test_softmax_as_a_layer() -> None:
    model = drawn(keras.Sequential([keras.Input((T, I)), L.GRU(3), L.Softmax()]))
    same(fl.from_keras(model)(X), model(X))
    refused(drawn(keras.Sequential([keras.Input((T, I)), L.GRU(3), L.Softmax(axis=1, name="s")])), "'s' has axis=1")


@pytest.mark.parametrize("suffix", ["", ".keras", ".h5", ".weights.h5"])
def test_one_layer_of_a_file(suffix: str, tmp_path: Path) -> None:
    model = tokens()
    x = RNG.standard_normal((B, T, 6)).astype("float32")
    if suffix == ".weights.h5":
        path: Any = tmp_path / f"model{suffix}"
        model.save_weights(path)
        both = fl.from_keras(path, "both", return_sequences=True)
        middle = fl.from_keras(path, "middle", return_sequences=True)
    else:
        path = saved(model, suffix, tmp_path)
        both, middle = fl.from_keras(path, "both"), fl.from_keras(path, "middle")
    same(both(x), model.get_layer("both")(x))
    y = np.concatenate([X, X, X[..., :2]], axis=-1)
    same(middle(y), model.get_layer("middle")(y))


def test_a_file_of_weights_alone_says_what_it_assumes(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((T, I)), L.GRU(H, reset_after=False, name="only"), L.Dense(2)])
    drawn(model).save_weights(tmp_path / "model.weights.h5")
    with pytest.warns(UserWarning, match=r"layer 'only' .* Keras's defaults are taken \(activation='tanh'"):
        module = fl.from_keras(tmp_path / "model.weights.h5")
    same(module(X), model.layers[0](X))
    model = keras.Sequential([keras.Input((T, I)), L.GRU(H, return_sequences=True), L.LSTM(3)])
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(
        ValueError, match=r"several recurrent layers: give name=:\n.*'gru.*GRU, 5 units\n.*LSTM, 3 units"
    ):
        fl.from_keras(tmp_path / "model.weights.h5")
    model = keras.Sequential([keras.Input((T, I)), L.Dense(2)])
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match="none of them those of a recurrent layer"):
        fl.from_keras(tmp_path / "model.weights.h5")


# ------------------------------------------------------------------------------------------------------------ training
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_gradients_through_a_mask_with_gaps(kind: str) -> None:
    """Steps that repeat an output give their gradients to the step that made it."""
    torch = pytest.importorskip("torch")
    layer = built(getattr(L, kind)(H, return_sequences=True, dtype="float64"))
    module = fl.from_keras(layer)
    x, w = torch.tensor(X, dtype=torch.float64, requires_grad=True), RNG.standard_normal((B, T, H))
    (layer(x, mask=torch.tensor(GAPS)) * torch.tensor(w)).sum().backward()
    _, tape = module.forward(X.astype("float64"), GAPS)
    dx, grads = module.backward(tape, w)
    np.testing.assert_allclose(dx, x.grad.numpy(), atol=1e-6)  # Keras rounds float64 gradients to float32
    np.testing.assert_allclose(grads["weight_hh_l0"], gradient_of(layer, "recurrent_kernel", kind), atol=1e-6)


def gradient_of(layer: Any, name: str, kind: str) -> Any:
    from fastlstm.gates import reorder

    g = getattr(layer.cell, name).value.grad.numpy()
    return reorder(g, {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "rnn"}[kind], "keras", "torch", axis=-1).T


def test_penalties_and_frozen_layers_are_taken_over() -> None:
    options = {"kernel_regularizer": "l2", "recurrent_regularizer": keras.regularizers.L1L2(0.01, 0.02)}
    model = keras.Sequential([keras.Input((T, I)), L.LSTM(H, trainable=False, **options), L.Dense(2)])
    ours = fl.from_keras(drawn(model))
    assert not ours.modules[0].trainable and ours.modules[1].trainable
    model.layers[0].trainable = True
    np.testing.assert_allclose(ours.penalty(), float(sum(float(one) for one in model.losses)), rtol=1e-5)


def test_a_converted_model_trains() -> None:
    ours = fl.from_keras(tokens())
    ours.compile("adam", "sparse_categorical_crossentropy")
    before = ours.state_dict()
    history = ours.fit(np.tile(IDS, (8, 1)), np.tile([0, 1, 2], 8), epochs=40, verbose=False)
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert any(not np.array_equal(before[name], value) for name, value in ours.state_dict().items())


# ------------------------------------------------------------------------------------------------------------- refused
def refused(layer: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        fl.from_keras(layer)


def test_what_has_no_counterpart_is_named() -> None:
    conv = keras.Sequential([keras.Input((T, I)), L.Conv1D(3, 2, name="conv"), L.LSTM(3, name="rec")])
    refused(conv, r"layer 'conv' \(Conv1D\) has no counterpart here(.|\n)*'rec': LSTM, 3 units")
    refused(built(L.LSTM(H, activation="gelu", name="x")), "layer 'x' has the activation 'gelu'")
    refused(
        built(L.LSTM(H, zero_output_for_mask=True, name="x")), "layer 'x' has zero_output_for_mask=True and return_s"
    )
    refused(L.LSTM(H, name="x"), "layer 'x' has no weights: build it, or call it once")
    forward, backward = (L.LSTM(H), L.LSTM(H, activation="relu", go_backwards=True))
    refused(
        built(L.Bidirectional(forward, backward_layer=backward, name="x")), "'x' .* directions of different activation"
    )
    turned = [L.Masking(), L.LSTM(H, go_backwards=True, return_sequences=True, name="x"), L.GRU(3, name="y")]
    refused(drawn(keras.Sequential([keras.Input((T, I)), *turned])), "'x' has go_backwards=True .* to layer 'y'")
    with pytest.raises(TypeError, match="from_keras takes a layer or model of Keras, or the path of a file, got int"):
        fl.from_keras(3)
    with pytest.raises(TypeError, match="from_keras has no option 'units'"):
        fl.from_keras(conv, units=3)
    with pytest.raises(TypeError, match="return_sequences is given, and layer 'x' says it itself"):
        fl.from_keras(built(L.LSTM(H, name="x")), return_sequences=True)


def test_what_acts_in_training_alone_is_told() -> None:
    layer = built(L.LSTM(H, kernel_constraint="max_norm", name="x"))
    with pytest.warns(UserWarning, match="layer 'x' has kernel_constraint='MaxNorm', which is left out"):
        module = fl.from_keras(layer)
    same(module(X), layer(X))


def test_custom_classes_are_refused() -> None:
    class Mine(L.LSTM):
        pass

    refused(built(Mine(H, name="x")), r"layer 'x' \(Mine\) has no counterpart")


# ------------------------------------------------------------------------------------------------------------- Keras 2
def keras_2_file(tmp_path: Path, class_name: str, weights: list[Any], **options: Any) -> Path:
    layer = hostile.keras_layer(class_name, name="x", units=H, **options)
    model = hostile.keras_layer("Sequential", name="m", layers=[layer])
    named = dict(zip(["x/kernel:0", "x/recurrent_kernel:0", "x/bias:0"], weights, strict=False))
    path = tmp_path / "keras2.h5"
    path.write_bytes(hostile.keras_2({"x": named}, model, "2.4.0"))
    return path


def test_hard_sigmoid_of_keras_2(tmp_path: Path) -> None:
    """0.2 x + 0.5 in the gates: written out by hand."""
    rng = np.random.default_rng(2)
    W, R, b = (rng.standard_normal(shape).astype("float32") for shape in ((I, 4 * H), (H, 4 * H), (4 * H,)))
    options = {"activation": "tanh", "recurrent_activation": "hard_sigmoid", "use_bias": True}
    module = fl.from_keras(keras_2_file(tmp_path, "LSTM", [W, R, b], **options), "x")
    h = c = np.zeros((B, H))
    for t in range(T):
        i, f, g, o = np.split(X[:, t] @ W + h @ R + b, 4, axis=1)
        i, f, o = (np.clip(0.2 * a + 0.5, 0, 1) for a in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
    np.testing.assert_allclose(module(X), h, atol=1e-5)


@pytest.mark.parametrize(("class_name", "gates"), [("CuDNNLSTM", 4), ("CuDNNGRU", 3)])
def test_cudnn_layers_give_what_plain_ones_give(class_name: str, gates: int, tmp_path: Path) -> None:
    """cuDNN's matrices, written in its layout, against Keras 3's layer with the same numbers."""
    rng = np.random.default_rng(3)
    W, R = (rng.standard_normal((gates, H, width)).astype("float32") * 0.5 for width in (I, H))
    biases = rng.standard_normal((2, gates * H)).astype("float32")
    kept = [np.hstack([w.ravel().reshape(I, H) for w in W]), np.hstack(list(R)), biases.ravel()]
    module = fl.from_keras(keras_2_file(tmp_path, class_name, kept, return_sequences=True), "x")
    layer = getattr(L, class_name.removeprefix("CuDNN"))(H, return_sequences=True)
    layer.build((B, T, I))
    plain = [np.hstack([w.T for w in W]), np.hstack([r.T for r in R])]
    layer.set_weights([*plain, biases if gates == 3 else biases.sum(axis=0)])
    same(module(X), layer(X))
