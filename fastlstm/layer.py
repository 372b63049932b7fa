"""`Layer`: the base of everything with parameters. `Tape`: what its `forward` keeps for `backward`."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from . import _old_pickles
from ._backends import choose
from .configuration import Configurable
from .forksafe import Lock
from .layout import Array
from .quantise import Quantisation
from .validation import float_dtype, is_real


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor from its ``locals()``."""
    return {name: value for name, value in arguments.items() if name not in ("self", "__class__")}


def arrays_of(d: Mapping[str, Any]) -> tuple[dict[str, Array], list[str]]:
    """(the values as arrays, a message for each value that cannot be one)."""
    new: dict[str, Array] = {}
    wrong = []
    for name, value in d.items():
        try:
            # NumPy has no bfloat16: a tensor of it becomes an array by way of float32.
            new[name] = np.asarray(
                value.float() if "bfloat16" in str(getattr(value, "dtype", "")) and hasattr(value, "float") else value
            )
        except (TypeError, ValueError, RuntimeError) as error:
            wrong.append(f"no array: {name} ({' '.join(str(error).split())})")
    return new, wrong


class Layer(Configurable):
    """Named parameters, the rules by which they change, and the backend that computes with them.

    Parameters change only through `load_state_dict`, the optimisers and `update`; each raises `version`. Packed weights
    and tapes remember the version of their weights and compare it with the property, so a layer whose weights are owned
    elsewhere overrides `version`.

    A layer may have other layers as `children`; their parameters are its own too, as ``{child}.{parameter}``.

    A subclass gives every constructor argument an attribute of the same name (`to_config`, `from_config` and ``repr``
    read them there) and defines `_pack`. It calls `_connect` once it has the attributes that `_choose` reads.
    """

    name: str
    dtype: np.dtype[Any]
    training: bool
    _params: dict[str, Array]
    _version: int
    _lock: Lock
    _module: ModuleType
    _packed: tuple[int, Any] | None

    def __init__(self, dtype: Any, backend: str, children: Mapping[str, Layer] | None = None) -> None:
        self.name = type(self).__name__.lower()
        self.dtype = float_dtype(dtype)
        self.training = True
        self._backend = backend
        self._children = dict(children or {})
        self._params = {}
        self._version = 0
        self._lock = Lock()

    # ------------------------------------------------------------------------------------------------------- parameters
    @property
    def version(self) -> int:
        """The number of changes of the parameters."""
        return (
            self._version + sum(child.version for child in self._children.values())
            if self._children
            else (self._version)
        )

    @property
    def _quantised(self) -> Quantisation | None:
        """How weights are kept in a reduced storage; None where all are floats of the dtype."""
        return next((how for child in self._children.values() if (how := child._quantised) is not None), None)

    @property
    def children(self) -> dict[str, Layer]:
        """The layers inside this one, by name."""
        return dict(self._children)

    def _live(self) -> dict[str, Array]:
        """The live arrays of all parameters by name, the children's included."""
        inner = {f"{n}.{name}": p for n, child in self._children.items() for name, p in child._live().items()}
        return self._params | inner if inner else self._params

    def parameters(self) -> dict[str, Array]:
        """Read-only views of all parameters, with `state_dict`'s names: no copies, and they follow every update."""
        views = {name: p.view() for name, p in self._live().items()}
        for view in views.values():
            view.flags.writeable = False
        return views

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters, by PyTorch's names, in PyTorch's shapes and gate order."""
        with self._lock:
            return {name: p.copy() for name, p in self._live().items()}

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
        own = self._live()
        new, wrong = arrays_of(d)
        wrong += [f"missing: {name} {p.shape}" for name, p in own.items() if name not in d]
        wrong += [f"unexpected: {name} {value.shape}" for name, value in new.items() if name not in own]
        wrong += [
            f"misshapen: {name} has shape {new[name].shape}, expected {p.shape}"
            for name, p in own.items()
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
            At the end of the block: an array or number in the dictionary fits no parameter; the parameters are kept.
        """
        with ExitStack() as stack:
            layers = self._tree()
            for layer in layers:
                stack.enter_context(layer._lock)
            params = dict(self._live())
            try:
                yield params
            finally:
                for layer in layers:
                    layer._version += 1  # also after an exception: the block may have changed some parameters
                wrong = self._put(params)
        if wrong:
            raise RuntimeError(f"what was put into {self!r} does not fit, and none was taken:\n  " + "\n  ".join(wrong))

    def _tree(self) -> list[Layer]:
        """This layer and, in order, all layers inside it."""
        return [self, *(below for child in self._children.values() for below in child._tree())]

    def _put(self, params: dict[str, Any]) -> list[str]:
        """Copy new arrays of `update`'s dictionary into the parameters, or return what is wrong with them."""
        own = self._live()
        put = {name: a for name, a in params.items() if a is not own.get(name)}
        new, wrong = arrays_of({name: a for name, a in put.items() if name in own})
        wrong += [f"unexpected: {name}" for name in put if name not in own]
        for name, a in new.items():
            p = own[name]
            fits = is_real(a.dtype) and (a.shape == p.shape or a.ndim == 0)
            wrong += [] if fits else [f"{name} has dtype {a.dtype} and shape {a.shape}, expected {p.shape}"]
        for name, a in new.items() if not wrong else ():
            own[name][...] = a
        return wrong

    # ---------------------------------------------------------------------------------------------------------- backend
    @property
    def backend(self) -> str:
        """The backend in use."""
        name: str = self._module.__name__.rpartition(".")[2]
        return name

    def _choose(self) -> ModuleType:
        """The backend's module for this layer, or an error."""
        return choose(self._backend, self.dtype.name)

    def _connect(self) -> None:
        """Choose the backend: at construction, and after unpickling, perhaps on another machine."""
        self._module = self._choose()
        # Fast paths compare dtypes by identity; a pickle's dtype is not the object that arrays have.
        self.dtype = np.dtype(self.dtype.name)
        self._packed = None

    def _pack(self) -> Any:
        """The parameters as the backend takes them."""
        raise NotImplementedError

    def _blocks(self) -> tuple[int, Any]:
        """(version, its packed weights); packs anew only after a change."""
        packed = self._packed
        if packed is not None and packed[0] == self.version:
            return packed
        with self._lock:
            version = self.version
            if (
                self._packed is None or self._packed[0] != version
            ):  # another thread may have packed since the first check
                self._packed = version, self._pack()
            return self._packed

    # --------------------------------------------------------------------------------------------------------- training
    def train(self) -> Any:
        """Switch to training mode, the mode after construction: `forward` applies dropout. Returns the layer."""
        return self._set_training(True)

    def eval(self) -> Any:
        """Switch to evaluation mode: `forward` applies no dropout. Returns the layer."""
        return self._set_training(False)

    def _set_training(self, training: bool) -> Any:
        self.training = training
        for child in self._children.values():
            child._set_training(training)
        return self

    # ------------------------------------------------------------------------------------------------------------ files
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the layer to one safetensors file, atomically; `fastlstm.load` reads it.

        Parameters
        ----------
        path : path

        Raises
        ------
        OSError
            The file cannot be written; an old one is untouched.
        TypeError
            A subclass that is not one of the package.
        """
        from .models import save

        save(self, path)

    def to_c(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        weights: str = "float32",
        calibrate: Any = None,
    ) -> Any:
        """Write the layer as C99, a source and a header that need no library; see `fastlstm.export_c.to_c`."""
        from .export_c import to_c

        return to_c(self, path, name, weights, calibrate)

    # ------------------------------------------------------------------------------------------------- copies, pickles
    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_packed", "_module")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if _old_pickles.is_old(state):
            _old_pickles.restore(self, state)
            return
        self.__dict__.update(state)
        self._lock = Lock()
        self._connect()

    def __copy__(self) -> Any:
        return copy.deepcopy(self)  # a change of shared parameters would not raise the other layer's version


@dataclass
class Tape:
    """What `forward` keeps for one `backward`. A tape serves once, and only while the weights do not change."""

    layer: Layer
    version: int
    used: bool = field(default=False, init=False)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a tape serves one backward of the layer that made it, and can be neither copied nor pickled: call "
            "layer.forward(x) again for another"
        )


def check_tape(tape: Any, layer: Layer, kind: type[Tape]) -> None:
    """Raise RuntimeError unless the tape can serve this layer now, TypeError where it is none of this kind."""
    if not isinstance(tape, kind):
        raise TypeError(f"backward needs the tape that this layer's forward returned, got {type(tape).__name__}")
    if tape.layer is not layer:
        raise RuntimeError("this tape was made by another layer; backward needs the one from this layer's forward")
    if tape.used:
        raise RuntimeError("this tape was used by an earlier backward and serves once: call forward again")
    if tape.version != layer.version:
        raise RuntimeError(
            f"the weights have changed since forward made this tape (version {tape.version}, now {layer.version}): "
            "call forward again, and update the weights after backward"
        )
