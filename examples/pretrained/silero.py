"""Voice activity by silero-vad, a convolutional network with one LSTM of 128 units, at 16 kHz.

`fl.onnx.accelerate` runs the LSTM on fastlstm's kernels, and the convolutions on ONNX Runtime. With stateful=True the
states stay in the session: a microphone's chunks of 32 ms are fed one after another without h and c. Most of the time
goes into the convolutions, so that nothing is won here; nsnet2.py has a model that gains.

    pip install onnxruntime torch packaging      # what the package needs
    pip install --no-deps silero-vad==6.2.3
    python silero.py

The sound is made here: words of three vowels, with pauses. Expected output (times vary):

    /recurrent/LSTM: LSTM: on the kernels
    the rest: 2 pieces on ONNX Runtime
    30.0 s of sound, 938 chunks; 16 words, 35 % of the time
    probabilities of the whole: off by at most 1e-06
    probabilities chunk by chunk: off by at most 1e-06
    speech from 0.58 to 1.89 s, from 2.72 to 3.71 s, ...: the same 16 stretches
    the whole, one thread: 54.7 ms, with fastlstm 55.3 ms: 0.99 times as fast
    a chunk, one thread: 0.117 ms, with fastlstm 0.142 ms, of 32 ms
"""

import sys
import time
from pathlib import Path

import numpy as np
import signals

import fastlstm as fl

RATE, SECONDS, ROUNDS = 16000, 30.0, 7
TOLERANCE = 1e-5


def package():
    """The module silero_vad, or an exit that says what to install."""
    try:
        import onnxruntime
        import silero_vad
    except ImportError as error:
        raise SystemExit(
            f"{error}: pip install onnxruntime torch packaging; pip install --no-deps silero-vad==6.2.3"
        ) from None
    del onnxruntime
    return silero_vad


def off(got, right):
    """The largest difference, checked."""
    found = float(np.abs(got - right).max())
    if not found <= TOLERANCE:
        raise SystemExit(f"the probabilities differ by {found:.2g}")
    return found


def chunks(model, sound):
    """The model's inputs (N, 576): chunks of 512 samples, each behind the last 64 of the one before."""
    from silero_vad.sequence_vad import frame_blocks

    return np.concatenate(list(frame_blocks(sound, 512, 64, model.max_frames)))


def one_by_one(run, blocks):
    """(the probabilities of chunks that are fed one after another, median seconds of a chunk)."""
    found, times = [], []
    for block in blocks:
        begin = time.perf_counter()
        found.append(run(block[None]))
        times.append(time.perf_counter() - begin)
    return np.concatenate(found), float(np.median(times))


def carrying(session):
    """A function of a chunk that passes the states from call to call itself, as ONNX Runtime needs it."""
    states = {name: np.zeros((1, 1, 128), np.float32) for name in "hc"}

    def run(block):
        found, states["h"], states["c"] = session.run(["speech_probs", "hn", "cn"], {"input": block, **states})
        return found

    return run


def main(length=SECONDS, rounds=ROUNDS):
    silero = package()
    model = silero.load_silero_vad(sequence=True)
    path = Path(silero.__file__).parent / "data" / "silero_vad_16k_sequence.onnx"
    fast = fl.onnx.accelerate(path, threads=1)
    print(fast.summary)
    sound, speech = signals.speech(RATE, length)
    blocks = chunks(model, sound)
    expected = model.audio_forward(sound)
    stamps = silero.sequence_vad.get_speech_timestamps_sequence(sound, model, return_seconds=True, time_resolution=2)
    print(
        f"{length:.1f} s of sound, {len(blocks)} chunks; {len(stamps)} words, {100 * speech.mean():.0f} % of the time"
    )

    plain, model.session = model.session, fast
    print(f"probabilities of the whole: off by at most {off(model.audio_forward(sound), expected):.0e}")
    ours = silero.sequence_vad.get_speech_timestamps_sequence(sound, model, return_seconds=True, time_resolution=2)
    streaming = fl.onnx.accelerate(path, stateful=True, threads=1)
    each, ours_seconds = one_by_one(lambda block: streaming.run(["speech_probs"], {"input": block})[0], blocks)
    _, their_seconds = one_by_one(carrying(plain), blocks)
    print(f"probabilities chunk by chunk: off by at most {off(each, expected):.0e}")
    streamed = silero.utils_vad.get_speech_timestamps_from_probs(
        each, RATE, return_seconds=True, time_resolution=2, audio_length_samples=len(sound)
    )
    if not ours == streamed == stamps:
        raise SystemExit(f"the speech differs: {ours}, {streamed}, expected {stamps}")
    shown = ", ".join(f"from {one['start']} to {one['end']} s" for one in stamps[:2])
    print(f"speech {shown}, ...: the same {len(stamps)} stretches")

    times = {"theirs": [], "ours": []}
    for _ in range(rounds):
        for name, session in (("theirs", plain), ("ours", fast)):
            model.session = session
            begin = time.perf_counter()
            model.audio_forward(sound)
            times[name].append(time.perf_counter() - begin)
    before, after = (1e3 * float(np.median(times[name])) for name in ("theirs", "ours"))
    print(f"the whole, one thread: {before:.1f} ms, with fastlstm {after:.1f} ms: {before / after:.2f} times as fast")
    print(f"a chunk, one thread: {1e3 * their_seconds:.3f} ms, with fastlstm {1e3 * ours_seconds:.3f} ms, of 32 ms")


if __name__ == "__main__":
    main(*(float(word) for word in sys.argv[1:2]))
