"""Damaged ONNX models for `hostile`: bytes, and models whose messages are changed or exchanged."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable
from typing import Any

LOCATIONS = ["../../etc/passwd", "/etc/passwd", "", "file", ".", "a\0b", "/dev/zero", "..", "x" * 5000]
NUMBERS = [0, -1, 1, 2, 7, 1 << 31, (1 << 62) + 1, -(1 << 63)]
OPERATORS = [
    "Identity",
    "Expand",
    "ConstantOfShape",
    "Concat",
    "Tile",
    "Gather",
    "Reshape",
    "LSTM",
    "If",
    "Pair",
    "Split",
]


@functools.cache
def onnx_files() -> list[bytes]:
    """A layer; a model with an If, a Scan and a function, and with weights made by expressions; one of 8 bits."""
    import numpy as np

    import fastlstm as fl
    from fastlstm.onnx.builder import Graph, attribute, model
    from fastlstm.onnx.export import of_layer
    from fastlstm.onnx.messages import (
        AttributeProto,
        FunctionProto,
        ModelProto,
        NodeProto,
        OperatorSetIdProto,
        StringStringEntryProto,
    )

    f32 = np.dtype(np.float32)
    plain = model(of_layer(fl.LSTM(2, 3, 2, bidirectional=True, peepholes=True, clip=2.0, seed=0), True, True))
    g = Graph("main", f32)
    g.input("x", f32, ["T", "B", 2])
    g.input("condition", np.bool_, [])
    W = g.node("Slice", g.constant(np.ones((1, 24, 2)), "W"), g.ints(0), g.ints(12), g.ints(1))
    stored = g.constant(np.ones((12, 3)), "R", np.int8)
    R = g.unsqueeze(g.node("DequantizeLinear", stored, g.constant(0.1, "s"), g.constant(0, "z", np.int8)), 0)
    B = g.node("Concat", *(g.constant(np.zeros((1, 12)), "half") for _ in range(2)), axis=1)
    state = g.node("Expand", g.constant(0.5, "h"), g.ints(1, 4, 3))
    inner = Graph("body", f32, g)
    inner.output(
        inner.nodes("LSTM", ["x", W, R, B, "", state, state], ["Y"], title="lstm", hidden_size=3)[0], "y", f32, None
    )
    g.nodes("If", ["condition"], ["chosen"], then_branch=inner.proto, else_branch=inner.proto)
    g.nodes("Scan", ["x"], ["scanned"], body=inner.proto, num_scan_inputs=1)
    g.nodes("Pair", ["x", W, R], ["called"], title="call", bound=0.5)
    g.proto.node[-1].domain = "own"
    proto = ModelProto.from_bytes(model(g))
    lstm = NodeProto(input=["a", "w", "r"], output=["y"], name="lstm", op_type="LSTM")
    lstm.attribute = [attribute("hidden_size", 3), AttributeProto(name="clip", type=1, ref_attr_name="bound")]
    function = FunctionProto(name="Pair", domain="own", input=["a", "w", "r"], output=["y"], node=[lstm])
    function.attribute, function.opset_import = ["bound"], [OperatorSetIdProto(version=17)]
    proto.functions = [function]
    proto.graph.initializer[0].external_data = [StringStringEntryProto(key="location", value="file")]
    return [plain, proto.to_bytes()]


def whole_models() -> list[bytes]:
    """A model of pieces and recurrent nodes: layers in a row, views, an If, values that go round the layers."""
    import numpy as np

    from fastlstm.onnx.builder import Graph, model

    f32 = np.dtype(np.float32)
    g = Graph("main", f32)
    x = g.input("x", f32, ["B", "T", 2])
    condition = g.input("condition", np.bool_, [])
    W, R = g.constant(np.ones((1, 9, 2)), "W"), g.constant(np.ones((1, 9, 3)), "R")
    V = g.constant(np.ones((1, 3, 3)), "V")
    scaled = g.node("Mul", x, g.node("Neg", g.constant(np.ones(2), "k")))
    turned = g.transpose(scaled, 1, 0, 2)
    Y, last = g.nodes("GRU", [turned, W, R], ["Y", "last"], title="gru", hidden_size=3)
    first = g.node("Squeeze", Y, g.ints(1))
    (second,) = g.nodes("RNN", [first, V, V, "", "", last], ["Z"], title="rnn", hidden_size=3)
    flat = g.node("Reshape", g.transpose(second, 0, 2, 1, 3), g.ints(0, 0, -1))
    inner = Graph("body", f32, g)
    inner.output(inner.node("Add", flat, first), "sum", f32, None)
    (chosen,) = g.nodes("If", [condition], ["chosen"], then_branch=inner.proto, else_branch=inner.proto)
    for value, name in ((chosen, "y"), (last, "h"), (scaled, "s")):
        g.output(value, name, f32, None)
    return [model(g)]


def accelerate_without_onnx_runtime() -> Callable[[str], Any]:
    """`accelerate`, in which ONNX Runtime only checks that each piece is a graph in order of which every value is made.

    ONNX Runtime itself is another's reader, which may crash.
    """
    import types

    import fastlstm as fl
    from fastlstm.onnx import acceleration, pieces
    from fastlstm.onnx.cutting import Graph
    from fastlstm.onnx.messages import ModelProto

    class Options:
        intra_op_num_threads = 1

        def add_session_config_entry(self, key: str, value: str) -> None: ...

    class Session:
        def __init__(self, data: bytes, options: Any) -> None:
            try:
                self.graph = Graph(ModelProto.from_bytes(data))
            except ValueError as error:
                raise AssertionError(f"a piece is no sound graph: {error}") from error

        def get_outputs(self) -> list[Any]:
            made = [types.SimpleNamespace(name=n, type="tensor(float)", shape=[]) for n in self.graph.outputs]
            return made

    pieces.onnxruntime = lambda: types.SimpleNamespace(SessionOptions=Options)  # type: ignore[assignment]
    acceleration.onnxruntime = pieces.onnxruntime
    pieces.inference_session = Session  # type: ignore[assignment]
    acceleration.inference_session = Session  # type: ignore[assignment]

    def load(path: str) -> Any:
        made = [fl.onnx.accelerate(path, backend="numpy")]
        return [one.get_inputs() + one.get_outputs() for one in made]

    return load


def messages(message: Any) -> list[Any]:
    """A message and all inside it."""
    found = [message]
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        for one in value if isinstance(value, list) else [value]:
            if dataclasses.is_dataclass(one):
                found += messages(one)
    return found


def damaged_onnx(files: list[bytes], draw: random.Random, damage: Callable[[bytes, random.Random], bytes]) -> bytes:
    """A model with damaged bytes or, more often, up to six messages changed."""
    from fastlstm.onnx.messages import ModelProto

    data = draw.choice(files)
    if draw.randrange(4) == 0:
        return damage(data, draw)
    model = ModelProto.from_bytes(data)
    for _ in range(draw.randint(1, 6)):
        spoil(messages(model), draw)
    return model.to_bytes()


def spoil(found: list[Any], draw: random.Random) -> None:
    """Change a field of one of the messages: another value, that of another message, or a piece twice or none."""
    message = draw.choice(found)
    fields = [f for f in dataclasses.fields(message) if "wire" in f.metadata and getattr(message, f.name)]
    if not fields:
        return
    name = draw.choice(fields).name
    value = getattr(message, name)
    like = [one for one in found if type(one) is type(message) and one is not message]
    if isinstance(value, list) and value:
        place = draw.randrange(len(value))
        way = draw.randrange(4)
        if way == 0:
            del value[place]
        elif way == 1:
            value.insert(place, cloned(draw.choice(value)))
        elif way == 2 and like:
            others = getattr(draw.choice(like), name)
            value[place] = cloned(draw.choice(others)) if others else value[place]
        else:
            value[place] = other(value[place], found, draw)
    else:
        held = getattr(draw.choice(like), name) if like and draw.randrange(2) else other(value, found, draw)
        if not dataclasses.is_dataclass(held):
            setattr(message, name, held)


def cloned(value: Any) -> Any:
    """A message's copy: without it a message could come to be inside itself."""
    return type(value).from_bytes(value.to_bytes()) if dataclasses.is_dataclass(value) else value


def other(value: Any, found: list[Any], draw: random.Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool) or dataclasses.is_dataclass(value):
        return value
    if isinstance(value, int):
        return draw.choice(NUMBERS)
    if isinstance(value, float):
        return draw.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
    if isinstance(value, str):
        names = [name for one in found for name in (*getattr(one, "input", ()), *getattr(one, "output", ()))]
        return draw.choice([*(name for name in names if isinstance(name, str)), *OPERATORS, *LOCATIONS])
    return bytes(value)[: draw.randrange(len(value) + 1)] if draw.randrange(2) else bytes(value) * 2
