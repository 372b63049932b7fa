"""Optimisers and gradient clipping, with PyTorch's arithmetic.

Gradients come as `backward` gives them: a dict for one layer, a list of dicts for several, in the layers' order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from .layers import Layer
from .layout import Array

Grads = Mapping[str, Array] | Sequence[Mapping[str, Array]]


def describe(value: Any) -> str:
    return f"shape {value.shape} and dtype {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def number(value: Any, name: str, least: float = 0.0, below: float = math.inf) -> float:
    """value as a float in [least, below), or an error."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not least <= value < below:
        limit = "finite" if below == math.inf else f"below {below:g}"
        raise ValueError(f"{name} must be at least {least:g} and {limit}, got {value!r}")
    return float(value)


def as_list(grads: Any) -> list[Mapping[str, Array]]:
    """The gradients of each layer, or TypeError."""
    given = [grads] if isinstance(grads, Mapping) else grads
    if isinstance(given, (list, tuple)) and all(isinstance(g, Mapping) for g in given):
        return list(given)
    got = [type(g).__name__ for g in given] if isinstance(given, (list, tuple)) else type(given).__name__
    raise TypeError(f"gradients must be the dict that backward gives, or a list of such dicts by layer; got {got}")


# ------------------------------------------------------------------------------------------------------------ clipping
def writable_arrays(grads: Any) -> list[Array]:
    """All gradients, which must be floating-point arrays that can be changed in place."""
    arrays = []
    for of_layer in as_list(grads):
        for name, g in of_layer.items():
            if not isinstance(g, np.ndarray) or g.dtype.kind != "f":
                raise TypeError(f"gradient {name} must be an array of floating-point numbers, got {describe(g)}")
            if not g.flags.writeable:
                raise ValueError(
                    f"gradient {name} of shape {g.shape} is read-only and cannot be clipped in place: copy it"
                )
            arrays.append(g)
    return arrays


def clip_by_value(grads: Grads, limit: float) -> None:
    """Bring every entry into [-limit, limit], in place. NaN stays NaN.

    Parameters
    ----------
    grads : dict of arrays, or list of such dicts
    limit : float
        Not negative.
    """
    limit = number(limit, "limit")
    for g in writable_arrays(grads):
        np.clip(g, -limit, limit, out=g)


def clip_by_norm(grads: Grads, max_norm: float) -> float:
    """Scale all gradients together, in place, so that their global norm is at most `max_norm` (Pascanu et al. 2013).

    The factor is PyTorch's, max_norm / (norm + 1e-6), where that is below 1.

    Parameters
    ----------
    grads : dict of arrays, or list of such dicts
    max_norm : float
        Not negative; infinite to measure only.

    Returns
    -------
    norm : float
        Of all gradients together before clipping, summed in float64. Where it is NaN or infinite no factor can help:
        the gradients are left as they are, and the caller, who sees the norm, should skip the step.
    """
    max_norm = max_norm if max_norm == math.inf else number(max_norm, "max_norm")
    arrays = writable_arrays(grads)
    norm = math.sqrt(sum(square_sum(g) for g in arrays))
    factor = max_norm / (norm + 1e-6)
    if math.isfinite(norm) and factor < 1:
        for g in arrays:
            g *= g.dtype.type(factor)
    return norm


def square_sum(g: Array) -> float:
    """Sum of squares in float64, in pieces that stay in the cache."""
    flat = g.reshape(-1)
    pieces = (flat[at : at + 8192].astype(np.float64) for at in range(0, flat.size, 8192))
    return float(sum((piece * piece).sum() for piece in pieces))


# ---------------------------------------------------------------------------------------------------------- optimisers
class Optimizer:
    """Changes the parameters of some layers by their gradients. Use `SGD` or `Adam`.

    Parameters
    ----------
    layers : Layer, or list of Layer
    lr : float
        Learning rate; ``optimizer.lr`` may be assigned at any time.

    Raises
    ------
    TypeError, ValueError
        No layers, one layer twice, or a number out of its range.
    """

    SLOTS: ClassVar[tuple[str, ...]] = ()  # arrays kept for every parameter, all zeros at first

    def __init__(self, layers: Layer | Sequence[Layer], lr: float) -> None:
        self.layers = [layers] if isinstance(layers, Layer) else list(layers)
        if not self.layers or not all(isinstance(layer, Layer) for layer in self.layers):
            raise TypeError(f"layers must be a fastlstm layer or a list of them, got {layers!r}")
        if len({id(layer) for layer in self.layers}) < len(self.layers):
            raise ValueError("layers names one layer twice; each step would change it twice")
        self.lr = lr
        self.steps = 0
        self._slots = [
            {name: {slot: np.zeros_like(p) for slot in self._kept()} for name, p in layer._params.items()}
            for layer in self.layers
        ]

    @property
    def lr(self) -> float:
        """Learning rate; may be assigned at any time."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = number(value, "lr")

    def _kept(self) -> tuple[str, ...]:
        """The slots that this optimiser really uses."""
        return self.SLOTS

    def _update(self, p: Array, g: Array, slots: dict[str, Array]) -> None:
        """Change p and the slots in place by the gradient g; `steps` counts this step already."""
        raise NotImplementedError

    def step(self, grads: Grads) -> None:
        """Change all parameters in place by their gradients.

        Parameters
        ----------
        grads : dict of arrays, or list of such dicts
            `backward`'s, one for each layer in the order of `layers`. Not changed.

        Raises
        ------
        TypeError, ValueError
            A gradient is missing, unexpected, misshapen or no array; nothing has changed then.
        """
        checked = self._check(grads)
        self.steps += 1
        for layer, of_layer, slots in zip(self.layers, checked, self._slots, strict=True):
            with layer.update() as params:
                for name, p in params.items():
                    self._update(p, of_layer[name].astype(p.dtype, copy=False), slots[name])

    def _check(self, grads: Any) -> list[Mapping[str, Array]]:
        given = as_list(grads)
        if len(given) != len(self.layers):
            raise ValueError(f"got gradients of {len(given)} layer(s), expected {len(self.layers)}: {self.layers}")
        wrong = []
        for layer, of_layer in zip(self.layers, given, strict=True):
            shapes = {name: p.shape for name, p in layer._params.items()}
            wrong += [f"missing: {name} {shape} of {layer!r}" for name, shape in shapes.items() if name not in of_layer]
            wrong += [f"unexpected: {name}, which {layer!r} has not" for name in of_layer if name not in shapes]
            for name, g in of_layer.items():
                fits = isinstance(g, np.ndarray) and g.dtype.kind == "f" and g.shape == shapes.get(name, g.shape)
                wrong += [] if fits else [f"{name} has {describe(g)}, expected an array of shape {shapes.get(name)}"]
        if wrong:
            raise ValueError("gradients do not fit the layers:\n  " + "\n  ".join(wrong))
        return given

    def state_dict(self) -> dict[str, Array]:
        """Copies of all that a later run needs to go on exactly: ``steps``, ``lr`` and the arrays kept.

        Keys of the latter are ``{layer's place}.{parameter}.{slot}``.
        """
        state = {"steps": np.array(self.steps, np.int64), "lr": np.array(self.lr, np.float64)}
        return state | {key: array.copy() for key, array in self._arrays().items()}

    def _arrays(self) -> dict[str, Array]:
        return {
            f"{place}.{name}.{slot}": array
            for place, of_layer in enumerate(self._slots)
            for name, slots in of_layer.items()
            for slot, array in slots.items()
        }

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """Take up a `state_dict`.

        Raises
        ------
        RuntimeError
            Missing, unexpected or misshapen keys; nothing has changed then.
        """
        own = self.state_dict()
        new = {key: np.asarray(value) for key, value in d.items()}
        wrong = [f"missing: {key} {a.shape}" for key, a in own.items() if key not in new]
        wrong += [f"unexpected: {key} {a.shape}" for key, a in new.items() if key not in own]
        wrong += [
            f"misfit: {key} has {describe(new[key])}, expected {describe(a)}"
            for key, a in own.items()
            if key in new and (new[key].shape != a.shape or new[key].dtype != a.dtype)
        ]
        if wrong:
            raise RuntimeError(f"state does not fit {type(self).__name__} of {self.layers}:\n  " + "\n  ".join(wrong))
        self.lr, self.steps = float(new["lr"]), int(new["steps"])
        for key, array in self._arrays().items():
            array[...] = new[key]


class SGD(Optimizer):
    """Stochastic gradient descent: p -= lr * g, with momentum m = momentum * m + g; p -= lr * m.

    Parameters
    ----------
    layers : Layer, or list of Layer
    lr : float
    momentum : float
        Polyak (1964), in PyTorch's form; 0 keeps nothing.
    nesterov : bool
        p -= lr * (g + momentum * m): Sutskever et al. (2013).
    """

    SLOTS = ("momentum",)

    def __init__(
        self, layers: Layer | Sequence[Layer], lr: float, momentum: float = 0.0, nesterov: bool = False
    ) -> None:
        self.momentum, self.nesterov = number(momentum, "momentum"), bool(nesterov)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=True needs a momentum above 0")
        super().__init__(layers, lr)

    def _kept(self) -> tuple[str, ...]:
        return self.SLOTS if self.momentum else ()

    def _update(self, p: Array, g: Array, slots: dict[str, Array]) -> None:
        if self.momentum:
            m = slots["momentum"]
            m *= self.momentum
            m += g
            g = g + self.momentum * m if self.nesterov else m
        p -= self.lr * g


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), as in PyTorch.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Parameters
    ----------
    layers : Layer, or list of Layer
    lr : float
    betas : pair of floats
        b1 and b2, at least 0 and below 1.
    eps : float
    weight_decay : float
        Adds weight_decay * p to the gradient.
    """

    SLOTS = ("m", "v")

    def __init__(
        self,
        layers: Layer | Sequence[Layer],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        b1, b2 = betas
        self.betas = number(b1, "betas[0]", below=1), number(b2, "betas[1]", below=1)
        self.eps, self.weight_decay = number(eps, "eps"), number(weight_decay, "weight_decay")
        super().__init__(layers, lr)

    def _update(self, p: Array, g: Array, slots: dict[str, Array]) -> None:
        b1, b2 = self.betas
        if self.weight_decay:
            g = g + self.weight_decay * p
        m, v = slots["m"], slots["v"]
        m += (1 - b1) * (g - m)
        v *= b2
        v += (1 - b2) * (g * g)
        denominator = np.sqrt(v)
        denominator /= math.sqrt(1 - b2**self.steps)
        denominator += self.eps
        np.divide(m, denominator, out=denominator)
        denominator *= self.lr / (1 - b1**self.steps)
        p -= denominator
