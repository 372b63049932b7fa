"""A character LSTM in bare NumPy, equation by equation: what `char_lstm_shakespeare.py` computes with the library.

One layer of 64 units learns to predict the next character of Shakespeare's plays. Everything is written out: the four
gates on the stacked vector [h; x], softmax, cross-entropy, back-propagation through time, clipping by value and plain
gradient descent with the summed loss of 25 characters (Hochreiter & Schmidhuber 1997; Karpathy's min-char-rnn).

    python char_lstm_numpy.py [iterations, 100 unless given]

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
"""

import importlib.resources
import sys

import numpy as np

HIDDEN, STEPS, RATE, BOUND = 64, 25, 0.01, 5.0
GATES = ("f", "i", "c", "o")


def read_text():
    """The bundled plays."""
    return (importlib.resources.files("fastlstm") / "data" / "shakespeare.txt").read_text(encoding="utf-8")


def vocabulary_of(text):
    """The characters of a text, sorted; a character's place is its number."""
    return sorted(set(text))


def initial_parameters(size, seed=0):
    """Weights from a normal distribution of width 0.1, biases 0: W of each gate (H, H + V) on [h; x], Wy (V, H)."""
    rng = np.random.default_rng(seed)
    p = {f"W{gate}": 0.1 * rng.standard_normal((HIDDEN, HIDDEN + size)) for gate in GATES}
    p |= {f"b{gate}": np.zeros((HIDDEN, 1)) for gate in GATES}
    return p | {"Wy": 0.1 * rng.standard_normal((size, HIDDEN)), "by": np.zeros((size, 1))}


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def softmax(a):
    e = np.exp(a - a.max())
    return e / e.sum()


def one_hot(number, size):
    x = np.zeros((size, 1))
    x[number] = 1
    return x


def step(p, x, h, c):
    """One step of the cell, and all that its derivative needs."""
    z = np.concatenate((h, x))  # [h; x]
    f = sigmoid(p["Wf"] @ z + p["bf"])  # how much of the cell state stays
    i = sigmoid(p["Wi"] @ z + p["bi"])  # how much of the candidate comes in
    g = np.tanh(p["Wc"] @ z + p["bc"])  # the candidate
    o = sigmoid(p["Wo"] @ z + p["bo"])  # how much of the cell state is shown
    c_next = f * c + i * g
    h_next = o * np.tanh(c_next)
    return h_next, c_next, (z, f, i, g, o, c, c_next)


def step_backward(p, d, kept, dh, dc):
    """Derivative of `step`: adds to the gradients d, returns those of h and c before the step."""
    z, f, i, g, o, c, c_next = kept
    shown = np.tanh(c_next)
    dc = dc + dh * o * (1 - shown**2)
    before = {  # gradients of the four sums, through the derivative of each activation
        "f": dc * c * f * (1 - f),
        "i": dc * g * i * (1 - i),
        "c": dc * i * (1 - g**2),
        "o": dh * shown * o * (1 - o),
    }
    dz = np.zeros_like(z)
    for gate, da in before.items():
        d[f"W{gate}"] += da @ z.T
        d[f"b{gate}"] += da
        dz += p[f"W{gate}"].T @ da
    return dz[:HIDDEN], dc * f


def gradients(p, inputs, targets, h, c):
    """(loss, gradients, last h and c) of a piece of text: characters' numbers in, the next ones wanted."""
    size, kept, probabilities, states, loss = len(p["by"]), [], [], [], 0.0
    for number, wanted in zip(inputs, targets, strict=True):
        h, c, of_step = step(p, one_hot(number, size), h, c)
        y = softmax(p["Wy"] @ h + p["by"])
        loss -= np.log(y[wanted, 0])
        kept.append(of_step)
        states.append(h)
        probabilities.append(y)
    d = {name: np.zeros_like(array) for name, array in p.items()}
    dh, dc = np.zeros_like(h), np.zeros_like(c)
    for t in reversed(range(len(inputs))):
        dy = probabilities[t].copy()
        dy[targets[t]] -= 1  # of softmax and cross-entropy together
        d["Wy"] += dy @ states[t].T
        d["by"] += dy
        dh, dc = step_backward(p, d, kept[t], dh + p["Wy"].T @ dy, dc)
    return loss, d, h, c


def sample(p, vocabulary, first, length, seed=0):
    """`length` characters drawn after a first one."""
    rng, h, c = np.random.default_rng(seed), np.zeros((HIDDEN, 1)), np.zeros((HIDDEN, 1))
    number, text = vocabulary.index(first), first
    for _ in range(length):
        h, c, _ = step(p, one_hot(number, len(vocabulary)), h, c)
        y = softmax(p["Wy"] @ h + p["by"])
        number = rng.choice(len(vocabulary), p=y[:, 0])
        text += vocabulary[number]
    return text


def train(text, num_iterations=100):
    """(parameters, vocabulary, losses): an iteration takes the next STEPS characters, its loss is their mean."""
    vocabulary = vocabulary_of(text)
    numbers = [vocabulary.index(character) for character in text[: num_iterations * STEPS + 1]]
    p, losses = initial_parameters(len(vocabulary)), []
    h = c = np.zeros((HIDDEN, 1))
    at = 0
    for iteration in range(1, num_iterations + 1):
        if at + STEPS + 1 > len(numbers):  # the text begins again
            h, c, at = np.zeros((HIDDEN, 1)), np.zeros((HIDDEN, 1)), 0
        loss, d, h, c = gradients(p, numbers[at : at + STEPS], numbers[at + 1 : at + STEPS + 1], h, c)
        at += STEPS
        for name in p:
            p[name] -= RATE * np.clip(d[name], -BOUND, BOUND)
        losses.append(loss / STEPS)
        if iteration == 1 or iteration % (num_iterations // 4 or 1) == 0:
            print(f"iteration {iteration:4d}  loss {losses[-1]:.4f}")
    return p, vocabulary, losses


if __name__ == "__main__":
    parameters, characters, _ = train(read_text(), int(sys.argv[1]) if len(sys.argv) > 1 else 100)
    print(sample(parameters, characters, "T", 100))
