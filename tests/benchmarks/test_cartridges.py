"""Study of a writer's history as a prefix, from its command line to its table and JSON, on a tiny decoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.studies.users import cartridges
from tiny import decoders as tiny_decoders

SENTENCES = ["a dog barks", "the cat runs", "some rain falls", "a bell rings", "the old roof", "a green hill"]


def test_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decoder = tiny_decoders.save_decoder(tmp_path / "llama", "llama", sharp=3.0)
    rows = [
        {"user": user, "user_seen": True, "split": split, "target": f"{sentence} {number}"}
        for user in ("ann", "bo")
        for number, sentence in enumerate(SENTENCES)
        for split in (["train", "test"] if number < 2 else ["train"])
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "manifest.jsonl").write_text(text, encoding="utf-8")
    options = ["--tokens", "16", "--positions", "3", "--steps", "2", "--json", str(tmp_path / "figures.json")]
    results = cartridges.main(["--data", str(tmp_path), "--model", decoder, *options])
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")) == results
    figures = results["writers"]["ann"]
    assert list(results["writers"]) == ["ann"]
    few = 2 * 2 * 3 * 2 * 8 * 4  # keys and values, layers, positions, heads, width, bytes
    assert [round(row["bytes"]) for row in figures.values()] == [
        0,
        figures["the history in the prompt"]["bytes"],
        *[few] * 4,
        few // 3 * 4,
        few // 3 * 14,
    ]
    assert few < figures["the history in the prompt"]["bytes"] <= few / 3 * 17
    assert figures["compaction"]["nll"] != figures["compaction, 2 steps of distillation"]["nll"]
    printed = capsys.readouterr().out
    assert all(f"| {way} " in printed for way in figures)
