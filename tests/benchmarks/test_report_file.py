"""File of a benchmark's results: options and figures, without the place where it was written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.lib.report import options_of, publish

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_a_file_does_not_say_where_it_lies(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = argparse.Namespace(repeat=3, json=str(file))
    publish({"options": options_of(options), "figures": [1.5]}, "a table", options.json)
    assert json.loads(file.read_text(encoding="utf-8")) == {"options": {"repeat": 3}, "figures": [1.5]}


def test_every_benchmark_records_its_options_so() -> None:
    files = [*RESULTS.parent.rglob("*.py")]
    assert not [file.name for file in files if '"options": vars(' in file.read_text(encoding="utf-8")]


def test_no_published_file_names_a_folder_of_a_machine() -> None:
    files = list(RESULTS.glob("*.json"))
    assert files
    assert not [file.name for file in files if '"/' in file.read_text(encoding="utf-8")]
