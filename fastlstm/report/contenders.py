"""The contenders: fastlstm's backends and other libraries, all with the same weights.

A maker takes a case and a number of threads and returns a `Contender`, or raises `Unsupported`. A library gets its
quickest form: weights packed beforehand, results not copied where its own users would not copy them, and exactly the
number of threads asked for.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from .._backends import backends, module
from .._keras_weights import from_keras, to_keras
from .._onnx_weights import node_attributes, node_tensors
from ..layout import Array, suffix
from ..spec import Spec
from ..validation import flag
from . import models
from .cases import Case, Drawn, ModelCase
from .measure import Contender, Maker, Unsupported


def needed(package: str) -> Any:
    """The package, or Unsupported."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise Unsupported(f"not installed ({error})") from error


def ours(isas: bool = False) -> dict[str, Maker]:
    """Every usable backend, best first; with `isas`, the compiled one with its other usable instruction sets too."""
    isas = flag(isas, "isas")
    makers: dict[str, Maker] = {n: functools.partial(fastlstm, n, None) for n, why in backends().items() if why is None}
    if isas and "c" in makers:
        c = module("c")
        others = [isa for isa, why in c.isas().items() if why is None and isa != c.active_isa()]
        makers |= {f"c {isa}": functools.partial(fastlstm, "c", isa) for isa in others}
    return makers


def peers() -> dict[str, Maker]:
    every: list[Any] = [torch, onnxruntime, openvino, tensorflow]
    return {make.__name__: functools.partial(peer, make) for make in every}


def peer(make: Maker, case: Case | ModelCase, threads: int) -> Contender:
    """A library's contender, for the cases that all libraries can compute."""
    if isinstance(case, ModelCase):
        if make is not torch:
            raise Unsupported("whole training steps are measured beside PyTorch only")
        return models.torch_contender(needed("torch"), case, threads)
    if case.ids:
        raise Unsupported("takes token ids only through an embedding, which is a layer of its own")
    if case.mode == "run":
        raise Unsupported("has no streams")
    return make(case, threads)


SIZE_1 = ", input of size 1"


def in_both_forms(makers: Mapping[str, Maker]) -> dict[str, Maker]:
    """The contenders that take token ids, each also on the numbers that the ids stand for."""
    both: dict[str, Maker] = {}
    for name in (name for name in makers if name not in peers()):
        both |= {name: makers[name], name + SIZE_1: functools.partial(of_size_1, makers[name])}
    return both


def of_size_1(make: Maker, case: Case, threads: int) -> Contender:
    return make(case.of_size_1, threads)


def reference(case: Case | ModelCase) -> Mapping[str, Array]:
    """The right values: those of the NumPy backend in float64, on the same float32 numbers."""
    if isinstance(case, ModelCase):
        return models.our_contender(case, "float64", "numpy").values()
    return our_contender(case, case.layer("float64", "numpy")).values()


# ----------------------------------------------------------------------------------------------------------------- ours
def fastlstm(backend: str, isa: str | None, case: Case | ModelCase, threads: int) -> Contender:
    """One of our backends, perhaps with a forced instruction set."""
    choice: AbstractContextManager[None] = module("c").use_isa(isa) if isa else nullcontext()
    with choice:  # weights keep the instruction set for which they are packed, at the first call
        if isinstance(case, ModelCase):
            contender = models.our_contender(case, backend=backend)
        else:
            contender = our_contender(case, case.layer(backend=backend))
        contender.call()
    return contender


def our_contender(case: Case, layer: Any) -> Contender:
    drawn = case.draw()
    x, dy = drawn.x if case.ids else drawn.x.astype(layer.dtype), drawn.dy.astype(layer.dtype)
    if case.mode == "step":
        step, x_0 = layer.stream(case.B).step, x[0]
        return Contender(lambda: step(x_0), lambda: {"y": stepped(layer.stream(case.B).step, x)})
    if case.mode == "run":
        run = layer.stream(case.B).run
        return Contender(lambda: run(x), lambda: {"y": layer.stream(case.B).run(x)})
    if case.mode == "forward":
        return Contender(lambda: layer(x, None, drawn.lengths), lambda: {"y": layer(x, None, drawn.lengths)[0]})

    def train() -> tuple[Array, Array | None, dict[str, Array]]:
        y, _, tape = layer.forward(x, None, drawn.lengths)
        dx, _, grads = layer.backward(tape, dy)
        return y, dx, grads

    return Contender(train, lambda: named(*train()))


def stepped(step: Callable[[Array], Array], x: Array) -> Array:
    """The outputs of a stream's first steps: (T, B, H)."""
    return np.stack([np.array(step(x_t)) for x_t in x])


def named(y: Array, dx: Array | None, grads: Mapping[str, Array]) -> dict[str, Array]:
    """The values of a training step, by name. (Token ids have no dx.)"""
    found = {"y": y} if dx is None else {"y": y, "dx": dx}
    return found | {f"d{name}": g for name, g in sorted(grads.items())}


# ---------------------------------------------------------------------------------------------------------------- torch
def torch(case: Case, threads: int, prepare: Callable[[Any], object] = lambda layer: None) -> Contender:
    """nn.LSTM, nn.GRU, nn.RNN: inference_mode, or autograd. Sequences of unequal length as a PackedSequence.

    Parameters
    ----------
    case, threads
    prepare : function
        Called with the module before anything is computed.
    """
    torch = needed("torch")
    if not case.reset_after:
        raise Unsupported("has no GRU that resets first")
    torch.set_num_threads(threads)
    drawn = case.draw()
    make = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[case.kind]
    layer = make(case.I, case.H, case.layers, bidirectional=case.bidirectional)
    layer.load_state_dict({name: torch.from_numpy(w) for name, w in drawn.weights.items()})
    prepare(layer)
    x, dy = torch.from_numpy(drawn.x), torch.from_numpy(drawn.dy)
    if case.mode == "step":
        return torch_step(torch, layer, x)
    if case.mode == "train":
        return torch_train(torch, layer, x, dy, drawn.lengths)
    rows = packed(torch, x, drawn.lengths)  # outside the time: kind to torch

    def forward() -> Any:
        with torch.inference_mode():
            return layer(rows)[0]

    return Contender(forward, lambda: {"y": unpacked(torch, forward()).numpy()})


def packed(torch: Any, x: Any, lengths: Array | None) -> Any:
    return x if lengths is None else torch.nn.utils.rnn.pack_padded_sequence(x, torch.from_numpy(lengths))


def unpacked(torch: Any, y: Any) -> Any:
    return y if isinstance(y, torch.Tensor) else torch.nn.utils.rnn.pad_packed_sequence(y)[0]


def torch_step(torch: Any, layer: Any, x: Any) -> Contender:
    class Step:
        state: Any = None

        def __call__(self, x_t: Any) -> Any:
            with torch.inference_mode():
                y, self.state = layer(x_t, self.state)
            return y

    def values() -> dict[str, Array]:
        step = Step()
        return {"y": stepped(lambda x_t: step(x_t).numpy(), x[:, None])[:, 0]}

    step, x_0 = Step(), x[:1]
    return Contender(lambda: step(x_0), values)


def torch_train(torch: Any, layer: Any, x: Any, dy: Any, lengths: Array | None) -> Contender:
    x.requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def train() -> Any:
        y = unpacked(torch, layer(packed(torch, x, lengths))[0])
        return y, torch.autograd.grad(y, [x, *parameters], dy)

    def values() -> dict[str, Array]:
        y, (dx, *grads) = train()
        return named(y.detach().numpy(), dx.numpy(), dict(zip(names, (g.numpy() for g in grads), strict=True)))

    return Contender(train, values)


# --------------------------------------------------------------------------------------------------- ONNX and its users
def onnx_model(case: Case, stateful: bool = False) -> bytes:
    """The case as an ONNX model: inputs x, lengths where ragged, the state for steps; outputs y, and the new state.

    With `stateful` the state is an input and an output of calls too.
    """
    onnx = needed("onnx")
    make, drawn, steps = onnx.helper, case.draw(), case.mode == "step" or stateful
    nodes, weights, inputs, outputs = [], [], [], []
    FLOAT, T = onnx.TensorProto.FLOAT, 1 if case.mode == "step" else case.T
    states = ("h", "c") if case.kind == "lstm" else ("h",)

    def tensor(name: str, shape: tuple[int, ...], kind: Any = FLOAT) -> Any:
        return make.make_tensor_value_info(name, kind, shape)

    def constant(name: str, value: Array) -> str:
        weights.append(onnx.numpy_helper.from_array(value, name))
        return name

    inputs.append(tensor("x", (T, case.B, case.I)))
    if case.ragged:
        inputs.append(tensor("lengths", (case.B,), onnx.TensorProto.INT32))
    x = "x"
    for layer in range(case.layers):
        directions = [layer_params(drawn, layer, d) for d in range(case.D)]
        tensors = node_tensors(directions, case.kind)
        given = [x, *(constant(f"{name}{layer}", tensors[name]) for name in "WRB")]
        given += ["lengths" if case.ragged else ""] + ([f"{s}_0" for s in states] if steps else [])
        spec = Spec(case.kind, case.I, case.H, reset_after=case.reset_after)
        made = [f"Y{layer}"] + ([f"{s}_n" for s in states] if steps else [])
        nodes.append(make.make_node(case.kind.upper(), given, made, **node_attributes([spec] * case.D)))
        if layer < case.layers - 1:  # (T, D, B, H) -> (T, B, D*H); the last one stays as it is
            nodes.append(make.make_node("Transpose", [made[0]], [f"Z{layer}"], perm=(0, 2, 1, 3)))
            shape = constant(f"S{layer}", np.array((T, case.B, case.D * case.H), np.int64))
            x = f"X{layer + 1}"
            nodes.append(make.make_node("Reshape", [f"Z{layer}", shape], [x]))
    outputs.append(tensor(f"Y{case.layers - 1}", (T, case.D, case.B, case.H)))
    if steps:
        inputs += [tensor(f"{s}_0", (1, case.B, case.H)) for s in states]
        outputs += [tensor(f"{s}_n", (1, case.B, case.H)) for s in states]
    graph = make.make_graph(nodes, "recurrent", inputs, outputs, weights)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def layer_params(drawn: Drawn, layer: int, d: int) -> dict[str, Array]:
    """The parameters of one direction of a layer, without the suffix."""
    end = suffix(layer, d)
    return {name.removesuffix(end): w for name, w in drawn.weights.items() if name == name.removesuffix(end) + end}


def unstacked(y: Array) -> Array:
    """ONNX's (T, D, B, H) as (T, B, D*H)."""
    return np.ascontiguousarray(y.transpose(0, 2, 1, 3)).reshape(y.shape[0], y.shape[2], -1)


def onnx_feeds(case: Case, drawn: Drawn, stateful: bool = False) -> dict[str, Array]:
    """What a session is fed: the input, the lengths and, for steps or with `stateful`, a zero state."""
    feeds = {"x": drawn.x[:1] if case.mode == "step" else drawn.x}
    if drawn.lengths is not None:
        feeds["lengths"] = drawn.lengths.astype(np.int32)
    if case.mode == "step" or stateful:
        feeds |= {f"{s}_0": np.zeros((1, case.B, case.H), np.float32) for s in ("hc" if case.kind == "lstm" else "h")}
    return feeds


def no_training(case: Case) -> None:
    if case.mode == "train":
        raise Unsupported("does not train")


def onnxruntime(case: Case, threads: int) -> Contender:
    """session.run, for a stream with the state carried from call to call."""
    no_training(case)
    ort = needed("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(onnx_model(case), options, providers=["CPUExecutionProvider"])
    return onnx_contender(case, lambda feeds: session.run(None, feeds))


def stream_sessions(case: Case) -> Callable[[], Callable[[], object]]:
    """Makes streams over one session, which any threads may use at the same time; each call of one is a step."""
    ort = needed("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = ort.InferenceSession(onnx_model(case), options, providers=["CPUExecutionProvider"])
    return lambda: onnx_contender(case, lambda feeds: session.run(None, feeds)).call


def openvino_core(threads: int) -> tuple[Any, dict[str, Any]]:
    """(OpenVINO's core, the options of a model for so many threads)."""
    # Disable OpenVINO's telemetry, which forks a process while times are measured.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    ov = needed("openvino")
    needed("onnx")
    # OpenVINO's default precision is bfloat16 where the processor has it.
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    return ov.Core(), options


def openvino(case: Case, threads: int) -> Contender:
    """A compiled model for the CPU, arrays shared and not copied."""
    no_training(case)
    core, options = openvino_core(threads)
    request = core.compile_model(core.read_model(onnx_model(case)), "CPU", options).create_infer_request()

    def run(feeds: dict[str, Array]) -> list[Array]:
        done = request.infer(feeds, share_inputs=True, share_outputs=True)
        # A stream's state is the next call's input, so it is copied out of the array that this call writes.
        return [array if at == 0 else array.copy() for at, array in enumerate(done.to_tuple())]

    return onnx_contender(case, run)


def onnx_contender(case: Case, run: Callable[[dict[str, Array]], list[Array]]) -> Contender:
    """The contender of an ONNX model; `run` takes its inputs by name and returns its outputs in order."""
    drawn = case.draw()
    feeds = onnx_feeds(case, drawn)
    if case.mode != "step":
        return Contender(lambda: run(feeds), lambda: {"y": unstacked(run(feeds)[0])})

    class Step:
        def __init__(self) -> None:
            self.feeds = onnx_feeds(case, drawn)
            self.states = [name for name in self.feeds if name.endswith("_0")]

        def __call__(self, x_t: Array) -> Array:
            self.feeds["x"] = x_t
            y, *new = run(self.feeds)
            self.feeds.update(zip(self.states, new, strict=True))
            return y

    step, x_0 = Step(), drawn.x[:1]
    return Contender(lambda: step(x_0), lambda: {"y": stepped(Step(), drawn.x[:, None])[:, 0, 0]})


# ----------------------------------------------------------------------------------------------------------- TensorFlow
def tensorflow(case: Case, threads: int) -> Contender:
    """Training with Keras layers in a tf.function. Inference is left out: other libraries are many times quicker."""
    if case.mode != "train" or case.ragged or case.bidirectional or not case.reset_after:
        raise Unsupported("measured only in the training of plain layers")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no start-up log
    tf = needed("tensorflow")
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # TensorFlow has started, and its number of threads is fixed
        if tf.config.threading.get_intra_op_parallelism_threads() != threads:
            raise Unsupported("keeps its number of threads: measure one number in a run") from None
    drawn = case.draw()
    make = {"lstm": tf.keras.layers.LSTM, "gru": tf.keras.layers.GRU, "rnn": tf.keras.layers.SimpleRNN}[case.kind]
    layers = [make(case.H, return_sequences=True) for _ in range(case.layers)]
    for at, layer in enumerate(layers):
        layer.build((case.B, case.T, case.I if at == 0 else case.H))
        layer.set_weights(to_keras(layer_params(drawn, at, 0), case.kind))
    variables = [v for layer in layers for v in layer.trainable_weights]
    x, dy = (tf.constant(a.swapaxes(0, 1)) for a in (drawn.x, drawn.dy))  # Keras has the batch first

    @tf.function  # type: ignore[untyped-decorator]
    def train(x: Any, dy: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for layer in layers:
                y = layer(y)
        return y, tape.gradient(y, [x, *(v.value for v in variables)], dy)

    def values() -> dict[str, Array]:
        y, (dx, *grads) = train(x, dy)
        y, dx = (np.ascontiguousarray(a.numpy().swapaxes(0, 1)) for a in (y, dx))
        return named(y, dx, keras_gradients(case, [g.numpy() for g in grads]))

    return Contender(lambda: train(x, dy), values)


def keras_gradients(case: Case, grads: list[Array]) -> dict[str, Array]:
    """Three gradients a layer, by our names: Keras's one bias stands for two of ours, which have the same gradient."""
    found: dict[str, Array] = {}
    for layer in range(case.layers):
        each = from_keras(grads[3 * layer : 3 * layer + 3], case.kind)
        each.setdefault("bias_hh", each["bias_ih"])
        found |= {name + suffix(layer, 0): g for name, g in each.items()}
    return found
