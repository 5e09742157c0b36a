"""Word error rates of ``recipes/score/transcripts.py`` against jiwer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jiwer
import pytest
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from mmprefix.errors import InputError
from mmprefix.recipes.score import transcripts


def rows() -> list[dict[str, Any]]:
    return [
        {"asr": "Wake me up at seven o'clock.", "transcript": "wake me up at seven"},
        {"asr": "It's twenty-five degrees!", "transcript": "it is 25 degrees"},
        {"asr": "Play the radio", "transcript": "play some radio please"},
    ]


def test_the_rate_is_that_of_jiwer() -> None:
    normalize = EnglishTextNormalizer({})
    written, spoken = ([normalize(row[name]) for row in rows()] for name in ("asr", "transcript"))
    rate, right, count = transcripts.word_errors(rows(), normalize)
    assert rate == pytest.approx(jiwer.wer(spoken, written))
    assert (right, count) == (1, 3)


def test_it_reads_what_transcribe_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "transcripts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows())), encoding="utf-8")
    transcripts.main([str(file)])
    normalize = EnglishTextNormalizer({})
    rate = transcripts.word_errors(rows(), normalize)[0]
    assert capsys.readouterr().out == f"3 sentences, word error rate {rate:.3f}, 1 sentences without an error\n"
    with pytest.raises(InputError, match="no row has both asr and transcript"):
        transcripts.word_errors([{"asr": "a"}], normalize)
