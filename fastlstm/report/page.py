"""A report as Markdown with charts in SVG."""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .contenders import SIZE_1
from .measure import TOLERANCE, Result, geometric_mean, ratio

if TYPE_CHECKING:
    from . import Entry, Report

TITLES = {
    "inference": "Inference",
    "odd": "Odd shapes",
    "lengths": "Sequences of unequal length",
    "tokens": "Token ids",
    "others": "GRU and RNN",
    "training": "Training",
    "cells": "What a cell costs",
    "grid": "A small grid",
    "fit": "Training steps of whole models",
    "quantised": "Small weights",
}
BUSY = 0.5  # load average before the run from which the page warns of other programs

MEANING = """
Times are microseconds a call: the median, and in brackets the 99th percentile, over all samples. **Ratio** is the
quickest rival's time by that of `{ours}`, more than 1 where `{ours}` is quicker: the median over rounds with its 95 %
bootstrap interval. **Limit** is the share of what this machine can do: the least time in which it makes the products'
floating-point operations at its peak, or reads the recurrent weights in every step from the level of its memory that
holds them, whichever is longer, by the time taken; of int8 the operations are those of integers, and the input's come
before the steps. (A little more than 1 is possible where a part of the weights stays
nearer than that.) Contenders take turns in random order in every one of {rounds} rounds, in one process, with the same
weights and the same number of threads; each one's values were compared with the float64 reference before it was timed
(tolerance as a share of the largest entry: {values:g} for outputs, {gradients:g} for gradients).
"""


def markdown(report: Report, charts: Sequence[str]) -> str:
    """The page, which shows the charts with these names."""
    sections = [*head(report), *losing(report), *not_timed(report), *means(report)]
    for group in groups(report):
        sections += [f"## {TITLES[group]}", *tables(report, group)]
        sections += [f"![{name}]({name})" for name in charts if name.startswith(f"{group}-")]
    sections += notes(report)
    return "\n\n".join(section.strip() for section in sections) + "\n"


def groups(report: Report) -> list[str]:
    return list(dict.fromkeys(entry.group for entry in report.entries))


def of(report: Report, group: str) -> dict[int, list[Entry]]:
    """A group's entries by number of threads."""
    found: dict[int, list[Entry]] = {}
    for entry in report.entries:
        if entry.group == group:
            found.setdefault(entry.threads, []).append(entry)
    return found


def compared(entries: Iterable[Entry]) -> list[Entry]:
    """The entries that have a ratio: a rival was timed."""
    return [entry for entry in entries if entry.ratio is not None]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def threads(n: int) -> str:
    return f"{n} thread{'s' * (n > 1)}"


def microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:,.0f}" if seconds >= 1e-4 else f"{1e6 * seconds:.3g}"


def shown(result: Result) -> str:
    if result.rounds:
        return f"{microseconds(result.median)} ({microseconds(result.p99)})"
    return "**wrong**" if result.wrong else "–"


# --------------------------------------------------------------------------------------------------------- the sections
def head(report: Report) -> Iterator[str]:
    yield "# Benchmark report"
    if float(report.facts["load before"].split()[0]) > BUSY:
        yield f"**The machine was busy (load {report.facts['load before']}): take these figures for a trial.**"
    yield table(("", ""), report.facts.items()).replace("---:", "---")
    for one in filter(None, report.limits.values()):
        steps = [f"{size // 1024} KiB {rate / 1e9:.0f}" for size, rate in one.bandwidths.items()]
        yield (
            f"Limits measured here with {threads(one.threads)}: {one.flops / 1e9:.0f} GFLOP/s in float32, "
            f"{one.integers / 1e9:.0f} billion operations a second on integers of 8 bits; "
            f"reading, in GB/s, by what each thread reads in turn: {', '.join(steps)}."
        )
    ours = report.entries[0].ours.contender if report.entries else ""
    yield textwrap.dedent(MEANING).format(ours=ours, rounds=report.rounds, **TOLERANCE)


def losing(report: Report) -> Iterator[str]:
    """The cases in which a rival is quicker, first of all."""
    every = compared(report.entries)
    if not every:
        return
    lost = sorted((e for e in every if e.ratio.value < 1), key=lambda e: e.ratio.value)  # type: ignore[union-attr]
    yield f"## Losing cases: {len(lost)} of {len(every)}"
    if not lost:
        yield "None."
        return
    yield table(
        ("case", "threads", "quickest rival", "its time", "ours", "ratio", "limit"),
        [
            (
                str(entry.case),
                str(entry.threads),
                entry.rival.contender,  # type: ignore[union-attr]
                microseconds(entry.rival.median),  # type: ignore[union-attr]
                microseconds(entry.ours.median),
                str(entry.ratio),
                share(report, entry),
            )
            for entry in lost
        ],
    )


def not_timed(report: Report) -> Iterator[str]:
    """The contenders with wrong values."""
    wrong = [(entry, one) for entry in report.entries for one in entry.results.values() if one.wrong]
    if wrong:
        yield "## Wrong values, and so not timed"
        yield "\n".join(f"- {one.contender}, {e.case}, {threads(e.threads)}: {one.problem}" for e, one in wrong)


def means(report: Report) -> Iterator[str]:
    """Geometric means of the ratios, and of each contender's time divided by the first one's."""
    rows = []
    others = list(
        dict.fromkeys(one.contender for e in report.entries for one in list(e.results.values())[1:] if one.rounds)
    )
    for group in groups(report):
        for n, entries in of(report, group).items():
            if not compared(entries):
                continue
            ours = entries[0].ours.contender
            rows.append(
                [TITLES[group], str(n), mean(e.ratio.value for e in compared(entries) if e.ratio)]
                + [mean(e.results[name].median / e.ours.median for e in timed(entries, ours, name)) for name in others]
            )
    if rows:
        yield "## Geometric means: others' time by ours"
        yield table(("group", "threads", "best rival", *others), rows)


def timed(entries: Iterable[Entry], *names: str) -> list[Entry]:
    """The entries in which all contenders of these names were timed."""
    return [e for e in entries if all(name in e.results and e.results[name].rounds for name in names)]


def mean(values: Iterable[float]) -> str:
    every = list(values)
    return f"{geometric_mean(every):.2f}" if every else "–"


def share(report: Report, entry: Entry) -> str:
    found = report.share(entry)
    return "–" if found is None else f"{found:.2f}"


def tables(report: Report, group: str) -> Iterator[str]:
    """A table for each number of threads."""
    for n, entries in of(report, group).items():
        yield f"### {threads(n)}"
        yield {"cells": costs, "tokens": forms}.get(group, functools.partial(times, report))(entries)
        if group == "quantised":
            yield "Largest error of an output, against float64:"
            yield errors(entries)


def times(report: Report, entries: Sequence[Entry]) -> str:
    """The times of all contenders in every case. A contender that was timed in no case has no column."""
    names = [
        name for name in entries[0].results if any(e.results[name].rounds or e.results[name].wrong for e in entries)
    ]
    tuned = ["ratio, glibc tuned"] if report.tuned is not None else []
    return table(
        ("case", "MFLOP", "weights, KiB", *names, "ratio", *tuned, "limit"),
        [
            (
                str(entry.case),
                f"{entry.case.flops / 1e6:,.4g}",
                f"{entry.case.recurrent_bytes / 1024:,.4g}",
                *(shown(entry.results[name]) for name in names),
                "–" if entry.ratio is None else str(entry.ratio),
                *(tuned_ratio(report, entry) for _ in tuned),
                share(report, entry),
            )
            for entry in entries
        ],
    )


def errors(entries: Sequence[Entry]) -> str:
    """The largest error of every contender in every case. A contender that was compared in no case has no column."""
    names = [name for name in entries[0].results if any(e.results[name].error is not None for e in entries)]
    return table(
        ("case", *names),
        [
            (str(e.case), *("–" if (off := e.results[name].error) is None else f"{off:.1e}" for name in names))
            for e in entries
        ],
    )


def tuned_ratio(report: Report, entry: Entry) -> str:
    found = (report.tuned or {}).get((str(entry.case), entry.threads))
    return "–" if found is None else f"{found:.2f}"


def costs(entries: Sequence[Entry]) -> str:
    """What each cell costs: parameters and operations beside the time."""
    return table(
        ("case", "parameters", "MFLOP", "time", "GFLOP/s"),
        [
            (
                str(entry.case),
                f"{entry.case.parameters:,}",
                f"{entry.case.flops / 1e6:,.4g}",
                shown(entry.ours),
                f"{entry.case.flops / entry.ours.median / 1e9:.1f}",
            )
            for entry in entries
        ],
    )


def forms(entries: Sequence[Entry]) -> str:
    """Times of token ids beside those of an input of size 1: equal where ids cost no product."""
    rng = np.random.default_rng(0)
    both = [
        (entry, name, result, entry.results[name + SIZE_1])
        for entry in entries
        for name, result in entry.results.items()
        if name + SIZE_1 in entry.results
    ]
    return table(
        ("case", "backend", "time", "input of size 1", "by that"),
        [
            (
                str(entry.case),
                name,
                shown(ids),
                shown(numbers),
                str(ratio(ids, numbers, rng)) if ids.rounds and numbers.rounds else "–",
            )
            for entry, name, ids, numbers in both
        ],
    )


def notes(report: Report) -> Iterator[str]:
    """The contenders that were not measured, and why."""
    found = dict.fromkeys(
        f"{one.contender}: {one.problem}"
        for entry in report.entries
        for one in entry.results.values()
        if one.problem and not one.wrong
    )
    if found:
        yield "## Not measured"
        yield "\n".join(f"- {note}" for note in found)


# --------------------------------------------------------------------------------------------------------------- charts
def charts(report: Report) -> dict[str, bytes]:
    """File name -> picture, for each group and number of threads."""
    from ..plot import own_style

    with own_style():
        return dict(each_chart(report))


def each_chart(report: Report) -> Iterator[tuple[str, bytes]]:
    """The items of `charts`."""
    for group in groups(report):
        for n, entries in of(report, group).items():
            title = f"{TITLES[group]}, {threads(n)}"
            if group == "cells" and (pairs := beside_lstm(entries)):
                yield f"{group}-{n}.svg", chart_of_costs(pairs, title)
            elif compared(entries):
                yield f"{group}-{n}.svg", chart_of_ratios(compared(entries), title)


def canvas(rows: int, height: float) -> tuple[Any, Any]:
    """A figure and axes for `rows` rows of horizontal bars, the first on top, each `height` inches high."""
    from ..plot import GRID, figure

    fig = figure()
    fig.set_size_inches(9, 1.2 + height * rows)
    axes = fig.add_subplot()
    axes.set_ylim(rows - 0.4, -0.6)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return fig, axes


def drawn(fig: Any) -> bytes:
    picture = io.BytesIO()
    fig.savefig(picture, format="svg", metadata={"Date": None})  # the same picture has the same bytes
    return picture.getvalue()


def chart_of_ratios(entries: Sequence[Entry], title: str) -> bytes:
    """A bar for each case: the ratio with its interval; ratios below 1 in another colour."""
    from ..plot import HELD_OUT as LOSING
    from ..plot import TRAINING as WINNING

    fig, axes = canvas(len(entries), 0.24)
    for at, entry in enumerate(entries):
        r = entry.ratio
        assert r is not None and entry.rival is not None
        axes.barh(at, r.value - 1, left=1, color=WINNING if r.value >= 1 else LOSING)
        axes.plot((r.low, r.high), (at, at), color="black", linewidth=1)
        text = f" {r.value:.2f}  ({entry.rival.contender})"
        axes.annotate(text, (max(r.high, 1), at), va="center", fontsize=8)
    ratios = [entry.ratio for entry in entries if entry.ratio]
    axes.set_xscale("log")
    axes.set_xlim(0.9 * min(1, *(r.low for r in ratios)), 3 * max(1, *(r.high for r in ratios)))  # room for the names
    marks = [m for m in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100) if axes.get_xlim()[0] <= m <= axes.get_xlim()[1]]
    axes.set_xticks(marks, [f"{m:g}" for m in marks])
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(entries)), [str(entry.case) for entry in entries], fontsize=8)
    ours = entries[0].ours.contender
    axes.set(xlabel=f"the quickest rival's time by that of {ours} (more than 1: {ours} is quicker)", title=title)
    return drawn(fig)


def beside_lstm(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """(an entry, the LSTM's entry of the same shape), where both were timed."""
    here = timed(entries, entries[0].ours.contender)
    return [(entry, lstm) for entry in here for lstm in here if same_but_kind(lstm, entry)]


def chart_of_costs(rows: Sequence[tuple[Entry, Entry]], title: str) -> bytes:
    """For each cell: parameters, operations and time, each by those of the LSTM of the same shape."""
    from ..plot import GRID, HELD_OUT, TRAINING

    fig, axes = canvas(len(rows), 0.5)
    for at, (entry, lstm) in enumerate(rows):
        bars = (
            (entry.case.parameters / lstm.case.parameters, GRID, "parameters"),
            (entry.case.flops / lstm.case.flops, TRAINING, "operations"),
            (entry.ours.median / lstm.ours.median, HELD_OUT, "time"),
        )
        for i, (value, colour, label) in enumerate(bars):
            axes.barh(at + 0.26 * (i - 1), value, 0.26, color=colour, label=None if at else label)
        axes.annotate(f" {microseconds(entry.ours.median)} µs", (bars[-1][0], at + 0.26), va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [str(entry.case) for entry, _ in rows], fontsize=8)
    axes.set(xlabel="by the LSTM of the same shape", title=f"{title}, backend {rows[0][0].ours.contender}")
    axes.legend(frameon=False, loc="lower right")
    return drawn(fig)


def same_but_kind(lstm: Entry, other: Entry) -> bool:
    a, b = lstm.case, other.case
    return a.kind == "lstm" and (a.mode, a.I, a.H, a.B, a.T) == (b.mode, b.I, b.H, b.B, b.T)
