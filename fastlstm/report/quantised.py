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
from .machine import Limits
from .measure import Contender, Maker, Unsupported

# Our contenders: the storage, and how the first layer's x is rounded.
FORMS: dict[str, tuple[str, str | None]] = {
    "c int8": ("int8", None),
    "c int8, x int16": ("int8", "int16"),
    "c int16": ("int16", None),
    "c float16": ("float16", None),
}

# How far values may lie from the float64 reference, as a share of the reference's largest entry. The bounds only tell
# wrong from right: integers of 8 bits are off by 0.01 to 0.07, the others by 3e-4.
OFF = {"int8": 0.12, "int16": 3e-3, "float16": 3e-3}
CALIBRATION = 20  # inputs from which OpenVINO's tool takes its scales


def makers(peers: bool = False) -> dict[str, Maker]:
    """int8 first, then the compiled backend's other storages; with `peers`, other libraries' int8 and float32."""
    ours: dict[str, Maker] = {name: functools.partial(reduced, *form) for name, form in FORMS.items()}
    ours["c float32"] = functools.partial(contenders.fastlstm, "c", None)
    others: dict[str, Maker] = {
        "onnxruntime int8": onnxruntime_int8,
        "openvino int8": openvino_int8,
        "onnxruntime float32": contenders.onnxruntime,
    }
    return ours | others if peers else ours


def least_seconds(case: Case, limits: Limits) -> float:
    """The least time in which this machine computes a call in int8.

    It makes the input's products at the peak of integers. In each step it makes the recurrent products at that peak, or
    reads their weights, a byte each, from the level of its memory that holds them, whichever is longer. A stream's step
    reads the input's weights too.
    """
    weights = case.recurrent_bytes / 4
    inputs = weights * case.I / case.H
    rows = case.B * case.T
    if case.mode == "step":
        return limits.seconds(0, weights + inputs, weights + inputs, 2 * rows * (weights + inputs))
    return 2 * rows * inputs / limits.integers + case.T * limits.seconds(0, weights, weights, 2 * case.B * weights)


def reduced(storage: str, inputs: str | None, case: Case, threads: int) -> Contender:
    """The compiled backend in a reduced storage."""
    made = contenders.our_contender(case, case.layer(backend="c").quantize(storage, inputs))
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
    feeds = contenders.onnx_feeds(case, case.draw(), stateful=True)
    request = core.compile_model(nncf_model(case, core), "CPU", options).create_infer_request()

    def run(given: dict[str, Array]) -> list[Array]:
        done = request.infer(feeds | given, share_inputs=True, share_outputs=True)
        return [array if at == 0 else array.copy() for at, array in enumerate(done.to_tuple())]

    return bounded(contenders.onnx_contender(case, run), "int8")


def nncf_model(case: Case, core: Any) -> Any:
    """OpenVINO's model with weights and inputs in int8."""
    nncf, passes = needed("nncf"), needed("openvino.passes")
    rng, drawn = np.random.default_rng(5), case.draw()
    feeds = contenders.onnx_feeds(case, drawn, stateful=True)

    def another(name: str, array: Array) -> Array:
        drawn = rng.standard_normal(array.shape) if name == "x" else rng.uniform(-0.5, 0.5, array.shape)
        return drawn.astype(np.float32)

    calibration = [{name: another(name, a) for name, a in feeds.items()} for _ in range(CALIBRATION)]
    with quiet():
        model = core.read_model(contenders.onnx_model(case, stateful=True))
        # The reader puts the gates into OpenVINO's order by nodes, behind which the tool does not see constant weights.
        manager = passes.Manager()
        manager.register_pass(passes.ConstantFolding())
        manager.run_passes(model)
        return nncf.quantize(model, nncf.Dataset(calibration), subset_size=CALIBRATION)


class quiet:
    """Within this context nothing is logged."""

    def __enter__(self) -> None:
        self.before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)

    def __exit__(self, *error: Any) -> None:
        logging.disable(self.before)
