"""Rows of the manners: told as they should be, no combination of the test in another split, one folder a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

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
