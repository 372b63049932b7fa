"""`accelerate`: the recurrent modules of a PyTorch model, in place, on our kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._backends import choose
from ..taken import Taken
from ..validation import flag
from .weights import Form, Kernels

RECURRENT = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


@dataclass
class Entry:
    """One recurrent module of a model.

    Attributes
    ----------
    name : str
        As ``model.named_modules()`` gives it; "" for the model itself.
    module : nn.Module
    why : str or None
        Why it was left on PyTorch; None where it is accelerated.
    """

    name: str
    module: Any
    why: str | None

    def __str__(self) -> str:
        shown = f"{self.name or '(the model itself)'}: {type(self.module).__name__}({self.module.extra_repr()})"
        if self.why is not None:
            return f"{shown}: left on PyTorch: {self.why}"
        kernels: Kernels | None = self.module.__dict__.get("_kernels")
        if kernels is not None and kernels.storage != "float32":
            shown += f", weights kept as {kernels.storage}"
        if kernels is None or not (kernels.calls or kernels.left):
            return f"{shown}: accelerated"
        left = "".join(f", {n} left on PyTorch ({why})" for why, n in kernels.left.items())
        return f"{shown}: accelerated; {kernels.calls} calls on the kernels{left}"


@dataclass
class Summary(Taken[Entry]):
    """What `accelerate` did, module by module. Printed, it also says which calls were left on PyTorch since, and why.

    Attributes
    ----------
    entries : list of Entry
    """

    entries: list[Entry]

    def __str__(self) -> str:
        if not self.entries:
            return "no recurrent module: the model has no nn.LSTM, GRU, RNN or cell of them"
        return "\n".join(map(str, self.entries))


def accelerate(model: Any, frozen: bool = False, storage: str | None = None) -> Summary:
    """Let every nn.LSTM, GRU, RNN and cell in a PyTorch model compute on fastlstm's kernels, in inference and training.

    Each keeps its identity, parameters, attributes and hooks, and stays an instance of its class: only its class
    changes, to a subclass. Everything around it, `state_dict`, optimisers, saving, copying, works as before.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place; it may be a recurrent module itself.
    frozen : bool
        Leave out the check whether weights have changed since they were packed, which inference else makes in each call
        (about 15 us for each MiB of weights). For models whose weights change by training calls and `load_state_dict`
        alone.
    storage : {None, "float32", "float16", "int8"}
        How the kernels keep the weights (`fastlstm.storage`). All but float32 are for inference: the outputs of modules
        in evaluation mode have no gradient, and calls that ask for one are refused. The parameters stay as they are;
        where they have changed they are packed anew.

    Returns
    -------
    summary : Summary
        Which modules were accelerated, and why others were not; ``print(summary)`` shows them.

    Raises
    ------
    TypeError
        The model is no torch.nn.Module, or frozen no bool.
    BackendError
        The compiled backend cannot be used here, or has not this storage; nothing is changed then.
    """
    from torch import nn

    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate takes a torch.nn.Module, got {type(model).__name__}")
    frozen = flag(frozen, "frozen")
    choose("c", "float32", (), storage)
    entries = []
    for name, module in model.named_modules():
        if any(base.__name__ in RECURRENT for base in type(module).__mro__) or _scripted(module):
            entries.append(Entry(name, module, _why_left(module, storage)))
    for entry in entries:
        if entry.why is None:
            _replace(entry.module, frozen, storage or "float32")
    return Summary(entries)


def _scripted(module: Any) -> bool:
    return getattr(module, "original_name", None) in RECURRENT


def _why_left(module: Any, storage: str | None) -> str | None:
    """Why a recurrent module cannot be accelerated; None where it can."""
    from .modules import CLASSES, _plain

    cls = type(module)
    if cls not in CLASSES and cls not in CLASSES.values():
        if _scripted(module):
            return "it is compiled by TorchScript; accelerate the model before torch.jit.script"
        if not issubclass(cls, tuple(CLASSES)):
            return f"it is a {cls.__module__}.{cls.__qualname__}, which computes in its own way"
        return f"its class {cls.__name__} derives from {cls.__mro__[1].__name__} and may compute something else"
    if getattr(module, "nonlinearity", "tanh") not in ("tanh", "relu"):
        return f"nonlinearity is {module.nonlinearity!r}"
    for parameter in module.parameters():
        if (why := _plain(parameter)) is not None:
            return f"its weights are {why}; the kernels compute with float32 on the CPU"
    form = Form.of(module)
    choose("c", "float32", form.specs[0], storage)
    return None


def _replace(module: Any, frozen: bool, storage: str) -> None:
    from .modules import CLASSES

    module.__class__ = CLASSES.get(type(module), type(module))
    module.__dict__["_kernels"] = Kernels(Form.of(module), frozen, storage)
