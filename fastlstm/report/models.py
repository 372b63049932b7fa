"""Whole training steps of small models: batching, embedding, layer, head, loss, clipping and optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from .. import nn
from ..dense import Dense
from ..layout import Array
from ..optim import SGD, clip_by_norm
from ..recurrent import LSTM
from ..sequential import Sequential
from ..training.data import Data
from ..training.fitting import Fit
from .cases import LETTERS, VECTOR, WORDS, ModelCase
from .measure import Contender

STEPS = 3  # whose losses are compared before anything is timed
CLIP = 1.0  # largest norm of all gradients together


Step = Callable[[], tuple[float, dict[str, Array]]]  # trains on one batch: its loss, and its gradients by name


def our_contender(case: ModelCase, dtype: str = "float32", backend: str = "auto") -> Contender:
    """Our training step."""
    make = sentiment if case.model == "sentiment" else characters
    return contender_of(lambda: make(case, dtype, backend))


def contender_of(make: Callable[[], Step]) -> Contender:
    """A contender: timed are successive training steps, compared the first steps of a new model."""
    return Contender(make(), lambda: first_steps(make()))


def first_steps(step: Step) -> Mapping[str, Array]:
    """Losses of the first steps, and the gradients of the first one."""
    loss, grads = step()
    found = {f"d{name}": np.array(g) for name, g in sorted(grads.items())}
    return {"losses": np.array([loss, *(step()[0] for _ in range(STEPS - 1))])} | found


def initial(case: ModelCase) -> dict[str, dict[str, Array]]:
    """The initial parameters, by module."""
    if case.model == "characters":
        lstm, head = LSTM(LETTERS, case.H, seed=1), Dense(case.H, LETTERS, seed=2)
        return {"lstm": lstm.state_dict(), "head": head.state_dict()}
    model = sentiment_model(case, "float32", "numpy")
    return {name: module.state_dict() for name, module in model.named.items()}


def sentiment_model(case: ModelCase, dtype: str, backend: str) -> Sequential:
    """Embedding, LSTM and one output."""
    options: dict[str, Any] = {"dtype": dtype, "backend": backend}
    model = Sequential(
        [
            nn.Embedding(WORDS, VECTOR, **options),
            nn.LSTM(case.H, **options),
            nn.Dense(1, "sigmoid", **options),
        ],
        seed=0,
    )
    model.build((case.T,))
    return model


def sentiment(case: ModelCase, dtype: str, backend: str) -> Step:
    """The steps of `Sequential.fit`."""
    model, drawn = sentiment_model(case, dtype, backend), case.draw()
    for name, values in initial(case).items():
        model.named[name].load_state_dict(values)
    model.compile("adam", "binary_crossentropy", clip_norm=CLIP)
    task = Fit(model, Data(drawn.x, drawn.y), case.B, shuffle=False)
    model.train()
    source, batches = task.source, endless(drawn.batches)
    assert isinstance(source, Data)

    def step() -> tuple[float, dict[str, Array]]:
        figures, grads = task.gradients(source.take(next(batches)))
        task.update(grads)
        named = zip(model.named, grads, strict=True)
        return figures["loss"], {f"{module}.{name}": g for module, own in named for name, g in own.items()}

    return step


def characters(case: ModelCase, dtype: str, backend: str) -> Step:
    """The steps of a character model: the state goes on from one window to the next."""
    lstm = LSTM(LETTERS, case.H, dtype=dtype, backend=backend)
    head = Dense(case.H, LETTERS, dtype=dtype, backend=backend)
    weights, drawn = initial(case), case.draw()
    lstm.load_state_dict(weights["lstm"])
    head.load_state_dict(weights["head"])
    optimizer, batches = SGD([lstm, head], 1.0), endless(drawn.batches)
    state: Any = None

    def step() -> tuple[float, dict[str, Array]]:
        nonlocal state
        at = next(batches)
        y, state, tape = lstm.forward(drawn.x[at], state)
        loss, dy, of_head = head.cross_entropy(y, drawn.y[at])
        _, _, of_lstm = lstm.backward(tape, dy)
        clip_by_norm([of_lstm, of_head], CLIP)
        optimizer.step([of_lstm, of_head])
        return loss, {f"lstm.{n}": g for n, g in of_lstm.items()} | {f"head.{n}": g for n, g in of_head.items()}

    return step


def endless(batches: list[Array]) -> Iterator[Array]:
    """The batches again and again."""
    while True:
        yield from batches


# ---------------------------------------------------------------------------------------------------------------- torch
def torch_contender(torch: Any, case: ModelCase, threads: int) -> Contender:
    """The same model as a plain loop in PyTorch."""
    torch.set_num_threads(threads)
    make = torch_sentiment if case.model == "sentiment" else torch_characters
    return contender_of(lambda: make(torch, case))


def torch_step(torch: Any, modules: dict[str, Any], optimizer: Any, losses: Iterator[Any]) -> Step:
    """Backward, clipping and the optimiser's step; `losses` computes the loss of one batch after another."""
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]

    def step() -> tuple[float, dict[str, Array]]:
        loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        named = ((f"{m}.{n}", p.grad) for m, module in modules.items() for n, p in module.named_parameters())
        return loss.item(), {name: g.numpy() for name, g in named if g is not None}

    return step


def torch_sentiment(torch: Any, case: ModelCase) -> Step:
    """nn.Embedding, nn.LSTM with one trained bias, nn.Linear; a PackedSequence for ragged sequences."""
    tn, drawn, weights = torch.nn, case.draw(), initial(case)
    modules = {"embedding": tn.Embedding(WORDS, VECTOR), "lstm": tn.LSTM(VECTOR, case.H, batch_first=True)}
    modules["dense"] = tn.Linear(case.H, 1)
    load(torch, modules, weights)
    embedding, lstm, head = modules.values()
    lstm.bias_hh_l0.requires_grad_(False)
    optimizer = torch.optim.Adam([p for m in modules.values() for p in m.parameters() if p.requires_grad])
    criterion, y = tn.BCEWithLogitsLoss(), torch.from_numpy(drawn.y)
    rows = [torch.from_numpy(one) for one in drawn.x] if case.ragged else torch.from_numpy(drawn.x)

    def losses() -> Iterator[Any]:
        for at in endless(drawn.batches):
            index = torch.from_numpy(at)
            if case.ragged:
                some = [rows[i] for i in at]
                lengths = torch.tensor([len(one) for one in some])
                vectors = embedding(tn.utils.rnn.pad_sequence(some, batch_first=True))
                vectors = tn.utils.rnn.pack_padded_sequence(vectors, lengths, batch_first=True, enforce_sorted=False)
            else:
                vectors = embedding(rows[index])
            h = lstm(vectors)[1][0][0]
            yield criterion(head(h).squeeze(-1), y[index])

    return torch_step(torch, modules, optimizer, losses())


def torch_characters(torch: Any, case: ModelCase) -> Step:
    """One-hot vectors into nn.LSTM, nn.Linear, the state detached between windows."""
    tn, drawn, weights = torch.nn, case.draw(), initial(case)
    modules = {"lstm": tn.LSTM(LETTERS, case.H), "head": tn.Linear(case.H, LETTERS)}
    load(torch, modules, weights)
    lstm, head = modules.values()
    optimizer = torch.optim.SGD([p for m in modules.values() for p in m.parameters()], 1.0)
    x, y = torch.from_numpy(drawn.x), torch.from_numpy(drawn.y)

    def losses() -> Iterator[Any]:
        state: Any = None
        for at in endless(drawn.batches):
            window = slice(int(at[0]), int(at[-1]) + 1)
            out, (h, c) = lstm(tn.functional.one_hot(x[window], LETTERS).float(), state)
            state = h.detach(), c.detach()
            yield tn.functional.cross_entropy(head(out).flatten(0, 1), y[window].flatten())

    return torch_step(torch, modules, optimizer, losses())


def load(torch: Any, modules: dict[str, Any], weights: dict[str, dict[str, Array]]) -> None:
    """Give PyTorch's modules the initial parameters; a bias that ours lacks is 0."""
    for name, module in modules.items():
        own = {n: torch.from_numpy(np.array(w)) for n, w in weights[name].items()}
        for missing in module.state_dict().keys() - own.keys():
            own[missing] = torch.zeros_like(module.state_dict()[missing])
        module.load_state_dict(own)
