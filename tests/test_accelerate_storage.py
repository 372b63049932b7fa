"""`fl.torch.accelerate` with a reduced storage: inference on packed integers, from parameters that stay float32."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from cases import assert_same_bits

import fastlstm as fl
from fastlstm._backends import module

torch = pytest.importorskip("torch")
nn = torch.nn
pytestmark = pytest.mark.skipif(
    module("c").unusable() is not None or "int8" not in module("c").STORAGES, reason="backend c does not keep int8"
)

X = torch.randn(7, 3, 8, generator=torch.Generator().manual_seed(0))


def made(kind: str = "LSTM", **options: Any) -> Any:
    torch.manual_seed(1)
    return getattr(nn, kind)(8, 16, **options).eval()


def numbers(state: Any) -> Any:
    """All numbers of a state in one array."""
    return np.concatenate([np.asarray(part).ravel() for part in (state if isinstance(state, tuple) else (state,))])


def own(model: Any, storage: str) -> Any:
    return fl.from_torch(model, backend="c").quantize(storage)


@pytest.mark.parametrize("storage", ["int8", "float16"])
@pytest.mark.parametrize(("kind", "options"), [
    ("LSTM", {"num_layers": 2, "bidirectional": True}), ("LSTM", {"proj_size": 5}), ("GRU", {"num_layers": 3}),
    ("RNN", {"nonlinearity": "relu", "num_layers": 2}),
])  # fmt: skip
def test_outputs_are_those_of_the_quantised_layer(kind: str, options: dict[str, Any], storage: str) -> None:
    model = made(kind, **options)
    plain = model(X)[0].detach().numpy()
    summary = fl.torch.accelerate(model, storage=storage)
    assert summary.accelerated == [""] and f"weights kept as {storage}" in str(summary)
    y, state = model(X)
    expected, last = own(model, storage)(X.numpy())
    assert_same_bits({"y": y.numpy(), "h": numbers(state)}, {"y": expected, "h": numbers(last)})
    assert 0 < np.abs(y.numpy() - plain).max() < 3e-2 and not y.requires_grad
    packed = nn.utils.rnn.pack_padded_sequence(X, [7, 4, 2])
    data = model(packed)[0].data.numpy()
    ragged = own(model, storage)(X.numpy(), lengths=[7, 4, 2])[0]
    rows = [ragged[t, b] for t in range(7) for b, n in enumerate((7, 4, 2)) if t < n]
    assert_same_bits({"y": data}, {"y": np.array(rows)})


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(kind: str) -> None:
    cell = made(kind)
    fl.torch.accelerate(cell, storage="int8")
    state, expected = cell(X[0]), own(cell, "int8")(X[0].numpy())
    state, expected = (state[0], expected[0]) if kind == "LSTMCell" else (state, expected)
    assert_same_bits({"h": state.numpy()}, {"h": expected})


def test_weights_that_changed_are_packed_anew() -> None:
    model = made()
    fl.torch.accelerate(model, storage="int8")
    before = model(X)[0].numpy().copy()
    with torch.no_grad():
        model.weight_hh_l0.mul_(0.5)
    after = model(X)[0].numpy()
    assert np.abs(after - before).max() > 1e-2
    assert_same_bits({"y": after}, {"y": own(model, "int8")(X.numpy())[0]})
    model.weight_ih_l0.data.numpy()[...] *= 2  # which PyTorch does not count
    assert_same_bits({"y": model(X)[0].numpy()}, {"y": own(model, "int8")(X.numpy())[0]})


def test_frozen_weights_change_by_load_state_dict() -> None:
    model = made()
    fl.torch.accelerate(model, frozen=True, storage="int8")
    model(X)
    model.load_state_dict({name: 0.5 * p for name, p in model.state_dict().items()})
    assert_same_bits({"y": model(X)[0].numpy()}, {"y": own(model, "int8")(X.numpy())[0]})


def test_what_needs_a_gradient_is_refused_by_name() -> None:
    model = made()
    fl.torch.accelerate(model, storage="int8")
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"LSTM was accelerated with storage='int8', for inference: call model.eval"):
        model(x)
    with torch.no_grad():
        model(x)
    model.train()
    with pytest.raises(RuntimeError, match="to train it, accelerate it anew without storage"):
        model(X)
    fl.torch.accelerate(model)
    y = model(x)[0]
    y.sum().backward()
    assert x.grad is not None and model.weight_hh_l0.grad.abs().sum() > 0


def test_copies_and_pickles_keep_the_storage() -> None:
    model = nn.ModuleDict({"a": made(), "b": nn.Linear(16, 2)}).eval()
    fl.torch.accelerate(model, storage="int8")
    expected = model["a"](X)[0].numpy()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_bits({"y": again["a"](X)[0].numpy()}, {"y": expected})
        assert again["a"].weight_hh_l0.dtype is torch.float32


def test_an_unknown_storage_changes_nothing() -> None:
    model = made()
    with pytest.raises(fl.BackendError, match="knows no storage 'int3'"):
        fl.torch.accelerate(model, storage="int3")
    assert type(model) is nn.LSTM
