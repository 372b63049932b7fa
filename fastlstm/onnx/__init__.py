"""ONNX models, read and written without the onnx package.

`protobuf` has the wire format, `messages` ONNX's messages (`read_model`), `tensors` the numbers of tensors.
"""
