"""Ragged sequences of several channels: nine speakers told apart by a vowel, beside dynamic time warping.

JapaneseVowels (Kudo, Toyama & Shimbo 1999): 270 utterances to train on and 370 to test on, of 7 to 29 steps with 12
channels each. An LSTM in both directions reads them as a list of arrays of unequal length; none is padded by hand.
Beside it, the nearest training utterance under dynamic time warping (Sakoe & Chiba 1978), which compares sequences of
different speed.

    python vowels.py            # the data come from the package aeon: pip install aeon

Expected output, after some seconds:

    270 sequences to train on, 370 to test on, of 7 to 29 steps
    accuracy of LSTM in both directions, mean of three seeds: 0.983
    accuracy of nearest neighbour with dynamic time warping: 0.959
"""

import sys

import numpy as np

import fastlstm as fl

UNITS, EPOCHS, BATCH = 32, 60, 16


def read_vowels():
    """((list of utterances (T_i, 12), speakers (N,)) to train on, those to test on)."""
    try:
        from aeon.datasets import load_japanese_vowels
    except ImportError:
        raise SystemExit("the data are part of the package aeon, which is not installed: pip install aeon") from None
    parts = []
    for part in ("train", "test"):
        x, y = load_japanese_vowels(split=part)
        parts.append(([np.ascontiguousarray(one.T, np.float32) for one in x], np.array(y).astype(int) - 1))
    return tuple(parts)


def standardised(train, test):
    """The same with each channel's mean over the training steps at 0 and its standard deviation at 1."""
    scaler = fl.forecast.StandardScaler().fit(np.concatenate(train[0]))
    return tuple(([scaler.transform(one).astype(np.float32) for one in x], y) for x, y in (train, test))


def network(classes, units=UNITS, seed=0):
    """An LSTM in both directions, whose last states go to a softmax."""
    model = fl.Sequential(
        [
            fl.nn.Dropout(0.2, noise_shared_over_time=True),
            fl.nn.Bidirectional(fl.nn.LSTM(units)),
            fl.nn.Dropout(0.3),
            fl.nn.Dense(classes, "softmax"),
        ],
        seed=seed,
    )
    model.compile({"name": "adam", "lr": 5e-3}, "sparse_categorical_crossentropy", ["accuracy"], clip_norm=1.0)
    return model


def trained(train, epochs=EPOCHS, seed=0):
    """The model, trained on a list of sequences."""
    model = network(int(train[1].max()) + 1, seed=seed)
    falling = fl.callbacks.LearningRate(lambda optimizer: fl.CosineAnnealingLR(optimizer, epochs))
    model.fit(*train, epochs=epochs, batch_size=BATCH, callbacks=[falling], verbose=False)
    return model


def warped_distances(one, others):
    """Distances (N,) of a sequence (T, C) to each of N sequences (T_i, C) by dynamic time warping.

    D(t, s) = |a_t - b_s|^2 + min(D(t-1, s), D(t, s-1), D(t-1, s-1)), for all N at once. Sequences that have ended are
    padded, and what lies behind their end does not reach D of their last step.
    """
    lengths = np.array([len(other) for other in others])
    padded = np.zeros((len(others), lengths.max(), one.shape[1]))
    for row, other in zip(padded, others, strict=True):
        row[: len(other)] = other
    before = np.full((len(others), lengths.max() + 1), np.inf)
    before[:, 0] = 0
    for step in one:
        costs = ((padded - step) ** 2).sum(axis=2)
        now = np.full_like(before, np.inf)
        for s in range(lengths.max()):
            now[:, s + 1] = costs[:, s] + np.minimum(np.minimum(before[:, s + 1], now[:, s]), before[:, s])
        before = now
    return before[np.arange(len(others)), lengths]


def nearest(train, test):
    """Classes of the test sequences: those of the nearest training sequence under dynamic time warping."""
    return np.array([train[1][warped_distances(one, train[0]).argmin()] for one in test[0]])


def main(epochs=EPOCHS):
    """{what: accuracy}, after printing."""
    train, test = standardised(*read_vowels())
    lengths = [len(one) for one in train[0] + test[0]]
    print(
        f"{len(train[0])} sequences to train on, {len(test[0])} to test on, of {min(lengths)} to {max(lengths)} steps"
    )
    accuracies = [trained(train, epochs, seed).evaluate(*test)["accuracy"] for seed in range(3)]
    found = {
        "LSTM in both directions, mean of three seeds": float(np.mean(accuracies)),
        "nearest neighbour with dynamic time warping": float((nearest(train, test) == test[1]).mean()),
    }
    for what, accuracy in found.items():
        print(f"accuracy of {what}: {accuracy:.3f}")
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
