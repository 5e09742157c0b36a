"""Fixtures for tests of ``recipes/prepare``: small sounds, pictures and tables, and functions that run a program."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmprefix.cli import main as cli
from mmprefix.data.manifest import read_manifest

RATE = 2000
CLOTHO_COLUMNS = [f"caption_{number}" for number in range(1, 6)]
CLOTHO_TEXTS = [
    "A dog barks,  twice.", "a dog , barking", "Dogs, two of them", 'He says "go", it goes', "Line\nbreak.",
]  # fmt: skip

Shell = pytest.CaptureFixture[str]


def program(name: str) -> Callable[[list[str]], int]:
    """Function ``main`` of the program ``recipes/prepare/name.py``: command line in, exit code out."""
    return importlib.import_module(f"mmprefix.recipes.prepare.{name}").main


def write_sound(file: Path, seconds: float = 0.5) -> None:
    """Write ``seconds`` of noise at ``RATE`` Hz."""
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.random.default_rng(0).uniform(-0.1, 0.1, round(seconds * RATE)), RATE)


def write_picture(file: Path) -> None:
    """Write a picture of random pixels, 32 wide and 24 high."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(file)


def truncate_to_half(file: Path) -> None:
    """Cut off the second half of a file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def write_table(file: Path, header: list[str], rows: list[list[Any]], encoding: str = "utf-8") -> None:
    """Write a CSV file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding=encoding, newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def missing_rows(out: Path) -> list[list[str]]:
    """Cells of the lines of ``missing.txt``: split, kind of fault, name, reason."""
    return [line.split("\t") for line in (out / "missing.txt").read_text(encoding="utf-8").splitlines()]


def program_error(capsys: Shell, name: str, *words: str | Path) -> str:
    """Error message, one line, of the program ``name`` on wrong input."""
    capsys.readouterr()
    assert program(name)([str(word) for word in words]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"prepare_{name}: ")
    assert message.count("\n") == 1
    return message


def run_program(name: str, *words: str | Path) -> None:
    """Run a program; all manifests that it writes must be read without a fault and pass check-data."""
    assert program(name)([str(word) for word in words]) == 0
    out = Path(words[words.index("--out") + 1])
    manifests = sorted(out.glob("*.jsonl"))
    assert manifests
    for manifest in manifests:
        examples, faults = read_manifest(manifest, split=manifest.stem)
        assert (len(examples), faults) == (len(read_json_lines(manifest)), [])
    assert cli.main(["check-data", *map(str, manifests)]) == 0
