"""What all optimisers share: `Optimizer`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from .._backends import module
from ..gradients import SparseGradient
from ..layer import Layer
from ..layout import Array
from ..quantise import check_floats
from ..validation import number
from .clipping import Grads, as_list, compiled, describe


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
        for layer in self.layers:
            check_floats(layer, type(self).__name__)
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
        """The slots that this optimiser uses."""
        return self.SLOTS

    def _coefficients(self) -> dict[str, float]:
        """Coefficients of this step, the same for all parameters: fields of C's fl_rule. `steps` counts the step."""
        raise NotImplementedError

    def _update(self, n: dict[str, float], p: Array, g: Array, slots: dict[str, Array]) -> None:
        """Change p and the slots in place by the gradient g; n are `_coefficients`."""
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
        coefficients = self._coefficients()
        for layer, of_layer, slots in zip(self.layers, checked, self._slots, strict=True):
            with layer.update() as params:
                self._step_layer(compiled(module(layer.backend)), coefficients, params, of_layer, slots)

    def _step_layer(
        self,
        c: ModuleType | None,
        coefficients: dict[str, float],
        params: dict[str, Array],
        grads: Mapping[str, Any],
        slots: dict[str, dict[str, Array]],
    ) -> None:
        together = []  # arrays that C updates in one call
        for name, p in params.items():
            g = grads[name]
            if isinstance(g, SparseGradient):
                if self._supports_sparse():
                    update_columns(c, p, g, coefficients["lr"])
                    continue
                g = g.dense()
            g = np.ascontiguousarray(g, p.dtype)
            if c:
                together.append((p, g, *(slots[name].get(slot) for slot in self.SLOTS)))
            else:
                self._update(coefficients, p, g, slots[name])
        if c and together:
            c.update(self.RULE, coefficients, together)

    def _supports_sparse(self) -> bool:
        """Whether a gradient of 0 changes nothing, so that a step may skip the ids that did not occur."""
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
            wrong += [
                f"{name} has {describe(g)}, expected floating-point numbers of shape {shapes.get(name)}"
                for name, g in of_layer.items()
                if not fits(g, shapes.get(name))
            ]
        if wrong:
            raise ValueError("gradients do not fit the layers:\n  " + "\n  ".join(wrong))
        return given

    def state_dict(self) -> dict[str, Array]:
        """Copies of ``steps``, ``lr`` and the arrays kept: a run that loads them continues with the same bits.

        Keys of the arrays are ``{layer's place}.{parameter}.{slot}``.
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
        """Continue from a `state_dict`.

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


def fits(g: Any, shape: tuple[int, ...] | None) -> bool:
    """Whether g is a gradient, of this shape where one is given."""
    numbers = g.rows if isinstance(g, SparseGradient) else g
    return isinstance(numbers, np.ndarray) and numbers.dtype.kind == "f" and (shape is None or g.shape == shape)


def update_columns(c: ModuleType | None, p: Array, g: SparseGradient, lr: float) -> None:
    """p -= lr * g in the columns of the ids seen."""
    if c:
        c.update_columns(p, g.ids, np.ascontiguousarray(g.rows, p.dtype), lr)
    else:
        p[:, g.ids] -= lr * g.rows.T.astype(p.dtype, copy=False)
