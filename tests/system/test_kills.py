"""Signals at two points each of fit, encode, save, webdataset and two fillers: the short form of ``fuzz/kills.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.kills import CODES, PROGRAMS, SIGNALS, Outcome, table

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_nothing_is_lost_and_the_bits_are_the_same(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "COV_", "PYTEST"))}
    environment |= {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(TESTS / "fuzz" / "kills.py"), "--points", "2", "--out", str(tmp_path / "kills.json")]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stdout + result.stderr
    outcomes = json.loads((tmp_path / "kills.json").read_text())
    assert len(outcomes) == 2 * len(PROGRAMS) * len(SIGNALS)
    assert all(outcome["same"] for outcome in outcomes)
    assert not any(outcome["lost"] or outcome["doubled"] or outcome["faults"] for outcome in outcomes)
    codes = {number.name: codes for number, codes in CODES.items()}
    stopped = [outcome for outcome in outcomes if outcome["code"] in codes[outcome["signal"]]]
    assert len(stopped) > len(outcomes) / 2  # the others had ended before the signal


def test_the_table_counts() -> None:
    outcomes = [Outcome("fit", "SIGTERM", point, 143 * point, [0], point, 0, bool(point)) for point in range(2)]
    assert table(outcomes).splitlines()[-1] == "| fit | SIGTERM | 2 | 0 (1), 143 (1) | 0 | 1 | 0 | 1 of 2 |"
