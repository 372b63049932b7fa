"""The textbooks' character model: the first 10,000 letters of a book, learnt by heart in half a minute.

Vocabulary of 28 (letters, space, unknown), 256 hidden units, 32 streams, 35 steps, plain gradient descent with learning
rate 1, gradients clipped to norm 1, and windows that begin at a random place in every epoch, through which the state is
carried (https://d2l.ai, chapters 8 and 9). Draws its curve into char_model_small.png where matplotlib is installed.

    python char_model_small.py [epochs, 500 unless given]
"""

import importlib.resources
import math
import re
import sys
import time

import numpy as np

import fastlstm as fl

LETTERS = "abcdefghijklmnopqrstuvwxyz "
UNKNOWN = 0
HIDDEN, BATCH, STEPS, LENGTH = 256, 32, 35, 10_000
PICTURE = "char_model_small.png"


def read_text():
    """The first LENGTH letters and spaces of the bundled Shakespeare."""
    book = (importlib.resources.files("fastlstm") / "data" / "shakespeare.txt").read_text(encoding="utf-8")
    return re.sub("[^a-z]+", " ", book.lower()).strip()[:LENGTH]


def encode(text):
    """Token ids of a text; find's -1 becomes UNKNOWN."""
    return np.array([LETTERS.find(letter) + 1 for letter in text])


def windows(ids, rng):
    """Inputs and targets (STEPS, BATCH), one window after another, from a random beginning."""
    offset = rng.integers(STEPS)
    each = (len(ids) - offset - 1) // BATCH
    x, answers = (ids[at : at + BATCH * each].reshape(BATCH, each).T for at in (offset, offset + 1))
    for at in range(0, each - STEPS + 1, STEPS):
        yield x[at : at + STEPS], answers[at : at + STEPS]


def train_epoch(lstm, head, optimizer, ids, rng):
    """(mean loss, tokens) of one walk through the text."""
    losses, tokens, state = [], 0, None
    for x, answers in windows(ids, rng):
        y, state, tape = lstm.forward(x, state)
        loss, dy, of_head = head.cross_entropy(y, answers)
        _, _, of_lstm = lstm.backward(tape, dy)
        fl.clip_by_norm([of_lstm, of_head], 1.0)
        optimizer.step([of_lstm, of_head])
        losses.append(loss)
        tokens += x.size
    return sum(losses) / len(losses), tokens


def go_on(lstm, head, beginning, length):
    """What the model says comes after a beginning, the likeliest letter each time."""
    stream = lstm.stream()
    y = stream.run(encode(beginning))[-1]
    text = ""
    for _ in range(length):
        token = int(head(y).argmax())
        text += "?" if token == UNKNOWN else LETTERS[token - 1]
        y = stream.step(token)
    return text


def draw(perplexities):
    """The curve, into PICTURE."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"no {PICTURE}: matplotlib is not installed")
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogy(range(1, len(perplexities) + 1), perplexities, color="#4c72b0")
    axes.set(
        xlabel="epoch", ylabel="perplexity of the training text", title=f"{LENGTH:,} letters, {HIDDEN} hidden units"
    )
    axes.set_yticks([1.1, 1.5, 2, 3, 5, 10, 20], ["1.1", "1.5", "2", "3", "5", "10", "20"])
    axes.minorticks_off()
    axes.grid(color="#d9d9d9", linewidth=0.6)
    figure.savefig(PICTURE, dpi=150)
    print(f"curve in {PICTURE}")


def main(epochs):
    text, rng = read_text(), np.random.default_rng(0)
    ids = encode(text)
    lstm, head = fl.LSTM(len(LETTERS) + 1, HIDDEN, seed=0), fl.Dense(HIDDEN, len(LETTERS) + 1, seed=1)
    optimizer = fl.SGD([lstm, head], lr=1.0)
    perplexities, tokens = [], 0
    begin = time.perf_counter()
    for epoch in range(1, epochs + 1):
        loss, count = train_epoch(lstm, head, optimizer, ids, rng)
        perplexities.append(math.exp(loss))
        tokens += count
        speed = tokens / (time.perf_counter() - begin)
        if epoch % 10 == 0 or epoch == epochs:
            end = "\n" if epoch % 100 == 0 or epoch == epochs else "\r"
            print(f"epoch {epoch:4d}  perplexity {perplexities[-1]:6.3f}  {speed:9,.0f} tokens/s", end=end, flush=True)
    print(f"perplexity {perplexities[-1]:.3f}, {speed:,.0f} tokens/s on backend {lstm.backend}")
    print(f"{text[:STEPS]} ... and then: {go_on(lstm, head, text[:STEPS], 60)}")
    draw(perplexities)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
