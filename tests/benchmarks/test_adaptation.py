"""Study of the ways to adapt a model, from its command line to its table, on a tiny decoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.studies.users import adaptation
from tiny import decoders as tiny_decoders

PLANS = ("a dog barks", "the cat runs", "some rain falls", "a bell rings", "the old roof", "a green hill")


def row(user: str, number: int) -> str:
    """Manifest row of a user, in that user's manner."""
    text = f"{PLANS[number]} {'now' if user == 'ann' else 'again'}"
    return json.dumps({"id": f"{user}{number}", "user": user, "context": PLANS[number], "captions": [text]}) + "\n"


@pytest.mark.slow
def test_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decoder = tiny_decoders.save_decoder(tmp_path / "llama", "llama", sharp=3.0)
    for split, numbers in {"train": range(6), "val": range(2), "test": range(2, 5)}.items():
        lines = "".join(row(user, number) for user in ("ann", "bo", "cy") for number in numbers)
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    parts = {"class_path": "mmprefix.decoders.CausalDecoder", "init_args": {"model": decoder}}
    prefix = {"class_path": "mmprefix.mappers.p_tuning_v2.DeepTable", "init_args": {"length": 2}}
    wording = {"context": "{context}: "}
    recipe = {
        "model": {"branches": {}, "decoder": parts, "prefix": prefix, "wording": wording, "rates": {"prefix": 2}},
        "data": {"class_path": "mmprefix.data.PairData", "init_args": {"batch_size": 4}},
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    out = tmp_path / "out"
    options = ["--own", str(tmp_path), "--users", "ann", "--out", str(out), "--epochs", "2", "--precision", "32-true"]
    forms = ["nothing", "own", "the own", "prompt", "deep prefix, start", "control", "DoRA", "full fine"]
    results = adaptation.main([str(tmp_path / "recipe.yaml"), *options, "--only", *forms])
    ways = {name: runs[0] for name, runs in results.items()}
    deep = 10 * 2 * 2 * 2 * 8  # positions, keys and values, layers, heads, width
    assert ways["prompt tuning"]["numbers"] == 10 * 32
    assert ways["deep prefix, start: text"]["numbers"] == deep * 9 // 10  # the first position is not trained
    assert ways["control prefix"]["numbers"] == deep + deep // 5
    assert ways["full fine-tuning"]["numbers"] > 20_000
    for way in ways.values():
        assert 4 * way["numbers"] <= way["bytes"] <= 4 * way["numbers"] + 3000
        assert way["own"] > 0
        assert 0 <= way["rouge_l"] <= 1
    trained = [way for way in ways.values() if way["numbers"]]
    assert all(way["own"] != ways["nothing"]["own"] and way["seconds"] > 0 < way["memory"] for way in trained)
    assert ways["own examples in the prompt"]["own"] != ways["the own texts in the prompt"]["own"]
    printed = capsys.readouterr().out
    assert all(f"| {way} " in printed for way in ways)
    rows = [json.loads(line) for line in (out / "ann" / "outside-train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 12  # of bo and cy: the base never saw ann
    assert adaptation.main([str(tmp_path / "recipe.yaml"), *options, "--only", *forms]) == results  # nothing repeated
