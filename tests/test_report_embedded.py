"""`fastlstm bench --embedded`: a tiny run leaves its files, wrong outputs are found, and what is missing is named."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fastlstm.cli import main
from fastlstm.report import c_library, c_sources, embedded, measure, silero

HAS_COMPILER = any(map(shutil.which, ("gcc", "clang", "cc")))
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="there is no C compiler")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SHAPES": ((3, 4),),
        "OF_LIBRARY": ((3, 4),),
        "STREAMS": 5,
        "CALL": 4,
        "OF_SILERO": {2: 3.0},
    }.items():
        monkeypatch.setattr(embedded, name, value)
    for name in ("ROUND_SECONDS", "WARM_SECONDS", "LEAST_SAMPLE"):
        monkeypatch.setattr(measure, name, 1e-4)


def bench(out: Path, *words: str) -> tuple[int, Any]:
    """Exit status, and what embedded.json holds."""
    status = main(["bench", "--embedded", "--rounds", "2", "--out", str(out), *words])
    return status, json.loads((out / "embedded.json").read_text())


@needs_compiler
def test_a_tiny_run(tmp_path: Path) -> None:
    status, raw = bench(tmp_path)
    assert status == 0
    assert raw["lines"] and all(line["ratio"] > 0 for line in raw["lines"])
    found, notes = {line["part"] for line in raw["lines"]}, "\n".join(raw["notes"])
    for part, missing in {
        "C sources at -O2: the other's step / to_c's": "emx-onnx-cgen 3,4: ",
        "to_c: flash of int8 / float32": "int8: ",
        "a step in C / from Python": "step: ",
        "in C: single steps / a batch's step": "batch: ",
        "single steps from Python / a batch's step in C": "batch: ",
        "C library / extension": "size: ",
        "Silero VAD, whole: ONNX Runtime / StreamBatch": "silero: ",
    }.items():
        assert part in found or missing in notes, part
    assert "keras2c 3,4: its wheel has no C: give --keras2c" in notes
    text = (tmp_path / "embedded.md").read_text()
    assert f"of {len(raw['lines'])}" in text and all(f"## {part}" in text for part in found)
    assert "## Not measured" in text and notes.splitlines()[0] in text


@needs_compiler
@pytest.mark.parametrize(
    ("part", "module", "program", "right", "wrong"),
    [
        ("sources", c_sources, "OWN", "own_step(&state, x, y);", "own_step(&state, x, y); y[0] *= 0.99f;"),
        ("int8", c_sources, "OWN", "own_step(&state, x, y);", "own_step(&state, x, y); y[0] += 0.1f;"),
        ("step", c_library, "PROGRAM", "streams[0], x + t % N * I, y)", "streams[0], x, y)"),
        ("batch", c_library, "PROGRAM", "fastlstm_batch_step(batch, handles, N, x, y)", "y[0] = 1"),
    ],
    ids=("sources", "int8", "step", "batch"),
)
def test_wrong_outputs_are_not_timed(
    part: str, module: Any, program: str, right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = getattr(module, program)
    assert right in text
    monkeypatch.setattr(module, program, text.replace(right, wrong))
    status, raw = bench(tmp_path, "--cases", part)
    if part in ("step", "batch") and "the C library is not in this installation" in "".join(raw["notes"]):
        pytest.skip(raw["notes"][0])
    assert status == 1 and raw["lines"] == []
    assert any(measure.WRONG in note for note in raw["notes"])


def test_wrong_probabilities_of_silero_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    if find_spec("silero_vad") is None:
        pytest.skip("silero-vad is not installed")
    ours = silero.ours

    def changed(n: int) -> Any:
        step = ours(n)
        return lambda chunks: step(chunks) + 1e-4

    monkeypatch.setattr(silero, "ours", changed)
    status, raw = bench(tmp_path, "--cases", "silero")
    assert status == 1 and raw["lines"] == []
    assert raw["notes"][0].startswith(f"silero 2 streams: {measure.WRONG}: off by 0.0001, allowed 1e-05")


def test_without_a_compiler_nothing_is_measured_but_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    status, raw = bench(tmp_path, "--cases", "sources", "int8")
    assert status == 0 and raw["lines"] == []
    assert raw["notes"] == [f"{part}: there is no C compiler (no-such-compiler)" for part in ("sources", "int8")]
    assert raw["facts"]["C compiler"] == "there is no C compiler (no-such-compiler)"


@needs_compiler
def test_what_the_compiler_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_sources, "OWN", c_sources.OWN + "#error a line that no compiler takes\n")
    _, raw = bench(tmp_path, "--cases", "int8")
    assert "fails: " in raw["notes"][0] and "a line that no compiler takes" in raw["notes"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--embedded", "--streams", "--peers"], "--embedded has cases of its own, so leave --streams and --peers out"),
        (
            ["--embedded", "--cases", "nonsense"],
            "no part of the embedded figures is called 'nonsense'; there are sources",
        ),
        (["--keras2c", "include"], "--keras2c names a contender of --embedded: give that too"),
    ],
)
def test_options_that_do_not_fit(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words, "--out", str(tmp_path / "new")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
