"""Files of version 0.1.0 (tests/data, by commit b5e0fad) load with equal values, or the error says how to convert."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import TOLERANCE, assert_near

import fastlstm as fl
from fastlstm.text import CharModel

DATA = Path(__file__).parent / "data"


def layers() -> dict[str, Any]:
    loaded: dict[str, Any] = pickle.loads((DATA / "layers_0.1.0.pickle").read_bytes())
    return loaded


def test_pickled_layers_have_equal_values() -> None:
    """Every kind, with the options that have other attributes today: specs, biases, activations, generators."""
    loaded, expected = layers(), np.load(DATA / "layers_0.1.0.npz")
    x = expected["x"]
    f = x.astype(np.float32)
    got = {
        "lstm": loaded["lstm"](f)[0],
        "gru": loaded["gru"](f)[0],
        "rnn": loaded["rnn"](x)[0],
        "dense": loaded["dense"](f),
        "cell": loaded["cell"](f[0])[0],
        "dropped": loaded["lstm"].train().forward(f)[0],
    }
    for name, y in got.items():
        assert_near(y, expected[name], TOLERANCE["values"], name)
    assert not np.array_equal(got["dropped"], got["lstm"]), "dropout draws from the generator that was pickled"


def test_pickled_layers_are_layers_of_today() -> None:
    loaded = layers()
    assert repr(loaded["lstm"]) == (
        "LSTM(3, 4, num_layers=2, dropout=0.25, bidirectional=True, proj_size=2, peepholes=True, "
        "activations=('sigmoid', 'tanh', ('leaky_relu', 0.2, 0.0)))"
    )
    assert repr(loaded["gru"]) == "GRU(3, 4, bias=False, batch_first=True, reset_after=False)"
    assert repr(loaded["rnn"]) == "RNN(3, 4, nonlinearity='relu', dtype='float64')"
    assert repr(loaded["cell"]) == "LSTMCell(3, 4)" and type(loaded["cell"]) is fl.LSTMCell
    assert loaded["lstm"].version == 1 and loaded["lstm"].training is False and loaded["gru"].version == 0
    for layer in loaded.values():
        again = pickle.loads(pickle.dumps(layer))
        for name, p in layer.parameters().items():
            np.testing.assert_array_equal(again.parameters()[name], p)
        assert again.version == layer.version and json.dumps(again.to_config()) == json.dumps(layer.to_config())


def test_a_pickled_tape_says_what_to_do() -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"a tape of fastlstm 0\.1\.0.*call layer\.forward\(x\) again"):
        pickle.loads((DATA / "tape_0.1.0.pickle").read_bytes())


def test_a_model_file_has_equal_values() -> None:
    expected = np.load(DATA / "model_0.1.0.npz")
    model = CharModel.load(DATA / "model_0.1.0.safetensors", backend="numpy")
    assert_near(model.head(model.lstm(expected["ids"])[0]), expected["logits"], TOLERANCE["values"], "logits")
    assert "".join(model.sample("ab", 12, seed=3)) == str(expected["sample"])


@pytest.mark.parametrize(
    "name", ["CharModel", "Losses", "Settings", "TextHistory", "TextTraining", "choose_token", "size_of_file"]
)
def test_pickles_name_the_classes_of_texts_in_one_module(name: str) -> None:
    """Pickles name these classes in `fastlstm.text`, which was one file."""
    assert pickle.loads(f"cfastlstm.text\n{name}\n.".encode()).__name__ == name
