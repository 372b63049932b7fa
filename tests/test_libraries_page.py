"""docs/libraries.md against the tables of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastlstm._onnx_weights import ACTIVATION_NAMES
from fastlstm._readers.keras_layers import ACTIVATIONS, WITHOUT_COUNTERPART
from fastlstm.gates import ORDERS
from fastlstm.spec import GATES

PAGE = Path(__file__).parent.parent / "docs" / "libraries.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the docs are not installed with the package")
LIBRARIES = ("torch", "keras", "keras", "keras", "onnx")  # of the columns


def cells(row: str) -> list[str]:
    """The cells of the row with this head, in the table of layouts or options."""
    (line,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_orders_of_gates_are_those_of_the_table(kind: str) -> None:
    assert cells(f"gates of {kind.upper()}") == [" ".join(ORDERS[name][kind].names) for name in LIBRARIES]


@pytest.mark.parametrize(("library", "names"), [("Keras", [*ACTIVATIONS, "hard_sigmoid"]), ("ONNX", ACTIVATION_NAMES)])
def test_the_activations_are_those_of_the_tables(library: str, names: list[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^Activations of {library}: ([^.]*)\.", text, re.MULTILINE)
    assert found is not None
    expected = {ACTIVATION_NAMES[name][0] for name in names} if library == "ONNX" else set(names)
    assert set(re.findall(r"`(\w+)`", found[1])) == expected


def test_numbers_of_biases_follow_from_the_gates() -> None:
    for kind in ("lstm", "gru"):
        both = 2 * len(GATES[kind])  # type: ignore[index]
        row = cells(f"biases of {kind.upper()}")
        assert f"({both}·H,)" in row[3] and f"(D, {both}·H)" in row[4]


def test_every_option_without_counterpart_has_a_row() -> None:
    assert WITHOUT_COUNTERPART
    for option in WITHOUT_COUNTERPART:
        assert "error" in cells(f"`{option}`")


def test_every_row_has_a_cell_for_each_library() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) > 30
    for row in rows:
        assert row.count("|") == 2 + len(LIBRARIES), row
