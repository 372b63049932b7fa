"""`fastlstm convert` and `fastlstm info FILE`: models through the files of PyTorch, Keras and fastlstm."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm.cli import main
from fastlstm.cli.describe import describe
from fastlstm.convert import convert, flops, library_of
from fastlstm.files import FileError
from fastlstm.nn import Bidirectional, Dense, Embedding

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")
pytest.importorskip("h5py")
nn = fl.nn

B, T, I, H = 3, 6, 4, 5  # noqa: E741
X = np.random.default_rng(0).standard_normal((B, T, I)).astype("float32")
IDS = np.random.default_rng(1).integers(0, 20, (B, T))


def model() -> Any:
    made = fl.Sequential(
        [
            Embedding(20, I, mask_zero=True),
            Bidirectional(nn.LSTM(H, return_sequences=True)),
            nn.Dropout(0.2),
            nn.GRU(4, return_sequences=True, zero_output_for_mask=False, recurrent_activation="hard_sigmoid"),
            nn.SimpleRNN(3, activation="relu"),
            Dense(2, "softmax"),
        ],
        seed=0,
    )
    made.build((None,))
    rng = np.random.default_rng(2)
    with made.update() as params:
        for p in params.values():
            p[...] = rng.standard_normal(p.shape) * 0.4
    return made


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-6)


@pytest.mark.parametrize("end", [".keras", ".h5"])
def test_a_model_to_keras_and_back(end: str, tmp_path: Path) -> None:
    ours, there, back = model(), tmp_path / f"there{end}", tmp_path / "back.safetensors"
    ours.save(tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", there)
    assert library_of(there) == "keras" and library_of(tmp_path / "ours.safetensors") == "fastlstm"
    close(keras.models.load_model(there).predict(IDS, verbose=0), ours(IDS))
    convert(there, back)
    again = fl.load(back)
    close(again(IDS), ours(IDS))
    for name, value in ours.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], value)


@pytest.mark.parametrize("cls", [fl.LSTM, fl.GRU, fl.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_layers_to_keras(cls: Any, options: dict[str, Any], tmp_path: Path) -> None:
    layer = cls(I, H, batch_first=True, seed=0, **options)
    layer.save(tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "a.keras")
    close(keras.models.load_model(tmp_path / "a.keras").predict(X, verbose=0), layer(X)[0])


@pytest.mark.parametrize("end", [".pt", ".safetensors"])
def test_from_keras_to_torch(end: str, tmp_path: Path) -> None:
    """Keras's one bias becomes PyTorch's two, the second of zeros: the values are those of nn.LSTM."""
    layers = [keras.layers.LSTM(H, return_sequences=True), keras.layers.Dense(2)]
    made = keras.Sequential([keras.Input((T, I)), *layers])
    made.set_weights([np.random.default_rng(3).standard_normal(w.shape).astype("float32") for w in made.get_weights()])
    made.save(tmp_path / "a.keras")
    target = tmp_path / f"b{end}"
    convert(tmp_path / "a.keras", target, to="torch")
    state = torch.load(target) if end == ".pt" else __import__("safetensors.torch").torch.load_file(target)
    module = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(I, H, batch_first=True), "dense": torch.nn.Linear(H, 2)})
    module.load_state_dict(state)
    y = module["dense"](module["lstm"](torch.tensor(X))[0])
    close(y.detach(), made.predict(X, verbose=0))
    close(fl.from_torch(target, "lstm", batch_first=True)(X)[0], module["lstm"](torch.tensor(X))[0].detach())


def test_from_torch_to_our_file_and_keras(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, I), torch.nn.GRU(I, H, 2))
    torch.save(module.state_dict(), tmp_path / "a.pt")
    assert library_of(tmp_path / "a.pt") == "torch"
    pytest.importorskip("safetensors.torch").save_file(module.state_dict(), tmp_path / "s.safetensors")
    assert library_of(tmp_path / "s.safetensors") == "safetensors"
    convert(tmp_path / "s.safetensors", tmp_path / "s2.safetensors", name="1")
    assert main(["info", str(tmp_path / "s.safetensors")]) == 0
    convert(tmp_path / "a.pt", tmp_path / "b.safetensors", name="1")
    y = module[1](torch.tensor(X))[0].detach()
    close(fl.load(tmp_path / "b.safetensors")(X)[0], y)
    convert(tmp_path / "b.safetensors", tmp_path / "c.weights.h5")
    assert library_of(tmp_path / "c.weights.h5") == "keras"


def test_what_has_no_counterpart_is_named(tmp_path: Path) -> None:
    target = tmp_path / "b.keras"
    fl.LSTM(I, H, proj_size=2).save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"LSTM\(4, 5, proj_size=2\): Keras has no proj_size, peepholes"):
        convert(tmp_path / "a.safetensors", target)
    fl.LSTM(I, H, peepholes=True).save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="PyTorch has no module for LSTM"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.pt")
    backwards = nn.LSTM(H, go_backwards=True)
    backwards.build((None, I))
    backwards.save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="it has no go_backwards"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.pt")
    with pytest.raises(ValueError, match="does not say what to write"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.onnx2")
    with pytest.raises(ValueError, match=r"a file for keras has one of \.keras"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.pt", to="keras")
    assert not target.exists() and not (tmp_path / "b.pt").exists()


def test_flops_are_counted_by_hand() -> None:
    assert flops(fl.LSTM(I, H)) == 2 * 4 * H * (I + H)
    assert flops(fl.LSTM(I, H, proj_size=2)) == 2 * (4 * H * (I + 2) + H * 2)
    assert flops(fl.GRU(I, H, 2, bidirectional=True)) == 2 * 2 * 3 * H * (I + H + 2 * H + H)
    lstm, gru, rnn = 2 * 2 * 4 * H * (I + H), 2 * 3 * 4 * (2 * H + 4), 2 * 3 * (4 + 3)
    assert flops(model()) == lstm + gru + rnn + 2 * 3 * 2


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, source = model(), str(tmp_path / "a.safetensors")
    ours.save(source)
    there = str(tmp_path / "a.keras")
    assert main(["convert", source, there, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    count = sum(p.size for p in ours.state_dict().values())
    assert said["count"] == count and said["flops"] == flops(ours)
    assert main(["convert", source, there]) == 2
    assert "exists: --force replaces it" in capsys.readouterr().err
    for path in (source, there):
        assert main(["info", path, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["FLOPs a step"] == flops(ours) and said["count"] == count
    assert main(["info", there]) == 0
    out = capsys.readouterr().out
    assert "Keras 3" in out and "Embedding" in out and f"{count:,}" in out
    torch.save(torch.nn.LSTM(I, H).state_dict(), tmp_path / "t.pt")
    assert main(["info", str(tmp_path / "t.pt")]) == 0
    out = capsys.readouterr().out
    assert "PyTorch" in out and "LSTM(4, 5)" in out and "20 x 4" in out
    (tmp_path / "bad.pt").write_bytes(b"PK\x03\x04 nothing")
    assert main(["info", str(tmp_path / "bad.pt")]) == 2
    assert main(["convert", str(tmp_path / "bad.pt"), str(tmp_path / "x.safetensors")]) == 2


# ----------------------------------------------------------------------------------------------------------------- ONNX
def test_onnx_files_are_written_and_read(tmp_path: Path) -> None:
    layer = fl.GRU(3, 4, bidirectional=True, seed=1)
    layer.save(tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "a.onnx")
    assert library_of(tmp_path / "a.onnx") == "onnx"
    (tmp_path / "a.onnx").rename(tmp_path / "renamed")
    assert library_of(tmp_path / "renamed") == "onnx"  # by its content
    back = convert(tmp_path / "renamed", tmp_path / "b.safetensors")
    x = np.random.default_rng(0).standard_normal((5, 2, 3), np.float32)
    for mine, right in zip(fl.load(tmp_path / "b.safetensors")(x), layer(x), strict=True):
        np.testing.assert_array_equal(mine, right)
    assert back.bidirectional


def test_a_node_of_an_onnx_file_is_chosen_by_name(tmp_path: Path) -> None:
    fl.LSTM(3, 4, 2, seed=1).to_onnx(tmp_path / "two.onnx")
    with pytest.raises(ValueError, match="several recurrent nodes; give name="):
        convert(tmp_path / "two.onnx", tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()
    names = list(describe(tmp_path / "two.onnx").facts["recurrent nodes"])
    assert len(names) == 2
    convert(tmp_path / "two.onnx", tmp_path / "a.safetensors", name=names[1])
    assert fl.load(tmp_path / "a.safetensors").input_size == 4


def test_what_onnx_has_not_is_refused(tmp_path: Path) -> None:
    fl.Dense(3, 2).save(tmp_path / "dense.safetensors")
    with pytest.raises(ValueError, match="no ONNX model can be made of Dense"):
        convert(tmp_path / "dense.safetensors", tmp_path / "dense.onnx")
    assert not (tmp_path / "dense.onnx").exists()
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(FileError, match=r"text\.onnx cannot be read"):
        convert(tmp_path / "text.onnx", tmp_path / "a.safetensors")


def test_an_onnx_file_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fl.LSTM(3, 4, seed=1).to_onnx(tmp_path / "a.onnx", stateful=True)
    assert main(["info", str(tmp_path / "a.onnx")]) == 0
    shown = capsys.readouterr().out
    for part in ("ONNX, opset 17, by fastlstm", "inputs: x tensor(float) (", "recurrent nodes:", "LSTM(3, 4"):
        assert part in shown
    assert f"{4 * 4 * (3 + 4) + 2 * 4 * 4:,}" in shown
    assert main(["info", str(tmp_path / "a.onnx"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["recurrent nodes"].values()) == ["LSTM"] and figures["kind"].startswith("ONNX")
