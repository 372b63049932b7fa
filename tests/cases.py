"""The cases as data, one line each; the tolerances, one table; and comparisons of results by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastlstm as fl
from fastlstm.spec import ACTIVATIONS

# How far a result may lie from what is expected, as a share of the expected array's largest entry.
TOLERANCE = {
    "finite differences": 1e-6,  # gradients of the float64 reference
    "golden": 1e-7,  # float64 against published numbers
    "values": 2e-6,  # float32 outputs and states against the float64 reference on the same numbers
    "gradients": 2e-5,  # float32 gradients likewise: they sum over rows and steps
    "float64": 1e-10,  # two float64 computations that only add in different orders
}

LAYERS: dict[str, Any] = {"lstm": fl.LSTM, "gru": fl.GRU, "rnn": fl.RNN}
CELLS: dict[str, Any] = {"lstm": fl.LSTMCell, "gru": fl.GRUCell, "rnn": fl.RNNCell}


@dataclass(frozen=True)
class Case:
    """One configuration of a layer and of its input.

    Parameters
    ----------
    kind : {"lstm", "gru", "rnn"}
    T, B, I, H : int
        Sizes, in the alphabet of `fastlstm.spec`.
    options : dict
        Further arguments of the layer's constructor.
    lengths : tuple of B ints, optional
    ids : bool
        The input is token ids.
    state : bool
        An initial state is given.
    given : str
        The gradients that backward gets: any of "y", "h", "c".
    """

    kind: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    options: Mapping[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] | None = None
    ids: bool = False
    state: bool = True
    given: str = "yhc"

    def __str__(self) -> str:
        words = [self.kind, f"T{self.T}", f"B{self.B}", f"I{self.I}", f"H{self.H}"]
        words += [f"{name}={value}" for name, value in self.options.items()]
        words += ["lengths"] * (self.lengths is not None) + ["ids"] * self.ids + ["stateless"] * (not self.state)
        words += [f"d{self.given}"] * (self.given != "yhc")
        return " ".join(words).replace("'", "")

    def layer(self, dtype: str = "float32", backend: str = "auto", seed: int = 0) -> Any:
        """A layer of the case. With one seed all dtypes have the same float32 numbers, so that they can be compared."""
        layer = LAYERS[self.kind](self.I, self.H, dtype=dtype, backend=backend, seed=seed, **self.options)
        layer.load_state_dict({name: p.astype(np.float32) for name, p in layer.state_dict().items()})
        return layer

    def draw(self, dtype: str = "float32", seed: int = 1) -> Drawn:
        """Input, state and gradients for the case. With one seed all dtypes have the same float32 numbers."""
        rng = np.random.default_rng(seed)

        def normal(*shape: int) -> Any:
            return rng.standard_normal(shape).astype(np.float32).astype(dtype)

        def parts(make: bool) -> Any:
            h, c = normal(LD, self.B, R), normal(LD, self.B, self.H)
            return None if not make else (h, c) if self.kind == "lstm" else h

        D = 2 if self.options.get("bidirectional") else 1
        LD, R = self.options.get("num_layers", 1) * D, self.options.get("proj_size", 0) or self.H
        x = normal(self.T, self.B, self.I)
        if self.ids:
            x = rng.integers(0, self.I, (self.T, self.B))
        if self.options.get("batch_first"):
            x = np.ascontiguousarray(x.swapaxes(0, 1))
        state = parts(self.state)
        dy = normal(*x.shape[:2], D * R) if "y" in self.given else None
        dstate = parts("h" in self.given or "c" in self.given)
        if self.kind == "lstm" and dstate is not None:
            dstate = tuple(part if name in self.given else None for name, part in zip("hc", dstate, strict=True))
        return Drawn(x, state, None if self.lengths is None else np.array(self.lengths, int), dy, dstate)


@dataclass
class Drawn:
    """The arguments of one case for forward and backward."""

    x: Any
    state: Any
    lengths: Any
    dy: Any
    dstate: Any

    def forward(self, layer: Any) -> tuple[dict[str, Any], Any]:
        """(outputs and final states by name, tape)."""
        y, state, tape = layer.forward(self.x, self.state, self.lengths)
        return {"y": y, **named("{}_n", state)}, tape

    def backward(self, layer: Any, tape: Any) -> dict[str, Any]:
        """All gradients by name."""
        dx, dstate, grads = layer.backward(tape, self.dy, self.dstate)
        inputs = named("d{}_0", dstate) | ({} if dx is None else {"dx": dx})
        return inputs | {f"d{name}": g for name, g in grads.items()}

    def run(self, layer: Any) -> dict[str, Any]:
        """All results of forward and backward, by name."""
        values, tape = self.forward(layer)
        return values | self.backward(layer, tape)


def named(template: str, state: Any) -> dict[str, Any]:
    """A state's arrays by name: h, and c for LSTM."""
    parts = state if isinstance(state, tuple) else (state,)
    return {template.format(name): part for name, part in zip("hc", parts, strict=False)}


def is_gradient(name: str) -> bool:
    return name.startswith("d")


# ----------------------------------------------------------------------------------------------------------- comparing
def assert_near(got: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Equal shapes, and every difference at most `tolerance` times the largest expected entry. NaN is never near."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    if not expected.size:
        return
    largest, off = np.abs(expected).max(), np.abs(got.astype(np.float64) - expected)
    worst = np.unravel_index(np.argmax(off), off.shape)  # argmax of NaN is the first NaN
    assert off[worst] <= tolerance * largest, (
        f"{what}{list(map(int, worst))}: {got[worst]!r}, expected {expected[worst]!r}: "
        f"off by {off[worst] / (largest or 1):.2g} of the largest entry, allowed {tolerance:g}"
    )


def assert_all_near(got: Mapping[str, Any], expected: Mapping[str, Any], values: float, gradients: float) -> None:
    """`assert_near` for every named array: outputs and states within `values`, gradients within `gradients`."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert_near(got[name], array, gradients if is_gradient(name) else values, name)


def assert_same_bits(got: Mapping[str, Any], expected: Mapping[str, Any], what: str = "") -> None:
    """Every named array has the same bits in both."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        a, b = np.ascontiguousarray(got[name]), np.ascontiguousarray(array)
        assert a.dtype == b.dtype and a.shape == b.shape, f"{what} {name}: {a.dtype} {a.shape}, not {b.dtype} {b.shape}"
        differing = int((a.view(np.uint8) != b.view(np.uint8)).sum())
        assert not differing, f"{what} {name}: {differing} of {a.nbytes} bytes differ"


# --------------------------------------------------------------------------------------------------------------- cases
def _each_activation() -> Iterator[Case]:
    """Every known activation in every role. T is small: unbounded ones grow."""
    for name in ACTIVATIONS:
        yield Case("rnn", 3, 3, 5, 7, {"nonlinearity": name})
        yield Case("gru", 3, 3, 5, 7, {"activations": (name, "tanh")})
        yield Case("gru", 3, 3, 5, 7, {"activations": ("sigmoid", name), "reset_after": False})
        yield Case("lstm", 3, 3, 5, 7, {"activations": (name, name, "tanh")})
        yield Case("lstm", 3, 3, 5, 7, {"activations": ("sigmoid", "tanh", name)})


RAGGED = (3, 0, 5, 1, 5, 2)
TWO = {"num_layers": 2, "bidirectional": True}

# Every option, with small sizes.
OPTIONS: tuple[Case, ...] = (
    *(Case(kind, 5, 3, 4, 6) for kind in LAYERS),
    *(Case(kind, 5, 3, 4, 6, {"bias": False}, state=False) for kind in LAYERS),
    *(Case(kind, 5, 6, 4, 6, {"bidirectional": True}, RAGGED) for kind in LAYERS),
    *(Case(kind, 5, 6, 4, 6, {**TWO, "batch_first": True}, RAGGED) for kind in LAYERS),
    *(Case(kind, 5, 6, 11, 6, TWO, RAGGED, ids=True) for kind in LAYERS),
    *(Case(kind, 4, 2, 4, 6, {"num_layers": 3}, state=False, given="y") for kind in LAYERS),
    *(Case(kind, 4, 2, 4, 6, TWO, given="h") for kind in LAYERS),
    Case("lstm", 4, 2, 4, 6, TWO, given="c"),
    Case("lstm", 4, 2, 4, 6, TWO, given="yc"),
    Case("lstm", 5, 3, 4, 6, {"proj_size": 2}),
    Case("lstm", 5, 6, 4, 6, {**TWO, "proj_size": 5, "bias": False}, RAGGED),
    Case("lstm", 5, 3, 4, 6, {"peepholes": True}),
    Case("lstm", 5, 6, 4, 6, {**TWO, "peepholes": True, "proj_size": 3}, RAGGED),
    Case("lstm", 5, 6, 11, 6, {"peepholes": True, "bias": False}, RAGGED, ids=True),
    Case("gru", 5, 3, 4, 6, {"reset_after": False}),
    Case("gru", 5, 6, 4, 6, {**TWO, "reset_after": False}, RAGGED),
    Case("gru", 5, 6, 11, 6, {"reset_after": False, "bias": False}, RAGGED, ids=True, given="y"),
    *_each_activation(),
    Case("lstm", 4, 3, 5, 7, {"activations": (("hard_sigmoid", 0.3, 0.4), ("scaled_tanh", 1.7, 0.6), "softsign")}),
    Case("gru", 4, 3, 5, 7, {"activations": ("hard_sigmoid", ("leaky_relu", 0.2))}),
    Case("rnn", 4, 3, 5, 7, {"nonlinearity": ("elu", 0.5)}),
    Case("rnn", 4, 3, 5, 7, {"nonlinearity": ("thresholded_relu", 0.25)}),
)

GATED = {"bidirectional": True, "clip": 0.5}
LSTM_SETS = (("sigmoid", "tanh", "tanh"), ("hard_sigmoid", ("elu", 0.7), "softsign"))
GRU_SETS = (("sigmoid", "tanh"), (("hard_sigmoid", 0.3, 0.4), ("leaky_relu", 0.2)))

# Options of other libraries' layers: clip, input_forget, one bias, activations of each direction.
EQUATIONS: tuple[Case, ...] = (
    Case("lstm", 5, 3, 4, 6, {"clip": 0.4}),
    Case("lstm", 5, 6, 4, 6, {**TWO, "clip": 0.3, "peepholes": True, "proj_size": 3}, RAGGED),
    Case("lstm", 5, 3, 4, 6, {"input_forget": True}),
    Case("lstm", 5, 6, 4, 6, {**TWO, "input_forget": True, "peepholes": True, "proj_size": 5}, RAGGED),
    Case("lstm", 5, 6, 11, 6, {**GATED, "input_forget": True, "peepholes": True, "bias": False}, RAGGED, ids=True),
    Case("lstm", 5, 3, 4, 6, {"single_bias": True}, given="h"),
    Case("lstm", 5, 6, 11, 6, {**TWO, "single_bias": True, "peepholes": True, "proj_size": 2}, RAGGED, ids=True),
    Case("lstm", 5, 6, 4, 6, {"bidirectional": True, "activations": LSTM_SETS}, RAGGED),
    Case("lstm", 4, 6, 4, 6, {**TWO, **GATED, "activations": LSTM_SETS, "input_forget": True, "single_bias": True}),
    Case("gru", 5, 3, 4, 6, {"clip": 0.4}),
    Case("gru", 5, 6, 4, 6, {**TWO, "clip": 0.3}, RAGGED),
    Case("gru", 5, 6, 11, 6, {**GATED, "reset_after": False, "single_bias": True}, RAGGED, ids=True),
    Case("gru", 5, 3, 4, 6, {"reset_after": False, "single_bias": True}),
    Case("gru", 5, 6, 4, 6, {"bidirectional": True, "activations": GRU_SETS}, RAGGED),
    Case("gru", 5, 6, 4, 6, {**TWO, **GATED, "activations": GRU_SETS, "reset_after": False}, RAGGED),
    Case("rnn", 5, 3, 4, 6, {"clip": 0.4}),
    Case("rnn", 5, 6, 4, 6, {**TWO, "clip": 0.3, "single_bias": True}, RAGGED),
    Case("rnn", 5, 6, 4, 6, {"bidirectional": True, "nonlinearity": ("tanh", ("elu", 0.5))}, RAGGED),
    Case("rnn", 5, 6, 11, 6, {**GATED, "nonlinearity": ("relu", "sigmoid"), "bias": False}, RAGGED, ids=True),
    *(Case("rnn", 4, 3, 5, 7, {"nonlinearity": name, "clip": 0.4}) for name in ACTIVATIONS),
    Case("rnn", 4, 3, 5, 7, {"nonlinearity": ("scaled_tanh", -1.5, 0.7), "clip": 0.4}),
    Case("rnn", 4, 3, 5, 7, {"nonlinearity": ("affine", 0.0, 0.3)}),
    Case("rnn", 4, 3, 5, 7, {"nonlinearity": ("hard_sigmoid", -0.3, 0.4)}),
    Case("rnn", 4, 3, 5, 7, {"nonlinearity": ("thresholded_relu", -0.2)}),
)

# Empty input, and input of one step or one sequence.
EMPTY: tuple[Case, ...] = (
    *(Case(kind, 0, 3, 4, 6, TWO) for kind in LAYERS),
    *(Case(kind, 3, 0, 4, 6, TWO) for kind in LAYERS),
    *(Case(kind, 3, 2, 4, 6, TWO, (0, 0)) for kind in LAYERS),
    *(Case(kind, 1, 1, 1, 1) for kind in LAYERS),
    Case("lstm", 0, 2, 4, 6, ids=True),
)

# Sizes that fit no vector, block or tile.
SIZES: tuple[Case, ...] = (
    *(Case(kind, 3, B, I, H) for kind in LAYERS for B, I, H in (  # noqa: E741
        (1, 1, 8), (1, 7, 16), (1, 33, 129), (2, 9, 31), (3, 8, 8), (4, 3, 9), (5, 17, 17), (7, 31, 33), (8, 16, 64),
        (9, 100, 7), (16, 129, 16), (17, 1, 100), (31, 33, 3), (33, 7, 1), (100, 3, 31),
    )),
    *(Case(kind, 33, 1, 9, 17) for kind in LAYERS),
    *(Case(kind, 100, 3, 8, 33, state=False) for kind in LAYERS),
    *(Case(kind, 31, 7, 17, 33, {"bidirectional": True}, (0, 31, 1, 16, 30, 31, 9)) for kind in LAYERS),
    *(Case(kind, 9, 33, 100, 17, TWO, tuple(t % 10 for t in range(33)), ids=True) for kind in LAYERS),
    Case("lstm", 7, 9, 17, 33, {"proj_size": 1}),
    Case("lstm", 7, 9, 17, 33, {"proj_size": 17, "bidirectional": True}, (7, 1, 0, 3, 3, 7, 2, 5, 6)),
    Case("lstm", 7, 17, 7, 100, {"proj_size": 31, "peepholes": True}),
    Case("lstm", 7, 9, 16, 129, {"peepholes": True}),
    Case("gru", 7, 9, 17, 33, {"reset_after": False}, (7, 1, 0, 3, 3, 7, 2, 5, 6)),
    Case("gru", 7, 33, 9, 129, {"reset_after": False}),
    Case("lstm", 4, 3, 1000, 31, ids=True),
    Case("lstm", 5, 64, 128, 256),
)  # fmt: skip

CASES = OPTIONS + EQUATIONS + EMPTY + SIZES
