"""Hand-written parameter dictionaries: read, computed with as in their sources, and returned bit for bit."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from cases import LAYERS, TOLERANCE, assert_near, assert_same_bits

import fastlstm as fl
from fastlstm.arrays import FORMS, Form

ids = [f"{form.name}-{form.kind}-{'after' if form.reset_after else 'before'}" for form in FORMS]
each_form = pytest.mark.parametrize("form", FORMS, ids=ids)
I, H, U = 3, 5, 2  # noqa: E741


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def arrays(form: Form, dtype: Any = np.float64, head: bool = False, seed: int = 0) -> dict[str, Any]:
    """Random arrays of a form, -0 among them. The shapes are written out here, not taken from the code under test."""
    one = H if not form.units_first else (H, 1)
    G = {"lstm": 4, "gru": 3, "rnn": 1}[form.kind]
    shapes: dict[str, Any] = {
        "stacked": {key: (H, H + I) if key[0] == "W" else one for key in form.parts},
        "waa": {"Waa": (H, H), "Wax": (H, I), "ba": one},
        "d2l": {key: {"W_x": (I, H), "W_h": (H, H)}.get(key[:3], one) for key in form.parts},
        "keras": {
            "kernel": (I, G * H),
            "recurrent_kernel": (H, G * H),
            "bias": (2, 3 * H) if form.kind == "gru" and form.reset_after else (G * H,),
        },
    }[form.name]
    if head and form.head:
        shapes = shapes | dict(zip(form.head, ((U, H), (U, 1)) if form.units_first else ((H, U), (U,)), strict=True))
    rng = np.random.default_rng(seed)
    made = {key: rng.standard_normal(shape).astype(dtype) for key, shape in shapes.items()}
    for a in made.values():
        a.flat[0] = -0.0
    return made


def by_hand(form: Form, d: dict[str, Any], x: Any) -> Any:
    """h of every step (T, B, H), computed in NumPy from the form's definition."""
    ys, h, c = [], np.zeros((x.shape[1], H)), np.zeros((x.shape[1], H))
    k = {key.replace("_", ""): a for key, a in d.items()}
    for x_t in x:
        if form.name == "stacked":
            hx = np.vstack((h.T, x_t.T))
            f, i, o = (sigmoid(d[f"W{g}"] @ hx + d[f"b{g}"]) for g in "fio")
            c = (f * c.T + i * np.tanh(d["Wc"] @ hx + d["bc"])).T
            h = (o * np.tanh(c.T)).T
        elif form.name == "waa":
            h = np.tanh(d["Waa"] @ h.T + d["Wax"] @ x_t.T + d["ba"]).T
        elif form.name == "d2l" and form.kind == "lstm":
            i, f, o, g = (x_t @ k[f"Wx{g}"] + h @ k[f"Wh{g}"] + k[f"b{g}"] for g in "ifoc")
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        elif form.name == "d2l" and form.kind == "gru":
            z, r = (sigmoid(x_t @ k[f"Wx{g}"] + h @ k[f"Wh{g}"] + k[f"b{g}"]) for g in "zr")
            h = z * h + (1 - z) * np.tanh(x_t @ k["Wxh"] + (r * h) @ k["Whh"] + k["bh"])
        elif form.kind == "rnn":
            W_x, W_h, b = (d["W_xh"], d["W_hh"], d["b_h"]) if form.name == "d2l" else d.values()
            h = np.tanh(x_t @ W_x + h @ W_h + b)
        elif form.kind == "lstm":
            i, f, g, o = np.split(x_t @ d["kernel"] + h @ d["recurrent_kernel"] + d["bias"], 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        elif form.reset_after:
            xz, xr, xh = np.split(x_t @ d["kernel"] + d["bias"][0], 3, axis=1)
            hz, hr, hh = np.split(h @ d["recurrent_kernel"] + d["bias"][1], 3, axis=1)
            z = sigmoid(xz + hz)
            h = z * h + (1 - z) * np.tanh(xh + sigmoid(xr + hr) * hh)
        else:
            xz, xr, xh = np.split(x_t @ d["kernel"] + d["bias"], 3, axis=1)
            U_z, U_r, U_h = np.split(d["recurrent_kernel"], 3, axis=1)
            z, r = sigmoid(xz + h @ U_z), sigmoid(xr + h @ U_r)
            h = z * h + (1 - z) * np.tanh(xh + (r * h) @ U_h)
        ys.append(h)
    return np.array(ys)


@each_form
def test_layer_computes_what_its_authors_do(form: Form) -> None:
    d = arrays(form)
    x = np.random.default_rng(1).standard_normal((4, 2, I))
    y, _ = fl.from_arrays(d, form.kind)(x)
    assert_near(y, by_hand(form, d, x), TOLERANCE["float64"])


@each_form
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip_is_exact(form: Form, dtype: str) -> None:
    d = arrays(form, dtype)
    layer = fl.from_arrays(d, form.kind)
    assert isinstance(layer, LAYERS[form.kind]) and layer.dtype == dtype
    back = layer.to_arrays(form.name)
    assert_same_bits(back, d)
    assert all(a.flags.c_contiguous and a.flags.owndata for a in back.values())


@each_form
def test_round_trip_of_head(form: Form) -> None:
    if form.head is None:
        pytest.skip(f"form {form.name} has no head")
    d = arrays(form, np.float32, head=True)
    layer, head = fl.from_arrays(d, form.kind)
    assert isinstance(head, fl.Dense) and head.dtype == np.float32
    assert_same_bits(layer.to_arrays(form.name, head), d)
    y = np.random.default_rng(1).standard_normal((4, H)).astype(np.float32)
    W, b = (d[key] for key in form.head)
    assert_near(head(y), (W @ y.T + b).T if form.units_first else y @ W + b, TOLERANCE["values"])


@each_form
def test_a_trained_layers_two_biases_are_given_as_their_sum(form: Form) -> None:
    """The function survives the form, though a form with one bias cannot keep two."""
    options = {"reset_after": form.reset_after} if form.kind == "gru" else {}
    layer = LAYERS[form.kind](I, H, dtype="float64", seed=3, **options)
    x = np.random.default_rng(1).standard_normal((4, 2, I))
    again = fl.from_arrays(layer.to_arrays(form.name), form.kind)
    assert_near(again(x)[0], layer(x)[0], TOLERANCE["float64"])
    without = LAYERS[form.kind](I, H, bias=False, dtype="float64", seed=3, **options)
    again = fl.from_arrays(without.to_arrays(form.name), form.kind)
    assert_near(again(x)[0], without(x)[0], TOLERANCE["float64"])


@each_form
def test_a_step_of_gradient_descent_moves_the_arrays_by_their_gradients(form: Form) -> None:
    """The gradients are finite differences of `by_hand`: two biases would move their sum twice as far."""
    d, rate, eps = arrays(form), 0.1, 1e-6
    rng = np.random.default_rng(2)
    x, wanted = rng.standard_normal((4, 2, I)), rng.standard_normal((4, 2, H))
    layer = fl.from_arrays(d, form.kind)
    _, _, tape = layer.forward(x)
    fl.SGD([layer], lr=rate).step([layer.backward(tape, wanted)[2]])
    for key, moved in layer.to_arrays(form.name).items():
        expected = d[key].copy()
        for at in np.ndindex(d[key].shape):
            up, down = d[key].copy(), d[key].copy()
            up[at] += eps
            down[at] -= eps
            slope = ((by_hand(form, d | {key: up}, x) - by_hand(form, d | {key: down}, x)) * wanted).sum() / (2 * eps)
            expected[at] -= rate * slope
        np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-8, err_msg=key)


def test_dtype_is_that_of_the_arrays_unless_given() -> None:
    d = arrays(FORMS[0])
    assert fl.from_arrays(d, "lstm").dtype == np.float64
    layer = fl.from_arrays(d, "lstm", dtype="float32")
    assert_same_bits(layer.to_arrays("stacked"), {key: a.astype(np.float32) for key, a in d.items()})
    assert fl.from_arrays({key: a.tolist() for key, a in d.items()}, "lstm").dtype == np.float64
    swapped = {key: a.astype(">f8") for key, a in d.items()}
    assert_same_bits(fl.from_arrays(swapped, "lstm").to_arrays("stacked"), d)
    with pytest.raises(ValueError, match=r"dtype float16, expected float32 or float64.*dtype='float32'"):
        fl.from_arrays({key: a.astype(np.float16) for key, a in d.items()}, "lstm")


def without(d: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: a for key, a in d.items() if key not in keys}


STACKED, KERAS_GRU = arrays(FORMS[0], head=True), arrays(FORMS[6])


@pytest.mark.parametrize(
    ("d", "kind", "message"),
    [
        (STACKED, "transformer", "kind 'transformer' is not known; expected one of lstm, gru, rnn"),
        ({}, "lstm", "(none) belong to no form of lstm"),
        ({"W": 1.0}, "rnn", "the keys W belong to no form of rnn. Known forms:\n  waa: Waa Wax ba (Wya by)"),
        (without(STACKED, "Wi", "bo"), "lstm", "which has the keys Wf bf Wi bi Wc bc Wo bo (Wy by); missing: Wi, bo"),
        (without(STACKED, "by"), "lstm", "missing: by"),
        (STACKED | {"Wq": 1.0, "Wz": 2.0}, "lstm", "unexpected: Wq, Wz"),
        (STACKED | {"Wi": np.zeros((5, 7))}, "lstm", "Wi has shape (5, 7), expected (5, 8) in form 'stacked' of lstm"),
        (STACKED | {"Wf": np.zeros((4, 8))}, "lstm", "Wf has shape (4, 8), expected (5, 8)"),
        (STACKED | {"bf": np.zeros(5)}, "lstm", "bf has shape (5,), expected (5, 1)"),
        (STACKED | {"Wf": np.zeros(40)}, "lstm", "Wf has shape (40,), expected (5, 8)"),
        (STACKED | {"Wy": np.zeros((2, 4))}, "lstm", "Wy has shape (2, 4), expected (2, 5)"),
        (STACKED | {"by": np.zeros(2)}, "lstm", "by has shape (2,), expected (2, 1)"),
        (KERAS_GRU | {"bias": np.zeros((3, 15))}, "gru", "bias has shape (3, 15), expected (2, 15)"),
        (KERAS_GRU | {"bias": np.zeros(14)}, "gru", "bias has shape (14,), expected (15,)"),
        (KERAS_GRU | {"kernel": np.zeros((3, 14))}, "gru", "kernel has shape (3, 14), expected (3, 15)"),
        (KERAS_GRU | {"recurrent_kernel": np.zeros((4, 15))}, "gru", "kernel has shape (4, 15), expected (5, 15)"),
    ],
)
def test_what_does_not_fit_is_refused(d: dict[str, Any], kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        fl.from_arrays(d, kind)


@pytest.mark.parametrize(
    ("layer", "form", "message"),
    [
        (fl.LSTM(I, H), "matlab", "form 'matlab' is not known for LSTM; expected one of stacked, d2l, keras"),
        (fl.GRU(I, H), "stacked", "form 'stacked' is not known for GRU; expected one of d2l, keras"),
        (fl.LSTM(I, H, 2), "stacked", "it has no place for num_layers=2"),
        (fl.LSTM(I, H, bidirectional=True), "d2l", "it has no place for bidirectional=True"),
        (fl.LSTM(I, H, proj_size=2), "keras", "LSTM(3, 5, proj_size=2): it has no place for proj_size=2"),
        (fl.LSTM(I, H, 2, peepholes=True), "keras", "it has no place for num_layers=2, peepholes=True"),
        (fl.GRU(I, H), "d2l", "it has no place for reset_after=True"),
    ],
)
def test_a_layer_that_a_form_cannot_express_is_refused(layer: Any, form: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        layer.to_arrays(form)


def test_a_head_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("the head's weight has shape (2, 4), expected (units, 5)")):
        fl.LSTM(I, H).to_arrays("stacked", fl.Dense(4, U))
    with pytest.raises(ValueError, match="form 'keras' has no keys for a head"):
        fl.LSTM(I, H).to_arrays("keras", fl.Dense(H, U))


def test_both_keras_grus_are_told_apart_by_their_bias() -> None:
    for form in FORMS:
        if form.name == "keras" and form.kind == "gru":
            assert ("reset_after=False" in repr(fl.from_arrays(arrays(form), "gru"))) is not form.reset_after
