"""Benchmark reports: the harness catches wrong values, its statistics are sane, and a tiny run leaves all its files."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import json
import signal
import subprocess
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from fastlstm import info, report
from fastlstm._backends import BackendError, backends, choose
from fastlstm.cli import main
from fastlstm.report import cases, contenders, machine, measure, models, neighbours, page, requests, streams
from fastlstm.report.cases import Case, ModelCase

SMALL = Case("forward", "lstm", 3, 4, B=2, T=3)
TOKENS = Case("forward", "lstm", 20, 4, B=2, T=3, ids=True)
KINDS_AND_MODES = [
    Case("forward", "lstm", 3, 4, B=2, T=3, layers=2, bidirectional=True),
    Case("forward", "gru", 3, 4, B=2, T=3, reset_after=False),
    Case("forward", "rnn", 3, 4, B=5, T=6, ragged=True),
    Case("step", "lstm", 3, 4),
    Case("step", "gru", 3, 4, B=2),
    Case("run", "gru", 3, 4, B=2, T=6),
    Case("train", "lstm", 3, 4, B=2, T=3, layers=2),
    Case("train", "gru", 3, 4, B=2, T=3),
    Case("train", "rnn", 3, 4, B=5, T=6, ragged=True),
    Case("forward", "gru", 20, 4, B=2, T=3, layers=2, bidirectional=True, ids=True),
    Case("step", "lstm", 20, 4, ids=True),
    Case("train", "lstm", 20, 4, B=2, T=3, ids=True),
]
needs_c = pytest.mark.skipif(backends()["c"] is not None, reason=f"c: {backends()['c']}")

# Numba's kernels would be compiled for seconds; as a contender it is the same code as the others.
OURS = {name: make for name, make in contenders.ours(isas=True).items() if name != "numba"}


def wrong(case: Case, threads: int) -> measure.Contender:
    """A contender with an error of a hundredth in the last output."""
    right = OURS["numpy"](case, threads)

    def values() -> dict[str, Any]:
        found = {name: np.array(a) for name, a in right.values().items()}
        found["y"][-1] *= 0.99
        return found

    return measure.Contender(right.call, values)


def failing(case: Case, threads: int) -> measure.Contender:
    raise RuntimeError("it has no such kernel")


# ------------------------------------------------------------------------------------------------------------ the cases
def test_cost_of_a_case_by_hand() -> None:
    """LSTM(28, 256), B=32, T=35: 2 * 4 * 256 * (28 + 256) operations a row; the recurrent weights are 16 H H bytes."""
    case = Case("forward", "lstm", 28, 256, B=32, T=35)
    assert case.flops == 2 * 1024 * 284 * 32 * 35
    assert case.recurrent_bytes == 16 * 256 * 256
    assert case.bytes_read == 35 * 16 * 256 * 256 + 4 * 1024 * 28
    assert dataclasses.replace(case, mode="train").flops == 3 * case.flops
    deep = dataclasses.replace(case, layers=2, bidirectional=True)
    assert deep.flops == 2 * 2 * 1024 * (28 + 256 + 512 + 256) * 32 * 35


def test_token_ids_cost_no_product() -> None:
    """LSTM(10,000, 256): the recurrent product alone, though the parameters are counted."""
    case = cases.TOKENS[-1]
    assert (case.I, case.H, case.B, case.T) == (10_000, 256, 32, 100)
    assert case.flops == 2 * 1024 * 256 * 32 * 100
    assert case.bytes_read == 100 * 16 * 256 * 256
    assert case.parameters == 1024 * (10_000 + 256 + 2)
    deep = dataclasses.replace(case, layers=2)
    assert deep.flops == case.flops + 2 * 1024 * (256 + 256) * 32 * 100


@pytest.mark.parametrize("case", KINDS_AND_MODES, ids=str)
def test_counted_parameters_are_the_layer_s(case: Case) -> None:
    assert case.parameters == sum(p.size for p in case.layer().state_dict().values())


def test_lengths_cost_what_is_valid() -> None:
    ragged = Case("forward", "lstm", 3, 4, B=5, T=6, ragged=True)
    lengths = ragged.lengths()
    assert lengths is not None and lengths[0] == 6 and (np.diff(lengths) <= 0).all()
    assert ragged.flops == dataclasses.replace(ragged, ragged=False).flops * lengths.sum() / 30


def test_cases_have_names_of_their_own() -> None:
    for group, some in cases.GROUPS.items():
        assert len({str(case) for case in some}) == len(some), group


def test_cases_are_chosen_by_group_or_by_a_part_of_the_name() -> None:
    assert cases.select(["odd"]) == {"odd": cases.ODD}
    assert cases.select(["odd"], ["lengths"]) == {"lengths": cases.LENGTHS}
    assert [str(c) for c in cases.select(["inference"], ["1024"])["inference"]] == [
        "lstm step 1024,1024 B=1",
        "lstm forward 1024,1024 B=1 T=50",
        "lstm forward 1024,1024 B=128 T=10",
    ]
    with pytest.raises(ValueError, match="no case in odd is called 'xyz': give a group"):
        cases.select(["odd"], ["xyz"])


# ------------------------------------------------------------------------------------------------------- the contenders
@pytest.mark.peers
@pytest.mark.parametrize("case", KINDS_AND_MODES, ids=str)
def test_every_contender_here_computes_the_same(case: Case) -> None:
    expected = contenders.reference(case)
    for name, make in (OURS | contenders.peers()).items():
        try:
            assert measure.difference(make(case, 1).values(), expected) is None, name
        except measure.Unsupported as error:
            assert name not in OURS, error


SMALL_MODELS = [
    ModelCase("sentiment", 10, 4, 60),
    ModelCase("sentiment", 10, 4, 60, ragged=True),
    ModelCase("characters", 10, 4, 5),
]


@pytest.mark.peers
@pytest.mark.parametrize("case", SMALL_MODELS, ids=str)
def test_every_training_step_computes_the_same(case: ModelCase) -> None:
    """Losses of three steps and the gradients of the first, in PyTorch's loop too."""
    expected = contenders.reference(case)
    assert len(expected["losses"]) == 3 and len({*expected["losses"]}) == 3 and len(expected) > 4
    for name, make in (OURS | contenders.peers()).items():
        try:
            assert measure.difference(make(case, 1).values(), expected) is None, name
        except measure.Unsupported as error:
            assert name not in OURS, error


def test_a_model_with_another_rate_or_weight_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = contenders.reference(SMALL_MODELS[0])
    monkeypatch.setattr(models, "CLIP", 1e-3)
    found = measure.difference(models.our_contender(SMALL_MODELS[0]).values(), expected)
    assert found is not None and found.startswith(measure.WRONG)


def test_ragged_models_cost_the_steps_that_exist() -> None:
    padded, ragged = SMALL_MODELS[:2]
    steps = sum(map(len, ragged.draw().x)) / (8 * 4 * 60)
    assert 0.1 < steps < 0.6 and ragged.flops == pytest.approx(padded.flops * steps)
    assert padded.flops == 3 * 2 * 40 * (32 + 10) * 4 * 60
    batches = ragged.draw().batches
    assert sorted(np.concatenate(batches)) == list(range(8 * 4))


@pytest.mark.peers
def test_token_ids_and_the_numbers_that_they_stand_for_compute_the_same() -> None:
    both = contenders.in_both_forms(OURS | contenders.peers())
    assert list(both)[:2] == [name := next(iter(OURS)), name + contenders.SIZE_1]
    assert len(both) == 2 * len(OURS)
    expected = contenders.reference(TOKENS)
    assert all(measure.difference(make(TOKENS, 1).values(), expected) is None for make in both.values())
    assert TOKENS.draw().x.shape == (3, 2) and TOKENS.of_size_1.draw().x.shape == (3, 2, 1)


def test_a_wrong_contender_is_reported_and_not_timed() -> None:
    makers = {"right": OURS["numpy"], "wrong": wrong, "failing": failing}
    rng = np.random.default_rng(0)
    right, caught, failed = measure.measure(SMALL, 1, makers, contenders.reference(SMALL), 3, rng)
    assert right.problem is None and len(right.rounds) == 3
    assert caught.wrong and not caught.rounds
    assert caught.problem is not None and "y is off by" in caught.problem and "allowed 1e-05" in caught.problem
    assert failed.wrong and failed.problem == "wrong values: none, RuntimeError: it has no such kernel"


@pytest.mark.parametrize(
    ("got", "said"),
    [
        ({"y": np.full(3, np.nan)}, "off by nan"),
        ({"y": np.ones(2)}, r"shape \(2,\), expected \(3,\)"),
        ({}, "expected y"),
        ({"y": np.ones(3) + 1e-4}, "off by 0.0001"),
    ],
)
def test_differences_are_told(got: dict[str, Any], said: str) -> None:
    problem = measure.difference(got, {"y": np.ones(3)})
    assert problem is not None and problem.startswith(measure.WRONG)
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(problem)


# ----------------------------------------------------------------------------------------------------------- statistics
def test_ratio_and_its_interval() -> None:
    """A contender twice as slow, with noise that both share in a round: the ratio within rounds cancels it."""
    rng = np.random.default_rng(0)
    neighbours = rng.lognormal(0, 1, 25)
    ours = measure.Result("ours", rounds=[[n * rng.normal(1, 0.02) for _ in range(5)] for n in neighbours])
    other = measure.Result("other", rounds=[[n * rng.normal(2, 0.04) for _ in range(5)] for n in neighbours])
    r = measure.ratio(other, ours, rng)
    assert 1.9 < r.low <= r.value <= r.high < 2.1 and r.high - r.low < 0.1
    same = measure.ratio(ours, ours, rng)
    assert (same.low, same.value, same.high) == (1, 1, 1)


def test_summary_of_samples() -> None:
    one = measure.Result("one", rounds=[[1.0, 2.0], [3.0], [100.0]])
    assert one.median == 2.5 and 90 < one.p99 <= 100
    other = measure.Result("other", rounds=[[2.0]])
    assert measure.best([one, measure.Result("not timed", "away"), other]) is other
    assert measure.best([]) is None
    assert measure.geometric_mean([1, 4]) == 2


def test_short_calls_are_repeated_within_a_sample() -> None:
    turn = measure.Turn.fitted(lambda: None)
    assert turn.calls > 100 and turn.warm and len(turn.take()) == turn.samples == measure.ROUND_SAMPLES


# ---------------------------------------------------------------------------------------------------------- the machine
@needs_c
@pytest.mark.parametrize("threads", [1, 2])
def test_limits_are_plausible(threads: int) -> None:
    limits = machine.limits(threads, seconds=0.005)
    assert limits is not None
    assert 0.1e9 < limits.flops < 1e13
    assert all(1e8 < rate < 1e13 for rate in limits.bandwidths.values())
    small, large = limits.bandwidth(1000), limits.bandwidth(1e12)
    assert small >= large == limits.bandwidths[max(limits.bandwidths)]
    assert limits.seconds(limits.flops, 0, 1000) == 1 == limits.seconds(0, 0, 1000, limits.integers)
    assert 0.1e9 < limits.integers < 1e14
    assert limits.seconds(0, 2 * small, 1000) == 2


# ----------------------------------------------------------------------------------------------------------- the report
def test_a_tiny_run_writes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(machine, "LADDER", machine.LADDER[:2])
    monkeypatch.setattr(contenders, "ours", lambda isas: OURS)
    monkeypatch.setattr(cases, "GROUPS", {"inference": [SMALL], "cells": [SMALL], "tokens": [TOKENS]})
    assert (
        main(["bench", "--cells", "--cases", "inference", "cells", "tokens", "--rounds", "2", "--out", str(tmp_path)])
        == 0
    )
    raw = json.loads((tmp_path / "samples.json").read_text())
    timed = {one["contender"]: one["rounds"] for one in raw["entries"][0]["results"]}
    assert list(timed) == list(OURS) and all(len(rounds) == 2 for rounds in timed.values())
    assert raw["entries"][0]["flops"] == SMALL.flops and raw["facts"]["load before"]
    text = (tmp_path / "report.md").read_text()
    assert "## What a cell costs" in text and str(SMALL) in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(f"| {TOKENS} |")]
    assert [row[1] for row in rows] == list(OURS)  # each beside itself
    assert all(float(row[4].split()[0]) > 0 for row in rows)
    charts = {"cells-1.svg"} | ({"inference-1.svg"} if len(OURS) > 1 else set())
    assert {path.name for path in tmp_path.iterdir()} == charts | {"samples.json", "report.md"}
    for name in charts:
        assert f"({name})" in text
        assert ElementTree.parse(tmp_path / name).getroot().tag.endswith("svg")


def test_cells_are_compared_with_the_lstm_of_their_shape() -> None:
    """The chart compares a cell with the LSTM of its shape if that was measured; the table has all cells."""
    pytest.importorskip("matplotlib")
    every = [Case(mode, kind, 4, 4, B=2, T=3) for mode in cases.CALLS for kind in cases.KINDS]
    entries = [report.Entry("cells", c, 1, {"c": measure.Result("c", rounds=[[1.0], [2.0]])}, ()) for c in every]
    assert [lstm.case.kind for _, lstm in page.beside_lstm(entries)] == ["lstm"] * len(every)
    assert all(entry.case.mode == lstm.case.mode for entry, lstm in page.beside_lstm(entries))
    table = page.costs(entries).splitlines()[2:]
    assert [line.split(" | ")[1] for line in table] == [f"{c.parameters:,}" for c in every]
    for few, charts in ((entries, {"cells-1.svg"}), (entries[1:3], set())):
        assert page.charts(report.Report({}, {1: None}, 2, few)).keys() == charts


def test_losing_and_wrong_cases_come_first() -> None:
    slow = measure.Result("c", rounds=[[3.0], [3.1]])
    quick = measure.Result("torch", rounds=[[1.0], [1.1]])
    false = measure.Result("openvino", "wrong values: y is off by 0.5")
    away = measure.Result("onnxruntime", "not installed")
    results = {one.contender: one for one in (slow, quick, false, away)}
    entry = report.Entry("inference", SMALL, 2, results, ("torch", "onnxruntime", "openvino"))
    text = page.markdown(report.Report({"load before": "3.0 1.0 1.0"}, {2: None}, 2, [entry]), [])
    assert "The machine was busy" in text
    assert text.index("## Losing cases: 1 of 1") < text.index("## Wrong values") < text.index("## Inference")
    assert f"| {SMALL} | 2 | torch |" in text
    assert "**wrong**" in text and "- onnxruntime: not installed" in text


def test_bad_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--threads", "0", "--out", str(tmp_path)]) == 2
    assert "--threads and --rounds must be at least 1" in capsys.readouterr().err
    assert main(["bench", "--neighbours", "--threads", "1", "2", "--out", str(tmp_path)]) == 2
    assert "--neighbours has cases of its own" in capsys.readouterr().err
    assert main(["bench", "--neighbours", "--cases", "nonsense", "--out", str(tmp_path)]) == 2
    assert "no case beside neighbours is called 'nonsense'" in capsys.readouterr().err
    assert main(["bench", "--cases", "nonsense", "--out", str(tmp_path)]) == 2
    assert "no case in inference, odd, lengths, tokens, others is called 'nonsense'" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- many streams
def test_a_tiny_run_of_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {
        "SHAPES": ((3, 4),),
        "BATCHES": (1, 64),
        "MANY": 300,
        "LARGE": 100,
        "PART": 50,
        "OF_MEMORY": 9000,
        "RUNS": 1,
    }
    for name, value in tiny.items():
        monkeypatch.setattr(streams, name, value)
    monkeypatch.setattr(streams, "THREAD_SECONDS", 0.05)
    monkeypatch.setattr(streams, "SHAPES_OF", {})
    fewer = {"CLIENTS": (1, 16), "REQUESTS": 100, "HANDING_SECONDS": 0.05, "STREAMS": 300, "QUEUE": 32, "SECONDS": 0.1}
    for name, value in fewer.items():
        monkeypatch.setattr(requests, name, value)
    assert main(["bench", "--streams", "--rounds", "2", "--out", str(tmp_path)]) == 0
    raw = json.loads((tmp_path / "streams.json").read_text())
    assert all(line["ratio"] > 0 for line in raw["lines"])
    by_part = {line["part"] for line in raw["lines"]}
    assert "random choice / dense step" in by_part and "one step of 100 / 2 steps of 50" in by_part
    assert {"asyncio clients: request / (bare future + row of a step)", "overload: goodput / the best"} < by_part
    text = (tmp_path / "streams.md").read_text()
    assert f"of {len(raw['lines'])}" in text and all(f"## {part}" in text for part in by_part)
    assert main(["bench", "--streams", "--cases", "nonsense", "--out", str(tmp_path)]) == 2
    assert main(["bench", "--streams", "--threads", "2", "--out", str(tmp_path)]) == 2


def test_a_line_of_the_streams_is_reached_by_its_bound() -> None:
    assert streams.Line("", "", 1.1, 1.08, at_most=True).reached is False
    assert streams.Line("", "", 1.1, 1.08, at_most=True, allowed=True).reached
    assert streams.Line("", "", 1.07, 1.08, at_most=True).reached and streams.Line("", "", 9.0, None).reached
    assert streams.Line("", "", 1.1, 1.08).reached and not streams.Line("", "", 1.0, 1.08).reached


def test_in_a_comparison_the_bound_says_which_time_is_above() -> None:
    one, other = measure.Result("", rounds=[[2.0], [2.0]]), measure.Result("", rounds=[[3.0], [3.0]])
    assert streams.compared("", "", one, other, 1.0).ratio == 1.5
    assert streams.compared("", "", one, other, 1.0, at_most=True).ratio == pytest.approx(2 / 3)


# ------------------------------------------------------------------------------------------------------- the neighbours
def two_parts() -> list[neighbours.Part]:
    quiet = {neighbours.QUIET: nullcontext}
    beside = {"1 busy": functools.partial(neighbours.busy_processes, 1)}, {"busy thread": neighbours.busy_thread}
    some = [SMALL], [Case("step", "lstm", 3, 4), Case("run", "lstm", 3, 4, T=3)]
    wanted: list[dict[str, float]] = [{neighbours.GROWTH: 1e-3}, {neighbours.TAIL: 1e9}]
    return [
        neighbours.Part(f"Part {i}", some[i], quiet | beside[i], threads=2 - i, calls=5, seconds=0, wanted=wanted[i])
        for i in range(2)
    ]


def test_a_tiny_run_beside_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "PARTS", two_parts())
    monkeypatch.setattr(contenders, "peers", lambda: {"onnxruntime": OURS["numpy"], "wrong": wrong})
    arguments = ["bench", "--neighbours", "--peers", "--rounds", "2", "--out", str(tmp_path)]
    assert main(arguments) == 1  # one contender had wrong values
    raw = json.loads((tmp_path / "neighbours.json").read_text())
    assert [entry["surroundings"] for entry in raw["entries"]] == ["quiet", "1 busy", *["quiet", "busy thread"] * 2]
    for entry in raw["entries"]:
        right, rival, false = entry["results"]
        assert [len(run) for run in right["rounds"] + rival["rounds"]] == [5] * 4
        assert all(seconds > 0 for run in right["rounds"] for seconds in run)
        assert false["problem"].startswith(measure.WRONG) and not false["rounds"]
    text = (tmp_path / "neighbours.md").read_text()
    assert "## Missed: 1 of 3" in text and f"| {SMALL} | 1 busy | {neighbours.GROWTH} |" in text
    assert text.index("## Missed") < text.index("## Part 0") < text.index(f"### {SMALL}, 2 threads")
    assert text.count("| onnxruntime | busy thread | 5 |") == 2 and "- wrong: wrong values" in text
    assert main([*arguments[:-4], "--cases", "run", "--out", str(tmp_path / "some")]) == 1
    assert len(json.loads((tmp_path / "some" / "neighbours.json").read_text())["entries"]) == 2


def test_ratios_beside_neighbours_by_hand() -> None:
    """Medians over runs; the rival's percentiles are those of the same run."""
    part = two_parts()[0]
    ours = {neighbours.QUIET: [[1.0] * 9, [2.0] * 9, [9.0] * 9], "1 busy": [[3.0] * 9, [4.0] * 9, [40.0] * 9]}
    rival = [[6.0] * 9, [2.0] * 9, [40.0] * 9]
    entry = neighbours.Entry(
        part,
        SMALL,
        {
            name: {"c": measure.Result("c", rounds=runs), neighbours.RIVAL: measure.Result("", rounds=rival)}
            for name, runs in ours.items()
        },
    )
    assert entry.ratios("1 busy", "c") == {neighbours.GROWTH: 2, neighbours.TAIL: 2, neighbours.BY_RIVAL: 1}
    assert entry.ratios(neighbours.QUIET, "c") == {neighbours.TAIL: 1, neighbours.BY_RIVAL: 9 / 40}
    assert neighbours.BY_RIVAL not in entry.ratios("1 busy", neighbours.RIVAL)


def test_neighbours_are_busy_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    start = subprocess.Popen

    def noted(*arguments: Any, **options: Any) -> Any:
        begun.append(start(*arguments, **options))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    with neighbours.busy_processes(2):
        assert [one.poll() for one in begun] == [None, None]  # the processes are still running
    assert all(one.returncode == -signal.SIGKILL for one in begun)
    before = threading.active_count()
    with neighbours.busy_thread():
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_every_call_counts_with_what_comes_before_it() -> None:
    calls = itertools.count()
    found = neighbours.latencies(lambda: next(calls), 50)
    assert len(found) == 50 and next(calls) == 50 + neighbours.WARM_CALLS
    slow = neighbours.latencies(lambda: time.sleep(0.01), 1000, most_seconds=0.05)
    assert 1 <= len(slow) <= 5 and min(slow) >= 0.01  # a turn ends
    assert sum(neighbours.latencies(lambda: None, 3, seconds=0.01)) >= 0.01


# ----------------------------------------------------------------------------------------------- what the documents say
ROOT = Path(__file__).parent.parent


def test_the_table_of_backends_is_what_the_code_says() -> None:
    assert info.table() in (ROOT / "docs" / "backends.md").read_text(), f"it has to hold\n{info.table()}"


def test_errors_read_as_the_documents_say(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "backends.md").read_text()
    with pytest.raises(ValueError) as unknown:
        choose("cuda", "float32")
    assert f"ValueError: {unknown.value}\n" in text
    if backends()["c"] is not None:
        pytest.skip(f"c: {backends()['c']}")
    with pytest.raises(BackendError) as lacking:
        choose("c", "float64")
    assert f"BackendError: {lacking.value}\n" in text
    if "numba" in backends():
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(BackendError) as missing:
            choose("numba", "float32")
        assert f"BackendError: {missing.value}\n" in text


def test_every_group_of_cases_has_a_title() -> None:
    from fastlstm.report import cases, page

    assert set(cases.GROUPS) <= set(page.TITLES)
