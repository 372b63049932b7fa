"""Voice activity of many callers at once: silero-vad at 16 kHz as streams, without ONNX Runtime and PyTorch.

The package's ONNX file becomes a list: 64 samples of context, framing, a Fourier transform and convolutions as dense
layers, the LSTM, a head. `fl.StreamBatch` steps any choice of callers by chunks of 32 ms; a caller's state is bytes.

    pip install onnxruntime                      # only to compare with
    pip install --no-deps silero-vad==6.2.3      # the model's file
    python silero_service.py

The sound is made here: words of three vowels, with pauses. Expected output (times vary):

    Context(512, 64), 5 dense layers, LSTM(128, 128): 1280 bytes of state for each caller
    5 callers, 187 chunks each: off by at most 7e-06 from ONNX Runtime
    caller 3 goes on in another StreamBatch, from 1332 bytes: the same bits
    1 stream, one thread: ONNX Runtime 103 us, fastlstm 21 us a chunk: 4.8 times as fast
    64 streams, one thread: ONNX Runtime 3726 us, fastlstm 853 us a chunk: 4.4 times as fast
"""

import sys

import numpy as np
import signals

import fastlstm as fl
from fastlstm.report import silero

TOLERANCE, CALLERS = 1e-5, 5


def off(got, right):
    """The largest difference, checked."""
    found = float(np.abs(got - right).max())
    if not found <= TOLERANCE:
        raise SystemExit(f"the probabilities differ by {found:.2g}")
    return found


def list_of_the_model():
    """The list, or an exit that says what to install."""
    try:
        import onnxruntime

        parts = silero.model()
    except ImportError as error:
        raise SystemExit(f"{error}: pip install onnxruntime; pip install --no-deps silero-vad==6.2.3") from None
    del onnxruntime
    return parts


def main(seconds=6.0, rounds=5):
    parts = list_of_the_model()
    streams = fl.StreamBatch(parts)
    handles = np.array([streams.open(key=f"caller {i}") for i in range(CALLERS)])
    kinds = [type(part).__name__ for part in parts]
    print(
        f"{parts[0]}, {kinds.count('Dense') - 1} dense layers, {parts[kinds.index('LSTM')]}: "
        f"{streams.stats()['state_bytes']} bytes of state for each caller"
    )
    sound = np.stack([signals.speech(silero.RATE, seconds, seed=i)[0] for i in range(CALLERS)])
    chunks = sound[:, : sound.shape[1] // silero.CHUNK * silero.CHUNK].reshape(CALLERS, -1, silero.CHUNK)
    step, found, right = silero.reference(CALLERS), [], []
    for x in chunks.swapaxes(0, 1):
        found.append(streams.step(handles, x))
        right.append(step(x))
    difference = off(np.array(found), np.array(right))
    print(f"{CALLERS} callers, {len(found)} chunks each: off by at most {difference:.0e} from ONNX Runtime")

    (state,) = streams.export(handles[3])
    elsewhere = fl.StreamBatch(list_of_the_model())
    moved = elsewhere.open("caller 3", state=state)
    if not np.array_equal(elsewhere.step(moved, chunks[3, 0]), streams.step(int(handles[3]), chunks[3, 0])):
        raise SystemExit("the caller's stream has changed on its way")
    print(f"caller 3 goes on in another StreamBatch, from {len(state)} bytes: the same bits")
    for n, times in silero.timings(rounds=rounds).items():
        ort, ours = times["reference"], times["ours"]
        print(
            f"{n} stream{'s' * (n > 1)}, one thread: ONNX Runtime {1e6 * ort:.0f} us, fastlstm {1e6 * ours:.0f} us "
            f"a chunk: {ort / ours:.1f} times as fast"
        )


if __name__ == "__main__":
    main(*(float(word) for word in sys.argv[1:2]))
