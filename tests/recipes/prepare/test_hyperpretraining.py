"""Texts cut in four for the first training of HyperTuning: parts, rows of the manifest, refused texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprefix.errors import InputError
from mmprefix.recipes.prepare.texts import hyperpretraining


def test_a_text_is_cut_in_four_and_none_of_it_is_lost() -> None:
    assert hyperpretraining.cut_in_four("a b c d e f  g") == ["a", "b c", "d e", "f g"]
    text = " ".join(str(n) for n in range(21))
    parts = hyperpretraining.cut_in_four(text)
    assert " ".join(parts) == text
    assert {len(part.split()) for part in parts} == {5, 6}
    with pytest.raises(InputError, match="has 3 words; four or more are needed"):
        hyperpretraining.cut_in_four("a b c")


def test_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, out = tmp_path / "texts.txt", tmp_path / "made" / "train.jsonl"
    texts.write_text("one two three four five six seven eight\n\ntoo short\na b c d e f g h i j k l\n")
    assert hyperpretraining.main([str(texts), "--least", "8", "--out", str(out)]) == 0
    assert "2 rows of 4 texts" in capsys.readouterr().out
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first == {
        "id": "0", "examples": ["one two", "seven eight"], "context": "three four", "captions": ["five six"],
    }  # fmt: skip
    assert second["id"] == "3"
    assert second["captions"] == ["g h i"]
    assert hyperpretraining.main([str(texts), "--least", "30", "--out", str(out)]) == 2
    assert hyperpretraining.main([str(texts), "--least", "3", "--out", str(out)]) == 2
    assert hyperpretraining.main([str(tmp_path / "none.txt"), "--out", str(out)]) == 2
