"""A class's constructor arguments as data: `to_config`, `from_config` and ``repr``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

NOT_IN_CONFIG = ("backend", "seed")  # arguments of the constructor that are no part of a configuration

Made = TypeVar("Made", bound="Configurable")


class Configurable:
    """Base of classes that keep every constructor argument as an attribute of the same name."""

    dtype: Any

    def to_config(self) -> dict[str, Any]:
        """The constructor's arguments but backend and seed, and the class's name, in JSON's types."""
        return {"class": type(self).__name__} | {name: value for name, value, _ in self._arguments()}

    @classmethod
    def from_config(
        cls: type[Made], config: Mapping[str, Any], *, backend: str = "auto", seed: int | None = None
    ) -> Made:
        """A layer with new parameters from a configuration that `to_config` made.

        Raises
        ------
        ValueError
            The configuration is of another class than this one and its subclasses.
        TypeError, ValueError
            An argument does not fit, as in the constructor.
        """
        arguments = dict(config)
        how = arguments.pop("quantised", None)
        wanted = arguments.pop("class", cls.__name__)
        made = _classes(cls).get(wanted) if isinstance(wanted, str) else None
        if made is None:
            raise ValueError(f"the configuration is of class {wanted!r}, expected one of {', '.join(_classes(cls))}")
        constructor: Any = made
        layer: Made = constructor(**arguments, backend=backend, seed=seed)
        if how is not None:
            layer._keep(how)
        return layer

    def _keep(self, how: Any) -> None:
        """Keep the weights in the reduced storage that a configuration names.

        Raises
        ------
        ValueError
            This class has no weights to be kept so, or the configuration is none of a storage.
        """
        raise ValueError(f"a {type(self).__name__} has no reduced storage, and its configuration names one")

    def _arguments(self) -> Iterator[tuple[str, Any, Any]]:
        """(name, value, default) of every argument that a configuration holds."""
        for name, parameter in inspect.signature(type(self)).parameters.items():
            if name not in NOT_IN_CONFIG and hasattr(self, name):
                value = self.dtype.name if name == "dtype" else getattr(self, name)
                yield name, value, parameter.default

    def __repr__(self) -> str:
        shown = [
            f"{value!r}" if default is inspect.Parameter.empty else f"{name}={value!r}"
            for name, value, default in self._arguments()
            if value != default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


def _classes(cls: type[Made]) -> dict[str, type[Made]]:
    """A class and its imported subclasses by name; the package's own are imported first."""
    import fastlstm

    for name in ("LSTM", "LSTMCell", "Dense"):  # importing one class imports all of its module
        getattr(fastlstm, name)
    found = {cls.__name__: cls}
    for below in cls.__subclasses__():
        if not below.__module__.startswith(f"{__package__}.nn"):  # classes of fastlstm.nn have the same names as layers
            found |= _classes(below)
    return found
