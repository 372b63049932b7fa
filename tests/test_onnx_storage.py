"""`fl.onnx.accelerate` with a reduced storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import LAYERS, assert_same_bits

import fastlstm as fl
from fastlstm import nn

pytest.importorskip("onnxruntime")
X = np.random.default_rng(0).standard_normal((7, 3, 8)).astype(np.float32)


@pytest.mark.parametrize("storage", ["int8", "float16"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_node_is_the_quantised_layer(kind: str, storage: str, tmp_path: Path) -> None:
    layer = LAYERS[kind](8, 16, bidirectional=True, seed=1)
    layer.to_onnx(tmp_path / "m.onnx")
    session = fl.onnx.accelerate(tmp_path / "m.onnx", storage=storage)
    assert not session.summary.left
    expected = layer.quantize(storage)(X)[0]
    assert_same_bits({"y": session.run(None, {"x": X})[0]}, {"y": expected})
    floats = fl.onnx.accelerate(tmp_path / "m.onnx").run(None, {"x": X})[0]
    assert 0 < np.abs(expected - floats).max() < 2e-2


def test_a_whole_model_is_near_that_of_floats(tmp_path: Path) -> None:
    modules: list[Any] = [nn.Dense(12, "relu"), nn.GRU(16, return_sequences=True), nn.LSTM(9), nn.Dense(2)]
    model = fl.Sequential(modules, seed=1)
    x = X.swapaxes(0, 1)
    model.build(x.shape[1:])
    model.to_onnx(tmp_path / "m.onnx")
    for storage, limit in (("int8", 2e-2), ("float16", 2e-4)):
        session = fl.onnx.accelerate(tmp_path / "m.onnx", storage=storage)
        off = np.abs(session.run(None, {"x": np.ascontiguousarray(x)})[0] - model(x))
        assert len(session.summary.accelerated) == 2 and 0 < off.max() < limit


def test_a_storage_that_is_not_there_is_refused(tmp_path: Path) -> None:
    fl.LSTM(3, 4).to_onnx(tmp_path / "m.onnx")
    with pytest.raises(fl.BackendError, match="knows no storage 'int3'"):
        fl.onnx.accelerate(tmp_path / "m.onnx", storage="int3", backend="c")
    with pytest.raises(fl.BackendError, match="does not keep weights as int8"):
        fl.onnx.accelerate(tmp_path / "m.onnx", storage="int8", backend="numba")
