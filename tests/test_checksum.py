"""The checksum of memory by which a change of weights is noticed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from fastlstm._backends import c
from fastlstm.layout import Array

pytestmark = pytest.mark.skipif(c.unusable() is not None, reason="the compiled backend cannot be used here")


def checksum(a: Array) -> int:
    stretch = c.ffi.new("fl_memory[]", [(c.ffi.cast("void *", a.ctypes.data), a.nbytes)])
    found: int = c.lib.fl_checksum(stretch, 1)
    return found


def usable() -> list[str]:
    return [name for name, why in c.isas().items() if why is None]


@pytest.fixture(params=usable())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with c.use_isa(request.param):
        yield request.param


@pytest.mark.parametrize("bytes_", [1, 63, 64, 1000, 1024, 1025, 5000])
def test_every_byte_counts(isa: str, bytes_: int) -> None:
    a = np.random.default_rng(0).standard_normal(bytes_, np.float32).view(np.uint8)[:bytes_].copy()
    known = checksum(a)
    seen = {known}
    for i in range(bytes_):
        a[i] ^= 1
        seen.add(checksum(a))
        a[i] ^= 1
    assert len(seen) == bytes_ + 1
    assert checksum(a) == known


def test_changes_of_weights_are_seen(isa: str) -> None:
    """Among them those that leave a sum of the numbers or of their squares as it was."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((64, 96), np.float32)
    zeros, flipped = np.zeros_like(a), a.copy()
    flipped[0, :2] *= -1
    changed = [
        a,
        -a,
        flipped,
        a[::-1].copy(),
        a[rng.permutation(64)],
        np.roll(a, 1, 0),
        np.roll(a, 1, 1),
        a[:, ::-1].copy(),
        a.reshape(-1, 2)[:, ::-1].copy(),
        np.concatenate([a[32:], a[:32]]),
        zeros,
        -zeros,
        zeros[:-1],
        np.ones_like(a),
    ]
    sums = [checksum(one) for one in changed]
    assert len(set(sums)) == len(sums)


def test_random_changes_are_seen(isa: str) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal(3000, np.float32)
    seen = set()
    for _ in range(3000):
        b = a.copy()
        at = rng.choice(3000, 2, replace=False)
        b[at] = b[at[::-1]] if rng.random() < 0.5 else np.nextafter(b[at], np.float32(9))
        seen.add(checksum(b))
    assert len(seen) > 2990  # the same two may have been drawn twice


def test_all_instruction_sets_agree() -> None:
    a = np.random.default_rng(0).standard_normal(3001, np.float32)
    sums = set()
    for name in usable():
        with c.use_isa(name):
            sums |= {checksum(a), checksum(a[1:].copy()) ^ 1}
    assert len(sums) == 2
