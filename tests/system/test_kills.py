"""Signals at a point each of fit, encode, save, webdataset and two fillers: the short form of ``fuzz/kills.py``."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from fuzz.kills import CODES, PROGRAMS, SIGNALS, Outcome, main, table


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_nothing_is_lost_and_the_bits_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("MMPREFIX_ALLOW", "tiny")
    code = main(["--points", "1", "--out", str(tmp_path / "kills.json")])
    assert code == 0, capsys.readouterr()
    outcomes = json.loads((tmp_path / "kills.json").read_text())
    assert len(outcomes) == len(PROGRAMS) * len(SIGNALS)
    assert all(outcome["same"] for outcome in outcomes)
    assert not any(outcome["lost"] or outcome["doubled"] or outcome["faults"] for outcome in outcomes)
    codes = {number.name: codes for number, codes in CODES.items()}
    stopped = [outcome for outcome in outcomes if outcome["code"] in codes[outcome["signal"]]]
    assert len(stopped) > len(outcomes) / 2  # the others had ended before the signal


def test_the_table_counts() -> None:
    outcomes = [Outcome("fit", "SIGTERM", point, 143 * point, [0], point, 0, bool(point)) for point in range(2)]
    assert table(outcomes).splitlines()[-1] == "| fit | SIGTERM | 2 | 0 (1), 143 (1) | 0 | 1 | 0 | 1 of 2 |"
