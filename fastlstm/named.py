"""Objects that can be given by a name or a JSON configuration: losses, metrics, scalers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

Kind = TypeVar("Kind", bound="Named")


class Named:
    """Base of objects that are made again from a name and the arguments of their constructor.

    A subclass keeps every argument of its constructor under the argument's name.
    """

    name: ClassVar[str] = ""

    @classmethod
    def options(cls) -> list[str]:
        """Names of the constructor's arguments."""
        return [name for name in inspect.signature(cls).parameters if name != "self"]

    def get_config(self) -> dict[str, Any]:
        """The object's ``name`` and options, of JSON's types. `get` of the same module makes an equal object."""
        values = {option: getattr(self, option) for option in self.options()}
        return {"name": self.name} | {o: list(v) if isinstance(v, tuple) else v for o, v in values.items()}

    def __repr__(self) -> str:
        defaults = {p.name: p.default for p in inspect.signature(type(self)).parameters.values()}
        shown = [f"{o}={getattr(self, o)!r}" for o in self.options() if getattr(self, o) != defaults[o]]
        return f"{type(self).__name__}({', '.join(shown)})"


def find(given: Any, base: type[Kind], table: Mapping[str, Callable[..., Kind]], kind: str) -> Kind:
    """The object of a name or configuration, or an error that lists the names.

    Parameters
    ----------
    given : str, dict or `base`
        A name of the table, a configuration as `Named.get_config` gives it, or the object itself.
    base : type
    table : dict
        Makers by name.
    kind : str
        The word for such an object in messages: "loss".
    """
    if isinstance(given, base):
        return given
    options = dict(given) if isinstance(given, Mapping) else {}
    name = options.pop("name", None) if isinstance(given, Mapping) else given
    if not isinstance(name, str):
        raise TypeError(
            f"a {kind} is one of the names {', '.join(table)}, an object of class {base.__name__}, "
            f"or what its get_config() gave; got {given!r}"
        )
    if name not in table:
        raise ValueError(f"{kind} {name!r} is not known; expected one of {', '.join(table)}")
    maker = table[name]
    known = list(inspect.signature(maker).parameters)
    if unknown := [option for option in options if option not in known]:
        raise ValueError(f"{kind} {name!r} has no option {unknown[0]!r}; its options are {', '.join(known) or 'none'}")
    return maker(**options)
