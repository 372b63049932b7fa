"""A character LSTM with the library: what `char_lstm_numpy.py`, beside this file, writes out equation by equation.

Hidden size 64, the four gates on [h; x], softmax, cross-entropy, back-propagation through time, clipping by value 5,
plain gradient descent with rate 0.01. Begins with the same parameters and has the same loss in every iteration.

    python char_lstm_shakespeare.py [iterations, 100 unless given]

Expected output, in a second (another version of NumPy may draw other letters):

    iteration    1  loss 4.3800
    iteration   25  loss 4.1773
    iteration   50  loss 3.8239
    iteration   75  loss 3.6012
    iteration  100  loss 3.1120
    Te:
    qtenetr
    s
    n se9Z
     ihgR}xjhkS neAastIeBeESs(h ro,s E ao' V  e:i tM htataZh{taoaeoWnmt ntv
    sxt wtr

After 10,000 iterations, which take some five seconds, the loss is about 2 and the sample has words and lines:

    Til,
    Wome!],
    Wercure I sondys.
    And light me ent!-
    To the klacild dift;
"""

import sys

import numpy as np
from char_lstm_numpy import BOUND, RATE, STEPS, initial_parameters, read_text, vocabulary_of

import fastlstm as fl


def sample(lstm, head, vocabulary, first, length, seed=0):
    """`length` characters drawn after a first one."""
    rng, stream = np.random.default_rng(seed), lstm.stream()
    number, text = vocabulary.index(first), first
    for _ in range(length):
        logits = head(stream.step(number)).astype(float)
        y = np.exp(logits - logits.max())
        number = rng.choice(len(vocabulary), p=y / y.sum())
        text += vocabulary[number]
    return text


def train(text, num_iterations=100, dtype="float32"):
    """(layer, head, vocabulary, losses): an iteration takes the next STEPS characters, its loss is their mean."""
    vocabulary = vocabulary_of(text)
    numbers = np.array([vocabulary.index(character) for character in text[: num_iterations * STEPS + 1]])
    lstm, head = fl.from_arrays(initial_parameters(len(vocabulary)), "lstm", dtype=dtype)
    optimizer, losses, state, at = fl.SGD([lstm, head], lr=RATE), [], None, 0
    for iteration in range(1, num_iterations + 1):
        if at + STEPS + 1 > len(numbers):  # the text begins again
            state, at = None, 0
        y, state, tape = lstm.forward(numbers[at : at + STEPS], state)
        loss, dy, of_head = head.cross_entropy(y, numbers[at + 1 : at + STEPS + 1], reduction="sum")
        _, _, of_lstm = lstm.backward(tape, dy)
        at += STEPS
        fl.clip_by_value([of_lstm, of_head], BOUND)
        optimizer.step([of_lstm, of_head])
        losses.append(loss / STEPS)
        if iteration == 1 or iteration % (num_iterations // 4 or 1) == 0:
            print(f"iteration {iteration:4d}  loss {losses[-1]:.4f}")
    return lstm, head, vocabulary, losses


if __name__ == "__main__":
    trained, dense, characters, _ = train(read_text(), int(sys.argv[1]) if len(sys.argv) > 1 else 100)
    print(sample(trained, dense, characters, "T", 100))
