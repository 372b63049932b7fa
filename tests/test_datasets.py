"""Reviews in Keras's file, read without running its pickle, and padded sequences."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastlstm._readers.npz import read_npz
from fastlstm.datasets import imdb, pad_sequences
from fastlstm.files import FileError


def lists(*rows: Any) -> Any:
    """An array of objects."""
    made = np.empty(len(rows), object)
    made[:] = rows
    return made


REVIEWS = {
    "x_train": lists([1, 5, 4997], [2], []),
    "y_train": np.array([1, 0, 1]),
    "x_test": lists([7, 70_000], [4996, 3, 1]),
    "y_test": np.array([0, 1]),
}


def write(path: Path, protocol: int, **arrays: Any) -> None:
    """A file like np.savez's, whose pickles have the given protocol (Keras's file has 2 or 3)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            file = io.BytesIO()
            header = np.lib.format.header_data_from_array_1_0(np.asarray(array))
            np.lib.format.write_array_header_1_0(file, header)
            file.write(pickle.dumps(array, protocol) if array.dtype.hasobject else array.tobytes())
            archive.writestr(f"{name}.npy", file.getvalue())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reviews_have_keras_s_ids(protocol: int, tmp_path: Path) -> None:
    write(tmp_path / "imdb.npz", protocol, **REVIEWS)
    (x, y), (x_test, y_test) = imdb(tmp_path / "imdb.npz", 5000)
    assert [a.tolist() for a in x] == [[1, 4, 8, 2], [1, 5], [1]]
    assert [a.tolist() for a in x_test] == [[1, 10, 2], [1, 4999, 6, 4]]
    assert y.tolist() == [1, 0, 1] and y_test.tolist() == [0, 1]
    assert imdb(tmp_path / "imdb.npz")[1][0][0].tolist() == [1, 10, 70_003]


def test_reviews_are_those_that_keras_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="keras is not installed: make test-peers")
    np.savez(tmp_path / "imdb.npz", **REVIEWS)
    monkeypatch.setattr("keras.src.datasets.imdb.get_file", lambda *_, **__: str(tmp_path / "imdb.npz"))
    ours = imdb(tmp_path / "imdb.npz", 5000)
    theirs = keras.datasets.imdb.load_data(num_words=5000)
    for (x, y), (x_keras, y_keras) in zip(ours, theirs, strict=True):
        mine = {(tuple(row), int(label)) for row, label in zip(x, y, strict=True)}
        assert mine == {(tuple(row), int(label)) for row, label in zip(x_keras, y_keras, strict=True)}


@pytest.mark.parametrize("options", [{}, {"padding": "post"}, {"truncating": "post"}, {"value": 9}])
def test_padding_is_keras_s(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="keras is not installed: make test-peers")
    ids = [np.arange(1, n + 1) for n in (0, 2, 4, 5, 9)]
    theirs = keras.utils.pad_sequences(ids, maxlen=4, **options)
    np.testing.assert_array_equal(pad_sequences(ids, 4, **options), theirs)


def test_padding_without_keras() -> None:
    np.testing.assert_array_equal(pad_sequences([[1, 2], [3, 4, 5, 6]], 3), [[0, 1, 2], [4, 5, 6]])
    np.testing.assert_array_equal(pad_sequences([[1, 2], [3, 4, 5, 6]], 3, "post", "post"), [[1, 2, 0], [3, 4, 5]])
    with pytest.raises(ValueError, match="padding must be 'pre' or 'post', got 'left'"):
        pad_sequences([[1]], 3, "left")
    with pytest.raises(ValueError, match=r"has shape \(1,\) and dtype float64, expected token ids"):
        pad_sequences([[1.5]], 3)


class Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (lists([1], Runs()), "asks to call posix.mkdir, which is refused"),
        (lists([1], "text"), r"x_train.npy\[1\] is a value of type str, which is no list of numbers"),
        (lists([1], [[2]]), r"x_train.npy\[1\] is a value of type list, which is no list of numbers"),
        (lists([1], [1 << 70]), r"x_train.npy\[1\] has a number beyond 64 bits"),
        (np.array([[[1], [2]], [[3], [4]]], object), "no list of numbers|has several axes"),
    ],
)
def test_nothing_is_run_and_other_objects_are_refused(
    array: Any, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "imdb.npz", 4, **{**REVIEWS, "x_train": array})
    with pytest.raises(FileError, match=why):
        imdb("imdb.npz")
    assert not Path("ran").exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "imdb.npz"
    write(path, 4, **{name: a for name, a in REVIEWS.items() if name != "y_test"})
    with pytest.raises(FileError, match="no file of reviews: it needs lists x_test and labels y_test"):
        imdb(path)
    write(path, 4, **REVIEWS)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole[: rng.integers(1, len(whole))] if rng.random() < 0.3 else whole)
        for at in rng.integers(0, len(damaged), 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            imdb(path)
        except FileError as error:
            assert str(path) in str(error)


def test_arrays_of_numbers_are_read_as_numpy_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = {
        "a": rng.standard_normal((3, 4)),
        "f": np.asfortranarray(rng.random((2, 5))),
        "none": np.zeros((0, 3)),
        "one": np.array(7),
    }
    np.savez_compressed(tmp_path / "f.npz", **given)
    for name, array in read_npz(tmp_path / "f.npz").items():
        np.testing.assert_array_equal(array, given[name])
