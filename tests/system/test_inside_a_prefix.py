"""docs/inside_a_prefix.md: its blocks run in order, and what it says of the embedded picture is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "inside_a_prefix.md").read_text(encoding="utf-8")


def test_the_blocks_run_and_the_figures_are_so(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"<!-- run: \w+ -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/inside_a_prefix.md", "exec"), names)
    assert len(blocks) == 7
    assert "a picture of a large red ring in the bottom left" in capsys.readouterr().out
    nearest = names["inspection"].nearest_words(names["model"], names["picture"], count=2)
    for position, word, cosine in ((0, "ring", 0.50), (6, "red", 0.64), (4, "left", 0.47), (4, "bottom", 0.39)):
        assert any(own.text == word and own.cosine == pytest.approx(cosine, abs=0.006) for own in nearest[position])
    assert all(16.5 <= norm <= 20.5 for norm in names["lengths"].positions)
    assert names["maps"].values.shape == (8, 8, 8)
    assert names["heat"].size == (384, 384)
