"""Every usable backend in every case of the grid, for pytest-benchmark: one group a case, NumPy as the base line.

The cases, the contenders and the check of values are those of `fastlstm bench`; this runs them one after the other in
a form that pytest-benchmark can save and compare between commits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import fastlstm as fl
from fastlstm._backends import backends
from fastlstm.report import contenders, machine, measure
from fastlstm.report.cases import GRID, Case

USABLE = [name for name, why in backends().items() if why is None]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with machine.blas_threads(1), fl.threads(1):
        yield


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("case", GRID, ids=str)
def test_speed(case: Case, backend: str, benchmark: Any) -> None:
    benchmark.group = str(case)
    benchmark.extra_info.update(mflop=case.flops / 1e6, recurrent_bytes=case.recurrent_bytes)
    contender = contenders.ours()[backend](case, 1)
    assert measure.difference(contender.values(), contenders.reference(case)) is None
    benchmark(contender.call)
