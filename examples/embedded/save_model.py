"""Save a model, and frames of input, for the programs in C, C++, Rust and Go beside this file.

    python save_model.py [FOLDER]

Writes model.safetensors and frames.f32: rows of float32 numbers, as a microphone's features would come. Then, in C:

    cc c/stream.c -o stream $(fastlstm info --cflags --libs)
    ./stream model.safetensors < frames.f32
"""

import sys
from pathlib import Path

import numpy as np

from fastlstm import nn

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
model = nn.Sequential(nn.LSTM(40, 64, seed=0), nn.LSTM(64, 64, seed=1), nn.Dense(64, 3, activation="sigmoid", seed=2))
model.save(folder / "model.safetensors")
frames = np.random.default_rng(2).standard_normal((100, 40)).astype(np.float32)
frames.tofile(folder / "frames.f32")
print(f"{folder / 'model.safetensors'}, {folder / 'frames.f32'}: {len(frames)} frames of {frames.shape[1]} numbers")
