"""Figures with their bounds as a page and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ..files import write_atomically
from .lines import Line, Report
from .page import table


def files_of(name: str) -> tuple[str, str]:
    """The files that `write` makes."""
    return f"{name}.json", f"{name}.md"


def write(report: Report, out: Path, name: str, title: str, meaning: str) -> Path:
    """Write the figures into a folder as JSON and as a page; the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    raw, page = (out / file for file in files_of(name))
    lines = [asdict(line) | {"reached": line.reached} for line in report.lines]
    data = {"facts": report.facts, "rounds": report.rounds, "lines": lines, "notes": report.notes}
    write_atomically(raw, (json.dumps(data, indent=1) + "\n").encode())
    write_atomically(page, markdown(report, title, meaning).encode())
    return page


def markdown(report: Report, title: str, meaning: str) -> str:
    """The page. `meaning` may name {rounds}."""
    sections = [f"# {title}", table(("", ""), report.facts.items()).replace("---:", "---")]
    sections += [textwrap.dedent(meaning).format(rounds=report.rounds).strip()]
    missed = [line for line in report.lines if not line.reached]
    sections += [f"## Missed: {len(missed)} of {len(report.lines)}", shown(missed) if missed else "None."]
    for part in dict.fromkeys(line.part for line in report.lines):
        sections += [f"## {part}", shown([line for line in report.lines if line.part == part])]
    sections += ["## Not measured\n\n" + "\n".join(f"- {note}" for note in report.notes)] * bool(report.notes)
    return "\n\n".join(sections) + "\n"


def shown(lines: Sequence[Line]) -> str:
    return table(("what", "ratio", "wanted", "of"), list(rows(lines)))


def rows(lines: Sequence[Line]) -> Iterator[tuple[str, str, str, str]]:
    for line in lines:
        interval = "" if line.low is None else f" [{line.low:.2f}, {line.high:.2f}]"
        bound = "reported" if line.wanted is None else f"{'at most' if line.at_most else 'at least'} {line.wanted:g}"
        yield f"{line.what}", f"{line.ratio:.3g}{interval}", bound, line.detail
