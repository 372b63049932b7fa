"""Save a model, and frames of input, for the programs in C, C++, Rust and Go beside this file.

    python save_model.py [FOLDER]

Writes model.safetensors and frames.f32: rows of float32 numbers, as a microphone's features would come. Then, in C:

    cc c/stream.c -o stream $(fastlstm info --cflags --libs)
    ./stream model.safetensors < frames.f32
"""

import sys
from pathlib import Path

import numpy as np

import fastlstm as fl
from fastlstm import nn

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
frames = np.random.default_rng(0).standard_normal((100, 40)).astype(np.float32)
model = fl.Sequential(
    [nn.LSTM(64, return_sequences=True), nn.GRU(64, return_sequences=True), nn.Dense(3, "sigmoid")], seed=0
)
outputs = model.predict(frames[None])  # the first input gives the layers their sizes; training would come here
model.save(folder / "model.safetensors")
frames.tofile(folder / "frames.f32")
print(f"{len(frames)} frames of {frames.shape[1]} numbers; the last outputs are {outputs[0, -1]}")
