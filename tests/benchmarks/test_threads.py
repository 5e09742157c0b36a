"""Sixteen threads on one Predictor for five seconds: right answers and right errors, each to its own call."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.studies.threads import Outcome, call, main, make_jobs, run
from mmprefix.inference.loading import load
from tiny import models as tiny_models


@pytest.mark.slow
def test_every_thread_gets_its_own_answer(tmp_path: Path) -> None:
    saved = tiny_models.save_model(tmp_path / "m", tiny_models.frozen_parts(tmp_path / "parts"), "image", "audio")
    model, files = load(saved, device="cpu"), tiny_models.media_files(tmp_path / "media")
    (tmp_path / "bad").mkdir()
    jobs = make_jobs(model, files, tmp_path / "bad")
    assert len({str(job.answer) for job in jobs}) > 12  # a mixed-up pair would show
    outcome = run(model, jobs, threads=16, seconds=5.0)
    assert outcome.wrong == []
    assert outcome.counts["answers"] > 16
    assert outcome.counts["errors"] > 0
    assert all(call(model, job) == job.answer for job in jobs)


def test_wrong_pairs_and_moving_memory_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = Outcome(memory=[(0.0, 900.0), (10.0, 950.0), (20.0, 961.0), (30.0, 945.0)])
    assert outcome.moved(10.0) == pytest.approx(11.0)
    saved = tiny_models.save_model(tmp_path / "model", tiny_models.frozen_parts(tmp_path / "parts"), "image", "audio")
    tiny_models.media_files(tmp_path / "samples")
    assert main([str(saved.parent), "--seconds", "0.2", "--threads", "2"]) in (0, 1)
    table = capsys.readouterr().out
    assert "wrong of both         0" in table
    assert "in use before " in table
    swapped = {"n": 0}

    def other(model: object, job: object) -> str:
        swapped["n"] += 1
        return f"answer {swapped['n']}"

    monkeypatch.setattr("benchmarks.studies.threads.call", other)
    assert main([str(saved.parent), "--seconds", "0.2", "--threads", "2"]) == 1
    assert "wrong: " in capsys.readouterr().out
