"""A chain of modules whose recurrent layers are kept in a reduced storage, for inference."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import dense
from ..layer import Layer
from ..layout import Array
from ..quantise import (
    CAREFUL,
    Change,
    Masked,
    Quantisation,
    Report,
    check_floats,
    checked,
    checked_tolerance,
    joined,
    keep,
    quantised,
    widen,
)
from ..spec_layer import SpecLayer
from .base import Module
from .bidirectional import Bidirectional
from .dense import Dense
from .residual import Residual

if TYPE_CHECKING:
    from .chain import Chain


def recurrent_core(module: Module) -> tuple[Any, SpecLayer] | None:
    """(the recurrent module in a module, its layer), or None where there is none."""
    inner: Any = module
    while isinstance(inner, Residual):
        inner = inner.module
    inner = inner._both if isinstance(inner, Bidirectional) else inner
    return (inner, inner._core) if isinstance(inner._core, SpecLayer) else None


def quantised_chain(
    model: Chain, storage: str, inputs: str | None, sample: Any, tolerance: float | None, of_dense: bool = False
) -> Any:
    """See `Chain.quantize`."""
    checked(storage, inputs, 1)
    limit = checked_tolerance(tolerance, sample)
    check_floats(model, "quantize")
    if not model.built:
        raise ValueError(f"{model!r} has no parameters yet: call it on an input, build it or fit it first")
    made, before = copy.deepcopy(model), copy.deepcopy(model)
    cores = {name: found for name, module in made.named.items() if (found := recurrent_core(module)) is not None}
    heads = {name: module for name, module in made.named.items() if of_dense and isinstance(module, Dense)}
    if not cores and not heads:
        raise ValueError(f"{model!r} has no recurrent module, and only these are kept as {storage}")
    feeds, end_before = ({}, None) if sample is None else _run(before, sample)
    reports: dict[str, Report] = {}
    for name, (_, core) in cores.items():
        one = quantised(core, storage, inputs, feeds.get(name), tolerance)
        keep(core, one._quantisation)
        core.report = reports[name] = one.report
    for name, module in heads.items():
        reports[name] = keep_dense(module, storage, feeds.get(name), limit)
    changes = None if end_before is None else _run(made, sample)[1] - end_before
    reduced = [core for _, core in cores.values()] + [module.core for module in heads.values()]
    made.report = joined(reports, changes, bytes_of(made) - sum(map(bytes_of, reduced)))
    return made.eval()


def keep_dense(module: Dense, storage: str, x: Any, limit: float | None) -> Report:
    """Keep a dense layer's weights so; its report, from the changes of the outputs for x where that is given."""
    floats = copy.deepcopy(module)
    core = module.core
    assert isinstance(core, dense.Dense)
    for kept_as in (storage, CAREFUL[storage]):
        core._replace(floats.core.state_dict(), None)
        core._keep_as(Quantisation(storage, (kept_as,)))
        changes = None if x is None else module(x) - floats(x)
        if changes is None or limit is None or np.abs(changes, dtype=np.float64).mean() <= limit:
            break
    return Report([Change.of("layer 0", kept_as, changes, bytes_of(floats), bytes_of(core))])


def bytes_of(layer: Layer) -> int:
    """The bytes of all parameters."""
    return sum(p.nbytes for p in layer._live().values())


def dequantised_chain(model: Chain) -> Any:
    """See `Chain.dequantize`."""
    made = copy.deepcopy(model)
    for module in made.modules:
        found = recurrent_core(module)
        if found is not None:
            widen(found[1])
        elif isinstance(module, Dense):
            core = module.core
            assert isinstance(core, dense.Dense)
            core._widen()
    made.report = None
    return made


def _run(model: Chain, sample: Any) -> tuple[dict[str, Any], Array]:
    """(the input of each recurrent layer by the name of its module; the last outputs), from zero states."""
    from ..training.data import Data

    data = Data(sample)
    batch = data.take(np.arange(data.count))
    y, mask = model._enter(batch.x), batch.mask
    feeds: dict[str, Any] = {}
    for name, module in model.named.items():
        found = recurrent_core(module)
        if isinstance(module, Dense):
            feeds[name] = y
        if found is not None:
            inner, _ = found
            if getattr(inner, "stateful", False):
                inner.reset_state()
            feeds[name] = Masked(*inner._input(y, mask))
        y, mask = module(y, mask), module.output_mask(y, mask)
        if found is not None and getattr(found[0], "stateful", False):
            found[0].reset_state()
    return feeds, np.concatenate(y, axis=-1) if isinstance(y, tuple) else y
