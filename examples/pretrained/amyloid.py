"""Amyloid signalling motifs in proteins by asmscan-bilstm: six Keras 2 models of an embedding and LSTMs.

`fl.from_keras` reads the package's .h5 files without Keras. The package's own code cuts the sequences into windows and
puts the results together; its models are those of Keras 3 on PyTorch, then ours.

    pip install keras torch h5py
    pip install --no-deps asmscan-bilstm==1.0.0
    python amyloid.py

The package needs TensorFlow when it is imported; its class BiLSTM is taken from the source instead. Its tokenizer is a
pickle, which a reader with a list of two allowed names opens. The sequences are made here, but for the three of the
package's README. Expected output (times vary):

    6 models
    23 sequences: probabilities off by at most 2e-07, the same windows
    0.16: MEGRASGSARIYQAGGDQYIEESDGYRADG
    0.11: VSLRAGAHDGGRIYQAVGDQYIYEDGGRAGASLREDGYQR
    0.44: HASGHGRVFQSAGDQHITEHAGHDG
    Keras, one thread: ... ms, with fastlstm ... ms: ... times as fast
"""

import json
import os
import pickle
import time
from types import SimpleNamespace

import numpy as np
from source import class_of, folder_of

import fastlstm as fl

README = [
    "MEGRASGSARIYQAGGDQYIEESDGYRADG",
    "VSLRAGAHDGGRIYQAVGDQYIYEDGGRAGASLREDGYQRIYAGASIYEA",
    "HASGHGRVFQSAGDQHITEHAGHDG",
]
TOLERANCE = 1e-5
INSTALL = "pip install keras torch h5py; pip install --no-deps asmscan-bilstm==1.0.0"


def package():
    """(Keras, PyTorch, the package's folder), or an exit that says what to install."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import h5py
        import keras
        import torch
    except ImportError as error:
        raise SystemExit(f"{error}: {INSTALL}") from None
    del h5py
    folder = folder_of("asmscan.bilstm")
    if folder is None:
        raise SystemExit(f"asmscan-bilstm is not installed: {INSTALL}")
    return keras, torch, folder


class Tokenizer:
    """Keras 2's: letters of a sequence as numbers."""

    def texts_to_sequences(self, texts):
        return [[self.word_index[one.lower()] for one in text if one.lower() in self.word_index] for text in texts]


class Reader(pickle.Unpickler):
    """Makes nothing but a Tokenizer and the counters in it."""

    def find_class(self, module, name):
        if name == "Tokenizer" and module.startswith(("keras.", "tensorflow.")):
            return Tokenizer
        if (module, name) in (("collections", "OrderedDict"), ("collections", "defaultdict"), ("builtins", "int")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not expected in a tokenizer")


class Bar:
    """A progress bar that shows nothing."""

    def __init__(self, *_, **__):
        pass

    __enter__ = __exit__ = next = lambda self, *_: self


class Result:
    """An array with the method of a TensorFlow tensor."""

    def __init__(self, array):
        self.numpy = lambda: array


def detector(keras, folder, models):
    """The package's BiLSTM with these models, functions from (windows, 40) ids to (windows, 1) probabilities."""
    sequence = SimpleNamespace(pad_sequences=keras.utils.pad_sequences)
    text = SimpleNamespace(Tokenizer=Tokenizer)
    kinds = SimpleNamespace(models=SimpleNamespace(Model=object))
    kinds.preprocessing = SimpleNamespace(sequence=sequence, text=text)
    cls = class_of(folder / "model.py", "BiLSTM", np=np, tf=SimpleNamespace(keras=kinds), IncrementalBar=Bar)
    made = cls.__new__(cls)
    made.models = [lambda ids, model=model: Result(model(ids)) for model in models]
    made.config = json.loads((folder / "resources" / "model" / "config.json").read_text())
    with open(folder / "resources" / "tokenizer.pickle", "rb") as file:
        made.tokenizer = Reader(file).load()
    return made


def of_keras(keras, torch, path):
    """A model of the package in Keras 3, as a function. Keras 3 does not know Keras 2's option time_major=False."""
    LSTM = keras.layers.LSTM
    kept = LSTM.__dict__["from_config"]
    LSTM.from_config = classmethod(lambda cls, config: cls(**{k: v for k, v in config.items() if k != "time_major"}))
    try:
        model = keras.models.load_model(path, compile=False)
    finally:
        LSTM.from_config = kept

    def run(ids):
        with torch.no_grad():
            return keras.ops.convert_to_numpy(model(ids))

    return run


def main(count=20, threads=1):
    keras, torch, folder = package()
    torch.set_num_threads(threads)
    paths = sorted((folder / "resources" / "model" / "cvms").glob("*.h5"))
    ours = [fl.from_keras(path) for path in paths]
    print(f"{len(ours)} models")
    plain = detector(keras, folder, [of_keras(keras, torch, path) for path in paths])
    fast = detector(keras, folder, ours)
    rng = np.random.default_rng(0)
    sequences = README + ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), rng.integers(20, 80))) for _ in range(count)]
    seconds, found = [], []
    with fl.threads(threads):
        for one in (plain, fast):
            one.predict(README)
            begin = time.perf_counter()
            found.append(one.predict(sequences))
            seconds.append(time.perf_counter() - begin)
    (expected, windows), (got, ours_windows) = found
    off = float(np.abs(np.array(got) - np.array(expected)).max())
    if not off <= TOLERANCE or windows != ours_windows:
        raise SystemExit(f"the probabilities differ by {off:.2g}")
    print(f"{len(sequences)} sequences: probabilities off by at most {off:.0e}, the same windows")
    for probability, window in list(zip(got, windows, strict=True))[:3]:
        print(f"{probability:.2f}: {window}")
    print(
        f"Keras, one thread: {1e3 * seconds[0]:.0f} ms, with fastlstm {1e3 * seconds[1]:.0f} ms: "
        f"{seconds[0] / seconds[1]:.0f} times as fast"
    )


if __name__ == "__main__":
    main()
