"""Layers whose weights are kept in a reduced storage, for inference: how they are made, and what their outputs lose.

`fastlstm.storage` defines the storages. `quantised` is behind the `quantize` of layers, cells and `Sequential`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import engine
from .layout import Array
from .storage import INPUTS, MATRICES, SCALE, STORAGES, Kept
from .validation import positive_number

if TYPE_CHECKING:
    from .layer import Layer
    from .packing import Batch
    from .spec_layer import SpecLayer

REDUCED = ("int8", "int16", "float16")
# What a layer is kept as whose outputs change by more than the tolerance.
CAREFUL = {"int8": "float16", "int16": "float16", "float16": "float32"}
QUANTILE = 0.999


# ------------------------------------------------------------------------------------------------- how weights are kept
@dataclass(frozen=True)
class Quantisation:
    """How the weights of a recurrent layer or cell are kept.

    Parameters
    ----------
    storage : str
        What was asked for.
    storages : tuple of L str
        What each layer is kept as.
    inputs : {"int8", "int16"}, optional
        The integers of the first layer's x, where it is kept as int8.
    """

    storage: str
    storages: tuple[str, ...]
    inputs: str | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The storages of all layers, each once."""
        return tuple(dict.fromkeys(self.storages))

    def to_config(self) -> dict[str, Any]:
        """In JSON's types."""
        return {"storage": self.storage, "storages": list(self.storages), "inputs": self.inputs}

    @classmethod
    def from_config(cls, config: Any) -> Quantisation:
        """What `to_config` gave.

        Raises
        ------
        ValueError
            It is none.
        """
        try:
            made = cls(config["storage"], tuple(config["storages"]), config["inputs"])
        except (TypeError, KeyError) as error:
            raise ValueError(f"its storage does not fit: {config!r}") from error
        known = (*REDUCED, "float32")
        if made.storage not in REDUCED or made.inputs not in (None, *INPUTS) or not set(made.storages) <= set(known):
            raise ValueError(f"its storage does not fit: {config!r}")
        return made

    def __str__(self) -> str:
        """The call of `quantize` that asks for it."""
        return f".quantize({self.storage!r}{f', inputs={self.inputs!r}' if self.inputs == 'int16' else ''})"


def checked(storage: Any, inputs: Any, layers: int) -> Quantisation:
    """The arguments of a `quantize`, for a layer of so many.

    Raises
    ------
    ValueError
        An unknown name, or inputs for a storage other than int8.
    """
    if not isinstance(storage, str) or storage not in REDUCED:
        raise ValueError(f"storage {storage!r} is not known: use one of {', '.join(REDUCED)}")
    if inputs is not None and inputs not in INPUTS:
        raise ValueError(f"inputs {inputs!r} is not known: use one of {', '.join(INPUTS)}, or leave it out")
    if inputs is not None and storage != "int8":
        raise ValueError(f"inputs={inputs!r} is for storage int8: leave it out for {storage}")
    return Quantisation(storage, (storage,) * layers, (inputs or "int8") if storage == "int8" else None)


def names_of(parameters: Mapping[str, Any], storage: str) -> list[str]:
    """The names of a direction's arrays, from those of its parameters: matrices of integers have scales beside them."""
    integers = STORAGES[storage].operand > 0
    names: list[str] = []
    for name in parameters:
        names += [name, SCALE.format(name)] if integers and name in MATRICES else [name]
    return names


def keep(layer: SpecLayer, how: Quantisation) -> None:
    """Change a layer of floats: its matrices are kept so from now on.

    Raises
    ------
    ValueError
        It has another number of layers, or numbers that the storage does not hold; the layer is unchanged then.
    BackendError
        Its backend does not have the storage; likewise.
    """
    if len(how.storages) != len(layer._specs):
        raise ValueError(f"{layer!r} has {len(layer._specs)} layers, and its storage tells of {len(how.storages)}")
    layer._choose_for(how.storages)
    params: dict[str, Array] = {}
    for storage, of_layer in zip(how.storages, layer._keys, strict=True):
        for of_d in of_layer:
            for name, key in of_d.items():
                p = layer._params[key]
                kept = STORAGES[storage].keep(p, key) if name in MATRICES else Kept(p)
                params[key] = kept.values
                if kept.scales is not None:
                    params[key.replace(name, SCALE.format(name), 1)] = kept.scales
    with layer._lock:
        layer._params, layer._quantisation = params, how
        layer._version += 1
        layer._connect()


def widen(layer: SpecLayer) -> None:
    """Change a layer in reduced storage: its matrices are floats again, with the numbers that were kept."""
    params = {}
    for storage, of_layer in zip(layer._storages, layer._keys, strict=True):
        for of_d in of_layer:
            own = {name: layer._params[key] for name, key in of_d.items()}
            for name, key in of_d.items():
                if name in MATRICES:
                    scales = own.get(SCALE.format(name)) if STORAGES[storage].operand else None
                    params[key] = Kept(own[name], scales).floats(layer.dtype)
                elif name not in map(SCALE.format, MATRICES):
                    params[key] = own[name]
    with layer._lock:
        layer._params, layer._quantisation, layer.report = params, None, None
        layer._version += 1
        layer._connect()


# ------------------------------------------------------------------------------------------------------------ report
@dataclass(frozen=True)
class Change:
    """How much the outputs of a layer, or of the whole, change.

    Parameters
    ----------
    name, storage : str
    mean, quantile, largest : float
        Of the absolute changes of all outputs; the quantile is that of 99.9 %. NaN without a sample.
    before, after : int
        Bytes of the parameters.
    """

    name: str
    storage: str
    mean: float
    quantile: float
    largest: float
    before: int
    after: int

    @classmethod
    def of(cls, name: str, storage: str, changes: Array | None, before: int, after: int) -> Change:
        """From the changes of all outputs."""
        if changes is None or not changes.size:
            return cls(name, storage, np.nan, np.nan, np.nan, before, after)
        d = np.abs(changes, dtype=np.float64)
        return cls(name, storage, float(d.mean()), float(np.quantile(d, QUANTILE)), float(d.max()), before, after)


@dataclass(frozen=True)
class Report:
    """What `quantize` found on its sample: printed, a table.

    Attributes
    ----------
    layers : list of Change
        Each layer alone, fed with the same inputs as the layer of floats.
    end : Change
        The whole: the last outputs, with the changes of all layers in them.
    """

    layers: list[Change] = field(default_factory=list)
    end: Change = field(default_factory=lambda: Change.of("output", "", None, 0, 0))

    def __iter__(self) -> Any:
        return iter([*self.layers, self.end])

    def to_config(self) -> list[dict[str, Any]]:
        """A dictionary for each row, in JSON's types."""
        return [dict(vars(row)) for row in self]

    def __str__(self) -> str:
        measured = not np.isnan(self.end.mean)
        head = ["", "kept as", *(["mean change", "99.9 %", "largest"] if measured else []), "bytes", "before"]
        rows = [head]
        for row in self:
            numbers = [f"{value:.2g}" for value in (row.mean, row.quantile, row.largest)] if measured else []
            rows.append([row.name, row.storage, *numbers, f"{row.after:,}", f"{row.before:,}"])
        widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(w) if at < 2 else cell.rjust(w) for at, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


def joined(reports: Mapping[str, Report], changes: Array | None, rest: int) -> Report:
    """The report of a model from those of its parts by name; `rest` is the bytes of what stays float."""
    layers = [
        Change(f"{name} {row.name}", row.storage, row.mean, row.quantile, row.largest, row.before, row.after)
        for name, report in reports.items()
        for row in report.layers
    ]
    before, after = (sum(getattr(row, side) for row in layers) + rest for side in ("before", "after"))
    return Report(layers, Change.of("output", "", changes, before, after))


class Masked(NamedTuple):
    """The input of the layer in a module: x (B, T, I), and a mask (B, T) or None."""

    x: Any
    mask: Any


def bytes_of(layer: SpecLayer, at: int) -> int:
    """The bytes of all arrays of one layer."""
    return sum(layer._params[key].nbytes for of_d in layer._keys[at] for key in of_d.values())


def _entered(layer: SpecLayer, sample: Any) -> tuple[Array, Batch]:
    """A sample, checked and packed."""
    x, batch = layer._sampled(*sample) if isinstance(sample, Masked) else layer._sampled(sample)
    if not np.isfinite(x).all():
        raise ValueError("sample holds NaN or infinity, so no change can be measured: leave these steps out")
    return x, batch


def outputs_of(layers: Sequence[SpecLayer], sample: Any) -> list[list[Array]]:
    """The outputs of each layer alone as packed rows, of several layers of one shape: their inputs are the first's.

    Returns
    -------
    outputs : a list for each of `layers`, with (N, D*R) for each layer inside
    """
    first = layers[0]
    x, batch = _entered(first, sample)
    found: list[list[Array]] = [[] for _ in layers]
    for at in range(len(first._specs)):
        below: Array | None = None
        for layer, outputs in zip(layers, found, strict=True):
            states = tuple(s[: layer._D] for s in layer._zeros(batch.B))
            blocks = layer._blocks()[1][at : at + 1]
            outputs.append(engine.forward(layer._module, blocks, x, batch, states, packed=True))
            below = outputs[-1] if below is None else below
        assert below is not None
        x = below
    return found


# ------------------------------------------------------------------------------------------------------------ quantize
def quantised(layer: SpecLayer, storage: str, inputs: str | None, sample: Any, tolerance: float | None) -> Any:
    """See `SpecLayer.quantize`."""
    how, limit = checked(storage, inputs, len(layer._specs)), checked_tolerance(tolerance, sample)
    check_floats(layer, "quantize")
    if layer.dtype != np.float32:
        raise ValueError(
            f"quantize takes layers of float32, and {layer!r} computes in {layer.dtype}: load its state_dict() into a "
            "layer of float32"
        )
    made = _kept(layer, how)
    changes: list[Array | None] = [None] * len(layer._specs)
    if sample is not None:
        changes = _changes(layer, made, sample)
        if limit is not None and (worse := [_mean(d) > limit for d in changes]) and any(worse):
            storages = tuple(CAREFUL[storage] if w else storage for w in worse)
            made = _kept(layer, Quantisation(storage, storages, how.inputs))
            changes = _changes(layer, made, sample)
    end = None if sample is None else _end(layer, made, sample)
    made.report = _report(layer, made, changes, end)
    return made


def checked_tolerance(tolerance: Any, sample: Any) -> float | None:
    """The tolerance, a positive number; it needs a sample."""
    if tolerance is None:
        return None
    if sample is None:
        raise ValueError("tolerance is compared with the changes on a sample: give sample=x too")
    return positive_number(tolerance, "tolerance")


def _kept(layer: SpecLayer, how: Quantisation) -> Any:
    layer._choose_for(how.storages)
    made = copy.deepcopy(layer)
    keep(made, how)
    return made.eval()


def _mean(d: Array | None) -> float:
    return float(np.abs(d, dtype=np.float64).mean()) if d is not None and d.size else 0.0


def _changes(layer: SpecLayer, made: SpecLayer, sample: Any) -> list[Array | None]:
    before, after = outputs_of([layer, made], sample)
    return [b - a for a, b in zip(before, after, strict=True)]


def _end(layer: SpecLayer, made: SpecLayer, sample: Any) -> Array:
    x, batch = _entered(layer, sample)
    ends = []
    for one in (layer, made):
        states = one._zeros(batch.B)
        ends.append(engine.forward(one._module, one._blocks()[1], x, batch, states, packed=True))
    return ends[1] - ends[0]


def _report(layer: SpecLayer, made: SpecLayer, changes: Sequence[Array | None], end: Array | None) -> Report:
    rows = [
        Change.of(f"layer {at}", made._storages[at], d, bytes_of(layer, at), bytes_of(made, at))
        for at, d in enumerate(changes)
    ]
    before, after = (sum(getattr(row, side) for row in rows) for side in ("before", "after"))
    return Report(rows, Change.of("output", "", end, before, after))


# ------------------------------------------------------------------------------------------------------------ refusals
def check_types(layer: Layer, own: Mapping[str, Array], d: Mapping[str, Any]) -> None:
    """Raise RuntimeError where arrays for a layer in reduced storage are not of the types that it keeps."""
    wrong = [
        f"{name} has dtype {getattr(d[name], 'dtype', type(d[name]).__name__)}, expected {p.dtype}"
        for name, p in own.items()
        if name in d and getattr(d[name], "dtype", None) != p.dtype
    ]
    if wrong:
        raise RuntimeError(f"state does not fit {layer!r}:\n  " + "\n  ".join(wrong))


def check_floats(layer: Layer, what: str) -> None:
    """Raise ValueError where weights are kept in a reduced storage, which `what` does not take."""
    how = layer._quantised
    if how is not None:
        raise ValueError(
            f"{what} takes weights of float32, and those of {layer!r} are kept as {how.storage}, for inference: take "
            "what it was made from, or dequantize() for the rounded numbers"
        )
