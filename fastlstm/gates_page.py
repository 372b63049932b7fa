"""One HTML page without any outside resource: the text of a trace, coloured by a unit that is chosen there."""

from __future__ import annotations

import base64
import importlib.resources
import json
import os

import numpy as np

from .files import check_writable, write_atomically
from .layout import Array
from .outputs import carries, holds_something
from .trace import FROM_0_TO_1, NAMES, Trace

MARK = "fastlstm gates page"  # in the page's head: what a later page may replace
LEVELS = 256  # colours of a palette; a value is kept as a byte
WHITE, BLUE, RED = (255, 255, 255), (21, 84, 160), (178, 34, 52)
Colour = tuple[str, str]  # background and text, as CSS writes them


def between(a: tuple[int, ...], b: tuple[int, ...], share: float) -> tuple[int, ...]:
    """The colour that lies this share of the way from a to b."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))


def css(rgb: tuple[int, ...]) -> Colour:
    """A background, and black or white for the text, whichever has the larger contrast (WCAG 2.2)."""
    linear = [(c / 255 / 12.92) if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    dark = luminance + 0.05 < 1.05 * 0.05 / (luminance + 0.05)  # white on it has more contrast than black
    return f"rgb({rgb[0]}, {rgb[1]}, {rgb[2]})", "rgb(255, 255, 255)" if dark else "rgb(0, 0, 0)"


def palettes() -> dict[str, list[Colour]]:
    """The colours of all levels: from white to blue for gates, from red over white to blue for both signs."""
    shares = np.linspace(0, 1, LEVELS).tolist()
    signed = [between(WHITE, BLUE, 2 * s - 1) if s >= 0.5 else between(WHITE, RED, 1 - 2 * s) for s in shares]
    return {"gate": [css(between(WHITE, BLUE, s)) for s in shares], "signed": [css(rgb) for rgb in signed]}


def levels_of(found: Trace, part: str) -> Array:
    """A part's values (T, H) as levels from 0 to 255 of its range, uint8."""
    low, high = found.range_of(part)
    shares = (found.parts[part].astype(np.float64) - low) / (high - low)
    levels: Array = np.rint(np.clip(shares, 0, 1) * (LEVELS - 1)).astype(np.uint8)
    return levels


def colour_of(found: Trace, part: str, step: int, unit: int) -> Colour:
    """Background and text colour that the page gives to a step."""
    name = "gate" if part in FROM_0_TO_1 else "signed"
    return palettes()[name][int(levels_of(found, part)[step, unit])]


def page(found: Trace, unit: int | None = None) -> str:
    """The page, as HTML.

    Parameters
    ----------
    found : Trace
        With at least one step.
    unit : int, optional
        The one that is chosen at first; unless given, that whose first part varies most.

    Raises
    ------
    ValueError
        There is no such unit.
    """
    parts = list(found.parts)
    first = parts.index("c") if "c" in parts else parts.index("h")
    values = found.parts[parts[first]]
    if unit is None:
        unit = int(values.astype(np.float64).var(axis=0).argmax())
    if not 0 <= unit < values.shape[1]:
        raise ValueError(f"unit {unit} is none of the layer's {values.shape[1]} units, which are counted from 0")
    content = {
        "title": found.title,
        "labels": found.labels,
        "is_text": found.is_text,
        "part": first,
        "unit": unit,
        "palettes": palettes(),
        "parts": [part_of(found, part) for part in parts],
    }
    # Within a script element HTML knows only "</script" and "<!--": no "<" is left.
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    template = (importlib.resources.files("fastlstm") / "data" / "gates.html").read_text(encoding="utf-8")
    return template.replace("{{data}}", data)


def part_of(found: Trace, part: str) -> dict[str, object]:
    """A part as the page's script reads it."""
    low, high = found.range_of(part)
    levels = levels_of(found, part)
    return {
        "name": part,
        "title": NAMES[part],
        "low": low,
        "high": high,
        "units": levels.shape[1],
        "palette": "gate" if part in FROM_0_TO_1 else "signed",
        "bytes": base64.b64encode(levels.tobytes()).decode("ascii"),
    }


def check(path: str | os.PathLike[str], replace: bool = False) -> None:
    """Raise what writing a page to `path` would raise; OSError or ValueError."""
    check_writable(path)
    if not replace and holds_something(path) and not carries(path, MARK.encode()):
        raise ValueError(f"{path} exists and is no page of fastlstm: give another name, or --force to replace it")


def write(found: Trace, path: str | os.PathLike[str], unit: int | None = None) -> None:
    """Write the page to a file, atomically. See `page`.

    Raises
    ------
    OSError, ValueError
    """
    write_atomically(path, page(found, unit).encode("utf-8", "backslashreplace"))
