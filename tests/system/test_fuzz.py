"""Fuzz program, a short run: sixty mutated inputs of all kinds; ``python -m tests.fuzz`` runs as many as one likes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.cases import SHARES, kind_of, make_case
from fuzz.runner import run_case
from fuzz.seeds import make

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Valid inputs, from which the mutated ones are made."""
    folder = tmp_path_factory.mktemp("seeds") / "base"
    make(folder)
    return folder


@pytest.mark.slow
def test_no_mutated_input_is_a_traceback_an_odd_exit_code_or_read_in_part(base: Path) -> None:
    """In a process of its own, whose memory is that of the program alone."""
    words = ["--inputs", "60", "--first", "200", "--fresh", "1000", "--base", str(base)]
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout
    counts = [int(row.split()[1]) for row in result.stdout.splitlines()[-9:]]
    assert (sum(counts), min(counts) > 0) == (60, True), result.stdout


def test_an_input_is_made_again_from_its_number(base: Path, tmp_path: Path) -> None:
    """One of each kind: the same change, the same words, the same bits of every file."""
    numbers = {kind_of(number): number for number in range(100)}
    assert numbers.keys() == SHARES.keys()
    for number in numbers.values():
        made: list[tuple[str, list[str], dict[str, bytes]]] = []
        for time in range(2):
            folder = tmp_path / str(number) / str(time)
            folder.mkdir(parents=True)
            case = make_case(number, 3, folder, base)
            files = {
                str(file.relative_to(folder)): file.read_bytes().replace(str(folder).encode(), b"")
                for file in folder.rglob("*")
                if file.is_file()
            }
            made.append((case.change, [word.replace(str(folder), "") for word in case.words], files))
        assert made[0] == made[1], number


@pytest.mark.slow
def test_an_input_ends_as_before(base: Path) -> None:
    first, second = (run_case(5, 3, base) for _ in range(2))
    assert (first.number, first.kind, first.code) == (5, kind_of(5), second.code)
    assert first.change == second.change
