"""`quantize`: layers, cells, models and text models in reduced storage; reports, files, refusals, the command."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CELLS, LAYERS, assert_same_bits

import fastlstm as fl
from fastlstm import files, nn
from fastlstm.cli import main
from fastlstm.layer import Layer
from fastlstm.models import config_of, from_config
from fastlstm.quantise import REDUCED, Report
from fastlstm.text import CharModel, TextModel

RNG = np.random.default_rng(0)
X = RNG.standard_normal((9, 3, 8)).astype(np.float32)
IDS = RNG.integers(0, 8, (9, 3))
TWO = {"num_layers": 2, "bidirectional": True}


def layer(kind: str = "lstm", **options: Any) -> Any:
    return LAYERS[kind](8, 16, **{**TWO, "seed": 1, **options})


# ------------------------------------------------------------------------------------------------------------- a layer
@pytest.mark.parametrize("storage", REDUCED)
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_are_near_those_of_floats(kind: str, storage: str) -> None:
    """Largest changes of outputs, as shares of 1: 8, 11 and 14 bits of weights."""
    floats = layer(kind)
    before = floats.state_dict()
    q = floats.quantize(storage)
    change = np.abs(q(X)[0] - floats(X)[0]).max()
    assert 0 < change < {"int8": 2e-2, "int16": 3e-4, "float16": 1e-3}[storage]
    ids = np.abs(q(IDS)[0] - floats(IDS)[0]).max()
    assert 0 < ids < {"int8": 2e-2, "int16": 3e-4, "float16": 1e-3}[storage]
    assert_same_bits(floats.state_dict(), before)
    assert (floats.storage, q.storage) == ("float32", storage) and type(q) is type(floats)


def test_inputs_of_14_bits_are_nearer() -> None:
    floats = fl.LSTM(64, 16, seed=1)
    x = RNG.standard_normal((20, 5, 64)).astype(np.float32)
    off = [np.abs(floats.quantize("int8", inputs=i)(x)[0] - floats(x)[0]).mean() for i in ("int8", "int16")]
    assert off[1] < 0.8 * off[0]
    assert_same_bits({"y": floats.quantize("int8", inputs="int8")(x)[0]}, {"y": floats.quantize("int8")(x)[0]})


def test_the_parameters_are_integers_with_scales() -> None:
    q = layer(proj_size=4, peepholes=True).quantize("int8")
    kinds = {name: (p.dtype.name, p.shape) for name, p in q.state_dict().items()}
    assert kinds["weight_ih_l0"] == ("int8", (64, 8)) and kinds["weight_ih_scale_l0"] == ("float32", (64,))
    assert kinds["weight_hr_l1_reverse"] == ("int8", (4, 16))
    assert kinds["weight_hr_scale_l1_reverse"] == ("float32", (4,))
    assert kinds["bias_hh_l1"] == ("float32", (64,)) and kinds["weight_peep_l0"] == ("float32", (3, 16))
    assert q.parameters().keys() == kinds.keys()


@pytest.mark.parametrize("storage", REDUCED)
def test_a_quantised_layer_streams_and_ends_at_its_lengths(storage: str) -> None:
    q = layer(bidirectional=False).quantize(storage)
    whole, state = q(X)
    stream = q.stream(3)
    assert_same_bits({"y": np.stack([stream.step(x) for x in X])}, {"y": whole})
    assert_same_bits(dict(zip("hc", stream.state, strict=True)), dict(zip("hc", state, strict=True)))
    both = layer().quantize(storage)
    ragged, _ = both(X, lengths=[9, 4, 6])
    alone, _ = both(X[:4, 1:2])
    assert_same_bits({"y": np.ascontiguousarray(ragged[:4, 1:2])}, {"y": alone})


def test_biases_stay_float32() -> None:
    floats = fl.GRU(8, 16, seed=1)
    with floats.update() as params:
        params["bias_hh_l0"] += np.float32(1 / 3)
    q = floats.quantize("float16")
    np.testing.assert_array_equal(q.state_dict()["bias_hh_l0"], floats.state_dict()["bias_hh_l0"])


def test_dequantize_gives_the_numbers_that_were_kept() -> None:
    for storage in REDUCED:
        q = layer().quantize(storage)
        wide = q.dequantize()
        assert wide.storage == "float32" and wide.state_dict().keys() == layer().state_dict().keys()
        kept = q.state_dict()
        scales = kept.get("weight_hh_scale_l1", np.ones(64, np.float32))
        np.testing.assert_array_equal(wide.state_dict()["weight_hh_l1"], kept["weight_hh_l1"] * scales[:, None])
        np.testing.assert_allclose(wide(X)[0], q(X)[0], atol=1e-2)
        wide.forward(X)  # trains


# ---------------------------------------------------------------------------------------------------------- the report
def test_the_report_measures_each_layer_alone_and_the_end() -> None:
    floats = layer()
    q = floats.quantize("int8", sample=X)
    first, second, end = q.report
    assert (first.name, second.name, end.name, first.storage) == ("layer 0", "layer 1", "output", "int8")
    change = np.abs(q(X)[0] - floats(X)[0], dtype=np.float64)
    np.testing.assert_allclose(
        (end.mean, end.quantile, end.largest), (change.mean(), np.quantile(change, 0.999), change.max())
    )
    one = fl.LSTM(8, 16, bidirectional=True)
    one.load_state_dict({name: p for name, p in floats.state_dict().items() if "_l0" in name})
    alone = np.abs(one.quantize("int8")(X)[0] - one(X)[0], dtype=np.float64)
    np.testing.assert_allclose((first.mean, first.largest), (alone.mean(), alone.max()))
    two = fl.LSTM(32, 16, bidirectional=True)
    two.load_state_dict({n.replace("_l1", "_l0"): p for n, p in floats.state_dict().items() if "_l1" in n})
    top = one(X)[0]
    assert 0.5 < np.abs(two.quantize("int8")(top)[0] - two(top)[0]).mean() / second.mean < 2
    assert end.before == sum(p.nbytes for p in floats.state_dict().values()) == first.before + second.before
    assert end.after == sum(p.nbytes for p in q.state_dict().values())
    assert "mean change" in str(q.report) and f"{end.after:,}" in repr(q.report)
    assert [row["name"] for row in q.report.to_config()] == ["layer 0", "layer 1", "output"]


def test_without_a_sample_the_report_has_bytes() -> None:
    report = layer().quantize("float16").report
    assert np.isnan(report.end.mean) and report.end.after < 0.6 * report.end.before
    assert "mean" not in str(report) and str(report).startswith("         kept as")


def test_samples_are_what_a_call_takes() -> None:
    floats = layer(batch_first=True)
    for sample in (X.swapaxes(0, 1), X[:, 0], IDS.T, IDS[:, 0]):
        q = floats.quantize("int8", sample=sample)
        np.testing.assert_allclose(q.report.end.largest, np.abs(q(sample)[0] - floats(sample)[0]).max(), rtol=1e-6)
    assert np.isnan(floats.quantize("int8", sample=X[:0]).report.end.mean), "no step, nothing to measure"
    nan = np.full_like(X, np.nan)
    for wrong, why in ((X[..., :3], "expected"), (np.ones(3), "x has"), ("abc", "x"), (nan, "sample holds NaN")):
        with pytest.raises((ValueError, TypeError), match=why):
            floats.quantize("int8", sample=wrong)


def test_a_layer_beyond_the_tolerance_stays_float16() -> None:
    floats = layer()
    free = floats.quantize("int8", sample=X)
    means = [row.mean for row in free.report.layers]
    assert means[0] > means[1]
    q = floats.quantize("int8", sample=X, tolerance=float(np.mean(means)))
    assert [row.storage for row in q.report.layers] == ["float16", "int8"]
    assert q.report.layers[0].mean < means[0] / 10 and q.report.end.mean < free.report.end.mean
    kinds = {name: p.dtype.name for name, p in q.state_dict().items()}
    assert kinds["weight_ih_l0"] == "float16" and kinds["weight_ih_l1"] == "int8" and "weight_ih_scale_l0" not in kinds
    assert_same_bits({"y": from_config(config_of(q)).load_state_dict(q.state_dict()) or q(X)[0]}, {"y": q(X)[0]})
    wide = floats.quantize("int8", inputs="int16", sample=X)
    limit = 0.9 * max(row.mean for row in wide.report.layers)
    wide = floats.quantize("int8", inputs="int16", sample=X, tolerance=limit)
    assert "float16" in [row.storage for row in wide.report.layers]
    assert repr(wide).endswith(".quantize('int8', inputs='int16')")
    half = floats.quantize("float16", sample=X, tolerance=1e-9)
    assert [row.storage for row in half.report.layers] == ["float32", "float32"] and half.report.end.largest == 0


# ------------------------------------------------------------------------------------------------------ files, configs
QUANTISED: dict[str, Any] = {
    "int8": lambda: layer().quantize("int8"),
    "inputs": lambda: layer("gru", reset_after=False).quantize("int8", inputs="int16"),
    "int16": lambda: layer("rnn").quantize("int16"),
    "float16": lambda: layer("gru").quantize("float16"),
    "mixed": lambda: layer().quantize("int8", sample=X, tolerance=6e-4),
    "peepholes": lambda: layer(peepholes=True, proj_size=5).quantize("int8"),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_layer_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    q = QUANTISED[name]()
    q.save(tmp_path / "q")
    arrays, config = files.load(tmp_path / "q")
    assert_same_bits(arrays, q.state_dict())
    assert config["version"] == 2, "earlier releases say that a newer one is needed"
    floats = q.dequantize()
    floats.save(tmp_path / "f")
    assert files.load(tmp_path / "f")[1]["version"] == 1, "which earlier releases read"
    if name != "mixed":
        share = {"int8": 0.5, "inputs": 0.5, "peepholes": 0.6}.get(name, 0.75)  # small layers: biases weigh much
        assert (tmp_path / "q").stat().st_size < share * (tmp_path / "f").stat().st_size + 3000
    for again in (
        fl.load(tmp_path / "q"), pickle.loads(pickle.dumps(q)), copy.deepcopy(q), copy.copy(q),
        from_config(json.loads(json.dumps(config_of(q)))), Layer.from_config(json.loads(json.dumps(q.to_config()))),
    ):  # fmt: skip
        again.load_state_dict(q.state_dict())
        assert repr(again) == repr(q) and again.storage == q.storage
        assert_same_bits({"y": again(X)[0]}, {"y": q(X)[0]})
        assert_same_bits(again.state_dict(), q.state_dict())


def test_a_repr_is_the_call_that_makes_it() -> None:
    assert repr(fl.LSTM(8, 16).quantize("int8")) == "LSTM(8, 16).quantize('int8')"
    assert repr(fl.GRU(8, 16).quantize("int8", inputs="int16")) == "GRU(8, 16).quantize('int8', inputs='int16')"


@pytest.mark.parametrize("change", [
    {"storage": "int4"}, {"storages": ["int8"]}, {"storages": ["int8", "int3"]}, {"inputs": "int9"}, {"storages": None},
])  # fmt: skip
def test_a_file_whose_storage_does_not_fit_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    q = layer().quantize("int8")
    q.save(tmp_path / "q")
    arrays, config = files.load(tmp_path / "q")
    config["layer"]["quantised"] |= change
    files.save(tmp_path / "q", arrays, config)
    with pytest.raises(files.FileError, match="does not fit"):
        fl.load(tmp_path / "q")


def test_integers_in_a_file_that_no_storage_has_are_refused(tmp_path: Path) -> None:
    q = layer().quantize("int8")
    state = q.state_dict()
    state["weight_hh_l0"][:, :2] = 127
    with pytest.raises(ValueError, match="integers that storage int8 never has"):
        q.load_state_dict(state)
        q(X)


def test_state_of_floats_does_not_fit_and_changes_nothing() -> None:
    floats, q = layer(), layer().quantize("int8")
    before = q.state_dict()
    for wrong in (floats.state_dict(), {**before, "weight_hh_l0": before["weight_hh_l0"].astype(np.float32)}):
        with pytest.raises(RuntimeError, match="weight_hh_l0 has dtype float32, expected int8"):
            q.load_state_dict(wrong)
    assert_same_bits(q.state_dict(), before)
    with pytest.raises(RuntimeError, match="unexpected: weight_ih_scale_l0"):
        floats.load_state_dict(before)


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(("call", "message"), [
    (lambda q: q.forward(X), "training takes weights of float32, and those of LSTM(.*) are kept as int8"),
    (lambda q: fl.Adam(q, 1e-3), "Adam takes weights of float32"),
    (lambda q: fl.SGD([layer(), q], 1e-3), "SGD takes weights of float32"),
    (lambda q: q.quantize("int8"), "quantize takes weights of float32"),
    (lambda q: q.to_torch(), "to_torch takes weights of float32.* dequantize"),
    (lambda q: fl.LSTM(8, 16).quantize("int8").to_arrays("stacked"), "to_arrays takes weights of float32"),
])  # fmt: skip
def test_training_and_exports_are_refused_by_name(call: Any, message: str) -> None:
    q = layer().quantize("int8")
    with pytest.raises(ValueError, match=message):
        call(q)
    with pytest.raises(ValueError, match="training takes"):
        fl.LSTMCell(8, 16).quantize("int8").forward(X[0])


@pytest.mark.parametrize(("given", "message"), [
    ({"storage": "int4"}, "storage 'int4' is not known: use one of int8, int16, float16"),
    ({"storage": 8}, "storage 8 is not known"),
    ({"storage": "int8", "inputs": "float16"}, "inputs 'float16' is not known: use one of int8, int16"),
    ({"storage": "float16", "inputs": "int8"}, "inputs='int8' is for storage int8: leave it out for float16"),
    ({"storage": "int8", "tolerance": 0.1}, "tolerance is compared with the changes on a sample: give sample=x too"),
    ({"storage": "int8", "tolerance": -1, "sample": X}, "tolerance must be"),
])  # fmt: skip
def test_arguments_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    for one in (layer(), sequential()):
        with pytest.raises(ValueError, match=message):
            one.quantize(**given)


def test_layers_that_cannot_be_quantised() -> None:
    with pytest.raises(ValueError, match=r"computes in float64: load its state_dict\(\) into a layer of float32"):
        layer(dtype="float64").quantize("int8")
    bad = layer()
    with bad.update() as params:
        params["weight_hh_l1"][3, 4] = np.nan
    with pytest.raises(ValueError, match="weight_hh_l1 has the entry nan, for which storage int8 has no integer"):
        bad.quantize("int8")
    large = layer()
    with large.update() as params:
        params["weight_hh_l1"][3, 4] = 1e5
    with pytest.raises(ValueError, match="weight_hh_l1 has the entry 100000, but storage float16"):
        large.quantize("float16")
    with pytest.raises(fl.BackendError, match="backend 'numba' does not keep weights as int8"):
        layer(backend="numba").quantize("int8") if fl.backends()["numba"] is None else fl.LSTM(1, 1, backend="none")


# ------------------------------------------------------------------------------------------------------- cells, models
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: str, tmp_path: Path) -> None:
    cell = CELLS[kind](8, 16, seed=1)
    q = cell.quantize("int8", sample=X[0])
    old, new = (np.asarray(c(X[0])[0] if kind == "lstm" else c(X[0])) for c in (cell, q))
    assert 0 < np.abs(new - old).max() == q.report.end.largest < 1e-2
    q.save(tmp_path / "q")
    assert_same_bits({"h": np.asarray(fl.load(tmp_path / "q")(X[0])[0])}, {"h": np.asarray(q(X[0])[0])})


def sequential() -> Any:
    model = fl.Sequential(
        [
            nn.Embedding(8, 6, mask_zero=True),
            nn.Bidirectional(nn.LSTM(5, return_sequences=True)),
            nn.Residual(nn.GRU(10, return_sequences=True)),
            nn.SimpleRNN(4, go_backwards=True),
            nn.Dense(2, "softmax"),
        ],
        seed=3,
    )
    model.build((7,))
    return model


def test_sequential(tmp_path: Path) -> None:
    model = sequential()
    q = model.quantize("int8", sample=IDS.T)
    assert [(row.name, row.storage) for row in q.report.layers] == [
        ("bidirectional layer 0", "int8"), ("residual layer 0", "int8"), ("simplernn layer 0", "int8"),
    ]  # fmt: skip
    change = np.abs(q(IDS.T) - model(IDS.T), dtype=np.float64)
    assert change.mean() > 0 and np.isclose(q.report.end.mean, change.mean())
    assert all(0 < row.mean < 1e-2 for row in q.report.layers)
    kinds = {name: p.dtype.name for name, p in q.state_dict().items()}
    assert kinds["embedding.weight"] == kinds["dense.weight"] == "float32" and kinds["residual.weight_ih_l0"] == "int8"
    assert q.report.end.after == sum(p.nbytes for p in q.state_dict().values())
    assert "(int8)" in q.summary() and "(int8)" not in model.summary()
    q.save(tmp_path / "q")
    again = fl.load(tmp_path / "q")
    assert_same_bits({"y": again(IDS.T)}, {"y": q(IDS.T)})
    assert_same_bits({"y": pickle.loads(pickle.dumps(q))(IDS.T)}, {"y": q(IDS.T)})
    np.testing.assert_allclose(q.dequantize()(IDS.T), q(IDS.T), atol=1e-2)
    assert q.dequantize()._quantised is None
    model.forward(IDS.T)  # the model of floats still trains
    with pytest.raises(ValueError, match="training takes weights of float32"):
        q.forward(IDS.T)
    q.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="SGD takes weights of float32"):
        q.fit(IDS.T, np.zeros(3, int), verbose=False)
    assert np.isfinite(q.evaluate(IDS.T, np.zeros(3, int))["loss"])


def test_sequential_of_ragged_samples_and_tolerance() -> None:
    model = sequential()
    q = model.quantize("int8", sample=[IDS[:, 0], IDS[:4, 1]], tolerance=1e-9)
    assert {row.storage for row in q.report.layers} == {"float16"} and q.report.end.largest < 1e-3


@pytest.mark.parametrize("storage", REDUCED)
def test_dense_layers_are_kept_so_if_asked(storage: str, tmp_path: Path) -> None:
    model = sequential()
    q = model.quantize(storage, sample=IDS.T, dense=True)
    assert [(row.name, row.storage) for row in q.report.layers][-1] == ("dense layer 0", storage)
    kept = {name: p for name, p in q.state_dict().items() if name.startswith("dense")}
    assert kept["dense.weight"].dtype == storage and kept["dense.bias"].dtype == np.float32
    assert ("dense.weight_scale" in kept) == (storage != "float16")
    assert q.report.end.after == sum(p.nbytes for p in q.state_dict().values())
    assert q.report.layers[-1].after == sum(p.nbytes for p in kept.values())
    plain = model.quantize(storage)
    np.testing.assert_array_equal(plain.state_dict()["dense.weight"], model.state_dict()["dense.weight"])
    wide = q.dequantize()
    scales = kept.get("dense.weight_scale", np.ones(2, np.float32))
    np.testing.assert_array_equal(wide.state_dict()["dense.weight"], kept["dense.weight"] * scales[:, None])
    with plain.modules[-1].update() as params:
        params["weight"][...] = wide.state_dict()["dense.weight"]
    assert_same_bits({"y": q(IDS.T)}, {"y": plain(IDS.T)})
    for again in (pickle.loads(pickle.dumps(q)), copy.deepcopy(q), q.save(tmp_path / "q") or fl.load(tmp_path / "q")):
        assert_same_bits({"y": again(IDS.T)}, {"y": q(IDS.T)})
        assert_same_bits(again.state_dict(), q.state_dict())
    with pytest.raises(RuntimeError, match="weight has dtype float32, expected"):
        q.modules[-1].core.load_state_dict(model.modules[-1].core.state_dict())
    with pytest.raises(ValueError, match="training takes weights of float32"):
        q.modules[-1].forward(np.ones((3, 4), np.float32))
    with pytest.raises(ValueError, match="training takes weights of float32"):
        q.modules[-1].core.cross_entropy(np.ones((3, 4), np.float32), np.zeros(3, int))
    assert f"({storage})" in q.summary().splitlines()[-3]


def test_a_dense_layer_beyond_the_tolerance_stays_float16_and_streams() -> None:
    model = fl.Sequential([nn.LSTM(6, return_sequences=True), nn.Dense(3)], seed=1)
    model(X)
    free = model.quantize("int8", sample=X, dense=True)
    change = np.abs(free.modules[-1](model.modules[0](X)) - model(X), dtype=np.float64)
    assert np.isclose(free.report.layers[-1].mean, change.mean())
    limit = free.report.layers[-1].mean / 2
    q = model.quantize("int8", sample=X, tolerance=limit, dense=True)
    assert q.report.layers[-1].storage == "float16" and 0 < q.report.layers[-1].mean < limit / 10
    assert q.modules[-1]._quantised.storages == ("float16",)
    half = model.quantize("float16", sample=X, tolerance=1e-12, dense=True)
    assert half.report.end.largest == 0 and half.modules[-1].core.state_dict()["weight"].dtype == np.float32
    streams = fl.StreamBatch(free, capacity=9)
    handles = [streams.open() for _ in X]
    stepped = np.stack([streams.step(handles, x) for x in X.swapaxes(0, 1)])
    np.testing.assert_allclose(stepped, free(X).swapaxes(0, 1), atol=1e-6)


def test_a_stateful_model_keeps_its_state() -> None:
    model = fl.Sequential([nn.LSTM(5, return_sequences=True, stateful=True), nn.Dense(1)], seed=1)
    model(X)
    before = [s.copy() for s in model.modules[0]._states]
    q = model.quantize("int8", sample=X)
    assert_same_bits(dict(enumerate(model.modules[0]._states)), dict(enumerate(before)))  # type: ignore[arg-type]
    assert 0 < q.report.end.mean < 1e-2


def test_models_that_cannot_be_quantised() -> None:
    with pytest.raises(ValueError, match="has no recurrent module, and only these are kept as int8"):
        dense = fl.Sequential([nn.Dense(3)])
        dense.build((4,))
        dense.quantize("int8")
    assert dense.quantize("int8", dense=True).state_dict()["dense.weight"].dtype == np.int8
    with pytest.raises(ValueError, match="has no parameters yet"):
        fl.Sequential([nn.LSTM(3)]).quantize("int8")
    with pytest.raises(ValueError, match="training takes weights of float32"):
        dropped = fl.Sequential([nn.LSTM(5, recurrent_dropout=0.5)], seed=1)
        dropped(X)
        dropped.quantize("int8").train().forward(X)


def test_text_models(tmp_path: Path) -> None:
    model = CharModel(" abc", 12, 2, seed=1)
    text = "abba cab " * 20
    q = model.quantize("int8", sample=text)
    assert q.lstm.report.end.mean > 0 and q.head is model.head and model.lstm.storage == "float32"
    assert q.perplexity(text) == pytest.approx(model.perplexity(text), rel=1e-3)
    assert q.perplexity(text) != model.perplexity(text)
    q.save(tmp_path / "q")
    again = TextModel.load(tmp_path / "q")
    assert again.perplexity(text) == q.perplexity(text) and again.lstm.storage == "int8"
    assert list(again.sample("a", 20, seed=1)) == list(q.sample("a", 20, seed=1))
    with pytest.raises(ValueError, match="training takes weights of float32"):
        q.gradients(*2 * [np.zeros((2, 1), int)], None)


# --------------------------------------------------------------------------------------------------------- the command
def ran(capsys: Any, *words: Any) -> str:
    status = main([*map(str, words)])
    out, err = capsys.readouterr()
    assert status == 0, err
    return str(out)


def complaint(capsys: Any, *words: Any) -> str:
    assert main([*map(str, words)]) == 2
    return str(capsys.readouterr().err)


def test_the_command_quantises_a_layer(tmp_path: Path, capsys: Any) -> None:
    floats, source = layer(), tmp_path / "m.safetensors"
    floats.save(source)
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "x.npz", x=X)
    said = ran(capsys, "quantize", source, "--to", "int8", "--sample", tmp_path / "x.npy")
    made = fl.load(tmp_path / "m-int8.safetensors")
    assert said == f"{floats.quantize('int8', sample=X).report}\nmodel in {tmp_path / 'm-int8.safetensors'}\n"
    assert_same_bits({"y": made(X)[0]}, {"y": floats.quantize("int8")(X)[0]})
    out = tmp_path / "other"
    words = ["quantize", source, "--to", "float16", "--sample", tmp_path / "x.npz", "--out", out, "--json"]
    found = json.loads(ran(capsys, *words))
    assert (found["storage"], found["report"][-1]["name"]) == ("float16", "output") and found["report"][0]["mean"] > 0
    assert "--force replaces it" in complaint(capsys, *words)
    assert fl.load(out).storage == "float16"
    shown = ran(capsys, "info", tmp_path / "m-int8.safetensors")
    assert (
        "weights kept as: int8" in shown and "LSTM(8, 16, num_layers=2, bidirectional=True).quantize('int8')" in shown
    )
    facts = json.loads(ran(capsys, "info", out, "--json"))
    assert facts["weights kept as"] == "float16" and facts["bytes"] == found["report"][-1]["after"]
    assert "weights kept as" not in ran(capsys, "info", source)


def test_the_command_quantises_models_of_texts_and_tables(tmp_path: Path, capsys: Any) -> None:
    text = tmp_path / "t.txt"
    text.write_text("one two three four five six seven\n" * 60)
    small = ["--hidden", 6, "--seq-len", 6, "--batch", 4, "--steps", 3]
    ran(capsys, "train-text", text, "--out", tmp_path / "book.safetensors", *small)
    said = ran(capsys, "quantize", tmp_path / "book.safetensors", "--to", "int8", "--sample", text)
    assert "mean change" in said and TextModel.load(tmp_path / "book-int8.safetensors").lstm.storage == "int8"
    assert "character model" in ran(capsys, "info", tmp_path / "book-int8.safetensors")
    assert "perplexity" in ran(capsys, "predict", tmp_path / "book-int8.safetensors", text)
    table = tmp_path / "t.csv"
    table.write_text("a,b\n" + "".join(f"{np.sin(i / 3):.4f},{i % 5}\n" for i in range(90)))
    for more, name in ((["--window", 8], "series"), ([], "cells")):
        model = tmp_path / f"{name}.safetensors"
        ran(capsys, "fit", table, "--target", "a", *more, "--epochs", 1, "--units", 6, "--out", model)
        said = ran(capsys, "quantize", model, "--to", "int8", "--sample", table, "--tolerance", 1e-9)
        assert "float16" in said
        assert "a" in ran(capsys, "predict", tmp_path / f"{name}-int8.safetensors", table)
    reviews = tmp_path / "r.tsv"
    reviews.write_text("".join(f"{i % 2}\t{'good' if i % 2 else 'bad'} film number {i % 7}\n" for i in range(40)))
    model = tmp_path / "reviews.safetensors"
    ran(capsys, "fit", reviews, "--text", 2, "--target", 1, "--epochs", 1, "--units", 6, "--out", model)
    assert "mean change" in ran(capsys, "quantize", model, "--to", "int8", "--sample", reviews)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: Any) -> None:
    source = tmp_path / "m.safetensors"
    layer().save(source)
    assert "give --sample FILE too" in complaint(capsys, "quantize", source, "--to", "int8", "--tolerance", "1e-3")
    (tmp_path / "x.npy").write_bytes(b"no array")
    assert "is no array" in complaint(capsys, "quantize", source, "--to", "int8", "--sample", tmp_path / "x.npy")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    assert ".npy or .npz" in complaint(capsys, "quantize", source, "--to", "int8", "--sample", tmp_path / "x.csv")
    dense = tmp_path / "d.safetensors"
    fl.Dense(3, 4).save(dense)
    assert "holds a Dense, which has no quantize" in complaint(capsys, "quantize", dense, "--to", "int8")
    assert not (tmp_path / "m-int8.safetensors").exists()
    layer().quantize("int8").save(tmp_path / "q.safetensors")
    assert "quantize takes weights of float32" in complaint(
        capsys, "quantize", tmp_path / "q.safetensors", "--to", "int8"
    )


def test_a_report_alone_is_empty() -> None:
    assert [row.name for row in Report()] == ["output"]
