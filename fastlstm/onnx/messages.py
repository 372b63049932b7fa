"""ONNX's messages as dataclasses with the definition's names, and `read_model`.

Source: onnx/onnx.proto (IR version 14). What is not declared here (training information, devices, types of
sequences and maps) is kept as it is in `Message.unknown`.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import SPECIAL, FileError
from .protobuf import MAX_BYTES, Bytes, Message, many, one


@dataclass(slots=True, eq=False)
class StringStringEntryProto(Message):
    """A key and its value."""

    key: str = one(1, "text", "")
    value: str = one(2, "text", "")


@dataclass(slots=True, eq=False)
class TensorProto(Message):
    """A tensor; `tensors.to_array` gives its numbers. The pieces of each `*_data` are its packed numbers."""

    dims: list[int] = many(1, "int")
    data_type: int = one(2, "int", 0)
    float_data: list[Bytes] = many(4, "packed_float")
    int32_data: list[Bytes] = many(5, "packed_varint")
    string_data: list[Bytes] = many(6, "bytes")
    int64_data: list[Bytes] = many(7, "packed_varint")
    name: str = one(8, "text", "")
    raw_data: Bytes | None = one(9, "bytes")
    double_data: list[Bytes] = many(10, "packed_double")
    uint64_data: list[Bytes] = many(11, "packed_varint")
    doc_string: str = one(12, "text", "")
    external_data: list[StringStringEntryProto] = many(13, "StringStringEntryProto")
    data_location: int = one(14, "int", 0)  # 1: external
    metadata_props: list[StringStringEntryProto] = many(16, "StringStringEntryProto")


@dataclass(slots=True, eq=False)
class SparseTensorProto(Message):
    """The values of a tensor that are not 0, and where they are."""

    values: TensorProto | None = one(1, "TensorProto")
    indices: TensorProto | None = one(2, "TensorProto")
    dims: list[int] = many(3, "int")


@dataclass(slots=True, eq=False)
class Dimension(Message):
    """An axis: a size, a name for a size, or neither."""

    dim_value: int | None = one(1, "int")
    dim_param: str | None = one(2, "text")
    denotation: str = one(3, "text", "")


@dataclass(slots=True, eq=False)
class TensorShapeProto(Message):
    """The axes of a tensor."""

    dim: list[Dimension] = many(1, "Dimension")


@dataclass(slots=True, eq=False)
class TensorType(Message):
    """TypeProto.Tensor: the type of the numbers, and the shape where it is known."""

    elem_type: int = one(1, "int", 0)
    shape: TensorShapeProto | None = one(2, "TensorShapeProto")


@dataclass(slots=True, eq=False)
class TypeProto(Message):
    """A type; one that is not a tensor's is in `unknown`."""

    tensor_type: TensorType | None = one(1, "TensorType")
    denotation: str = one(6, "text", "")


@dataclass(slots=True, eq=False)
class ValueInfoProto(Message):
    """The name and the type of a value."""

    name: str = one(1, "text", "")
    type: TypeProto | None = one(2, "TypeProto")
    doc_string: str = one(3, "text", "")
    metadata_props: list[StringStringEntryProto] = many(4, "StringStringEntryProto")


@dataclass(slots=True, eq=False)
class AttributeProto(Message):
    """An attribute of a node; `value` is what it holds."""

    name: str = one(1, "text", "")
    f: float | None = one(2, "float")
    i: int | None = one(3, "int")
    s: Bytes | None = one(4, "bytes")
    t: TensorProto | None = one(5, "TensorProto")
    g: GraphProto | None = one(6, "GraphProto")
    floats: list[float] = many(7, "float")
    ints: list[int] = many(8, "int")
    strings: list[Bytes] = many(9, "bytes")
    tensors: list[TensorProto] = many(10, "TensorProto")
    graphs: list[GraphProto] = many(11, "GraphProto")
    doc_string: str = one(13, "text", "")
    tp: TypeProto | None = one(14, "TypeProto")
    type_protos: list[TypeProto] = many(15, "TypeProto")
    type: int = one(20, "int", 0)
    ref_attr_name: str = one(21, "text", "")
    sparse_tensor: SparseTensorProto | None = one(22, "SparseTensorProto")
    sparse_tensors: list[SparseTensorProto] = many(23, "SparseTensorProto")

    @property
    def value(self) -> Any:
        """What it holds: an int, a float, a str, a message, or a list of them; None for a reference or an unknown type.

        Bytes are given as text (UTF-8; other bytes as surrogates).
        """
        names = [ATTRIBUTE_FIELDS.get(self.type, "")] if self.type else list(ATTRIBUTE_FIELDS.values())
        for name in names:  # files of IR version 1 have no type: the first that holds something
            held = getattr(self, name, None)
            if held is None or (not self.type and held == []):
                continue
            if name == "s":
                return text(held)
            return [text(one_of) for one_of in held] if name == "strings" else held
        return None

    def inner(self) -> list[GraphProto]:
        """The graphs that it holds: the bodies of If, Loop and Scan."""
        return ([self.g] if self.g is not None else []) + self.graphs


# AttributeProto.AttributeType: the field that holds the value.
ATTRIBUTE_FIELDS = {
    1: "f",
    2: "i",
    3: "s",
    4: "t",
    5: "g",
    6: "floats",
    7: "ints",
    8: "strings",
    9: "tensors",
    10: "graphs",
    11: "sparse_tensor",
    12: "sparse_tensors",
    13: "tp",
    14: "type_protos",
}
ATTRIBUTE_TYPES = {name: number for number, name in ATTRIBUTE_FIELDS.items()}


def text(data: Bytes) -> str:
    """Bytes as text: UTF-8, other bytes as surrogates."""
    return str(data, "utf-8", "surrogateescape")


@dataclass(slots=True, eq=False)
class NodeProto(Message):
    """An operator's call. An empty name stands for an optional input or output that is left out."""

    input: list[str] = many(1, "text")
    output: list[str] = many(2, "text")
    name: str = one(3, "text", "")
    op_type: str = one(4, "text", "")
    attribute: list[AttributeProto] = many(5, "AttributeProto")
    doc_string: str = one(6, "text", "")
    domain: str = one(7, "text", "")
    overload: str = one(8, "text", "")
    metadata_props: list[StringStringEntryProto] = many(9, "StringStringEntryProto")

    @property
    def attributes(self) -> dict[str, Any]:
        """The values of the attributes by name."""
        return {attribute.name: attribute.value for attribute in self.attribute}

    @property
    def standard(self) -> bool:
        """Whether the operator is one of ONNX itself."""
        return self.domain in ("", "ai.onnx")

    @property
    def title(self) -> str:
        """The node for messages: its name or, where it has none, its first output; and the operator."""
        named = f"node {self.name!r}" if self.name else f"the node of {next(filter(None, self.output), '?')!r}"
        return f"{named} ({self.op_type})"


@dataclass(slots=True, eq=False)
class TensorAnnotation(Message):
    """Names of a tensor's quantisation parameters."""

    tensor_name: str = one(1, "text", "")
    quant_parameter_tensor_names: list[StringStringEntryProto] = many(2, "StringStringEntryProto")


@dataclass(slots=True, eq=False)
class GraphProto(Message):
    """Nodes in the order of computation, constants, inputs and outputs."""

    node: list[NodeProto] = many(1, "NodeProto")
    name: str = one(2, "text", "")
    initializer: list[TensorProto] = many(5, "TensorProto")
    doc_string: str = one(10, "text", "")
    input: list[ValueInfoProto] = many(11, "ValueInfoProto")
    output: list[ValueInfoProto] = many(12, "ValueInfoProto")
    value_info: list[ValueInfoProto] = many(13, "ValueInfoProto")
    quantization_annotation: list[TensorAnnotation] = many(14, "TensorAnnotation")
    sparse_initializer: list[SparseTensorProto] = many(15, "SparseTensorProto")
    metadata_props: list[StringStringEntryProto] = many(16, "StringStringEntryProto")


@dataclass(slots=True, eq=False)
class OperatorSetIdProto(Message):
    """A set of operators and its version."""

    domain: str = one(1, "text", "")
    version: int = one(2, "int", 0)


@dataclass(slots=True, eq=False)
class FunctionProto(Message):
    """An operator that the model defines, by nodes of others."""

    name: str = one(1, "text", "")
    input: list[str] = many(4, "text")
    output: list[str] = many(5, "text")
    attribute: list[str] = many(6, "text")
    node: list[NodeProto] = many(7, "NodeProto")
    doc_string: str = one(8, "text", "")
    opset_import: list[OperatorSetIdProto] = many(9, "OperatorSetIdProto")
    domain: str = one(10, "text", "")
    attribute_proto: list[AttributeProto] = many(11, "AttributeProto")
    value_info: list[ValueInfoProto] = many(12, "ValueInfoProto")
    overload: str = one(13, "text", "")
    metadata_props: list[StringStringEntryProto] = many(14, "StringStringEntryProto")


@dataclass(slots=True, eq=False)
class ModelProto(Message):
    """A model.

    Attributes
    ----------
    folder : Path or None
        The folder of its file, in which its external data are; not part of the format.
    """

    ir_version: int = one(1, "int", 0)
    producer_name: str = one(2, "text", "")
    producer_version: str = one(3, "text", "")
    domain: str = one(4, "text", "")
    model_version: int = one(5, "int", 0)
    doc_string: str = one(6, "text", "")
    graph: GraphProto | None = one(7, "GraphProto")
    opset_import: list[OperatorSetIdProto] = many(8, "OperatorSetIdProto")
    metadata_props: list[StringStringEntryProto] = many(14, "StringStringEntryProto")
    functions: list[FunctionProto] = many(25, "FunctionProto")
    folder: Path | None = None

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators; 1 where the file names none."""
        return next((one_of.version for one_of in self.opset_import if one_of.domain in ("", "ai.onnx")), 1)


def read_model(path: str | os.PathLike[str]) -> ModelProto:
    """The model of a file. Tensors are views of the file's bytes, external data are not read yet.

    Raises
    ------
    OSError
        It is missing, cannot be read, or is no regular file.
    FileError
        It is damaged, too large, or no ONNX file.
    """
    status = os.stat(os.fspath(path))
    kind = SPECIAL.get(stat.S_IFMT(status.st_mode))
    if kind:
        raise OSError(f"cannot read {path}: it is {kind}")
    if status.st_size > MAX_BYTES:
        raise FileError(f"{path} has {status.st_size} bytes; an ONNX file has less than 2 GiB, with tensors outside")
    with open(path, "rb") as file:
        data = file.read(status.st_size)
    try:
        model = ModelProto.from_bytes(data)
        if model.graph is None:
            raise FileError("it has no graph: it is no ONNX model")
    except FileError as error:
        raise FileError(f"{path} cannot be read: {error}") from None
    model.folder = Path(os.path.abspath(path)).parent
    return model
