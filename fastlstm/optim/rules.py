"""The optimisers, with PyTorch's arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..layer import Layer
from ..layout import Array
from ..validation import flag, number
from .base import Optimizer


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
    weight_decay : float
        Adds weight_decay * p to the gradient.
    """

    RULE = "sgd"
    SLOTS = ("momentum",)

    def __init__(
        self,
        layers: Layer | Sequence[Layer],
        lr: float = 1e-3,
        momentum: float = 0.0,
        nesterov: bool = False,
        *,
        weight_decay: float = 0.0,
    ) -> None:
        self.momentum, self.nesterov = number(momentum, "momentum"), flag(nesterov, "nesterov")
        self.weight_decay = number(weight_decay, "weight_decay")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=True needs a momentum above 0")
        super().__init__(layers, lr)

    def _kept(self) -> tuple[str, ...]:
        return self.SLOTS if self.momentum else ()

    def _supports_sparse(self) -> bool:
        return not self.momentum and not self.weight_decay

    def _coefficients(self) -> dict[str, float]:
        return {"lr": self.lr, "decay": self.weight_decay, "momentum": self.momentum, "nesterov": self.nesterov}

    def _update(self, n: dict[str, float], p: Array, g: Array, slots: dict[str, Array]) -> None:
        g = decayed(n, p, g)
        if slots:
            m = slots["momentum"]
            m *= n["momentum"]
            m += g
            g = g + n["momentum"] * m if self.nesterov else m
        p -= n["lr"] * g


def decayed(n: dict[str, float], p: Array, g: Array) -> Array:
    """The gradient of the loss and of the penalty decay * |p|^2 / 2."""
    return g + n["decay"] * p if n["decay"] else g


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

    RULE = "adam"
    SLOTS = ("m", "v")

    def __init__(
        self,
        layers: Layer | Sequence[Layer],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"betas must be a pair of numbers (b1, b2), got {betas!r}")
        b1, b2 = betas
        self.betas = number(b1, "betas[0]", below=1), number(b2, "betas[1]", below=1)
        self.eps, self.weight_decay = number(eps, "eps"), number(weight_decay, "weight_decay")
        super().__init__(layers, lr)

    def _coefficients(self) -> dict[str, float]:
        b1, b2 = self.betas
        return {
            "lr": self.lr / (1 - b1**self.steps),
            "decay": self.weight_decay,
            "keep": 1.0,
            "rate1": 1 - b1,
            "beta2": b2,
            "rate2": 1 - b2,
            "root": math.sqrt(1 - b2**self.steps),
            "eps": self.eps,
        }

    def _update(self, n: dict[str, float], p: Array, g: Array, slots: dict[str, Array]) -> None:
        m, v = slots["m"], slots["v"]
        p *= n["keep"]
        g = decayed(n, p, g)
        m += n["rate1"] * (g - m)
        v *= n["beta2"]
        v += n["rate2"] * (g * g)
        p -= m / (np.sqrt(v) / n["root"] + n["eps"]) * n["lr"]


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019): p is first multiplied by 1 - lr * weight_decay.

    Parameters
    ----------
    layers, lr, betas, eps
        As `Adam`.
    weight_decay : float
    """

    def __init__(
        self,
        layers: Layer | Sequence[Layer],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(layers, lr, betas, eps, weight_decay)

    def _coefficients(self) -> dict[str, float]:
        return super()._coefficients() | {"decay": 0.0, "keep": 1 - self.lr * self.weight_decay}


class RMSprop(Optimizer):
    """RMSprop (Tieleman & Hinton 2012), as in PyTorch: v = alpha v + (1 - alpha) g^2;  p -= lr g / (sqrt(v) + eps).

    Parameters
    ----------
    layers : Layer, or list of Layer
    lr : float
    alpha : float
        At least 0 and below 1.
    eps : float
    weight_decay : float
        Adds weight_decay * p to the gradient.
    momentum : float
        Of the steps: b = momentum * b + g / (sqrt(v) + eps); p -= lr * b.
    centered : bool
        Take the square of the gradient's running mean off v (Graves 2013).
    """

    RULE = "rmsprop"
    SLOTS = ("v", "momentum", "mean")

    def __init__(
        self,
        layers: Layer | Sequence[Layer],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        self.alpha, self.eps = number(alpha, "alpha", below=1), number(eps, "eps")
        self.weight_decay, self.momentum = number(weight_decay, "weight_decay"), number(momentum, "momentum")
        self.centered = flag(centered, "centered")
        super().__init__(layers, lr)

    def _kept(self) -> tuple[str, ...]:
        return ("v", *(["momentum"] if self.momentum else []), *(["mean"] if self.centered else []))

    def _coefficients(self) -> dict[str, float]:
        n = {"lr": self.lr, "decay": self.weight_decay, "momentum": self.momentum, "eps": self.eps}
        return n | {"beta2": self.alpha, "rate2": 1 - self.alpha}

    def _update(self, n: dict[str, float], p: Array, g: Array, slots: dict[str, Array]) -> None:
        g = decayed(n, p, g)
        v = square = slots["v"]
        v *= n["beta2"]
        v += n["rate2"] * (g * g)
        if self.centered:
            mean = slots["mean"]
            mean += n["rate2"] * (g - mean)
            square = v - mean * mean
        step = g / (np.sqrt(square) + n["eps"])
        if self.momentum:
            m = slots["momentum"]
            m *= n["momentum"]
            m += step
            step = m
        p -= n["lr"] * step


class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011), as in PyTorch: s += g^2;  p -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps).

    Parameters
    ----------
    layers : Layer, or list of Layer
    lr, lr_decay : float
    weight_decay : float
        Adds weight_decay * p to the gradient.
    initial_accumulator_value : float
        Of s.
    eps : float
    """

    RULE = "adagrad"
    SLOTS = ("sum",)

    def __init__(
        self,
        layers: Layer | Sequence[Layer],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        self.lr_decay, self.weight_decay = number(lr_decay, "lr_decay"), number(weight_decay, "weight_decay")
        self.eps = number(eps, "eps")
        super().__init__(layers, lr)
        for array in self._arrays().values():
            array += number(initial_accumulator_value, "initial_accumulator_value")

    def _coefficients(self) -> dict[str, float]:
        lr = self.lr / (1 + (self.steps - 1) * self.lr_decay)
        return {"lr": lr, "decay": self.weight_decay, "eps": self.eps}

    def _update(self, n: dict[str, float], p: Array, g: Array, slots: dict[str, Array]) -> None:
        g = decayed(n, p, g)
        s = slots["sum"]
        s += g * g
        p -= n["lr"] * (g / (np.sqrt(s) + n["eps"]))
