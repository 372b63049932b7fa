"""The contenders of ``fastlstm bench --quantised``: reduced storage beside float32, and other libraries' int8."""

from __future__ import annotations

import functools
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..layout import Array
from . import contenders
from .cases import Case
from .contenders import needed
from .measure import Contender, Maker, Unsupported

# How far values may lie from the float64 reference, as a share of the reference's largest entry. The bounds only tell
# wrong from right: integers of 8 bits are off by 0.01 to 0.07, float16 by 3e-4.
OFF = {"int8": 0.12, "float16": 3e-3}
CALIBRATION = 20  # inputs from which OpenVINO's tool takes its scales


def makers(peers: bool = False) -> dict[str, Maker]:
    """int8 first, then float16 and float32 of the compiled backend; with `peers`, other libraries' int8 and float32."""
    ours: dict[str, Maker] = {f"c {storage}": functools.partial(reduced, storage) for storage in OFF}
    ours["c float32"] = functools.partial(contenders.fastlstm, "c", None)
    others: dict[str, Maker] = {
        "onnxruntime int8": onnxruntime_int8,
        "openvino int8": openvino_int8,
        "onnxruntime float32": contenders.onnxruntime,
    }
    return ours | others if peers else ours


def reduced(storage: str, case: Case, threads: int) -> Contender:
    """The compiled backend in a reduced storage."""
    made = contenders.our_contender(case, case.layer(backend="c").quantize(storage))
    made.call()
    return bounded(made, storage)


def bounded(made: Contender, storage: str) -> Contender:
    """The contender, whose values may lie as far off as this storage allows."""
    made.tolerance = OFF[storage]
    return made


def plain(case: Case) -> None:
    """Raise Unsupported unless the other libraries' tools quantise such a layer."""
    if case.mode == "train" or case.kind != "lstm" or case.ragged or case.ids or case.bidirectional or case.layers > 1:
        raise Unsupported("measured for calls and steps of one LSTM layer")


def onnxruntime_int8(case: Case, threads: int) -> Contender:
    """quantize_dynamic: weights as int8, the input and h as bytes by their range."""
    plain(case)
    needed("onnx")
    ort, tools = needed("onnxruntime"), needed("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder, quiet():
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(contenders.onnx_model(case))
        tools.quantize_dynamic(before, after, weight_type=tools.QuantType.QInt8)
        model = after.read_bytes()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return bounded(contenders.onnx_contender(case, lambda feeds: session.run(None, feeds)), "int8")


def openvino_int8(case: Case, threads: int) -> Contender:
    """NNCF's post-training quantisation, of a model whose first state is an input (without, it does not compile)."""
    plain(case)
    if case.mode == "step":
        raise Unsupported("its tool takes scales from whole sequences, and a model of one step has none")
    core, options = contenders.openvino_core(threads)
    nncf = needed("nncf")
    rng, drawn = np.random.default_rng(5), case.draw()
    feeds = contenders.onnx_feeds(case, drawn, stateful=True)

    def another(name: str, array: Array) -> Array:
        drawn = rng.standard_normal(array.shape) if name == "x" else rng.uniform(-0.5, 0.5, array.shape)
        return drawn.astype(np.float32)

    calibration = [{name: another(name, a) for name, a in feeds.items()} for _ in range(CALIBRATION)]
    with quiet():
        model = core.read_model(contenders.onnx_model(case, stateful=True))
        model = nncf.quantize(model, nncf.Dataset(calibration), subset_size=CALIBRATION)
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(given: dict[str, Array]) -> list[Array]:
        done = request.infer(feeds | given, share_inputs=True, share_outputs=True)
        return [array if at == 0 else array.copy() for at, array in enumerate(done.to_tuple())]

    return bounded(contenders.onnx_contender(case, run), "int8")


class quiet:
    """Within this context nothing is logged."""

    def __enter__(self) -> None:
        self.before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)

    def __exit__(self, *error: Any) -> None:
        logging.disable(self.before)
