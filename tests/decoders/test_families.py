"""Every family of language models that Transformers builds tiny, against its own forward pass, and docs/decoders.md."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]
DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS))
families: Any = importlib.import_module("decoder_families")
sys.path.remove(str(DOCS))
CAUSAL, CROSS = re.split(r"(?m)^## CrossDecoder$", families.PAGE.read_text(encoding="utf-8"))


def row_in(part: str, name: str) -> Any:
    """Row of a family as the page tells it; None for one that is not tried."""
    untried = re.search(r"gives no small model: (.*)\.", part)
    assert untried
    if name in untried[1].split(", "):
        return None
    good, bad = re.split(r"(?m)^Refused when loaded", part)
    for text, field in ((good, "notes"), (bad, "problem")):
        match = re.search(rf"(?m)^\| {re.escape(name)} \| (.*) \|$", text)
        if match:
            return families.Row(name, **{field: match[1].strip()})
    return pytest.fail(f"{name} is not in docs/decoders.md; write it again: python docs/decoder_families.py")


@pytest.mark.parametrize("name", families.QUICK)
def test_well_known_families(name: str) -> None:
    row = families.causal_row(name)
    assert not row.problem
    assert row == row_in(CAUSAL, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(families.causal_names()) - set(families.QUICK)))
def test_causal_family(name: str) -> None:
    assert families.causal_row(name) == row_in(CAUSAL, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", families.cross_names())
def test_encoder_decoder_family(name: str) -> None:
    assert families.cross_row(name) == row_in(CROSS, name)


def test_the_page_tells_of_these_families_alone() -> None:
    """A family that Transformers dropped or added asks for the page to be written again."""
    for part, names in ((CAUSAL, families.causal_names()), (CROSS, families.cross_names())):
        untried = re.search(r"gives no small model: (.*)\.", part)
        assert untried
        rows = re.findall(r"(?m)^\| ([a-z0-9_-]+) \|", part)
        assert sorted([*rows, *untried[1].split(", ")]) == sorted(names)
        counts = [int(count) for count in re.findall(r"\((\d+)\):", part)]
        assert sum(counts) == len(rows)
