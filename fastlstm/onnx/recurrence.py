"""A recurrent node on our kernels: `Recurrence` takes and returns a node's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import engine
from .._backends import choose
from ..layout import Array
from ..packing import Batch
from ..storage import input_forms
from .nodes import Equation, Weights, weights


class Recurrence:
    """A recurrent node with its weights packed. Calls may come from several threads.

    Parameters
    ----------
    node : Equation
    arrays : mapping
        The node's weights, as `nodes.weights` takes them. They are copied.
    backend : str
        As in `LSTM`.
    storage : str, optional
        How the backend keeps the matrices (`fastlstm.storage`); None: as the weights are.

    Attributes
    ----------
    dtype : dtype
        Of the arithmetic: float64 for weights of float64, else float32.

    Raises
    ------
    FileError
        The weights do not fit the node.
    BackendError
        The backend cannot compute the node.
    """

    def __init__(
        self, node: Equation, arrays: Mapping[str, Array], backend: str = "auto", storage: str | None = None
    ) -> None:
        self.node = node
        self.weights: Weights = weights(node, arrays)
        specs, params = self.weights
        self.dtype = params[0]["weight_hh"].dtype
        kept = storage or self.dtype.name
        self._module = choose(backend, self.dtype.name, specs, kept)
        (form,) = input_forms([specs], [kept])
        self._blocks = [
            [
                self._module.pack(spec, of_one, kept, back, form)
                for spec, of_one, back in zip(specs, params, node.reverse, strict=True)
            ]
        ]

    @property
    def backend(self) -> str:
        """The backend in use."""
        name: str = self._module.__name__.rpartition(".")[2]
        return name

    def __call__(
        self,
        x: Array,
        sequence_lens: Array | None = None,
        initial_h: Array | None = None,
        initial_c: Array | None = None,
    ) -> tuple[Array, ...]:
        """The node's outputs.

        Parameters
        ----------
        x : (T, B, I) array; (B, T, I) with layout=1
        sequence_lens : (B,) integers, optional
            From 0 to T.
        initial_h, initial_c : (D, B, H) arrays, (B, D, H) with layout=1; optional
            None: zeros.

        Returns
        -------
        Y : (T, D, B, H) array; (B, T, D, H) with layout=1
            Zeros past a sequence's length.
        Y_h, and for LSTM Y_c : (D, B, H) arrays; (B, D, H) with layout=1
            The state after each sequence's last step; zeros for a length of 0, as in ONNX Runtime.

        Raises
        ------
        ValueError
            A shape or a length does not fit; the message names the node.
        """
        given = np.asarray(x).dtype
        found = self.views(x, sequence_lens, initial_h, initial_c)
        return tuple(np.ascontiguousarray(a, None if a.dtype == given else given) for a in found)

    def views(
        self,
        x: Array,
        sequence_lens: Array | None,
        initial_h: Array | None,
        initial_c: Array | None,
        by_batch: bool = False,
    ) -> tuple[Array, ...]:
        """As a call, but the outputs are views without a copy: in memory Y is (T, B, D, H).

        With `by_batch`, and with layout=1, Y is (B, T, D, H) in memory.
        """
        node, spec, D = self.node, self.weights.specs[0], self.node.D
        x = np.asarray(x)
        if x.ndim != 3 or x.shape[2] != spec.I:
            axes = "(B, T, I)" if node.batch_first else "(T, B, I)"
            raise ValueError(f"{node.title} takes X of shape {axes} with I = {spec.I}, got {x.shape}")
        x = x.swapaxes(0, 1) if node.batch_first else x
        T, B = x.shape[:2]
        lengths = self._lengths(sequence_lens, T, B)
        states = tuple(
            self._initial(name, state, B)
            for name, state in (("initial_h", initial_h), ("initial_c", initial_c))[: len(spec.initial)]
        )
        by_batch = by_batch or node.batch_first
        batch = Batch.of(T, B, lengths, by_batch)
        y = engine.forward(self._module, self._blocks, x.astype(self.dtype, copy=False), batch, states)
        if lengths is not None and not lengths.all():
            for s in states:
                s[:, lengths == 0] = 0
        y = y.reshape(*y.shape[:2], D, spec.H)
        if node.batch_first:
            return y, *(s.swapaxes(0, 1) for s in states)
        return y.transpose(1, 2, 0, 3) if by_batch else y.swapaxes(1, 2), *states

    def _lengths(self, lengths: Any, T: int, B: int) -> Array | None:
        if lengths is None:
            return None
        found = np.asarray(lengths)
        if found.shape != (B,) or found.dtype.kind not in "iu":
            raise ValueError(
                f"{self.node.title} takes sequence_lens of shape {(B,)}, integers, got {found.dtype} {found.shape}"
            )
        if found.size and (found.min() < 0 or found.max() > T):
            raise ValueError(
                f"{self.node.title} takes sequence_lens from 0 to {T}, the number of steps, "
                f"got {found.min()} to {found.max()}"
            )
        return found.astype(np.int64)

    def _initial(self, name: str, state: Any, B: int) -> Array:
        """A fresh state (D, B, H)."""
        D, H = self.node.D, self.weights.specs[0].H
        if state is None:
            return np.zeros((D, B, H), self.dtype)
        found, shape = np.asarray(state), (B, D, H) if self.node.batch_first else (D, B, H)
        if found.shape != shape:
            raise ValueError(f"{self.node.title} takes {name} of shape {shape}, got {found.shape}")
        return np.array(found.swapaxes(0, 1) if self.node.batch_first else found, self.dtype, order="C")
