"""The reference in float64 against central finite differences: every cell, every option, every gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import EMPTY, EQUATIONS, OPTIONS, SIZES, TOLERANCE, Case, Drawn, assert_near, named

from fastlstm._backends import numpy as reference
from fastlstm._backends.numpy import activations, gradients, recurrent
from fastlstm.spec import ACTIVATIONS, Activation

STEP = 1e-5  # error of a central difference: STEP^2 f'''/6 from its truncation, 1e-16 f/STEP from rounding
MARGIN = 1e-4  # a sample may not lie nearer to a kink than this, or a difference would straddle it
ENTRIES = 24  # entries of each array that are compared; all of a smaller array

# Inputs at which an activation or its derivative jumps, by alpha and beta.
KINKS = {
    "relu": lambda a, b: (0.0,),
    "leaky_relu": lambda a, b: (0.0,),
    "elu": lambda a, b: (0.0,),
    "softsign": lambda a, b: (0.0,),
    "thresholded_relu": lambda a, b: (a,),
    "hard_sigmoid": lambda a, b: (-b / a, (1 - b) / a),
    "hard_sigmoid_keras2": lambda a, b: (-b / a, (1 - b) / a),
}


class KinkMeter:
    """A replacement of the reference's `act` and `gate` that keeps the least distance of their inputs to a kink."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.nearest = np.inf
        self.true_act, self.true_gate = activations.act, activations.gate
        patch.setattr(activations, "act", self.act)
        patch.setattr(recurrent, "act", self.act)
        patch.setattr(recurrent, "gate", self.gate)

    def gate(self, f: Activation, a: Any, clip: Any, ends: Any) -> Any:
        """The ends of clipping are kinks too."""
        if clip is not None:
            self.nearest = min(self.nearest, np.abs(np.abs(a) - clip).min(initial=np.inf))
        return self.true_gate(f, a, clip, ends)

    def act(self, f: Activation, x: Any) -> Any:
        for kink in KINKS.get(f.name, lambda a, b: ())(f.alpha, f.beta):
            self.nearest = min(self.nearest, np.abs(x - kink).min(initial=np.inf))
        return self.true_act(f, x)


def smooth_sample(case: Case, layer: Any, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The first of the case's samples that stays away from all kinks."""
    for seed in range(20):
        drawn = case.draw("float64", seed)
        with monkeypatch.context() as patch:
            meter = KinkMeter(patch)
            drawn.forward(layer)
        if meter.nearest > MARGIN:
            return drawn
    pytest.fail("no sample away from the kinks")


def loss(layer: Any, drawn: Drawn) -> float:
    """A scalar with the gradients dy and dstate: the sum of outputs and final states, weighted with them."""
    y, state, _ = layer.forward(drawn.x, drawn.state, drawn.lengths)
    pairs = [(y, drawn.dy)]
    if drawn.dstate is not None:
        pairs += zip(named("{}", state).values(), named("{}", drawn.dstate).values(), strict=True)
    return sum(float((value * weight).sum()) for value, weight in pairs if weight is not None)


def difference(layer: Any, drawn: Drawn, array: Any, at: tuple[int, ...], params: bool) -> float:
    """Central difference of the loss by one entry of an input or, through `update`, of a parameter."""
    values = []
    kept = array[at]
    for step in (STEP, -STEP):
        if params:
            with layer.update():
                array[at] = kept + step
        else:
            array[at] = kept + step
        values.append(loss(layer, drawn))
    array[at] = kept
    if params:
        with layer.update():
            pass
    return (values[0] - values[1]) / (2 * STEP)


def check_gradients(case: Case, layer: Any, drawn: Drawn) -> None:
    """Compare every gradient of the case, entry by entry, with differences of the loss."""
    if drawn.state is None:  # a state of zeros, so that differences by its entries can be taken
        zeros = Case(case.kind, 0, case.B, case.I, case.H, case.options).draw("float64").run(layer)
        drawn.state = tuple(0 * zeros[f"{n}_n"] for n in "hc") if case.kind == "lstm" else 0 * zeros["h_n"]
    _, tape = drawn.forward(layer)
    gradients = drawn.backward(layer, tape)
    with layer.update() as params:
        pass
    inputs = {"dx": drawn.x} | named("d{}_0", drawn.state)
    rng = np.random.default_rng(7)
    assert gradients.keys() == (inputs.keys() - ({"dx"} if case.ids else set())) | {f"d{name}" for name in params}
    for name, gradient in gradients.items():
        array = inputs.get(name, params.get(name[1:]))
        flat = rng.permutation(gradient.size)[:ENTRIES]
        entries = [tuple(map(int, at)) for at in zip(*np.unravel_index(flat, gradient.shape), strict=True)]
        numeric = [difference(layer, drawn, array, at, name not in inputs) for at in entries]
        largest = np.abs(gradient).max(initial=0)
        for at, expected in zip(entries, numeric, strict=True):
            off = abs(gradient[at] - expected)
            assert off <= TOLERANCE["finite differences"] * largest, (
                f"{name}{list(at)}: {gradient[at]!r}, differences give {expected!r}: off by {off / largest:.2g} of the "
                f"largest entry"
            )


# The reference's code does not depend on sizes: a few larger ones are enough.
LARGE = [case for case in SIZES if case.H == 33 and case.T < 10 and case.B < 20]


@pytest.mark.parametrize("case", [*OPTIONS, *EQUATIONS, *EMPTY, *LARGE], ids=str)
def test_gradients_are_finite_differences(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = case.layer("float64", "numpy")
    check_gradients(case, layer, smooth_sample(case, layer, monkeypatch))


BREAKABLE = [
    ("lstm", "lstm_step_backward", 0),  # the gates' gradients
    ("lstm", "lstm_step_backward", 1),  # h's
    ("lstm", "lstm_step_backward", 2),  # c's
    ("gru", "gru_step_backward", 0),
    ("gru", "gru_step_backward", 1),
]


@pytest.mark.parametrize(("kind", "function", "result"), BREAKABLE)
def test_a_broken_gradient_is_seen(kind: str, function: str, result: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: it notices one entry that is off by a hundred-thousandth of the largest."""
    true = getattr(gradients, function)

    def broken(*args: Any) -> Any:
        results = true(*args)
        results[result][0, 0] += 1e-5 * np.abs(results[result]).max()
        return results

    case = Case(kind, 3, 1, 2, 3)
    layer, drawn = case.layer("float64", "numpy"), case.draw("float64")
    check_gradients(case, layer, drawn)
    monkeypatch.setattr(gradients, function, broken)
    with pytest.raises(AssertionError, match="differences give"):
        check_gradients(case, layer, drawn)


def test_every_activation_has_the_derivative_of_its_function() -> None:
    """Between the kinks, over the whole range of pre-activations, with alpha and beta other than the defaults."""
    for name in reference.FUNCTIONS:
        f = Activation(name, 0.7, 0.3)
        x = np.linspace(-6, 6, 999)
        away = np.ones_like(x, bool)
        for kink in KINKS.get(name, lambda a, b: ())(f.alpha, f.beta):
            away &= np.abs(x - kink) > MARGIN
        slope = (reference.act(f, x + STEP) - reference.act(f, x - STEP)) / (2 * STEP)
        assert_near(reference.dact(f, reference.act(f, x))[away], slope[away], 1e-8, name)


def test_activations_are_their_formulas() -> None:
    """Values at points worked out by hand, the ends of float64's range among them."""
    big = 1e300
    points = {
        "sigmoid": ((0, 0.5), (2, 0.8807970779778823), (-2, 0.11920292202211755), (big, 1), (-big, 0)),
        "tanh": ((0, 0), (1, 0.7615941559557649), (-big, -1)),
        "relu": ((2, 2), (-2, 0), (0, 0)),
        "identity": ((2, 2), (-2, -2)),
        "hard_sigmoid": ((0, 0.5), (3, 1), (-3, 0), (1.5, 0.75), (big, 1), (-big, 0)),
        "hard_sigmoid_keras2": ((0, 0.5), (2.5, 1), (-2.5, 0), (1, 0.7)),
        "affine": ((2, 2), (-3, -3)),
        "leaky_relu": ((2, 2), (-2, -0.02)),
        "thresholded_relu": ((2, 2), (1, 1), (0.99, 0), (-2, 0)),
        "scaled_tanh": ((1, 0.7615941559557649), (0, 0)),
        "elu": ((2, 2), (-1, -0.6321205588285577), (-big, -1)),
        "softsign": ((1, 0.5), (-3, -0.75)),
        "softplus": ((0, 0.6931471805599453), (big, big), (-big, 0), (1, 1.3132616875182228)),
    }
    assert points.keys() == ACTIVATIONS.keys() == reference.FUNCTIONS.keys() == reference.DERIVATIVES.keys()
    for name, pairs in points.items():
        x, y = np.array(pairs, float).T
        with np.errstate(over="raise", invalid="raise"):
            np.testing.assert_allclose(reference.act(ACTIVATIONS[name], x), y, rtol=1e-14, atol=1e-16, err_msg=name)
    x = np.array([0.5, -0.5])
    scaled, affine = reference.act(Activation("scaled_tanh", 1.7, 0.6), x), reference.act(Activation("affine", 2, 1), x)
    np.testing.assert_allclose(scaled, 1.7 * np.tanh(0.6 * x), rtol=1e-15)
    np.testing.assert_array_equal(affine, [2, 0])
