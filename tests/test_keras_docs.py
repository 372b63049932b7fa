"""The code of docs/keras.md and docs/moving_from_pytorch.md runs."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("keras")
pytest.importorskip("h5py")

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize(("page", "count"), [("keras.md", 2), ("moving_from_pytorch.md", 1)])
def test_the_page_runs(page: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == count
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks:
            exec(block, names)
    assert page != "keras.md" or names["summary"].calls > 0
