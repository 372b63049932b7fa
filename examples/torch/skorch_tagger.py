"""A net of skorch as it is and accelerated: the same training from the same seed.

A bidirectional LSTM marks in noisy curves the steps at which a bump stands. A callback of four lines accelerates the
module when a training begins, so that `fit`, clones and `GridSearchCV` need no other change.

    pip install skorch
    python skorch_tagger.py [--epochs 5] [--threads 1]
"""

import argparse

import numpy as np
import torch
from side_by_side import Compared, Trained, compare, timed
from torch import nn

try:
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback
except ImportError as error:
    raise SystemExit(f"{error}: pip install skorch") from None


class Tagger(nn.Module):
    """Two classes for each step of a curve."""

    def __init__(self, hidden=64, layers=2, dropout=0.2):
        super().__init__()
        self.lstm = nn.LSTM(2, hidden, layers, batch_first=True, bidirectional=True, dropout=dropout)
        self.linear = nn.Linear(2 * hidden, 2)

    def forward(self, x):  # (B, T, 2)
        return self.linear(self.lstm(x)[0]).transpose(1, 2)  # (B, classes, T), as CrossEntropyLoss takes it


class OnTrainBegin(Callback):
    """Calls a function with the net's module when a training begins."""

    def __init__(self, prepare):
        self.prepare = prepare

    def on_train_begin(self, net, X=None, y=None, **options):
        self.prepare(net.module_)


def curves(count, T=60, seed=0):
    """(curves (count, T, 2), tags (count, T)): a bump of unknown place, width and sign in two noisy channels."""
    rng = np.random.default_rng(seed)
    t = np.arange(T)
    middle, width, sign = (
        rng.uniform(10, T - 10, (count, 1)),
        rng.uniform(3, 6, (count, 1)),
        rng.choice([-1, 1], (count, 1)),
    )
    bump = sign * np.exp(-(((t - middle) / width) ** 2))
    x = np.stack([bump, -bump], axis=2) + 0.5 * rng.standard_normal((count, T, 2))
    return x.astype(np.float32), (np.abs(t - middle) < width).astype(np.int64)


def run(prepare, epochs=5, count=1000) -> Trained:
    x, tags = curves(count)
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        Tagger,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.003,
        batch_size=50,
        max_epochs=epochs,
        train_split=None,
        verbose=0,
        callbacks=[OnTrainBegin(prepare)],
    ).initialize()

    def train():
        net.partial_fit(x, tags)
        return [batch["train_loss"] for epoch in net.history for batch in epoch["batches"]]

    trained = timed(train, net.module_)
    unseen, answers = curves(200, seed=1)
    print(f"{100 * np.mean(net.predict(unseen) == answers):.1f} % of the steps of unseen curves are marked rightly")
    return trained


def main(arguments=None) -> Compared:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    return compare(lambda prepare: run(prepare, given.epochs))


if __name__ == "__main__":
    main()
