"""Models between the files of PyTorch, Keras, ONNX and fastlstm: `convert`; and the FLOPs of a step: `flops`."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any

from . import files, models, nn
from . import recurrent as layers
from .cell import Cell
from .dense import Dense
from .layer import Layer
from .layout import Array
from .nn.recurrent import Recurrent
from .quantise import check_floats
from .sequential import Sequential

# The library of a file that is written, by the end of its name.
LIBRARIES = {
    ".safetensors": "fastlstm",
    ".pt": "torch",
    ".pth": "torch",
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".onnx": "onnx",
}
HDF5, PICKLE = b"\x89HDF\r\n\x1a\n", b"\x80"  # how these files begin
# ONNX: the version of the format, then one of the model's other fields (their tags: field number * 8 + wire type).
ONNX_VERSION, ONNX_FIELDS = b"\x08", b"\x12\x1a\x22\x28\x32\x3a\x42\x72"


def library_of(path: str | os.PathLike[str]) -> str:
    """The library of a file by its content: "fastlstm", "torch", "keras", "onnx" or another program's "safetensors".

    An ONNX file that does not begin as most do is known by the end of its name.

    Raises
    ------
    OSError
        It is missing or cannot be read.
    FileError
        A safetensors file is damaged.
    """
    with open(path, "rb") as file:
        start = file.read(4096)
    if start.startswith(HDF5):
        return "keras"
    if start.startswith(b"PK"):
        return "keras" if b"config.json" in start or b"metadata.json" in start or _has_config(path) else "torch"
    if start[8:9] == b"{":
        return "fastlstm" if _has_configuration(path) else "safetensors"
    if start.startswith(PICKLE):
        return "torch"
    if (start.startswith(ONNX_VERSION) and start[2:3] in ONNX_FIELDS) or Path(path).suffix.lower() == ".onnx":
        return "onnx"
    return "fastlstm"  # its reader then reports what is wrong


def _has_configuration(path: str | os.PathLike[str]) -> bool:
    """Whether a safetensors file says that fastlstm has written it."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return files.METADATA_KEY in (file.metadata() or {})
    except (safetensors.SafetensorError, ValueError) as error:
        raise files.FileError(f"{path} cannot be read: damaged, or cut short ({files.one_line(error)})") from error


def _has_config(path: str | os.PathLike[str]) -> bool:
    """Whether an archive holds a Keras configuration, told by the names in the directory at its end."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 16)))
        return b"config.json" in file.read() and Path(path).suffix == ".keras"


def read(path: str | os.PathLike[str], name: str | None = None, backend: str = "auto", **options: Any) -> Layer:
    """A layer, module or model of a file of any of the libraries.

    Parameters
    ----------
    path : path
    name : str, optional
        The layer of a Keras file, the node of an ONNX one, or the prefix of a PyTorch one. Not for fastlstm's own.
    **options
        Those of `fastlstm.from_torch`, `fastlstm.from_keras` or `fastlstm.from_onnx`.

    Raises
    ------
    ValueError
        As `from_torch`, `from_keras`, `from_onnx` and `load`.
    """
    library = library_of(path)
    found: Layer
    if library == "keras":
        from .keras import from_keras

        found = from_keras(path, name, backend=backend, **options)
    elif library == "onnx":
        from .onnx import from_onnx

        found = from_onnx(path, name, backend=backend, **options)
    elif library == "fastlstm":
        if name is not None or options:
            raise ValueError(f"{path} is fastlstm's own file, which has no layers to choose and says its options")
        found = models.load(path, backend)
    else:
        from .torch import from_torch

        found = from_torch(path, name or "", backend=backend, **options)
    return found


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    name: str | None = None,
    to: str | None = None,
    **options: Any,
) -> Layer:
    """Read a model of one library's file and write it as another's, atomically.

    Parameters
    ----------
    source, target : path
    name : str, optional
        Which layer, as in `read`.
    to : {"fastlstm", "torch", "keras", "onnx"}, optional
        What is written; by default what the target's name ends with (``.safetensors``: fastlstm's own). "torch" with
        ``.safetensors`` is a state_dict. Writing ``.pt`` needs PyTorch, Keras's files need Keras.
    **options
        As in `read`.

    Returns
    -------
    layer : Layer
        What was converted.

    Raises
    ------
    ValueError
        The target's name says no library, or that library has no counterpart of a layer, which the message names.
    """
    suffix = Path(target).suffix.lower()
    to = to or LIBRARIES.get(suffix)
    if to not in LIBRARIES.values():
        raise ValueError(
            f"{target} does not say what to write: take a name with one of {', '.join(LIBRARIES)}, or to= fastlstm, "
            "torch, keras or onnx"
        )
    allowed = [end for end, library in LIBRARIES.items() if library == to] + [".safetensors"] * (to == "torch")
    if suffix not in allowed:
        raise ValueError(f"{target}: a file for {to} has one of {', '.join(allowed)}")
    layer = read(source, name, **options)
    if to == "fastlstm":
        layer.save(target)
    elif to == "torch":
        files.write_atomically(target, torch_file(layer, suffix))
    elif to == "onnx":
        write_onnx(layer, target)
    else:
        files.write_atomically(target, keras_file(layer, "".join(Path(target).suffixes[-2:]).lower()))
    return layer


def write_onnx(layer: Layer, target: str | os.PathLike[str]) -> None:
    """An ONNX model of a layer, module or model; see `fastlstm.onnx.to_onnx`."""
    from .onnx import to_onnx

    try:
        to_onnx(layer, target)
    except TypeError as error:
        raise ValueError(f"no ONNX model can be made of {layer!r}: {error}") from error


def torch_file(layer: Layer, suffix: str) -> bytes:
    """A state_dict as PyTorch reads it: names of its modules, in a Sequential behind each module's name."""
    check_floats(layer, "a file of PyTorch")
    arrays: dict[str, Array] = {}
    modules: dict[str, Any] = layer.named if isinstance(layer, Sequential) else {"": layer}
    for name, module in modules.items():
        before = f"{name}." if name else ""
        arrays |= {before + key: value for key, value in torch_parameters(module).items()}
    if suffix == ".safetensors":
        from safetensors.numpy import save

        return bytes(save(arrays, {"format": "pt"}))
    import torch

    file = io.BytesIO()
    torch.save({name: torch.from_numpy(value) for name, value in arrays.items()}, file)
    return file.getvalue()


def torch_parameters(module: Any) -> dict[str, Array]:
    """A layer's or module's parameters by PyTorch's names; one bias becomes two, the second of zeros.

    Raises
    ------
    ValueError
        PyTorch has no module of this equation, or walks time in the other order.
    """
    import numpy as np

    from .torch import to_torch

    if isinstance(module, (Recurrent, nn.Bidirectional)):
        if getattr(module, "go_backwards", False):
            raise ValueError(f"PyTorch has no module for {module!r}: it has no go_backwards")
        module = module.core
    if isinstance(module, nn.Residual):
        raise ValueError(f"PyTorch has no module for {module!r}")
    state: dict[str, Array] = module.state_dict()
    if isinstance(module, layers.Recurrent):
        if any(spec.biases == 1 for specs in module._specs for spec in specs):
            config = {key: value for key, value in module.to_config().items() if key not in ("class", "single_bias")}
            plain: Any = type(module)(**config)
            more = {key: np.zeros_like(p) for key, p in plain.state_dict().items() if key not in state}
            plain.load_state_dict(state | more)
            module, state = plain, plain.state_dict()
        to_torch(module)  # raises where PyTorch has no such module
    return state


def keras_file(layer: Layer, suffixes: str) -> bytes:
    """A whole model as Keras writes it; weights alone for ``.weights.h5``."""
    from .keras.export import to_keras

    model = to_keras(layer)
    alone = suffixes == ".weights.h5"
    end = suffixes if alone else Path(f"x{suffixes}").suffix
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{end}"
        model.save_weights(path) if alone else model.save(path)
        return path.read_bytes()


def flops(layer: Layer) -> int:
    """Multiplications and additions of the matrix products of one step of one sequence."""
    if isinstance(layer, Sequential):
        return sum(map(flops, layer.modules))
    if isinstance(layer, nn.Residual):
        return flops(layer.module)
    core: Any = getattr(layer, "_core", layer)
    if isinstance(core, (layers.Recurrent, Cell)):
        specs = [spec for of_layer in core._specs for spec in of_layer]
        return sum(2 * (spec.G * spec.H * (spec.I + spec.R) + spec.proj_size * spec.H) for spec in specs)
    return 2 * int(core._live()["weight"].size) if isinstance(core, Dense) else 0
