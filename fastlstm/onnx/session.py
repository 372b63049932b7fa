"""`Session`: a cut ONNX model with the interface of ONNX Runtime's InferenceSession."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import num_threads
from ..forksafe import Lock
from ..layout import Array
from .cutting import Graph, Step, needed
from .pieces import Piece, Rearranged, Recurrent, Values
from .tensors import to_array
from .types import Argument, check_feed

if TYPE_CHECKING:
    from .acceleration import Summary

States = dict[str, tuple[Array, ...]]


class Whole(Piece):
    """A model of which no node was taken, on ONNX Runtime."""

    def __init__(self, graph: Graph, session: Any) -> None:
        self.session = session
        self.step = Step(0, list(graph.proto.node), [*graph.inputs], [*graph.outputs])

    def run(self, values: Values, outputs: list[str]) -> None:
        found = self.session.run(outputs, {name: values[name] for name in self.step.inputs if name in values})
        values.update(zip(outputs, found, strict=True))


class Session:
    """An ONNX model with its recurrent nodes on fastlstm's kernels; made by `accelerate`.

    Calls of a session without states may come from several threads at once; those of one with states are run one after
    another.

    Attributes
    ----------
    summary : Summary
        Which nodes are on the kernels, and why others are not.
    stateful : bool
    """

    def __init__(
        self,
        graph: Graph,
        steps: Sequence[Piece | Recurrent | Rearranged],
        summary: Summary,
        stateful: bool,
        threads: int | None,
    ) -> None:
        self.summary, self.stateful = summary, stateful
        self._inputs = {value.name: value for value in graph.proto.input if value.name in graph.inputs}
        self._outputs = {value.name: value for value in graph.proto.output}
        folder = graph.model.folder
        self._whole = isinstance(steps[0], Whole)
        defaults = {} if self._whole else graph.defaults
        self._defaults = {name: to_array(tensor, folder) for name, tensor in defaults.items()}
        self._optional = set(graph.defaults)
        self._threads = threads
        self._steps = {id(one.step): one for one in steps}
        self._order = [one.step for one in steps]
        self._plans: dict[tuple[str, ...], list[tuple[Any, list[str], list[str]]]] = {}
        self._states: States = {}
        self._lock = Lock() if stateful else None

    def get_inputs(self) -> list[Argument]:
        """The inputs that a call must have."""
        return [Argument.of(value) for name, value in self._inputs.items() if name not in self._optional]

    def get_overridable_initializers(self) -> list[Argument]:
        """The inputs that a call may have in place of the model's own values."""
        return [Argument.of(value) for name, value in self._inputs.items() if name in self._optional]

    def get_outputs(self) -> list[Argument]:
        """The outputs."""
        return [Argument.of(value) for value in self._outputs.values()]

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[Any]:
        """Compute outputs of the model.

        Parameters
        ----------
        output_names : list of str, or None
            None or an empty list: all outputs, in the model's order.
        input_feed : dict of arrays
            By the names of the inputs. Not changed, and not kept.

        Returns
        -------
        outputs : list of arrays

        Raises
        ------
        ValueError, TypeError
            A name, type or shape does not fit; the states are then as before.
        """
        wanted = tuple(output_names) if output_names else tuple(self._outputs)
        values = self._checked(wanted, input_feed)
        plan = self._plans.get(wanted) or self._plan(wanted)
        with self._lock or nullcontext(), self._limit():
            states: States = {}
            for one, outputs, last in plan:
                if isinstance(one, Piece):
                    one.run(values, outputs)
                elif isinstance(one, Rearranged):
                    one.run(values)
                else:
                    states[one.name] = one.run(values, self._states.get(one.name))
                for name in last:
                    del values[name]
            if self.stateful:
                self._states |= {name: tuple(part.copy() for part in parts) for name, parts in states.items()}
        return [_own(values[name], name, input_feed) for name in wanted]

    def reset(self) -> None:
        """Forget the states: the next call begins with the model's own initial ones.

        Raises
        ------
        ValueError
            The session keeps no states.
        """
        if self._lock is None:
            raise ValueError("this session keeps no states: make one with fl.onnx.accelerate(path, stateful=True)")
        with self._lock:
            self._states = {}

    @property
    def states(self) -> States:
        """Copies of the states by the names of the nodes: (h, c) of an LSTM, (h,) of the others, each (D, B, H)."""
        return {name: tuple(part.copy() for part in parts) for name, parts in self._states.items()}

    def _limit(self) -> AbstractContextManager[None]:
        return nullcontext() if self._threads is None else num_threads.threads(self._threads)

    def _checked(self, wanted: Sequence[str], feed: Mapping[str, Any]) -> Values:
        """The inputs by name, checked."""
        for name in wanted:
            if name not in self._outputs:
                raise ValueError(f"the model has no output {name!r}; its outputs are {', '.join(self._outputs)}")
        values: Values = dict(self._defaults)
        for name, value in feed.items():
            expected = self._inputs.get(name)
            if expected is None:
                raise ValueError(f"the model has no input {name!r}; its inputs are {', '.join(self._inputs)}")
            values[name] = check_feed(value, expected)
        missing = [name for name in self._inputs if name not in values and name not in self._optional]
        if missing:
            raise ValueError(f"the input {missing[0]!r} is missing; the model takes {', '.join(self._inputs)}")
        return values

    def _plan(self, wanted: tuple[str, ...]) -> list[tuple[Any, list[str], list[str]]]:
        """For some outputs: each step, what it gives, and the values that no later step takes."""
        kept = needed(self._order, wanted, lambda step: self.stateful and isinstance(self._steps[id(step)], Recurrent))
        plan, later = [], set(wanted)
        for step, outputs in reversed(kept):
            one = self._steps[id(step)]
            given = outputs if isinstance(one, Piece) else [name for node in step.nodes for name in node.output if name]
            last = [name for name in dict.fromkeys([*step.inputs, *given]) if name not in later]
            later |= set(step.inputs)
            plan.append((one, outputs, [name for name in last if name not in self._inputs]))
        plan.reverse()
        self._plans[wanted] = plan
        return plan


def _own(value: Any, name: str, feed: Mapping[str, Any]) -> Any:
    """An output as an array in order, with memory that is not the caller's."""
    if not isinstance(value, np.ndarray):
        return value
    return np.array(value, order="C", copy=True if value is feed.get(name) else None)
