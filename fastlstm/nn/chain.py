"""`Chain`: modules one after the other, the base of `fastlstm.Sequential`, which adds training."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from ..layer import Layer
from ..layout import Array
from ..quantise import Quantisation, Report
from ..stream import no_pickle
from ..validation import flag, positive, seed_or_none
from .base import Module, ModuleTape, Shape
from .bidirectional import Bidirectional
from .quantised import dequantised_chain, quantised_chain
from .residual import Residual
from .stepping import ModuleSteps, bound


def unique_names(modules: Sequence[Module]) -> list[str]:
    """A name for each module: its class in lower case, with a number from the second of a class on."""
    names: list[str] = []
    for module in modules:
        kind = type(module).__name__.lower()
        count = sum(name.partition("_")[0] == kind for name in names)
        names.append(f"{kind}_{count}" if count else kind)
    return names


class Chain(Module):
    """Modules one after the other: each takes the output of the one before.

    Parameters
    ----------
    modules : list of Module
        No module stands in the list twice.
    seed : int, optional
        Seed of all initial parameters, of dropout and of `fit`'s shuffling. Modules that are built already keep their
        parameters.

    Attributes
    ----------
    modules : list of Module

    Raises
    ------
    TypeError, ValueError
        Something in the list is no module, stands there twice, or has another dtype than the first.
    """

    def __init__(self, modules: Sequence[Module], *, seed: int | None = None) -> None:
        self.modules = list(modules)
        for at, module in enumerate(self.modules):
            if not isinstance(module, Module):
                raise TypeError(
                    f"Sequential takes modules of fastlstm.nn, got {type(module).__name__} at place {at}: "
                    "take nn.LSTM(units) for fl.LSTM(input_size, hidden_size), nn.Dense(units) for fl.Dense"
                )
        if not self.modules:
            raise ValueError("Sequential needs at least one module, got an empty list")
        if len({id(module) for module in self.modules}) < len(self.modules):
            raise ValueError("a module stands in the list twice: make a second one")
        dtypes = {module.dtype.name for module in self.modules}
        if len(dtypes) > 1:
            raise ValueError(f"the modules have different dtypes, {' and '.join(sorted(dtypes))}: take one for all")
        self.seed = seed_or_none(seed)
        super().__init__(dtype=self.modules[0].dtype, backend=self.modules[0]._backend, seed=seed)
        self.named = dict(zip(unique_names(self.modules), self.modules, strict=True))
        self._children = dict(self.named)

    def reseed(self, seed: Any) -> None:
        """Derive seeds for every module and for shuffling from this one."""
        super().reseed(seed)
        if seed is None:
            return
        for module, own in zip(self.modules, np.random.SeedSequence(seed).spawn(len(self.modules)), strict=True):
            module.reseed(int(own.generate_state(1, np.uint64)[0]))

    # ------------------------------------------------------------------------------------------------------- parameters
    @property
    def version(self) -> int:
        return sum(module.version for module in self.modules)

    def _live(self) -> dict[str, Array]:
        return {f"{n}.{name}": p for n, child in self.named.items() for name, p in child._live().items()}

    @contextmanager
    def update(self) -> Iterator[dict[str, Array]]:
        with ExitStack() as stack:
            inner = {n: stack.enter_context(child.update()) for n, child in self.named.items()}
            params = {f"{n}.{name}": p for n, of_child in inner.items() for name, p in of_child.items()}
            yield params
            for n, of_child in inner.items():
                of_child.update({name: params.get(f"{n}.{name}", p) for name, p in of_child.items()})

    @property
    def trained_modules(self) -> list[Module]:
        """The modules whose parameters training changes, in order."""
        return [module for module in self.modules if module.trainable and module._live()]

    def _set_training(self, training: bool) -> Any:
        for module in self.modules:
            module._set_training(training)
        return super()._set_training(training)

    def penalty(self, grads: dict[str, Array] | None = None) -> float:
        total = 0.0
        for n, child in self.named.items():
            of_child = None if grads is None else {name: grads[f"{n}.{name}"] for name in child._live()}
            total += child.penalty(of_child)
        return total

    # --------------------------------------------------------------------------------------------------------- building
    def _shapes(self, shape: Shape) -> list[Shape]:
        """The shapes of a sample before the first module and after each."""
        shapes = [shape]
        for module in self.modules:
            module._check_shape(shapes[-1])
            shapes.append(module.output_shape(shapes[-1]))
        return shapes

    def _make(self, shape: Shape) -> Layer | None:
        for module, before in zip(self.modules, self._shapes(shape), strict=False):
            module.build(before)
        return None

    def _width(self, shape: Shape) -> Any:
        return shape[1:]  # the number of steps may differ

    def output_shape(self, shape: Shape) -> Shape:
        return self._shapes(shape)[-1]

    def output_mask(self, x: Any, mask: Array | None) -> Array | None:
        raise NotImplementedError(
            "the mask after a Sequential depends on every module's input: it is no module of others"
        )

    # ------------------------------------------------------------------------------------------------------------ calls
    def __call__(self, x: Any, mask: Any = None) -> Array:
        """The output for inference.

        Parameters
        ----------
        x : (B, ...) array
            What the first module takes: token ids (B, T) for an Embedding, numbers (B, T, I) for a recurrent module.
        mask : (B, T) bool array, optional
            True at the steps that count.

        Returns
        -------
        y : (B, ...) array
            What the last module gives.
        """
        y = self._enter(x)
        for module in self.modules:
            y, mask = module(y, mask), module.output_mask(y, mask)
        return y

    def forward(self, x: Any, mask: Any = None) -> tuple[Array, ModuleTape]:
        """The output for training, and the tape for one `backward`."""
        y = self._enter(x)
        tapes, versions = [], self.version
        for module in self.modules:
            before = y
            y, tape = module.forward(before, mask)
            mask = module.output_mask(before, mask)
            tapes.append(tape)
        whole = ModuleTape(self, versions)
        whole.kept = {"tapes": tapes}
        return y, whole

    def backward(self, tape: ModuleTape, dy: Any) -> tuple[Array | None, dict[str, Array]]:
        """(gradient of x, None for token ids; gradients of all parameters by name). Uses up the tape."""
        tapes = self._use(tape)["tapes"]
        grads: dict[str, Array] = {}
        d: Any = dy
        for (n, module), of_module in zip(reversed(self.named.items()), reversed(tapes), strict=True):
            d, own = module.backward(of_module, d)
            grads = {f"{n}.{name}": g for name, g in own.items()} | grads
        return d, grads

    def stream(self, batch_size: int = 1) -> Any:
        """State kept between calls: feed a sequence step by step. See `fastlstm.nn.chain.SequentialStream`."""
        return SequentialStream(self, batch_size)

    # -------------------------------------------------------------------------------------------------- reduced storage
    report: Report | None = None  # of `quantize`

    @property
    def _quantised(self) -> Quantisation | None:
        return next((how for module in self.modules if (how := module._quantised) is not None), None)

    def quantize(
        self,
        storage: str,
        inputs: str | None = None,
        sample: Any = None,
        tolerance: float | None = None,
        *,
        dense: bool = False,
    ) -> Any:
        """A model for inference whose recurrent modules keep their weights in a reduced storage. This one stays.

        Embeddings stay float32, and dense layers unless asked. Arguments, ``report`` and errors are those of
        ``LSTM.quantize``; `inputs` is for every recurrent module.

        Parameters
        ----------
        storage : {"int8", "int16", "float16"}
        inputs : {"int8", "int16"}, optional
        sample : (N, ...) array or list of N sequences, optional
            As `predict` takes them.
        tolerance : float, optional
        dense : bool
            Whether the weights of `Dense` modules in the list are kept so too: files become smaller and calls no
            quicker, since products with the rounded weights are of floats.
        """
        return quantised_chain(self, storage, inputs, sample, tolerance, flag(dense, "dense"))

    def dequantize(self) -> Any:
        """A model of float32 with the numbers that a model of `quantize` keeps."""
        return dequantised_chain(self)

    # ---------------------------------------------------------------------------------------------------------- summary
    def summary(self, shape: Shape | None = None) -> str:
        """A table of the modules: output shapes and numbers of parameters, as Keras prints it.

        Parameters
        ----------
        shape : tuple, optional
            Shape of a sample, without the batch; needed if the model is not built yet.
        """
        if shape is not None:
            self.build(shape)
        if self._shape is None:
            raise ValueError(
                "the model is not built yet: give the shape of a sample, summary((T, width)), or call it once"
            )
        rows = [("module", "output shape", "parameters")]
        shapes = self._shapes(self._shape)[1:]
        for (n, module), after in zip(self.named.items(), shapes, strict=True):
            count = sum(p.size for p in module._live().values())
            kind, how = type(module).__name__, module._quantised
            notes = ("" if module.trainable else " (frozen)") + ("" if how is None else f" ({'/'.join(how.kinds)})")
            rows.append((f"{n} ({kind})", str((None, *after)), f"{count:,}{notes}"))
        widths = [max(len(row[column]) for row in rows) + 2 for column in range(3)]
        lines = ["".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "-" * sum(widths))
        total = sum(p.size for p in self._live().values())
        trained = sum(p.size for module in self.trained_modules for p in module._live().values())
        lines += [lines[1], f"{total:,} parameters, {trained:,} of them trainable"]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"{type(self).__name__}([{', '.join(map(repr, self.modules))}])"


class SequentialStream:
    """A model with a state: its steps have the same outputs as one call over the whole sequence.

    Made by ``model.stream(batch_size)``. It keeps the weights of that moment. On backend "c" a step of a model of
    float32 is one call of the compiled code; activations then differ from those of the model's own call by rounding.

    Parameters
    ----------
    model : Sequential
        Built, and without a module that needs the future (Bidirectional, go_backwards).
    batch_size : int

    Raises
    ------
    ValueError
        A module looks ahead, or the model is not built.
    """

    def __init__(self, model: Chain, batch_size: int = 1) -> None:
        if not model.built:
            raise ValueError("the model is not built yet: call it once, or build(shape of a sample)")
        for module in model.modules:
            inner = module.module if isinstance(module, Residual) else module
            if isinstance(inner, Bidirectional) or getattr(inner, "go_backwards", False):
                raise ValueError(f"a model with {inner!r} cannot stream: it begins at the sequence's end")
        self.batch_size = positive(batch_size, "batch_size")
        self._steps = bound(model, batch_size) or ModuleSteps(model, batch_size)

    def step(self, x_t: Any) -> Array:
        """One step of every sequence.

        Parameters
        ----------
        x_t : (B, I) array, or token ids (B,) where the model begins with an Embedding

        Returns
        -------
        y : (B, ...) array
            The model's output after this step.

        Raises
        ------
        TypeError, ValueError
            x_t does not fit.
        """
        return self._steps.step(x_t)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise no_pickle("model")

    def __copy__(self) -> SequentialStream:
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> SequentialStream:
        other: SequentialStream = object.__new__(type(self))
        other.batch_size, other._steps = self.batch_size, copy.deepcopy(self._steps, memo)
        return other

    @property
    def state(self) -> list[Any]:
        """Copies of the recurrent modules' states, in order; may be assigned."""
        return self._steps.state()

    @state.setter
    def state(self, states: Sequence[Any]) -> None:
        own = len(self._steps.state())
        if len(states) != own:
            raise ValueError(f"the model has {own} recurrent modules, got {len(states)} states")
        self._steps.take_state(states)

    def reset(self, rows: Any = None) -> None:
        """Back to the zero state: all sequences, or those whose indices (or bool mask) `rows` gives."""
        self._steps.reset(rows)
