"""Keras's LSTM on its PyTorch backend as it is and accelerated, interleaved: a batch of `fit` and of `predict`.

    KERAS_BACKEND=torch python bench/keras_layers.py

One thread, LSTM(100) on 32 inputs, 100 steps, batches of 64, as in docs/keras.md. Values are compared first.
"""

from __future__ import annotations

import os
import time
from statistics import median
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras
import numpy as np
import torch

import fastlstm as fl

ROUNDS, BATCHES = 7, 10


def model() -> Any:
    keras.utils.set_random_seed(0)
    made = keras.Sequential([keras.Input((100, 32)), keras.layers.LSTM(100), keras.layers.Dense(1)])
    made.compile("adam", "mse")
    return made


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape).astype("float32") for shape in ((64 * BATCHES, 100, 32), (64 * BATCHES, 1)))
    models = {"Keras": model(), "Keras again": model(), "accelerated": model()}
    with fl.threads(1):
        summary = fl.keras.accelerate(models["accelerated"])
        outputs = [one.predict(x, batch_size=64, verbose=0) for one in models.values()]
        np.testing.assert_allclose(outputs[2], outputs[0], atol=1e-5)
        actions = {
            "fit": lambda one: one.fit(x, y, batch_size=64, epochs=1, verbose=0, shuffle=False),
            "predict": lambda one: one.predict(x, batch_size=64, verbose=0),
        }
        for action, run in actions.items():
            times: dict[str, list[float]] = {name: [] for name in models}
            for round_ in range(ROUNDS + 1):
                for name, one in models.items():
                    begin = time.perf_counter()
                    run(one)
                    if round_:
                        times[name].append((time.perf_counter() - begin) / BATCHES * 1e3)
            of = {name: median(all_of) for name, all_of in times.items()}
            print(
                f"{action}: Keras {of['Keras']:.1f} ms a batch, again {of['Keras again']:.1f}, "
                f"accelerated {of['accelerated']:.1f}: {of['Keras'] / of['accelerated']:.2f} times"
            )
        assert summary.calls > 0
        print(summary)


if __name__ == "__main__":
    main()
