"""docs/personal.md: the lines about cartridges run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mmprefix.decoders import CausalDecoder
from tiny import decoders as tiny_decoders

PAGE = Path(__file__).resolve().parents[2] / "docs" / "personal.md"


def test_the_lines_about_cartridges_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"<!-- run: cartridges -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {
        "decoder": CausalDecoder(tiny_decoders.save_decoder(tmp_path / "llama", "llama", sharp=3.0)),
        "history": "some rain falls on the old roof, and a bell rings twice.",
        "texts": [("\n", "a dog barks"), ("\n", "the cat runs")],
        "glossary": "a green hill is a hill; the old roof is a roof",
    }
    exec(block, names)
    assert names["ann"].positions == 8
    assert names["both"].positions == 15
    assert [len(row) for row in names["scores"]] == [1, 1]
    assert names["scores"][0] != pytest.approx(names["scores"][1], abs=1e-3)
    assert (tmp_path / "ann.safetensors").is_file()
