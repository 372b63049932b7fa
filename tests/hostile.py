"""Files of other libraries made by hand, sound and damaged ones; run as a program: the readers on damaged ones.

    python tests/hostile.py READER FIRST COUNT

reads COUNT files that are made from the case numbers FIRST, FIRST + 1, ... It prints how many were read and refused
(JSON), and ends with status 1 at the first other exception. Memory is limited by the system, time by an alarm, and the
number of the case is in the file named by FUZZ_CASE, so that a crash can be attributed to its case.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from typing import Any

import hostile_onnx

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MEMORY = 1 << 29  # bytes that the process may take beyond its memory at the start
SECONDS = 20  # time limit of one file; HDF5's endless loops have a shorter one
HDF5_SECONDS = 2


# ------------------------------------------------------------------------------------------------ pickles, by opcode
class Code(bytes):
    """Opcodes that push one value."""


def name(module: str, function: str) -> Code:
    return Code(b"c" + module.encode() + b"\n" + function.encode() + b"\n")


def code(value: Any) -> Code:
    """Opcodes that push a value."""
    if isinstance(value, Code):
        return value
    if isinstance(value, tuple):
        return Code(b"(" + b"".join(map(code, value)) + b"t")
    if isinstance(value, list):
        return Code(b"](" + b"".join(map(code, value)) + b"e")
    if isinstance(value, dict):
        return Code(b"}(" + b"".join(code(k) + code(v) for k, v in value.items()) + b"u")
    return Code(pickle.dumps(value, 2)[2:-1])


def call(function: Code, *arguments: Any) -> Code:
    return Code(function + code(tuple(arguments)) + b"R")


def instance(cls: Code, state: Any) -> Code:
    return Code(cls + b")\x81" + code(state) + b"b")


def whole(value: Any) -> bytes:
    """A pickle of a value."""
    return b"\x80\x02" + code(value) + b"."


def storage(key: str, size: int, kind: str = "FloatStorage", *view: Any) -> Code:
    return Code(code(("storage", name("torch", kind), key, "cpu", size, *view)) + b"Q")


def tensor(of: Code, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, offset: int = 0) -> Code:
    if strides is None:
        strides, step = (), 1
        for n in reversed(shape):
            strides, step = (step, *strides), step * n
    return call(name("torch._utils", "_rebuild_tensor_v2"), of, offset, shape, strides, False, ORDERED)


ORDERED = call(name("collections", "OrderedDict"))


# ---------------------------------------------------------------------------------------------------- PyTorch's files
def torch_zip(description: bytes, storages: dict[str, bytes], **options: Any) -> bytes:
    """An archive as torch.save writes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        archive.writestr("archive/data.pkl", description)
        archive.writestr("archive/byteorder", b"little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


def torch_stream(description: bytes, storages: dict[str, tuple[int, bytes]]) -> bytes:
    """A stream as torch.save wrote it before version 1.6: for each storage how many elements it has, and its bytes."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    return (
        b"".join(pickle.dumps(one, 2) for one in head)
        + description
        + pickle.dumps(list(storages), 2)
        + b"".join(struct.pack("<q", n) + data for n, data in storages.values())
    )


def lstm_state() -> Code:
    """A checkpoint with an LSTM(2, 3), a half and a bfloat16 tensor, and an optimiser's state."""
    shapes = {"weight_ih_l0": (12, 2), "weight_hh_l0": (12, 3), "bias_ih_l0": (12,), "bias_hh_l0": (12,)}
    one = storage("0", 84)
    at, state = 0, {}
    for key, shape in shapes.items():
        state[f"lstm.{key}"] = tensor(one, shape, offset=at)
        at += shape[0] * (shape[1] if len(shape) == 2 else 1)
    half, brain = (
        tensor(storage("1", 4, "HalfStorage"), (2, 2), (1, 2)),
        tensor(storage("2", 3, "BFloat16Storage"), (3,)),
    )
    groups = [{"lr": 0.001, "betas": (0.9, 0.999), "params": [0, 1, 2, 3]}]
    return code({"model": state, "optimizer": {"state": {}, "param_groups": groups}, "h": half, "b": brain, "epoch": 3})


LSTM_STORAGES = {"0": bytes(range(84)) * 4, "1": b"\0<\0@\0B\0D", "2": b"\x80?\0@\xc0?"}
SIZES = {"0": 84, "1": 4, "2": 3}


def torch_files() -> list[bytes]:
    description = whole(lstm_state())
    module = whole(
        instance(
            name("torch.nn.modules.rnn", "LSTM"),
            {
                "_parameters": {"weight_ih_l0": tensor(storage("0", 24), (12, 2)), "bias_ih_l0": None},
                "_buffers": {},
                "_modules": {},
                "batch_first": True,
            },
        )
    )
    return [
        torch_zip(description, LSTM_STORAGES),
        torch_stream(description, {key: (SIZES[key], data) for key, data in LSTM_STORAGES.items()}),
        torch_zip(module, {"0": bytes(96)}),
    ]


# ------------------------------------------------------------------------------------------------------- safetensors
def safetensors_file(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors_files() -> list[bytes]:
    header = {
        "lstm.weight_ih_l0": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]},
        "half": {"dtype": "F16", "shape": [2], "data_offsets": [32, 36]},
        "brain": {"dtype": "BF16", "shape": [3], "data_offsets": [36, 42]},
        "__metadata__": {"format": "pt"},
    }
    return [safetensors_file(header, bytes(range(36)) + b"\x80?\0@\xc0?")]


# ----------------------------------------------------------------------------------------------------- Keras's files
def keras_layer(class_name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": class_name, "config": config}


LSTM_OPTIONS = {"units": 3, "use_bias": True, "activation": "tanh", "recurrent_activation": "hard_sigmoid"}


def keras_model() -> dict[str, Any]:
    lstm = keras_layer("LSTM", name="inner", **LSTM_OPTIONS)
    cells = [keras_layer("GRUCell", name="a", units=3), keras_layer("LSTMCell", name="b", units=3)]
    stacked = keras_layer("StackedRNNCells", name="cells", cells=cells)
    layers = [
        keras_layer("Bidirectional", name="both", layer=lstm, merge_mode="concat"),
        keras_layer("RNN", name="stack", cell=stacked),
        keras_layer("Sequential", name="head", layers=[keras_layer("Dense", name="dense", units=1)]),
    ]
    return keras_layer("Sequential", name="model", layers=layers)


def _weights(*shapes: tuple[int, ...]) -> list[Any]:
    import numpy as np

    return [np.arange(np.prod(shape), dtype="f4").reshape(shape) for shape in shapes]


LSTM_SHAPES = ((2, 12), (3, 12), (12,))
KERAS_3 = {  # the groups of Keras 3's weights of `keras_model`
    "layers/bidirectional/forward_layer/cell": LSTM_SHAPES,
    "layers/bidirectional/backward_layer/cell": LSTM_SHAPES,
    "layers/rnn/cell/cells/gru_cell": ((6, 9), (3, 9), (2, 9)),
    "layers/rnn/cell/cells/lstm_cell": ((3, 12), (3, 12), (12,)),
    "layers/sequential/layers/dense": ((3, 1), (1,)),
}


def keras_weights() -> bytes:
    """model.weights.h5, as Keras 3 writes it."""
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        for path, shapes in KERAS_3.items():
            group = h5.create_group(f"{path}/vars")
            group.attrs["name"] = path.rpartition("/")[2]
            for i, array in enumerate(_weights(*shapes)):
                group[str(i)] = array
    return file.getvalue()


def keras_archive(config: Any, weights: bytes, **options: Any) -> bytes:
    """A `.keras` file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.1.0"}))
        archive.writestr("config.json", config if isinstance(config, (bytes, str)) else json.dumps(config))
        archive.writestr("model.weights.h5", weights)
    return file.getvalue()


def keras_2(layers: dict[str, dict[str, Any]], config: Any = None, version: str = "2.4.0") -> bytes:
    """A legacy file: arrays by layer and by weight name; with a configuration a whole model, else weights alone."""
    import h5py
    import numpy as np

    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        room = h5
        if config is not None:
            h5.attrs["model_config"] = json.dumps(config).encode()
            h5.attrs["keras_version"] = version.encode()
            room = h5.create_group("model_weights")
        room.attrs["keras_version"] = version.encode()
        room.attrs["backend"] = b"tensorflow"
        room.attrs["layer_names"] = np.array([one.encode() for one in layers])
        for layer, arrays in layers.items():
            group = room.create_group(layer)
            group.attrs["weight_names"] = np.array([one.encode() for one in arrays], "S" if arrays else None)
            for key, array in arrays.items():
                group[key] = array
    return file.getvalue()


def keras_2_layers() -> dict[str, dict[str, Any]]:
    parts = ("kernel:0", "recurrent_kernel:0", "bias:0")

    def named(prefix: str, shapes: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
        return dict(zip([f"{prefix}/{part}" for part in parts], _weights(*shapes), strict=False))

    return {
        "both": named("both/forward_inner/cell", LSTM_SHAPES) | named("both/backward_inner/cell", LSTM_SHAPES),
        "stack": named("stack/a", ((6, 9), (3, 9), (2, 9))) | named("stack/b", ((3, 12), (3, 12), (12,))),
        "head": dict(zip(["head/dense/kernel:0", "head/dense/bias:0"], _weights((3, 1), (1,)), strict=True)),
    }


def keras_files() -> list[bytes]:
    return [
        keras_archive(keras_model(), keras_weights()),
        keras_weights(),
        keras_2(keras_2_layers(), keras_model()),
        keras_2(keras_2_layers()),
    ]


# ------------------------------------------------------------------------------------------------------------- damage
HUGE = [
    b"\xff" * 4,
    b"\xff" * 8,
    b"\xff\xff\xff\x7f",
    b"\xff" * 7 + b"\x7f",
    b"\0\0\0\0\1\0\0\0",
    b"\0\0\0\x40",
    bytes(8),
]
OPCODES = [bytes([c]) for c in b"]}()(.02NQRtueasbhqrcXKJM\x85\x86\x87\x88\x8f\x90\x91\x94\x93\x81\x92io\x82Pl1"]


def damage(data: bytes, draw: random.Random, extra: list[bytes] = HUGE) -> bytes:
    """The bytes with up to four changes, most of them at bytes that are not zero."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if not changed:
            break
        at = next((p for p in (draw.randrange(len(changed)) for _ in range(20)) if changed[p]), 0)
        way = draw.randrange(7)
        if way <= 1:
            changed[at] ^= 1 << draw.randrange(8)
        elif way == 2:
            changed[at] = draw.randrange(256)
        elif way == 3:
            piece = draw.choice(extra)
            changed[at : at + len(piece)] = piece
        elif way == 4:
            del changed[at : at + draw.randint(1, 8)]
        elif way == 5:
            begin = draw.randrange(len(changed))
            changed[at:at] = changed[begin : begin + draw.randint(1, 64)]
        elif draw.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def damaged_torch(files: list[bytes], draw: random.Random) -> bytes:
    """A damaged file; often a sound zip archive with a damaged description, or with a description of random opcodes."""
    way = draw.randrange(4)
    if way == 0:
        return damage(draw.choice(files), draw)
    description = whole(lstm_state())
    if way == 3:
        steps = draw.randint(1, 60)
        description = b"\x80\x02" + b"".join(
            draw.choice(OPCODES) + draw.randbytes(draw.randrange(3)) for _ in range(steps)
        )
        description += draw.choice([b".", b"0.", b""])
    else:
        description = damage(description, draw, [*HUGE, *OPCODES])
    if way == 1:
        return torch_stream(description, {key: (SIZES[key], data) for key, data in LSTM_STORAGES.items()})
    return torch_zip(description, LSTM_STORAGES)


def damaged_safetensors(files: list[bytes], draw: random.Random) -> bytes:
    return damage(draw.choice(files), draw, [*HUGE, b"9999999999999", b"[" * 99, b'"BF16"'])


def damaged_json(config: Any, draw: random.Random) -> Any:
    """A configuration with one part replaced by another part or by a value of another kind."""
    text = json.dumps(config)
    if draw.random() < 0.4:
        return damage(text.encode(), draw, [b"[]", b"{}", b"null", b"1e999", b"9" * 60, b'"' * 3, b"[" * 500])
    parts: list[Any] = []

    def walk(value: Any) -> None:
        parts.append(value)
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(one)

    copy = json.loads(text)
    walk(copy)
    rooms = [part for part in parts if isinstance(part, (dict, list)) and part]
    room = draw.choice(rooms)
    key = draw.choice(list(room)) if isinstance(room, dict) else draw.randrange(len(room))
    room[key] = draw.choice([None, [], {}, 1, -1.5, "x", "../..", True, json.loads(json.dumps(draw.choice(parts[1:])))])
    return json.dumps(copy)


def damaged_keras(files: list[bytes], draw: random.Random) -> bytes:
    """An archive with a damaged configuration; its weights are sound, and the same each time."""
    if draw.randrange(10):
        return keras_archive(damaged_json(keras_model(), draw), files[0])
    return damage(keras_archive(keras_model(), files[0]), draw)


def keras_chain() -> dict[str, Any]:
    """`keras_model` with layers that fit one another, as `from_keras` takes it whole."""
    model = keras_model()
    model["config"]["layers"][0]["config"]["layer"]["config"]["return_sequences"] = True
    return model


def damaged_chain(files: list[bytes], draw: random.Random) -> bytes:
    """An archive whose model is a chain, with a damaged configuration and sound weights."""
    return keras_archive(damaged_json(keras_chain(), draw), files[0])


def damaged_any(files: list[bytes], draw: random.Random) -> bytes:
    """A damaged file of any library."""
    way = draw.randrange(4)
    if way == 0:
        return damaged_torch(torch_files(), draw)
    if way == 3:
        return of_onnx(hostile_onnx.onnx_files(), draw)
    return damaged_safetensors(safetensors_files(), draw) if way == 1 else damaged_chain(files, draw)


def damaged_hdf5(files: list[bytes], draw: random.Random) -> bytes:
    return damage(draw.choice(files), draw)


def of_onnx(files: list[bytes], draw: random.Random) -> bytes:
    return hostile_onnx.damaged_onnx(files, draw, damage)


def of_whole_onnx(files: list[bytes], draw: random.Random) -> bytes:
    """A damaged model; its bytes are damaged too in every third case, since sound pieces of it may be cut still."""
    data = of_onnx(files, draw)
    return data if draw.randrange(3) else damage(data, draw)


Maker = tuple[Callable[[], list[bytes]], Callable[[list[bytes], random.Random], bytes]]
READERS: dict[str, Maker] = {
    "torch": (torch_files, damaged_torch),
    "safetensors": (safetensors_files, damaged_safetensors),
    "keras": (lambda: [keras_weights()], damaged_keras),
    "hdf5": (lambda: keras_files()[1:], damaged_hdf5),
    "from_onnx": (hostile_onnx.onnx_files, of_onnx),
    "accelerate": (hostile_onnx.whole_models, of_whole_onnx),
    "from_keras": (lambda: [keras_weights()], damaged_chain),
    "convert": (lambda: [keras_weights()], damaged_any),
    "info": (lambda: [keras_weights()], damaged_any),
}
OF_KERAS = ("keras", "from_keras", "convert", "info")  # HDF5's result is made once for these


# ------------------------------------------------------------------------------------------------------------ program
def reader(kind: str) -> Callable[[str], Any]:
    """The reader of a kind of file. HDF5 runs in this process; for `keras` its result is made once."""
    from fastlstm._readers import hdf5, keras_files, torch_files
    from fastlstm._readers.hdf5_process import Dump
    from fastlstm.files import FileError

    def dump(path: str) -> None:
        try:
            Dump(path, io.BytesIO())
        except Exception as error:  # whatever h5py raises ends in a message to the process that asked
            raise FileError(str(error)) from error

    if kind == "hdf5":
        return dump
    if kind in OF_KERAS:
        with tempfile.NamedTemporaryFile(suffix=".h5") as file:
            file.write(keras_weights())
            file.flush()
            tree = hdf5.read(file.name)
        keras_files.read = lambda _path: copy.deepcopy(tree)  # type: ignore[assignment]
        return {"keras": lambda: keras_files.load, "from_keras": from_keras, "convert": convert, "info": info}[kind]()
    made = {"from_onnx": from_onnx, "accelerate": hostile_onnx.accelerate_without_onnx_runtime}.get(kind)
    return torch_files.load if made is None else made()


def from_keras() -> Callable[[str], Any]:
    import warnings

    import fastlstm as fl

    warnings.simplefilter("ignore")
    return fl.from_keras


def from_onnx() -> Callable[[str], Any]:
    import fastlstm as fl
    from fastlstm.onnx.graphs import recurrent_nodes
    from fastlstm.onnx.messages import read_model

    def load(path: str) -> list[Any]:
        names = [found.name for found in recurrent_nodes(read_model(path))]
        return [fl.from_onnx(path, name, return_inputs=True, backend="numpy") for name in dict.fromkeys(names)]

    return load


def convert() -> Callable[[str], Any]:
    import warnings

    from fastlstm.convert import convert

    warnings.simplefilter("ignore")
    return lambda path: convert(path, path + ".safetensors")


def info() -> Callable[[str], Any]:
    from fastlstm.cli.describe import describe

    return lambda path: describe(path).text()


# FileError elsewhere. What is sound as a file may still hold a layer without counterpart.
# External data of ONNX may be missing.
OF_ONNX = (ValueError, OSError)
REFUSALS: dict[str, Any] = {
    "from_onnx": OF_ONNX,
    "accelerate": OF_ONNX,
    "convert": OF_ONNX,
    "from_keras": ValueError,
}


def limit_memory() -> None:
    import resource

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def main(kind: str, first: int, count: int) -> None:
    import signal

    from fastlstm.files import FileError

    make, spoil = READERS[kind]
    files, load = make(), reader(kind)
    outcome = {"read": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "file")
        for data in (
            files if kind not in OF_KERAS else [keras_archive(keras_chain(), files[0])]
        ):  # sound files are read; that also imports the readers' modules
            with open(path, "wb") as file:
                file.write(data)
            load(path)
        if sys.platform == "linux":
            limit_memory()
        with open(os.environ.get("FUZZ_CASE", os.devnull), "w") as note:
            for case in range(first, first + count):
                note.seek(0)
                note.write(f"{case:12}")
                note.flush()
                with open(path, "wb") as file:
                    file.write(spoil(files, random.Random(case)))
                signal.alarm(HDF5_SECONDS if kind == "hdf5" else SECONDS)
                try:
                    load(path)
                    outcome["read"] += 1
                except REFUSALS.get(kind, FileError):
                    outcome["refused"] += 1
                except BaseException:
                    print(f"case {case} of {kind}", file=sys.stderr)
                    raise
                signal.alarm(0)
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
