"""The programs in examples/torch/: a training as it is and accelerated ends with equal parameters and losses."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlstm as fl

torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parent.parent / "examples" / "torch"
pytestmark = [
    pytest.mark.skipif(not FOLDER.exists(), reason="the examples are not installed with the package"),
    pytest.mark.skipif(fl.backends()["c"] is not None, reason=f"c: {fl.backends()['c']}"),
]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a program of the folder by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before, threads = set(sys.modules), torch.get_num_threads()
    torch.set_num_threads(1)  # the models are small
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if (FOLDER / f"{name}.py").exists():
            del sys.modules[name]


def needs(package: str, install: str) -> None:
    """Skip the test where a package is not installed."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}: pip install {install}")


def same(found: Any, calls: int) -> None:
    """Parameters and losses are equal to the tolerance of float32, and the kernels computed every call."""
    assert found.calls == calls
    assert found.parameters < 1e-4 and found.losses < 1e-5
    before, after = found.before, found.after
    assert len(before.losses) == len(after.losses) > 5 and before.losses[-1] < before.losses[0]
    assert any(type(m).__module__.startswith("fastlstm") for m in after.model.modules())
    assert not any(type(m).__module__.startswith("fastlstm") for m in before.model.modules())


def test_recurrent_ppo_of_sb3_contrib(program: Any) -> None:
    install = "--no-deps sb3-contrib stable-baselines3 gymnasium cloudpickle farama-notifications pandas matplotlib"
    for package in ("gymnasium", "stable_baselines3", "sb3_contrib", "pandas", "matplotlib"):
        needs(package, install)
    module = program("recurrent_ppo")
    found = program("side_by_side").compare(lambda prepare: module.run(prepare, 1024, hidden=16, envs=4))
    assert found.parameters < 1e-4 and found.losses < 1e-5
    assert len(found.before.losses) == len(found.after.losses) == 2  # the last loss of each update
    assert found.calls > 1000, "steps and updates ran on the kernels"


def test_a_net_of_skorch(program: Any) -> None:
    needs("skorch", "skorch")
    module = program("skorch_tagger")
    found = program("side_by_side").compare(lambda prepare: module.run(prepare, 1, 500))
    same(found, 10 + 4)  # 10 batches to train on, 4 to predict


def test_a_plain_encoder_decoder(program: Any) -> None:
    module = program("seq2seq_dates")
    found = program("side_by_side").compare(lambda prepare: module.run(prepare, 1, 1000))
    same(found, 11 * 20 + 11)  # an encoder and ten steps of a decoder, in 20 batches and once to translate


def test_a_difference_and_a_module_left_on_pytorch_are_found(program: Any) -> None:
    """The comparison can fail."""
    side = program("side_by_side")

    def run(prepare: Any, off: float = 0.0, dtype: Any = torch.float32) -> Any:
        torch.manual_seed(0)
        model = torch.nn.LSTM(2, 3).to(dtype)
        prepare(model)
        if "fastlstm" in type(model).__module__:
            model.bias_ih_l0.data[0] += off

        def train() -> list[float]:
            return [float(model(torch.ones(4, 1, 2, dtype=dtype))[0].square().sum().detach())]

        return side.timed(train, model)

    assert side.compare(run).parameters == 0
    assert side.compare(lambda prepare: run(prepare, 0.5)).parameters > 0.1
    assert side.compare(lambda prepare: run(prepare, 0.5)).losses > 1e-3
    with pytest.raises(RuntimeError, match="something was left on PyTorch"):
        side.compare(lambda prepare: run(prepare, dtype=torch.float64))


@pytest.mark.parametrize(("name", "package"), [("recurrent_ppo", "sb3_contrib"), ("skorch_tagger", "skorch")])
def test_what_to_install_is_said(name: str, package: str, program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit, match="pip install"):
        program(name)
