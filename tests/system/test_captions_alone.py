"""Training on captions alone: a model without branches learns to write them, and a captioner starts from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import mmprefix
from mmprefix.cli.main import main
from tiny.captioning_system import CaptioningSystem, metric_values, quietly, run

pytestmark = quietly

CAPTIONS = [
    "a dog barks loudly.",
    "the cat runs over a green hill.",
    "some rain falls on the old roof.",
    "a bell rings.",
]


def text_recipe(tiny: CaptioningSystem, folder: Path, **data: Any) -> Path:
    """Recipe of ``tiny`` without branches, on captions that have no input."""
    folder.mkdir()
    for split in ("train", "val"):
        rows = [{"id": f"{split}{number}", "captions": [text]} for number, text in enumerate(CAPTIONS)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny.config()
    config["model"] |= {
        "branches": {},
        "prefix": {"class_path": "mmprefix.mappers.p_tuning_v2.DeepTable", "init_args": {"length": 3}},
        "rates": {"prefix": 30},
    }
    config["data"]["init_args"] = {"train": str(folder / "train.jsonl"), "val": str(folder / "val.jsonl")} | data
    return tiny.recipe(config, folder)


def test_the_loss_falls_and_a_captioner_starts_from_it(
    tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = text_recipe(tiny, tmp_path / "text")
    assert run("fit", recipe, save_to=tmp_path / "writer", trainer__max_epochs=8) == 0
    losses = metric_values(tmp_path / "text", "val/loss")
    assert losses[-1] < losses[0] - 0.1
    messages = capfd.readouterr().out
    assert "again under another id" not in messages  # captions without input are no repeated inputs
    assert "ignores its" not in messages
    config = tiny.config()
    config["model"] |= {
        "prefix": {"class_path": "mmprefix.mappers.p_tuning_v2.DeepTable", "init_args": {"length": 3}},
        "start_from": str(tmp_path / "writer"),
    }
    assert run("fit", tiny.recipe(config, tmp_path / "captioner"), trainer__max_steps=1) == 0
    assert "trained tensors start from" in capfd.readouterr().err


def test_a_row_that_holds_nothing_at_all_is_a_fault(
    tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = text_recipe(tiny, tmp_path / "text")
    with (tmp_path / "text" / "train.jsonl").open("a") as stream:
        stream.write('{"id": "bare"}\n')
    assert run("fit", recipe) == 2
    assert "no caption" in capfd.readouterr().err


def test_the_model_writes_from_a_prompt_or_from_nothing(
    tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saved, recipe = tmp_path / "writer", text_recipe(tiny, tmp_path / "text")
    assert run("fit", recipe, save_to=saved, trainer__max_steps=1) == 0
    model = mmprefix.load(saved)
    rows = [{"id": "a", "prompt": "a dog"}, {"id": "b", "prompt": "the"}]
    manifest = tmp_path / "prompts.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capfd.readouterr()
    for words, prompts in ((["--prompt", ""], [""]), (["--prompt", "a"], ["a"]), ([str(manifest)], ["a dog", "the"])):
        assert main(["caption", str(saved), *words, "--json"]) == 0
        lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        expected = [model.candidates({}, num_return=1, prompt=prompt)[0] for prompt in prompts]
        assert [line["caption"] for line in lines] == [candidate.text for candidate in expected]
        assert [line["score"] for line in lines] == pytest.approx([candidate.score for candidate in expected], abs=1e-4)


def test_a_model_that_reads_files_does_not_write_from_a_prompt_alone(
    tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", tiny.recipe(tiny.config(), tmp_path), save_to=tmp_path / "saved", trainer__max_steps=1) == 0
    assert main(["caption", str(tmp_path / "saved"), "--prompt", "a"]) == 2
    assert "no input given; give files, or --manifest FILE" in capfd.readouterr().err


def test_check_data_takes_captions_alone_by_their_recipe(tiny: CaptioningSystem, tmp_path: Path) -> None:
    recipe = text_recipe(tiny, tmp_path / "text")
    config = yaml.safe_load(recipe.read_text())
    del config["trainer"]["callbacks"]
    recipe.write_text(yaml.safe_dump(config))
    assert main(["check-data", "--config", str(recipe)]) == 0
    assert main(["check-data", str(tmp_path / "text" / "train.jsonl")]) == 2
