"""What a `StreamBatch` steps: the packed weights of a model, the form of its state, and the number of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from .. import engine
from .._backends import provides
from ..layout import Array
from ..packing import Batch
from ..recurrent import Recurrent
from ..validation import checked_ids, checked_input
from .stages import Stage, split_at


@dataclass(frozen=True)
class Packed:
    """The weights of a model at one moment, and the form of the state of one stream.

    Parameters
    ----------
    name : str
        The model's class and arguments, for messages.
    module : module
        The backend.
    blocks : list of L lists of one block
    equation : str
        Sizes, equation and dtype as JSON.
    weights_id : bytes
        16 bytes, the same for the same equation and weights on every machine.
    dtype : dtype
    input_size, output_size : int
    widths : tuple of int
        Numbers of each part of a state: for each layer h and, for LSTM, c.
    stages : list of Stage
    """

    name: str
    module: ModuleType
    blocks: Sequence[Sequence[Any]]
    equation: str
    weights_id: bytes
    dtype: np.dtype[Any]
    input_size: int
    output_size: int
    widths: tuple[int, ...]
    stages: Sequence[Stage]

    def __post_init__(self) -> None:
        packs = provides(self.module, "rows")
        object.__setattr__(self, "rows", self.module.pack_rows(self.stages) if packs else None)

    rows: Any = field(init=False)  # the stages as the backend's extra functions "rows" take them, or None

    @property
    def takes_numbers(self) -> bool:
        """False: token ids only."""
        return self.stages[0].kind != "lookup"

    def checked(self, x: Any, axes: tuple[int, ...], single: bool = False) -> tuple[Array, bool, bool]:
        """The input of rows, or an error; as `validation.checked_input`, but that token ids are checked copies."""
        rows, ids, alone = checked_input(x, axes, self.input_size, self.dtype, single)
        return checked_ids(rows, self.input_size, self.dtype) if ids else rows, ids, alone

    @property
    def parts(self) -> int:
        """Parts of a layer's state: 2 for LSTM, else 1."""
        return len(self.widths) // len(self.blocks)

    def forward(self, x: Array, batch: Batch, states: engine.States) -> Array:
        """Packed outputs (N, U) of packed rows (N, I) or token ids (N,); the states (L, B, width) are overwritten."""
        return engine.forward(self.module, self.blocks, x, batch, states, packed=True)

    def forward_one(self, x: Array, record: Array, y: Array) -> None:
        """Outputs y (T, U) of one stream's rows (T, I) or token ids (T,); its record is changed in place."""
        steps, parts = Batch.of(len(x), 1, None).rows, split_at(self.widths, record[None, None])
        between = [np.empty((len(x), of_layer[0].spec.R), self.dtype) for of_layer in self.blocks[:-1]]
        for layer, out in enumerate((*between, y)):
            states = tuple(parts[layer * self.parts : (layer + 1) * self.parts])
            self.module.forward(self.blocks[layer], x, steps, states, out)
            x = out

    def gather(self, records: Sequence[Array]) -> engine.States:
        """Copies (L, n, width) of the parts of n records."""
        L, parts = len(self.blocks), self.parts
        rows = np.array(records, self.dtype).reshape(len(records), L, -1).swapaxes(0, 1)  # (L, n, R) or (L, n, R + H)
        ends = np.cumsum((0, *self.widths[:parts]))
        return tuple(np.ascontiguousarray(rows[..., ends[i] : ends[i + 1]]) for i in range(parts))

    def scatter(self, states: engine.States, records: Sequence[Array]) -> None:
        """Write states (L, n, width) back to n records."""
        rows = np.concatenate(states, axis=2).swapaxes(0, 1).reshape(len(records), -1)
        for record, row in zip(records, rows, strict=True):
            record[...] = row


def packed_of(model: Any) -> Packed:
    """The packed weights of a layer, a list or a `Sequential`.

    Raises
    ------
    TypeError
        The model is none of these.
    ValueError
        It is bidirectional, or reverse; for lists see `lists.packed_list`.
    """
    from ..nn.chain import Chain
    from .lists import packed_list

    if isinstance(model, list | tuple | Chain):
        return packed_list(model)
    if not isinstance(model, Recurrent):
        core = getattr(model, "core", None)
        cure = ": give its layer, model.core" if isinstance(core, Recurrent) else ""
        raise TypeError(
            f"model must be an LSTM, GRU or RNN layer, a list of layers, or a Sequential, got "
            f"{type(model).__name__}{cure}"
        )
    model._check_streams()
    while True:
        version, blocks = model._blocks()
        params = model.state_dict()
        if model.version == version:  # else another thread has changed the weights in between
            break
    specs = [of_layer[0] for of_layer in model._specs]
    equation, number = identity_of_layer(model, params)
    widths = tuple(width for spec in specs for width in spec.initial.values())
    return Packed(
        repr(model),
        model._module,
        blocks,
        equation,
        number,
        model.dtype,
        specs[0].I,
        specs[-1].R,
        widths,
        [Stage("cell", (spec.I, spec.R), block=of_layer[0]) for spec, of_layer in zip(specs, blocks, strict=True)],
    )


def identity_of_layer(model: Recurrent, params: Mapping[str, Array]) -> tuple[str, bytes]:
    """(the equation of a layer of one direction as JSON, the number of equation and weights)."""
    specs = [of_layer[0] for of_layer in model._specs]
    equation = json.dumps({"dtype": model.dtype.name, "layers": [asdict(spec) for spec in specs]}, sort_keys=True)
    return equation, weights_id(equation, kept_as(model), params)


def kept_as(model: Recurrent) -> str:
    """How the weights are kept, as JSON: reduced ones are other weights."""
    quantised = model._quantised
    inputs = None if quantised is None else quantised.inputs
    return json.dumps({"storages": model._storages, "inputs": inputs}, sort_keys=True)


def weights_id(equation: str, storage: str, params: Mapping[str, Array]) -> bytes:
    """16 bytes that tell equation, storage and weights from all others (BLAKE2b)."""
    made = hashlib.blake2b(f"{equation} {storage}".encode(), digest_size=16, person=b"fastlstm")
    for name, p in sorted(params.items()):
        made.update(f"\n{name} {p.shape} ".encode())
        made.update(np.ascontiguousarray(p, p.dtype.newbyteorder("<")).data)
    return made.digest()
