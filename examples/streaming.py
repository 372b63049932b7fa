"""Feed a sequence as it arrives, one step at a time, and get what one call over the whole gives.

Also how long a step takes, and how one set of weights serves several independent streams.

    python streaming.py

Expected output (the time is that of a 2.6 GHz core with AVX-512):

    GRU(40, 64, num_layers=2) on backend c: 5.3 us a step (median), as the whole call
    rows 0, 1, 3 went on alike: True
    row 2 began anew: True
"""

import time

import numpy as np

import fastlstm as fl

layer = fl.GRU(input_size=40, hidden_size=64, num_layers=2, seed=0)
x = np.random.default_rng(1).standard_normal((500, 40)).astype("float32")
whole, _ = layer(x)

stream = layer.stream()
out = np.empty(64, "float32")
micros = []
for x_t, expected in zip(x, whole, strict=True):
    begin = time.perf_counter()
    stream.step(x_t, out=out)  # with `out`, a step allocates nothing
    micros.append((time.perf_counter() - begin) * 1e6)
    assert np.allclose(out, expected, atol=1e-5)
print(f"{layer} on backend {layer.backend}: {np.median(micros):.1f} us a step (median), as the whole call")

# Four speakers side by side in one stream; the third hangs up, and another takes its place.
speakers = layer.stream(batch_size=4)
speakers.run(np.broadcast_to(x[:100, None], (100, 4, 40)))
speakers.reset(rows=[2])
y = speakers.step(np.broadcast_to(x[100], (4, 40)))
print("rows 0, 1, 3 went on alike:", np.array_equal(y[0], y[1]) and np.array_equal(y[0], y[3]))
print("row 2 began anew:", not np.array_equal(y[0], y[2]))

# A state can be put aside and taken up again.
fork = stream.copy()
assert np.array_equal(fork.step(x[0]), stream.step(x[0]))
