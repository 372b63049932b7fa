"""A character model to perplexity 1.1: an LSTM written by hand in NumPy, the library's layer, and deeper variants.

The exercise of https://d2l.ai (chapters 9 and 10): the first 10,000 letters and spaces of a book, 256 hidden units, 32
streams, 35 steps, plain gradient descent with learning rate 1, gradients clipped to norm 1. Each epoch cuts the text
from a random place on into streams whose windows follow one another, and carries the state (H, C) between windows.

    python char_lstm_perplexity.py                    # by hand and by the library, 500 epochs each
    python char_lstm_perplexity.py --form library     # by the library alone
    python char_lstm_perplexity.py --words            # the first 10,000 words instead
    python char_lstm_perplexity.py --layers 2 --residual --dropout 0.1
    python char_lstm_perplexity.py --text book.txt --prefix "the traveller "

Expected output (the speeds are those of two cores that had other work besides; with less of it, ten epochs ran at
23,339 tokens/s by hand and 80,847 with the library):

    10,000 letters and spaces, vocabulary of 28
    by hand  epoch  100  perplexity    8.425     17,150 tokens/s
    by hand  epoch  200  perplexity    4.979     14,905 tokens/s
    by hand  epoch  300  perplexity    1.602     13,842 tokens/s
    by hand  epoch  400  perplexity    1.072     13,496 tokens/s
    by hand  epoch  500  perplexity    1.045     13,167 tokens/s
    by hand: perplexity 1.045, 13,167 tokens/s
      hamlet prince of denmark by william |  shakespeare persons represented claudius king of denmark ha
    library  epoch  100  perplexity    8.425     21,844 tokens/s
    library  epoch  200  perplexity    5.073     21,803 tokens/s
    library  epoch  300  perplexity    1.696     22,367 tokens/s
    library  epoch  400  perplexity    1.074     22,369 tokens/s
    library  epoch  500  perplexity    1.049     22,829 tokens/s
    library: perplexity 1.049, 22,829 tokens/s
      hamlet prince of denmark by william |  shakespeare persons represented claudius king of denmark ha
    curve in char_lstm_perplexity.png

With --layers 2 --residual --dropout 0.1:

    deep: perplexity 1.046, 8,487 tokens/s
      hamlet prince of denmark by william |  shakespeare persons represented claudius king of denmark ha

With --words --form library, whose 2,097 different words take more epochs to learn:

    10,000 words, vocabulary of 2,097
    library  epoch  100  perplexity  476.950     15,595 tokens/s
    library  epoch  300  perplexity  179.494     19,254 tokens/s
    library  epoch  500  perplexity    9.151     19,434 tokens/s
"""

import argparse
import importlib.resources
import math
import re
import time
from collections import Counter

import numpy as np

import fastlstm as fl
from fastlstm.corpus import read_text as read_file

HIDDEN, BATCH, STEPS, LENGTH, RATE, NORM = 256, 32, 35, 10_000, 1.0, 1.0
PICTURE = "char_lstm_perplexity.png"


# ---------------------------------------------------------------------------------------------------------------- text
def read_text(path=None):
    """Lower-case letters and single spaces of a file, or of the bundled plays."""
    if path is None:
        book = (importlib.resources.files("fastlstm") / "data" / "shakespeare.txt").read_text(encoding="utf-8")
    else:
        book = read_file(path)
    return re.sub("[^a-z]+", " ", book.lower()).strip()


class Vocabulary:
    """Numbers of tokens, the most frequent first; 0 stands for those that are unknown."""

    def __init__(self, tokens, joint=""):
        self.tokens = ["<unk>", *(token for token, _ in Counter(tokens).most_common())]
        self.joint, self.numbers = joint, {token: number for number, token in enumerate(self.tokens)}

    def __len__(self):
        return len(self.tokens)

    def encode(self, tokens):
        return np.array([self.numbers.get(token, 0) for token in tokens])

    def decode(self, numbers):
        return self.joint.join(self.tokens[number] for number in numbers)


def windows(ids, rng, batch=BATCH, steps=STEPS):
    """Inputs and targets (T, B), one window after another, from a random beginning."""
    steps = min(steps, len(ids) // batch // 2)  # of a short text, two windows
    offset = rng.integers(steps)
    each = (len(ids) - offset - 1) // batch
    x, answers = (ids[at : at + batch * each].reshape(batch, each).T for at in (offset, offset + 1))
    for at in range(0, each - steps + 1, steps):
        yield x[at : at + steps], answers[at : at + steps]


# ------------------------------------------------------------------------------------------------------------- by hand
def get_lstm_params(size, hidden, rng):
    """Of each gate W_x (V, H), W_h (H, H), b (H,), of the head W_hq, b_q: uniform in +-1/sqrt(H), biases of 0."""
    k, p = hidden**-0.5, {}
    for gate in "ifoc":
        p[f"W_x{gate}"] = rng.uniform(-k, k, (size, hidden))
        p[f"W_h{gate}"] = rng.uniform(-k, k, (hidden, hidden))
        p[f"b_{gate}"] = np.zeros(hidden)
    p |= {"W_hq": rng.uniform(-k, k, (hidden, size)), "b_q": np.zeros(size)}
    return {name: array.astype(np.float32) for name, array in p.items()}


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


class ByHand:
    """The LSTM as the exercise writes it: parameters W_xi W_hi b_i ..., state (H, C), gradients by the chain rule."""

    name = "by hand"

    def __init__(self, params):
        self.p = {name: array.copy() for name, array in params.items()}

    def step(self, x, H, C):
        """One step: token ids (B,), state (B, H) each; row x of W_x is its product with a one-hot vector."""
        p = self.p
        i = sigmoid(p["W_xi"][x] + H @ p["W_hi"] + p["b_i"])
        f = sigmoid(p["W_xf"][x] + H @ p["W_hf"] + p["b_f"])
        o = sigmoid(p["W_xo"][x] + H @ p["W_ho"] + p["b_o"])
        c = np.tanh(p["W_xc"][x] + H @ p["W_hc"] + p["b_c"])
        C_next = f * C + i * c
        shown = np.tanh(C_next)
        return o * shown, C_next, (i, f, o, c, C, shown)

    def step_back(self, kept, dH, dC):
        """Gradients of the four sums (B, H) by gate, and of C before the step."""
        i, f, o, c, C, shown = kept
        dC = dC + dH * o * (1 - shown**2)
        of_sums = {
            "i": dC * c * i * (1 - i),
            "f": dC * C * f * (1 - f),
            "o": dH * shown * o * (1 - o),
            "c": dC * i * (1 - c**2),
        }
        return of_sums, dC * f

    def gradients(self, x, answers, state):
        """(mean loss, state after the window, gradients) of ids and answers (T, B)."""
        p, (T, B) = self.p, x.shape
        H, C = state or (np.zeros((B, len(p["b_i"])), np.float32),) * 2
        before, after, kept = [], [], []
        for x_t in x:
            before.append(H)
            H, C, of_step = self.step(x_t, H, C)
            after.append(H)
            kept.append(of_step)
        loss, dY = self.cross_entropy(np.array(after) @ p["W_hq"] + p["b_q"], answers)
        dH_above, dH, dC = dY @ p["W_hq"].T, np.zeros_like(H), np.zeros_like(C)
        of_sums = {gate: np.empty((T, B, H.shape[1]), np.float32) for gate in "ifoc"}
        for t in reversed(range(T)):
            of_step, dC = self.step_back(kept[t], dH_above[t] + dH, dC)
            dH = sum(da @ p[f"W_h{gate}"].T for gate, da in of_step.items())
            for gate, da in of_step.items():
                of_sums[gate][t] = da
        return loss, (H, C), self.of_parameters(x, before, after, of_sums, dY)

    def cross_entropy(self, logits, answers):
        """(mean loss, its gradient by the logits (T, B, V))."""
        e = np.exp(logits - logits.max(axis=-1, keepdims=True))
        y = e / e.sum(axis=-1, keepdims=True)
        at = (*np.indices(answers.shape), answers)
        loss = -np.log(y[at]).mean()
        y[at] -= 1
        return float(loss), y / answers.size

    def of_parameters(self, x, before, after, of_sums, dY):
        """Gradients of the parameters: sums over all steps and streams."""
        rows = {"x": x.reshape(-1), "h": np.concatenate(before), "y": np.concatenate(after)}
        dY, d = dY.reshape(-1, dY.shape[-1]), {}
        for gate, of_gate in of_sums.items():
            da = of_gate.reshape(-1, of_gate.shape[-1])
            d[f"W_x{gate}"] = np.zeros_like(self.p[f"W_x{gate}"])
            np.add.at(d[f"W_x{gate}"], rows["x"], da)
            d[f"W_h{gate}"], d[f"b_{gate}"] = rows["h"].T @ da, da.sum(axis=0)
        return d | {"W_hq": rows["y"].T @ dY, "b_q": dY.sum(axis=0)}

    def train_window(self, x, answers, state):
        """(mean loss, state after the window), after a step against the clipped gradient."""
        loss, state, d = self.gradients(x, answers, state)
        norm = math.sqrt(sum(float((g.astype(float) ** 2).sum()) for g in d.values()))
        for name, g in d.items():
            self.p[name] -= RATE * min(1, NORM / norm) * g
        return loss, state

    def predict(self, prefix, length):
        """Token ids that follow those of the prefix, the likeliest each time."""
        p = self.p
        H = C = np.zeros((1, len(p["b_i"])), np.float32)
        following = []
        for at in range(len(prefix) + length - 1):
            H, C, _ = self.step(np.array([prefix[at] if at < len(prefix) else following[-1]]), H, C)
            if at >= len(prefix) - 1:
                following.append(int((H @ p["W_hq"] + p["b_q"]).argmax()))
        return following


# ------------------------------------------------------------------------------------------------------- by the library
class Library:
    """The same with the library's layer and head, which begin with the same parameters."""

    name = "library"

    def __init__(self, params):
        self.lstm, self.head = fl.from_arrays(params, "lstm")
        self.optimizer = fl.SGD([self.lstm, self.head], lr=RATE)

    def train_window(self, x, answers, state):
        y, state, tape = self.lstm.forward(x, state)
        loss, dy, of_head = self.head.cross_entropy(y, answers)
        _, _, of_lstm = self.lstm.backward(tape, dy, sparse=True)
        fl.clip_by_norm([of_lstm, of_head], NORM)
        self.optimizer.step([of_lstm, of_head])
        return loss, state

    def predict(self, prefix, length):
        stream = self.lstm.stream()
        y = stream.run(prefix)[-1]
        following = []
        for _ in range(length):
            following.append(int(self.head(y).argmax()))
            y = stream.step(following[-1])
        return following


def train(model, ids, epochs, seed=0, batch=BATCH, steps=STEPS):
    """(perplexity of every epoch, tokens/s)."""
    rng, perplexities, tokens = np.random.default_rng(seed), [], 0
    begin = time.perf_counter()
    for epoch in range(1, epochs + 1):
        losses, state = [], None
        for x, answers in windows(ids, rng, batch, steps):
            loss, state = model.train_window(x, answers, state)
            losses.append(loss)
            tokens += x.size
        perplexities.append(math.exp(sum(losses) / len(losses)))
        report(model.name, epoch, epochs, perplexities[-1], tokens / (time.perf_counter() - begin))
    return perplexities, tokens / (time.perf_counter() - begin)


def report(name, epoch, epochs, perplexity, speed):
    """A line every 100 epochs, and at the end."""
    if epoch % 100 == 0 or epoch == epochs:
        print(f"{name:8} epoch {epoch:4d}  perplexity {perplexity:8.3f}  {speed:9,.0f} tokens/s", flush=True)


# -------------------------------------------------------------------------------------------------------- deeper models
class Epochs:
    """Batches (x, y) of `Sequential.fit`, (B, T) each: an epoch's windows, drawn anew for each epoch."""

    def __init__(self, ids, batch=BATCH, steps=STEPS):
        self.ids, self.batch, self.steps, self.rng = ids, batch, steps, np.random.default_rng(0)

    def __iter__(self):
        for x, answers in windows(self.ids, self.rng, self.batch, self.steps):
            yield x.T, answers.T


class Report(fl.callbacks.Callback):
    """Prints perplexity and speed, and keeps the perplexities."""

    def __init__(self, epochs, tokens):
        self.epochs, self.tokens, self.perplexities = epochs, tokens, []

    def on_train_begin(self, loop):
        self.begin = time.perf_counter()

    def on_epoch_end(self, loop):
        self.perplexities.append(loop.history["perplexity"][-1])
        self.speed = self.tokens * loop.epochs / (time.perf_counter() - self.begin)
        report("deep", loop.epochs, self.epochs, self.perplexities[-1], self.speed)


class Deep:
    """Layers with residual connections and dropout, as modules."""

    name = "deep"

    def __init__(self, size, hidden=HIDDEN, layers=2, residual=True, dropout=0.1, seed=0):
        modules = [fl.nn.Embedding(size, hidden)]
        for _ in range(layers):
            layer = fl.nn.LSTM(hidden, return_sequences=True, stateful=True)
            modules += [fl.nn.Residual(layer) if residual else layer, fl.nn.Dropout(dropout)]
        self.model = fl.Sequential([*modules, fl.nn.Dense(size, "softmax")], seed=seed)
        self.model.build((None,))
        self.model.compile(
            {"name": "sgd", "lr": RATE}, "sparse_categorical_crossentropy", ["perplexity"], clip_norm=NORM
        )

    def train(self, ids, epochs, batch=BATCH, steps=STEPS):
        """(perplexity of every epoch, tokens/s)."""
        tokens = sum(x.size for x, _ in windows(ids, np.random.default_rng(0), batch, steps))
        shown = Report(epochs, tokens)
        self.model.fit(Epochs(ids, batch, steps), epochs=epochs, callbacks=[shown], verbose=False)
        return shown.perplexities, shown.speed

    def predict(self, prefix, length):
        stream = self.model.stream()
        for number in prefix:
            y = stream.step([number])
        following = []
        for _ in range(length):
            following.append(int(y.argmax()))
            y = stream.step(following[-1:])
        return following


# ------------------------------------------------------------------------------------------------------------- program
def draw(curves, title):
    """The curves, into PICTURE."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"no {PICTURE}: matplotlib is not installed")
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for (name, perplexities), style in zip(curves.items(), ({"linewidth": 3, "alpha": 0.4}, {}), strict=False):
        axes.semilogy(range(1, len(perplexities) + 1), perplexities, label=name, **style)
    axes.set(xlabel="epoch", ylabel="perplexity of the training text", title=title)
    axes.set_yticks([1.1, 1.5, 2, 3, 5, 10, 20], ["1.1", "1.5", "2", "3", "5", "10", "20"])
    axes.minorticks_off()
    axes.grid(color="#d9d9d9", linewidth=0.6)
    axes.legend()
    figure.savefig(PICTURE, dpi=150)
    print(f"curve in {PICTURE}")


def options(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", metavar="FILE", help="a text file (default: the bundled Shakespeare)")
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--length", type=int, default=LENGTH, help="letters or words that are learnt")
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--words", action="store_true", help="tokens are words")
    parser.add_argument("--form", choices=("both", "hand", "library"), default="both")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--residual", action="store_true", help="a residual connection round each layer")
    parser.add_argument("--dropout", type=float, default=0.0, help="after each layer")
    parser.add_argument("--prefix", help="what is continued (default: the beginning of the text)")
    return parser.parse_args(arguments)


def main(arguments=None):
    """{form: perplexities}, after printing and drawing."""
    chosen = options(arguments)
    text = read_text(chosen.text)
    tokens = (text.split() if chosen.words else list(text))[: chosen.length]
    if len(tokens) < 2 * BATCH:
        raise SystemExit(f"the text has {len(tokens)} letters or words, at least {2 * BATCH} are needed")
    vocabulary = Vocabulary(tokens, " " if chosen.words else "")
    ids, size = vocabulary.encode(tokens), len(vocabulary)
    print(f"{len(tokens):,} {'words' if chosen.words else 'letters and spaces'}, vocabulary of {size:,}")
    if chosen.prefix is None:
        prefix = tokens[: 8 if chosen.words else STEPS]
    else:
        prefix = chosen.prefix.lower().split() if chosen.words else list(chosen.prefix.lower())
    curves = {}
    if chosen.layers > 1 or chosen.residual or chosen.dropout:
        deep = Deep(size, chosen.hidden, chosen.layers, chosen.residual, chosen.dropout)
        models = [(deep, lambda: deep.train(ids, chosen.epochs))]
    else:
        params = get_lstm_params(size, chosen.hidden, np.random.default_rng(0))
        forms = [f for f, name in ((ByHand, "hand"), (Library, "library")) if chosen.form in (name, "both")]
        models = [(model, lambda model=model: train(model, ids, chosen.epochs)) for model in (f(params) for f in forms)]
    for model, run in models:
        curves[model.name], speed = run()
        print(f"{model.name}: perplexity {curves[model.name][-1]:.3f}, {speed:,.0f} tokens/s")
        following = model.predict(vocabulary.encode(prefix), 12 if chosen.words else 60)
        print(f"  {vocabulary.joint.join(prefix)} | {vocabulary.decode(following)}")
    draw(curves, f"{len(tokens):,} tokens, {chosen.hidden} hidden units")
    return curves


if __name__ == "__main__":
    main()
