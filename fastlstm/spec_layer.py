"""The common base of recurrent layers and cells: parameters by `Spec`, packed into the backend's blocks."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from . import engine
from ._backends import choose
from .gradients import GradientLayout, Gradients, SparseGradient
from .layer import Layer, Tape
from .layout import Array, draw, suffix
from .memory import buffers
from .packing import Batch, compact_ids
from .quantise import Quantisation, Report, check_floats, check_types, keep, names_of, quantised, widen
from .spec import ACTIVATIONS, DEFAULT_ACTIVATIONS, Activation, Kind, Spec, activation_sets, untrainable
from .storage import input_forms
from .validation import StateForm, flag, positive, positive_number, seed_or_none

State = Any  # (h, c) for LSTM, h for GRU and RNN


@dataclass
class RecurrentTape(Tape):
    """The tape of a recurrent layer or cell."""

    unbatched: bool
    record: engine.Record


def direction_specs(kind: Kind, input_size: int, hidden_size: int, directions: int, options: Any) -> list[Spec]:
    """The spec of each direction of one layer: they differ in the activations only.

    Parameters
    ----------
    kind : {"lstm", "gru", "rnn"}
    input_size, hidden_size, directions : int
    options : dict
        The layer's arguments that belong to its equation, by name. Not changed.

    Raises
    ------
    TypeError, ValueError
        An option does not fit; the message says which.
    """
    options = dict(options)
    bias, single = flag(options.pop("bias"), "bias"), flag(options.pop("single_bias", False), "single_bias")
    clip = options.pop("clip", None)
    name, default = ("nonlinearity", "tanh") if kind == "rnn" else ("activations", DEFAULT_ACTIVATIONS[kind])
    sets = activation_sets(kind, options.pop(name, default), directions)
    for name in ("peepholes", "input_forget", "reset_after"):
        if name in options:
            options[name] = flag(options[name], name)
    if single and not bias:
        raise ValueError("single_bias is one of the biases that bias=True gives: leave it out where there is none")
    if single and kind == "gru" and options.get("reset_after", True):
        raise ValueError(
            "a GRU with reset_after=True has two biases, since bias_hh of n is inside r * (...): "
            "leave out single_bias, or take reset_after=False"
        )
    options |= {"biases": 0 if not bias else 1 if single else 2}
    options |= {"clip": None if clip is None else positive_number(clip, "clip")}
    return [Spec(kind, input_size, hidden_size, activations=of_one, **options) for of_one in sets]


def named_activations(specs: Sequence[Spec]) -> Any:
    """The activations of a layer's directions as its argument `activations` (for RNN, `nonlinearity`) takes them."""
    sets: list[Any] = [
        tuple(a.name if a == ACTIVATIONS[a.name] else tuple(a) for a in spec.activations) for spec in specs
    ]
    if specs[0].kind == "rnn":
        sets = [of_one[0] for of_one in sets]
    return sets[0] if sets[0] == sets[-1] else tuple(sets)


def check_trainable(specs: Sequence[Spec]) -> None:
    """Raise ValueError where an activation serves for inference only."""
    activations: dict[Activation, None] = dict.fromkeys(f for spec in specs for f in spec.activations)
    for f in activations:
        if (why := untrainable(f)) is not None:
            raise ValueError(f"activation {tuple(f)} cannot be trained: {why}. For inference call the layer itself")


def unwrapped(states: engine.States, index: Any = None) -> State:
    """A state in the public form, (h, c) or h; with `index`, the part of each array at it."""
    parts = states if index is None else tuple(s[index] for s in states)
    return parts if len(parts) > 1 else parts[0]


class SpecLayer(Layer):
    """A layer whose parameters `Spec` describes: what recurrent layers and cells share.

    Parameters
    ----------
    arguments : dict
        The constructor's arguments by name.
    num_layers, directions : int
    """

    kind: ClassVar[Kind]
    reverse = False  # an argument of some; layers pickled before it was one do not have it
    _state_axes: ClassVar[tuple[str, ...]]  # names of a state's leading axes, for messages
    _quantisation: Quantisation | None = None
    report: Report | None = None  # of `quantize`

    def __init__(self, arguments: Mapping[str, Any], num_layers: int = 1, directions: int = 1) -> None:
        options = dict(arguments)
        super().__init__(options.pop("dtype"), options.pop("backend"))
        seed = options.pop("seed")
        self.input_size = positive(options.pop("input_size"), "input_size")
        self.hidden_size = positive(options.pop("hidden_size"), "hidden_size")
        self.proj_size = positive(options.get("proj_size", 0), "proj_size", 0)
        if self.proj_size >= self.hidden_size:
            raise ValueError(f"proj_size must be smaller than hidden_size, got {self.proj_size} and {self.hidden_size}")
        self._storage = self.dtype.name  # a name of `fastlstm.storage`: how the backend keeps the matrices
        self._R, self._D = self.proj_size or self.hidden_size, directions
        self._specs = [
            direction_specs(
                self.kind, self._D * self._R if layer else self.input_size, self.hidden_size, directions, options
            )
            for layer in range(num_layers)
        ]
        self._take_spec(options)
        self._connect()
        for_weights, for_dropout = np.random.SeedSequence(seed_or_none(seed)).spawn(2)
        self._rng = np.random.default_rng(for_dropout)
        rng = np.random.default_rng(for_weights)
        for layer, specs in enumerate(self._specs):
            for d, spec in enumerate(specs):
                self._params |= {n + self._ending(layer, d): p for n, p in draw(spec, rng, self.dtype).items()}

    def _take_spec(self, names: Iterable[str]) -> None:
        """Set the attributes of the arguments in `names` that belong to the equation."""
        spec, named = self._specs[0][0], named_activations(self._specs[0])
        values = {
            "bias": spec.biases > 0,
            "single_bias": spec.biases == 1,
            "activations": named,
            "nonlinearity": named,
            **{name: getattr(spec, name) for name in ("peepholes", "reset_after", "clip", "input_forget")},
        }
        vars(self).update({name: value for name, value in values.items() if name in names})

    def _connect(self) -> None:
        super()._connect()
        widths = {name.removesuffix("0"): width for name, width in self._specs[0][0].initial.items()}
        # For each layer and direction: the arrays' names in the spec -> in the layer.
        self._keys = [
            [
                {name: name + self._ending(layer, d) for name in names_of(spec.parameters, self._storages[layer])}
                for d, spec in enumerate(specs)
            ]
            for layer, specs in enumerate(self._specs)
        ]
        self._of_input = [of_d["weight_ih"] for of_d in self._keys[0]]
        self._layouts: dict[bool, GradientLayout] = {}
        self._state = StateForm(type(self).__name__, widths, self.dtype, self._state_axes)

    @staticmethod
    def _ending(layer: int, d: int) -> str:
        """The suffix of the names of a layer's and direction's parameters."""
        return suffix(layer, d)

    def _choose(self) -> ModuleType:
        return self._choose_for(self._storages)

    def _choose_for(self, storages: Sequence[str]) -> ModuleType:
        """The backend's module for layers that are kept so, or an error."""
        return choose(self._backend, self.dtype.name, self._specs[0], storages)

    def _walks_back(self, d: int) -> bool:
        """Whether a direction walks from the last step to the first."""
        return bool(d) or self.reverse

    def _pack(self) -> list[list[Any]]:
        """The packed weights of each layer and direction."""
        inputs = None if self._quantisation is None else self._quantisation.inputs
        forms = input_forms(self._specs, self._storages, inputs)
        return [
            [
                self._module.pack(
                    spec, {n: self._params[key] for n, key in keys.items()}, storage, self._walks_back(d), form
                )
                for d, (spec, keys) in enumerate(zip(specs, of_layer, strict=True))
            ]
            for specs, of_layer, storage, form in zip(self._specs, self._keys, self._storages, forms, strict=True)
        ]

    # -------------------------------------------------------------------------------------------------- reduced storage
    @property
    def storage(self) -> str:
        """How the matrices are kept: a name of `fastlstm.storage.STORAGES`, as `quantize` was asked for."""
        return self._storage if self._quantisation is None else self._quantisation.storage

    @property
    def _storages(self) -> tuple[str, ...]:
        """How each layer's matrices are kept."""
        return (self._storage,) * len(self._specs) if self._quantisation is None else self._quantisation.storages

    @property
    def _quantised(self) -> Quantisation | None:
        return self._quantisation

    def quantize(
        self, storage: str, inputs: str | None = None, sample: Any = None, tolerance: float | None = None
    ) -> Any:
        """A layer for inference with these weights in a reduced storage. This layer stays as it is.

        Biases and peepholes stay float32. Training (`forward`, `backward`, optimisers) is refused.

        Parameters
        ----------
        storage : {"int8", "int16", "float16"}
            int8: weights, x and h as integers of 8 bits. int16: as integers of 14 bits. float16: weights only.
        inputs : {"int8", "int16"}, optional
            For storage int8: the integers of the first layer's x; those of int16 have 14 bits. None: int8.
        sample : array, optional
            An input, as a call takes it. The changes of the outputs on it are measured for the report.
        tolerance : float, optional
            A layer whose outputs change by more in the mean, on the sample, stays float16 (float32 where storage is
            float16).

        Returns
        -------
        layer : like this one
            With ``layer.report``: by layer and for the end the mean, the 99.9 % quantile and the largest change of the
            outputs, and the bytes before and after.

        Raises
        ------
        ValueError, TypeError
            An unknown name, a sample that is no input, a tolerance without a sample; a layer of float64; weights that
            are not finite.
        BackendError
            The layer's backend does not have the storage.
        """
        return quantised(self, storage, inputs, sample, tolerance)

    def _keep(self, how: Any) -> None:
        keep(self, Quantisation.from_config(how))

    def dequantize(self) -> Any:
        """A float32 layer with the numbers that a layer of `quantize` keeps."""
        made = copy.deepcopy(self)
        widen(made)
        return made

    def _sampled(self, x: Any, mask: Any = None) -> tuple[Array, Batch]:
        """The input of a call, checked and packed."""
        raise NotImplementedError

    def _zeros(self, B: int) -> engine.States:
        """Zeros as the states of B sequences."""
        return self._state.zeros((len(self._specs) * self._D, B))

    def _check_trainable(self) -> None:
        """Raise ValueError where this layer serves for inference only."""
        check_floats(self, "training")
        check_trainable(self._specs[0])

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """See `Layer.load_state_dict`. Matrices in a reduced storage are loaded from arrays of that storage's type."""
        if self._quantisation is not None and isinstance(d, Mapping):
            check_types(self, self._params, d)
        super().load_state_dict(d)

    def to_config(self) -> dict[str, Any]:
        """See `Configurable.to_config`; with the storage of a layer of `quantize`."""
        how = self._quantisation
        return super().to_config() | ({} if how is None else {"quantised": how.to_config()})

    def __repr__(self) -> str:
        return super().__repr__() + ("" if self._quantisation is None else str(self._quantisation))

    @property
    def rng_state(self) -> dict[str, Any]:
        """State of the generator that dropout draws from; may be assigned, to continue a run with the same bits."""
        return dict(self._rng.bit_generator.state)

    @rng_state.setter
    def rng_state(self, state: Mapping[str, Any]) -> None:
        with self._lock:
            self._rng.bit_generator.state = dict(state)

    def _gradients(
        self, tape: RecurrentTape, dy: Array | None, dstates: engine.States, sparse: bool
    ) -> tuple[Array | None, Gradients]:
        """(dx as packed rows, None for token ids; gradients by name) from dy, packed rows; dstates is overwritten."""
        place, of_ids = None, {}
        if (x := tape.record.inputs[0]).ndim == 1:
            seen, place = compact_ids(x, self.input_size)
            for name in self._of_input:
                shape = self._params[name].shape
                of_ids[name] = SparseGradient(seen, buffers.zeros((len(seen), shape[0]), self.dtype), shape)
        grads = self._gradient_layout(sparse and place is not None).zeros()
        # The arrays that backends add to; for token ids one row for each id seen, not for the whole vocabulary.
        targets = grads | {name: g.rows for name, g in of_ids.items()} if of_ids else grads
        _, blocks = self._blocks()
        dx = engine.backward(self._module, blocks, tape.record, dstates, dy, targets, self._keys, place)
        for name, g in of_ids.items():
            if sparse:
                grads[name] = g
            else:
                g.dense(grads[name])
        return dx, grads

    def _gradient_layout(self, sparse: bool) -> GradientLayout:
        """The layout of the gradients; `sparse`: without the input matrices."""
        layout = self._layouts.get(sparse)
        if layout is None:
            shapes = {name: p.shape for name, p in self._params.items()}
            layout = self._layouts[sparse] = GradientLayout(shapes, self.dtype, self._of_input if sparse else ())
        return layout
