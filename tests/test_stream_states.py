"""States of a `StreamBatch` as bytes, in files and in stores."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, LAYERS

import fastlstm as fl
from fastlstm.files import FileError
from fastlstm.streams import FileStore, MemoryStore, Store
from fastlstm.streams.records import HEAD

F32 = np.float32
I, H = 5, 19  # noqa: E741


def draw(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(F32)


def fed(kind: str = "lstm", n: int = 3, **options: Any) -> tuple[Any, Any, list[int]]:
    """(layer, a StreamBatch of it, the handles of n streams with keys 0.. that have done i + 1 steps)."""
    layer = LAYERS[kind](I, H, seed=1, **options)
    batch, handles = fl.StreamBatch(layer), []
    for i in range(n):
        handles.append(batch.open(i))
        for row in draw(i + 1, I):
            batch.step(handles[-1], row)
    return layer, batch, handles


# ---------------------------------------------------------------------------------------------------------------- bytes
@pytest.mark.parametrize("kind", LAYERS)
def test_a_stream_goes_on_from_its_bytes(kind: str, backend: str) -> None:
    layer, batch, handles = fed(kind, num_layers=2, backend=backend)
    states = batch.export(handles)
    other = fl.StreamBatch(layer)
    other.open()
    again = other.restore(states, keys=["a", None, "c"])
    assert again.dtype == np.int64 and other.handle_of("c") == again[2] and list(other.keys()) == ["a", "c"]
    x = draw(3, I)
    np.testing.assert_array_equal(other.step(again, x), batch.step(handles, x))
    assert other.export(again) == batch.export(handles), "the same steps, the same bytes"
    one = other.open("d", state=states[1])
    assert other.export(one) == states[1:2]


def test_what_the_bytes_hold() -> None:
    """The form that is written down in `fastlstm.streams.records`, read here by hand."""
    layer, batch, handles = fed()
    (data,) = batch.export(handles[2])
    stream = layer.stream()
    for row in draw(3, I):
        stream.step(row)
    h, c = stream.state
    expected = struct.pack("<4sHHHHQ16s2I", b"FLST", 1, 1, 2, 0, 3, batch.weights_id, H, H) + h.tobytes() + c.tobytes()
    assert data == expected + struct.pack("<I", zlib.crc32(expected))
    assert len(data) == batch.stats()["state_bytes"] + HEAD.size + 12


def test_export_may_drop() -> None:
    _, batch, handles = fed()
    states = batch.export(handles[:2], drop=True)
    assert len(states) == 2 and len(batch) == 1 and list(batch.keys()) == [2] and handles[0] not in batch
    assert batch.export([]) == [] and batch.restore([]).shape == (0,)


def damaged() -> dict[str, tuple[str, Any]]:
    def again(data: bytes) -> bytes:
        """With a checksum that fits."""
        return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))

    def with_head(data: bytes, at: int, form: str, *values: Any) -> bytes:
        new = bytearray(data)
        struct.pack_into(form, new, at, *values)
        return again(bytes(new))

    return {
        "nothing": ("is no state of a stream: it has only 0 bytes", lambda d: b""),
        "another file": ("is no state of a stream: it has b'PK", lambda d: b"PK\x03\x04" + d),
        "the first bytes": ("only 20 bytes", lambda d: d[:20]),
        "cut short": ("is cut short", lambda d: d[:-1]),
        "the head alone": ("is cut short", lambda d: d[: HEAD.size + 4]),
        "a byte more": ("is damaged", lambda d: d + b"\0"),
        "a bit of a number": ("is damaged", lambda d: d[:70] + bytes([d[70] ^ 1]) + d[71:]),
        "a bit of the steps": ("is damaged", lambda d: d[:12] + bytes([d[12] ^ 1]) + d[13:]),
        "another version": ("has version 2 of the format", lambda d: with_head(d, 4, "<H", 2)),
        "another dtype": ("is damaged|cut short", lambda d: with_head(d, 6, "<H", 2)),
        "an unknown dtype": ("is damaged", lambda d: with_head(d, 6, "<H", 9)),
        "huge sizes": ("is cut short", lambda d: with_head(d, HEAD.size, "<I", 2**32 - 1)),
        "other sizes": ("is of another model", lambda d: with_head(d, HEAD.size, "<2I", H + 1, H - 1)),
        "other weights": ("belongs to other weights", lambda d: with_head(d, 20, "16s", b"x" * 16)),
    }


@pytest.mark.parametrize("what", damaged())
def test_bytes_that_do_not_fit_are_refused_by_name(what: str) -> None:
    _, batch, handles = fed()
    message, damage = damaged()[what]
    states = batch.export(handles)
    states[1] = damage(states[1])
    before = batch.export(handles)
    with pytest.raises(fl.StateError, match=f"state 1 .*({message})"):
        batch.restore(states, keys="abc")
    with pytest.raises(fl.StateError, match=message):
        batch.open(state=states[1])
    assert len(batch) == 3 and list(batch.keys()) == [0, 1, 2] and batch.export(handles) == before


def test_every_damaged_byte_is_found() -> None:
    _, batch, handles = fed("gru", 1)
    (state,) = batch.export(handles)
    for at in range(len(state)):
        for bit in (1, 128):
            with pytest.raises(fl.StateError):
                batch.open(state=state[:at] + bytes([state[at] ^ bit]) + state[at + 1 :])
        with pytest.raises(fl.StateError):
            batch.open(state=state[:at])
    assert len(batch) == 1


def test_states_of_other_weights_are_taken_where_that_is_asked_for() -> None:
    _, batch, handles = fed()
    states = batch.export(handles)
    trained = fl.LSTM(I, H, seed=2)
    other, x = fl.StreamBatch(trained), draw(3, I)
    with pytest.raises(fl.StateError, match=f"number {batch.weights_id.hex()}.*other_weights=True"):
        other.restore(states)
    again = other.restore(states, other_weights=True)
    stream = trained.stream()
    stream.state = tuple(np.frombuffer(states[0][44 + 4 * H * i :][: 4 * H], F32).reshape(1, 1, H) for i in (0, 1))
    np.testing.assert_array_equal(other.step(again, x)[0], stream.step(x[0]))
    with pytest.raises(fl.StateError, match="is of another model: it has parts of 19, 19 numbers of float32"):
        fl.StreamBatch(fl.GRU(I, H)).restore(states, other_weights=True)
    with pytest.raises(TypeError, match="must be the bytes that export returned, got str"):
        other.restore(["FLST"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="there are 2 keys for 3 states"):
        batch.restore(states, keys="ab")
    with pytest.raises(ValueError, match="key 'a' comes twice"):
        batch.restore(states, keys="aba")
    with pytest.raises(ValueError, match="key 1 has an open stream"):
        batch.restore(states, keys=[7, 1, 8])
    assert len(batch) == 3


def test_the_number_of_weights() -> None:
    """The same for equal weights, whatever the backend or seed; another for every other equation and every change."""
    numbers = {}
    for case in CASES:
        if not case.options.get("bidirectional"):
            layer = case.layer(backend="numpy")
            numbers[repr(layer._specs)] = fl.StreamBatch(layer).weights_id
    assert len(set(numbers.values())) == len(numbers)
    layer = fl.GRU(I, H, seed=1)
    known = fl.StreamBatch(layer).weights_id
    other = fl.GRU(I, H, backend="numpy")
    other.load_state_dict(layer.state_dict())
    assert len(known) == 16 and fl.StreamBatch(other).weights_id == known
    for name in layer.state_dict():
        with other.update() as params:
            params[name].flat[-1] += 1
        assert fl.StreamBatch(other).weights_id != known, name
        other.load_state_dict(layer.state_dict())
    assert fl.StreamBatch(fl.GRU(I, H, dtype="float64", seed=1)).weights_id != known


def test_another_process_goes_on(tmp_path: Path) -> None:
    layer, batch, handles = fed()
    layer.save(tmp_path / "model")
    (tmp_path / "state").write_bytes(batch.export(handles[2])[0])
    script = """
import sys, pathlib, numpy as np, fastlstm as fl
folder = pathlib.Path(sys.argv[1])
batch = fl.StreamBatch(fl.load(folder / "model"))
handle = batch.open("there", state=(folder / "state").read_bytes())
np.save(folder / "y.npy", batch.step(handle, np.ones(5, np.float32)))
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), batch.step(handles[2], np.ones(I, F32)))


# ------------------------------------------------------------------------------------------------------------ snapshots
def test_a_snapshot_holds_all_streams(tmp_path: Path, backend: str) -> None:
    layer, batch, handles = fed(n=5, backend=backend)
    extra = [batch.open(key) for key in (b"\xff", "text", -3)]
    batch.close(handles[1])
    batch.snapshot(tmp_path / "all")
    again = fl.StreamBatch.load(layer, tmp_path / "all", capacity=1)
    left = [handles[i] for i in (0, 2, 3, 4)] + extra
    assert again.export(left) == batch.export(left) and list(again.keys()) == list(batch.keys())
    assert again.handle_of(b"\xff") == extra[0] and len(again) == 7 and handles[1] not in again
    x = draw(7, I)
    np.testing.assert_array_equal(again.step(left, x), batch.step(left, x))
    assert again.open() == batch.open(), "the slot and its generation are as they were"
    with pytest.raises(fl.StreamClosed, match="is closed"):
        again.step(handles[1], x[0])
    batch.close(batch.handles())
    batch.snapshot(tmp_path / "none")
    assert len(fl.StreamBatch.load(layer, tmp_path / "none")) == 0


def test_snapshots_that_do_not_fit(tmp_path: Path) -> None:
    layer, batch, _ = fed()
    path = tmp_path / "all"
    batch.snapshot(path)
    data = path.read_bytes()
    with pytest.raises(fl.StateError, match="belongs to other weights"):
        fl.StreamBatch.load(fl.LSTM(I, H, seed=9), path)
    with pytest.raises(fl.StateError, match="belongs to another model"):
        fl.StreamBatch.load(fl.LSTM(I, H, 2), path)
    with pytest.raises(fl.StreamsFull, match="has 3 streams, and max_streams is 2"):
        fl.StreamBatch.load(layer, path, max_streams=2)
    layer.save(tmp_path / "model")
    with pytest.raises(FileError, match="is no snapshot of streams"):
        fl.StreamBatch.load(layer, tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        fl.StreamBatch.load(layer, tmp_path / "missing")
    for at in (len(data) - 1, len(data) - 200, len(data) // 2):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(FileError, match=r"is damaged|cannot be read"):
            fl.StreamBatch.load(layer, path)
    path.write_bytes(data[:-7])
    with pytest.raises(FileError, match="cannot be read"):
        fl.StreamBatch.load(layer, path)
    path.write_bytes(data)
    batch.open((1, 2))
    with pytest.raises(TypeError, match=r"stream key \(1, 2\) is of type tuple"):
        batch.snapshot(path)
    assert path.read_bytes() == data, "the old snapshot is untouched"


# --------------------------------------------------------------------------------------------------------------- stores
@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else FileStore(tmp_path / "states")


def test_states_in_a_store(store: Store) -> None:
    layer, batch, handles = fed()
    assert isinstance(store, Store)
    states = batch.export(handles)
    keys = ["a", "../b", "ü" * 300]
    store.put_many(dict(zip(keys, states, strict=True)))
    assert store.get_many([*keys, "other"]) == [*states, None]
    store.put_many({"a": states[2]})
    store.delete_many(["../b", "other"])
    assert store.get_many(keys) == [states[2], None, states[2]]
    found = [state for state in store.get_many(keys) if state is not None]
    assert fl.StreamBatch(layer).restore(found).shape == (2,)


def test_a_file_store_stays_in_its_folder_and_is_shared(tmp_path: Path) -> None:
    FileStore(tmp_path / "states").put_many({"../../x": b"1", "/etc/passwd": b"2", "": b"3", "\0": b"4"})
    names = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(names) == 4 and all(name.parts[0] == "states" and name.suffix == ".state" for name in names)
    assert FileStore(tmp_path / "states").get_many(["", "\0", "x"]) == [b"3", b"4", None]


# ---------------------------------------------------------------------------------------------------------------- Redis
@pytest.fixture
def redis_client(tmp_path: Path) -> Iterator[Any]:
    """A client of a server of its own, which keeps nothing on disk."""
    redis = pytest.importorskip("redis", reason="the client is not installed: pip install redis")
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("there is no redis-server: apt-get install redis-server")
    socket = tmp_path / "s"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen([server, *options], stdout=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 20
            while not socket.exists() and time.monotonic() < until:
                time.sleep(0.02)
            yield redis.Redis(unix_socket_path=str(socket))
        finally:
            process.terminate()


def test_states_in_redis(
    redis_client: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(__file__).parent.parent / "examples"
    if not folder.exists():
        pytest.skip("the examples are not installed with the package")
    monkeypatch.syspath_prepend(str(folder))
    import redis_store

    store = redis_store.RedisStore(redis_client, seconds=60)
    test_states_in_a_store(store)
    assert store.get_many([]) == [] and 0 < redis_client.ttl("stream:a") <= 60
    store.delete_many(["a", "\u00fc" * 300])
    assert redis_client.dbsize() == 0
    redis_store.main("unix://" + redis_client.connection_pool.connection_kwargs["path"])
    said = capsys.readouterr().out.splitlines()
    assert said == [line.strip() for line in redis_store.__doc__.split("Expected output:")[1].strip().splitlines()]
