"""Named parameters, the rules by which they change, and what a training step passes round: tapes and gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from .forksafe import Lock
from .layout import Array
from .packing import Batch
from .validation import is_real


def arrays_of(d: Mapping[str, Any]) -> tuple[dict[str, Array], list[str]]:
    """(the values as arrays, what is wrong with those that cannot be one)."""
    new: dict[str, Array] = {}
    wrong = []
    for name, value in d.items():
        try:
            # NumPy has no bfloat16, so that a tensor of it becomes an array only by way of float32.
            new[name] = np.asarray(
                value.float() if "bfloat16" in str(getattr(value, "dtype", "")) and hasattr(value, "float") else value
            )
        except (TypeError, ValueError, RuntimeError) as error:
            wrong.append(f"no array: {name} ({' '.join(str(error).split())})")
    return new, wrong


class Layer:
    """Named parameters, and the rules by which they change.

    Parameters change only through `load_state_dict`, the optimisers and `update`; each raises `version`, by which
    packed weights and tapes know whether they are still true.
    """

    _params: dict[str, Array]
    _version: int
    _lock: Lock
    _module: ModuleType
    training: bool

    def __init__(self) -> None:
        self._params = {}
        self._version = 0
        self._lock = Lock()
        self.training = True

    @property
    def version(self) -> int:
        """How often the parameters have changed."""
        return self._version

    @property
    def backend(self) -> str:
        """The backend in use."""
        name: str = self._module.__name__.rpartition(".")[2]
        return name

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters, by PyTorch's names, in PyTorch's shapes and gate order."""
        with self._lock:
            return {name: p.copy() for name, p in self._params.items()}

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """Copy the given arrays into the parameters, casting them to the layer's dtype.

        Raises
        ------
        TypeError
            d is no mapping.
        RuntimeError
            Missing, unexpected or misshapen keys, or values that are no real numbers; nothing has changed then.
        """
        if not isinstance(d, Mapping):
            raise TypeError(f"a state_dict is a mapping from names to arrays, got {type(d).__name__}")
        new, wrong = arrays_of(d)
        wrong += [f"missing: {name} {p.shape}" for name, p in self._params.items() if name not in d]
        wrong += [f"unexpected: {name} {value.shape}" for name, value in new.items() if name not in self._params]
        wrong += [
            f"misshapen: {name} has shape {new[name].shape}, expected {p.shape}"
            for name, p in self._params.items()
            if name in new and new[name].shape != p.shape
        ]
        wrong += [
            f"not numbers: {name} has dtype {value.dtype}" for name, value in new.items() if not is_real(value.dtype)
        ]
        if wrong:
            raise RuntimeError(f"state does not fit {self!r}:\n  " + "\n  ".join(wrong))
        with self.update() as params:
            for name, value in new.items():
                params[name][...] = value

    @contextmanager
    def update(self) -> Iterator[dict[str, Array]]:
        """The live parameters, to be changed in place: ``with layer.update() as params: params[name] *= 0.9``.

        Raises
        ------
        RuntimeError
            At the end of the block: an array or number was put into the dictionary that fits no parameter.
        """
        with self._lock:
            params = dict(self._params)
            try:
                yield params
            finally:
                self._version += 1  # even where the block failed: it may have changed some
                wrong = self._put(params)
        if wrong:
            raise RuntimeError(f"what was put into {self!r} does not fit, and none was taken:\n  " + "\n  ".join(wrong))

    def _put(self, params: dict[str, Any]) -> list[str]:
        """Copy the arrays put into `update`'s dictionary into the parameters, or return what is wrong with them."""
        put = {name: a for name, a in params.items() if a is not self._params.get(name)}
        new, wrong = arrays_of({name: a for name, a in put.items() if name in self._params})
        wrong += [f"unexpected: {name}" for name in put if name not in self._params]
        for name, a in new.items():
            p = self._params[name]
            fits = is_real(a.dtype) and (a.shape == p.shape or a.ndim == 0)
            wrong += [] if fits else [f"{name} has dtype {a.dtype} and shape {a.shape}, expected {p.shape}"]
        for name, a in new.items() if not wrong else ():
            self._params[name][...] = a
        return wrong

    def train(self) -> Any:
        """`forward` drops from now on (the state after construction)."""
        self.training = True
        return self

    def eval(self) -> Any:
        """`forward` no longer drops."""
        self.training = False
        return self

    def _check_tape(self, tape: Any) -> None:
        """Raise RuntimeError unless the tape can serve this layer now, TypeError where it is none."""
        if not isinstance(tape, Tape):
            raise TypeError(f"backward needs the tape that this layer's forward returned, got {type(tape).__name__}")
        if tape.layer is not self:
            raise RuntimeError("this tape was made by another layer; backward needs the one from this layer's forward")
        if tape.used:
            raise RuntimeError("this tape was used by an earlier backward and serves once: call forward again")
        if tape.version != self.version:
            raise RuntimeError(
                f"the weights have changed since forward made this tape (version {tape.version}, now {self.version}): "
                "call forward again, and update the weights after backward"
            )

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_packed", "_module")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()

    def __copy__(self) -> Any:
        return copy.deepcopy(self)  # two layers that share parameters would change behind each other's version


@dataclass
class Tape:
    """What `forward` kept for one `backward`. It serves once, and only while the weights are those that made it."""

    layer: Layer
    version: int
    batch: Batch
    unbatched: bool
    x: list[Array]  # of each layer: its input rows (N, I)
    kept: list[Any]  # of each layer: (D, ...) its directions' tapes or, of each, the states before its stretches
    masks: list[Array | None]  # of each layer: dropout's factors on its output, (N, D*R)
    checkpoint_every: int | None = None  # steps of a stretch
    used: bool = False

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a tape serves one backward of the layer that made it, and can be neither copied nor pickled: call "
            "layer.forward(x) again for another"
        )


@dataclass(frozen=True)
class SparseGradient:
    """The gradient of an input matrix (G*H, V) that token ids went through: zeros but in the columns of the ids seen.

    Optimisers and clipping take it for an array of that shape, and touch only what is in it.

    Parameters
    ----------
    ids : (n,) int64 array
        The ids seen, sorted, each once.
    rows : (n, G*H) array
        Their columns.
    shape : (int, int)
        Of the whole.
    """

    ids: Array
    rows: Array
    shape: tuple[int, int]

    def dense(self) -> Array:
        """The whole matrix."""
        whole = np.zeros(self.shape, self.rows.dtype)
        whole[:, self.ids] = self.rows.T
        return whole
