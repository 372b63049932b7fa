"""``fastlstm bench``: measure the backends, and other libraries, and write a report."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import FAILED, add_json, give

NAME = "bench"
HELP = "measure the backends, and other libraries, and write a report"
PRINTS = False
EXAMPLES = (
    "fastlstm bench",
    "fastlstm bench --peers --threads 1 2",
    "fastlstm bench --peers --training --cases step",
    "fastlstm bench --peers --neighbours",
    "fastlstm bench --peers --quantised",
    "fastlstm bench --streams",
    "fastlstm bench --embedded",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--cases", nargs="+", default=[], metavar="NAME", help="a group, or a part of a case's name")
    parser.add_argument("--peers", action="store_true", help="beside PyTorch, ONNX Runtime, OpenVINO where installed")
    parser.add_argument("--isas", action="store_true", help="backend c with its other instruction sets too")
    parser.add_argument("--training", action="store_true", help="forward and backward, instead of inference")
    parser.add_argument("--cells", action="store_true", help="what LSTM, GRU and RNN cost, instead of inference")
    parser.add_argument(
        "--quantised", action="store_true", help="int8 and float16 beside float32, instead of inference"
    )
    parser.add_argument("--neighbours", action="store_true", help="beside busy processes and threads, instead of alone")
    parser.add_argument("--streams", action="store_true", help="many streams in one process (fastlstm.StreamBatch)")
    parser.add_argument("--embedded", action="store_true", help="in programs without Python: C sources, the C library")
    parser.add_argument(
        "--keras2c", metavar="FOLDER", help="with --embedded: the folder include of keras2c's repository"
    )
    parser.add_argument("--threads", nargs="+", type=int, metavar="N", help="(default: 1; beside processes 2)")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each (default: 15; beside neighbours 5)")
    parser.add_argument("--out", default="bench-report", metavar="FOLDER", help="(default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace files in FOLDER that are of no earlier report")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, and write a report with charts and raw samples."""
    from .. import plot, report
    from ..report import cases, contenders, quantised

    if min(options.threads or [1]) < 1 or (options.rounds or 1) < 1:
        raise ValueError("--threads and --rounds must be at least 1")
    if options.embedded or options.keras2c is not None:
        return bench_embedded(options)
    if options.streams:
        return bench_streams(options)
    if options.neighbours:
        return bench_neighbours(options)
    threads, rounds = options.threads or [1], options.rounds or 15
    groups = ["training"] * options.training + ["cells"] * options.cells + ["quantised"] * options.quantised
    chosen = cases.select(groups or ["inference", "odd", "lengths", "tokens", "others"], options.cases)
    plot.figure()  # raises before the measuring if matplotlib is missing
    out = Path(options.out)
    report.check_folder(out, chosen, threads, options.force)
    if options.quantised:
        if options.isas or options.training or options.cells:
            raise ValueError("--quantised has contenders of its own, so leave --training, --cells and --isas out")
        ours, peers = quantised.makers(), quantised.makers(options.peers)
        rivals = [name for name in peers if name not in ours] or ["c float32"]
    else:
        ours, peers = contenders.ours(options.isas), contenders.peers() if options.peers else {}
        rivals = [*peers] or [name for name in [*ours][1:] if name == report.BASE_LINE]
    done = report.run(chosen, ours | peers, rivals, threads, rounds)
    if options.training and options.peers:
        arguments = ["--training", "--peers", *(["--cases", *options.cases] if options.cases else [])]
        arguments += ["--threads", *map(str, threads), "--rounds", str(rounds), *["--force"] * options.force]
        done.tuned = report.tuned_ratios(arguments, out / "tuned")
    written = report.write(done, out)
    give(options, f"report in {written}", report=str(written))
    return FAILED if any(one.wrong for entry in done.entries for one in entry.results.values()) else 0


def bench_neighbours(options: argparse.Namespace) -> int:
    """Measure the first backend, and peers, beside busy neighbours, and write a report with every call's time."""
    from .. import report
    from ..report import contenders, neighbours

    if options.training or options.cells or options.isas or len(options.threads or [2]) > 1:
        raise ValueError(
            "--neighbours has cases of its own, so leave --training, --cells and --isas out; "
            "and it takes one number of threads at a time"
        )
    parts = neighbours.select(options.cases, *(options.threads or ()))
    out = Path(options.out)
    report.check_folder(out, None, replace=options.force)
    ours = dict([*contenders.ours().items()][:1])
    peers = contenders.peers() if options.peers else {}
    done = neighbours.run(parts, ours | peers, options.rounds or neighbours.RUNS)
    written = neighbours.write(done, out)
    give(options, f"report in {written}", report=str(written))
    wrong = any(one.wrong for entry in done.entries for one in entry.results[neighbours.QUIET].values())
    return FAILED if wrong else 0


def bench_streams(options: argparse.Namespace) -> int:
    """Measure many streams, and write a report of ratios and their bounds."""
    from ..files import check_writable
    from ..report import lines_page, streams

    if options.training or options.cells or options.isas or options.neighbours or options.threads:
        raise ValueError(
            "--streams has cases of its own, so leave --training, --cells, --isas, --neighbours and --threads out"
        )
    parts, out = streams.select(options.cases), Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in lines_page.files_of(streams.NAME):
        check_writable(out / name)
    written = streams.write(streams.run(parts, options.rounds or 15), out)
    give(options, f"report in {written}", report=str(written))
    return 0


def bench_embedded(options: argparse.Namespace) -> int:
    """Measure what runs without Python, and write a report of ratios and their bounds."""
    from ..files import check_writable
    from ..report import embedded, lines_page

    others = ("streams", "training", "cells", "isas", "quantised", "neighbours", "peers", "threads")
    if not options.embedded:
        raise ValueError("--keras2c names a contender of --embedded: give that too")
    if given := [f"--{name}" for name in others if getattr(options, name)]:
        raise ValueError(f"--embedded has cases of its own, so leave {' and '.join(given)} out")
    parts, out = embedded.select(options.cases), Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in lines_page.files_of(embedded.NAME):
        check_writable(out / name)
    done = embedded.run(parts, options.rounds or 15, options.keras2c)
    written = embedded.write(done, out)
    give(options, f"report in {written}", report=str(written))
    return FAILED if embedded.wrong(done) else 0
