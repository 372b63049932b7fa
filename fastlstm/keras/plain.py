"""Modules for Keras's layers that are not recurrent."""

from __future__ import annotations

from typing import Any

from .. import nn
from .._readers.keras_files import KerasLayer
from ..nn.base import Module
from .options import Options


class Plain(Options):
    """A method for each class of Keras, by its name."""

    def _input(self, layer: KerasLayer) -> list[Module]:
        return []

    def _Dense(self, layer: KerasLayer) -> list[Module]:
        config = layer.config
        arguments: dict[str, Any] = {
            f"{part}_regularizer": self._penalty(layer, f"{part}_regularizer") for part in ("kernel", "bias")
        }
        kernel, *bias = self._shaped(layer, 2, 1 + bool(config.get("use_bias", True)))
        module = nn.Dense(
            kernel.shape[1],
            self._activation(layer, config.get("activation")),
            bool(bias),
            **arguments,
            **self._common(layer),
        )
        self._check_units(layer, "units", kernel.shape[1])
        module.build((kernel.shape[0],))
        module.load_state_dict({"weight": kernel.T} | ({"bias": bias[0]} if bias else {}))
        return [module]

    def _Embedding(self, layer: KerasLayer) -> list[Module]:
        (vectors,) = self._shaped(layer, 2, 1)
        self._check_units(layer, "input_dim", vectors.shape[0])
        self._check_units(layer, "output_dim", vectors.shape[1])
        mask_zero = self._of(layer, "mask_zero", False, bool)
        penalty = self._penalty(layer, "embeddings_regularizer")
        module = nn.Embedding(
            vectors.shape[0],
            vectors.shape[1],
            mask_zero,
            weights=vectors,
            embeddings_regularizer=penalty,
            **self._common(layer),
        )
        module.build((None,))
        return [module]

    def _Dropout(self, layer: KerasLayer) -> list[Module]:
        shape = layer.config.get("noise_shape")
        if shape not in (None, [None, 1, None], (None, 1, None)):
            raise ValueError(f"layer {layer.name!r} has noise_shape={shape!r:.80}, which has no counterpart here")
        rate = self._of(layer, "rate", None, (int, float))
        return [nn.Dropout(rate, noise_shared_over_time=shape is not None, **self.options)]

    def _SpatialDropout1D(self, layer: KerasLayer) -> list[Module]:
        rate = self._of(layer, "rate", None, (int, float))
        return [nn.Dropout(rate, noise_shared_over_time=True, **self.options)]

    def _Masking(self, layer: KerasLayer) -> list[Module]:
        return [nn.Masking(self._of(layer, "mask_value", 0.0, (int, float)), **self.options)]

    def _Activation(self, layer: KerasLayer) -> list[Module]:
        return [nn.Activation(self._activation(layer, layer.config.get("activation")), **self.options)]

    def _Softmax(self, layer: KerasLayer) -> list[Module]:
        self._only(layer, "axis", -1)
        return [nn.Activation("softmax", **self.options)]

    def _ReLU(self, layer: KerasLayer) -> list[Module]:
        self._only(layer, "max_value", None)
        self._only(layer, "threshold", 0)
        slope = self._of(layer, "negative_slope", 0.0, (int, float))
        return [nn.Activation(("leaky_relu", float(slope)) if slope else "relu", **self.options)]

    def _LeakyReLU(self, layer: KerasLayer) -> list[Module]:
        name = "negative_slope" if "negative_slope" in layer.config else "alpha"
        return [nn.Activation(("leaky_relu", float(self._of(layer, name, 0.3, (int, float)))), **self.options)]

    def _ELU(self, layer: KerasLayer) -> list[Module]:
        return [nn.Activation(("elu", float(self._of(layer, "alpha", 1.0, (int, float)))), **self.options)]
