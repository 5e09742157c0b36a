"""Demos: the notebooks run from top to bottom and show what they say, the program writes its table."""

from __future__ import annotations

import csv
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from mmprefix.world.generate import make_samples

DEMOS = Path(__file__).resolve().parents[2] / "demos"
NOTEBOOKS = sorted(DEMOS.glob("*.ipynb"))


def executed(file: Path, folder: Path) -> str:
    """Standard output of all cells of a notebook, run in ``folder``; pictures and players are counted at the end."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(book, timeout=500, kernel_name="python3", resources=resources).execute()
    outputs: list[Any] = [output for cell in book.cells for output in cell.get("outputs", ())]
    text = "".join(output.text for output in outputs if output.get("name") == "stdout")
    kinds = [kind for output in outputs for kind in output.get("data", ())]
    return f"{text}\nimages {kinds.count('image/png')}, players {kinds.count('text/html')}\n"


def figures(text: str, name: str) -> list[float]:
    """Numbers of the line of ``text`` that begins with ``name``."""
    line = next(line for line in text.splitlines() if line.startswith(name))
    return [float(word) for word in line.split() if word.replace(".", "").isdigit()]


@pytest.mark.slow
def test_sounds_become_captions(tmp_path: Path) -> None:
    text = executed(DEMOS / "sounds_to_captions.ipynb", tmp_path)
    (exact, other), (cider, shuffled) = figures(text, "exact_match"), figures(text, "cider_d")
    assert exact >= 0.6
    assert other < exact / 2
    assert cider > 3 * shuffled
    assert "players 4" in text
    assert not list(tmp_path.iterdir())  # all that it writes is in a folder of its own


@pytest.mark.slow
def test_a_prefix_is_looked_into(tmp_path: Path) -> None:
    text = executed(DEMOS / "inside_a_prefix.ipynb", tmp_path)
    assert "8 of 8 lie outside" in text
    ends = [line.split("  ", 1)[1] for line in text.splitlines() if line.startswith(("0.000  ", "1.000  "))]
    assert ends == text.splitlines()[:2]
    assert "images 5" in text


def test_every_demo_is_listed_and_holds_no_output() -> None:
    listed = (DEMOS / "README.md").read_text(encoding="utf-8")
    programs = sorted(DEMOS.glob("*.py"))
    assert NOTEBOOKS
    assert all(f"]({file.name})" in listed for file in [*NOTEBOOKS, *programs])
    for file in NOTEBOOKS:
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        assert not any(cell.get("outputs") for cell in cells)
        assert len({cell["id"] for cell in cells}) == len(cells)


def test_the_program_writes_a_row_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_samples(tmp_path / "samples", count=2)
    (folder / "manifest.jsonl").unlink()
    (folder / "broken.png").write_bytes(b"no picture")
    program = runpy.run_path(str(DEMOS / "caption_folder.py"))
    assert program["main"](str(folder), str(tmp_path / "captions.csv")) == 3
    assert "broken.png" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "captions.csv").open(encoding="utf-8")))
    assert [row["file"] for row in rows] == [
        f"{kind}-000{n}.{end}" for kind, end in (("audio", "wav"), ("image", "png")) for n in (0, 1)
    ]
    assert all(len(row["caption"].split()) > 4 and float(row["log_probability"]) <= 0 for row in rows)
