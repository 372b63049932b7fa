"""Fixtures: every backend that can be used here, and every instruction set of the compiled one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest

from fastlstm.backends import backends, module


class Engine(NamedTuple):
    """A backend, and for the compiled one an instruction set."""

    backend: str
    isa: str | None = None

    def __str__(self) -> str:
        return f"{self.backend}-{self.isa}" if self.isa else self.backend


def _engines(name: str) -> Iterator[Any]:
    """A backend's engines as parameters of tests, skipped with the reason where this machine cannot run them."""
    why = backends()[name]
    c = name == "c" and why is None
    for isa, reason in (module("c").isas() if c else {None: why}).items():
        marks = [pytest.mark.skip(reason=f"{Engine(name, isa)}: {reason}")] if reason else []
        yield pytest.param(Engine(name, isa), id=str(Engine(name, isa)), marks=marks)


FAST = [engine for name in backends() if name != "numpy" for engine in _engines(name)]
ALL = [*_engines("numpy"), *FAST]
COMPILED = list(_engines("c"))


def _use(engine: Engine) -> Any:
    return module("c").use_isa(engine.isa) if engine.isa else nullcontext()


@pytest.fixture(params=ALL)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of each usable backend; of the compiled one, once for each usable instruction set."""
    with _use(request.param):
        yield request.param.backend


@pytest.fixture(params=FAST)
def fast_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `backend`, without the reference."""
    with _use(request.param):
        yield request.param.backend


@pytest.fixture(params=COMPILED)
def compiled(request: pytest.FixtureRequest) -> Iterator[str]:
    """The compiled backend, once for each usable instruction set."""
    with _use(request.param):
        yield request.param.backend
