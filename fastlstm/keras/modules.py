"""One module of ours for each of Keras's layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import nn
from .._keras_weights import from_keras as our_parameters
from .._readers.keras_files import KerasLayer
from .._readers.keras_layers import KINDS, Meaning, meaning, plain_weights
from ..layout import Array, suffix
from ..nn.base import Module
from ..nn.recurrent import Recurrent
from .plain import Plain

CLASSES: dict[str, type[Recurrent]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.SimpleRNN}
PARTS = ("kernel", "recurrent", "bias")  # of a recurrent layer's penalties


class Conversion(Plain):
    """What makes modules of layers; its arguments are those of `Options`."""

    def chain(self, layers: Sequence[KerasLayer]) -> list[Module]:
        """The modules of layers that follow one another.

        Raises
        ------
        ValueError
            A layer has no counterpart, or one in such a place; the message names it.
        """
        found: list[Module] = []
        masked: str | None = None  # the layer that makes the mask
        turned: str | None = None  # the masked go_backwards layer: outputs are reversed in time, Keras's mask is not
        for layer in layers:
            modules = self.modules(layer)
            recurrent = any(isinstance(m, (Recurrent, nn.Bidirectional)) for m in modules)
            if recurrent and turned:
                raise ValueError(
                    f"layer {turned!r} has go_backwards=True and return_sequences=True behind a mask: Keras passes the "
                    f"mask on in the other order of time than the outputs, to layer {layer.name!r}; this has no "
                    "counterpart here"
                )
            if any(isinstance(m, nn.Masking) or getattr(m, "mask_zero", False) for m in modules):
                masked, turned = layer.name, None
            if recurrent and masked:
                last: Any = modules[-1]
                masked = masked if last.return_sequences else None
                turned = layer.name if masked and getattr(modules[0], "go_backwards", False) else None
            found += modules
            if any(getattr(m, "merge_mode", "concat") is None for m in modules[:-1]) or (
                layer is not layers[-1] and getattr(modules[-1] if modules else None, "merge_mode", "concat") is None
            ):
                raise ValueError(f"layer {layer.name!r} has merge_mode=None: its two outputs are no input of another")
        if not found:
            raise ValueError("the model has no layers")
        return found

    def modules(self, layer: KerasLayer) -> list[Module]:
        """The modules of one layer: several of stacked cells, none of an input.

        Raises
        ------
        ValueError
            The layer, or an option of it, has no counterpart; the message names it.
        """
        if layer.class_name in KINDS and not layer.class_name.endswith("Cell"):
            return [self.recurrent(layer)]
        if layer.class_name not in CONVERSIONS:
            raise ValueError(
                f"layer {layer.name!r:.80} ({layer.class_name or 'of an unknown class':.80}) has no counterpart here; "
                f"these classes have: LSTM, GRU, SimpleRNN, {', '.join(CONVERSIONS)}"
            )
        self._warn(layer)
        try:
            return CONVERSIONS[layer.class_name](self, layer)
        except (TypeError, RuntimeError, AttributeError, KeyError, IndexError) as error:
            raise ValueError(f"layer {layer.name!r} ({layer.class_name}): {error}") from error

    # ------------------------------------------------------------------------------------------------------- recurrent
    def recurrent(self, layer: KerasLayer, of: dict[str, Any] | None = None) -> Recurrent:
        """The module of a recurrent layer; of a cell with the options of the RNN around it."""
        self._warn(layer)
        config = layer.config if of is None else layer.config | of
        whole = KerasLayer(layer.name, layer.class_name, config, layer.weights)
        m = self._meaning(whole)
        kernel = self._weights(whole, m)[0]
        module = CLASSES[m.kind](**self._arguments(whole, m))
        module.build((None, kernel.shape[0]))
        self._fill(module, layer, self._parameters(whole, m, 0))
        return module

    def _meaning(self, layer: KerasLayer) -> Meaning:
        m = meaning(layer, self.version)
        if m.zero_output_for_mask and not m.return_sequences:
            raise ValueError(
                f"layer {layer.name!r} has zero_output_for_mask=True and return_sequences=False, which has no "
                "counterpart here"
            )
        return m

    def _weights(self, layer: KerasLayer, m: Meaning) -> list[Array]:
        """Kernel, recurrent kernel and bias, as the configuration says that they are."""
        if not layer.weights:
            raise ValueError(f"layer {layer.name!r} has no weights: build it, or call it once")
        weights = plain_weights(layer)
        H, biases = weights[1].shape[0], weights[2:]
        two = m.kind == "gru" and m.reset_after
        if m.hidden_size != H or len(biases) != m.bias or (biases and (biases[0].ndim == 2) != two):
            of_gru = f", reset_after={m.reset_after}" if m.kind == "gru" else ""
            raise ValueError(
                f"layer {layer.name!r} has weights of shapes {[w.shape for w in weights]}, and is said to have "
                f"units={m.hidden_size}, use_bias={m.bias}{of_gru}"
            )
        return weights

    def _parameters(self, layer: KerasLayer, m: Meaning, d: int) -> dict[str, Array]:
        """The parameters of direction d by our names."""
        return {name + suffix(0, d): p for name, p in our_parameters(self._weights(layer, m), m.kind).items()}

    def _arguments(self, layer: KerasLayer, m: Meaning) -> dict[str, Any]:
        """The module's arguments."""
        arguments: dict[str, Any] = {
            "units": m.hidden_size,
            "activation": m.activations[-1],
            "use_bias": m.bias,
            "return_sequences": m.return_sequences,
            "go_backwards": m.go_backwards,
            "stateful": m.stateful,
            "zero_output_for_mask": m.zero_output_for_mask,
            "dropout": m.dropout,
            "recurrent_dropout": m.recurrent_dropout,
            **{f"{part}_regularizer": self._penalty(layer, f"{part}_regularizer") for part in PARTS},
        }
        if m.kind != "rnn":
            arguments["recurrent_activation"] = m.activations[0]
        if m.kind == "gru":
            arguments["reset_after"] = m.reset_after
        if m.kind == "lstm" and isinstance(layer.config.get("unit_forget_bias"), bool):
            arguments["unit_forget_bias"] = layer.config["unit_forget_bias"]
        return arguments | self._common(layer)

    def _RNN(self, layer: KerasLayer) -> list[Module]:
        config = layer.config
        unknown = [cell.class_name for cell in layer.layers if cell.class_name not in KINDS]
        if unknown or not layer.layers:
            raise ValueError(
                f"layer {layer.name!r} (RNN) has the cell {(unknown or ['none'])[0]!r:.80}, which has no counterpart "
                "here; LSTMCell, GRUCell and SimpleRNNCell have"
            )
        modules: list[Module] = []
        last = len(layer.layers) - 1
        for at, cell in enumerate(layer.layers):
            of: dict[str, Any] = {
                name: config[name] for name in ("stateful", "zero_output_for_mask", "time_major") if name in config
            }
            of["return_sequences"] = at < last or config.get("return_sequences", False)
            of["go_backwards"] = at == 0 and config.get("go_backwards", False)
            if at < last:
                of["zero_output_for_mask"] = True  # skipped by the next one
            if config.get("trainable", True) is False:
                of["trainable"] = False
            modules.append(self.recurrent(cell, of))
        return modules

    def _Bidirectional(self, layer: KerasLayer) -> list[Module]:
        if len(layer.layers) != 2:
            raise ValueError(f"layer {layer.name!r} (Bidirectional) has {len(layer.layers)} layers inside, not 2")
        ways = [
            KerasLayer(layer.name, one.class_name, {**one.config, "zero_output_for_mask": False}, one.weights)
            for one in layer.layers
        ]
        if any(one.class_name not in KINDS or one.class_name.endswith("Cell") for one in ways):
            inside = layer.layers[0].class_name or "an unknown class"
            raise ValueError(
                f"layer {layer.name!r} is Bidirectional around {inside!r:.80}, "
                "which has no counterpart here; LSTM, GRU and SimpleRNN have"
            )
        forward, backward = (self._meaning(one) for one in ways)
        if forward.go_backwards or not backward.go_backwards or forward.stateful:
            raise ValueError(
                f"layer {layer.name!r} (Bidirectional) has inside go_backwards={forward.go_backwards} and "
                f"{backward.go_backwards}, stateful={forward.stateful}; False, True and False are taken"
            )
        arguments = [
            self._arguments(one, m) | {"go_backwards": False} for one, m in zip(ways, (forward, backward), strict=True)
        ]
        differ = [key for key in arguments[0] if arguments[0][key] != arguments[1].get(key)]
        if differ or forward.kind != backward.kind:
            raise ValueError(
                f"layer {layer.name!r} (Bidirectional) has directions of different {(differ or ['kinds'])[0]}, which "
                "has no counterpart here"
            )
        if layer.config.get("trainable", True) is False:
            arguments[0]["trainable"] = False
        module = nn.Bidirectional(CLASSES[forward.kind](**arguments[0]), layer.config.get("merge_mode", "concat"))
        module.build((None, self._weights(ways[0], forward)[0].shape[0]))
        self._fill(module, layer, self._parameters(ways[0], forward, 0) | self._parameters(ways[1], backward, 1))
        return [module]

    def _TimeDistributed(self, layer: KerasLayer) -> list[Module]:
        """The modules of the inner layer, which acts on the last axis and so on every step alike."""
        (inner,) = layer.layers
        if inner.class_name not in ("Dense", "Activation", "Softmax", "ReLU", "LeakyReLU", "ELU", "Dropout"):
            raise ValueError(
                f"layer {layer.name!r} is TimeDistributed around {inner.class_name or 'an unknown class'!r:.80}, which "
                "has no counterpart here; Dense and activations have"
            )
        return self.modules(inner)


CONVERSIONS: dict[str, Callable[[Conversion, KerasLayer], list[Module]]] = {
    "InputLayer": Conversion._input,
    **{
        name[1:]: method
        for name, method in (vars(Plain) | vars(Conversion)).items()
        if name.startswith("_") and name[1:2].isupper()
    },
}
