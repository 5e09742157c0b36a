"""The linear baseline reads the training rows' texts and scores the other splits, each by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.studies import words


def test_words_that_tell_the_label_are_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"split": "train", "intent": "light", "transcript": "switch the lamp on", "asr": "switch the lamb on"},
        {"split": "train", "intent": "music", "transcript": "play a song", "asr": "play along"},
        {"split": "val", "intent": "light", "transcript": "", "asr": "the lamb"},
        {"split": "val", "intent": "light", "transcript": "", "asr": "play"},
        {"split": "test", "intent": "music", "transcript": "", "asr": "a song"},
    ]
    assert words.accuracy(rows, "intent", ["transcript", "asr"], "asr") == {"test": 1.0, "val": 0.5}
    file = tmp_path / "manifest.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words.main([str(file)])
    assert capsys.readouterr().out == "test 1.000, val 0.500\n"
