"""Every backend against the reference, and the compiled backend's promise of equal bits."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cases import (
    CASES,
    LAYERS,
    OPTIONS,
    TOLERANCE,
    TWO,
    Case,
    Drawn,
    assert_all_near,
    assert_near,
    assert_same_bits,
    named,
)

import fastlstm as fl
from fastlstm._backends import NAMES, backends, module, provides
from fastlstm._backends import numpy as reference
from fastlstm.layout import RowMap, Rows, parts_of_tape
from fastlstm.spec import ACTIVATIONS

_expected: dict[str, dict[str, Any]] = {}


def expected(case: Case) -> dict[str, Any]:
    """The reference's results of a case in float64. Cached for all instruction sets."""
    if str(case) not in _expected:
        _expected[str(case)] = case.draw("float64").run(case.layer("float64", "numpy"))
    return _expected[str(case)]


def assert_agrees(got: dict[str, Any], case: Case) -> None:
    assert_all_near(got, expected(case), TOLERANCE["values"], TOLERANCE["gradients"])


# --------------------------------------------------------------------------------------------------- against reference
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_reference(case: Case, backend: str) -> None:
    """Outputs, states and every gradient in float32; the reference's own float32 is held to the same."""
    layer, drawn = case.layer("float32", backend), case.draw("float32")
    assert_agrees(drawn.run(layer), case)
    y, state = layer(drawn.x, drawn.state, drawn.lengths)
    inference = {"y": y, **named("{}_n", state)}
    assert_all_near(inference, {name: expected(case)[name] for name in inference}, TOLERANCE["values"], 0)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_wrong_weight_is_seen(kind: str, backend: str) -> None:
    """The comparison can fail: it notices any single weight off by a thousandth, in the values or the gradients."""
    case = Case(kind, 5, 4, 9, 17)
    drawn = case.draw("float32")
    assert_agrees(drawn.run(case.layer("float32", backend)), case)
    for name in case.layer().state_dict():
        layer = case.layer("float32", backend)
        with layer.update() as params:
            params[name].flat[-1] += 1e-3
        with pytest.raises(AssertionError, match="largest entry"):
            assert_agrees(drawn.run(layer), case)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "numpy"])
@pytest.mark.parametrize("function", ["unusable", "supports", "pack", "forward", "backward", "bind"])
def test_signatures_are_the_references(name: str, function: str) -> None:
    theirs, ours = (inspect.signature(getattr(m, function)) for m in (module(name), reference))
    assert [(p.name, p.kind, p.default) for p in theirs.parameters.values()] == [
        (p.name, p.kind, p.default) for p in ours.parameters.values()
    ]


# ---------------------------------------------------------------------------------------------- the contract, directly
def one_layer(case: Case, backend: str, reverse: bool = False) -> tuple[Any, Any, dict[str, Any], Any]:
    """(the backend's module, spec, canonical parameters, packed block) of a case of one layer and direction."""
    layer = case.layer("float32", backend)
    spec = layer._specs[0][0]
    params = {name.removesuffix("_l0"): p for name, p in layer.state_dict().items()}
    return module(backend), spec, params, module(backend).pack(spec, params, "float32", reverse)


CONTRACT = [
    Case("lstm", 6, 3, 5, 9),
    Case("lstm", 6, 3, 5, 9, {"peepholes": True, "proj_size": 4}),
    Case("gru", 6, 3, 5, 9),
    Case("gru", 6, 3, 5, 9, {"reset_after": False}),
    Case("rnn", 6, 3, 5, 9),
]


@pytest.mark.parametrize("reverse", [False, True], ids=["onwards", "reverse"])
@pytest.mark.parametrize("case", CONTRACT, ids=str)
def test_backward_goes_through_time_in_pieces_and_adds(case: Case, reverse: bool, backend: str) -> None:
    """Two stretches, with the states' gradients carried over, equal one; gradients are added to the given arrays."""
    m, spec, params, block = one_layer(case, backend, reverse)
    drawn = case.draw()
    initial, final = ([s[0] for s in named("{}", given).values()] for given in (drawn.state, drawn.dstate))
    T, B = case.T, case.B
    x, dy = drawn.x.reshape(T * B, -1), drawn.dy.reshape(T * B, -1)
    rows = Rows.dense(T, B)
    y = np.full((T * B, spec.R), np.nan, np.float32)

    def ran() -> tuple[Any, Any]:
        """The tape of a forward call, and the gradients of the final state."""
        tape = np.full((1, spec.tape_size(rows.N, B)), np.nan, np.float32)
        m.forward([block], x, rows, tuple(s.copy()[None] for s in initial), y, tape)
        assert np.isfinite(y).all() and np.isfinite(tape).all(), "something was not written"
        return tape[0], tuple(s.copy() for s in final)

    def gradients() -> tuple[dict[str, Any], Any]:
        return {name: np.full_like(p, 0.5) for name, p in params.items()}, np.full_like(x, 0.25)

    tape, whole = ran()
    grads, dx = gradients()
    m.backward(block, x, rows, whole, tape, dy, dx, grads)

    for cut in range(1, T):
        (tape, carried), (got, got_dx) = ran(), gradients()
        early, late = slice(0, cut * B), slice(cut * B, None)
        first, last = (late, early) if reverse else (early, late)  # in walking order
        border = slice(cut * B, (cut + 1) * B) if reverse else slice((cut - 1) * B, cut * B)
        kept = parts_of_tape(spec, tape, rows)
        started = [kept[name] for name in spec.initial]
        between = [kept[name[0]][border] for name in spec.initial]
        for part, begins in ((last, between), (first, started)):
            piece = np.concatenate([a.ravel() for a in (*(kept[name][part] for name in spec.tape), *begins)])
            stretch = Rows.dense(len(range(T * B)[part]) // B, B)
            m.backward(block, x[part], stretch, carried, piece, dy[part], got_dx[part], got)
        pieces = {"dx": got_dx, **got, **named("d{}", carried)}
        single = {"dx": dx, **grads, **named("d{}", whole)}
        for name, array in single.items():
            assert_near(pieces[name], array, TOLERANCE["values"], f"cut at {cut}: {name}")


@pytest.mark.parametrize("case", CONTRACT, ids=str)
def test_outputs_go_to_their_places(case: Case, backend: str) -> None:
    """Both directions write the rows of the row map, and zeros past a sequence's end; other rows stay as they are."""
    m, spec, params, onwards = one_layer(case, backend)
    blocks = [onwards, m.pack(spec, params, "float32", True)]
    rows, width = Rows.of_lengths(np.array([6, 4, 4, 1])), 2 * spec.R
    x = np.random.default_rng(0).standard_normal((rows.N, case.I), np.float32)

    def run(y: Any, row_map: Any) -> Any:
        states = tuple(np.zeros((2, rows.B, width), np.float32) for width in spec.initial.values())
        m.forward(blocks, x, rows, states, y, row_map=row_map)
        return y

    packed = run(np.full((rows.N, width), np.nan, np.float32), None)
    assert np.isfinite(packed).all()
    # Of five sequences of eight steps one is absent, and the longest one has six steps.
    for row_map in (RowMap(1, np.array([8, 24, 0, 32])), RowMap(5, np.array([1, 3, 0, 4]))):
        expected = np.full((5 * 8, width), np.nan, np.float32)
        expected[np.arange(rows.T)[:, None] * row_map.step + row_map.sequences] = 0
        expected[row_map.of_rows(rows)] = packed
        np.testing.assert_array_equal(run(np.full((5 * 8, width), np.nan, np.float32), row_map), expected)


def test_a_block_keeps_its_weights(backend: str) -> None:
    """`pack` copies: a change of the parameters cannot reach a stream that is under way."""
    m, _, params, block = one_layer(Case("lstm", 1, 2, 3, 5), backend)
    x = np.ones((2, 3), np.float32)

    def step() -> Any:
        states = np.zeros((1, 2, 5), np.float32), np.zeros((1, 2, 5), np.float32)
        m.bind([block], x, states)()
        return states[0][0]

    before = step()
    for p in params.values():
        p[...] = 7
    np.testing.assert_array_equal(step(), before)


# -------------------------------------------------------------------------------------------------------- no NumPy in C
def test_no_numpy_arithmetic_hides_in_the_compiled_backend(compiled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("NumPy's arithmetic was called")

    runs = [(case.layer("float32", compiled), case.draw(), case) for case in OPTIONS[:30]]
    with monkeypatch.context() as patch:
        for name in ("matmul", "dot", "einsum", "tensordot", "inner", "vdot", "tanh", "exp", "expm1"):
            patch.setattr(np, name, forbidden)
        results = [drawn.run(layer) for layer, drawn, _ in runs]
        steps = fl.LSTM(3, 5, backend=compiled).stream().run(np.ones((4, 3), np.float32))
    for result, (_, _, case) in zip(results, runs, strict=True):
        assert_agrees(result, case)
    assert np.isfinite(steps).all()


@pytest.mark.parametrize(
    "source",
    [
        *("_backends", "layout", "packing", "engine", "layer", "spec_layer", "recurrent", "cell", "stream"),
        *(f"_backends.c.{name}" for name in ("calls", "recurrent", "dense", "optimisers")),
    ],
)
def test_no_matrix_product_is_written_outside_the_reference(source: str) -> None:
    """The test searches the source for the operator @, which cannot be patched to raise."""
    tree = ast.parse(inspect.getsource(importlib.import_module(f"fastlstm.{source}")))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.MatMult)]
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"matmul", "dot", "einsum", "tanh", "exp", "tensordot"}


# ----------------------------------------------------------------------------------------------------------------- bits
BITS = [
    Case("lstm", 5, 19, 9, 33),
    Case("lstm", 4, 19, 33, 129, {"num_layers": 2, "peepholes": True, "proj_size": 17}),
    Case("gru", 5, 19, 17, 31, {"num_layers": 2}),
    Case("gru", 5, 19, 9, 33, {"reset_after": False}),
    Case("rnn", 5, 19, 31, 100, {"num_layers": 2}),
    Case("lstm", 4, 19, 50, 16, ids=True),
    Case("lstm", 4, 19, 190, 200),  # weights that a step of one row prefetches
    Case("gru", 4, 19, 200, 240),
]
# Large enough for several threads, in every way to split: by directions, rows or hidden units, or pipelined (one thread
# walks, another takes the input's product).
THREADED = [
    Case("lstm", 6, 64, 64, 128),
    Case("lstm", 6, 33, 40, 129, TWO, tuple(b % 7 for b in range(33))),
    Case("lstm", 40, 1, 256, 256),
    Case("lstm", 5, 40, 64, 200, {"proj_size": 100, "peepholes": True, "bidirectional": True}),
    Case("gru", 6, 64, 64, 128, TWO),
    Case("gru", 40, 1, 256, 256),
    Case("gru", 6, 40, 64, 200, {"reset_after": False}),
    Case("rnn", 12, 64, 64, 256, TWO),
    Case("lstm", 9, 40, 300, 128, ids=True),
    Case("lstm", 99, 1, 48, 64),
    Case("lstm", 60, 1, 13, 100),  # short steps, split by units where barriers are cheap
    Case("gru", 60, 1, 13, 120),
    Case("gru", 120, 1, 60, 50, {"reset_after": False}),
]


def values(layer: Any, x: Any, state: Any = None, lengths: Any = None) -> dict[str, Any]:
    y, final = layer(x, state, lengths)
    return {"y": y, **named("{}_n", final)}


def part(drawn: Drawn, batch: Any) -> tuple[Any, Any]:
    """(x, state) of some of the batch's sequences."""
    state = tuple(s[:, batch] for s in drawn.state) if isinstance(drawn.state, tuple) else drawn.state[:, batch]
    return drawn.x[:, batch], state


@pytest.mark.parametrize("case", BITS, ids=str)
def test_bits_do_not_depend_on_the_batch(case: Case, compiled: str) -> None:
    layer, drawn = case.layer("float32", compiled), case.draw()
    whole = values(layer, drawn.x, drawn.state)
    shuffled = np.random.default_rng(3).permutation(case.B)
    picks: list[Any] = [[b] for b in range(case.B)] + [slice(b, b + n) for n in range(2, 18) for b in (0, 19 - n)]
    for pick in [*picks, shuffled]:
        got = values(layer, *part(drawn, pick))
        assert_same_bits(got, {name: a[:, pick] for name, a in whole.items()}, f"sequences {pick}:")


@pytest.mark.parametrize("case", BITS, ids=str)
def test_bits_do_not_depend_on_the_other_lengths(case: Case, compiled: str) -> None:
    layer, drawn = case.layer("float32", compiled), case.draw()
    lengths = np.arange(case.B) * 7 % (case.T + 1)
    whole = values(layer, drawn.x, drawn.state, lengths)
    for b, length in enumerate(lengths):
        x, state = part(drawn, [b])
        alone = values(layer, x[:length], state)
        got = {name: a[:, [b]] for name, a in whole.items()} | {"y": whole["y"][:length, [b]]}
        assert_same_bits(got, alone, f"sequence {b}:")
        assert not whole["y"][length:, b].any()


def pieces(layer: Any, drawn: Drawn, cut: int) -> dict[str, Any]:
    first = values(layer, drawn.x[:cut], drawn.state)
    carried = (first["h_n"], first["c_n"]) if "c_n" in first else first["h_n"]
    second = values(layer, drawn.x[cut:], carried)
    return second | {"y": np.concatenate((first["y"], second["y"]))}


def streamed(layer: Any, drawn: Drawn, chunks: list[int]) -> dict[str, Any]:
    """Outputs of a stream: a chunk of 1 is a step, a longer one a run."""
    s = layer.stream(drawn.x.shape[1])
    s.state = drawn.state
    ys, at = [], 0
    for n in chunks:
        ys.append(s.step(drawn.x[at])[None] if n == 1 else s.run(drawn.x[at : at + n]))
        at += n
    return {"y": np.concatenate(ys), **named("{}_n", s.state)}


@pytest.mark.parametrize("case", BITS, ids=str)
def test_bits_do_not_depend_on_the_chunking(case: Case, compiled: str) -> None:
    layer = case.layer("float32", compiled)
    for B in (1, 3, 19):
        drawn = case.draw()
        drawn.x, drawn.state = part(drawn, slice(B))
        whole = values(layer, drawn.x, drawn.state)
        for cut in range(case.T + 1):
            assert_same_bits(pieces(layer, drawn, cut), whole, f"B={B}, cut at {cut}:")
        for chunks in ([1] * case.T, [case.T], [1, case.T - 2, 1], [2, 1, case.T - 3]):
            assert_same_bits(streamed(layer, drawn, chunks), whole, f"B={B}, streamed as {chunks}:")


@pytest.mark.parametrize("case", [*BITS, *THREADED], ids=str)
def test_bits_do_not_depend_on_threads_or_run(case: Case, compiled: str) -> None:
    """Gradients included. The forward pass of training has the bits of inference."""
    layer, drawn = case.layer("float32", compiled), case.draw()
    with fl.threads(1):
        single = drawn.run(layer)
        inference = values(layer, drawn.x, drawn.state, drawn.lengths)
    assert_same_bits(inference, {name: single[name] for name in inference}, "inference:")
    for n in (1, 2, 2, 3, 4, 7):
        with fl.threads(n):
            assert_same_bits(drawn.run(layer), single, f"{n} threads:")
            assert_same_bits(values(layer, drawn.x, drawn.state, drawn.lengths), inference, f"{n} threads, inference:")


@pytest.mark.parametrize("case", THREADED, ids=str)
def test_threaded_results_are_right(case: Case, compiled: str) -> None:
    with fl.threads(2):
        assert_agrees(case.draw().run(case.layer("float32", compiled)), case)


def test_bits_do_not_depend_on_other_callers(compiled: str) -> None:
    """Eight Python threads call one layer: one uses the pool, the others compute without it; all results are equal."""
    case = Case("lstm", 6, 64, 64, 128)
    layer, drawn = case.layer("float32", compiled), case.draw()
    with fl.threads(2):
        alone = drawn.run(layer)

    def work(_: int) -> list[dict[str, Any]]:
        with fl.threads(2):
            return [drawn.run(layer) for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(work, range(8)):
            for result in results:
                assert_same_bits(result, alone)


@pytest.mark.parametrize("case", [case for case in CASES if case.ids and case.T], ids=str)
def test_token_ids_are_one_hot_rows(case: Case, backend: str) -> None:
    """Outputs and states have equal bits, since a one-hot row adds zeros only. Gradients add in another order."""
    layer, drawn = case.layer("float32", backend), case.draw()
    by_id = drawn.run(layer)
    ids = drawn.x
    drawn.x = np.eye(case.I, dtype=np.float32)[ids]
    by_row = drawn.run(layer)
    dx = by_row.pop("dx")
    assert dx.shape == (*ids.shape, case.I)
    exact = [name for name in by_id if not name.startswith("d")]
    assert_same_bits({name: by_id[name] for name in exact}, {name: by_row[name] for name in exact})
    assert_all_near(by_id, by_row, 0, TOLERANCE["gradients"])


# ----------------------------------------------------------------------------------------------------- odd numbers in C
@pytest.mark.parametrize(
    "case", [c for c in OPTIONS if "activations" in c.options or "nonlinearity" in c.options], ids=str
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_and_infinity_pass_as_in_numpy(case: Case, backend: str) -> None:
    """In every activation in every role. A row's NaN does not reach other rows."""
    drawn = case.draw()
    for b, odd in enumerate((np.nan, np.inf)):
        drawn.x[0, b, 0] = odd
    got = values(case.layer("float32", backend), drawn.x, drawn.state)
    with np.errstate(all="ignore"):
        want = values(case.layer("float64", "numpy"), drawn.x.astype(float), case.draw("float64").state)
    for name, array in want.items():
        for test in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(test(got[name]), test(array), f"{test.__name__} of {name}")
    assert np.isnan(got["y"][:, 0]).any() and np.isfinite(got["y"][:, 2]).all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # weight_ih's gradient is 0 * infinity
@pytest.mark.parametrize(("name", "low", "high"), [("sigmoid", 0, 1), ("tanh", -1, 1)])
def test_saturated_activations_are_exact(name: str, low: float, high: float, backend: str) -> None:
    """In float32 a saturated gate is exactly 1, not almost 1, and passes no gradient."""
    layer = fl.RNN(1, 1, nonlinearity=name, backend=backend)
    layer.load_state_dict({key: np.full_like(p, key == "weight_ih_l0") for key, p in layer.state_dict().items()})
    x = np.array([-np.inf, -1e30, -200, 20, 200, 1e30, np.inf], np.float32).reshape(1, -1, 1)
    y, _, tape = layer.forward(x)
    assert y.ravel().tolist() == [low] * 3 + [high] * 4
    dx, _, _ = layer.backward(tape, np.ones_like(y))
    assert not dx.any()


def test_large_inputs_give_finite_results(backend: str) -> None:
    """Inputs far beyond the overflow of exp; gradients included."""
    for kind in LAYERS:
        case = Case(kind, 3, 4, 5, 9)
        layer, drawn = case.layer("float32", backend), case.draw()
        drawn.x *= np.float32(1e6)
        got = drawn.run(layer)
        assert all(np.isfinite(a).all() for a in got.values())
        assert np.abs(got["y"]).max() <= max(1, np.abs(named("{}", drawn.state)["h"]).max())


def test_denormals_still_work_after_a_call(compiled: str) -> None:
    """The kernels flush denormals to zero during a call only."""
    case = Case("lstm", 3, 64, 64, 128)
    case.draw().run(case.layer("float32", compiled))
    tiny = np.full(64, 1e-40, np.float32)
    assert (tiny * np.float32(0.5) > 0).all() and (tiny + tiny > tiny).all()


# ------------------------------------------------------------------------------------ instruction sets, copies, panels


def test_an_instruction_set_that_cannot_be_used_is_refused(compiled: str) -> None:
    c = module(compiled)
    before = c.isas()
    assert before["scalar"] is None
    for name in ["sse9", *(name for name, why in before.items() if why is not None)]:
        with pytest.raises((ValueError, fl.BackendError), match=name), c.use_isa(name):
            pass
    assert c.isas() == before


def test_copies_compute_the_same_bits(compiled: str) -> None:
    case = Case("lstm", 4, 3, 9, 33, TWO)
    layer, drawn = case.layer("float32", compiled), case.draw()
    assert_same_bits(drawn.run(copy.deepcopy(layer)), drawn.run(layer))


def test_panels_in_use_are_not_packed_again(compiled: str) -> None:
    """One thread is in backward with token ids while another, with numbers, needs the input's panels as well."""
    layer, rng = fl.LSTM(5, 7, backend=compiled, seed=0), np.random.default_rng(1)
    ids = rng.integers(0, 5, (4, 3))
    handle = layer._blocks()[1][0][0].handle
    grads, addresses = [], []
    for x in (ids, np.eye(5, dtype=np.float32)[ids]):
        y, _, tape = layer.forward(x)
        grads.append(layer.backward(tape, np.ones_like(y))[2])
        addresses.append(handle.v_h)
    assert addresses[0] == addresses[1]
    for name, g in grads[0].items():
        np.testing.assert_allclose(grads[1][name], g, rtol=1e-5, atol=1e-6)


def test_every_activation_is_tried_in_every_role() -> None:
    """The cases keep up with the list of activations."""
    tried = {
        (case.kind, role, name)
        for case in OPTIONS
        for role, name in enumerate(case.options.get("activations", [case.options.get("nonlinearity")]))
    }
    roles = {"lstm": 3, "gru": 2, "rnn": 1}
    missing = {(kind, role, name) for kind, n in roles.items() for role in range(n) for name in ACTIVATIONS} - tried
    assert not missing


# ------------------------------------------------------------------------------------------------------------ embedding
@pytest.mark.parametrize(("V", "E", "n"), [(5, 3, 40), (1, 16, 7), (50, 33, 1), (50, 32, 0)])
def test_rows_are_added_in_order_with_the_same_bits(V: int, E: int, n: int) -> None:
    """Every backend's `add_rows`: an id may come often, and rows are added one after the other."""
    rng = np.random.default_rng(0)
    ids, rows = rng.integers(0, V, n), rng.standard_normal((n, E)).astype(np.float32)
    expected = np.zeros((V, E), np.float32)
    for at, row in zip(ids, rows, strict=True):
        expected[at] += row
    having = [module(name) for name, why in backends().items() if why is None and provides(module(name), "embedding")]
    assert module("numpy") in having
    for backend in having:
        table = np.zeros((V, E), np.float32)
        backend.add_rows(table, ids, rows)
        np.testing.assert_array_equal(table, expected, err_msg=backend.__name__)
