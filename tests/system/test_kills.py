"""Signals at a point each of fit, encode, save, webdataset and two fillers: the short form of ``fuzz/kills.py``."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from fuzz.kills import CODES, PROGRAMS, SIGNALS, Outcome, main, table
from tiny.forked import Forked

HALVES = {  # a signal that cannot be caught and one that is, for each program
    ("fit", "save"): ("SIGKILL", "SIGTERM"),
    ("encode", "webdataset", "two fillers"): ("SIGKILL", "SIGINT"),
}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_nothing_is_lost_and_the_bits_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("MMPREFIX_ALLOW", "tiny")
    outcomes: list[Any] = []
    for programs, signals in HALVES.items():
        out = tmp_path / f"{signals[1]}.json"
        words = ["--points", "1", "--programs", *programs, "--signals", *signals, "--out", str(out)]
        assert main(words) == 0, capsys.readouterr()
        outcomes += json.loads(out.read_text())
    assert {outcome["program"] for outcome in outcomes} == PROGRAMS.keys()
    assert {outcome["signal"] for outcome in outcomes} == {number.name for number in SIGNALS}
    assert len(outcomes) == 2 * len(PROGRAMS)
    assert all(outcome["same"] for outcome in outcomes)
    assert not any(outcome["lost"] or outcome["doubled"] or outcome["faults"] for outcome in outcomes)
    codes = {number.name: codes for number, codes in CODES.items()}
    stopped = [outcome for outcome in outcomes if outcome["code"] in codes[outcome["signal"]]]
    assert len(stopped) > len(outcomes) / 2  # the others had ended before the signal


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_inside_what_python_does_after_a_fork_ends_the_process_in_order(
    tmp_path: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    sent = [number]
    os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), sent[0]) if sent else None)
    try:
        run = Forked(lambda: 0, tmp_path / "log")
    finally:
        sent.clear()
    assert run.wait(60) == -number
    assert run.log.read_text() == capfd.readouterr().err == ""  # no "exception ignored": it would leave locks taken


def test_the_table_counts() -> None:
    outcomes = [Outcome("fit", "SIGTERM", point, 143 * point, [0], point, 0, bool(point)) for point in range(2)]
    assert table(outcomes).splitlines()[-1] == "| fit | SIGTERM | 2 | 0 (1), 143 (1) | 0 | 1 | 0 | 1 of 2 |"
