"""Study of the ways to adapt a model, from its command line to its table, on a tiny decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.lib import adaptation as trainings
from benchmarks.lib.adaptation import Task, with_texts
from benchmarks.studies.users import adaptation
from mmprefix.cli.main import main
from tiny import decoders as tiny_decoders
from tiny.forked import Forked

PLANS = ("a dog barks", "the cat runs", "some rain falls", "a bell rings", "the old roof", "a green hill")


def row(user: str, number: int) -> str:
    """Manifest row of a user, in that user's manner."""
    text = f"{PLANS[number]} {'now' if user == 'ann' else 'again'}"
    return json.dumps({"id": f"{user}{number}", "user": user, "context": PLANS[number], "captions": [text]}) + "\n"


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings run in processes that are forked: a new one would import all first."""
    start = lambda words, output: Forked(lambda: main(words), output).pid  # noqa: E731
    monkeypatch.setattr(trainings, "start_program", start)


def study_folder(folder: Path) -> dict[str, Any]:
    """Recipe of a tiny base; ``folder`` gets the rows of three users."""
    decoder = tiny_decoders.save_decoder(folder / "llama", "llama", sharp=3.0)
    for split, numbers in {"train": range(6), "val": range(2), "test": range(2, 5)}.items():
        lines = "".join(row(user, number) for user in ("ann", "bo", "cy") for number in numbers)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    parts = {"class_path": "mmprefix.decoders.CausalDecoder", "init_args": {"model": decoder}}
    prefix = {"class_path": "mmprefix.mappers.p_tuning_v2.DeepTable", "init_args": {"length": 2}}
    wording = {"context": "{context}: "}
    return {
        "model": {"branches": {}, "decoder": parts, "prefix": prefix, "wording": wording, "rates": {"prefix": 2}},
        "data": {"class_path": "mmprefix.data.PairData", "init_args": {"batch_size": 4}},
        "trainer": {"accelerator": "cpu", "devices": 1},
    }


@pytest.mark.slow
def test_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = study_folder(tmp_path)
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


def test_earlier_texts_are_of_train_and_never_the_rows_own() -> None:
    splits = {
        "train": [{"user": "ann", "captions": [text]} for text in ("a", "b", "c")]
        + [{"user": "bo", "captions": ["d"]}],
        "test": [{"user": "ann", "captions": ["b"]}, {"user": "cy", "captions": ["e"]}],
    }
    rows = with_texts(splits)
    assert [row["history"] for row in rows["train"]] == [["b", "c"], ["a", "c"], ["a", "b"], []]
    assert [row["history"] for row in rows["test"]] == [["a", "c"], []]
    assert with_texts({"train": [{"captions": [str(n)]} for n in range(60)]})["train"][0]["history"][-1] == "59"


@pytest.mark.slow
def test_a_base_whose_prompts_held_texts_is_told_the_own_ones(tmp_path: Path) -> None:
    recipe = study_folder(tmp_path)
    recipe["model"]["wording"] |= {"history": "{history}\n", "history_texts": 2}
    recipe["model"]["branches"]["user"] = {"encoder": {"class_path": "mmprefix.encoders.user_id.UserId"}}
    recipe["data"]["init_args"] |= {"histories": "users.jsonl", "history_dropout": 0.5}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    options = ["--own", str(tmp_path), "--users", "ann", "--out", str(tmp_path / "out"), "--precision", "32-true"]
    results = adaptation.main(
        [str(tmp_path / "recipe.yaml"), *options, "--only", "nothing", "the own", "prompt tuning"]
    )
    assert [*results] == ["nothing", "the own texts in the prompt", adaptation.TOLD, "prompt tuning"]
    ways = {name: runs[0] for name, runs in results.items()}
    assert len({round(way["own"], 4) for way in ways.values()}) == 4
    assert abs(ways[adaptation.TOLD]["outside"] - ways["nothing"]["outside"]) > 1e-4  # others' rows are told them too
    task = Task("ann", tmp_path / "out" / "ann")
    assert all(len(row["history"]) == 5 for row in task.rows("outside", "train"))
    assert not any("history" in row for row in task.rows("own", "train"))
