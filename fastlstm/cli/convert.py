"""``fastlstm convert``: a model's file as another library's."""

from __future__ import annotations

import argparse

from .. import convert as conversion
from .common import add_json, check_new, check_outputs, give

NAME = "convert"
HELP = "convert a model between the files of PyTorch, Keras, ONNX and fastlstm"
PRINTS = False
EXAMPLES = (
    "fastlstm convert model.keras model.safetensors",
    "fastlstm convert model.pt lstm.safetensors --name decoder.lstm",
    "fastlstm convert model.safetensors model.keras    # needs Keras",
    "fastlstm convert model.onnx gru.safetensors --name GRU_15",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("source", metavar="SRC", help=".pt, .pth, .safetensors, .keras, .weights.h5, .h5 or .onnx")
    parser.add_argument("target", metavar="DST", help="its end says the library: .safetensors is fastlstm's own")
    parser.add_argument("--name", help="which layer: the name of Keras's layer or ONNX's node, or PyTorch's prefix")
    parser.add_argument("--to", choices=("fastlstm", "torch", "keras", "onnx"), help="(default: by the end of DST)")
    parser.add_argument("--force", action="store_true", help="replace a DST that exists")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Convert, and say what was converted."""
    check_outputs({"DST": options.target}, {"SRC": options.source}, options.force)
    check_new(options.target, options.force)
    layer = conversion.convert(options.source, options.target, options.name, options.to)
    count = sum(p.size for p in layer.parameters().values())
    text = f"{options.target}: {layer!r}, {count:,} parameters"
    give(options, text, out=options.target, layers=repr(layer), count=count, flops=conversion.flops(layer))
    return 0
