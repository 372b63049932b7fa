"""What a service steps: our streams or, to compare with, nothing at all or ONNX Runtime."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np

import fastlstm as fl

KINDS = ("fastlstm", "echo", "ort-shared", "ort-each")


def layer_of(path: str | None) -> Any:
    """The recurrent layer of a file; without one a voice-activity front's size with random weights."""
    return fl.load(path) if path else fl.LSTM(40, 128, seed=0)


class Other:
    """Steps of a contender for one connection: a state of its own, and a session of its own or a shared one."""

    shared: Any = None

    def __init__(self, kind: str, layer: Any) -> None:
        self.kind, self.width = kind, layer.proj_size or layer.hidden_size
        if kind == "echo":
            return
        self.state = [np.zeros((layer.num_layers, 1, layer.hidden_size), np.float32) for _ in ("h_0", "c_0")]
        if kind == "ort-each":
            self.session = session_of(layer)
        else:
            Other.shared = self.session = Other.shared or session_of(layer)

    def run(self, x: np.ndarray) -> np.ndarray:
        """Outputs (rows, U) of rows (rows, I)."""
        if self.kind == "echo":
            return np.zeros((len(x), self.width), np.float32)
        y, *self.state = self.session.run(None, {"x": x[:, None], "h_0": self.state[0], "c_0": self.state[1]})
        return np.asarray(y).reshape(len(x), -1)


def session_of(layer: Any) -> Any:
    """ONNX Runtime's session of an LSTM whose states are inputs and outputs, with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "layer.onnx")
        layer.to_onnx(path, stateful=True)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
