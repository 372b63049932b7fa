"""Fixtures: every backend that can be used here, and every instruction set of the compiled one."""

from __future__ import annotations

import inspect
import os
import re
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest

# Set before NumPy is loaded: the reference multiplies small matrices, in which BLAS's threads mostly wait for each
# other, for minutes if the cores are busy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from fastlstm._backends import backends, module

# Libraries that only `make test-peers` installs. A test that imports one, or is in a file that does, gets the mark
# `peers`.
PEERS = ("torch", "onnx", "onnxruntime", "keras", "h5py", "sklearn", "pandas", "pyarrow")
ASKS = re.compile(rf"importorskip\(\s*\"({'|'.join(PEERS)})[\".]")
FILE_ASKS = re.compile(rf"^(\w+ = )?pytest\.{ASKS.pattern}", re.MULTILINE)


def pytest_configure() -> None:
    """Undo what a background job of a shell (SIGINT) or nohup (SIGHUP) has ignored: tests send these signals.

    Processes that tests start inherit the default action.
    """
    for name, action in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, action)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need another library with `peers`."""
    of_file: dict[str, bool] = {}
    for item in items:
        assert isinstance(item, pytest.Function)
        path = str(item.path)
        if path not in of_file:
            of_file[path] = FILE_ASKS.search(item.path.read_text(encoding="utf-8")) is not None
        if of_file[path] or ASKS.search(inspect.getsource(item.function)):
            item.add_marker(pytest.mark.peers)


class Engine(NamedTuple):
    """A backend, and for the compiled one an instruction set."""

    backend: str
    isa: str | None = None

    def __str__(self) -> str:
        return f"{self.backend}-{self.isa}" if self.isa else self.backend


def _engines(name: str) -> list[Any]:
    """A backend's usable engines as parameters of tests; without any, one parameter that is skipped with the reason."""
    why = backends()[name]
    isas = module("c").isas() if name == "c" and why is None else {None: why}
    usable = [Engine(name, isa) for isa, reason in isas.items() if reason is None]
    if usable:
        return [pytest.param(engine, id=str(engine)) for engine in usable]
    return [
        pytest.param(
            Engine(name), id=name, marks=pytest.mark.skip(reason=f"{name}: {'; '.join(map(str, isas.values()))}")
        )
    ]


COMPILED = _engines("c")
ALL = [engine for name in backends() for engine in _engines(name)]


def _use(engine: Engine) -> Any:
    return module("c").use_isa(engine.isa) if engine.isa else nullcontext()


@pytest.fixture(params=ALL)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of each usable backend; of the compiled one, once for each usable instruction set."""
    with _use(request.param):
        yield request.param.backend


@pytest.fixture(params=COMPILED)
def compiled(request: pytest.FixtureRequest) -> Iterator[str]:
    """The compiled backend, once for each usable instruction set."""
    with _use(request.param):
        yield request.param.backend
