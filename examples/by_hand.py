"""Parameters as an exercise writes them by hand, run and differentiated by the library, and given back.

    python by_hand.py

Expected output:

    LSTM(3, 5, single_bias=True, dtype='float64') Dense(5, 2, dtype='float64')
    loss 0.7000; dweight_ih_l0 (20, 3), dweight_hh_l0 (20, 5), dbias_ih_l0 (20,)
    given back bit for bit: Wf Wi Wc Wo bf bi bc bo Wy by
"""

import numpy as np

import fastlstm as fl

rng = np.random.default_rng(0)
INPUTS, HIDDEN, CLASSES = 3, 5, 2
mine = {f"W{gate}": rng.standard_normal((HIDDEN, HIDDEN + INPUTS)) for gate in "fico"}  # on the stacked [h; x]
mine |= {f"b{gate}": rng.standard_normal((HIDDEN, 1)) for gate in "fico"}
mine |= {"Wy": rng.standard_normal((CLASSES, HIDDEN)), "by": rng.standard_normal((CLASSES, 1))}

lstm, head = fl.from_arrays(mine, "lstm")
print(lstm, head)

x = rng.standard_normal((7, 10, INPUTS))  # 7 steps of 10 sequences
y, _, tape = lstm.forward(x)
loss, dy, of_head = head.cross_entropy(y, rng.integers(0, CLASSES, (7, 10)))
dx, _, grads = lstm.backward(tape, dy)
print(f"loss {loss:.4f};", ", ".join(f"d{name} {g.shape}" for name, g in grads.items()))

given_back = lstm.to_arrays("stacked", head=head)
assert all(np.array_equal(mine[key], given_back[key]) for key in mine)
print("given back bit for bit:", " ".join(mine))
