"""Masks: layers run over the valid steps alone, in any pattern, as if the other steps were cut out."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from cases import CELLS, LAYERS, TOLERANCE, TWO, Case, assert_all_near, assert_near, assert_same_bits, named

import fastlstm as fl
from fastlstm._backends import module
from fastlstm.packing import Batch

T, B, I, H = 7, 6, 4, 5  # noqa: E741
F32 = np.float32
# Columns are sequences: padding on the left, gaps, none valid, all valid, padding on the right, one in the middle.
MASK = np.array(
    [
        [0, 1, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 0, 1],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 1, 0, 1, 0, 0],
    ],
    bool,
)
each_kind = pytest.mark.parametrize("kind", LAYERS)


def one_sequence(state: Any, b: int) -> Any:
    return tuple(s[:, [b]] for s in state) if isinstance(state, tuple) else state[:, [b]]


def run(layer: Any, drawn: Any, every: int | None = None, **given: Any) -> dict[str, Any]:
    """All results of forward and backward, by name."""
    y, state, tape = layer.forward(drawn.x, drawn.state, checkpoint_every=every, **given)
    dx, dstate, grads = layer.backward(tape, drawn.dy, drawn.dstate)
    inputs = {} if dx is None else {"dx": dx}
    return {
        "y": y,
        **named("{}_n", state),
        **named("d{}_0", dstate),
        **inputs,
        **{f"d{n}": g for n, g in grads.items()},
    }


def alone(layer: Any, drawn: Any, mask: Any, every: int | None = None) -> dict[str, Any]:
    """Results of the layer for the valid steps of each sequence by itself, joined into time-major arrays."""
    got: dict[str, Any] = {}
    for b in range(mask.shape[1]):
        valid = mask[:, b]
        cut = type(drawn)(
            np.ascontiguousarray(drawn.x[valid][:, [b]]), one_sequence(drawn.state, b), None,
            np.ascontiguousarray(drawn.dy[valid][:, [b]]), one_sequence(drawn.dstate, b),
        )  # fmt: skip
        for name, a in run(layer, cut, every).items():
            if name in ("y", "dx"):
                got.setdefault(name, np.zeros((*mask.shape, a.shape[2]), a.dtype))[valid, b] = a[:, 0]
            elif name.endswith(("_n", "_0")):
                got.setdefault(name, np.zeros((len(a), mask.shape[1], a.shape[2]), a.dtype))[:, b] = a[:, 0]
            else:
                got[name] = got.get(name, 0) + a
    return got


def poisoned(drawn: Any, mask: Any) -> Any:
    """A copy of the input with NaN, or the token id -1, at the steps that are not valid."""
    x, dy = drawn.x.copy(), drawn.dy.copy()
    x[~mask] = -1 if x.dtype.kind == "i" else np.nan
    dy[~mask] = np.nan
    return type(drawn)(x, drawn.state, None, dy, drawn.dstate)


def turned(drawn: Any) -> Any:
    return type(drawn)(drawn.x.swapaxes(0, 1), drawn.state, None, drawn.dy.swapaxes(0, 1), drawn.dstate)


# --------------------------------------------------------------------------------------------------------------- values
@each_kind
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 3}, TWO], ids=str)
@pytest.mark.parametrize("ids", [False, True], ids=["numbers", "ids"])
@pytest.mark.parametrize("every", [None, 2], ids=["tape", "checkpoints"])
def test_a_masked_batch_is_its_sequences_alone(
    kind: str, options: dict[str, Any], ids: bool, every: int | None, backend: str
) -> None:
    case = Case(kind, T, B, I, H, options, ids=ids)
    layer, drawn = case.layer("float32", backend), case.draw()
    expected = alone(layer, drawn, MASK, every)
    got = run(layer, poisoned(drawn, MASK), every, mask=MASK)
    assert_all_near(got, expected, TOLERANCE["values"], TOLERANCE["gradients"])
    assert not got["y"][~MASK].any() and (ids or not got["dx"][~MASK].any())


@each_kind
@pytest.mark.parametrize("batch_first", [False, True])
def test_inference_has_the_bits_of_training_under_a_mask(kind: str, batch_first: bool, backend: str) -> None:
    case = Case(kind, T, B, I, H, {**TWO, "batch_first": batch_first})
    layer, drawn = case.layer("float32", backend), case.draw()
    mask = MASK.T if batch_first else MASK
    y, state, _ = layer.forward(drawn.x, drawn.state, mask=mask)
    got, got_state = layer(drawn.x, drawn.state, mask=mask)
    assert_same_bits({"y": got, **named("{}", got_state)}, {"y": y, **named("{}", state)})
    last, last_state = layer(drawn.x, drawn.state, mask=mask, last_only=True)
    by_time = y.swapaxes(0, 1) if batch_first else y
    for b in range(B):
        valid = np.flatnonzero(MASK[:, b])
        np.testing.assert_array_equal(last[b], by_time[valid[-1], b] if len(valid) else 0)
    assert_same_bits(named("{}", last_state), named("{}", state))


@each_kind
def test_batch_first_turns_the_mask_too(kind: str, backend: str) -> None:
    case = Case(kind, T, B, I, H, TWO)
    drawn = case.draw()
    expected = run(case.layer("float32", backend), drawn, mask=MASK)
    layer = Case(kind, T, B, I, H, {**TWO, "batch_first": True}).layer("float32", backend)
    for mask in (MASK.T, np.ascontiguousarray(MASK.T), MASK.T.tolist()):
        got = run(layer, turned(drawn), mask=mask)
        assert_same_bits({n: a.swapaxes(0, 1) if n in ("y", "dx") else a for n, a in got.items()}, expected)


@each_kind
def test_a_sequence_without_a_batch_axis(kind: str, backend: str) -> None:
    case = Case(kind, T, 1, I, H, TWO)
    layer, drawn = case.layer("float32", backend), case.draw()
    mask = MASK[:, [1]]
    expected = run(layer, drawn, mask=mask)
    bare = type(drawn)(drawn.x[:, 0], one_bare(drawn.state), None, drawn.dy[:, 0], one_bare(drawn.dstate))
    got = run(layer, bare, mask=mask[:, 0])
    assert_same_bits(got, {n: a if n.startswith(("dweight", "dbias")) else a[:, 0] for n, a in expected.items()})
    y, _ = layer(bare.x, bare.state, mask=mask[:, 0], last_only=True)
    np.testing.assert_array_equal(y, expected["y"][np.flatnonzero(mask)[-1], 0])


def one_bare(state: Any) -> Any:
    return tuple(s[:, 0] for s in state) if isinstance(state, tuple) else state[:, 0]


@each_kind
@pytest.mark.parametrize("lengths", [(3, 0, 7, 1, 7, 2), (7,) * B, (0,) * B], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_on_the_right_is_lengths(kind: str, lengths: tuple[int, ...], batch_first: bool, backend: str) -> None:
    """The same rows, so the same bits and the same cost."""
    mask = np.arange(T)[:, None] < np.array(lengths)
    case = Case(kind, T, B, I, H, {**TWO, "batch_first": batch_first}, lengths)
    layer, drawn = case.layer("float32", backend), case.draw()
    got = run(layer, drawn, mask=mask.T if batch_first else mask)
    assert_same_bits(got, run(layer, drawn, lengths=lengths))
    for a, b in zip(layer(drawn.x, mask=mask.T if batch_first else mask), layer(drawn.x, lengths=lengths), strict=True):
        assert_same_bits(named("{}", a), named("{}", b))
    batch, known = Batch.of_mask(mask, batch_first), Batch.of(T, B, np.array(lengths), batch_first)
    assert batch.regular and known.regular and (batch.row_map is None) == (known.row_map is None)


def test_masked_steps_have_no_rows() -> None:
    batch = Batch.of_mask(MASK)
    counts = MASK.sum(axis=0)
    assert (counts.sum(), counts.max(), np.count_nonzero(counts)) == (batch.rows.N, batch.rows.T, batch.rows.B)
    x = np.random.default_rng(0).standard_normal((T, B, I)).astype(F32)
    back = batch.unpack(batch.pack(x, x.dtype))
    np.testing.assert_array_equal(back, np.where(MASK[..., None], x, 0))


@pytest.mark.parametrize("seed", range(6))
def test_random_masks_and_sizes(seed: int, backend: str) -> None:
    """Also without steps, without sequences, and without valid steps."""
    rng = np.random.default_rng(seed)
    for t, b in ((0, 3), (4, 0), (1, 1), (1, 5), (9, 1), (13, 17)):
        for share in (0.0, 0.2, 0.7, 1.0):
            mask = rng.random((t, b)) < share
            case = Case("gru", t, b, I, H, TWO)
            layer, drawn = case.layer("float32", backend), case.draw()
            got = run(layer, poisoned(drawn, mask), mask=mask)
            assert got["y"].shape == (t, b, 2 * H) and got["dx"].shape == (t, b, I)
            if b:
                assert_all_near(got, alone(layer, drawn, mask), TOLERANCE["values"], TOLERANCE["gradients"])


def test_dropout_falls_on_valid_steps_only(backend: str) -> None:
    layer = fl.GRU(I, H, 2, dropout=0.5, backend=backend, seed=0)
    x = np.random.default_rng(0).standard_normal((T, B, I)).astype(F32)
    y, _, tape = layer.forward(x, mask=MASK)
    dx, _, _ = layer.backward(tape, np.ones_like(y))
    assert not y[~MASK].any() and not dx[~MASK].any() and dx[MASK].any(axis=1).mean() > 0.8


# -------------------------------------------------------------------------------------------------------------- PyTorch
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, TWO], ids=str)
@each_kind
def test_torch_on_the_valid_steps_of_each_sequence(kind: str, options: dict[str, Any], backend: str) -> None:
    """PyTorch has no masks, so its input is each sequence alone, cut to its valid steps."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-peers")
    dtype = "float64" if "float64" in module(backend).DTYPES else "float32"
    case = Case(kind, T, B, I, H, options)
    layer, drawn = case.layer(dtype, backend), case.draw(dtype)
    theirs = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[kind](I, H, **options).double()
    theirs.load_state_dict({name: torch.tensor(p).double() for name, p in layer.state_dict().items()})

    def leaf(a: Any) -> Any:
        return torch.tensor(np.ascontiguousarray(a), dtype=torch.float64, requires_grad=True)

    x = leaf(drawn.x)
    state = tuple(map(leaf, drawn.state)) if kind == "lstm" else leaf(drawn.state)
    y, finals = torch.zeros(drawn.dy.shape, dtype=torch.float64), {}
    for b in range(B):
        valid = torch.tensor(MASK[:, b])
        final = one_sequence(state, b)
        if valid.any():
            out, final = theirs(x[valid][:, [b]], final)
            y = y.index_put((valid.nonzero()[:, 0], torch.tensor(b)), out[:, 0])
        for name, part in named("{}_n", final).items():
            finals.setdefault(name, []).append(part)
    values = {"y": y} | {name: torch.cat(parts, 1) for name, parts in finals.items()}
    weights = {"y": drawn.dy, **named("{}_n", drawn.dstate)}
    sum((values[name] * torch.tensor(w).double()).sum() for name, w in weights.items()).backward()
    expected = {name: a.detach().numpy() for name, a in values.items()} | {"dx": x.grad.numpy()}
    expected |= {name: part.grad.numpy() for name, part in named("d{}_0", state).items()}
    expected |= {f"d{name}": p.grad.numpy() for name, p in theirs.named_parameters()}
    tolerances = (TOLERANCE["float64"],) * 2 if dtype == "float64" else (TOLERANCE["values"], TOLERANCE["gradients"])
    assert_all_near(run(layer, drawn, mask=MASK), expected, *tolerances)


# ---------------------------------------------------------------------------------------------------------------- cells
@each_kind
def test_a_cell_under_a_mask_keeps_the_state_of_the_others(kind: str, backend: str) -> None:
    case = Case(kind, 1, B, I, H)
    drawn, cell = case.draw(), CELLS[kind](I, H, backend=backend, seed=1)
    first = (lambda s: tuple(p[0] for p in s)) if kind == "lstm" else (lambda s: s[0])
    x, state, dstate, mask = drawn.x[0], first(drawn.state), first(drawn.dstate), MASK[3]
    x[~mask] = np.nan
    plain = named("{}", cell(np.nan_to_num(x), state))
    new, tape = cell.forward(x, state, mask=mask)
    assert_same_bits(named("{}", cell(x, state, mask=mask)), named("{}", new))
    dx, dinitial, grads = cell.backward(tape, dstate)
    assert not dx[~mask].any() and dx[mask].any() and np.isfinite(grads["weight_ih"]).all()
    for name, part in named("{}", new).items():
        np.testing.assert_array_equal(part[~mask], named("{}", state)[name][~mask])
        assert_near(part[mask], plain[name][mask], TOLERANCE["values"])
    for name, part in named("{}", dinitial).items():
        np.testing.assert_array_equal(part[~mask], named("{}", dstate)[name][~mask])
    single = [named("{}", cell(x[3], mask=on)) for on in (np.True_, True, False)]
    assert_same_bits(single[0], named("{}", cell(x[3])))
    assert_same_bits(single[1], single[0])
    assert not any(part.any() for part in single[2].values())


# ------------------------------------------------------------------------------------------------------------ bad masks
X = np.zeros((T, B, I), F32)
BAD_MASKS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (
        X,
        {"mask": MASK.astype(int)},
        TypeError,
        "mask must hold bools, got dtype int64 and shape (7, 6). Convert",
    ),
    (X, {"mask": MASK.astype(F32)}, TypeError, "mask must hold bools, got dtype float32"),
    (X, {"mask": MASK.astype(np.uint8)}, TypeError, "mask must hold bools, got dtype uint8"),
    (X, {"mask": MASK.astype(object)}, TypeError, "mask must hold bools, got dtype object"),
    (X, {"mask": "all"}, TypeError, "mask must hold bools, got dtype <U3"),
    (
        X,
        {"mask": MASK.T},
        ValueError,
        "mask has shape (6, 7), expected (7, 6): (T, B), True at the steps that are valid",
    ),
    (X, {"mask": MASK[..., None]}, ValueError, "mask has shape (7, 6, 1), expected (7, 6)"),
    (X, {"mask": MASK[:, 0]}, ValueError, "mask has shape (7,), expected (7, 6)"),
    (X, {"mask": True}, ValueError, "mask has shape (), expected (7, 6)"),
    (X, {"mask": MASK, "lengths": [T] * B}, ValueError, "mask and lengths both say which steps are valid: give one"),
    (X[:, 0], {"mask": MASK}, ValueError, "mask has shape (7, 6), expected (7,): (T,), True at"),
]


@pytest.mark.parametrize(("x", "given", "error", "message"), BAD_MASKS, ids=[m for *_, m in BAD_MASKS])
def test_a_bad_mask_says_what_was_expected(x: Any, given: Any, error: type[Exception], message: str) -> None:
    layer = fl.LSTM(I, H)
    for call in (layer, layer.forward):
        with pytest.raises(error, match=re.escape(message)):
            call(x, **given)


def test_a_bad_mask_of_a_batch_first_layer_and_of_a_cell() -> None:
    with pytest.raises(ValueError, match=re.escape("mask has shape (7, 6), expected (6, 7): (B, T), True at")):
        fl.GRU(I, H, batch_first=True)(X.swapaxes(0, 1), mask=MASK)
    cell = fl.GRUCell(I, H)
    for call in (cell, cell.forward):
        with pytest.raises(ValueError, match=re.escape("mask has shape (7, 6), expected (6,): one entry for each seq")):
            call(X[0], mask=MASK)
        with pytest.raises(TypeError, match="mask must hold bools, got dtype int64"):
            call(X[0], mask=MASK[0].astype(int))


def test_masked_ids_are_not_checked_and_others_are() -> None:
    layer, ids = fl.RNN(I, H, seed=0), np.full((3, 2), -1)
    ids[1] = 3
    mask = ids >= 0
    y, _ = layer(ids, mask=mask)
    np.testing.assert_array_equal(y[1], layer(ids[1:2])[0][0])
    mask[0, 0] = True
    with pytest.raises(ValueError, match="token ids must lie between 0 and input_size - 1 = 3, got -1 to 3"):
        layer(ids, mask=mask)
