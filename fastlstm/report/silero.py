"""Silero VAD at 16 kHz, a convolutional network with an LSTM, whole on the native step, and beside ONNX Runtime."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..dense import Dense
from ..layout import Array
from ..onnx import from_onnx
from ..onnx.messages import read_model
from ..onnx.tensors import to_array
from ..steps import Context, Gather, Magnitude
from ..streams import StreamBatch

RATE = 16000
CHUNK, CONTEXT, FRAME, HOP, PADDED = 512, 64, 256, 128, 64  # samples
WHOLE, BATCHED = "silero_vad_16k_sequence.onnx", "silero_vad_16k_op15.onnx"  # one stream at a time; many
STRIDES = (1, 2, 2, 1)  # of the convolutions


def folder() -> Path:
    """Where the package silero-vad has its models.

    Raises
    ------
    ImportError
        The package is not installed.
    """
    spec = importlib.util.find_spec("silero_vad")  # an import would load PyTorch
    if spec is None or spec.origin is None:
        raise ImportError("silero-vad is not installed: pip install --no-deps silero-vad==6.2.3")
    return Path(spec.origin).parent / "data"


def model(path: str | os.PathLike[str] | None = None) -> list[Any]:
    """The list that `fastlstm.StreamBatch` takes, from the package's file of one stream.

    A stream takes chunks of 512 samples in -1..1 and gives the probability of speech.

    Parameters
    ----------
    path : path, optional
        None: the installed package's.
    """
    path = folder() / WHOLE if path is None else Path(path)
    graph = read_model(path).graph
    assert graph is not None
    given = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    basis = given["stft.forward_basis_buffer"][:, 0]  # (258, 256): real parts, then imaginary ones
    bins, frames = len(basis) // 2, (CONTEXT + CHUNK + PADDED - FRAME) // HOP + 1
    parts: list[Any] = [Context(CHUNK, CONTEXT), Gather(framing(frames)), dense(basis), Magnitude()]
    channels = bins
    for i, stride in enumerate(STRIDES):
        weight = given[f"encoder.{i}.weight"]
        index, used = columns(frames, channels, stride, weight.shape[2])
        flat = weight[:, :, used].transpose(0, 2, 1).reshape(len(weight), -1)
        parts += [Gather(index), dense(flat, given[f"encoder.{i}.bias"]), "relu"]
        frames, channels = len(index), len(weight)
    head = dense(given["output.weight"][:, :, 0], given["output.bias"])
    return [*parts, from_onnx(path), "relu", head, "sigmoid"]


def framing(frames: int) -> Array:
    """(frames, 256) places of the short-time Fourier transform's frames; the end is padded by reflection."""
    last = CONTEXT + CHUNK - 1
    place = np.arange(frames)[:, None] * HOP + np.arange(FRAME)
    index: Array = np.where(place > last, 2 * last - place, place)
    return index


def columns(frames: int, channels: int, stride: int, width: int) -> tuple[Array, list[int]]:
    """A convolution of `width` taps over frames as a product: (places of each output's inputs, the taps that have any).

    One frame of zeros stands before the first one and one behind the last one.
    """
    tap = np.arange((frames - 1) // stride + 1)[:, None] * stride + np.arange(width) - 1  # (outputs, taps) frames
    there = (tap >= 0) & (tap < frames)
    used = np.flatnonzero(there.any(axis=0))
    place = tap[:, used, None] * channels + np.arange(channels)
    index = np.where(there[:, used, None], place, -1)
    return index.reshape(len(index), -1), used.tolist()


def dense(weight: Array, bias: Array | None = None) -> Dense:
    """A dense layer with given parameters."""
    layer = Dense(weight.shape[1], len(weight), bias is not None, seed=0)
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return layer


# ------------------------------------------------------------------------------------------------- beside ONNX Runtime
def session(name: str) -> Any:
    """ONNX Runtime's session of a file of the package, with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(folder() / name, options, providers=["CPUExecutionProvider"])


def reference(n: int) -> Callable[[Array], Array]:
    """A step of n streams by ONNX Runtime: chunks (n, 512) to probabilities (n, 1). It keeps contexts and states."""
    kept = {"context": np.zeros((n, CONTEXT), np.float32)}
    if n == 1:
        run, state = session(WHOLE).run, {name: np.zeros((1, 1, 128), np.float32) for name in "hc"}
    else:
        run, state = session(BATCHED).run, {"state": np.zeros((2, n, 128), np.float32)}
    more = {} if n == 1 else {"sr": np.array(16000, np.int64)}

    def step(chunks: Array) -> Array:
        x = np.concatenate((kept["context"], chunks), axis=1)
        kept["context"] = x[:, -CONTEXT:]
        y, *after = run(None, {"input": x, **state, **more})
        state.update(zip(state, after, strict=True))
        found: Array = np.reshape(y, (n, 1))
        return found

    return step


def ours(n: int) -> Callable[[Array], Array]:
    """The same by a `StreamBatch`."""
    streams = StreamBatch(model(), capacity=n)
    handles = np.array([streams.open() for _ in range(n)])
    return lambda chunks: streams.step(handles, chunks)


def timings(streams: tuple[int, ...] = (1, 64), rounds: int = 7, seconds: float = 0.15) -> dict[int, dict[str, float]]:
    """Seconds of a step of n streams by ONNX Runtime and by fastlstm, one thread, by turns; the median of the rounds.

    Parameters
    ----------
    streams : tuple of int
    rounds : int
    seconds : float
        Of each turn.

    Returns
    -------
    timings : dict
        By number of streams: {"reference": seconds, "ours": seconds, "off": largest difference of the probabilities}.

    Raises
    ------
    ImportError
        silero-vad or ONNX Runtime is not installed.
    """
    found: dict[int, dict[str, float]] = {}
    for n in streams:
        steps = {"reference": reference(n), "ours": ours(n)}
        sound, off = noise(n), 0.0
        for _, x in zip(range(20), sound, strict=False):
            off = max(off, float(np.abs(steps["reference"](x) - steps["ours"](x)).max()))
        x, times = next(sound), {name: list[float]() for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                times[name].append(_turn(step, x, seconds))
        found[n] = {name: float(np.median(each)) for name, each in times.items()} | {"off": off}
    return found


def _turn(step: Callable[[Array], Array], x: Array, seconds: float) -> float:
    """Mean seconds of a step."""
    count, begin = 0, time.perf_counter()
    while (now := time.perf_counter()) - begin < seconds or count < 3:
        step(x)
        count += 1
    return (now - begin) / count


def noise(n: int) -> Iterator[Array]:
    """Chunks (n, 512) of noise that comes and goes."""
    rng = np.random.default_rng(0)
    while True:
        yield (rng.standard_normal((n, CHUNK)) * 10.0 ** rng.uniform(-3, -0.5, (n, 1))).astype(np.float32)
