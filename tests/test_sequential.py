"""Models that are lists of modules: fit, evaluate, predict, summary, streams, files, resuming."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm import nn
from fastlstm.callbacks import Backup, BestModel, Callback, CSVLog, EarlyStopping, LearningRate

RNG = np.random.default_rng(0)
DOCS = Path(__file__).parent.parent / "docs" / "modules.md"
X = RNG.standard_normal((200, 10, 3)).astype("f")
LABELS = (X.sum((1, 2)) > 0).astype(int)
RAGGED = [RNG.integers(1, 50, n) for n in RNG.integers(3, 20, 150)]
FEW = np.array([int((ids < 20).mean() > 0.4) for ids in RAGGED])


def classifier(seed: int = 0, **options: Any) -> Any:
    model = fl.Sequential([nn.LSTM(12, **options), nn.Dense(2, "softmax")], seed=seed)
    model.compile({"name": "adam", "lr": 1e-2}, "sparse_categorical_crossentropy", ["accuracy"])
    return model


def of_words(seed: int = 0) -> Any:
    model = fl.Sequential([nn.Embedding(50, 8, mask_zero=True), nn.LSTM(12), nn.Dense(1, "sigmoid")], seed=seed)
    model.compile({"name": "adam", "lr": 2e-2}, "binary_crossentropy", ["accuracy"])
    return model


def test_fit_learns_and_one_seed_gives_one_result() -> None:
    histories = [classifier().fit(X, LABELS, epochs=15, verbose=False) for _ in range(2)]
    assert histories[0]["loss"] == histories[1]["loss"]
    assert histories[0]["loss"][-1] < 0.35 < 0.6 < histories[0]["loss"][0]
    assert histories[0]["accuracy"][-1] > 0.85


def test_evaluate_agrees_with_predict_by_hand() -> None:
    model = classifier()
    model.fit(X, LABELS, epochs=2, verbose=False)
    p = model.predict(X, 64)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    found = model.evaluate(X, LABELS, 48)
    assert found["loss"] == pytest.approx(-np.log(p[np.arange(200), LABELS]).mean(), abs=1e-5)
    assert found["accuracy"] == pytest.approx((p.argmax(-1) == LABELS).mean())


def test_ragged_sequences_give_what_each_gives_alone() -> None:
    model = of_words()
    model.fit(RAGGED, FEW, epochs=12, batch_size=16, verbose=False)
    p = model.predict(RAGGED, 32)
    for i in range(0, 150, 17):
        np.testing.assert_allclose(p[i], model(RAGGED[i][None])[0], atol=1e-6)
    padded = np.zeros((150, 25), int)
    for row, ids in zip(padded, RAGGED, strict=True):
        row[25 - len(ids) :] = ids  # on the left, as Keras pads
    np.testing.assert_allclose(model.predict(padded), p, atol=1e-6)
    assert model.evaluate(RAGGED, FEW)["accuracy"] > 0.8


def test_targets_of_every_step_with_a_mask() -> None:
    model = fl.Sequential([nn.GRU(8, return_sequences=True), nn.Dense(3, "softmax")], seed=0)
    model.compile("adam", "sparse_categorical_crossentropy")
    y = RNG.integers(0, 3, (200, 10))
    mask = np.arange(10) < RNG.integers(1, 11, 200)[:, None]
    spoiled = np.where(mask, y, 0)
    model.build((10, 3))
    assert model.evaluate(X, y, mask=mask)["loss"] == pytest.approx(model.evaluate(X, spoiled, mask=mask)["loss"])
    p = model.predict(X, mask=mask)
    nll = -np.log(np.take_along_axis(p, y[..., None], -1)[..., 0])
    assert model.evaluate(X, y, mask=mask)["loss"] == pytest.approx(nll[mask].mean(), abs=1e-5)
    model.fit(X, y, mask=mask, verbose=False)


def test_weights_of_samples_and_classes() -> None:
    """A weight of 2 counts a sample twice, and a weight of 0 leaves it out."""
    twice, weighted = classifier(), classifier()
    weights = np.where(LABELS == 1, 2.0, 1.0)
    doubled = np.concatenate((X, X[LABELS == 1])), np.concatenate((LABELS, LABELS[LABELS == 1]))
    for model in (twice, weighted):
        model.build((10, 3))
    one = twice.evaluate(*doubled)["loss"]
    assert weighted.evaluate(X, LABELS, sample_weight=weights)["loss"] == pytest.approx(one, abs=1e-6)
    by_class, by_sample = classifier(), classifier()
    a = by_class.fit(X, LABELS, class_weight={0: 1.0, 1: 2.0}, verbose=False)
    b = by_sample.fit(X, LABELS, sample_weight=weights, verbose=False)
    assert a["loss"] == b["loss"]


def test_frozen_modules_do_not_change() -> None:
    model = fl.Sequential([nn.LSTM(8, trainable=False), nn.Dense(2, "softmax")], seed=0)
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.build((10, 3))
    before = model.state_dict()
    model.fit(X, LABELS, verbose=False)
    after = model.state_dict()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"dense.weight", "dense.bias"}


class Batches:
    """Batches of 50 samples, anew for each epoch."""

    def __iter__(self) -> Any:
        for begin in range(0, 200, 50):
            yield X[begin : begin + 50], LABELS[begin : begin + 50]


def test_a_generator_and_a_memory_mapped_file_train_alike(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    models = [classifier() for _ in range(3)]
    for model in models:
        model.build((10, 3))
    histories = [
        models[0].fit(X, LABELS, 2, 50, shuffle=False, verbose=False),
        models[1].fit(mapped, LABELS, 2, 50, shuffle=False, verbose=False),
        models[2].fit(Batches(), epochs=2, verbose=False),
    ]
    assert histories[0]["loss"] == histories[1]["loss"]
    assert histories[2]["loss"] == histories[0]["loss"]


def test_summary_counts_parameters_as_keras_does() -> None:
    model = fl.Sequential([nn.Embedding(5000, 32), nn.LSTM(100), nn.Dense(1, "sigmoid")])
    table = model.summary((60,))
    assert "53,200" in table and "213,301 parameters, 213,301 of them trainable" in table
    assert "(None, 60, 32)" in table


def test_a_stream_gives_what_the_whole_gives() -> None:
    model = fl.Sequential(
        [nn.GRU(4, return_sequences=True), nn.Residual(nn.LSTM(4, return_sequences=True)), nn.Dense(2, "softmax")],
        seed=0,
    )
    whole = model(X[:4])
    stream = model.stream(4)
    steps = np.stack([stream.step(np.ascontiguousarray(X[:4, t])) for t in range(10)], axis=1)
    np.testing.assert_allclose(steps, whole, atol=1e-6)
    with pytest.raises(ValueError, match="cannot stream"):
        both = fl.Sequential([nn.Bidirectional(nn.LSTM(4))])
        both.build((10, 3))
        both.stream()


def test_several_threads_predict() -> None:
    model = classifier()
    model.fit(X, LABELS, verbose=False)
    right = model.predict(X)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: model.predict(X), range(8)):
            np.testing.assert_array_equal(found, right)


BAD: dict[str, tuple[Any, str]] = {
    "labels outside": (lambda m: m.fit(X, LABELS + 1), r"targets must lie between 0 and 1 .*, got 1 to 2"),
    "NaN in x": (lambda m: m.fit(np.where(X > 2, np.nan, X), LABELS), r"x holds NaN or infinity, first at \["),
    "y of another length": (lambda m: m.fit(X, LABELS[:9]), "x has 200 samples, y has 9"),
    "no samples": (lambda m: m.fit([], []), "x is empty"),
    "widths that differ": (lambda m: m.fit([X[0], X[1, :, :2]], [0, 1]), r"x\[1\] has shape \(10, 2\)"),
    "no y": (lambda m: m.fit(X), "a target for each sample is needed"),
    "words": (lambda m: m.fit(np.array([["a"]]), [0]), "x must hold numbers"),
    "class without weight": (lambda m: m.fit(X, LABELS, class_weight={0: 1.0}), "no weight for 1"),
    "two validations": (
        lambda m: m.fit(X, LABELS, validation_data=(X, LABELS), validation_split=0.1),
        "give one of them",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_changes(name: str) -> None:
    call, told = BAD[name]
    model = classifier()
    model.build((10, 3))
    before = model.state_dict()
    with pytest.raises((TypeError, ValueError), match=told):
        call(model)
    assert all(np.array_equal(before[n], p) for n, p in model.state_dict().items())


# --------------------------------------------------------------------------------------------------------------- files
LAYERS: dict[str, Any] = {
    "lstm": lambda: fl.LSTM(
        3, 5, 2, bidirectional=True, proj_size=2, activations=("hard_sigmoid", "tanh", ("elu", 0.5)), seed=0
    ),
    "gru": lambda: fl.GRU(3, 5, reset_after=False, single_bias=True, dtype="float64", seed=0),
    "rnn": lambda: fl.RNN(3, 5, nonlinearity="relu", seed=0),
    "cell": lambda: fl.LSTMCell(3, 5, seed=0),
    "dense": lambda: fl.Dense(3, 5, bias=False, seed=0),
    "module": lambda: nn.LSTM(5, kernel_regularizer=nn.L1L2(0.1)),
    "model": lambda: fl.Sequential(
        [
            nn.Embedding(9, 4, mask_zero=True),
            nn.Residual(nn.GRU(4, return_sequences=True)),
            nn.Bidirectional(nn.LSTM(3, dropout=0.1), "sum"),
            nn.Dropout(0.2),
            nn.Dense(2, "softmax", trainable=False),
        ],
        seed=1,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_save_and_load_give_the_same_bits(name: str, tmp_path: Path) -> None:
    layer = LAYERS[name]()
    if name == "model":
        layer.build((6,))
    if name == "module":
        layer.build((6, 3))
    layer.save(tmp_path / "file")
    other = fl.load(tmp_path / "file")
    assert repr(other) == repr(layer) and type(other) is type(layer)
    for key, p in layer.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[key], p)
        assert other.state_dict()[key].dtype == p.dtype
    if name == "model":
        ids = np.array([[1, 2, 0, 3]])
        np.testing.assert_array_equal(other(ids), layer(ids))


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fl.LSTM(3, 5, seed=0).save(path)
    whole = path.read_bytes()
    for data in (b"", whole[:100], whole[:-1], b"\0" * 200, whole.replace(b'"LSTM\\"', b'"eval\\"')):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(fl.files.FileError):
            fl.load(tmp_path / "bad")
    newer = whole.replace(b'\\"version\\": 1', b'\\"version\\": 9')
    assert newer != whole
    (tmp_path / "bad").write_bytes(newer)
    with pytest.raises(fl.files.FileError, match=r"format version 9, .* install a newer one"):
        fl.load(tmp_path / "bad")
    huge = whole.replace(b'\\"hidden_size\\": 5', b'\\"hidden_size\\": 99999999')
    size = int.from_bytes(whole[:8], "little") + len(huge) - len(whole)
    (tmp_path / "bad").write_bytes(size.to_bytes(8, "little") + huge[8:])
    with pytest.raises(fl.files.FileError, match="hidden_size 99999999"):
        fl.load(tmp_path / "bad")


# ----------------------------------------------------------------------------------------------------------- callbacks
def test_early_stopping_restores_the_best_epoch() -> None:
    model = classifier()
    seen = []

    class Watch(Callback):
        def on_epoch_end(self, loop: Any) -> None:
            seen.append(model.state_dict()["dense.bias"])

    noise = RNG.integers(0, 2, 200)
    history = model.fit(
        X, LABELS, 40, validation_data=(X, noise), callbacks=[Watch(), EarlyStopping(patience=2)], verbose=False
    )
    best = int(np.argmin(history["val_loss"]))
    assert len(history["loss"]) == best + 4 < 40
    np.testing.assert_array_equal(model.state_dict()["dense.bias"], seen[best])


def test_best_model_log_and_learning_rate(tmp_path: Path) -> None:
    model = classifier()
    rate = LearningRate(lambda optimizer: fl.StepLR(optimizer, step_size=1, gamma=0.5))
    callbacks = [BestModel(tmp_path / "best", "loss"), CSVLog(tmp_path / "log.csv"), rate]
    history = model.fit(X, LABELS, 3, callbacks=callbacks, verbose=False)
    assert history["lr"] == pytest.approx([1e-2, 5e-3, 2.5e-3])
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,lr,loss") and len(rows) == 4
    assert float(rows[3].split(",")[2]) == history["loss"][2]
    np.testing.assert_array_equal(fl.load(tmp_path / "best")(X), model(X))


class StopAt(Callback):
    """Stops the run after `step` steps, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, loop: Any) -> None:
        if loop.steps == self.step:
            os.kill(os.getpid(), signal.SIGINT)


RESUMED: dict[str, Any] = {
    "dropout": lambda: [nn.LSTM(8, dropout=0.2), nn.Dropout(0.3)],
    "dropout in both directions": lambda: [nn.Bidirectional(nn.LSTM(8, dropout=0.2))],
    "residual, stateful": lambda: [
        nn.Residual(nn.LSTM(3, dropout=0.2, return_sequences=True, stateful=True)),
        nn.LSTM(8),
    ],
}


@pytest.mark.parametrize("at", [3, 7, 10])
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_fit_ends_bit_for_bit_as_an_uninterrupted_one(name: str, at: int, tmp_path: Path) -> None:
    def model() -> Any:
        made = fl.Sequential([*RESUMED[name](), nn.Dense(2, "softmax")], seed=3)
        made.compile({"name": "adam", "lr": 1e-2}, "sparse_categorical_crossentropy", ["accuracy"])
        return made

    def callbacks(*more: Any) -> list[Any]:
        return [*more, LearningRate(lambda o: fl.StepLR(o, step_size=1, gamma=0.7)), EarlyStopping("loss", 9)]

    whole = model()
    expected = whole.fit(X, LABELS, 3, 40, callbacks=callbacks(), verbose=False)
    assert threading.current_thread() is threading.main_thread()
    cut = model()
    cut.fit(X, LABELS, 3, 40, callbacks=callbacks(Backup(tmp_path / "b"), StopAt(at)), verbose=False)
    assert cut.stopped_by == signal.SIGINT
    resumed = model()
    history = resumed.fit(X, LABELS, 3, 40, callbacks=callbacks(Backup(tmp_path / "b")), verbose=False)
    assert history == expected
    for name, p in whole.state_dict().items():
        np.testing.assert_array_equal(resumed.state_dict()[name], p, name)


def test_a_residual_module_s_state_ends_with_the_epoch() -> None:
    """Shuffling is off and each epoch begins with zeros, as for a stateful module that is not wrapped."""
    model = fl.Sequential([nn.Residual(nn.LSTM(3, stateful=True, return_sequences=True)), nn.Dense(1)], seed=0)
    model.compile({"name": "sgd", "lr": 0.0}, "mse")
    y = np.zeros((200, 10, 1), "f")
    losses = model.fit(X, y, epochs=2, batch_size=40, verbose=False)["loss"]
    assert losses[0] == losses[1]
    assert model.evaluate(X, y, 40)["loss"] == pytest.approx(losses[0], rel=1e-6)
    with pytest.raises(ValueError, match="in x, 200 samples are no multiple of 30"):
        model.fit(X, y, batch_size=30, verbose=False)
    of_another_size = model.evaluate(X, y, 20)["loss"]
    assert model.fit(X, y, batch_size=20, verbose=False)["loss"] == [pytest.approx(of_another_size, rel=1e-6)]


@pytest.mark.skipif(not DOCS.exists(), reason="the documents are not installed with the package")
def test_the_code_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = DOCS.read_text(encoding="utf-8").split("```")[1::2]
    names: dict[str, Any] = {}
    for block in code:
        exec(compile(block.removeprefix("python"), str(DOCS), "exec"), names)
    assert names["history"]["loss"][-1] < names["history"]["loss"][0]
    assert names["losses"][-1] < 0.9 * names["losses"][0]  # of the model with two heads
