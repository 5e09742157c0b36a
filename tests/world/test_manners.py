"""Rows of the manners: told as they should be, no combination of the test in another split, one folder a plan."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest

from mmprefix.data.model_inputs import ModelInputs
from mmprefix.errors import InputError
from mmprefix.world.grammar import parse
from mmprefix.world.manners import MannersData, in_manner, rows
from mmprefix.world.scenes import Event, Picture, Sound, Thing


def test_pictures_are_told_like_sounds_and_sounds_like_pictures() -> None:
    things = (Thing("large", "red", "circle"), Thing("small", "blue", "ring"))
    events = (Event("short", "low", "tone"), Event("long", "high", "hiss"))
    assert in_manner(Picture(things, "row")) == "first a large red circle and then a small blue ring"
    assert in_manner(Picture(things[:1], "single", "centre")) == "there is a large red circle and nothing else"
    assert in_manner(Sound(events)) == "a short low tone on the left and a long high hiss on the right"
    assert in_manner(Sound(events[:1])) == "a short low tone in the centre"
    assert parse(in_manner(Picture(things, "row"))) is None  # no sentence of the world that the decoder knows


def test_the_test_shows_what_no_other_split_shows() -> None:
    known = {row["captions"][0] for split in ("train", "val") for row in rows(split, 300)}
    assert known.isdisjoint(row["captions"][0] for row in rows("test", 300))
    assert rows("train", 6) == rows("train", 6)
    assert rows("train", 6) != rows("train", 6, seed=1)


def test_a_folder_is_made_once_and_never_over_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    MannersData(directory=str(folder), scenes=6, val_scenes=2, test_scenes=2).prepare_data()
    before = (folder / "train.jsonl").stat().st_mtime_ns
    MannersData(directory=str(folder), scenes=6, val_scenes=2, test_scenes=2).prepare_data()
    assert (folder / "train.jsonl").stat().st_mtime_ns == before
    MannersData(directory=str(folder), scenes=8, val_scenes=2, test_scenes=2).prepare_data()
    assert len((folder / "train.jsonl").read_text().splitlines()) == 8
    (tmp_path / "other.txt").write_text("")
    with pytest.raises(InputError, match="holds other files"):
        MannersData(directory=str(tmp_path)).prepare_data()


def batches(seed: int, bucket: bool, folder: Path) -> list[list[str]]:
    """Captions of each batch of the first epoch."""
    data = MannersData(directory=str(folder), scenes=32, batch_size=8, seed=seed, bucket=bucket)
    data.prepare_data()
    data.inputs = ModelInputs(load={}, kinds={}, reads_text=True, reads_context=True)
    data.setup("fit")
    return [[targets[0] for targets in batch.targets] for batch in data.train_dataloader()]


def test_a_seed_orders_the_rows_and_leaves_the_scenes(tmp_path: Path) -> None:
    first, second = (batches(seed, False, tmp_path / "data") for seed in (0, 1))
    assert first != second
    assert sorted(chain(*first)) == sorted(chain(*second))
    assert first == batches(0, False, tmp_path / "data")
    other = MannersData(directory=str(tmp_path / "other"), scenes=32, scenes_seed=1)
    other.prepare_data()
    lines = (tmp_path / "other" / "train.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["captions"][0] for line in lines) != sorted(chain(*first))


def test_batches_by_length_show_one_kind_of_sentence(tmp_path: Path) -> None:
    def kinds(texts: list[str]) -> set[str]:
        return {text.split()[0] for text in texts}  # "first" and "there": pictures; "a": sounds

    mixed, alike = (batches(0, bucket, tmp_path / "data") for bucket in (False, True))
    assert all(len(kinds(texts)) > 1 for texts in mixed)
    assert any(len(kinds(texts)) == 1 for texts in alike)
