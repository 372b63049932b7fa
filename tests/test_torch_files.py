"""PyTorch's files and safetensors, read without PyTorch: values, and what is refused."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
from hostile import call, code, instance, name, storage, tensor, torch_stream, torch_zip, whole

from fastlstm._readers import torch_files, torch_values, unpickle
from fastlstm._readers.torch_files import flatten, load
from fastlstm._readers.torch_values import Module
from fastlstm.files import FileError

ROOT = Path(__file__).parent


def read(data: bytes, folder: Path) -> Any:
    path = folder / "file.pt"
    path.write_bytes(data)
    return load(path)


def refused(data: bytes, folder: Path, why: str) -> None:
    with pytest.raises(FileError, match=why):
        read(data, folder)


def archive(value: Any, **storages: bytes) -> bytes:
    return torch_zip(whole(value), {key.removeprefix("s"): data for key, data in storages.items()})


# -------------------------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("which", [0, 1], ids=["zip", "stream"])
def test_a_checkpoint_made_by_hand(which: int, tmp_path: Path) -> None:
    found = read(hostile.torch_files()[which], tmp_path)
    numbers = np.frombuffer(hostile.LSTM_STORAGES["0"], "<f4")
    assert np.array_equal(found["model"]["lstm.weight_ih_l0"], numbers[:24].reshape(12, 2))
    assert np.array_equal(found["model"]["lstm.bias_hh_l0"], numbers[72:], equal_nan=True)
    assert found["h"].dtype == np.float16 and found["h"].tolist() == [[1, 3], [2, 4]]
    assert found["b"].dtype == np.float32 and found["b"].tolist() == [1, 2, 1.5]
    assert found["optimizer"] == {
        "state": {},
        "param_groups": [{"lr": 0.001, "betas": (0.9, 0.999), "params": [0, 1, 2, 3]}],
    }
    assert list(flatten(found)) == [
        *(f"model.lstm.{kind}_l0" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
        "h",
        "b",
    ]


def test_a_whole_module_is_its_arrays(tmp_path: Path) -> None:
    found = read(hostile.torch_files()[2], tmp_path)
    assert isinstance(found, Module) and found.kind == "torch.nn.modules.rnn.LSTM"
    assert found.attributes == {"batch_first": True} and list(found) == ["weight_ih_l0"]
    assert found["weight_ih_l0"].shape == (12, 2)


def test_big_endian_archives(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("a/data.pkl", whole(tensor(storage("0", 2), (2,))))
        made.writestr("a/byteorder", b"big")
        made.writestr("a/data/0", struct.pack(">2f", 1.5, -2))
    assert read(file.getvalue(), tmp_path).tolist() == [1.5, -2]


def test_numpy_values_inside(tmp_path: Path) -> None:
    value = {
        "loss": np.float64(0.25),
        "a": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "n": np.arange(3, dtype=">i2"),
    }
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        found = read(torch_zip(pickle.dumps(value, protocol), {}), tmp_path)
        assert found["loss"] == 0.25 and np.array_equal(found["a"], value["a"]) and found["n"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    shared = [1, 2]
    value = OrderedDict(
        a=[1, -1, 255, 65536, 1 << 40, -(1 << 70), 0.5, None, True, False],
        b=("x", "é\u20ac", ()),
        c=shared,
        d={1: shared},
    )
    if protocol < 2:  # OrderedDict is then an object of copyreg's, which no version of PyTorch writes
        value = dict(value)  # type: ignore[assignment]
    found = read(torch_zip(pickle.dumps(value, protocol), {}), tmp_path)
    assert found == dict(value) and found["c"] is found["d"][1]
    if protocol >= 2:
        value = {"s": {1, 2}, "f": frozenset([3]), "b": b"\0\xff", "y": bytearray(b"ab")}  # type: ignore[assignment]
        found = read(torch_zip(pickle.dumps(value, protocol), {}), tmp_path)
        assert found == {"s": [1, 2], "f": [3], "b": b"\0\xff", "y": b"ab"}


def test_safetensors(tmp_path: Path) -> None:
    found = read(hostile.safetensors_files()[0], tmp_path)
    assert found["brain"].dtype == np.float32 and found["brain"].tolist() == [1, 2, 1.5]
    assert found["half"].dtype == np.float16 and found["half"].tobytes() == bytes(range(32, 36))
    assert found["lstm.weight_ih_l0"].tobytes() == bytes(range(32))
    odd = hostile.safetensors_file({"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, b"ab")
    refused(odd, tmp_path, r"its tensor 'x' has the type F8_E4M3, which is not read")
    bad = hostile.safetensors_file({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}, b"ab")
    refused(bad, tmp_path, "damaged, cut short, or no safetensors file")


# ------------------------------------------------------------------------------------------------- what torch writes
def torch_values_equal(ours: Any, torchs: Any) -> None:
    import torch

    if isinstance(torchs, torch.Tensor):
        torchs = torchs.detach()
        wide = torchs.float() if torchs.dtype == torch.bfloat16 else torchs
        assert np.array_equal(ours, wide.numpy()) and ours.dtype == wide.numpy().dtype and ours.shape == wide.shape
    elif isinstance(torchs, dict):
        assert list(ours) == list(torchs)
        for key in torchs:
            torch_values_equal(ours[key], torchs[key])
    elif isinstance(torchs, (list, tuple)):
        assert len(ours) == len(torchs)
        for mine, theirs in zip(ours, torchs, strict=True):
            torch_values_equal(mine, theirs)
    else:
        assert ours == torchs


@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
def test_what_torch_saves(new: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.ModuleDict(
        {"lstm": torch.nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2), "norm": torch.nn.BatchNorm1d(4)}
    )
    optimizer = torch.optim.Adam(model.parameters())
    y, _ = model["lstm"](torch.randn(5, 2, 3))
    y.sum().backward()
    optimizer.step()
    base = torch.randn(6, 5)
    value = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "strided": [base.t(), base[1::2, ::2], base[2], base[3:3], torch.tensor(2.5)],
        "dtypes": [torch.arange(4).to(t) for t in (torch.half, torch.bfloat16, torch.double, torch.int8, torch.bool)],
        "unsigned": torch.arange(3).to(torch.uint16),
        "complex": torch.randn(3, dtype=torch.complex64),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "size": torch.Size([1, 2]),
    }
    path = tmp_path / "file.pt"
    torch.save(value, path, _use_new_zipfile_serialization=new)
    found = load(path)
    torch_values_equal(found, value)
    assert np.shares_memory(found["strided"][0], found["strided"][2]), "shared storages are copied"
    torch.save([torch.float16, torch.device("cuda:1")], path, _use_new_zipfile_serialization=new)
    assert load(path) == ["torch.float16", "cuda:1"]


def test_archives_without_checksums_name_the_cure(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this version of PyTorch always writes checksums")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(2)}, tmp_path / "file.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.raises(FileError, match=r"Bad CRC-32.*set_crc32_options\(False\): save it with them"):
        load(tmp_path / "file.pt")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
def test_a_whole_model_of_torch(new: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(
        OrderedDict(rnn=torch.nn.RNN(3, 4, nonlinearity="relu", batch_first=True), norm=torch.nn.BatchNorm1d(4))
    )
    path = tmp_path / "file.pt"
    torch.save(model, path, _use_new_zipfile_serialization=new)
    found = load(path)
    torch_values_equal(flatten(found), dict(model.state_dict()))
    assert found["rnn"].kind == "torch.nn.modules.rnn.RNN"
    attributes = found["rnn"].attributes
    assert attributes["mode"] == "RNN_RELU" and attributes["batch_first"] is True and attributes["num_layers"] == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_torchscript(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.LSTM(3, 4, 2), torch.nn.Linear(4, 2))
    path = tmp_path / "file.pt"
    torch.jit.save(torch.jit.script(model[0]), path)
    torch_values_equal(flatten(load(path)), dict(model[0].state_dict()))


# ------------------------------------------------------------------------------------------------------------- refused
OS = name("os", "system")
TOUCH = "touch executed"


def attacks() -> dict[str, tuple[Any, str]]:
    """Attacks by a pickle, each with a part of the error's message."""
    Code = hostile.Code
    touch = code(TOUCH)
    plain = {"__setstate__": OS}
    return {
        "REDUCE": (call(OS, TOUCH), "asks to call os.system"),
        "builtins": (call(name("builtins", "eval"), "1"), "asks to call builtins.eval"),
        "getattr": (call(name("builtins", "getattr"), OS, "x"), "asks to call builtins.getattr"),
        "INST": (Code(b"(" + touch + b"ios\nsystem\n"), "opcode INST"),
        "OBJ": (Code(b"(" + OS + touch + b"o"), "opcode OBJ"),
        "NEWOBJ": (Code(OS + code((TOUCH,)) + b"\x81"), "an object of the class os.system, which is refused"),
        "NEWOBJ_EX": (Code(OS + code(()) + code({"a": 1}) + b"\x92"), "named arguments"),
        "BUILD": (instance(name("os", "x"), plain), "an object of the class os.x, which is refused"),
        "BUILD of a module": (
            instance(name("__main__", "Net"), {**plain, "_parameters": {}, "_modules": {"a": OS}}),
            "os.system",
        ),
        "BUILD of a list": (Code(code([1]) + code(plain) + b"b"), "sets the state of a value of type list"),
        "BUILD of a name": (Code(OS + code(plain) + b"b"), "sets the state of os.system"),
        "a name alone": (OS, "the class or function os.system, which is refused"),
        "a name within": ({"a": [(OS,)]}, "the class or function os.system, which is refused"),
        "dotted name": (
            Code(code("torch.storage") + code("os.system") + b"\x93" + code((TOUCH,)) + b"R"),
            "torch.storage.os.system",
        ),
        "name with a line break": (Code(code("torch\nos") + code("system") + b"\x93"), "no name of a module"),
        "name with two lines": (Code(b"ctorch.storage\nos\nsystem\n"), "damaged|opcode|left over|cut short"),
        "name that is no text": (Code(code(1) + code("system") + b"\x93"), "no name of a module"),
        "rebuild from type": (
            call(name("torch._tensor", "_rebuild_from_type_v2"), OS, OS, (TOUCH,), {}),
            "made by os.system",
        ),
        "itself": (
            call(
                name("torch._tensor", "_rebuild_from_type_v2"),
                name("torch._tensor", "_rebuild_from_type_v2"),
                OS,
                (),
                {},
            ),
            "made by",
        ),
        "EXT1": (Code(b"\x82\x01"), "registry of extensions"),
        "EXT2": (Code(b"\x83\x01\x00"), "registry of extensions"),
        "EXT4": (Code(b"\x84\x01\x00\x00\x00"), "registry of extensions"),
        "PERSID": (Code(b"Pstorage\n"), "persistent id in text"),
        "persistent id of another kind": (
            Code(code(("file", "/etc/passwd")) + b"Q"),
            "persistent id of an unknown kind",
        ),
        "persistent id that is no tuple": (Code(code("storage") + b"Q"), "persistent id of an unknown kind"),
        "storage of another class": (Code(code(("storage", OS, "0", "cpu", 1)) + b"Q"), "a storage of os.system"),
        "key that is no text": (
            Code(code(("storage", name("torch", "FloatStorage"), 1, "cpu", 1)) + b"Q"),
            "is no text",
        ),
        "buffer": (Code(b"\x97"), "buffers outside"),
        "OrderedDict of an attack": (call(name("collections", "OrderedDict"), [[OS, 1]]), "a key that is neither"),
        "defaultdict": (call(name("collections", "defaultdict"), OS, {"a": OS}), "os.system"),
        "append to a name": (Code(OS + code(1) + b"a"), "appends to os.system"),
        "items of a name": (Code(OS + code("a") + code(1) + b"s"), "sets items of os.system"),
    }


@pytest.mark.parametrize("attack", attacks())
@pytest.mark.parametrize("form", ["zip", "stream"])
def test_attacks_are_refused(attack: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    value, why = attacks()[attack]
    refused(archive(value) if form == "zip" else torch_stream(whole(value), {}), tmp_path, why)
    assert not (tmp_path / "executed").exists()


def test_the_same_attack_runs_in_a_pickle() -> None:
    """The attacks are real: Python's own pickle makes the call of the first one."""
    assert pickle.loads(whole(call(name("builtins", "int"), "7"))) == 7
    called = pickle.loads(b"\x80\x02" + call(name("builtins", "abs"), -3) + b".")
    assert called == 3


def nested(depth: int) -> hostile.Code:
    return hostile.Code(b"]" * depth + b"a" * (depth - 1))


def doubled(times: int) -> hostile.Code:
    """A tuple of the same tuple twice, nested: two bytes for each level, and 2 ** times leaves."""
    return hostile.Code(b")" + b"2\x86" * times)


BOMBS = {
    "deep": (nested(9_000), "nested more than 100 deep"),
    "itself": (hostile.Code(b"]q\x00h\x00a"), "nested more than 100 deep, or containing themselves"),
    "a dictionary that holds itself": (hostile.Code(b"}q\x07" + code("a") + b"h\x07s"), "containing themselves"),
    "doubling": (doubled(60), "repeats its values"),
    "a key of doubled tuples": (hostile.Code(b"}" + doubled(60) + b"Ns"), "neither text nor a number"),
    "text of doubled tuples": (call(name("torch", "device"), doubled(60)), "whose name is damaged"),
    "many marks": (hostile.Code(b"(" * 20_000), "more than 10000 lists"),
    "many sets": (hostile.Code(b"\x8f" * 20_000), "more than 10000 lists"),
    "memo": (hostile.Code(b"N" + b"\x94" * 30_000), "remembers more than"),
    "opcodes": (hostile.Code(b"N0" * 50_000), "more than 80000 opcodes"),
    "text of 4 GiB": (hostile.Code(b"X\xff\xff\xff\xff"), "damaged or cut short"),
    "bytes of 2 ** 63": (hostile.Code(b"\x8e" + b"\xff" * 8), "damaged or cut short"),
    "long of 2 GiB": (hostile.Code(b"\x8b\xff\xff\xff\x7f"), "absurd size"),
    "long in text": (hostile.Code(b"L" + b"9" * 5000 + b"L\n"), "absurd size"),
    "keys with one hash": (code({k * ((1 << 61) - 1): 0 for k in range(2, 9)}), "neither text nor a number"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused(bomb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With limits a hundredth of the real ones, so that the tests are quick."""
    for limit in ("MAX_OPCODES", "MAX_CONTAINERS", "MAX_MEMO"):
        monkeypatch.setattr(unpickle, limit, getattr(unpickle, limit) // 100)
    value, why = BOMBS[bomb]
    refused(archive(value), tmp_path, why)


def test_the_doubling_bomb_is_one() -> None:
    assert len(str(pickle.loads(whole(doubled(8))))) > 2**8


VERSION_3 = name("torch._utils", "_rebuild_tensor_v3")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (tensor(storage("0", 4), (5,)), "beyond its 4 elements"),
        (tensor(storage("0", 4), (2,), (1,), 3), "beyond its 4 elements"),
        (tensor(storage("0", 4), (1 << 40,), (0,)), "expanded tensor"),
        (tensor(storage("0", 4), (2, 2), (-1, 1)), "impossible"),
        (tensor(storage("0", 4), (-1,)), "impossible"),
        (tensor(storage("0", 4), (True,)), "impossible"),
        (tensor(storage("0", 1 << 40), (1 << 40,)), "should have"),
        (tensor(storage("0", -1), ()), "elements"),
        (tensor(storage("9", 4), (4,)), "is not in the archive"),
        ([tensor(storage("0", 4), (4,))] * 17, "share the storage"),
        ([storage("0", 4), storage("0", 2)], "says two things"),
        (tensor(code([1]), (1,)), "which is no storage"),
        (storage("0", 4), "Storage, which is refused"),
        (call(name("torch._utils", "_rebuild_qtensor")), "a quantised tensor, which is not read"),
        (call(name("torch._utils", "_rebuild_sparse_tensor"), 1), "a sparse tensor, which is not read"),
        (
            call(
                name("torch._utils", "_rebuild_tensor_v3"),
                storage("0", 4),
                0,
                (1,),
                (1,),
                0,
                0,
                name("torch", "float8_e5m2"),
            ),
            "float8",
        ),
    ],
)
def test_impossible_tensors_are_refused(value: Any, why: str, tmp_path: Path) -> None:
    refused(archive(value, s0=bytes(16)), tmp_path, why)


def test_parts_of_a_storage_in_old_streams(tmp_path: Path) -> None:
    def file(start: int, size: int) -> bytes:
        part = tensor(storage("0", 4, "FloatStorage", ("v", start, size)), (size,))
        return torch_stream(whole(part), {"0": (4, struct.pack("<4f", 1, 2, 3, 4))})

    assert read(file(1, 2), tmp_path).tolist() == [2, 3]
    refused(file(3, 2), tmp_path, "reaches beyond it")
    refused(torch_stream(whole(tensor(storage("0", 4), (4,))), {"0": (1 << 60, b"")}), tmp_path, "cut short")
    refused(torch_stream(whole(tensor(storage("0", 1 << 40), (4,))), {"0": (1 << 40, b"")}), tmp_path, "cut short")


def test_archives_that_are_made_to_look_larger(tmp_path: Path) -> None:
    value = tensor(storage("0", 1 << 20), (1 << 20,))
    small = torch_zip(whole(value), {"0": bytes(1 << 22)}, compression=zipfile.ZIP_DEFLATED)
    assert len(small) < 10_000
    refused(small, tmp_path, "is compressed")
    sound = bytearray(archive(tensor(storage("0", 4), (4,)), s0=bytes(16)))
    at = sound.rindex(b"PK\x01\x02", 0, sound.rindex(b"archive/data/0"))
    huge = sound.copy()
    huge[at + 24 : at + 28] = b"\xf0\xff\xff\x7f"  # the size in the directory
    refused(bytes(huge), tmp_path, "should have 16 bytes|says two things")
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as made, pytest.warns(UserWarning, match="Duplicate"):
        made.writestr("a/data.pkl", whole(1))
        made.writestr("a/data.pkl", whole(2))
    refused(twice.getvalue(), tmp_path, "two entries")


def test_entries_inside_one_another_are_refused(tmp_path: Path) -> None:
    """Many entries with the same bytes, as in the densest zip bombs."""
    inner = archive(tensor(storage("0", 4), (4,)), s0=bytes(16))
    entry = inner[inner.rindex(b"PK\x03\x04", 0, inner.index(b"archive/data/0")) :][: 30 + len("archive/data/0") + 16]
    outer = bytearray(torch_zip(whole(1), {"9": entry, "0": bytes(16)}))
    at = outer.rindex(b"PK\x01\x02", 0, outer.rindex(b"archive/data/0"))
    outer[at + 42 : at + 46] = struct.pack("<I", outer.index(entry))
    with zipfile.ZipFile(io.BytesIO(outer)) as made:
        assert made.read("archive/data/0") == bytes(16), "the entry inside is a sound one"
    refused(bytes(outer), tmp_path, "entry 'archive/data/0' overlaps another one")


def test_an_archive_with_a_huge_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastlstm._readers import archive as module

    monkeypatch.setattr(module, "MAX_DIRECTORY", 100)
    refused(archive({}), tmp_path, "its directory has .* bytes; up to 100 are read")


def test_a_flipped_bit_in_the_weights_is_seen(tmp_path: Path) -> None:
    data = bytearray(archive(tensor(storage("0", 4), (4,)), s0=b"\1" * 16))
    data[data.index(b"\1" * 16)] ^= 4
    refused(bytes(data), tmp_path, "Bad CRC-32")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "neither a file of torch.save"),
        (b"hello", "neither a file of torch.save"),
        (pickle.dumps({"a": 1}), "a pickle, but not one that torch.save has written"),
        (b"x" * 257 + b"ustar  " + bytes(300), "a tar archive, PyTorch's format before version 0.1.10"),
        (b"PK\x03\x04 and no more", "damaged or cut short"),
        (torch_stream(whole(1), {})[:-30], "cut short|damaged"),
    ],
)
def test_other_files_are_named(data: bytes, why: str, tmp_path: Path) -> None:
    refused(data, tmp_path, why)


def test_missing_files_and_folders_are_oserrors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.pt")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)


def test_the_allow_list_calls_nothing_of_torch_or_numpy() -> None:
    """Each function in `CALLS` is defined in the reader."""
    for function in torch_values.CALLS.values():
        assert function.__module__ == torch_values.__name__, function
    source = Path(unpickle.__file__).read_text() + Path(torch_values.__file__).read_text()
    for word in ("import_module", "__import__", "getattr(", "eval(", "exec(", "pickle.loads", "Unpickler"):
        assert word not in source, word
    assert torch_files.load_pickle is unpickle.load
