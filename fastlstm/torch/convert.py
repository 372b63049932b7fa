"""A layer from PyTorch's modules, state_dicts and files, and a PyTorch module from a layer."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._readers.torch_files import flatten, load
from .._readers.torch_values import Module
from ..cell import Cell, GRUCell, LSTMCell, RNNCell
from ..layout import Array, suffix
from ..quantise import check_floats
from ..recurrent import GRU, LSTM, RNN, Recurrent
from ..spec import ACTIVATIONS, GATES, Kind, Spec

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")  # of a direction's parameters, in PyTorch
PARAMETER = re.compile(rf"(?P<prefix>(.*\.)?)({'|'.join(NAMES)})(_l\d+(_reverse)?)?\Z")

LAYERS: dict[Kind, type[Recurrent]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
CELLS: dict[Kind, type[Cell]] = {"lstm": LSTMCell, "gru": GRUCell, "rnn": RNNCell}
OPTIONS = ("batch_first", "dropout", "nonlinearity", "dtype", "backend", "seed")  # what a caller may add
SAID = ("batch_first", "dropout", "nonlinearity")  # what a live or whole module says of itself
LISTED = 50  # groups in a message


@dataclass
class Group:
    """The parameters of one recurrent module, by their names in it."""

    arrays: dict[str, Array] = field(default_factory=dict)

    @property
    def cell(self) -> bool:
        return "weight_ih" in self.arrays

    def first(self, name: str) -> Array | None:
        found = self.arrays.get(name)
        return self.arrays.get(f"{name}_l0") if found is None else found

    def describe(self, prefix: str) -> str:
        try:
            kind, config = self.config(prefix)
        except ValueError as error:
            return f"{prefix!r}: {error}"
        given = ", ".join(f"{name}={value}" for name, value in config.items() if value not in (False, 0))
        return f"{prefix!r}: {kind.upper()}{'Cell' if self.cell else ''}, {given}"

    def config(self, prefix: str) -> tuple[Kind, dict[str, Any]]:
        """Kind and sizes, by the shapes of all parameters.

        Raises
        ------
        ValueError
            They belong to no module of PyTorch; the message names the first that does not fit.
        """
        w, r, p = (self.first(name) for name in ("weight_ih", "weight_hh", "weight_hr"))
        if w is None or r is None or any(a is not None and a.ndim != 2 for a in (w, r, p)):
            raise ValueError(f"{prefix}weight_ih_l0 or {prefix}weight_hh_l0 is missing, or no matrix")
        R = r.shape[1]
        H = R if p is None else p.shape[1]
        projected = p is not None
        kind = next((kind for kind in LAYERS if r.shape[0] == len(GATES[kind]) * H), None)
        if not kind or not H or not w.shape[1] or (projected and (kind != "lstm" or self.cell or not 0 < R < H)):
            raise ValueError(f"{prefix}weight_hh_l0 has shape {r.shape}, which is that of no LSTM, GRU or RNN")
        bias = self.first("bias_ih") is not None
        config: dict[str, Any] = {"input_size": w.shape[1], "hidden_size": H}
        layers, D = 1, 1
        if not self.cell:
            layers = len({name for name in self.arrays if re.fullmatch(r"weight_ih_l\d+", name)})
            D = 2 if "weight_ih_l0_reverse" in self.arrays else 1
            config |= {"num_layers": layers, "bidirectional": D == 2, "proj_size": R if projected else 0}
        config["bias"] = bias
        expected: dict[str, tuple[int, ...]] = {}
        for layer in range(layers):
            spec = Spec(kind, w.shape[1] if layer == 0 else D * R, H, proj_size=R if projected else 0, biases=2 * bias)
            for d in range(D):
                tail = "" if self.cell else suffix(layer, d)
                expected |= {name + tail: shape for name, shape in spec.parameters.items()}
        self._check(prefix, expected)
        if config.get("proj_size") == 0:
            del config["proj_size"]
        return kind, config

    def _check(self, prefix: str, expected: dict[str, tuple[int, ...]]) -> None:
        for name, shape in expected.items():
            if name not in self.arrays:
                raise ValueError(f"{prefix}{name} is missing")
            if self.arrays[name].shape != shape:
                raise ValueError(f"{prefix}{name} has shape {self.arrays[name].shape}, expected {shape}")
        for name in self.arrays:
            if name not in expected:
                raise ValueError(f"{prefix}{name} belongs to no layer or direction that weight_ih and weight_hh have")


def from_torch(x: Any, prefix: str = "", **options: Any) -> Any:
    """A layer with the weights of a PyTorch module, state_dict or file.

    Parameters
    ----------
    x : module, mapping or path
        An ``nn.LSTM``, ``nn.GRU``, ``nn.RNN``, one of their cells, or a module with one inside; a ``state_dict``; the
        path of a ``.pt``, ``.pth`` or ``.safetensors`` file, which is read without PyTorch and can run nothing.
    prefix : str
        What stands before ``weight_ih_l0`` in the names, such as ``"decoder.lstm."``; the last dot may be left out.
    **options
        ``batch_first``, ``dropout``, ``nonlinearity``, ``dtype``, ``backend``, ``seed`` of the layer. The first three
        are those of a module where x holds one. The dtype is float64 for float64, else float32, which holds half and
        bfloat16 exactly.

    Returns
    -------
    LSTM, GRU, RNN or a cell
        Its parameters are copies, equal bit for bit.

    Raises
    ------
    ValueError
        x holds no recurrent parameters under that prefix (the message lists those that it holds), or some that do not
        belong together; `FileError`, a ValueError, for files.
    TypeError
        x or an option is of another kind.
    OSError
        The file cannot be read.
    """
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise TypeError(
            f"from_torch has no option {unknown[0]!r}; options: {', '.join(OPTIONS)}. The sizes are those of the arrays"
        )
    arrays, said = _take(x, prefix)
    group = _choose(_groups(arrays), prefix)
    at = prefix if not prefix or prefix.endswith(".") else prefix + "."
    kind, config = group.config(at)
    config |= _options(kind, group, said, options)
    if group.cell:
        for name in ("batch_first", "dropout"):
            if config.pop(name, 0):
                raise TypeError(f"{name} is an option of layers; {at}weight_ih is a cell's")
    layer = (CELLS if group.cell else LAYERS)[kind](**config)
    layer.load_state_dict(group.arrays)
    return layer


def _options(kind: Kind, group: Group, said: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The options of a layer: those that are given, else those that the module says of itself."""
    options = {**{name: value for name, value in said.items() if name in SAID}, **given}
    if kind != "rnn":
        if "nonlinearity" in given:
            raise TypeError(f"nonlinearity is an option of RNN; these parameters are those of {kind.upper()}")
        options.pop("nonlinearity", None)
    elif "nonlinearity" not in options:
        raise ValueError("an RNN's arrays do not say its nonlinearity: give nonlinearity='tanh' or nonlinearity='relu'")
    elif options["nonlinearity"] != said.get("nonlinearity", options["nonlinearity"]):
        mine, its = options["nonlinearity"], said["nonlinearity"]
        raise ValueError(f"nonlinearity={mine!r} is given, and the module has {its!r}")
    if options.get("dtype") is None:
        options["dtype"] = "float64" if all(a.dtype == np.float64 for a in group.arrays.values()) else "float32"
    return options


def _take(x: Any, prefix: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays of x by name, and what the module at the prefix says of itself."""
    if isinstance(x, (str, os.PathLike)):
        value = load(x)
        return flatten(value), _said(_inside(value, prefix))
    if isinstance(x, Mapping):
        return {str(name): array for name, value in x.items() if (array := _array(value)) is not None}, {}
    if not callable(getattr(x, "state_dict", None)):
        raise TypeError(
            f"from_torch takes a PyTorch module, a state_dict or the path of a file, got {type(x).__name__}"
        )
    arrays = {name: array for name, value in x.state_dict().items() if (array := _array(value)) is not None}
    module = x
    for name in filter(None, prefix.split(".")):
        module = getattr(module, name, None)
    return arrays, _said(module)


def _inside(value: Any, prefix: str) -> Any:
    for name in filter(None, prefix.split(".")):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _said(module: Any) -> dict[str, Any]:
    """What a module, live or of a file, says of its options."""
    of = module.attributes if isinstance(module, Module) else getattr(module, "__dict__", {})
    said = {name: of[name] for name in SAID if name in of}
    mode = of.get("mode")
    if mode in ("RNN_TANH", "RNN_RELU"):
        said["nonlinearity"] = mode.removeprefix("RNN_").lower()
    if said.get("dropout") and of.get("num_layers") == 1:  # without effect in PyTorch too
        said["dropout"] = 0.0
    return said


def _array(value: Any) -> Array | None:
    """The numbers of a tensor or array; None of anything else."""
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "detach"):
        return None
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":  # NumPy has none; float32 holds it exactly
        value = value.float()
    array: Array = value.numpy()
    return array


def _groups(arrays: Mapping[str, Array]) -> dict[str, Group]:
    """The recurrent modules among the arrays, by prefix."""
    groups: dict[str, Group] = {}
    for name, array in arrays.items():
        if found := PARAMETER.match(name):
            groups.setdefault(found["prefix"], Group()).arrays[name[len(found["prefix"]) :]] = array
    return {prefix: group for prefix, group in groups.items() if group.first("weight_hh") is not None}


def _choose(groups: dict[str, Group], prefix: str) -> Group:
    for name in (prefix, prefix + "."):
        if name in groups:
            return groups[name]
    if not groups:
        raise ValueError("it holds no recurrent layer: no name in it ends with weight_hh_l0 or weight_hh")
    found = "".join(f"\n  {group.describe(name)}" for name, group in sorted(groups.items())[:LISTED])
    more = f"\n  and {len(groups) - LISTED} more" if len(groups) > LISTED else ""
    asked = f"there is no recurrent layer with the prefix {prefix!r}" if prefix else "a prefix is needed"
    raise ValueError(f"{asked}; give prefix= one of these:{found}{more}")


def to_torch(layer: Any) -> Any:
    """A PyTorch module with the weights of a layer or cell, equal bit for bit, on the CPU.

    Parameters
    ----------
    layer : LSTM, GRU, RNN or a cell

    Returns
    -------
    torch.nn.LSTM, GRU, RNN or a cell
        In the same mode: training or not. PyTorch has two biases: of a layer with ``single_bias=True`` the second one
        is 0 there.

    Raises
    ------
    ImportError
        PyTorch is not installed.
    ValueError
        PyTorch has no module of this equation; the message says why.
    """
    if not isinstance(layer, (Recurrent, Cell)):
        raise TypeError(f"to_torch takes an LSTM, GRU, RNN or one of their cells, got {type(layer).__name__}")
    check_floats(layer, "to_torch")
    specs = layer._specs[0]
    spec = specs[0]
    nonlinearity = spec.activations[0].name
    relu: dict[str, Any] = {"activations": spec.activations} if spec.activations == (ACTIVATIONS["relu"],) else {}
    options: dict[str, Any] = {"proj_size": spec.proj_size, "biases": spec.biases, **relu}
    plain = Spec(spec.kind, spec.input_size, spec.hidden_size, **options)
    if any(one != plain for one in specs) or getattr(layer, "reverse", False):
        raise ValueError(
            f"PyTorch has no module for {layer!r}: its LSTM, GRU and RNN have no peepholes, no clip, no input_forget, "
            "no reset_after=False, no reverse, and no activations but tanh and sigmoid (RNN: tanh or relu)"
        )
    import torch

    options = {"bias": spec.biases > 0, "dtype": getattr(torch, layer.dtype.name)}
    if spec.kind == "rnn":
        options["nonlinearity"] = nonlinearity
    if isinstance(layer, Recurrent):
        options |= {"num_layers": layer.num_layers, "batch_first": layer.batch_first}
        options |= {"dropout": layer.dropout, "bidirectional": layer.bidirectional}
        options |= {"proj_size": spec.proj_size} if spec.proj_size else {}
    made = getattr(torch.nn, type(layer).__name__)(spec.input_size, spec.hidden_size, **options)
    weights = {name: torch.from_numpy(value) for name, value in layer.state_dict().items()}
    if spec.biases == 1:
        weights |= {n.replace("bias_ih", "bias_hh"): torch.zeros_like(w) for n, w in weights.items() if "bias_ih" in n}
    made.load_state_dict(weights)
    return made.train(layer.training) if hasattr(layer, "training") else made
