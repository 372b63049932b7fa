"""LSTMCell, GRUCell and RNNCell are layers of one step, on every backend."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from cases import CELLS, Case, Drawn, assert_same_bits, named
from small import B, H, I, each_kind, normal, sequences

import fastlstm as fl


@each_kind
@pytest.mark.parametrize("ids", [False, True], ids=["numbers", "ids"])
@pytest.mark.parametrize("batched", [True, False], ids=["batch", "single"])
def test_a_cell_is_a_layer_of_one_step(kind: str, ids: bool, batched: bool, backend: str) -> None:
    case = Case(kind, 1, 3, I, H, ids=ids)
    layer, drawn = case.layer("float32", backend), case.draw()
    cell = CELLS[kind](I, H, backend=backend)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    assert cell.backend == layer.backend == backend
    drawn.dy = None
    if not batched:
        drawn = Drawn(drawn.x[:, 0], sequences(drawn.state, 0), None, None, sequences(drawn.dstate, 0))
    expected = drawn.run(layer)

    def first(state: Any) -> Any:
        return tuple(s[0] for s in state) if isinstance(state, tuple) else state[0]

    x, state, dstate = drawn.x[0], first(drawn.state), first(drawn.dstate)
    new, tape = cell.forward(x, state)
    dx, d_initial, grads = cell.backward(tape, dstate)
    assert (dx is None) == ids
    got = named("{}_n", new) | named("d{}_0", d_initial) | {f"d{name}_l0": g for name, g in grads.items()}
    got |= {} if dx is None else {"dx": dx}
    states = ("h_n", "c_n", "dh_0", "dc_0", "dx")
    assert_same_bits(got, {n: a[0] if n in states else a for n, a in expected.items() if n != "y"})
    assert_same_bits(named("{}_n", cell(x, state)), named("{}_n", new))
    zeros = tuple(map(np.zeros_like, state)) if isinstance(state, tuple) else np.zeros_like(state)
    assert_same_bits(named("{}", cell(x)), named("{}", cell(x, zeros)))


def test_a_cells_parameters_follow_the_rules_of_layers(backend: str) -> None:
    cell, x = fl.LSTMCell(I, H, backend=backend, seed=1), normal(B, I)
    assert list(cell.state_dict()) == ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    assert list(fl.GRUCell(I, H, bias=False).state_dict()) == ["weight_ih", "weight_hh"]
    before, (_, tape) = cell(x), cell.forward(x)
    with cell.update() as params:
        params["weight_ih"] *= 2
    assert cell.version == 1 and not np.array_equal(cell(x)[0], before[0])
    with pytest.raises(RuntimeError, match="version 0, now 1"):
        cell.backward(tape, before)
    with pytest.raises(RuntimeError, match=r"misshapen: weight_ih has shape \(4, 28\), expected \(28, 4\)"):
        cell.load_state_dict(cell.state_dict() | {"weight_ih": cell.state_dict()["weight_ih"].T})
    _, tape = cell.forward(x)
    with pytest.raises(RuntimeError, match="another layer"):
        fl.LSTMCell(I, H, backend=backend).backward(tape, before)
    with pytest.raises(ValueError, match=re.escape("dstate's h has shape (6, 8), expected (6, 7)")):
        cell.backward(tape, (np.zeros((6, 8), np.float32), None))
    cell.backward(tape, (None, before[1]))
