"""Optimisers and gradient clipping, with PyTorch's arithmetic.

Gradients come as `backward` gives them: a dict for one layer, a list of dicts for several, in the layers' order.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from ._backends import choose, module, provides
from .layer import Layer, SparseGradient
from .layout import Array
from .validation import flag, is_real, number

Grads = Mapping[str, Array] | Sequence[Mapping[str, Array]]


def describe(value: Any) -> str:
    return f"shape {value.shape} and dtype {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


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
        for name, given in of_layer.items():
            g = given.rows if isinstance(given, SparseGradient) else given
            if not isinstance(g, np.ndarray) or g.dtype.kind != "f":
                cure = ": convert it with g.astype('float32')" if is_real(getattr(g, "dtype", np.dtype(object))) else ""
                raise TypeError(f"gradient {name} must be an array of floating-point numbers, got {describe(g)}{cure}")
            if not g.flags.writeable:
                raise ValueError(
                    f"gradient {name} of shape {g.shape} is read-only and cannot be clipped in place: copy it"
                )
            arrays.append(g)
    return arrays


def compiled(backend: ModuleType) -> ModuleType | None:
    """The backend, if it has functions of its own that update, sum and scale float32 arrays."""
    return backend if provides(backend, "optimisers") else None


def fits_compiled(a: Array) -> bool:
    return a.dtype == np.float32 and a.flags.c_contiguous and a.dtype.isnative


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
    measures_only = isinstance(max_norm, (float, np.floating)) and max_norm == math.inf
    max_norm = math.inf if measures_only else number(max_norm, "max_norm")
    arrays = writable_arrays(grads)
    c = compiled(choose("auto", "float32"))
    if c and all(map(fits_compiled, arrays)):
        norm = math.sqrt(c.square_sum(arrays))
    else:
        c, norm = None, math.sqrt(square_sum(arrays))
    factor = max_norm / (norm + 1e-6)
    if math.isfinite(norm) and factor < 1:
        if c:
            c.scale(arrays, factor)
        else:
            for g in arrays:
                g *= g.dtype.type(factor)
    return norm


SUMMED = 16384  # numbers of a block, which stay in the cache; FL_SPAN_BLOCK in csrc/tuning.h


def square_sum(arrays: Sequence[Array]) -> float:
    """Sum of squares in float64: eight sums for each block, and these one after another, in C's order."""
    total = 0.0
    for a in arrays:
        flat = a.reshape(-1)
        for at in range(0, flat.size, SUMMED):
            squares = np.zeros(-(-min(SUMMED, flat.size - at) // 8) * 8)
            np.square(flat[at : at + SUMMED], out=squares[: flat.size - at], dtype=np.float64)
            s = squares.reshape(-1, 8).sum(axis=0).tolist()
            total += ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]))
    return total


# ---------------------------------------------------------------------------------------------------------- optimisers
class Optimizer:
    """Changes the parameters of some layers by their gradients. Use `SGD`, `Adam`, `AdamW`, `RMSprop` or `Adagrad`.

    Layers of backend C are updated by its kernels, the others by `_update` here: the same operations in the same order,
    and so the same bits. (Numbers too small for float32's normal ones are 0 in C.)

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

    RULE: ClassVar[str]  # the C kernel's name
    SLOTS: ClassVar[tuple[str, ...]] = ()  # arrays that may be kept for every parameter, in the C kernel's order

    def __init__(self, layers: Layer | Sequence[Layer], lr: float) -> None:
        self.layers = [layers] if isinstance(layers, Layer) else list(layers)
        if not self.layers or not all(isinstance(layer, Layer) for layer in self.layers):
            raise TypeError(f"layers must be a fastlstm layer or a list of them, got {layers!r}")
        if len({id(layer) for layer in self.layers}) < len(self.layers):
            raise ValueError("layers names one layer twice; each step would change it twice")
        self.lr = lr
        self.steps = 0
        self._slots = [
            {name: {slot: np.zeros_like(p) for slot in self._kept()} for name, p in layer._live().items()}
            for layer in self.layers
        ]

    def __copy__(self) -> Any:
        """Another optimiser of the same layers; arrays of its own, since each step changes them in place."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__, layers=list(self.layers), _slots=copy.deepcopy(self._slots))
        return other

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

    def _numbers(self) -> dict[str, float]:
        """What is the same for all parameters in this step (`steps` counts it already): fields of C's fl_rule."""
        raise NotImplementedError

    def _update(self, n: dict[str, float], p: Array, g: Array, slots: dict[str, Array]) -> None:
        """Change p and the slots in place by the gradient g; n are `_numbers`."""
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
        numbers = self._numbers()
        for layer, of_layer, slots in zip(self.layers, checked, self._slots, strict=True):
            with layer.update() as params:
                self._step_layer(compiled(module(layer.backend)), numbers, params, of_layer, slots)

    def _step_layer(
        self,
        c: ModuleType | None,
        numbers: dict[str, float],
        params: dict[str, Array],
        grads: Mapping[str, Any],
        slots: dict[str, dict[str, Array]],
    ) -> None:
        together = []  # what C does in one call
        for name, p in params.items():
            g = grads[name]
            if isinstance(g, SparseGradient):
                if self._leaves_the_unseen():
                    update_columns(c, p, g, numbers["lr"])
                    continue
                g = g.dense()
            g = np.ascontiguousarray(g, p.dtype)
            if c:
                together.append((p, g, *(slots[name].get(slot) for slot in self.SLOTS)))
            else:
                self._update(numbers, p, g, slots[name])
        if c and together:
            c.update(self.RULE, numbers, together)

    def _leaves_the_unseen(self) -> bool:
        """Whether a gradient of 0 changes nothing, so that ids that did not occur can be left alone."""
        return False

    def _check(self, grads: Any) -> list[Mapping[str, Array]]:
        given = as_list(grads)
        if len(given) != len(self.layers):
            raise ValueError(f"got gradients of {len(given)} layer(s), expected {len(self.layers)}: {self.layers}")
        wrong = []
        for layer, of_layer in zip(self.layers, given, strict=True):
            shapes = {name: p.shape for name, p in layer._live().items()}
            wrong += [f"missing: {name} {shape} of {layer!r}" for name, shape in shapes.items() if name not in of_layer]
            wrong += [f"unexpected: {name}, which {layer!r} has not" for name in of_layer if name not in shapes]
            for name, g in of_layer.items():
                kind = (
                    g.rows.dtype.kind if isinstance(g, SparseGradient) else getattr(g, "dtype", np.dtype(object)).kind
                )
                fits = (
                    isinstance(g, (np.ndarray, SparseGradient)) and kind == "f" and g.shape == shapes.get(name, g.shape)
                )
                expected = f"floating-point numbers of shape {shapes.get(name)}"
                wrong += [] if fits else [f"{name} has {describe(g)}, expected {expected}"]
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


def update_columns(c: ModuleType | None, p: Array, g: SparseGradient, lr: float) -> None:
    """p -= lr * g, where g is not 0."""
    if c:
        c.update_columns(p, g.ids, np.ascontiguousarray(g.rows, p.dtype), lr)
    else:
        p[:, g.ids] -= lr * g.rows.T.astype(p.dtype, copy=False)


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

    def _leaves_the_unseen(self) -> bool:
        return not self.momentum and not self.weight_decay

    def _numbers(self) -> dict[str, float]:
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

    def _numbers(self) -> dict[str, float]:
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

    def _numbers(self) -> dict[str, float]:
        return super()._numbers() | {"decay": 0.0, "keep": 1 - self.lr * self.weight_decay}


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

    def _numbers(self) -> dict[str, float]:
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

    def _numbers(self) -> dict[str, float]:
        lr = self.lr / (1 + (self.steps - 1) * self.lr_decay)
        return {"lr": lr, "decay": self.weight_decay, "eps": self.eps}

    def _update(self, n: dict[str, float], p: Array, g: Array, slots: dict[str, Array]) -> None:
        g = decayed(n, p, g)
        s = slots["sum"]
        s += g * g
        p -= n["lr"] * (g / (np.sqrt(s) + n["eps"]))
