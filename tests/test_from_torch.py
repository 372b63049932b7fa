"""Layers from PyTorch's modules, state_dicts and files, and back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
from hostile import storage, tensor, torch_zip, whole

import fastlstm as fl

I, H, T, B = 3, 5, 4, 2  # noqa: E741

MODULES = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("LSTM", {"proj_size": 2, "num_layers": 2, "bidirectional": True}),
    ("LSTM", {"bias": False}),
    ("LSTM", {"num_layers": 2, "dropout": 0.5}),
    ("GRU", {"num_layers": 2}),
    ("GRU", {"bidirectional": True, "bias": False}),
    ("RNN", {"nonlinearity": "relu"}),
    ("RNN", {"bidirectional": True, "num_layers": 2}),
    ("LSTMCell", {}),
    ("LSTMCell", {"bias": False}),
    ("GRUCell", {}),
    ("RNNCell", {"nonlinearity": "relu"}),
]


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def close(ours: Any, torchs: Any) -> None:
    if isinstance(torchs, tuple):
        for mine, theirs in zip(ours, torchs, strict=True):
            close(mine, theirs)
    else:
        assert np.allclose(ours, torchs.detach().numpy(), atol=1e-6)


def same_parameters(ours: Any, torchs: Any) -> None:
    mine, theirs = ours.state_dict(), {name: p.numpy() for name, p in torchs.state_dict().items()}
    assert list(mine) == list(theirs) or mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype and mine[name].tobytes() == theirs[name].tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "options"), MODULES, ids=lambda one: str(one))
def test_a_module_there_and_back(torch: Any, name: str, options: dict[str, Any], dtype: str) -> None:
    module = getattr(torch.nn, name)(I, H, **options, dtype=getattr(torch, dtype)).eval()
    layer = fl.from_torch(module).eval()
    assert type(layer).__name__ == name and layer.dtype == dtype
    same_parameters(layer, module)
    x = torch.randn(*(B, I) if name.endswith("Cell") else (T, B, I), dtype=getattr(torch, dtype))
    close(layer(x.numpy()), module(x))
    back = layer.to_torch()
    assert repr(back) == repr(module) and not back.training
    same_parameters(layer, back)
    assert torch.equal(
        torch.cat([p.ravel() for p in back.parameters()]), torch.cat([p.ravel() for p in module.parameters()])
    )


def test_a_layer_with_one_bias_becomes_a_module_with_two(torch: Any) -> None:
    layer = fl.LSTM(I, H, 2, bidirectional=True, single_bias=True, seed=0)
    module, x = layer.to_torch(), torch.randn(T, B, I)
    close(layer(x.numpy()), module(x))
    for end in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        assert getattr(module, f"bias_hh{end}").detach().numpy().tobytes() == bytes(16 * H)
        assert np.array_equal(getattr(module, f"bias_ih{end}").detach().numpy(), layer.state_dict()[f"bias_ih{end}"])


@pytest.mark.parametrize("form", ["zip", "stream", "whole", "safetensors", "state_dict", "live"])
def test_every_source_gives_the_same_layer(torch: Any, form: str, tmp_path: Path) -> None:
    model = torch.nn.ModuleDict(
        {
            "decoder": torch.nn.ModuleDict({"lstm": torch.nn.LSTM(I, H, 2, batch_first=True)}),
            "other": torch.nn.GRU(I, H),
        }
    )
    path = tmp_path / "file"
    source: Any = path
    if form == "safetensors":
        import safetensors.torch

        safetensors.torch.save_file(model.state_dict(), path)
    elif form in ("state_dict", "live"):
        source = model.state_dict() if form == "state_dict" else model
    else:
        torch.save(
            model if form == "whole" else model.state_dict(), path, _use_new_zipfile_serialization=form != "stream"
        )
    for prefix in ("decoder.lstm.", "decoder.lstm"):
        layer = fl.from_torch(source, prefix, seed=1)
        same_parameters(layer, model["decoder"]["lstm"])
        assert layer.batch_first is (form in ("whole", "live")), "a module's own options are kept"
    assert fl.from_torch(source, "decoder.lstm", batch_first=True).batch_first
    message = (
        r"a prefix is needed; give prefix= one of these:\n  'decoder\.lstm\.': LSTM, input_size=3, hidden_size=5, "
    )
    with pytest.raises(ValueError, match=message + r"num_layers=2, bias=True\n  'other\.': GRU, input_size=3"):
        fl.from_torch(source)
    with pytest.raises(ValueError, match=r"no recurrent layer with the prefix 'encoder'; give prefix= one of these"):
        fl.from_torch(source, "encoder")


def test_half_and_bfloat16_are_widened(torch: Any, tmp_path: Path) -> None:
    for dtype in (torch.half, torch.bfloat16):
        module = torch.nn.LSTM(I, H).to(dtype)
        torch.save(module.state_dict(), tmp_path / "file.pt")
        for source in (module, tmp_path / "file.pt"):
            same_parameters(fl.from_torch(source), module.float())
            module.to(dtype)


def test_an_rnn_needs_its_nonlinearity(torch: Any) -> None:
    module = torch.nn.RNN(I, H, nonlinearity="relu")
    with pytest.raises(ValueError, match="do not say its nonlinearity: give nonlinearity='tanh' or"):
        fl.from_torch(module.state_dict())
    x = torch.randn(T, B, I)
    close(fl.from_torch(module.state_dict(), nonlinearity="relu")(x.numpy()), module(x))
    with pytest.raises(ValueError, match="nonlinearity='tanh' is given, and the module has 'relu'"):
        fl.from_torch(module, nonlinearity="tanh")


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: fl.LSTM(I, H, peepholes=True), r"PyTorch has no module for LSTM\(3, 5, peepholes=True\)"),
        (lambda: fl.GRU(I, H, reset_after=False), "no reset_after=False"),
        (lambda: fl.LSTM(I, H, activations=("hard_sigmoid", "tanh", "tanh")), "no activations but tanh and sigmoid"),
        (lambda: fl.RNN(I, H, nonlinearity="softsign"), "RNN: tanh or relu"),
    ],
)
def test_what_torch_has_not_is_refused(torch: Any, layer: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        layer().to_torch()


def lstm(**changed: Any) -> dict[str, Any]:
    return {**fl.LSTM(I, H, 2, bidirectional=True, seed=0).state_dict(), **changed}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in lstm().items() if key != name}


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({}, "holds no recurrent layer"),
        ({"linear.weight": np.zeros((2, 2))}, "holds no recurrent layer"),
        (without("weight_ih_l0"), "weight_ih_l0 or weight_hh_l0 is missing"),
        (without("bias_hh_l1_reverse"), "bias_hh_l1_reverse is missing"),
        (lstm(weight_hh_l1=np.zeros((20, 6))), r"weight_hh_l1 has shape \(20, 6\), expected \(20, 5\)"),
        (lstm(weight_hh_l0=np.zeros((7, 5))), r"weight_hh_l0 has shape \(7, 5\), which is that of no LSTM, GRU or RNN"),
        (lstm(weight_hh_l0=np.zeros((0, 0))), "that of no LSTM, GRU or RNN"),
        (lstm(weight_hh_l0=np.zeros(5)), "no matrix"),
        (lstm(weight_ih_l999999999=np.zeros((20, 5))), "weight_ih_l2 is missing"),
        (lstm(weight_hr_l1=np.zeros((2, 5))), "weight_hr_l1 belongs to no layer or direction"),
    ],
)
def test_arrays_that_do_not_belong_together(state: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        fl.from_torch(state)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="from_torch has no option 'hidden_size'; options: batch_first, dropout"):
        fl.from_torch(lstm(), hidden_size=3)
    with pytest.raises(TypeError, match="takes a PyTorch module, a state_dict or the path of a file, got int"):
        fl.from_torch(3)
    with pytest.raises(TypeError, match="nonlinearity is an option of RNN"):
        fl.from_torch(lstm(), nonlinearity="tanh")
    with pytest.raises(TypeError, match="batch_first is an option of layers"):
        fl.from_torch(fl.LSTMCell(I, H).state_dict(), batch_first=True)


def test_files_are_read_without_torch(tmp_path: Path) -> None:
    shapes = {"weight_ih_l0": (20, 3), "weight_hh_l0": (20, 5), "bias_ih_l0": (20,), "bias_hh_l0": (20,)}
    state, at = {}, 0
    for name, shape in shapes.items():
        state[name] = tensor(storage("0", 200), shape, offset=at)
        at += int(np.prod(shape))
    values = np.random.default_rng(0).standard_normal(200).astype("<f4")
    path = tmp_path / "file.pt"
    path.write_bytes(torch_zip(whole({"model": state, "epoch": 3}), {"0": values.tobytes()}))
    script = (
        "import sys, fastlstm as fl; sys.modules['torch'] = None\n"
        "layer = fl.from_torch(sys.argv[1], 'model'); print(layer, layer.state_dict()['weight_ih_l0'].tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=hostile.ROOT)
    assert done.stdout.split() == ["LSTM(3,", "5)", values[:60].tobytes().hex()], done.stderr
