"""The well-known exercises of sequence models: RNN and LSTM cells, forward and backward, in the exercises' own arrays.

Parameters, inputs and gradients are drawn as the exercises draw them (seed 1, arrays of shape (features, batch, time)),
computed by the library in float64, and printed as the exercises print them.

    python exercises.py

Expected output:

    RNN cell, forward
    a_next[4] = [ 0.59584544  0.18141802  0.61311866  0.99808218  0.85016201  0.99980978 -0.18887155
      0.99815551  0.6531151   0.82872037]
    yt_pred[1] = [0.9888161  0.01682021 0.21140899 0.36817467 0.98988387 0.88945212 0.36920224 0.9966312
     0.9982559  0.17746526]

    LSTM cell, forward
    a_next[4] = [-0.66408471  0.0036921   0.02088357  0.22834167 -0.85575339  0.00138482  0.76566531
      0.34631421 -0.00215674  0.43827275]
    c_next[2] = [ 0.63267805  1.00570849  0.35504474  0.20690913 -1.64566718  0.11832942  0.76449811
     -0.0981561  -0.74348425 -0.26810932]
    yt[1] = [0.79913913 0.15986619 0.22412122 0.15606108 0.97057211 0.31146381 0.00943007 0.12666353
     0.39380172 0.07828381]

    RNN cell, backward
    dxt[1][2] = -1.3872130506020928
    da_prev[2][3] = -0.1523994937739546
    dWax[3][1] = 0.4107728249354599
    dWaa[1][2] = 1.1503450668497137
    dba[4] = [0.20023491]

    LSTM, backward through time
    dx[1][2] = [ 0.00218254  0.28205375 -0.48292508 -0.43281115]
    da0[2][3] = 0.3127703102572603
    dWf[3][1] = -0.08098023109383468
    dWi[1][2] = 0.40512433092981853
    dWc[3][1] = -0.07937467355121443
    dWo[1][2] = 0.038948775762986956
"""

import numpy as np

import fastlstm as fl

UNITS, INPUTS, BATCH, CLASSES = 5, 3, 10, 2


def columns(a):
    """The exercises' (features, batch) or (features, batch, time) as the library's (time, batch, features)."""
    return np.ascontiguousarray(a[:, :, None].transpose(2, 1, 0) if a.ndim == 2 else a.transpose(2, 1, 0))


def softmax(a):
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rnn_cell_forward():
    """a<t> = tanh(Waa a<t-1> + Wax x<t> + ba), y<t> = softmax(Wya a<t> + by)."""
    rng = np.random.RandomState(1)
    x, a = rng.randn(INPUTS, BATCH), rng.randn(UNITS, BATCH)
    p = {"Waa": rng.randn(UNITS, UNITS), "Wax": rng.randn(UNITS, INPUTS), "Wya": rng.randn(CLASSES, UNITS)}
    p |= {"ba": rng.randn(UNITS, 1), "by": rng.randn(CLASSES, 1)}
    rnn, head = fl.from_arrays(p, "rnn")
    _, a_next = rnn(columns(x), a.T[None].copy())
    print("RNN cell, forward")
    print("a_next[4] =", a_next[0, :, 4])
    print("yt_pred[1] =", softmax(head(a_next[0]))[:, 1])


def lstm_cell_forward():
    """The four gates on [a<t-1>; x<t>], c<t> = f * c<t-1> + i * candidate, a<t> = o * tanh(c<t>)."""
    rng = np.random.RandomState(1)
    x, a, c = rng.randn(INPUTS, BATCH), rng.randn(UNITS, BATCH), rng.randn(UNITS, BATCH)
    p = {}
    for gate in "fioc":
        p |= {f"W{gate}": rng.randn(UNITS, UNITS + INPUTS), f"b{gate}": rng.randn(UNITS, 1)}
    p |= {"Wy": rng.randn(CLASSES, UNITS), "by": rng.randn(CLASSES, 1)}
    lstm, head = fl.from_arrays(p, "lstm")
    _, (a_next, c_next) = lstm(columns(x), (a.T[None].copy(), c.T[None].copy()))
    print("LSTM cell, forward")
    print("a_next[4] =", a_next[0, :, 4])
    print("c_next[2] =", c_next[0, :, 2])
    print("yt[1] =", softmax(head(a_next[0]))[:, 1])


def rnn_cell_backward():
    """Error terms of one step: of the input, of the state before, of every parameter."""
    rng = np.random.RandomState(1)
    x, a = rng.randn(INPUTS, BATCH), rng.randn(UNITS, BATCH)
    p = {"Wax": rng.randn(UNITS, INPUTS), "Waa": rng.randn(UNITS, UNITS)}
    rng.randn(CLASSES, UNITS)  # Wya, which this exercise draws but does not use
    p["ba"] = rng.randn(UNITS, 1)
    rng.randn(CLASSES, 1)  # by
    rnn = fl.from_arrays(p, "rnn")
    _, _, tape = rnn.forward(columns(x), a.T[None].copy())
    dx, da_prev, grads = rnn.backward(tape, None, rng.randn(UNITS, BATCH).T[None].copy())
    print("RNN cell, backward")
    print("dxt[1][2] =", dx[0, 2, 1])
    print("da_prev[2][3] =", da_prev[0, 3, 2])
    print("dWax[3][1] =", grads["weight_ih_l0"][3, 1])
    print("dWaa[1][2] =", grads["weight_hh_l0"][1, 2])
    print("dba[4] =", grads["bias_ih_l0"][4:5])


def lstm_backward():
    """Error terms through four steps, to the input and to the first state."""
    rng = np.random.RandomState(1)
    x, a0 = rng.randn(INPUTS, BATCH, 7), rng.randn(UNITS, BATCH)
    p = {}
    for gate in "fioc":
        p |= {f"W{gate}": rng.randn(UNITS, UNITS + INPUTS), f"b{gate}": rng.randn(UNITS, 1)}
    da = rng.randn(UNITS, BATCH, 4)  # of four steps: the exercise leaves the last three of x out
    lstm = fl.from_arrays(p, "lstm")
    a0 = a0.T[None].copy()
    _, _, tape = lstm.forward(columns(x)[:4], (a0, np.zeros_like(a0)))
    dx, (da0, _), grads = lstm.backward(tape, columns(da))
    dW = dict(zip("ifco", np.split(np.hstack((grads["weight_hh_l0"], grads["weight_ih_l0"])), 4), strict=True))
    print("LSTM, backward through time")
    print("dx[1][2] =", dx[:, 2, 1])
    print("da0[2][3] =", da0[0, 3, 2])
    for gate, (row, column) in {"f": (3, 1), "i": (1, 2), "c": (3, 1), "o": (1, 2)}.items():
        print(f"dW{gate}[{row}][{column}] =", dW[gate][row, column])


def main():
    with np.printoptions(precision=8, suppress=True, linewidth=90):
        for exercise in (rnn_cell_forward, lstm_cell_forward, rnn_cell_backward, lstm_backward):
            exercise()
            print()


if __name__ == "__main__":
    main()
