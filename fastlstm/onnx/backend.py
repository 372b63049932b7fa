"""fastlstm as a backend of the onnx package (`onnx.backend.base.Backend`): `prepare`, `run_model`, `run_node`.

It runs models of LSTM, GRU and RNN nodes, whose weights may be inputs of the model, and of what is computed of
constants. Unlike the rest of `fastlstm.onnx` it needs the onnx package, which defines these classes.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx.backend.base import Backend as Base
from onnx.backend.base import BackendRep, namedtupledict

from .convert import model_of
from .messages import ModelProto
from .program import Program


class Representation(BackendRep):
    """A model that is ready to run."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def run(self, inputs: Any, **kwargs: Any) -> Any:
        """The outputs, a tuple that can be indexed by their names too.

        Parameters
        ----------
        inputs : sequence of arrays, mapping, or one array
            For the model's inputs without initialisers, in order or by name.

        Raises
        ------
        ValueError
            The number or a shape of the inputs does not fit.
        """
        names = self.program.inputs
        if not isinstance(inputs, dict):
            given = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            if len(given) != len(names):
                raise ValueError(f"the model has {len(names)} inputs ({', '.join(names)}), got {len(given)}")
            inputs = dict(zip(names, given, strict=True))
        return namedtupledict("Outputs", self.program.outputs)(*self.program.run(inputs))


class Backend(Base):
    """ONNX's interface of backends. The keyword ``backend`` of its methods is that of `LSTM`."""

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether the model can be prepared."""
        try:
            Program(model_of(model), **kwargs)
        except ValueError:
            return False
        return cls.supports_device(device)

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> Representation:
        """A model that is ready to run, after onnx's checks.

        Raises
        ------
        onnx.checker.ValidationError
            The model is not valid.
        ValueError
            It has a node that is not run here, or the device is none of the processor's.
        """
        if not cls.supports_device(device):
            raise ValueError(f"device {device!r} is not supported; expected 'CPU'")
        super().prepare(model, device)
        return Representation(Program(model_of(model), **kwargs))

    @classmethod
    def run_node(cls, node: Any, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any) -> Any:
        """The outputs of one node, from its inputs in order (those that it leaves out have no place).

        Raises
        ------
        onnx.checker.ValidationError
            The node is not valid.
        ValueError
            It is not run here, or the inputs do not fit.
        """
        version = {name: kwargs.pop(name) for name in ("opset_version",) if name in kwargs}
        super().run_node(node, inputs, device, outputs_info, **version)
        names = [name for name in dict.fromkeys(node.input) if name]
        graph = onnx.GraphProto(name="node", node=[node])
        graph.input.extend(onnx.ValueInfoProto(name=name) for name in names)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
        proto = ModelProto.from_bytes(onnx.ModelProto(graph=graph).SerializeToString())
        return Representation(Program(proto, **kwargs)).run(inputs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether the device is the processor."""
        return device.partition(":")[0] == "CPU"


is_compatible = Backend.is_compatible
prepare = Backend.prepare
run_model = Backend.run_model
run_node = Backend.run_node
supports_device = Backend.supports_device
