"""What `fit` takes and refuses: stateful training, iterators, memory-mapped files; and model files that survive."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm import nn
from fastlstm.callbacks import BestModel, Callback, EarlyStopping, LearningRate, LossCurve

RNG = np.random.default_rng(0)
X = RNG.standard_normal((96, 6, 3)).astype("f")
LABELS = (X.sum((1, 2)) > 0).astype(int)
NUMBERS = X.sum((1, 2))[:, None]


def model(
    loss: Any = "sparse_categorical_crossentropy",
    units: int = 2,
    activation: Any = "softmax",
    metrics: Any = (),
    **lstm: Any,
) -> Any:
    made = fl.Sequential([nn.LSTM(5, **lstm), nn.Dense(units, activation)], seed=0)
    made.compile({"name": "adam", "lr": 1e-2}, loss, metrics)
    made.build((6, 3))
    return made


# ------------------------------------------------------------------------------------ stateful models
def test_stateful_training_is_that_of_a_loop_by_hand() -> None:
    """Batches of 16: the state goes from batch to batch, the gradient does not, and each epoch begins with zeros."""
    ours = model("mse", 1, None, stateful=True)
    history = ours.fit(X, NUMBERS, 3, 16, verbose=False)

    layer, head = fl.LSTM(3, 5, batch_first=True, single_bias=True, seed=0), fl.Dense(5, 1, seed=0)
    fresh = model("mse", 1, None)
    layer.load_state_dict(fresh.modules[0].core.state_dict())
    head.load_state_dict(fresh.modules[1].core.state_dict())
    optimizer, loss = fl.Adam([layer, head], lr=1e-2), fl.losses.get("mse")
    means = []
    for _ in range(3):
        state, values = None, []
        for at in range(0, 96, 16):
            y, state, tape = layer.forward(X[at : at + 16], state)
            p, of_head = head.forward(y[:, -1])
            value, dp = loss(p, NUMBERS[at : at + 16])
            d, head_grads = head.backward(of_head, dp)
            dy = np.zeros_like(y)
            dy[:, -1] = d
            _, _, grads = layer.backward(tape, dy)
            optimizer.step([grads, head_grads])
            values.append(value)
        means.append(np.mean(values))
    np.testing.assert_allclose(history["loss"], means, rtol=1e-5)
    for name, p in layer.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[f"lstm.{name}"], p, atol=1e-5)
    stateless = model("mse", 1, None).fit(X, NUMBERS, 3, 16, shuffle=False, verbose=False)
    assert abs(stateless["loss"][0] - means[0]) > 1e-4, "a state that is carried has to make a difference"


def test_an_evaluation_begins_with_zeros_and_leaves_the_state_as_it_is() -> None:
    one, two = model(stateful=True), model(stateful=True)
    a = one.fit(X, LABELS, 2, 16, validation_data=(X[:32], LABELS[:32]), verbose=False)
    b = two.fit(X, LABELS, 2, 16, verbose=False)
    assert a["loss"] == b["loss"]
    found = one.evaluate(X[:32], LABELS[:32], 16)["loss"]
    assert found == a["val_loss"][-1]
    with pytest.raises(ValueError, match="in validation_data's x, 50 samples are no multiple of 32"):
        one.fit(X, LABELS, 1, 32, validation_data=(X[:50], LABELS[:50]), verbose=False)


# ------------------------------------------------------------------------------------ targets per step
def test_ragged_targets_and_weights_per_step() -> None:
    """A list of sequences with a target for each step gives what the padded arrays with a mask give."""
    lengths = RNG.integers(1, 7, 96)
    mask = np.arange(6) < lengths[:, None]
    y, w = (X[..., 0] > 0).astype(int), RNG.uniform(0, 2, (96, 6))
    x, ragged_y, ragged_w = ([a[:n] for a, n in zip(whole, lengths, strict=True)] for whole in (X, y, w))
    made = fl.Sequential([nn.GRU(5, return_sequences=True), nn.Dense(2, "softmax")], seed=0)
    made.compile("adam", "sparse_categorical_crossentropy")
    made.build((6, 3))
    found = made.evaluate(x, ragged_y, 16, sample_weight=ragged_w)["loss"]
    expected = made.evaluate(X, y, 16, mask=mask, sample_weight=w)["loss"]
    assert found == pytest.approx(expected, abs=1e-6)
    history = made.fit(x, ragged_y, 8, 16, sample_weight=ragged_w, verbose=False)
    assert history["loss"][-1] < history["loss"][0]
    with pytest.raises(ValueError, match=r"y\[3\] has 7 steps, x\[3\] has"):
        made.fit(x, [*ragged_y[:3], np.zeros(7, int), *ragged_y[4:]], verbose=False)


def test_ragged_predictions_are_batched_by_length_and_come_in_order() -> None:
    x = [one[:n] for one, n in zip(X, RNG.integers(1, 7, 96), strict=True)]
    made = model()
    rows = []
    forward = type(made).__call__

    class Counting(fl.Sequential):
        def __call__(self, x: Any, mask: Any = None) -> Any:
            rows.append(np.asarray(x).shape)
            return forward(self, x, mask)

    made.__class__ = Counting
    p = made.predict(x, 16)
    for i in range(0, 96, 11):
        np.testing.assert_array_equal(p[i], made(x[i][None])[0])
    padded = sum(b * t for b, t, _ in rows[:6])
    assert padded < 1.2 * sum(map(len, x)), "a batch of mixed lengths pads every sequence to the longest"


# ------------------------------------------------------------------------------------ iterators and files
def batches(count: int) -> Any:
    for i in range(count):
        yield X[i % 3 * 32 : i % 3 * 32 + 32], LABELS[i % 3 * 32 : i % 3 * 32 + 32]


def test_an_iterator_trains_as_arrays_do_and_its_end_ends_the_training() -> None:
    expected = model().fit(X, LABELS, 2, shuffle=False, verbose=False)
    assert model().fit(batches(6), epochs=2, steps_per_epoch=3, verbose=False) == expected
    for count in (6, 7):
        with pytest.warns(UserWarning, match=f"ended in epoch {-(-count // 3)} of 9, and so does the training"):
            history = model().fit(batches(count), epochs=9, steps_per_epoch=3, verbose=False)
        assert history["loss"][:2] == expected["loss"] and len(history["loss"]) == -(-count // 3)
    made = model()
    with pytest.raises(ValueError, match="cannot begin again, and epochs=2: say with steps_per_epoch"):
        made.fit(batches(6), epochs=2, verbose=False)


def test_a_memory_mapped_file_stays_on_disk(tmp_path: Path) -> None:
    """80 MB of samples are trained on, evaluated and predicted with a quarter of that in memory at most."""
    shape = (100_000, 20, 10)
    file = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "float32", shape)
    file[...] = RNG.standard_normal((1, 20, 10))
    file.flush()
    del file
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    made = fl.Sequential([nn.LSTM(2), nn.Dense(1)], seed=0)
    made.compile("sgd", "mse")
    made.build((20, 10))
    y = np.zeros((len(mapped), 1), "f")
    made.fit(mapped[:64], y[:64], 1, 32, verbose=False)
    tracemalloc.start()
    try:
        made.fit(mapped, y, 1, 512, validation_split=0.1, verbose=False)
        made.evaluate(mapped, y, 512)
        made.predict(mapped, 512)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < mapped.nbytes / 4, f"{peak:,} bytes at most at once, of {mapped.nbytes:,}"


# ------------------------------------------------------------------------------------ metrics of logits
def test_metrics_by_name_take_logits_where_the_loss_does() -> None:
    of_logits = model("cross_entropy", 2, None, ["perplexity", "accuracy"])
    of_probabilities = model("sparse_categorical_crossentropy", 2, "softmax", ["perplexity", "accuracy"])
    found, expected = (one.evaluate(X, LABELS) for one in (of_logits, of_probabilities))
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]), rel=1e-6)
    assert found == pytest.approx(expected, rel=1e-5)
    binary = [
        model(loss, 1, activation, ["accuracy", "f1"])
        for loss, activation in (("bce_with_logits", None), ("binary_crossentropy", "sigmoid"))
    ]
    logits, probabilities = (one.evaluate(X, LABELS[:, None]) for one in binary)
    assert logits == pytest.approx(probabilities, rel=1e-5)


# ------------------------------------------------------------------------------------ bad input
IDS = RNG.integers(1, 9, (96, 4))
BAD_IDS = IDS.copy()
BAD_IDS[90, 1] = 9
NEGATIVE = np.ones(96)
NEGATIVE[95] = -1


def words() -> Any:
    made = fl.Sequential([nn.Embedding(9, 4), nn.LSTM(5), nn.Dense(2, "softmax")], seed=0)
    made.compile("adam", "sparse_categorical_crossentropy")
    made.build((4,))
    return made


BAD: dict[str, tuple[Any, Any, str]] = {
    "a late token id": (words, lambda m: m.fit(BAD_IDS, LABELS), "between 0 and input_dim - 1 = 8, got 1 to 9"),
    "a late id of a list": (words, lambda m: m.fit(list(BAD_IDS), LABELS), "between 0 and input_dim - 1 = 8"),
    "an id of the validation": (
        words,
        lambda m: m.fit(IDS, LABELS, validation_data=(BAD_IDS, LABELS)),
        "between 0 and input_dim - 1 = 8",
    ),
    "a late negative weight": (model, lambda m: m.fit(X, LABELS, sample_weight=NEGATIVE), "must be at least 0, got -1"),
    "weights of a wrong shape": (
        model,
        lambda m: m.fit(X, LABELS, sample_weight=np.ones((96, 5))),
        r"sample_weight has shape \(96, 5\), expected \(96,\) or \(96, T\)",
    ),
    "a validation that there is not": (
        model,
        lambda m: m.fit(X, LABELS, callbacks=[EarlyStopping()]),
        "EarlyStopping watches val_loss, and there is no validation: give validation_data",
    ),
    "no callback": (model, lambda m: m.fit(X, LABELS, callbacks=[3]), "must be objects of .*Callback, got 3"),
    "an option of the optimiser": (
        model,
        lambda m: m.compile({"name": "adam", "lrate": 1}, "mse"),
        "optimizer 'adam' has no option 'lrate'; its options are lr, betas",
    ),
    "labels of the validation": (
        model,
        lambda m: m.fit(X, LABELS, validation_data=(X, LABELS + 1)),
        "targets must lie between 0 and 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_changes(name: str) -> None:
    make, call, told = BAD[name]
    made = make()
    before = made.state_dict()
    with pytest.raises((TypeError, ValueError), match=told):
        call(made)
    assert all(np.array_equal(before[n], p) for n, p in made.state_dict().items())


def test_a_loss_curve_that_cannot_be_drawn_is_refused_before_the_training(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="its ending must be one of"):
        LossCurve(tmp_path / "curve.xyz")
    with pytest.raises(OSError, match="there is no folder"):
        LossCurve(tmp_path / "nowhere" / "curve.png")
    model().fit(X, LABELS, 2, callbacks=[LossCurve(tmp_path / "curve.png")], verbose=False)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_single_callback_and_one_that_needs_no_validation() -> None:
    seen = []

    class Count(Callback):
        def on_epoch_end(self, loop: Any) -> None:
            seen.append(loop.epochs)

    model().fit(X, LABELS, 2, callbacks=Count(), verbose=False)
    assert seen == [1, 2]
    model().fit(X, LABELS, callbacks=[LearningRate(lambda o: fl.StepLR(o, step_size=1))], verbose=False)


# ------------------------------------------------------------------------------------ files
def test_every_changed_byte_and_every_shorter_file_is_noticed(tmp_path: Path) -> None:
    made = model()
    made.save(tmp_path / "good")
    good, bad = (tmp_path / "good").read_bytes(), tmp_path / "bad"
    for end in range(0, len(good), 37):
        bad.write_bytes(good[:end])
        with pytest.raises(fl.files.FileError):
            fl.load(bad)
    for at in range(0, len(good), 5):
        bad.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 7]) + good[at + 1 :])
        with pytest.raises(fl.files.FileError):
            fl.load(bad)
            pytest.fail(f"byte {at} of {len(good)} was changed: {good[at - 20 : at + 20]!r}")
    bad.write_bytes(good + b"\0")
    with pytest.raises(fl.files.FileError):
        fl.load(bad)


def test_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    made = model()
    made.save(tmp_path / "new")
    arrays, config = fl.files.load(tmp_path / "new")
    assert isinstance(config.pop("crc32"), int)
    config.pop("steps")  # neither had files their steps then
    fl.files.save(tmp_path / "old", arrays, config)
    np.testing.assert_array_equal(fl.load(tmp_path / "old")(X), made(X))


def test_a_width_beyond_the_arrays_takes_no_memory(tmp_path: Path) -> None:
    made = model()
    made.save(tmp_path / "f")
    arrays, config = fl.files.load(tmp_path / "f")
    text = json.dumps(config)
    assert '"built for": [6, 3]' in text
    fl.files.save(tmp_path / "bad", arrays, json.loads(text.replace("[6, 3]", "[6, 999999999]")))
    with pytest.raises(fl.files.FileError, match="built for 999999999"):
        fl.load(tmp_path / "bad")


def test_a_model_without_parameters_is_not_saved(tmp_path: Path) -> None:
    for layer in (fl.Sequential([nn.LSTM(3)]), nn.LSTM(3)):
        with pytest.raises(ValueError, match="has no parameters to save yet"):
            layer.save(tmp_path / "f")
    assert not (tmp_path / "f").exists()


SAVING = """
import os, signal, sys
import numpy as np
import fastlstm as fl
from fastlstm import nn

model = fl.Sequential([nn.LSTM(5), nn.Dense(2, "softmax")], seed=1)
model.build((6, 3))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_kill_during_a_save_leaves_the_last_good_file(moment: str, tmp_path: Path) -> None:
    made = model()
    made.save(tmp_path / "m")
    script = SAVING + textwrap.dedent(f"""
        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)
        if {moment!r} == "write":
            from fastlstm import files
            fdopen = os.fdopen
            def half(handle, mode):
                file = fdopen(handle, mode)
                class Half:
                    __enter__ = lambda self: self
                    __exit__ = lambda self, *_: file.close()
                    fileno = file.fileno
                    def write(self, data):
                        file.write(data[: len(data) // 2]); file.flush(); die()
                return Half()
            os.fdopen = half
        else:
            os.{moment if moment != "write" else "replace"} = die
        model.save(sys.argv[1])
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "m")])
    assert done.returncode == -signal.SIGKILL
    np.testing.assert_array_equal(fl.load(tmp_path / "m")(X), made(X))


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_leaves_the_last_good_file_and_no_other(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk's: a write fails in its middle."""
    made = model()
    made.save(tmp_path / "m")
    script = SAVING + textwrap.dedent("""
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        try:
            model.save(sys.argv[1])
        except OSError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "m")], capture_output=True, text=True)
    assert "cannot be written: File too large" in done.stdout and str(tmp_path / "m") in done.stdout, done.stderr
    np.testing.assert_array_equal(fl.load(tmp_path / "m")(X), made(X))
    assert [one.name for one in tmp_path.iterdir()] == ["m"]


def test_the_best_model_is_that_of_the_best_epoch(tmp_path: Path) -> None:
    noise = RNG.permutation(LABELS)
    made = model()
    history = made.fit(
        X, LABELS, 25, validation_data=(X, noise), callbacks=[BestModel(tmp_path / "best")], verbose=False
    )
    best = int(np.argmin(history["val_loss"]))
    assert best < 24
    again = model()
    again.fit(X, LABELS, best + 1, verbose=False)
    np.testing.assert_array_equal(fl.load(tmp_path / "best")(X), again(X))


# ------------------------------------------------------------------------------------ summary
def test_summary_says_what_keras_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    theirs = keras.Sequential(
        [
            keras.Input((60,)),
            keras.layers.Embedding(500, 8),
            keras.layers.Bidirectional(keras.layers.GRU(6, return_sequences=True)),
            keras.layers.LSTM(7),
            keras.layers.Dense(3),
        ]
    )
    ours = fl.Sequential(
        [nn.Embedding(500, 8), nn.Bidirectional(nn.GRU(6, return_sequences=True)), nn.LSTM(7), nn.Dense(3)]
    )
    lines = ours.summary((60,)).splitlines()
    for line, layer in zip(lines[2:6], theirs.layers, strict=True):
        assert line.split("  ")[-1].strip() == f"{layer.count_params():,}"
        assert str(tuple(layer.output.shape)) in line
    assert lines[-1].startswith(f"{theirs.count_params():,} parameters")
