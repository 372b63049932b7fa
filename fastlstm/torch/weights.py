"""The weights of a PyTorch module as packed blocks, and whether they still are what was packed.

The weights stay the module's own tensors: packing reads them where they lie. Nothing in PyTorch tells of every change
(`_version` misses ``p.data.add_()``, writes through NumPy and those of another process), so blocks that are kept for
inference serve only while the tensors are the same objects, at the same addresses, with the same versions and with the
same checksum of their bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from .._backends import c
from ..gradients import GradientLayout
from ..layout import suffix
from ..spec import ACTIVATIONS, Kind, Spec
from ..storage import input_forms

FLOAT32 = np.dtype(np.float32)
LOCKED_BYTES = 1 << 20  # a checksum of fewer bytes takes some 20 us, and keeps Python's lock


@dataclass(frozen=True)
class Form:
    """What a recurrent module computes.

    Parameters
    ----------
    specs : list of L lists of D specs
    names : list of L lists of D lists of str
        The module's names of the parameters, in the order of ``spec.parameters``.
    cell : bool
    """

    specs: list[list[Spec]]
    names: list[list[list[str]]]
    cell: bool

    @classmethod
    def of(cls, module: Any) -> Form:
        """The form of an nn.LSTM, GRU, RNN or one of their cells."""
        cell = not hasattr(module, "num_layers")
        kind, relu = _kind(module)
        L, D = (1, 1) if cell else (module.num_layers, 2 if module.bidirectional else 1)
        H, P = module.hidden_size, 0 if cell else module.proj_size
        options: dict[str, Any] = {"activations": (ACTIVATIONS["relu"],)} if relu else {}
        options |= {"proj_size": P, "biases": 2 if module.bias else 0}
        widths = [module.input_size] + [D * (P or H)] * (L - 1)
        specs = [[Spec(kind, width, H, **options)] * D for width in widths]
        endings = [["" if cell else suffix(layer, d) for d in range(D)] for layer in range(L)]
        names = [[[name + end for name in specs[0][0].parameters] for end in of_layer] for of_layer in endings]
        return cls(specs, names, cell)

    @cached_property
    def flat_names(self) -> list[str]:
        """The names of all parameters, in the order in which PyTorch's functions take them."""
        return [name for of_layer in self.names for of_d in of_layer for name in of_d]

    @cached_property
    def keys(self) -> list[list[dict[str, str]]]:
        """Of each layer and direction the module's names by those of the spec, as `engine.backward` takes them."""
        return [
            [dict(zip(spec.parameters, of_d, strict=True)) for spec, of_d in zip(specs, of_layer, strict=True)]
            for specs, of_layer in zip(self.specs, self.names, strict=True)
        ]

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of all parameters."""
        return [shape for specs in self.specs for spec in specs for shape in spec.parameters.values()]

    @cached_property
    def gradients(self) -> GradientLayout:
        return GradientLayout(dict(zip(self.flat_names, self.shapes, strict=True)), FLOAT32)

    @cached_property
    def has_c(self) -> bool:
        return self.specs[0][0].kind == "lstm"


def _kind(module: Any) -> tuple[Kind, bool]:
    """(the kind of a module, whether it is an RNN with relu)."""
    if isinstance(module, (torch.nn.LSTM, torch.nn.LSTMCell)):
        return "lstm", False
    if isinstance(module, (torch.nn.GRU, torch.nn.GRUCell)):
        return "gru", False
    return "rnn", "relu" in (getattr(module, "nonlinearity", "tanh"), getattr(module, "mode", "").lower()[4:])


def version_of(tensor: Any) -> int:
    """PyTorch's count of changes; -1 for inference tensors, which have none."""
    try:
        version: int = tensor._version
    except RuntimeError:
        return -1
    return version


class Packed:
    """Blocks, and the tensors that they were made from.

    Parameters
    ----------
    form : Form
    weights : sequence of tensors
        In the order of ``form.flat_names``; float32, on the CPU.
    summed : bool
        Take the checksum too, which `holds` needs.
    storage : str
        How the blocks keep them.
    backward : bool
        Pack what backward needs at once. Blocks that serve several training calls must hold the same weights in all
        their parts, also where a weight changes unseen between a call and its backward.
    """

    __slots__ = ("arrays", "blocks", "memory", "pointers", "quick", "sum", "versions", "weights")

    def __init__(
        self, form: Form, weights: Sequence[Any], summed: bool, storage: str = "float32", backward: bool = False
    ) -> None:
        self.weights = weights
        self.arrays = [w.detach().numpy() for w in weights]
        self.pointers = [w.data_ptr() for w in weights]
        self.versions = [version_of(w) for w in weights]
        sizes = [a.nbytes for a in self.arrays]
        self.quick = sum(sizes) < LOCKED_BYTES
        self.memory = self.sum = None
        if summed and all(w.is_contiguous() for w in weights):
            self.memory = c.ffi.new(
                "fl_memory[]", [(c.ffi.cast("void *", p), n) for p, n in zip(self.pointers, sizes, strict=True)]
            )
            self.sum = self._checksum()  # before packing: a change in between must not go unseen
        at = iter(self.arrays)
        x_forms = input_forms(form.specs, [storage] * len(form.specs))
        self.blocks = [
            [
                c.pack(spec, {name: next(at) for name in spec.parameters}, storage, bool(d), x_form)
                for d, spec in enumerate(specs)
            ]
            for specs, x_form in zip(form.specs, x_forms, strict=True)
        ]
        if backward:
            c.pack_for_backward(self.blocks)

    def _checksum(self) -> int:
        checksum = c.lib.flq_checksum if self.quick else c.lib.fl_checksum
        found: int = checksum(self.memory, len(self.weights))
        return found

    def same_tensors(self, weights: Sequence[Any]) -> bool:
        """Whether these are the tensors that were packed, as far as PyTorch tells."""
        for w, known, pointer, version in zip(weights, self.weights, self.pointers, self.versions, strict=True):
            if w is not known or w.data_ptr() != pointer or version_of(w) != version or not w.is_contiguous():
                return False
        return True

    def holds(self, weights: Sequence[Any]) -> bool:
        """Whether these tensors hold what was packed."""
        return self.sum is not None and self.same_tensors(weights) and self.sum == self._checksum()


@dataclass
class Kernels:
    """What an accelerated module keeps beside its tensors.

    Parameters
    ----------
    form : Form
    frozen : bool
        Weights change by no other way than training calls and `load_state_dict`: nothing is compared in inference.
    storage : str
        How blocks keep the weights; all but float32 serve inference only.
    """

    form: Form
    frozen: bool = False
    storage: str = "float32"
    calls: int = 0  # that ran on the kernels
    left: Counter[str] = field(default_factory=Counter)  # calls that were left on PyTorch, by reason
    packed: Packed | None = None  # for inference
    stepped: Packed | None = None  # of the last training call; with blocks from the second call with these tensors on

    def inference_blocks(self, weights: Sequence[Any]) -> Any:
        """The blocks of these weights; packed anew only where they have changed."""
        packed = self.packed
        if packed is None or not (self.frozen or packed.holds(weights)):
            packed = self.packed = Packed(self.form, weights, not self.frozen, self.storage)
        return packed.blocks

    def training_blocks(self, weights: Sequence[Any]) -> Any:
        """The blocks of these weights, which change between most calls and are packed anew then.

        A cell, and a layer in some programs, is called once a step of a loop: from the second call with the same
        tensors on, a checksum tells whether they must be packed.
        """
        self.packed = None
        known = self.stepped
        again = known is not None and known.same_tensors(weights)
        if known is not None and known.blocks and (again if self.frozen else known.holds(weights)):
            return known.blocks
        self.stepped = made = Packed(self.form, weights, summed=again and not self.frozen, backward=again)
        blocks = made.blocks
        if not again:
            made.blocks = []  # freed after this call's backward
        return blocks

    def forget(self) -> None:
        """Give up all blocks."""
        self.packed = self.stepped = None

    def __reduce__(self) -> Any:
        """Copies and pickles have no blocks: these are packed at the first call, perhaps on another machine."""
        return Kernels, (self.form, self.frozen, self.storage)

    def __deepcopy__(self, memo: Any) -> Kernels:
        return Kernels(self.form, self.frozen, self.storage)
