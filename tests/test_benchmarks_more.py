"""More benchmark scripts at tiny sizes, and the page that is made of what they find."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipes import quietly

ROOT = Path(__file__).resolve().parents[1]
pytestmark = quietly


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a script of benchmarks/ as it is when run: its folder comes first on the path."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


def test_scaling(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "scaling.json"
    found = script("scaling").main(["--tiny", "--points", "2", "--repeat", "1", "--json", str(file)])
    assert json.loads(file.read_text()) == found
    printed = capsys.readouterr().out
    for name, points in found["sweeps"].items():
        assert f"| {name} " in printed
        for point in points:
            assert point["ratio"] == point["naive"]["cpu_median"] / point["mmprefix"]["cpu_median"]
    assert [point["prefix"] for point in found["sweeps"]["prefix"]] == [10, 20]
    assert [point["layers"] for point in found["sweeps"]["decoder"]] == [2, 4]


@pytest.mark.slow
def test_memory(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "memory.json"
    sizes = ["--layers", "2", "--width", "64", "--vocab", "2000", "--prefix-length", "4", "--batch", "10"]
    found = script("memory").main([*sizes, "--json", str(file)])
    assert json.loads(file.read_text()) == found
    assert len(found["steps"]) == 3
    printed = capsys.readouterr().out
    for name, one in found["steps"].items():
        assert f"| {name} " in printed
        assert one["peak"] >= one["loaded"] > 0


@pytest.mark.slow
def test_startup_ends_where_a_process_fails(script: Any) -> None:
    startup = script("startup")
    cpu, wall = startup.seconds(["-c", "sum(range(3_000_000))"])
    assert 0 < cpu < 10 * wall
    with pytest.raises(SystemExit, match="no such thing"):
        startup.seconds(["-c", "raise SystemExit('no such thing')"])


@pytest.mark.slow
def test_encode(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "encode.json"
    encoder = ["--pictures", "6", "--pixels", "64", "--encoder-layers", "1", "--encoder-width", "64"]
    sizes = [
        "--layers",
        "2",
        "--width",
        "64",
        "--vocab",
        "300",
        "--batch",
        "6",
        "--repeat",
        "1",
        "--captions",
        "1",
        "2",
    ]
    found = script("encode").main([*encoder, *sizes, "--repeat", "1", "--captions", "1", "2", "--json", str(file)])
    assert json.loads(file.read_text()) == json.loads(json.dumps(found))
    half, full = found["filling"]
    assert 0 < half["bytes_so_far"] < full["bytes_so_far"]
    for epoch in found["epochs"]:
        assert len(epoch["with"]) == len(epoch["without"]) == 1
    assert "| 2 " in capsys.readouterr().out


def test_the_page(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    results.mkdir()
    script("scaling").main(["--tiny", "--points", "2", "--repeat", "1", "--json", str(results / "scaling.json")])
    table = capsys.readouterr().out.strip()
    performance, texts = script("performance_page"), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        performance.main(["--results", str(results), "--out", str(tmp_path / name / "page.md")])
        texts.append((tmp_path / name / "page.md").read_text())
        texts.append((tmp_path / name / "page" / "scaling.svg").read_text())
    assert texts[:2] == texts[2:]
    assert table in texts[0]
    assert texts[0].count("Not measured.") == len(performance.PARTS) - 1
    assert "![How the gain changes](page/scaling.svg)" in texts[0]


def test_the_page_in_docs_is_that_of_the_results(script: Any, tmp_path: Path) -> None:
    script("performance_page").main(["--out", str(tmp_path / "performance.md")])
    assert (tmp_path / "performance.md").read_text() == (ROOT / "docs" / "performance.md").read_text()
