"""PyTorch's recurrent modules on our kernels: subclasses that compute the same and keep everything else.

`accelerate` makes a module one of these by its class alone: parameters, hooks and attributes stay. A call that the
kernels cannot compute is PyTorch's, and counted with its reason.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from ..layout import Rows
from ..packing import Batch
from .recurrence import Call, Outputs, Recurrence, infer, recorded
from .weights import Form, Kernels

PLAIN = (torch.Tensor, nn.Parameter)  # other tensors may compute in another way
_VF = torch._VF

# Reasons to leave a whole call on PyTorch, each with its test.
ELSEWHERE: dict[str, Callable[[], Any]] = {
    "autocast": getattr(torch._C, "_is_any_autocast_enabled", torch.is_autocast_enabled),
    "torch.jit.trace": torch.jit.is_tracing,
    "a transform of torch.func": getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None),
    "a TorchDispatchMode": getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0),
    "torch.compile of a cell, torch.export": torch.compiler.is_compiling,
    "forward-mode differentiation": lambda: torch.autograd.forward_ad._current_level >= 0,
}


def _plain(tensor: Any) -> str | None:
    """Why the kernels cannot read a tensor; None where they can."""
    if tensor.dtype is torch.float32 and tensor.is_cpu and type(tensor) in PLAIN and tensor.layout is torch.strided:
        return "a lazily negated tensor" if tensor.is_neg() else None
    if not isinstance(tensor, torch.Tensor) or type(tensor) not in PLAIN:
        return f"a {type(tensor).__name__}"
    if not tensor.is_cpu:
        return f"a tensor on {tensor.device.type}"
    return f"{str(tensor.dtype).removeprefix('torch.')}" if tensor.layout is torch.strided else "a sparse tensor"


def why_not(tensors: Sequence[Any]) -> str | None:
    """Why a call with these tensors is PyTorch's; None where the kernels compute it."""
    for reason, found in ELSEWHERE.items():
        if found():
            return reason
    for tensor in tensors:
        if (why := _plain(tensor)) is not None:
            return why
    return None


@functools.cache
def _outside_graphs(function: Any) -> Any:
    """The function, which torch.compile neither traces nor compiles."""
    return torch._dynamo.disable(function)


WRONG = "shapes or types that PyTorch refuses, or an empty batch"


class _Accelerated:
    """What accelerated layers and cells share. A mixin before PyTorch's class, whose attributes it uses."""

    def _own_kernels(self: Any) -> Kernels:
        kernels: Kernels | None = self.__dict__.get("_kernels")
        if kernels is None:
            kernels = self.__dict__["_kernels"] = Kernels(Form.of(self))
        return kernels

    def forward(self: Any, input: Any, hx: Any = None) -> Any:
        """As in PyTorch."""
        if torch.compiler.is_compiling():  # traced
            return self._by_torch("torch.compile of a cell, torch.export", input, hx)
        if "torch._dynamo" in sys.modules:  # torch.compile is in use: this call stays out of its graph
            return _outside_graphs(type(self)._forward)(self, input, hx)
        return self._forward(input, hx)

    def _by_torch(self: Any, why: str, input: Any, hx: Any) -> Any:
        """The call by PyTorch's own class."""
        if not torch.compiler.is_compiling():
            self._own_kernels().left[why] += 1
        return super().forward(input, hx)  # type: ignore[misc]

    def _weights(self: Any, names: Sequence[str]) -> list[Any]:
        """The tensors that PyTorch would use: parameters, or what a parametrisation put in their place."""
        parameters = self._parameters
        found = [parameters.get(name) for name in names]
        return [getattr(self, n, None) if w is None else w for w, n in zip(found, names, strict=True)]

    def _compute(self: Any, x: Any, h: Any, c: Any, weights: Any, batch: Any, rows: bool, native: Any) -> Outputs:
        """The outputs on the kernels; recorded where a gradient may be asked for."""
        kernels = self._own_kernels()
        kernels.calls += 1
        dropout = self.dropout if not kernels.form.cell and self.training and self.num_layers > 1 else 0.0
        given = (x, h, c, *weights)
        record = recorded(given) and not self._refused(kernels, (x, h, c))
        blocks = kernels.training_blocks(weights) if record else kernels.inference_blocks(weights)
        call = Call(kernels.form, blocks, batch, rows, dropout, native)
        outputs: Outputs = Recurrence.apply(call, *given) if record else infer(call, x, h, c)
        return outputs

    def _refused(self: Any, kernels: Kernels, inputs: Sequence[Any]) -> bool:
        """Whether this call has no gradient because of the weights' storage.

        Raises
        ------
        RuntimeError
            A gradient may be asked for: in training mode, or of an input.
        """
        if kernels.storage == "float32":
            return False
        if self.training or any(t is not None and t.requires_grad for t in inputs):
            raise RuntimeError(
                f"{type(self).__name__} was accelerated with storage={kernels.storage!r}, for inference: call "
                "model.eval(), and the model under torch.no_grad() where an input has a gradient; to train it, "
                "accelerate it anew without storage"
            )
        return True

    def _forget(self: Any) -> None:
        kernels = self.__dict__.get("_kernels")
        if kernels is not None:
            kernels.forget()

    def _load_from_state_dict(self: Any, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)  # type: ignore[misc]
        self._forget()

    def _apply(self: Any, fn: Any, recurse: bool = True) -> Any:
        self._forget()
        return super()._apply(fn, recurse)  # type: ignore[misc]

    def __prepare_scriptable__(self: Any) -> Any:
        """TorchScript compiles PyTorch's own class."""
        plain: Any = object.__new__(next(base for base in type(self).__mro__ if base.__module__.startswith("torch.")))
        plain.__dict__.update({name: value for name, value in self.__dict__.items() if name != "_kernels"})
        return plain


class _Layer(_Accelerated):
    def _forward(self: Any, input: Any, hx: Any = None) -> Any:
        packed = isinstance(input, PackedSequence)
        x = input.data if packed else input
        weights = self._weights(self._own_kernels().form.flat_names)
        states = () if hx is None else tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        why = why_not((x, *states, *weights))
        if why is None:
            found = self._of_rows(input, hx, weights) if packed else self._of_batch(x, hx, weights)
            if found is not None:
                return found
        return self._by_torch(why or WRONG, input, hx)

    def _state(self: Any, hx: Any, B: int) -> tuple[Any, Any] | None:
        """(h, c) of a state that fits B sequences, None for what is absent; None altogether where it does not fit."""
        if hx is None:
            return None, None
        form = self._own_kernels().form
        parts = (hx,) if not form.has_c else hx
        if not isinstance(parts, (tuple, list)) or len(parts) != len(form.specs[0][0].initial):
            return None
        LD = len(form.specs) * len(form.specs[0])
        for part, width in zip(parts, form.specs[0][0].initial.values(), strict=True):
            if part.shape != (LD, B, width):
                return None
        return (parts[0], parts[1]) if form.has_c else (parts[0], None)

    def _of_batch(self: Any, x: Any, hx: Any, weights: Any) -> Any:
        """The result for a tensor; None where its shape or the state's is wrong."""
        batched, batch_first = x.dim() == 3, self.batch_first
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size or x.numel() == 0:
            return None
        if not batched:
            x = x.unsqueeze(0 if batch_first else 1)
            hx = (
                tuple(s.unsqueeze(1) for s in hx)
                if isinstance(hx, (tuple, list))
                else hx
                if hx is None
                else hx.unsqueeze(1)
            )
        B, T = x.shape[:2] if batch_first else (x.shape[1], x.shape[0])
        state = self._state(hx, B)
        if state is None:
            return None

        def native(x: Any, h: Any, c: Any, weights: Any) -> Outputs:
            outputs: Outputs = self._native((x,), h, c, weights, B, (batch_first,))
            return outputs

        y, *hidden = self._compute(x, *state, weights, Batch.of(T, B, None, batch_first), False, native)
        if not batched:
            y, hidden = y.squeeze(0 if batch_first else 1), [s.squeeze(1) for s in hidden]
        return y, tuple(hidden) if len(hidden) > 1 else hidden[0]

    def _of_rows(self: Any, input: Any, hx: Any, weights: Any) -> Any:
        """The result for a PackedSequence; None where its parts do not belong together."""
        data, sizes, order, back = input
        if sizes.dtype is not torch.int64 or not sizes.is_cpu or sizes.dim() != 1 or data.dim() != 2:
            return None
        n = np.array(sizes.numpy())  # a copy, since the kernels go by it
        if (
            len(n) == 0
            or n[-1] < 1
            or (n[1:] > n[:-1]).any()
            or n.sum() != len(data)
            or data.shape[1] != self.input_size
        ):
            return None
        B = int(n[0])
        if hx is not None and order is not None:
            hx = self.permute_hidden(hx, order)
        state = self._state(hx, B)
        if state is None:
            return None

        def native(x: Any, h: Any, c: Any, weights: Any) -> Outputs:
            outputs: Outputs = self._native((x, sizes), h, c, weights, B, ())
            return outputs

        batch = Batch(len(n), B, False, Rows(n), None)
        y, *hidden = self._compute(data, *state, weights, batch, True, native)
        final = tuple(hidden) if len(hidden) > 1 else hidden[0]
        return PackedSequence(y, sizes, order, back), final if back is None else self.permute_hidden(final, back)

    def _native(self: Any, x: Any, h: Any, c: Any, weights: Any, B: int, last: tuple[bool, ...]) -> Outputs:
        """The outputs by PyTorch's operations, without dropout."""
        form = self._own_kernels().form
        if h is None:
            LD = len(form.specs) * len(form.specs[0])
            h, c = (torch.zeros(LD, B, width) for width in (form.specs[0][0].R, self.hidden_size))
        function = getattr(_VF, self.mode.lower())
        state = (h, c) if form.has_c else h
        options = (self.bias, self.num_layers, 0.0, False, self.bidirectional, *last)
        outputs: Outputs = function(*x, state, weights, *options)
        return outputs


class _Cell(_Accelerated):
    def _forward(self: Any, input: Any, hx: Any = None) -> Any:
        form = self._own_kernels().form
        weights = self._weights(form.flat_names)
        parts = () if hx is None else tuple(hx) if form.has_c and isinstance(hx, (tuple, list)) else (hx,)
        why = why_not((input, *parts, *weights))
        if why is not None or not self._fits(input, parts, form):
            return self._by_torch(why or WRONG, input, hx)
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        h, c = (*(p if batched else p.unsqueeze(0) for p in parts), None, None)[:2]
        batch = Batch.of(1, len(x), None)
        outputs = self._compute(x, h, c, weights, batch, True, self._native)
        outputs = outputs if batched else tuple(o.squeeze(0) for o in outputs)
        return outputs if form.has_c else outputs[0]

    def _fits(self: Any, x: Any, parts: Sequence[Any], form: Form) -> bool:
        """Whether shapes are those that PyTorch takes."""
        if x.dim() not in (1, 2) or x.shape[-1] != self.input_size or x.numel() == 0:
            return False
        expected = (*x.shape[:-1], self.hidden_size)
        return len(parts) in (0, 2 if form.has_c else 1) and all(part.shape == expected for part in parts)

    def _native(self: Any, x: Any, h: Any, c: Any, weights: Any) -> Outputs:
        """The outputs by PyTorch's operations."""
        form = self._own_kernels().form
        if h is None:
            h = c = torch.zeros(len(x), self.hidden_size)
        biases = weights[2:] if self.bias else (None, None)
        relu = getattr(self, "nonlinearity", "tanh") == "relu"
        name = form.specs[0][0].kind + ("" if form.specs[0][0].kind != "rnn" else "_relu" if relu else "_tanh")
        found = getattr(_VF, f"{name}_cell")(x, (h, c) if form.has_c else h, *weights[:2], *biases)
        return tuple(found) if form.has_c else (found,)


class LSTM(_Layer, nn.LSTM):
    """nn.LSTM on fastlstm's kernels."""


class GRU(_Layer, nn.GRU):
    """nn.GRU on fastlstm's kernels."""


class RNN(_Layer, nn.RNN):
    """nn.RNN on fastlstm's kernels."""


class LSTMCell(_Cell, nn.LSTMCell):
    """nn.LSTMCell on fastlstm's kernels."""


class GRUCell(_Cell, nn.GRUCell):
    """nn.GRUCell on fastlstm's kernels."""


class RNNCell(_Cell, nn.RNNCell):
    """nn.RNNCell on fastlstm's kernels."""


CLASSES: dict[type, type] = {cls.__mro__[3]: cls for cls in (LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell)}
