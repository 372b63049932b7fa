"""The code of docs/onnx.md and docs/moving_from_onnx_runtime.md runs, and their tables name what the code has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fastlstm.onnx.folding import OPERATORS

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize(("page", "count"), [("onnx.md", 3), ("moving_from_onnx_runtime.md", 1)])
def test_the_page_runs(page: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == count
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)


def test_the_page_names_the_operators_on_constants() -> None:
    row = re.search(r"\| such operators \| (.*) \|", (DOCS / "onnx.md").read_text(encoding="utf-8"))
    assert row is not None
    assert set(row[1].split(", ")) | {"Constant"} == set(OPERATORS)
