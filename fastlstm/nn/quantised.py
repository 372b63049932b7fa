"""A chain of modules whose recurrent layers are kept in a reduced storage, for inference."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from ..layout import Array
from ..quantise import Masked, Report, check_floats, checked, checked_tolerance, joined, keep, quantised, widen
from ..spec_layer import SpecLayer
from .base import Module
from .bidirectional import Bidirectional
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


def quantised_chain(model: Chain, storage: str, inputs: str | None, sample: Any, tolerance: float | None) -> Any:
    """See `Chain.quantize`."""
    checked(storage, inputs, 1)
    checked_tolerance(tolerance, sample)
    check_floats(model, "quantize")
    if not model.built:
        raise ValueError(f"{model!r} has no parameters yet: call it on an input, build it or fit it first")
    made, before = copy.deepcopy(model), copy.deepcopy(model)
    cores = {name: found for name, module in made.named.items() if (found := recurrent_core(module)) is not None}
    if not cores:
        raise ValueError(f"{model!r} has no recurrent module, and only these are kept as {storage}")
    feeds, end_before = ({}, None) if sample is None else _run(before, sample)
    reports: dict[str, Report] = {}
    for name, (_, core) in cores.items():
        one = quantised(core, storage, inputs, feeds.get(name), tolerance)
        keep(core, one._quantisation)
        core.report = reports[name] = one.report
    changes = None if end_before is None else _run(made, sample)[1] - end_before
    recurrent = sum(p.nbytes for _, core in cores.values() for p in core._params.values())
    made.report = joined(reports, changes, sum(p.nbytes for p in made._live().values()) - recurrent)
    return made.eval()


def dequantised_chain(model: Chain) -> Any:
    """See `Chain.dequantize`."""
    made = copy.deepcopy(model)
    for module in made.modules:
        found = recurrent_core(module)
        if found is not None:
            widen(found[1])
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
        if found is not None:
            inner, _ = found
            if getattr(inner, "stateful", False):
                inner.reset_state()
            feeds[name] = Masked(*inner._input(y, mask))
        y, mask = module(y, mask), module.output_mask(y, mask)
        if found is not None and getattr(found[0], "stateful", False):
            found[0].reset_state()
    return feeds, np.concatenate(y, axis=-1) if isinstance(y, tuple) else y
