"""Train on sequences of different lengths: did the number 1 appear more often than 0?

Forward and backward with `lengths`; padding is never read and costs nothing.

    python lengths.py

Expected output, after a second (the backend and its instruction set may change the last digit):

    step   50  loss 0.184
    step  100  loss 0.174
    step  150  loss 0.369
    step  200  loss 0.066
    step  250  loss 0.069
    step  300  loss 0.041
    right on new sequences: 97%
"""

import numpy as np

import fastlstm as fl

T, BATCH, HIDDEN = 40, 64, 32
rng = np.random.default_rng(0)
layer = fl.LSTM(input_size=2, hidden_size=HIDDEN, seed=0)
head = fl.Dense(HIDDEN, 2, seed=1)
optimizer = fl.Adam([layer, head], lr=1e-2)


def draw():
    """Token ids (T, BATCH) with rubbish behind each length, the lengths, and the right answers (BATCH,)."""
    lengths = rng.integers(1, T + 1, BATCH)
    ids = rng.integers(0, 2, (T, BATCH))
    valid = np.arange(T)[:, None] < lengths
    return ids, lengths, (ids * valid).sum(axis=0) * 2 > lengths


for step in range(1, 301):
    ids, lengths, answers = draw()
    y, (h, c), tape = layer.forward(ids, lengths=lengths)  # y (T, B, H); h (1, B, H) after each last valid step
    loss, dh, of_head = head.cross_entropy(h[0], answers.astype(int))
    _, _, of_layer = layer.backward(tape, None, (dh[None], None))  # only the final h has a gradient
    fl.clip_by_norm([of_layer, of_head], 1.0)
    optimizer.step([of_layer, of_head])
    if step % 50 == 0:
        print(f"step {step:4d}  loss {loss:.3f}")

ids, lengths, answers = draw()
last, _ = layer(ids, lengths=lengths, last_only=True)  # (B, H), without a tape
right = (head(last).argmax(axis=1) == answers).mean()
print(f"right on new sequences: {right:.0%}")
