"""What a PyTorch pickle may build: storages, tensors, modules, NumPy values; and how plain values come of them.

`CALLS` is the allow-list of `unpickle.load`: each name that a file may call, with the function of ours that is called
in its place. None of them imports, executes or allocates more than its arguments hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ..layout import Array
from .unpickle import Buildable, Global, Instance, PickleError, check_key, describe, say

Order = Literal["<", ">"]  # of bytes: the least or the most significant first

MAX_DEPTH = 100  # of containers and modules inside one another
MAX_NODES = 4_000_000  # nodes of the resulting tree; a value that occurs twice counts twice
MAX_RANK = 16
# Tensors may share their storage (tied weights): copies of all of them take at most this many times the file's bytes.
MAX_SHARING = 16

# The element type of each storage class; bfloat16 is read as 16 bits and widened.
DTYPES: dict[str, str] = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
    "ComplexFloatStorage": "c8",
    "ComplexDoubleStorage": "c16",
    "UntypedStorage": "u1",
}
# The same for the names of dtypes. (A tensor whose type has no storage class of its own names its dtype; bfloat16 has.)
TORCH_DTYPES: dict[str, str] = {
    "float64": "f8",
    "float32": "f4",
    "float16": "f2",
    "bfloat16": "bfloat16",
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint8": "u1",
    "uint16": "u2",
    "uint32": "u4",
    "uint64": "u8",
    "bool": "b1",
    "complex64": "c8",
    "complex128": "c16",
}
UNREAD_TENSORS = {
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without values (on the device 'meta')",
    "_rebuild_wrapper_subclass": "a tensor of a class of its own",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
}


class Module(dict[str, Any]):
    """A module's parameters, buffers and submodules by name.

    Attributes
    ----------
    kind : str
        Its class, such as "torch.nn.modules.rnn.LSTM".
    attributes : dict
        Its attributes that are plain values, such as ``batch_first`` and ``num_layers``. (TorchScript keeps constants
        in its code, which is not read.)
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.attributes: dict[str, Any] = {}


def itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def from_bfloat16(bits: Array) -> Array:
    """float32 of bfloat16's bits, exactly: they are the upper half of a float32's."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


class Storage:
    """A flat run of numbers in the file; its array is read once the whole description has been."""

    def __init__(self, key: str, dtype: str, size: int) -> None:
        if not isinstance(size, int) or not 0 <= size < 1 << 48:
            raise PickleError(f"its storage {say(key)} has {say(size)} elements")
        self.key, self.dtype, self.size = key, dtype, size
        self.root: Storage | None = None  # of a view
        self.start = 0
        self.order: Order = "<"  # of the bytes in the file
        self.array: Array | None = None  # (size,)
        self.given = 0  # elements of all tensors made of it

    @property
    def nbytes(self) -> int:
        return self.size * itemsize(self.dtype)

    def values(self) -> Array:
        if self.root is not None:
            return self.root.values()[self.start : self.start + self.size]
        if self.array is None:
            raise PickleError(f"its storage {say(self.key)} has no values in the file")
        return self.array


class Tensor:
    """A view of a storage, checked to lie within it."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: str | None = None) -> None:
        if not isinstance(storage, Storage):
            raise PickleError(f"it has a tensor made of {describe(storage)}, which is no storage")
        self.storage, self.dtype = storage, dtype
        size = storage.size if dtype is None else storage.nbytes // itemsize(dtype)
        if not isinstance(shape, (tuple, list)) or not isinstance(strides, (tuple, list)):
            raise PickleError("it has a tensor without shape or strides")
        numbers = [offset, *shape, *strides]
        if any(type(n) is not int or not 0 <= n < 1 << 48 for n in numbers) or len(shape) != len(strides):
            raise PickleError("it has a tensor of impossible shape, strides or offset")
        if len(shape) > MAX_RANK:
            raise PickleError(f"it has a tensor with {len(shape)} axes; up to {MAX_RANK} are read")
        count = math.prod(shape)
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if count else 0
        if last >= size and count:
            raise PickleError(f"it has a tensor of shape {tuple(shape)} that reaches beyond its {size} elements")
        if count > size:
            raise PickleError(
                f"it has a tensor of shape {tuple(shape)} with only {size} elements behind it (an expanded tensor); "
                "save tensor.contiguous() in its place"
            )
        storage.given += count * (itemsize(dtype) if dtype else itemsize(storage.dtype))
        if storage.given > MAX_SHARING * storage.nbytes:
            raise PickleError(f"more than {MAX_SHARING} tensors share the storage {say(storage.key)} in full")
        self.offset, self.shape, self.strides = offset, tuple(shape), tuple(strides)

    def array(self) -> Array:
        """The tensor's values, a view of its storage's."""
        flat = self.storage.values()
        if self.dtype is not None:  # its storage is bytes without a type
            size = itemsize(self.dtype)
            flat = flat[: len(flat) // size * size].view(np.dtype(self.dtype).newbyteorder(self.storage.order))
        if math.prod(self.shape) == 0:
            return np.empty(self.shape, flat.dtype)
        return np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, [s * flat.itemsize for s in self.strides]
        )


class NumpyType(Buildable):
    """A NumPy dtype of numbers, by its code."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?([iuf][1248]|b1|c8|c16)", code):
            raise PickleError(f"it has a NumPy value of dtype {say(code)}; numbers alone are read")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise PickleError(f"it has a NumPy value of byte order {say(state[1])}")
        self.dtype = self.dtype.newbyteorder(state[1])


class NumpyArray(Buildable):
    """A NumPy array, whose values come as its state."""

    def __init__(self, *_: Any) -> None:
        self.value: Array | None = None

    def build(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        self.value = numpy_array(data, dtype, shape, "F" if fortran else "C")


def numpy_array(data: Any, dtype: Any, shape: Any, order: str) -> Array:
    if not isinstance(dtype, NumpyType) or not isinstance(data, bytes) or order not in "CF":
        raise PickleError("it has a NumPy value that is damaged, or no number")
    flat: Array = np.frombuffer(data, dtype.dtype)
    if not isinstance(shape, tuple) or len(shape) > MAX_RANK or math.prod(shape) != len(flat):
        raise PickleError(f"it has a NumPy array with {len(flat)} numbers that do not fit its shape")
    return flat.reshape(shape, order="F" if order == "F" else "C")


def numpy_scalar(dtype: Any, data: Any) -> Any:
    return numpy_array(data, dtype, (), "C").item()


# ------------------------------------------------------------------------------------------- what a stream may call
def _dictionary(pairs: Any = ()) -> dict[Any, Any]:
    pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs
    for key, _ in pairs:
        check_key(key)
    return dict(pairs)


def _set(items: Any = ()) -> set[Any]:
    for item in items:
        check_key(item)
    return set(items)


def _bytes(text: Any = "", encoding: Any = "latin1") -> bytes:
    if isinstance(text, bytes) or text == ():
        return bytes(text)
    if encoding not in ("latin1", "latin-1"):
        raise PickleError(f"it has bytes encoded as {say(encoding)}")
    return bytes(text.encode("latin1"))


def _torch_dtype(dtype: Any) -> str:
    if isinstance(dtype, Global) and dtype.module == "torch" and dtype.name in TORCH_DTYPES.keys() - {"bfloat16"}:
        return TORCH_DTYPES[dtype.name]
    raise PickleError(f"it has a tensor of {describe(dtype)}, which is not read; convert it to float32 before saving")


def _tensor_v3(*args: Any) -> Tensor:
    storage, offset, shape, strides, _requires_grad, _hooks, dtype = args[:7]
    return Tensor(storage, offset, shape, strides, _torch_dtype(dtype))


def _from_type(function: Any, _type: Any, args: Any, _state: Any) -> Any:
    """`torch._tensor._rebuild_from_type_v2`: a tensor with attributes, which are left out."""
    if not isinstance(function, Global) or function.module != "torch._utils" or tuple(function) not in CALLS:
        raise PickleError(f"it has a tensor made by {describe(function)}, which is not read")
    return CALLS[function](*args)


def _device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or not (index is None or isinstance(index, int)):
        raise PickleError("it has a device whose name is damaged")
    return kind if index is None else f"{kind}:{index}"


def _refuse(what: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise PickleError(f"it has {what}, which is not read; save dense float tensors")

    return refuse


CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _dictionary,
    ("collections", "Counter"): _dictionary,
    ("collections", "defaultdict"): lambda _factory=None, items=(): _dictionary(items),
    ("_codecs", "encode"): _bytes,
    ("torch._utils", "_rebuild_tensor"): lambda *args: Tensor(*args[:4]),
    ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: Tensor(
        storage, offset, shape, strides
    ),
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch", "Size"): lambda items=(): tuple(items),
    ("torch", "device"): _device,
    ("torch.serialization", "_get_layout"): lambda name: name,
    ("torch.jit._pickle", "build_intlist"): lambda items: items,
    ("torch.jit._pickle", "build_doublelist"): lambda items: items,
    ("torch.jit._pickle", "build_boollist"): lambda items: items,
    ("torch.jit._pickle", "build_tensorlist"): lambda items: items,
    ("torch.jit._pickle", "restore_type_tag"): lambda value, _tag: value,
    ("numpy", "dtype"): NumpyType,
    **{("torch._utils", name): _refuse(what) for name, what in UNREAD_TENSORS.items()},
    **{
        (module, name): function
        for module in ("builtins", "__builtin__")
        for name, function in (
            ("set", _set),
            ("frozenset", _set),
            ("bytearray", _bytes),
            ("bytes", _bytes),
            ("complex", lambda real=0.0, imaginary=0.0: complex(real, imaginary)),
        )
    },
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "scalar", numpy_scalar),
            ("multiarray", "_reconstruct", NumpyArray),
            ("numeric", "_frombuffer", numpy_array),
        )
    },
}


# ---------------------------------------------------------------------------------------------- plain values of these
class _Converter:
    """Turns what a stream has built into plain values; a container that occurs twice is converted once."""

    def __init__(self) -> None:
        self.done: dict[int, tuple[Any, int]] = {}  # id of a value -> its conversion and the number of its tree's nodes
        self.keep: list[Any] = []  # the values that are keys of `done`: a freed value's id could be used again

    def convert(self, value: Any, depth: int) -> tuple[Any, int]:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.ndarray)):
            return value, 1
        if isinstance(value, Global):
            return self.named(value), 1
        if depth > MAX_DEPTH:
            raise PickleError(f"it has values nested more than {MAX_DEPTH} deep, or containing themselves")
        if id(value) not in self.done:
            result, nodes = self.container(value, depth + 1)
            if nodes > MAX_NODES:
                raise PickleError(f"it repeats its values to more than {MAX_NODES}")
            self.done[id(value)] = result, nodes
            self.keep.append(value)
        return self.done[id(value)]

    def named(self, value: Global) -> str:
        if value.module == "torch" and value.name in TORCH_DTYPES:
            return str(value)
        raise PickleError(f"it holds the class or function {value}, which is refused")

    def container(self, value: Any, depth: int) -> tuple[Any, int]:
        if isinstance(value, Tensor):
            return value.array(), 1
        if isinstance(value, NumpyArray):
            if value.value is None:
                raise PickleError("it has a NumPy array without values")
            return value.value, 1
        if isinstance(value, NumpyType):
            return value.dtype.str, 1
        if isinstance(value, dict):
            return self.items(value, {}, depth)
        if isinstance(value, Instance):
            return self.module(value, depth)
        if isinstance(value, (list, tuple, set, frozenset)):
            pairs = [self.convert(item, depth) for item in value]
            items = [item for item, _ in pairs]
            return (tuple(items) if isinstance(value, tuple) else items), 1 + sum(nodes for _, nodes in pairs)
        raise PickleError(f"it holds {describe(value)}, which is refused")

    def items(self, source: dict[Any, Any], target: dict[Any, Any], depth: int) -> tuple[Any, int]:
        nodes = 1
        for key, item in source.items():
            target[key], count = self.convert(item, depth)
            nodes += count
        return target, nodes

    def module(self, value: Instance, depth: int) -> tuple[Any, int]:
        """A module's parameters, buffers and submodules; any other object is refused."""
        state = value.state
        scripted = value.cls.module == "__torch__" or value.cls.module.startswith("__torch__.")
        if isinstance(state, dict) and "_parameters" in state and "_modules" in state:
            parts = [state.get(name) or {} for name in ("_parameters", "_buffers", "_modules")]
            if not all(isinstance(part, dict) for part in parts):
                raise PickleError(f"its module {value.cls} is damaged")
            children = {name: item for part in parts for name, item in part.items() if item is not None}
        elif isinstance(state, dict) and scripted:
            children = {name: item for name, item in state.items() if isinstance(item, (Tensor, Instance))}
        else:
            raise PickleError(
                f"it holds {describe(value)}, which is refused. "
                "Load it where its class is trusted, and save model.state_dict() alone"
            )
        module = Module(str(value.cls))
        module.attributes = {
            name: item
            for name, item in state.items()
            if isinstance(name, str) and (item is None or isinstance(item, (bool, int, float, str)))
        }
        return self.items(children, module, depth)


def plain(value: Any) -> Any:
    """Nested dictionaries, lists and arrays of what a stream has built, once its storages have been read."""
    return _Converter().convert(value, 0)[0]
