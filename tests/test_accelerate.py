"""`fl.torch.accelerate`: PyTorch's modules on our kernels give PyTorch's values and gradients, and stay its modules."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import os
import pickle
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastlstm as fl
from fastlstm._backends import backends, module

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-peers")
pytestmark = pytest.mark.skipif(backends()["c"] is not None, reason=f"c: {backends()['c']}")
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence  # noqa: E402

I, H, T, B = 5, 7, 6, 4  # noqa: E741
TOLERANCE = {"values": 5e-6, "gradients": 5e-5}  # two float32 computations, as a share of the largest entry

LAYERS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("LSTM", {"num_layers": 3, "dropout": 0.4}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "dropout": 0.3, "batch_first": True, "proj_size": 3}),
    ("LSTM", {"proj_size": 2, "bias": False}),
    ("LSTM", {"num_layers": 2, "dropout": 1.0}),
    ("GRU", {}),
    ("GRU", {"num_layers": 2, "bidirectional": True, "bias": False, "dropout": 0.5}),
    ("RNN", {"bidirectional": True}),
    ("RNN", {"num_layers": 2, "nonlinearity": "relu", "batch_first": True}),
]
CELLS: list[tuple[str, dict[str, Any]]] = [
    ("LSTMCell", {}),
    ("LSTMCell", {"bias": False}),
    ("GRUCell", {}),
    ("RNNCell", {}),
    ("RNNCell", {"nonlinearity": "relu", "bias": False}),
]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the compiled backend was asked for each of its functions: a module left on PyTorch asks for none."""
    c, calls = module("c"), Counter[str]()

    def counted(name: str) -> Callable[..., Any]:
        function = getattr(c, name)

        def call(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **named)

        return call

    for name in ("pack", "forward", "backward"):
        monkeypatch.setattr(c, name, counted(name))
    return calls


def pair(name: str, options: dict[str, Any], inputs: int = I, hidden: int = H) -> tuple[Any, Any]:
    """(a module of PyTorch, its accelerated copy)."""
    torch.manual_seed(0)
    plain = getattr(nn, name)(inputs, hidden, **options)
    fast = copy.deepcopy(plain)
    summary = fl.torch.accelerate(fast)
    assert summary.accelerated == [""] and not summary.left
    return plain, fast


def close(got: Any, expected: Any, kind: str = "values") -> None:
    assert (got is None) == (expected is None)
    if expected is None:
        return
    assert type(got) is type(expected)
    if isinstance(expected, PackedSequence):
        assert torch.equal(got.batch_sizes, expected.batch_sizes)
        for mine, theirs in (
            (got.sorted_indices, expected.sorted_indices),
            (got.unsorted_indices, expected.unsorted_indices),
        ):
            assert (mine is None and theirs is None) or torch.equal(mine, theirs)
        got, expected = got.data, expected.data
    elif isinstance(expected, (tuple, list)):
        assert len(got) == len(expected)
        for mine, theirs in zip(got, expected, strict=True):
            close(mine, theirs, kind)
        return
    assert got.shape == expected.shape and got.dtype == expected.dtype and got.requires_grad == expected.requires_grad
    scale = float(expected.detach().abs().max())
    assert float((got - expected).detach().abs().max()) <= TOLERANCE[kind] * max(scale, 1e-3)


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from flat(part)
    else:
        yield value


def loss(outputs: Any) -> Any:
    return sum((part * torch.arange(1.0, part.numel() + 1).view_as(part).cos()).sum() for part in flat(outputs))


def gradients(model: Any, outputs: Any, inputs: list[Any]) -> list[Any]:
    model.zero_grad()
    loss(outputs).backward()
    return [t.grad for t in inputs] + [p.grad for p in model.parameters()]


def state_of(model: Any, batch: tuple[int, ...]) -> Any:
    """An initial state that asks for gradients."""
    torch.manual_seed(2)
    leading = (model.num_layers * (2 if model.bidirectional else 1),) if hasattr(model, "num_layers") else ()
    parts = [torch.randn(*leading, *batch, getattr(model, "proj_size", 0) or model.hidden_size)]
    if "LSTM" in type(model).__name__:
        parts.append(torch.randn(*leading, *batch, model.hidden_size))
    parts = [part.requires_grad_() for part in parts]
    return tuple(parts) if len(parts) > 1 else parts[0]


# ------------------------------------------------------------------------------------------------- values and gradients
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("given", ["no state", "state"])
@pytest.mark.parametrize("form", ["batch", "unbatched", "packed", "packed unsorted"])
@pytest.mark.parametrize(("name", "options"), LAYERS, ids=str)
def test_layers(name: str, options: dict[str, Any], form: str, given: str, training: bool, kernels: Any) -> None:
    """Values, gradients of input, state and parameters, and the draws of dropout are PyTorch's."""
    found = []
    for model in pair(name, options):
        model.train(training)
        torch.manual_seed(1)
        x = torch.randn(*((T, I) if form == "unbatched" else (B, T, I) if model.batch_first else (T, B, I)))
        x.requires_grad_()
        state = state_of(model, () if form == "unbatched" else (B,)) if given == "state" else None
        lengths = torch.tensor([6, 4, 4, 1] if form == "packed" else [2, 6, 1, 5])
        rows = x
        if form.startswith("packed"):
            rows = pack_padded_sequence(x, lengths, model.batch_first, enforce_sorted=form == "packed")
        with torch.no_grad():
            quiet = model(rows, state)
        outputs = model(rows, state)
        inputs = [x, *(flat(state) if state is not None else ())]
        found.append((quiet, outputs, gradients(model, outputs, inputs)))
    (quiet, outputs, grads), (our_quiet, our_outputs, our_grads) = found
    close(our_quiet, quiet)
    close(our_outputs, outputs)
    close(our_grads, grads, "gradients")
    L, D = options.get("num_layers", 1), 2 if options.get("bidirectional") else 1
    assert kernels["forward"] == 2 * L and kernels["backward"] == L * D, "some call was left on PyTorch"


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("name", "options"), CELLS, ids=str)
def test_cells(name: str, options: dict[str, Any], batched: bool, kernels: Any) -> None:
    found = []
    for model in pair(name, options):
        torch.manual_seed(1)
        x = torch.randn(3, *((B,) if batched else ()), I, requires_grad=True)
        start = state_of(model, (B,) if batched else ())
        with torch.no_grad():
            quiet = model(x[0])
        state = start
        for step in x:
            state = model(step, state)
        found.append((quiet, state, gradients(model, state, [x, *flat(start)])))
    close(found[1][0], found[0][0])
    close(found[1][1], found[0][1])
    close(found[1][2], found[0][2], "gradients")
    assert kernels["forward"] == 4 and kernels["backward"] == 3
    assert kernels["pack"] == 3, "a loop of steps packs twice: at first, and with a checksum from the second on"


def test_a_layer_called_once_a_step_packs_twice_for_an_update(kernels: Any) -> None:
    """As in RecurrentPPO of sb3-contrib, which calls its LSTM step by step where an episode may begin."""
    found = []
    for model in pair("LSTM", {}):
        torch.manual_seed(1)
        x = torch.randn(5, 1, B, I)
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            optimiser.zero_grad()
            state = None
            for step in x:
                y, state = model(step, state)
            loss([y, *state]).backward()
            optimiser.step()
        found.append(list(model.parameters()))
    close(found[1], found[0], "gradients")
    assert kernels["forward"] == 10 and kernels["pack"] == 4


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_weights_that_change_unseen_between_a_call_and_its_backward_and_are_put_back(name: str) -> None:
    """Blocks that serve the next calls hold no part of the weights in between."""
    _, fast = pair(name, {})
    x = torch.randn(*((B, I) if "Cell" in name else (T, B, I)), generator=torch.Generator().manual_seed(1))
    x.requires_grad_()

    def gradient(change: float) -> Any:
        (leaf, *_) = flat(fast(x))
        for p in fast.parameters():
            p.data.add_(change)
        (found,) = torch.autograd.grad(leaf.square().sum(), x)
        for p in fast.parameters():
            p.data.sub_(change)
        return found

    for p in fast.parameters():  # numbers that adding and subtracting 1 leaves as they are
        p.data.mul_(64).round_().div_(64)
    expected = gradient(0)
    gradient(1)
    assert torch.equal(gradient(0), expected)


@pytest.mark.parametrize("which", ["y", "h", "c"])
def test_a_gradient_that_reaches_one_output_only(which: str) -> None:
    found = []
    for model in pair("LSTM", {"num_layers": 2, "bidirectional": True}):
        torch.manual_seed(1)
        x = torch.randn(T, B, I, requires_grad=True)
        y, (h, c) = model(x)
        found.append(gradients(model, {"y": y, "h": h, "c": c}[which], [x]))
    close(found[1], found[0], "gradients")


def test_what_needs_no_gradient_gets_none() -> None:
    found = []
    for model in pair("GRU", {"num_layers": 2}):
        model.weight_hh_l1.requires_grad_(False)
        x = torch.linspace(-1, 1, T * B * I).view(T, B, I)
        found.append(gradients(model, model(x), [x]))
    close(found[1], found[0], "gradients")
    for model in pair("GRU", {}):
        model.requires_grad_(False)
        y, h = model(torch.zeros(T, B, I))
        assert not y.requires_grad and not h.requires_grad
        x = torch.zeros(T, B, I, requires_grad=True)
        model(x)[0].sum().backward()
        assert x.grad.abs().max() > 0


# ----------------------------------------------------------------------------------------------------- what PyTorch has
class Model(nn.Module):
    """Recurrent modules at several depths."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, I)
        self.inner = nn.ModuleDict(
            {"lstm": nn.LSTM(I, H, 2, batch_first=True), "other": nn.GRU(H, H, batch_first=True)}
        )
        self.cell = nn.GRUCell(H, 3)
        self.shared = self.inner["lstm"]

    def forward(self, ids: Any) -> Any:
        y = self.inner["other"](self.inner["lstm"](self.embed(ids))[0])[0]
        return self.cell(y[:, -1])


IDS = torch.arange(12).view(3, 4) % 11


def models() -> tuple[Any, Any]:
    torch.manual_seed(0)
    plain = Model()
    fast = copy.deepcopy(plain)
    assert fl.torch.accelerate(fast).accelerated == ["inner.lstm", "inner.other", "cell"]
    return plain, fast


def test_modules_stay_what_they_are(kernels: Any) -> None:
    model = Model()
    lstm, parameters = model.inner["lstm"], list(model.parameters())
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    heard: list[str] = []
    lstm.register_forward_hook(lambda *_: heard.append("forward"))
    lstm.register_full_backward_hook(lambda *_: heard.append("backward"))
    lstm.register_forward_pre_hook(lambda *_: heard.append("before"))
    lstm.weight_hh_l0.register_hook(lambda _: heard.append("weight"))
    summary = fl.torch.accelerate(model)
    assert model.inner["lstm"] is lstm is model.shared and isinstance(lstm, nn.LSTM) and lstm.num_layers == 2
    assert repr(lstm) == "LSTM(5, 7, num_layers=2, batch_first=True)"
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    model(IDS).sum().backward()
    assert sorted(heard) == ["backward", "before", "forward", "weight"] and kernels["forward"] == 4
    before = lstm.weight_hh_l0.detach().clone()
    optimiser.step()
    assert not torch.equal(before, lstm.weight_hh_l0)
    assert str(summary).splitlines()[0] == (
        "inner.lstm: LSTM(5, 7, num_layers=2, batch_first=True): accelerated; 1 calls on the kernels"
    )
    assert fl.torch.accelerate(model).accelerated == summary.accelerated, "accelerating twice changes nothing"


def test_state_dicts_go_both_ways() -> None:
    plain, fast = models()
    assert list(plain.state_dict()) == list(fast.state_dict())
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(0.1)
    fast(IDS)
    fast.load_state_dict(plain.state_dict())
    close(fast(IDS), plain(IDS))
    for p in fast.parameters():
        p.data.mul_(1.5)
    plain.load_state_dict(fast.state_dict())
    close(fast(IDS), plain(IDS))


def saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), saved])
def test_copies(way: Callable[[Any], Any], kernels: Any) -> None:
    plain, fast = models()
    fast(IDS)
    made = way(fast)
    kernels.clear()
    close(made(IDS), plain(IDS))
    assert kernels["forward"] == 4 and isinstance(made.inner["lstm"], nn.LSTM)
    with torch.no_grad():
        made.inner["lstm"].weight_hh_l0.mul_(2)
    if way is not copy.copy:
        close(fast(IDS), plain(IDS))


def in_a_child(work: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        ok = False
        signal.alarm(20)  # a child that hangs dies
        try:
            ok = work()
        finally:
            os._exit(0 if ok else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forks_and_memory_shared_with_them() -> None:
    _, fast = models()
    with fl.threads(2):
        wide = nn.LSTM(64, 128)
        fl.torch.accelerate(wide)
        x = torch.randn(20, 16, 64)
        with torch.no_grad():
            expected = wide(x)[0].numpy()
        fast.share_memory()
        assert fast.inner["lstm"].weight_hh_l0.is_shared()
        with torch.no_grad():
            before = fast(IDS)

        def child() -> bool:
            torch.set_num_threads(1)  # as in DataLoader's workers: PyTorch's own threads hang in a forked child
            with torch.no_grad():
                same = np.array_equal(wide(x)[0].numpy(), expected) and np.array_equal(fast(IDS), before)
                for p in fast.parameters():
                    p.mul_(1.25)
            return same

        assert in_a_child(child)
    with torch.no_grad():
        after = fast(IDS)
    plain = Model()
    plain.load_state_dict(fast.state_dict())
    assert not torch.allclose(after, before)
    close(after, plain(IDS).detach())


class Through(torch.utils.data.Dataset):  # type: ignore[misc,unused-ignore]
    """Items computed by a model, in the worker."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        with torch.no_grad():
            return self.model(IDS[index : index + 1])[0]


def test_data_loaders_workers() -> None:
    plain, fast = models()
    fast(IDS)
    made = next(iter(torch.utils.data.DataLoader(Through(fast), batch_size=3, num_workers=1)))
    with torch.no_grad():
        close(made, plain(IDS))


# --------------------------------------------------------------------------------------- every change of a parameter
def by_optimiser(m: Any) -> None:
    m.zero_grad()
    m(torch.ones(T, B, I))[0].sum().backward()
    torch.optim.Adam(m.parameters(), 0.1).step()


def by_numpy(m: Any) -> None:
    m.weight_hh_l0.detach().numpy()[1, 2] += 0.5


def by_out(m: Any) -> None:
    torch.add(m.weight_hh_l0.data, 0.25, out=m.weight_hh_l0.data)


def by_vector(m: Any) -> None:
    vector = nn.utils.parameters_to_vector(m.parameters()).detach()
    nn.utils.vector_to_parameters(vector * 1.5, m.parameters())


def by_swap_of_entries(m: Any) -> None:
    w = m.weight_hh_l0.detach().numpy()
    w[[0, 1]] = w[[1, 0]]


def by_transposition(m: Any) -> None:
    m.weight_hh_l0.data = m.weight_hh_l0.data.t()


def by_parametrisation(m: Any) -> None:
    class Half(nn.Module):
        def forward(self, w: Any) -> Any:
            return w / 2

    nn.utils.parametrize.register_parametrization(m, "weight_hh_l0", Half())


def by_pruning(m: Any) -> None:
    import torch.nn.utils.prune

    torch.nn.utils.prune.l1_unstructured(m, "weight_hh_l0", amount=0.5)


CHANGES: dict[str, Callable[[Any], object]] = {
    "an optimiser": by_optimiser,
    "p.add_ without gradients": lambda m: m.weight_hh_l0.requires_grad_(False).add_(0.5).requires_grad_(),
    "p.data.add_": lambda m: m.weight_hh_l0.data.add_(0.5),
    "one bit of one number": lambda m: m.bias_hh_l0.data.view(torch.int32)[3].bitwise_xor_(1 << 24),
    "the last number": lambda m: m.bias_hh_l0.data[-1:].add_(0.5),
    "torch.add(out=p.data)": by_out,
    "NumPy": by_numpy,
    "entries that change places": by_swap_of_entries,
    "vector_to_parameters": by_vector,
    "p.data = tensor": lambda m: setattr(m.weight_ih_l0, "data", m.weight_ih_l0.data + 0.5),
    "p.data = its transpose": by_transposition,
    "another parameter": lambda m: setattr(m, "weight_ih_l0", nn.Parameter(m.weight_ih_l0.detach() * 2)),
    "load_state_dict": lambda m: m.load_state_dict({k: v * 1.5 for k, v in m.state_dict().items()}),
    "reset_parameters": lambda m: (torch.manual_seed(5), m.reset_parameters()),
    "share_memory, then p.data": lambda m: (m.share_memory(), m.weight_ih_l0.data.add_(0.5)),
    "a parametrisation": by_parametrisation,
    "pruning": by_pruning,
}


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "training"])
@pytest.mark.parametrize("how", CHANGES)
def test_a_change_is_noticed(how: str, mode: str, kernels: Any) -> None:
    plain, fast = pair("RNN", {})
    x = torch.randn(T, B, I, generator=torch.Generator().manual_seed(1))
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "training": torch.enable_grad}[mode]

    def run(model: Any) -> Any:
        with context():
            return model(x)[0]

    before = run(fast).detach().clone()
    for model in (plain, fast):
        run(model)
        CHANGES[how](model)
    kernels.clear()
    after = run(fast)
    assert kernels["forward"] == 1, "left on PyTorch"
    assert float((after - before).detach().abs().max()) > 1e-3
    close(after, run(plain))


def test_a_change_of_inference_tensors_is_noticed() -> None:
    """They have no version: reading it raises."""
    x = torch.ones(T, B, I)
    with torch.inference_mode():
        plain, fast = pair("LSTM", {})
        assert fast.weight_hh_l0.is_inference()
        before = fast(x)[0].clone()
        for model in (plain, fast):
            model.weight_hh_l0.add_(0.5)
        assert not torch.allclose(fast(x)[0], before)
        close(fast(x), plain(x))


def test_functional_call_uses_its_own_weights(kernels: Any) -> None:
    plain, fast = pair("LSTM", {})
    x = torch.ones(T, B, I)
    with torch.no_grad():
        first = fast(x)
    weights = {name: (p.detach() * 2).requires_grad_() for name, p in plain.named_parameters()}
    with torch.no_grad():
        close(torch.func.functional_call(fast, weights, x), torch.func.functional_call(plain, weights, x))
    for model in (plain, fast):
        torch.func.functional_call(model, weights, x)[0].sum().backward()
    assert kernels["backward"] == 1
    with torch.no_grad():
        close(fast(x), first)


def test_unchanged_weights_are_packed_once(kernels: Any) -> None:
    _, fast = pair("LSTM", {"num_layers": 2})
    with torch.no_grad():
        for _ in range(5):
            fast(torch.ones(T, B, I))
    assert kernels == {"pack": 2, "forward": 10}


def test_frozen_leaves_the_check_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastlstm.torch.weights import Packed

    torch.manual_seed(0)
    model = nn.LSTM(I, H)
    plain = copy.deepcopy(model)
    fl.torch.accelerate(model, frozen=True)
    monkeypatch.setattr(Packed, "holds", lambda *_: pytest.fail("compared"))
    monkeypatch.setattr(Packed, "_checksum", lambda *_: pytest.fail("summed"))
    x = torch.ones(T, B, I)
    with torch.no_grad():
        first = model(x)
        model.weight_hh_l0.data.add_(0.5)
        close(model(x), first)
        for p in plain.parameters():
            p.mul_(1.5)
        model.load_state_dict(plain.state_dict())
        close(model(x), plain(x))
    for each in (model, plain):
        optimiser = torch.optim.SGD(each.parameters(), 0.1)
        for _ in range(2):  # training calls pack anew
            optimiser.zero_grad()
            each(x)[0].square().sum().backward()
            optimiser.step()
    with torch.no_grad():
        close(model(x), plain(x))
    assert copy.deepcopy(model)._kernels.frozen


# ------------------------------------------------------------------------------------------------------------- autograd
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool, kernels: Any) -> None:
    found = []
    for model in pair("LSTM", {"num_layers": 2, "dropout": 0.5}):
        torch.manual_seed(1)
        x = torch.randn(T, B, I, requires_grad=True)
        y = torch.utils.checkpoint.checkpoint(lambda x, m=model: m(x)[0], x, use_reentrant=reentrant)
        found.append((y, gradients(model, y, [x])))
    close(found[1][0], found[0][0])
    close(found[1][1], found[0][1], "gradients")
    assert kernels["forward"] == 4, "the checkpoint did not run forward again"


def test_saved_tensors_may_be_kept_elsewhere() -> None:
    """What a training call keeps, the tape included, passes through PyTorch's hooks of saved tensors."""
    _, fast = pair("LSTM", {"num_layers": 2})
    kept: list[int] = []

    def pack(t: Any) -> Any:
        kept.append(t.numel())
        return t.clone()

    x = torch.randn(T, B, I, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = fast(x)[0]
    close(gradients(fast, y, [x]), gradients(fast, fast(x)[0], [x]), "gradients")
    assert sum(kept) >= 2 * 6 * H * T * B


def test_gradients_accumulate_and_graphs_serve_twice() -> None:
    found = []
    for model in pair("LSTM", {"num_layers": 2, "dropout": 0.5}):
        torch.manual_seed(1)
        x = torch.randn(T, B, I, requires_grad=True)
        model.zero_grad()
        for _ in range(2):
            loss(model(x)).backward()
        y = model(x)[0]
        y.square().sum().backward(retain_graph=True)
        y.sum().backward()
        found.append([x.grad, *(p.grad for p in model.parameters())])
        with pytest.raises(RuntimeError, match="second time"):
            y.sum().backward()
    close(found[1], found[0], "gradients")


def test_weights_changed_before_backward_are_refused() -> None:
    _, fast = pair("LSTM", {})
    y = fast(torch.ones(T, B, I))[0]
    with torch.no_grad():
        fast.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    x = torch.ones(T, B, I, requires_grad=True)
    rows = x * 1
    y = fast(rows)[0]
    rows.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(("name", "options"), [LAYERS[1], LAYERS[4], LAYERS[6], LAYERS[9], *CELLS], ids=str)
def test_double_backward(name: str, options: dict[str, Any]) -> None:
    """A gradient that is differentiated again (create_graph=True) is PyTorch's."""
    found = []
    for model in pair(name, options):
        torch.manual_seed(1)
        base = torch.randn(*(B, I) if name.endswith("Cell") else (B, T, I), requires_grad=True)
        x = base * 1.5
        state = state_of(model, (x.shape[0 if getattr(model, "batch_first", True) else 1],))
        outputs = model(x, state)
        first = torch.autograd.grad(loss(outputs), [x, *flat(state), *model.parameters()], create_graph=True)
        model.zero_grad()
        loss(first).backward()
        found.append((list(first), [base.grad, *(p.grad for p in model.parameters())]))
    close(found[1][0], found[0][0], "gradients")
    close(found[1][1], found[0][1], "gradients")


def test_double_backward_of_packed_sequences() -> None:
    found = []
    for model in pair("GRU", {"bidirectional": True}):
        torch.manual_seed(1)
        x = torch.randn(T, 3, I, requires_grad=True)
        y = model(pack_padded_sequence(x, torch.tensor([6, 3, 2])))[0].data
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        found.append((first, gradients(model, first, [x])))
    close(found[1][0], found[0][0], "gradients")
    close(found[1][1], found[0][1], "gradients")


def test_double_backward_with_dropout_is_refused() -> None:
    _, fast = pair("LSTM", {"num_layers": 2, "dropout": 0.5})
    x = torch.ones(T, B, I, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice .* call model\.eval\(\)"):
        torch.autograd.grad(fast(x)[0].sum(), x, create_graph=True)


# ------------------------------------------------------------------------------------------------------ left on PyTorch
def reasons(model: Any) -> dict[str, int]:
    return dict(model._kernels.left)


def test_what_calls_are_left_on_pytorch(kernels: Any) -> None:
    """Each gives PyTorch's result, and is counted with its reason."""
    plain, fast = pair("LSTM", {})
    x = torch.randn(T, B, I)
    with torch.autocast("cpu", torch.bfloat16):
        close(fast(x), plain(x))
    close(torch.jit.trace(fast, x, check_trace=False)(x), plain(x))
    for model in (plain, fast):
        model.double()
    close(fast(x.double()), plain(x.double()))
    for model in (plain, fast):
        model.bfloat16()
    close(fast(x.bfloat16()), plain(x.bfloat16()))
    for model in (plain, fast):
        model.to("meta")
    assert fast(x.bfloat16().to("meta"))[0].is_meta
    assert kernels["forward"] == 0
    left = reasons(fast)
    assert left.pop("torch.jit.trace") >= 1
    assert left == {"autocast": 1, "float64": 1, "bfloat16": 1, "a tensor on meta": 1}


def test_transforms_of_torch_func(kernels: Any) -> None:
    plain, fast = pair("GRU", {})
    x = torch.randn(3, T, B, I)
    for model in (plain, fast):  # PyTorch has no rule for it either
        with pytest.raises(RuntimeError, match="Batching rule not implemented"):
            torch.func.vmap(lambda one, m=model: m(one)[0])(x)
    close(*(torch.func.grad(lambda one, m=m: m(one)[0].sum())(x[0]) for m in (fast, plain)))
    tangents = []
    for model in (fast, plain):
        with torch.autograd.forward_ad.dual_level():
            y = model(torch.autograd.forward_ad.make_dual(x[0], x[1]))[0]
            tangents.append(torch.autograd.forward_ad.unpack_dual(y).tangent)
    close(*tangents)
    assert kernels["forward"] == 0
    assert set(reasons(fast)) == {"a transform of torch.func", "forward-mode differentiation"}


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m(torch.zeros(T, B, I + 1)),
        lambda m: m(torch.zeros(T)),
        lambda m: m(torch.zeros(T, B, I, dtype=torch.float64)),
        lambda m: m(torch.zeros(T, B, I), torch.zeros(1, B, H)),
        lambda m: m(torch.zeros(T, B, I), (torch.zeros(1, B, H), torch.zeros(1, B + 1, H))),
        lambda m: m(torch.zeros(T, B, I), (torch.zeros(1, H), torch.zeros(1, H))),
        lambda m: m(torch.zeros(T, I), (torch.zeros(1, 1, H), torch.zeros(1, 1, H))),
        lambda m: m(torch.zeros(0, B, I)),
        lambda m: m(np.zeros((T, B, I), np.float32)),
        lambda m: m(),
        lambda m: m(PackedSequence(torch.zeros(3, I), torch.tensor([2, 1]), torch.tensor([0, 2]))),
    ],
    ids=str,
)
def test_errors_are_pytorchs(call: Callable[[Any], Any], kernels: Any) -> None:
    plain, fast = pair("LSTM", {})
    with pytest.raises(Exception) as theirs:
        call(plain)
    with pytest.raises(theirs.type) as ours:
        call(fast)
    assert kernels["forward"] == 0
    if theirs.type is not TypeError:
        assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("sizes", [[1, 2], [2, 0], [2, 2], [3], [2, -1, 2]])
def test_packed_sequences_that_do_not_fit_are_never_computed(sizes: list[int], kernels: Any) -> None:
    _, fast = pair("GRU", {})
    broken = PackedSequence(torch.zeros(3, I), torch.tensor([2, 1]))
    broken = broken._replace(batch_sizes=torch.tensor(sizes))
    if sizes == [3]:  # one step of three sequences
        assert fast(broken)[0].data.shape == (3, H)
        return
    with contextlib.suppress(RuntimeError):  # PyTorch refuses most, and computes something of [2, 0]
        fast(broken)
    assert kernels["forward"] == 0


def test_an_accelerated_model_is_scripted_as_pytorchs() -> None:
    plain, fast = (nn.Sequential(one) for one in pair("LSTM", {"num_layers": 2}))
    x = torch.randn(T, B, I)
    close(torch.jit.script(fast)(x), plain(x))
    close(fast(x), plain(x))


@pytest.mark.slow
def test_compiled_regions(kernels: Any) -> None:
    """torch.compile breaks its graph at a layer, as at PyTorch's own, and computes a cell by itself."""
    plain, fast = models()
    compiled = torch.compile(fast, backend="eager")
    close(compiled(IDS), plain(IDS))
    assert kernels["forward"] >= 3 and "torch._dynamo" in sys.modules
    kernels.clear()
    compiled(IDS).sum().backward()
    plain(IDS).sum().backward()
    close([p.grad for p in fast.parameters()], [p.grad for p in plain.parameters()], "gradients")
    assert kernels["backward"] >= 3
    close(fast(IDS), plain(IDS))


# -------------------------------------------------------------------------------------------------- the call, summaries
def test_inputs_and_weights_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    c, seen = module("c"), []
    forward, pack = c.forward, c.pack
    monkeypatch.setattr(c, "forward", lambda blocks, x, *rest: (seen.append(x), forward(blocks, x, *rest))[1])
    packed: list[Any] = []
    monkeypatch.setattr(c, "pack", lambda spec, params, *rest: (packed.append(params), pack(spec, params, *rest))[1])
    _, fast = pair("LSTM", {})
    x = torch.randn(T, B, I, requires_grad=True)
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            fast(x)
        assert seen.pop().__array_interface__["data"][0] == x.data_ptr()
        (params,) = packed
        packed.clear()
        for name, array in params.items():
            assert array.__array_interface__["data"][0] == getattr(fast, f"{name}_l0").data_ptr()
    rows = pack_padded_sequence(x, torch.tensor([6, 6, 3, 1]))
    fast(rows)
    assert seen.pop().__array_interface__["data"][0] == rows.data.data_ptr()


@pytest.mark.parametrize("threads", [1, 2])
def test_pytorchs_number_of_threads_holds(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastlstm import num_threads

    _, fast = pair("LSTM", {})
    c, seen = importlib.import_module("fastlstm._backends.c.recurrent"), []
    monkeypatch.setattr(c, "get_num_threads", lambda: (seen.append(num_threads.get_num_threads()), seen[-1])[1])
    was = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with fl.threads(2):
            fast(torch.ones(T, B, I))[0].sum().backward()
    finally:
        torch.set_num_threads(was)
    assert seen == [threads, threads]


def test_a_batch_not_contiguous_in_memory() -> None:
    plain, fast = pair("LSTM", {"num_layers": 2})
    x = torch.randn(B, I, T).permute(2, 0, 1)
    close(fast(x), plain(x))
    x = torch.randn(T, B, 2 * I)[..., ::2]
    close(fast(x), plain(x))
    base = torch.randn(T, 1, I, requires_grad=True)
    found = [(m(base.expand(T, B, I)), m) for m in (plain, fast)]
    close(*(gradients(m, outputs, [base]) for outputs, m in found), "gradients")


def test_what_modules_are_left_on_pytorch() -> None:
    class Own(nn.LSTM):  # type: ignore[misc,unused-ignore]
        pass

    model = nn.ModuleDict(
        {
            "doubles": nn.LSTM(I, H).double(),
            "halves": nn.GRU(I, H).half(),
            "meta": nn.RNN(I, H, device="meta"),
            "own": Own(I, H),
            "quantised": torch.ao.nn.quantized.dynamic.LSTMCell(I, H),
            "fine": nn.LSTM(I, H),
        }
    )
    summary = fl.torch.accelerate(model)
    assert summary.accelerated == ["fine"] and type(model["own"]) is Own and type(model["doubles"]) is nn.LSTM
    assert {name: why.split(";")[0] for name, why in summary.left.items()} == {
        "doubles": "its weights are float64",
        "halves": "its weights are float16",
        "meta": "its weights are a tensor on meta",
        "own": "its class Own derives from LSTM and may compute something else",
        "quantised": "it is a torch.ao.nn.quantized.dynamic.modules.rnn.LSTMCell, which computes in its own way",
    }
    assert "own: Own(5, 7): left on PyTorch: its class Own" in str(summary)
    assert str(fl.torch.accelerate(nn.Linear(2, 3))).startswith("no recurrent module")


def test_bad_arguments() -> None:
    model = nn.LSTM(I, H)
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, got LSTM|takes a torch\.nn\.Module, got dict"):
        fl.torch.accelerate({})
    with pytest.raises(TypeError, match="frozen must be True or False, got 1"):
        fl.torch.accelerate(model, frozen=1)  # type: ignore[arg-type]
    with pytest.raises(fl.BackendError, match="storage"):
        fl.torch.accelerate(model, storage="int3")
    assert type(model) is nn.LSTM


def test_modules_may_be_made_directly(kernels: Any) -> None:
    torch.manual_seed(0)
    fast = fl.torch.GRU(I, H, 2, batch_first=True)
    torch.manual_seed(0)
    plain = nn.GRU(I, H, 2, batch_first=True)
    close(fast(torch.ones(B, T, I)), plain(torch.ones(B, T, I)))
    assert kernels["forward"] == 2
