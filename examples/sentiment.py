"""Sentiment of reviews: Embedding(5000, 32), LSTM(100), Dense(1, sigmoid), beside a bag of words.

The classic program: the 5,000 most frequent words as numbers, reviews padded on the left and cut to one length, binary
cross-entropy, Adam, 3 epochs in batches of 64. The data are yours: a table of two columns, or Keras's file.

    python sentiment.py --tsv reviews.tsv         # a label and a text in each line, between them a tab
    python sentiment.py --imdb imdb.npz           # https://storage.googleapis.com/tensorflow/tf-keras-datasets/imdb.npz
    python sentiment.py --tsv reviews.tsv --recurrent-activation hard_sigmoid
    python sentiment.py --tsv reviews.tsv --compare-torch

A label is a score above or below 0 (0 is left out), 0 or 1, or one of two words, of which the later one in the
alphabet is 1. A fifth of the lines, drawn with a fixed seed, is tested on. The accuracy of logistic regression on the
counts of words is printed where scikit-learn is installed; --compare-torch trains the same model in PyTorch, both with
three seeds.

Expected output with --compare-torch, of a table of 10,568 sentences of film reviews with scores (its progress goes to
standard error):

    8,454 reviews to train on, 2,114 to test on, 51 words each at most
    epoch 1/3: lr 0.001, loss 0.625, accuracy 0.6322
    epoch 2/3: lr 0.001, loss 0.4029, accuracy 0.8201
    epoch 3/3: lr 0.001, loss 0.2891, accuracy 0.8804
    module                 output shape      parameters
    -----------------------------------------------------
    embedding (Embedding)  (None, None, 32)  160,000
    lstm (LSTM)            (None, 100)       53,200
    dense (Dense)          (None, 1)         101
    -----------------------------------------------------
    213,301 parameters, 213,301 of them trainable
    accuracy of LSTM: 0.767
    accuracy of bag of words: 0.762
    accuracy of LSTM, mean of three seeds: 0.766
    accuracy of PyTorch, mean of three seeds: 0.767
"""

import argparse
import re
from collections import Counter

import numpy as np

import fastlstm as fl
from fastlstm.datasets import UNKNOWN, imdb, pad_sequences

WORDS, LENGTH, EMBEDDING, UNITS = 5000, 500, 32, 100
EPOCHS, BATCH, TESTED = 3, 64, 0.2


# ---------------------------------------------------------------------------------------------------------------- data
def classes(labels):
    """(class 0 or 1 of each label, which labels are left out)."""
    try:
        scores = np.array([float(label) for label in labels])
    except ValueError:
        names = sorted(set(labels))
        if len(names) != 2:
            raise SystemExit(f"labels are scores, or two words, got {len(names)} different ones: {names[:5]}") from None
        return np.array([names.index(label) for label in labels]), np.zeros(len(labels), bool)
    if set(scores) <= {0.0, 1.0}:
        return scores.astype(int), np.zeros(len(scores), bool)
    return (scores > 0).astype(int), scores == 0


def read_table(path):
    """(texts, classes) of a table of labels and texts."""
    labels, texts = [], []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            label, tab, text = line.rstrip("\n").partition("\t")
            if not tab:
                raise SystemExit(f"{path}, line {number}: expected a label, a tab and a text, got {line[:60]!r}")
            labels.append(label)
            texts.append(text)
    y, without = classes(labels)
    return [text for text, left in zip(texts, without, strict=True) if not left], y[~without]


def split(texts, y, seed=0):
    """((texts, classes) to train on, those to test on)."""
    order = np.random.default_rng(seed).permutation(len(texts))
    cut = len(texts) - round(TESTED * len(texts))
    return tuple(([texts[i] for i in at], y[at]) for at in (order[:cut], order[cut:]))


def words_of(text):
    return re.findall(r"[a-z0-9']+", text.lower())


def numbers_of(words):
    """The id of each of the most frequent words: from UNKNOWN + 1 to WORDS - 1."""
    frequent = Counter(word for text in words for word in text).most_common(WORDS - UNKNOWN - 1)
    return {word: number for number, (word, _) in enumerate(frequent, UNKNOWN + 1)}


def from_table(path):
    """((ids of the words of each text, classes) to train on, those to test on)."""
    train, test = split(*read_table(path))
    numbers = numbers_of(map(words_of, train[0]))
    return tuple(
        ([np.array([numbers.get(word, UNKNOWN) for word in words_of(text)], int) for text in texts], y)
        for texts, y in (train, test)
    )


# -------------------------------------------------------------------------------------------------------------- models
def network(recurrent_activation="sigmoid", seed=0):
    """The model, built for reviews of any length."""
    model = fl.Sequential(
        [
            fl.nn.Embedding(WORDS, EMBEDDING),
            fl.nn.LSTM(UNITS, recurrent_activation=recurrent_activation),
            fl.nn.Dense(1, "sigmoid"),
        ],
        seed=seed,
    )
    model.build((None,))
    parameters = sum(p.size for p in model.named["lstm"].state_dict().values())
    assert parameters == 4 * UNITS * (EMBEDDING + UNITS + 1) == 53_200
    model.compile("adam", "binary_crossentropy", ["accuracy"])
    return model


def bag_of_words(train, test):
    """Accuracy of logistic regression on the counts of words, or None where scikit-learn is not installed."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return None
    counts = [np.array([np.bincount(ids, minlength=WORDS) for ids in x]) for x in (train[0], test[0])]
    return LogisticRegression(max_iter=1000).fit(counts[0], train[1]).score(counts[1], test[1])


def in_torch(train, test, seed):
    """Test accuracy of the same model in PyTorch, which begins with the same parameters."""
    import torch

    torch.manual_seed(seed)
    begin = network(seed=seed)
    embedding, lstm, dense = begin.named.values()
    vectors = torch.nn.Embedding.from_pretrained(torch.tensor(embedding.core.state_dict()["weight"]), freeze=False)
    layer, head, loss = lstm.core.to_torch(), torch.nn.Linear(UNITS, 1), torch.nn.BCEWithLogitsLoss()
    head.load_state_dict({name: torch.tensor(p) for name, p in dense.core.state_dict().items()})
    optimizer = torch.optim.Adam([p for part in (vectors, layer, head) for p in part.parameters()])

    def logits(ids):
        return head(layer(vectors(ids))[1][0][0])[:, 0]

    x, y = torch.from_numpy(train[0]), torch.from_numpy(train[1]).float()
    for _ in range(EPOCHS):
        for at in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            loss(logits(x[at]), y[at]).backward()
            optimizer.step()
    with torch.no_grad():
        positive = torch.cat([logits(part) > 0 for part in torch.from_numpy(test[0]).split(256)])
    return float((positive.numpy() == test[1]).mean())


# ------------------------------------------------------------------------------------------------------------- program
def padded(data, length):
    """((ids (N, T), classes) to train on, those to test on): padded and cut on the left."""
    length = min(length, max(map(len, data[0][0])))
    return tuple((pad_sequences(x, length), y) for x, y in data)


def train_and_test(train, test, recurrent_activation="sigmoid", seed=0, verbose=False):
    """(model, accuracy on the reviews to test on)."""
    model = network(recurrent_activation, seed)
    model.fit(*train, epochs=EPOCHS, batch_size=BATCH, verbose=verbose)
    return model, model.evaluate(*test)["accuracy"]


def options(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--tsv", metavar="FILE", help="a label and a text in each line, between them a tab")
    data.add_argument("--imdb", metavar="PATH", help="Keras's imdb.npz")
    parser.add_argument("--length", type=int, default=LENGTH, help="words to which a review is cut")
    parser.add_argument("--recurrent-activation", choices=("sigmoid", "hard_sigmoid"), default="sigmoid")
    parser.add_argument("--compare-torch", action="store_true", help="train in PyTorch too, both with three seeds")
    return parser.parse_args(arguments)


def main(arguments=None):
    """{what: accuracy}, after printing."""
    chosen = options(arguments)
    data = from_table(chosen.tsv) if chosen.tsv else imdb(chosen.imdb, WORDS)
    train, test = padded(data, chosen.length)
    print(f"{len(train[1]):,} reviews to train on, {len(test[1]):,} to test on, {train[0].shape[1]} words each at most")
    model, accuracy = train_and_test(train, test, chosen.recurrent_activation, verbose=True)
    print(model.summary())
    found = {"LSTM": accuracy, "bag of words": bag_of_words(*data)}
    if chosen.compare_torch:
        ours = [accuracy, *(train_and_test(train, test, chosen.recurrent_activation, seed)[1] for seed in (1, 2))]
        found |= {"LSTM, mean of three seeds": np.mean(ours)}
        found |= {"PyTorch, mean of three seeds": np.mean([in_torch(train, test, seed) for seed in range(3)])}
    for what, share in found.items():
        print(f"accuracy of {what}: " + ("scikit-learn is not installed" if share is None else f"{share:.3f}"))
    return found


if __name__ == "__main__":
    main()
