"""ONNX's files: messages and tensors as the onnx package reads them, and damaged ones refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastlstm.files import FileError
from fastlstm.onnx import messages, protobuf, tensors
from fastlstm.onnx.builder import Graph, model
from fastlstm.onnx.messages import AttributeProto, ModelProto, NodeProto, TensorProto, read_model
from fastlstm.onnx.protobuf import Message
from fastlstm.onnx.tensors import from_array, to_array


def small_model() -> bytes:
    graph = Graph("g", np.dtype("f4"))
    x = graph.input("x", "f4", ["batch", 3])
    graph.output(graph.node("Add", x, graph.constant(np.arange(3))), "y", "f4", ["batch", 3])
    return model(graph)


def varint(value: int) -> bytes:
    return protobuf._to_varint(value)


# ------------------------------------------------------------------------------------------------------------- messages
def test_the_fields_are_those_of_the_definition() -> None:
    """Name, number, kind and label of every declared field."""
    onnx = pytest.importorskip("onnx")
    ours = {"TensorType": "TypeProto.Tensor", "Dimension": "TensorShapeProto.Dimension"}
    kinds = {2: "float", 3: "int", 4: "int", 5: "int", 9: "text", 12: "bytes", 13: "int", 14: "int"}
    packed = {2: "packed_float", 1: "packed_double", 5: "packed_varint", 3: "packed_varint", 4: "packed_varint"}
    seen = 0
    for name, cls in Message.CLASSES.items():
        theirs = onnx.ModelProto.DESCRIPTOR.file
        for part in ours.get(name, name).split("."):
            within = (
                theirs.message_types_by_name
                if hasattr(theirs, "message_types_by_name")
                else theirs.nested_types_by_name
            )
            theirs = within[part]
        known = {field.number: field for field in theirs.fields}
        for field in protobuf._declared(cls):
            there = known[field.number]
            assert (field.name, field.many) == (there.name, there.is_repeated), (name, field)
            if there.message_type is not None:
                assert ours.get(field.kind, field.kind) == there.message_type.full_name.removeprefix("onnx."), field
            elif (
                name == "TensorProto" and there.name.endswith("_data") and there.name not in ("raw_data", "string_data")
            ):
                assert field.kind == packed[there.type], field
            else:
                assert field.kind == kinds[there.type], (name, field)
            seen += 1
    assert seen > 90


def test_a_model_written_back_is_the_model() -> None:
    """All models of the onnx package's own tests, with all that is not declared here."""
    onnx = pytest.importorskip("onnx")
    files = sorted(Path(onnx.__file__).parent.rglob("*.onnx"))
    assert len(files) > 100
    for path in files:
        ours, theirs = onnx.ModelProto(), onnx.load(path, load_external_data=False)
        ours.ParseFromString(read_model(path).to_bytes())
        assert ours == theirs, path


def test_what_is_not_declared_is_kept() -> None:
    onnx = pytest.importorskip("onnx")
    proto = onnx.ModelProto()
    proto.ParseFromString(small_model())
    proto.training_info.add().initialization.name = "start"
    proto.configuration.add().num_devices = 3
    proto.graph.value_info.add(name="s").type.sequence_type.elem_type.tensor_type.elem_type = 1
    proto.graph.initializer[0].segment.begin = 1
    proto.graph.node[0].device_configurations.add().pipeline_stage = 2
    ours = ModelProto.from_bytes(proto.SerializeToString())
    back = onnx.ModelProto()
    back.ParseFromString(ours.to_bytes())
    assert back == proto and back.training_info[0].initialization.name == "start"


def test_a_value_that_equals_the_default_is_written_back_if_it_was_there() -> None:
    with_domain, without = b"\x0a\x00\x10\x07", b"\x10\x07"  # an operator set's domain "", version 7
    for data in (with_domain, without):
        assert messages.OperatorSetIdProto.from_bytes(data).to_bytes() == data
    assert AttributeProto(name="a", i=0).to_bytes() == b"\x0a\x01a\x18\x00"


def test_a_message_in_two_parts_is_merged() -> None:
    first, second = NodeProto(input=["a"], op_type="Add"), NodeProto(input=["b"], op_type="Mul")
    both = NodeProto.from_bytes(first.to_bytes() + second.to_bytes())
    assert both.input == ["a", "b"] and both.op_type == "Mul"
    data = small_model()
    assert ModelProto.from_bytes(data + data).graph.to_bytes().count(b"Add") == 2  # type: ignore[union-attr]


def test_negative_numbers_and_texts_that_are_no_unicode() -> None:
    attribute = AttributeProto(name="x", type=7, ints=[-1, 2**63 - 1, -(2**63)])
    back = AttributeProto.from_bytes(attribute.to_bytes())
    assert back.value == [-1, 2**63 - 1, -(2**63)]
    assert AttributeProto.from_bytes(b"\x0a\x02\xff\xfe").to_bytes() == b"\x0a\x02\xff\xfe"
    packed = AttributeProto.from_bytes(b"\x42\x03\x01\x02\x03")
    assert packed.ints == [1, 2, 3]


def test_large_tensors_are_views_of_the_file() -> None:
    graph = Graph("g", np.dtype("f4"))
    graph.constant(np.arange(100_000, dtype="f4"), "w")
    data = model(graph)
    found = ModelProto.from_bytes(data).graph
    assert found is not None
    array = to_array(found.initializer[0])
    assert np.shares_memory(array, np.frombuffer(data, np.uint8)) and array[-1] == 99_999


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x3a\xff\xff\xff\xff\x0f", "reaches beyond its end"),
        (b"\x08\xff", "number without an end"),
        (b"\x08" + b"\xff" * 11, "number without an end"),
        (b"\x0b", "wire type 3"),
        (b"\x02\x00", "reaches beyond its end"),  # field 0
        (b"\x3a\x05\x0a\x03\x12\x01", "reaches beyond its end"),
        (b"", "no graph"),
        (b"hello, world", "wire type"),
    ],
)
def test_damaged_files_are_refused(data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(FileError, match=rf"model\.onnx cannot be read: it has .*{says}"):
        read_model(path)


def test_depth_and_number_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def nested(depth: int) -> bytes:
        body = b""
        for _ in range(depth):  # a graph with a node with an attribute with a graph
            for tag in (b"\x32", b"\x2a", b"\x0a"):
                body = tag + varint(len(body)) + body
        return b"\x3a" + varint(len(body)) + body

    assert ModelProto.from_bytes(nested(30)).graph is not None
    with pytest.raises(FileError, match="nested more than 100 deep"):
        ModelProto.from_bytes(nested(200))
    many = b"\x3a\x00" + b"\x72\x00" * 1000
    assert len(ModelProto.from_bytes(many).metadata_props) == 1000
    monkeypatch.setattr(protobuf, "MAX_ITEMS", 500)
    with pytest.raises(FileError, match="more than 500 messages"):
        ModelProto.from_bytes(many)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, says in ((tmp_path, "a folder"), (tmp_path / "pipe", "pipe")):
        with pytest.raises(OSError, match=says):
            read_model(path)
    with pytest.raises(FileNotFoundError):
        read_model(tmp_path / "missing")


# -------------------------------------------------------------------------------------------------------------- tensors
def values_for(name: str) -> list[Any]:
    if name.startswith(("uint", "bool")):
        return [0, 1, 1, 0, 1, 1, 0] if name in ("bool", "uint2") else [0, 1, 2, 3, 7, 15, 9]
    if name.startswith("int"):
        return [0, 1, -1, -2, 1, 0, -2] if name == "int2" else [0, 1, -1, -8, 7, 5, -3]
    if name.startswith("complex"):
        return [1 + 2j, -3j, 0.5, 1j, 2, 3, 4 - 1j]
    if name == "float8e8m0":
        return [1, 2, 0.5, 4, 8, 0.25, 1]
    return [0, 1, -1, 0.5, 3, -6, 1.5]


@pytest.mark.parametrize("number", [n for n in tensors.TYPES if tensors.TYPES[n].name != "string"])
def test_tensors_of_every_type_are_as_the_onnx_package_reads_them(number: int) -> None:
    onnx = pytest.importorskip("onnx")
    of = tensors.TYPES[number]
    proto = onnx.helper.make_tensor("t", number, (7,), values_for(of.name))
    expected = onnx.numpy_helper.to_array(proto)
    raw = onnx.numpy_helper.from_array(expected, "t")
    assert raw.data_type == number and raw.HasField("raw_data")
    for form in (proto, raw):
        got = to_array(TensorProto.from_bytes(form.SerializeToString()))
        assert got.dtype == (np.float32 if of.small else np.dtype(of.dtype))
        np.testing.assert_array_equal(got, expected.astype(got.dtype))


@pytest.mark.parametrize("number", [16, 17, 18, 19, 20, 23, 24])
def test_every_code_of_small_floats(number: int) -> None:
    onnx = pytest.importorskip("onnx")
    of = tensors.TYPES[number]
    size = 1 << 16 if of.dtype == "<u2" else 256
    codes = np.arange(size, dtype=of.dtype)
    count = size * 8 // of.bits if of.bits else size
    proto = onnx.TensorProto(dims=[count], data_type=number, raw_data=codes.tobytes())
    with np.errstate(all="ignore"):
        expected = onnx.numpy_helper.to_array(proto).astype(np.float32)
    np.testing.assert_array_equal(to_array(TensorProto.from_bytes(proto.SerializeToString())), expected)


def test_strings_scalars_and_empty_tensors() -> None:
    strings = TensorProto(dims=[2], data_type=8, string_data=[b"a", b"\xff"])
    assert to_array(strings).tolist() == [b"a", b"\xff"]
    assert to_array(from_array(np.float64(2.5))).shape == ()
    assert to_array(TensorProto(dims=[3, 0], data_type=1)).shape == (3, 0)
    for array in (np.arange(6, dtype=">i4").reshape(2, 3), np.array([True, False]), np.arange(6.0).reshape(2, 3).T):
        np.testing.assert_array_equal(to_array(from_array(array)), array)
    with pytest.raises(TypeError, match="no tensors of datetime64"):
        from_array(np.array(["2026-01-01"], "datetime64[D]"))


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (TensorProto(name="w", dims=[3], data_type=1, raw_data=bytes(11)), "11 bytes.*takes 12"),
        (TensorProto(name="w", dims=[3], data_type=7, int64_data=[b"\1\2"]), "2 numbers.*takes 3"),
        (TensorProto(name="w", dims=[1], data_type=7, int64_data=[b"\xff"]), "number without an end"),
        (TensorProto(name="w", dims=[1], data_type=7, int64_data=[b"\xff" * 11 + b"\1"]), "number without an end"),
        (TensorProto(name="w", dims=[3], data_type=1, float_data=[bytes(8)]), "8 bytes.*takes 12"),
        (TensorProto(name="w", dims=[3], data_type=21, raw_data=bytes(3)), "3 bytes.*takes 2"),
        (TensorProto(name="w", dims=[-1], data_type=1), "the shape"),
        (TensorProto(name="w", dims=[2**62, 0], data_type=1), "too large"),
        (TensorProto(name="w", dims=[1] * 40, data_type=1), "the shape"),
        (TensorProto(name="w", dims=[2**33], data_type=1), "0 bytes"),
        (TensorProto(name="w", dims=[1], data_type=99), "the type 99"),
        (TensorProto(name="w", dims=[3], data_type=8, string_data=[b"a"]), "1 texts.*takes 3"),
    ],
)
def test_damaged_tensors_are_refused(tensor: TensorProto, says: str) -> None:
    with pytest.raises(FileError, match=says):
        to_array(TensorProto.from_bytes(tensor.to_bytes()))


# -------------------------------------------------------------------------------------------------------- external data
def external(location: str, **more: Any) -> TensorProto:
    entries = {"location": location, **{key: str(value) for key, value in more.items()}}
    pairs = [messages.StringStringEntryProto(key=key, value=value) for key, value in entries.items()]
    return TensorProto(name="w", dims=[3], data_type=1, external_data=pairs, data_location=1)


def test_external_data_are_read_from_the_models_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data.bin").write_bytes(bytes(4) + np.arange(3, dtype="f4").tobytes())
    for found in (external("in/data.bin", offset=4, length=12), external("in\\data.bin", offset=4)):
        np.testing.assert_array_equal(to_array(found, tmp_path), [0, 1, 2])


def test_external_data_elsewhere_or_damaged_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(12))
    (folder / "data.bin").write_bytes(bytes(12))
    os.symlink(tmp_path / "secret.bin", folder / "link.bin")
    os.mkfifo(folder / "pipe")
    for location in (
        "../secret.bin",
        str(tmp_path / "secret.bin"),
        "link.bin",
        "",
        "a\0b",
        "..\\secret.bin",
        "x/../../secret.bin",
    ):
        with pytest.raises(FileError, match="outside the model's folder"):
            to_array(external(location), folder)
    for found, says in (
        (external("pipe"), "no regular file"),
        (external("."), "no regular file"),
        (external("data.bin", offset=4), "bytes 4 to 16"),
        (external("data.bin", offset=-4), "bytes -4 to 8"),
        (external("data.bin", offset=2**70), "which has 12"),
        (external("data.bin", length=8), "8 bytes"),
        (external("data.bin", offset="x"), "no number"),
    ):
        with pytest.raises(FileError, match=says):
            to_array(found, folder)
    with pytest.raises(FileError, match="not read from a file"):
        to_array(external("data.bin"), None)
    with pytest.raises(FileNotFoundError):
        to_array(external("missing.bin"), folder)
