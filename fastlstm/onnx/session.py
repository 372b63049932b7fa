"""`Session`: a cut ONNX model with the interface of ONNX Runtime's InferenceSession."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import num_threads
from ..forksafe import Lock
from .cutting import Graph, Step, needed
from .pieces import Piece, Rearranged, Recurrent, States, Values
from .tensors import to_array
from .types import Argument, Check

if TYPE_CHECKING:
    from .acceleration import Summary

LEAST_WORK = 8_000_000  # FLOPs in recurrent nodes: with fewer, cutting costs more than the kernels gain
MOST_SHAPES = 4096  # of calls that are remembered

Part = Piece | Recurrent | Rearranged


class Session:
    """An ONNX model with its recurrent nodes on fastlstm's kernels; made by `accelerate`.

    Calls of a session without states may come from several threads at once; those of one with states are run one after
    another. A call with little recurrent work (`LEAST_WORK`), which is quicker uncut, is run by ONNX Runtime as a
    whole (`uncut_calls` counts them); a session with states or with a storage of its own has no such calls.

    Attributes
    ----------
    summary : Summary
        Which nodes are on the kernels, and why others are not.
    stateful : bool
    """

    def __init__(
        self,
        graph: Graph,
        parts: Sequence[tuple[Step, Part]],
        summary: Summary,
        stateful: bool,
        threads: int | None,
        whole: Callable[[], Any] | None = None,
    ) -> None:
        self.summary, self.stateful = summary, stateful
        self._inputs = {value.name: value for value in graph.proto.input if value.name in graph.inputs}
        self._outputs = {value.name: value for value in graph.proto.output}
        self._optional = set(graph.defaults)
        for _, part in parts if stateful else ():
            if isinstance(part, Recurrent):
                self._optional |= set(part.state_inputs.values())
        self._required = [name for name in self._inputs if name not in self._optional]
        self._defaults = {name: to_array(tensor, graph.model.folder) for name, tensor in graph.defaults.items()}
        self._checks = {name: Check(value) for name, value in self._inputs.items()}
        self._threads = threads
        self._parts = list(parts)
        self._plans: dict[tuple[str, ...], list[tuple[Part, list[str], list[str]]]] = {}
        self._states: dict[str, States] = {}
        self._lock = Lock() if stateful else None
        self._uncut = Uncut(whole, [part for _, part in parts if isinstance(part, Recurrent)]) if whole else None

    @property
    def uncut_calls(self) -> int:
        """How many calls had so little recurrent work that ONNX Runtime ran the whole model."""
        return self._uncut.calls if self._uncut is not None else 0

    def get_inputs(self) -> list[Argument]:
        """The inputs that a call must have."""
        return [Argument.of(self._inputs[name]) for name in self._required]

    def get_overridable_initializers(self) -> list[Argument]:
        """The inputs that a call may leave out: those with a default, and states that the session keeps."""
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
        uncut = self._uncut
        shapes: tuple[Any, ...] = ()
        small: bool | None = None
        if uncut is not None:
            named = tuple(output_names) if output_names else None
            shapes = (named, *[getattr(value, "shape", None) for value in getattr(input_feed, "values", tuple)()])
            small = uncut.small.get(shapes)
            if small:
                try:
                    return uncut.run(output_names, input_feed)
                except Exception:
                    self._checked(input_feed)  # which says it better
                    raise
        wanted = tuple(output_names) if output_names else tuple(self._outputs)
        plan = self._plans.get(wanted) or self._plan(wanted)
        values = self._checked(input_feed)
        given, values = values, self._defaults | values if self._defaults else dict(values)
        if self._threads is None or self._threads == num_threads.get_num_threads():
            work = self._compute(plan, values)
        else:
            with num_threads.threads(self._threads):
                work = self._compute(plan, values)
        if uncut is not None and small is None and uncut.decide(shapes, work):
            return uncut.run(wanted, given)  # as the next calls of this shape, so that they have the same bits
        return [_own(values[name], given.get(name)) for name in wanted]

    def _compute(self, plan: list[tuple[Part, list[str], list[str]]], values: Values) -> int:
        """Run the steps, and return the FLOPs of the recurrent nodes."""
        if self._lock is not None:
            with self._lock:
                states: dict[str, States] = {}
                for one, outputs, last in plan:
                    if isinstance(one, Recurrent):
                        found = one.run(values, outputs, self._states.get(one.name))
                        states[one.name] = tuple([part.copy() for part in found])
                    else:
                        one.run(values, outputs, None)
                    for name in last:
                        del values[name]
                self._states |= states
            return 0
        work = 0
        for one, outputs, last in plan:
            one.run(values, outputs, None)
            if isinstance(one, Recurrent):
                work += one.work_of(values)
            for name in last:
                del values[name]
        return work

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
    def states(self) -> dict[str, States]:
        """Copies of the states by the names of the nodes: (h, c) of an LSTM, (h,) of the others, each (D, B, H)."""
        return {name: tuple(part.copy() for part in parts) for name, parts in self._states.items()}

    def _checked(self, feed: Mapping[str, Any]) -> Values:
        """The inputs as arrays, checked."""
        values = {}
        if not isinstance(feed, Mapping):
            raise TypeError(f"input_feed is a dict of arrays by the names of inputs, got {type(feed).__name__}")
        for name, value in feed.items():
            check = self._checks.get(name)
            if check is None:
                raise ValueError(f"the model has no input {name!r}; its inputs are {', '.join(self._inputs)}")
            values[name] = check(value)
        for name in self._required:
            if name not in values:
                raise ValueError(f"the input {name!r} is missing; the model takes {', '.join(self._inputs)}")
        return values

    def _plan(self, wanted: tuple[str, ...]) -> list[tuple[Part, list[str], list[str]]]:
        """For some outputs: each step, what it gives, and the values that no later step takes."""
        for name in wanted:
            if name not in self._outputs:
                raise ValueError(f"the model has no output {name!r}; its outputs are {', '.join(self._outputs)}")
        parts = {id(step): part for step, part in self._parts}
        steps = [step for step, _ in self._parts]
        kept = needed(steps, wanted, lambda step: self.stateful and isinstance(parts[id(step)], Recurrent))
        plan, later = [], set(wanted) | set(self._inputs)
        for step, outputs in reversed(kept):
            part = parts[id(step)]
            given = outputs if isinstance(part, Piece) else step.made
            last = [name for name in dict.fromkeys([*step.inputs, *given]) if name not in later]
            later |= set(step.inputs)
            plan.append((part, outputs, last))
        plan.reverse()
        self._plans[wanted] = plan
        return plan


class Whole(Piece):
    """A model of which no node was taken, on ONNX Runtime."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def run(self, values: Values, outputs: list[str], kept: States | None) -> None:
        """Compute some of the outputs."""
        names = [one.name for one in self.session.get_inputs() + self.session.get_overridable_initializers()]
        found = self.session.run(outputs, {name: values[name] for name in names if name in values})
        values.update(zip(outputs, found, strict=True))


class Uncut:
    """The whole model on ONNX Runtime, for calls with little recurrent work.

    Parameters
    ----------
    make : function
        Returns ONNX Runtime's session; called when the first such call comes.
    recurrent : list of Recurrent

    Attributes
    ----------
    small : dict
        By the shapes of the inputs whether a call has little work.
    """

    def __init__(self, make: Callable[[], Any], recurrent: list[Recurrent]) -> None:
        self.small: dict[tuple[Any, ...], bool] = {}
        self.calls = 0
        self._make, self._failed = make, False
        self._session: Any = None
        self._lock = Lock()

    def decide(self, shapes: tuple[Any, ...], work: int) -> bool:
        """Whether calls of these shapes, behind the names of the outputs, have little work, from the FLOPs of one."""
        empty = any(0 in shape for shape in shapes[1:] if shape)  # ONNX Runtime's LSTM of no sequence ends the process
        small = work < LEAST_WORK and not empty and self._ready()
        if len(self.small) >= MOST_SHAPES:
            self.small.clear()
        self.small[shapes] = small
        return small

    def _ready(self) -> bool:
        """Whether there is a session of the whole model."""
        with self._lock:
            if self._session is None and not self._failed:
                try:
                    self._session = self._make()
                except Exception:  # ONNX Runtime has not all that the kernels have, layout=1 for one
                    self._failed = True
            return not self._failed

    def run(self, wanted: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """Run the whole model."""
        self.calls += 1
        found: list[Any] = self._session.run(wanted or None, feed)
        return found


def _own(value: Any, given: Any) -> Any:
    """An output as an array in order, with memory that is not the caller's."""
    if not isinstance(value, np.ndarray) or (value.flags.c_contiguous and value is not given):
        return value
    return np.array(value, order="C")
