"""Training on captions alone: a model without branches learns to write them, and a captioner starts from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
    assert "trained tensors start from" in capfd.readouterr().out


def test_a_row_that_holds_nothing_at_all_is_a_fault(
    tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = text_recipe(tiny, tmp_path / "text")
    with (tmp_path / "text" / "train.jsonl").open("a") as stream:
        stream.write('{"id": "bare"}\n')
    assert run("fit", recipe) == 2
    assert "no caption" in capfd.readouterr().err
