"""Models that are lists, and `Sequential`: their stages, packed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from .. import engine
from .._backends import provides
from ..layout import Array
from ..num_threads import get_num_threads
from ..packing import Batch
from ..recurrent import Recurrent
from ..validation import as_array
from .model import Packed, identity_of_layer, kept_as, weights_id
from .stages import Stage, run, split_at


class PackedList(Packed):
    """The stages of a model at one moment; see `Packed`. `blocks` are those of its cells."""

    def checked(self, x: Any, axes: tuple[int, ...], single: bool = False) -> tuple[Array, bool, bool]:
        """As `Packed.checked`, and an Embedding takes token ids only, a dense layer or a residual path numbers only."""
        first, array = self.stages[0], as_array(x, "x")
        of_integers = array.dtype.kind in "iu"
        if first.kind == "lookup" and not of_integers:
            raise TypeError(
                f"x has dtype {array.dtype} and shape {array.shape}: the model begins with an Embedding, which takes "
                f"token ids: integers of shape {axes}"
            )
        if first.kind != "lookup" and (first.kind != "cell" or first.skip) and of_integers:
            beginning = "residual path" if first.skip else f"{first.kind} layer"
            raise TypeError(
                f"x has dtype {array.dtype} and shape {array.shape}: the model begins with a {beginning}, which "
                f"takes numbers of dtype {self.dtype} and shape {(*axes, self.input_size)}"
            )
        return super().checked(x, axes, single)

    def runs(self) -> Iterator[tuple[int, int]]:
        """(first, end) of each stage with a state by itself, and of the stages between two of them together."""
        at = 0
        while at < len(self.stages):
            with_state = (i for i in range(at, len(self.stages)) if self.stages[i].widths)
            end = at + 1 if self.stages[at].widths else next(with_state, len(self.stages))
            yield at, end
            at = end

    def forward(self, x: Array, batch: Batch, states: engine.States) -> Array:
        """Packed outputs (N, U) of packed rows (N, I) or token ids (N,); `states` as of `gather`, overwritten."""
        part = 0
        for first, end in self.runs():
            if not self.stages[first].widths and self.rows is not None:
                x = self._without_state(first, end, x)
                continue
            for stage in self.stages[first:end]:
                own = len(stage.widths)
                x = run(self.module, stage, x, batch, states[part : part + own])
                part += own
        return x

    def _without_state(self, at: int, end: int, x: Array) -> Array:
        """Some stages without a state, of all rows at once."""
        y: Array = np.empty((len(x), self.stages[end - 1].sizes[1]), self.dtype)
        none = np.empty((len(x), 0), self.dtype)
        self.module.bind_records(self.rows.part(at, end), np.ascontiguousarray(x), none, y, get_num_threads())()
        return y

    def forward_one(self, x: Array, record: Array, y: Array) -> None:
        """As `Packed.forward_one`."""
        y[...] = self.forward(x, Batch.of(len(x), 1, None), tuple(split_at(self.widths, record[None, None])))

    def gather(self, records: Sequence[Array]) -> engine.States:
        """Copies (1, n, width) of each part of n records."""
        return tuple(np.ascontiguousarray(p)[None] for p in split_at(self.widths, np.array(records, self.dtype)))

    def scatter(self, states: engine.States, records: Sequence[Array]) -> None:
        """Write states (1, n, width) back to n records."""
        for record, row in zip(records, np.concatenate([s[0] for s in states], axis=1), strict=True):
            record[...] = row


def packed_list(model: Any) -> PackedList:
    """The packed stages of a list or a `Sequential`.

    Raises
    ------
    TypeError
        Something in the list is no part of a model.
    ValueError
        A part looks ahead, is not built, is no float32, has another backend than the others, or does not take what the
        part before it gives; or no part is a recurrent layer.
    """
    from ..steps import steps_of

    name = repr(list(model) if isinstance(model, tuple) else model)
    steps = steps_of(model, native=True)
    layers: list[Any] = list({id(layer): layer for step in steps if (layer := getattr(step, "layer", None))}.values())
    if not layers:
        raise ValueError(f"{name} has no recurrent layer, so a stream of it has no state: call its layers instead")
    module = _one_backend(model, layers)
    while True:
        versions = [layer.version for layer in layers]
        steps = steps_of(model, native=True)
        blocks = {id(layer): layer._blocks()[1] for layer in layers}
        if versions == [layer.version for layer in layers]:  # else another thread has changed the weights in between
            break
    stages = [_stage(step, _block_of(step, blocks)) for step in steps]
    equation, number = _identity(steps, stages)
    return PackedList(
        name,
        module,
        [[stage.block] for stage in stages if stage.kind == "cell"],
        equation,
        number,
        np.dtype(np.float32),
        stages[0].sizes[0],
        stages[-1].sizes[1],
        tuple(width for stage in stages for width in stage.widths),
        stages,
    )


def identity_of(model: Any) -> tuple[str, bytes]:
    """(equation as JSON, number of equation and weights) of a model, without packing its weights.

    The number is that of `StreamBatch` for the same model, and for a module of `fastlstm.nn` that of its layer.
    """
    from ..steps import Recurrence, steps_of

    core = getattr(model, "_core", model)
    if isinstance(core, Recurrent):
        return identity_of_layer(core, core.state_dict())
    steps = steps_of(model, native=True)
    of_spec = {id(step): SimpleNamespace(spec=step.spec) for step in steps if isinstance(step, Recurrence)}
    return _identity(steps, [_stage(step, of_spec.get(id(step))) for step in steps])


def _identity(steps: Sequence[Any], stages: Sequence[Stage]) -> tuple[str, bytes]:
    """The equation of stages and the number of equation and weights."""
    equation = json.dumps({"dtype": "float32", "stages": [stage.equation for stage in stages]}, sort_keys=True)
    params = {f"{i}.{n}": p for i, step in enumerate(steps) for n, p in _parameters(step).items()}
    storages = json.dumps([kept_as(step.layer) for step in steps if hasattr(step, "layer")])
    return equation, weights_id(equation, storages, params)


def _stage(step: Any, block: Any) -> Stage:
    """A step of `fastlstm.steps` as a stage; `block` is a cell's."""
    from ..steps import Affine, Context, Gather, Lookup, Magnitude, Recurrence

    if isinstance(step, Recurrence):
        return Stage("cell", step.sizes, block=block, skip=step.skip)
    if isinstance(step, Lookup):
        return Stage("lookup", step.weight.shape, weight=step.weight)
    if isinstance(step, Affine):
        return Stage("dense", step.sizes, None, step.weight, step.bias, step.activation, step.skip, step.frames)
    if isinstance(step, Context):
        return Stage("context", step.sizes)
    if isinstance(step, Gather):
        return Stage("gather", step.sizes, weight=step.index.reshape(-1), frames=step.frames)
    kind = "magnitude" if isinstance(step, Magnitude) else "pointwise"
    return Stage(kind, step.sizes, activation=getattr(step, "activation", "linear"), frames=step.frames)


def _block_of(step: Any, blocks: dict[int, Any]) -> Any:
    """A cell's block, from the blocks of each layer by its id; None for other steps."""
    layer = getattr(step, "layer", None)
    return None if layer is None else blocks[id(layer)][step.number][0]


def _parameters(step: Any) -> dict[str, Array]:
    """The parameters of a step, by name."""
    own = getattr(step, "params", None)
    if own is not None:
        return dict(own)
    return {name: p for name in ("weight", "bias", "index") if (p := getattr(step, name, None)) is not None}


def _one_backend(model: Any, layers: Sequence[Any]) -> ModuleType:
    """The backend of all layers, or an error."""
    modules: list[ModuleType] = list({layer._module.__name__: layer._module for layer in layers}.values())
    for part in _dense_parts(model):
        serving = part._module
        if serving not in modules and (provides(modules[0], "dense") or serving.__name__.rpartition(".")[2] != "numpy"):
            modules.append(serving)
    if len(modules) > 1:
        names = " and ".join(sorted(m.__name__.rpartition(".")[2] for m in modules))
        raise ValueError(f"the layers of a list have the backends {names}: make all of them with the same one")
    return modules[0]


def _dense_parts(model: Any) -> list[Any]:
    """The dense layers of a list or a `Sequential`."""
    from ..dense import Dense
    from ..nn.chain import Chain
    from ..nn.residual import Residual

    found: list[Any] = []
    for part in model.modules if isinstance(model, Chain) else model:
        inner = part.module if isinstance(part, Residual) else part
        if isinstance(inner, Chain):
            found += _dense_parts(inner)
        elif isinstance(core := getattr(inner, "_core", inner), Dense):
            found.append(core)
    return found
