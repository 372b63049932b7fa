"""Keras's files, read without Keras: layers, weights, layouts, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
from hostile import keras_2, keras_2_layers, keras_archive, keras_layer, keras_model, keras_weights

import fastlstm as fl
from fastlstm._readers import hdf5, hdf5_process
from fastlstm._readers.keras_files import KerasFile, KerasLayer, load
from fastlstm._readers.keras_layers import meaning, plain_weights
from fastlstm.files import FileError

h5py = pytest.importorskip("h5py")

LSTM_WEIGHTS = hostile._weights(*hostile.LSTM_SHAPES)


def read(data: bytes, folder: Path) -> KerasFile:
    path = folder / "file.keras"
    path.write_bytes(data)
    return load(path)


def refused(data: bytes, folder: Path, why: str) -> None:
    with pytest.raises(FileError, match=why):
        read(data, folder)


def check_model(found: KerasFile) -> None:
    """Check that a file holds `hostile.keras_model` with its weights."""
    both, stack, head = found.model.layers
    assert [layer.class_name for layer in (both, stack, head)] == ["Bidirectional", "RNN", "Sequential"]
    assert [(one.name, one.class_name) for one in both.layers] == [("inner", "LSTM"), ("backward_inner", "LSTM")]
    for one, backwards in zip(both.layers, (False, True), strict=True):
        assert list(one.roles) == ["kernel", "recurrent_kernel", "bias"]
        assert all(np.array_equal(a, b) for a, b in zip(one.weights, LSTM_WEIGHTS, strict=True))
        assert one.config.get("go_backwards", False) is backwards
    assert [(one.name, [w.shape for w in one.weights]) for one in stack.layers] == [
        ("a", [(6, 9), (3, 9), (2, 9)]),
        ("b", [(3, 12), (3, 12), (12,)]),
    ]
    dense = found.find("dense")
    assert [w.shape for w in dense.weights] == [(3, 1), (1,)] and dense.config == {"name": "dense", "units": 1}


# -------------------------------------------------------------------------------------------------------------- values
def test_the_archive_of_keras_3(tmp_path: Path) -> None:
    found = read(keras_archive(keras_model(), keras_weights()), tmp_path)
    check_model(found)
    assert found.version == "3.1.0"


def test_the_older_file_of_a_whole_model(tmp_path: Path) -> None:
    found = read(keras_2(keras_2_layers(), keras_model()), tmp_path)
    check_model(found)
    assert found.version == "2.4.0"


def test_files_of_weights_alone(tmp_path: Path) -> None:
    found = read(keras_weights(), tmp_path).model
    assert [layer.name for layer in found.layers] == ["bidirectional", "rnn", "sequential"]
    assert [one.name for one in found.layers[0].layers] == ["forward_layer", "backward_layer"]
    assert all(np.array_equal(a, b) for a, b in zip(found.layers[0].layers[1].weights, LSTM_WEIGHTS, strict=True))
    found = read(keras_2(keras_2_layers()), tmp_path).model
    assert [(layer.name, len(layer.weights)) for layer in found.layers] == [("both", 6), ("stack", 6), ("head", 2)]


def test_long_lists_of_names_are_in_several_attributes(tmp_path: Path) -> None:
    layers = {f"layer_{i}": {"kernel:0": np.full((1, 1), i, "f4")} for i in range(30)}
    with h5py.File(tmp_path / "file.h5", "w") as file:
        for i, (layer, arrays) in enumerate(layers.items()):
            file.create_group(layer)["kernel:0"] = arrays["kernel:0"]
            file[layer].attrs["weight_names"] = ["kernel:0"]
            if i % 10 == 0:
                file.attrs[f"layer_names{i // 10}"] = list(layers)[i : i + 10]
        file.attrs["keras_version"] = "2.4.0"
    found = load(tmp_path / "file.h5").model.layers
    assert [layer.weights[0][0, 0] for layer in found] == list(range(30))


def test_frozen_layers_of_inner_models_go_by_name(tmp_path: Path) -> None:
    """Keras lists the weights of a model that cannot be trained last, in whatever layer they are."""
    layers = [keras_layer("Dense", name=name, units=1) for name in ("first", "second")]
    model = keras_layer("Sequential", name="m", layers=[keras_layer("Sequential", name="in", layers=layers)])
    kernels = {f"{name}/kernel:0": np.full((1, 1), i, "f4") for i, name in enumerate(("second", "first"))}
    found = read(keras_2({"in": kernels}, model), tmp_path)
    assert found.find("second").weights[0] == 0 and found.find("first").weights[0] == 1


def test_half_and_bfloat16(tmp_path: Path) -> None:
    path = tmp_path / "file.weights.h5"
    with h5py.File(path, "w") as file:
        room = file.create_group("layers/lstm/cell/vars")
        room["0"] = np.array([[1.5]], np.float16)
        bits = np.array([0x3F80, 0x4000, 0x3FC0], np.uint16)
        room.create_dataset("1", (3,), h5py.h5t.py_create(np.dtype("V2")), data=bits.view("V2"))
        room["1"].attrs["dtype"] = "bfloat16"
    half, brain = load(path).model.layers[0].weights
    assert half.dtype == np.float16 and half[0, 0] == 1.5
    assert brain.dtype == np.float32 and brain.tolist() == [1, 2, 1.5]


def test_a_layer_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    found = read(keras_archive(keras_model(), keras_weights()), tmp_path)
    with pytest.raises(KeyError, match=r"there are 0 layers named 'lstm'; those with weights: .*'both', 'inner'"):
        found.find("lstm")


# -------------------------------------------------------------------------------------------------- layouts and options
@pytest.mark.parametrize(("class_name", "gates"), [("CuDNNLSTM", 4), ("CuDNNGRU", 3)])
def test_cudnn_layouts(class_name: str, gates: int) -> None:
    """cuDNN has a matrix (H, I) for each gate, in order of rows, which Keras keeps in arrays of the shape (I, H)."""
    rng, I, H = np.random.default_rng(0), 2, 3  # noqa: E741
    W, R = (rng.standard_normal((gates, H, width)) for width in (I, H))
    biases = rng.standard_normal((2, gates * H))
    kept = [np.hstack([w.ravel().reshape(I, H) for w in W]), np.hstack(list(R)), biases.ravel()]
    kernel, recurrent, bias = plain_weights(KerasLayer("x", class_name, {}, kept))
    assert np.array_equal(kernel, np.hstack([w.T for w in W])) and np.array_equal(
        recurrent, np.hstack([r.T for r in R])
    )
    assert np.array_equal(bias, biases if class_name == "CuDNNGRU" else biases.sum(axis=0))
    same = plain_weights(KerasLayer("x", class_name.removeprefix("CuDNN"), {}, [kernel, recurrent, bias]))
    assert all(a is b for a, b in zip(same, (kernel, recurrent, bias), strict=True))


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layer 'x': a bias of shape \(5,\), expected one of \[\(12,\)\]"):
        plain_weights(KerasLayer("x", "LSTM", {}, [*LSTM_WEIGHTS[:2], np.zeros(5)]))
    with pytest.raises(ValueError, match=r"layer 'x': a kernel of shape \(2, 12\) and a recurrent kernel of shape"):
        plain_weights(KerasLayer("x", "GRU", {}, LSTM_WEIGHTS))
    with pytest.raises(ValueError, match=r"layer 'x' \(Dense\) is no LSTM, GRU or SimpleRNN"):
        plain_weights(KerasLayer("x", "Dense", {}, LSTM_WEIGHTS[:2]))
    assert plain_weights(KerasLayer("x", "", {}, LSTM_WEIGHTS))[0] is LSTM_WEIGHTS[0], "the kind of a bare layer"


def test_hard_sigmoid_is_that_of_its_version() -> None:
    layer = KerasLayer("x", "LSTM", dict(hostile.LSTM_OPTIONS, go_backwards=True, dropout=0.5))
    assert meaning(layer, "2.4.0").activations == ("hard_sigmoid_keras2", "tanh", "tanh")
    found = meaning(layer, "3.1.0")
    assert found.activations == ("hard_sigmoid", "tanh", "tanh") and found.hidden_size == 3
    assert found.go_backwards and found.bias and not found.return_sequences and found.dropout == 0.5


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"activation": "gelu"},
            "layer 'x' has the activation 'gelu', which has no counterpart here; these have: linear",
        ),
        ({"time_major": True}, "layer 'x' has time_major=True, which has no counterpart here"),
        ({"units": -1}, "layer 'x' has units=-1"),
        ({"use_bias": "yes"}, "layer 'x' has use_bias='yes'"),
    ],
)
def test_options_without_counterpart_are_named(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        meaning(KerasLayer("x", "LSTM", {**hostile.LSTM_OPTIONS, **change}), "3.1.0")
    with pytest.raises(ValueError, match="comes from a file of weights alone"):
        meaning(KerasLayer("x", "LSTM", {}), "3.1.0")


# -------------------------------------------------------------------------------------------------- what Keras writes
@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras")


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
def test_what_keras_saves(keras: Any, suffix: str, tmp_path: Path) -> None:
    L = keras.layers
    inner = keras.Sequential([keras.Input((5, 8)), L.GRU(4, return_sequences=True, name="deep")], name="inner")
    x = keras.Input((5, 3))
    y = L.Bidirectional(L.LSTM(4, return_sequences=True, activation="relu"), name="both")(x)
    y = L.RNN(L.StackedRNNCells([L.GRUCell(3), L.LSTMCell(2)]), return_sequences=True, name="stack")(inner(y))
    y = L.SimpleRNN(2, use_bias=False, name="plain")(L.TimeDistributed(L.Dense(3), name="each")(y))
    model = keras.Model(x, y)
    path = tmp_path / f"file{suffix}"
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    found = load(path)
    assert found.version == ("" if suffix == ".weights.h5" else keras.__version__)
    for layer in model.layers:
        weights = [np.asarray(w) for w in layer.get_weights()]
        if weights:
            ours = [w for part in found.find(layer.name).walk() for w in part.weights]
            assert len(ours) == len(weights) and all(np.array_equal(a, b) for a, b in zip(ours, weights, strict=True))
    if suffix != ".weights.h5":
        assert meaning(found.find("both").layers[0], found.version).activations == ("sigmoid", "relu", "relu")
        assert found.find("deep").config["reset_after"] is True


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
def test_a_layer_of_a_file_gives_keras_results(keras: Any, kind: str, gate: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {} if kind == "SimpleRNN" else {"recurrent_activation": gate}
    layer = getattr(keras.layers, kind)(
        4, return_sequences=True, name="it", bias_initializer="random_normal", **options
    )
    model = keras.Sequential([keras.Input((5, 3)), layer])
    model.save(tmp_path / "file.keras")
    found = load(tmp_path / "file.keras")
    read = found.find("it")
    its = meaning(read, found.version)
    arrays = dict(zip(("kernel", "recurrent_kernel", "bias"), plain_weights(read), strict=True))
    same = fl.from_arrays(arrays, its.kind)
    if kind != "SimpleRNN":
        ours = {"LSTM": fl.LSTM, "GRU": fl.GRU}[kind](3, 4, activations=its.activations, single_bias=kind == "LSTM")
        ours.load_state_dict(same.state_dict())
        same = ours
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    y, _ = same(x.transpose(1, 0, 2))
    assert np.allclose(y.transpose(1, 0, 2), np.asarray(model.predict(x, verbose=0)), atol=2e-6)


# ------------------------------------------------------------------------------------------------------------- refused
def h5(folder: Path, change: Any) -> Path:
    """A file of weights alone, changed."""
    path = folder / "file.h5"
    path.write_bytes(keras_weights())
    with h5py.File(path, "a") as file:
        change(file, file["layers/rnn/cell/cells/gru_cell/vars"])
    return path


def external(file: Any, room: Any) -> None:
    del room["0"]
    room.create_dataset("0", (6, 9), "f4", external=[("/etc/passwd", 0, 216)])


def virtual(file: Any, room: Any) -> None:
    del room["0"]
    layout = h5py.VirtualLayout((6, 9), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (6, 9))
    room.create_virtual_dataset("0", layout)


def replaced(**options: Any) -> Any:
    def change(file: Any, room: Any) -> None:
        del room["0"]
        room.create_dataset("0", **options)

    return change


def linked(link: Any) -> Any:
    def change(file: Any, room: Any) -> None:
        room["link"] = link

    return change


def cycle(file: Any, room: Any) -> None:
    room["again"] = file["layers"]


def chain(file: Any, room: Any) -> None:
    for _ in range(100):
        room = room.create_group("x")


def many_names(file: Any, room: Any) -> None:
    room["0"][...] = 0
    big = file.create_dataset("layers/big/vars/0", data=np.zeros(1 << 20))
    for i in range(8):
        file[f"layers/big/vars/{i + 1}"] = big


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (external, "its array '0': its values lie in another file"),
        (virtual, "its array '0': its values lie in another file"),
        (
            replaced(shape=(1 << 20, 1 << 20), dtype="f4"),
            r"'0': it has the shape \(1048576, 1048576\) and only 0 bytes",
        ),
        (replaced(shape=(1 << 20, 1 << 20), dtype="f4", chunks=(64, 64)), "and only 0 bytes in the file"),
        (replaced(data=np.zeros((600, 900)), compression="gzip"), "'0': it is compressed or filtered.*h5repack"),
        (replaced(data=["text"]), "'0': it holds object; numbers alone are read"),
        (replaced(data=np.zeros(2, "V2")), "'0': it holds bytes of an unknown meaning"),
        (linked(h5py.SoftLink("/layers")), "its 'link' is a link to another place or file"),
        (linked(h5py.SoftLink("link")), "its 'link' is a link to another place or file"),
        (linked(h5py.ExternalLink("/etc/passwd", "/")), "its 'link' is a link to another place or file"),
        (cycle, "its groups are nested more than 64 deep, or contain themselves"),
        (chain, "its groups are nested more than 64 deep"),
        (many_names, "take more than 4 times its own bytes"),
    ],
)
def test_what_hdf5_allows_and_is_refused(change: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=why):
        load(h5(tmp_path, change))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("[" * 100_000, "damaged"),
        ("{}", "a layer without a class"),
        (b"\xff\xfe", "damaged"),
        (json.dumps([]), "is no JSON object"),
        (json.dumps(keras_layer("LSTM", name=3)), "a name that is no text"),
        (json.dumps({"class_name": "Sequential", "config": "x"}), "has no arguments"),
        (json.dumps(keras_layer("Sequential", layers=3)), "no list of layers"),
        (
            json.dumps(keras_layer("Bidirectional", layer=keras_layer("RNN", cell=keras_layer("LSTMCell")))),
            "stacked cells",
        ),
    ],
)
def test_damaged_configurations_are_refused(config: Any, why: str, tmp_path: Path) -> None:
    refused(keras_archive(config, keras_weights()), tmp_path, why)


def test_deep_layers_are_refused(tmp_path: Path) -> None:
    layer = keras_layer("Dense", name="x")
    for _ in range(50):
        layer = keras_layer("TimeDistributed", name="t", layer=layer)
    refused(keras_archive(layer, keras_weights()), tmp_path, "nested more than 32 deep")


def test_archives_that_are_bombs(tmp_path: Path) -> None:
    bomb = b'{"a": "' + b"x" * (1 << 24) + b'"}'
    refused(
        keras_archive(bomb, b"", compression=zipfile.ZIP_DEFLATED),
        tmp_path,
        "'config.json' has .* up to 16777216 are read",
    )
    refused(keras_archive(keras_model(), bytes(1 << 24), compression=zipfile.ZIP_DEFLATED), tmp_path, "is compressed")
    found = read(keras_archive(keras_model(), keras_weights()), tmp_path)
    check_model(found)


def test_other_files_are_named(tmp_path: Path) -> None:
    refused(b"", tmp_path, "damaged, cut short, or no HDF5 file")
    refused(b"hello", tmp_path, "damaged, cut short, or no HDF5 file")
    refused(hostile.torch_files()[0], tmp_path, "a zip archive, but not one of Keras: it has no config.json")
    refused(keras_2({"a": {}}, version="1.2.0"), tmp_path, "a file of Keras 1, which is not read")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(FileError, match="an HDF5 file, but not one of Keras"):
        load(tmp_path / "other.h5")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.h5")


def test_a_lambda_layer_stays_text(tmp_path: Path) -> None:
    code = {"class_name": "__lambda__", "config": {"code": "4wEAAAAAAAAA", "defaults": None, "closure": None}}
    model = keras_layer("Sequential", name="m", layers=[keras_layer("Lambda", name="f", function=code)])
    found = read(keras_archive(model, keras_weights()), tmp_path)
    assert found.find("f").config["function"] == code


# ------------------------------------------------------------------------------------------------ a process of its own
@pytest.mark.skipif(sys.platform == "win32", reason="the process's own limit of time is POSIX's")
def test_hdf5_that_never_ends_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some damaged files keep HDF5 busy for ever. Here an endless loop in the reading process takes their place."""
    looping = tmp_path / "loop.py"
    looping.write_text(
        Path(hdf5_process.__file__).read_text().replace("        Dump(path,", "        while True: pass\n        Dump(")
    )
    monkeypatch.setattr(hdf5_process, "__file__", str(looping))
    monkeypatch.setattr(hdf5, "SECONDS", 1)
    path = tmp_path / "file.h5"
    path.write_bytes(keras_weights())
    with pytest.raises(FileError, match=r"damaged: HDF5 ended with status -\d+ while it read the file"):
        load(path)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("os.abort()", r"HDF5 ended with status -?\d+"),
        ("os._exit(0)", "HDF5 gave nothing of it"),
        ("sys.stdout.buffer.write(b'x' * 100)", "too many groups"),
        ("[bytearray(1 << 28) for _ in range(40)]", "MemoryError"),
    ],
)
def test_a_crash_of_hdf5_is_an_error(line: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashing = tmp_path / "crash.py"
    crashing.write_text(
        Path(hdf5_process.__file__).read_text().replace("        Dump(path,", f"        {line}; 0 and (path,")
    )
    monkeypatch.setattr(hdf5_process, "__file__", str(crashing))
    path = tmp_path / "file.h5"
    path.write_bytes(keras_weights())
    if "bytearray" in line and sys.platform != "linux":
        pytest.skip("the limit of memory is Linux's")
    with pytest.raises(FileError, match=why):
        load(path)


def test_nothing_is_imported_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a file from the web may hold a module named like one of the standard library."""
    for module in ("json", "h5py", "re", "struct"):
        (tmp_path / f"{module}.py").write_text("open('executed', 'w').close()")
    path = tmp_path / "file.h5"
    path.write_bytes(keras_weights())
    monkeypatch.chdir(tmp_path)
    load("file.h5")
    assert not (tmp_path / "executed").exists()


def test_without_h5py_the_error_names_the_cure() -> None:
    script = "import sys; sys.modules['h5py'] = None\nfrom fastlstm._readers.keras_files import load\nload(sys.argv[1])"
    root = str(Path(fl.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", script, __file__], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True
    )
    assert "ImportError: Keras files are read with h5py" in done.stderr and "pip install fastlstm[keras]" in done.stderr
