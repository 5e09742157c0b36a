"""Fuzz program, a short run: sixty mutated inputs of all kinds; ``python -m tests.fuzz`` runs as many as one likes."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def fuzz(*words: str) -> tuple[int, str]:
    """Exit code and standard output of the fuzz program in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    return result.returncode, result.stdout


@pytest.mark.slow
def test_no_mutated_input_is_a_traceback_an_odd_exit_code_or_read_in_part() -> None:
    code, out = fuzz("--inputs", "60", "--first", "200", "--fresh", "1000")
    assert code == 0, out
    counts = [int(row.split()[1]) for row in out.splitlines()[-9:]]
    assert (sum(counts), min(counts) > 0) == (60, True), out


@pytest.mark.slow
def test_an_input_is_made_again_from_its_number() -> None:
    runs = [fuzz("--only", "5", "--seed", "3", "--fresh", "1000")[1] for _ in range(2)]
    lines = [re.sub(rf"{re.escape(tempfile.gettempdir())}\S+|\d+\.\d+", "", out) for out in runs]
    assert lines[0] == lines[1]
    assert lines[0].startswith("5 ")
