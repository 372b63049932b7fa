"""Why LSTM: error terms through 200 steps of time, and to the layer below, for an RNN and an LSTM.

The adding problem (Hochreiter & Schmidhuber 1997): a sequence of 200 random numbers, two of which are marked, one in
either half; the answer is their sum. Always answering 1 has a mean square error of 0.167. Both are trained alike.
The picture long_memory.png shows, before and after the training, the norm of the loss's gradient by the hidden state
of each step (through time) and by the input of each step (to the layer below).

    python long_memory.py [training steps, 1500 unless given] [steps of a sequence, 200 unless given]

Expected output, after about a minute on two cores:

    RNN   step   500  mean square error 0.179
    RNN   step  1000  mean square error 0.167
    RNN   step  1500  mean square error 0.171
    LSTM  step   500  mean square error 0.178
    LSTM  step  1000  mean square error 0.008
    LSTM  step  1500  mean square error 0.002
    gradient by the state of the first step / of the last: RNN 0.0e+00, LSTM 3.0e-02
    picture in long_memory.png
"""

import sys

import numpy as np

import fastlstm as fl

LENGTH, BATCH, HIDDEN, RATE = 200, 50, 64, 3e-3
PICTURE = "long_memory.png"


def draw_problem(rng, length=LENGTH, batch=BATCH):
    """x (T, B, 2): a number and a mark; the answers (B, 1): the sum of the two marked numbers."""
    x = np.zeros((length, batch, 2), np.float32)
    x[..., 0] = rng.random((length, batch))
    rows = np.arange(batch)
    first, second = rng.integers(0, length // 2, batch), rng.integers(length // 2, length, batch)
    x[first, rows, 1] = x[second, rows, 1] = 1
    return x, (x[first, rows, 0] + x[second, rows, 0])[:, None]


def loss_of(layer, head, x, answers):
    """(mean square error, its gradients of layer and head, of the inputs (T, B, 2))."""
    y, _, tape = layer.forward(x)
    guess, of_guess = head.forward(y[-1])
    off = guess - answers
    d_last, of_head = head.backward(of_guess, 2 * off / len(off))
    dy = np.zeros_like(y)
    dy[-1] = d_last
    dx, _, of_layer = layer.backward(tape, dy)
    return float((off**2).mean()), [of_layer, of_head], dx


def norm(a, axis=None):
    """In float64: squares of float32 numbers below 1e-19 would be 0."""
    return np.sqrt((a.astype(float) ** 2).sum(axis))


def through_time(layer, head, x, answers):
    """Norm of the loss's gradient by h after each step, (T,): by running the rest of the sequence from there."""
    norms = np.zeros(len(x))
    stream, states = layer.stream(x.shape[1]), []
    for x_t in x:
        stream.step(x_t)
        states.append(stream.state)
    for t in range(len(x) - 1):
        y, _, tape = layer.forward(x[t + 1 :], states[t])
        guess, of_guess = head.forward(y[-1])
        d_last, _ = head.backward(of_guess, 2 * (guess - answers) / len(guess))
        dy = np.zeros_like(y)
        dy[-1] = d_last
        _, dstate, _ = layer.backward(tape, dy)
        norms[t] = norm(dstate[0] if isinstance(dstate, tuple) else dstate)
    norms[-1] = norm(d_last)
    return norms


def error_terms(layer, head, length=LENGTH, seed=1):
    """(through time (T,), to the layer below (T,)): norms of the gradients on a fresh batch."""
    x, answers = draw_problem(np.random.default_rng(seed), length)
    _, _, dx = loss_of(layer, head, x, answers)
    return through_time(layer, head, x, answers), norm(dx, axis=(1, 2))


def network(kind, length=LENGTH, seed=0):
    """A layer with its head. An LSTM's forget gates begin open for up to `length` steps (Tallec & Ollivier 2018)."""
    layer, head = {"RNN": fl.RNN, "LSTM": fl.LSTM}[kind](2, HIDDEN, seed=seed), fl.Dense(HIDDEN, 1, seed=seed)
    if kind == "LSTM":
        with layer.update() as params:
            open_for = np.log(np.random.default_rng(seed).uniform(1, length - 1, HIDDEN))
            params["bias_ih_l0"][: 2 * HIDDEN] = np.concatenate((-open_for, open_for))
    return layer, head


def train(kind, layer, head, steps, length=LENGTH, seed=0):
    """Mean square error of every step."""
    rng, optimizer, errors = np.random.default_rng(seed), fl.Adam([layer, head], lr=RATE), []
    for step in range(1, steps + 1):
        error, grads, _ = loss_of(layer, head, *draw_problem(rng, length))
        fl.clip_by_norm(grads, 1.0)
        optimizer.step(grads)
        errors.append(error)
        if step % 500 == 0 or step == steps:
            print(f"{kind:5} step {step:5d}  mean square error {np.mean(errors[-50:]):.3f}", flush=True)
    return errors


def draw(terms, errors):
    """The picture: a column for each way of the error, and the learning curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    colours = {"RNN": "#c44e52", "LSTM": "#4c72b0"}
    titles = ("through time: gradient by h of step t", "to the layer below: gradient by x of step t")
    for place, title in enumerate(titles):
        for (kind, when), both in terms.items():
            style = {"color": colours[kind], "linestyle": "-" if when == "after" else ":"}
            axes[place].semilogy(np.maximum(both[place], 1e-45), label=f"{kind}, {when} training", **style)
        axes[place].set(title=title, xlabel="step t", ylabel="norm", ylim=(1e-20, 10))
        axes[place].legend(fontsize=8)
    for kind, values in errors.items():
        smooth = np.convolve(values, np.ones(20) / 20, "valid") if len(values) >= 20 else values
        axes[2].plot(smooth, color=colours[kind], label=kind)
    axes[2].axhline(1 / 6, color="#888888", linestyle="--", linewidth=0.8, label="always answering 1")
    axes[2].set(title="learning the adding problem", xlabel="training step", ylabel="mean square error", ylim=(0, 0.4))
    axes[2].legend(fontsize=8)
    figure.savefig(PICTURE, dpi=120)
    print(f"picture in {PICTURE}")


def main(steps=1500, length=LENGTH):
    """({kind: mean square error of every step}, {(kind, when): error terms}), after printing and drawing."""
    terms, errors, shares = {}, {}, []
    for kind in ("RNN", "LSTM"):
        layer, head = network(kind, length)
        terms[kind, "before"] = error_terms(layer, head, length)
        errors[kind] = train(kind, layer, head, steps, length)
        terms[kind, "after"] = error_terms(layer, head, length)
        norms = terms[kind, "after"][0]
        shares.append(f"{kind} {norms[0] / norms[-1]:.1e}")
    print(f"gradient by the state of the first step / of the last: {', '.join(shares)}")
    try:
        draw(terms, errors)
    except ImportError:
        print(f"no {PICTURE}: matplotlib is not installed")
    return errors, terms


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
