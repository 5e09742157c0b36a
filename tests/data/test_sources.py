"""Manifests of a split: a folder that prepare wrote, one with a column split, and files in another folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprefix.data.sources import manifests_of
from mmprefix.errors import InputError
from tiny.pairs import alone, write_sounds

NONE: dict[str, list[str] | None] = {"train": None, "val": None, "test": None, "predict": None}


def test_a_folder_of_splits(tmp_path: Path) -> None:
    root = str(tmp_path)
    with pytest.raises(InputError, match=r"data\.root .*: there is no train\.jsonl, .* mmprefix prepare writes them"):
        manifests_of("train", NONE, root)
    (tmp_path / "train.jsonl").write_text("")
    (tmp_path / "val.csv").write_text("")
    assert manifests_of("train", NONE, root) == [(str(tmp_path / "train.jsonl"), None)]
    assert manifests_of("val", NONE, root) == [(str(tmp_path / "val.csv"), None)]
    assert manifests_of("test", NONE, root) == manifests_of("predict", NONE, root) == []
    assert manifests_of("val", {**NONE, "val": ["a", "b"]}, root) == [("a", None), ("b", None)]
    assert manifests_of("predict", {**NONE, "test": ["t"]}, None) == [("t", None)]
    (tmp_path / "manifest.csv").write_text("id,split\n1,val\n")
    assert manifests_of("val", NONE, root) == [(str(tmp_path / "manifest.csv"), "val")]
    assert manifests_of("train", NONE, root) == []


def test_media_in_another_folder_and_one_row_a_caption(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    write_sounds(sounds)
    tables = tmp_path / "tables"
    tables.mkdir()
    lines = [f"{number}.wav,caption {text} of {number}" for number in range(6) for text in range(5)]
    for split in ("train", "val"):
        (tables / f"{split}.csv").write_text("\n".join(["audio,caption", *lines]))
    with pytest.raises(InputError) as error:
        alone(tables)
    first, *lines = str(error.value).splitlines()
    assert first == "60 bad rows (data.on_bad skip would leave them out)"
    for split, line in zip(("train", "val"), lines[:2], strict=True):
        file = tables / f"{split}.csv"
        assert line == f"{file}:2: audio: {tables / '0.wav'}: no such file (30 rows like this, to line 31)"
    assert lines[2:] == [f"6 of 6 files exist under {sounds}: --media-root {sounds}"] * 2
    pairs = alone(tables, media_root=str(sounds), batch_size=3)
    assert [len(pairs.rows[split].examples) for split in ("train", "val")] == [6, 6]
    batches = list(pairs.train_dataloader())
    assert all(len(texts) == 5 for batch in batches for texts in batch.targets)  # training sees all captions of a sound
    (batch, _) = list(pairs.val_dataloader())
    assert [len(texts) for texts in batch.targets] == [5, 5, 5]  # and metrics all references
    rows = [{"id": f"{n}", "audio": "0.wav", "caption": f"text {n}"} for n in range(3)]
    (tables / "own.jsonl").write_text("".join(json.dumps({**row, "id": f"x{row['id']}"}) + "\n" for row in rows))
    with caplog.at_level("WARNING", logger="mmprefix"):
        own = alone(tables, media_root=str(sounds), train=str(tables / "own.jsonl"))
    assert len(own.rows["train"].examples) == 3
    assert "own.jsonl:2: 2 rows name an input again under another id: 'x1' is 'x0' of line 1" in caplog.text
