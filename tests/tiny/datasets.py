"""What the tests of the programs that prepare data sets share: small sounds and tables, and how to run a program."""

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

Shell = pytest.CaptureFixture[str]


def program(name: str) -> Callable[[list[str]], int]:
    """The program ``name`` of the recipes, as a function of its command line."""
    return importlib.import_module(f"mmprefix.recipes.prepare.{name}").main


def sound(file: Path, seconds: float = 0.5) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.random.default_rng(0).uniform(-0.1, 0.1, round(seconds * RATE)), RATE)


def picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(file)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def table(file: Path, header: list[str], rows: list[list[Any]], encoding: str = "utf-8") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding=encoding, newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def lost(out: Path) -> list[list[str]]:
    return [line.split("\t") for line in (out / "missing.txt").read_text(encoding="utf-8").splitlines()]


def refused(capsys: Shell, name: str, *words: str | Path) -> str:
    """The one line with which the program ``name`` refuses."""
    capsys.readouterr()
    assert program(name)([str(word) for word in words]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"prepare_{name}: ")
    assert message.count("\n") == 1
    return message


def prepare(name: str, *words: str | Path) -> None:
    """Runs a program; all manifests that it writes are read without a fault, and pass check-data."""
    assert program(name)([str(word) for word in words]) == 0
    out = Path(words[words.index("--out") + 1])
    manifests = sorted(out.glob("*.jsonl"))
    assert manifests
    for manifest in manifests:
        examples, faults = read_manifest(manifest, split=manifest.stem)
        assert (len(examples), faults) == (len(lines(manifest)), [])
    assert cli.main(["check-data", *map(str, manifests)]) == 0
