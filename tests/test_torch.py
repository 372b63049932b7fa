"""PyTorch's results, from PyTorch's weights: state_dicts have the same names and shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import CELLS, LAYERS, TOLERANCE, Case, Drawn, assert_all_near, named

import fastlstm as fl

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-peers")
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

TORCH = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
TORCH_CELLS = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell, "rnn": torch.nn.RNNCell}


def random_case(seed: int) -> Case:
    """A random configuration with the arguments that both libraries have."""
    rng = np.random.default_rng(seed)

    def one(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    kind = one("lstm", "gru", "rnn")
    T, B, I, H = one(1, 2, 5, 9), one(1, 2, 3, 8, 17), one(1, 3, 8, 17), one(1, 4, 7, 16, 33)  # noqa: E741
    options: dict[str, Any] = {
        "num_layers": one(1, 1, 2, 3),
        "bias": one(True, True, False),
        "batch_first": one(False, True),
        "bidirectional": one(False, True),
    }
    if kind == "lstm" and H > 2:
        # Not 1: an output of one number may be all cancellation, and its largest entry then no measure of float32.
        options["proj_size"] = one(0, 0, 2, H - 1)
    if kind == "rnn":
        options["nonlinearity"] = one("tanh", "relu")
    # torch's packed sequences take no length 0.
    lengths = one(None, tuple(int(n) for n in rng.integers(1, T + 1, B)))
    given = one("y", "h", "yh", *(("c", "yc", "hc", "yhc", "yhc") if kind == "lstm" else ()))
    return Case(kind, T, B, I, H, options, lengths, state=one(True, True, False), given=given)


def torch_state(state: Any, grad: bool = False) -> Any:
    if isinstance(state, tuple):
        return tuple(torch_state(part, grad) for part in state)
    return None if state is None else torch.tensor(state, requires_grad=grad)


def run_torch(case: Case, weights: dict[str, Any], drawn: Drawn) -> dict[str, Any]:
    """All results of PyTorch's forward and backward, by the names of `Drawn.run`."""
    layer = TORCH[case.kind](case.I, case.H, **case.options).double()
    layer.load_state_dict({name: torch.tensor(p) for name, p in weights.items()})
    batch_first = case.options["batch_first"]
    x, state = torch.tensor(drawn.x, requires_grad=True), torch_state(drawn.state, grad=True)
    T = x.shape[1 if batch_first else 0]
    if case.lengths is None:
        y, final = layer(x, state)
    else:
        packed = pack_padded_sequence(x, torch.tensor(case.lengths), batch_first, enforce_sorted=False)
        y, final = layer(packed, state)
        y, _ = pad_packed_sequence(y, batch_first, total_length=T)
    values = {"y": y, **named("{}_n", final)}
    loss = sum(
        (values[name] * torch.tensor(w)).sum()
        for name, w in {"y": drawn.dy, **named("{}_n", drawn.dstate)}.items()
        if w is not None
    )
    loss.backward()
    gradients = {"dx": x.grad} | {f"d{name}": p.grad for name, p in layer.named_parameters()}
    if state is not None:
        gradients |= {f"d{name}_0": part.grad for name, part in named("{}", state).items()}
    return {name: (a if a is None else a.detach().numpy()) for name, a in (values | gradients).items()}


def without_state(values: dict[str, Any], case: Case) -> dict[str, Any]:
    """The values without the initial state's gradient if no state was given, since PyTorch has none then."""
    return {name: a for name, a in values.items() if case.state or name not in ("dh_0", "dc_0")}


@pytest.mark.parametrize("seed", range(80))
def test_random_configurations_agree(seed: int, backend: str) -> None:
    case = random_case(seed)
    assert_torch_agrees(case, backend)


def assert_torch_agrees(case: Case, backend: str) -> None:
    double, drawn = case.layer("float64", "numpy"), case.draw("float64")
    expected = run_torch(case, double.state_dict(), drawn)
    # The gradient of a parameter without influence is None in PyTorch and zeros in fastlstm.
    expected = {n: np.zeros_like(drawn.run(double)[n]) if a is None else a for n, a in expected.items()}
    if backend == "numpy":
        got = without_state(drawn.run(double), case)
        assert_all_near(got, expected, TOLERANCE["float64"], TOLERANCE["float64"])
    else:
        got = without_state(case.draw("float32").run(case.layer("float32", backend)), case)
        assert_all_near(got, expected, TOLERANCE["values"], TOLERANCE["gradients"])


@pytest.mark.parametrize("given", ["y", "h", "c"])
@pytest.mark.parametrize("lengths", [None, (2, 5, 1)])
def test_a_gradient_that_reaches_one_output_only(given: str, lengths: Any, backend: str) -> None:
    for kind in LAYERS:
        if given != "c" or kind == "lstm":
            options = {"num_layers": 2, "bidirectional": True, "batch_first": False}
            assert_torch_agrees(Case(kind, 5, 3, 4, 7, options, lengths, given=given), backend)


def test_the_random_cases_cover_the_range() -> None:
    cases = [random_case(seed) for seed in range(80)]
    for name in ("num_layers", "bias", "batch_first", "bidirectional", "proj_size", "nonlinearity"):
        assert len({case.options.get(name) for case in cases} - {None}) >= 2, name
    assert {case.given for case in cases} >= {"y", "h", "c", "yhc"}
    assert {case.state for case in cases} == {case.lengths is None for case in cases} == {True, False}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_cells_agree(kind: str, bias: bool, batched: bool, backend: str) -> None:
    B, I, H = 5, 4, 9  # noqa: E741
    dtype = "float64" if backend == "numpy" else "float32"
    rng = np.random.default_rng(0)
    shape = (B,) if batched else ()
    parts = 2 if kind == "lstm" else 1
    x = rng.standard_normal((*shape, I)).astype(np.float32)
    state = [rng.standard_normal((*shape, H)).astype(np.float32) for _ in range(parts)]
    dstate = [rng.standard_normal((*shape, H)).astype(np.float32) for _ in range(parts)]

    theirs = TORCH_CELLS[kind](I, H, bias=bias).float().double()
    x_t = torch.tensor(x).double().requires_grad_()
    state_t = [torch.tensor(s).double().requires_grad_() for s in state]
    out = theirs(x_t, tuple(state_t) if parts == 2 else state_t[0])
    out = out if parts == 2 else (out,)
    sum((o * torch.tensor(d).double()).sum() for o, d in zip(out, dstate, strict=True)).backward()
    expected = {"dx": x_t.grad} | {f"d{name}": p.grad for name, p in theirs.named_parameters()}
    for name, o, s in zip("hc", out, state_t, strict=False):
        expected |= {f"{name}_n": o.detach(), f"d{name}_0": s.grad}

    cell = CELLS[kind](I, H, bias=bias, dtype=dtype, backend=backend)
    cell.load_state_dict({name: p.detach().numpy() for name, p in theirs.named_parameters()})

    def give(arrays: list[Any]) -> Any:
        cast = tuple(a.astype(dtype) for a in arrays)
        return cast if parts == 2 else cast[0]

    new, tape = cell.forward(x.astype(dtype), give(state))
    dx, d_initial, grads = cell.backward(tape, give(dstate))
    got = {"dx": dx, **named("{}_n", new), **named("d{}_0", d_initial), **{f"d{n}": g for n, g in grads.items()}}
    values, gradients = (
        (TOLERANCE["float64"],) * 2 if dtype == "float64" else (TOLERANCE["values"], TOLERANCE["gradients"])
    )
    assert_all_near(got, {name: a.numpy() for name, a in expected.items()}, values, gradients)


def test_unbatched_agrees(backend: str) -> None:
    theirs = torch.nn.GRU(4, 7, 2, bidirectional=True)
    ours = fl.GRU(4, 7, 2, bidirectional=True, backend=backend)
    ours.load_state_dict({name: p.detach().numpy() for name, p in theirs.named_parameters()})
    x, h = (np.random.default_rng(i).standard_normal(s).astype(np.float32) for i, s in enumerate(((5, 4), (4, 7))))
    y, h_n = ours(x, h)
    with torch.no_grad():
        y_t, h_t = theirs(torch.tensor(x), torch.tensor(h))
    assert_all_near({"y": y, "h": h_n}, {"y": y_t.numpy(), "h": h_t.numpy()}, 2 * TOLERANCE["values"], 0)


def test_constructors_and_state_dicts_are_torchs() -> None:
    """Equal arguments in equal order; parameters of equal name, order and shape, which load both ways."""
    for seed in range(30):
        case = random_case(seed)
        options = dict(case.options)
        positional = [options.pop("num_layers"), options.pop("bias"), options.pop("batch_first"), 0.0]
        ours = LAYERS[case.kind](case.I, case.H, *positional, **options)
        if case.kind == "rnn":  # PyTorch's RNN takes its nonlinearity before bias
            positional = [positional[0], options.pop("nonlinearity"), *positional[1:]]
        theirs = TORCH[case.kind](case.I, case.H, *positional, **options)
        shapes = {name: p.shape for name, p in ours.state_dict().items()}
        assert list(shapes.items()) == [(name, tuple(p.shape)) for name, p in theirs.named_parameters()]
        theirs.load_state_dict({name: torch.tensor(p) for name, p in ours.state_dict().items()})
        ours.load_state_dict(theirs.state_dict())


def test_initial_parameters_have_torchs_spread() -> None:
    torch.manual_seed(0)
    for kind in LAYERS:
        ours, theirs = LAYERS[kind](40, 60, 2, seed=0), TORCH[kind](40, 60, 2)
        for (name, a), b in zip(ours.state_dict().items(), theirs.parameters(), strict=True):
            b = b.detach().numpy()
            assert abs(a.std() / b.std() - 1) < 0.25 and abs(np.abs(a).max() / np.abs(b).max() - 1) < 0.1, name


def test_the_comparison_can_fail() -> None:
    """GRU with reset_after=False is not PyTorch's equation: the comparison fails."""
    case = Case("gru", 5, 3, 4, 7, {"batch_first": False})
    other = Case("gru", 5, 3, 4, 7, {"reset_after": False})
    drawn = case.draw("float64")
    expected = run_torch(case, case.layer("float64").state_dict(), drawn)
    assert_all_near(drawn.run(case.layer("float64")), expected, TOLERANCE["float64"], TOLERANCE["float64"])
    with pytest.raises(AssertionError, match="largest entry"):
        assert_all_near(drawn.run(other.layer("float64")), expected, TOLERANCE["float64"], TOLERANCE["float64"])


# ----------------------------------------------------------------------------------------------------- what both refuse
F32 = np.float32


def zeros(*shape: int, dtype: Any = F32) -> Any:
    return np.zeros(shape, dtype)


BAD: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "input_size": lambda layer, a: layer(a(zeros(5, 3, 6))),
    "rank": lambda layer, a: layer(a(zeros(5, 3, 4, 1))),
    "dtype": lambda layer, a: layer(a(zeros(5, 3, 4, dtype=float))),
    "state's batch": lambda layer, a: layer(a(zeros(5, 3, 4)), (a(zeros(1, 2, 7)), a(zeros(1, 2, 7)))),
    "state's width": lambda layer, a: layer(a(zeros(5, 3, 4)), (a(zeros(1, 3, 6)), a(zeros(1, 3, 7)))),
    "state's layers": lambda layer, a: layer(a(zeros(5, 3, 4)), (a(zeros(2, 3, 7)), a(zeros(2, 3, 7)))),
    "state's rank": lambda layer, a: layer(a(zeros(5, 3, 4)), (a(zeros(3, 7)), a(zeros(3, 7)))),
    "unbatched state's rank": lambda layer, a: layer(a(zeros(5, 4)), (a(zeros(1, 3, 7)), a(zeros(1, 3, 7)))),
    "missing key": lambda layer, a: layer.load_state_dict({"weight_ih_l0": a(zeros(28, 4))}),
    "unexpected key": lambda layer, a: layer.load_state_dict({**layer.state_dict(), "weight_ih_l1": a(zeros(28, 4))}),
    "misshapen key": lambda layer, a: layer.load_state_dict({**layer.state_dict(), "weight_ih_l0": a(zeros(4, 28))}),
    "num_layers": lambda layer, a: type(layer)(4, 7, 0),
    "hidden_size": lambda layer, a: type(layer)(4, 0),
    "hidden_size's type": lambda layer, a: type(layer)(4, 7.5),
    "dropout": lambda layer, a: type(layer)(4, 7, dropout=1.5),
    "proj_size": lambda layer, a: type(layer)(4, 7, proj_size=7),
    "negative proj_size": lambda layer, a: type(layer)(4, 7, proj_size=-1),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_what_torch_refuses_is_refused(bad: Callable[[Any, Callable[[Any], Any]], Any], backend: str) -> None:
    errors = (ValueError, TypeError, RuntimeError)
    with pytest.raises(errors):
        bad(torch.nn.LSTM(4, 7), torch.tensor)
    with pytest.raises(errors) as ours:
        bad(fl.LSTM(4, 7, backend=backend), np.asarray)
    assert len(str(ours.value)) > 20
