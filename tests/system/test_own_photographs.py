"""A newcomer's way, in README and docs/own_pictures.md: 60 pictures and a csv of captions → captions of 10 others."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest
import yaml

from mmprefix.cli.main import main
from mmprefix.world.generate import make_samples
from tiny import pages

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def small_recipe(folder: Path) -> None:
    """Recipe of README's name whose frozen parts are those of the embedded world: no hub is needed."""
    recipe = yaml.safe_load((RECIPES / "pictures.yaml").read_text())
    world = yaml.safe_load((RECIPES / "quickstart.yaml").read_text())
    recipe["model"]["branches"]["image"] = world["model"]["branches"]["image"]
    recipe["model"]["decoder"] = world["model"]["decoder"]
    recipe["model"]["optimizer"] = world["model"]["optimizer"]
    recipe["model"]["generate"] = {"max_new_tokens": 24}
    recipe["data"]["batch_size"] = 8
    recipe["trainer"] |= {"max_epochs": 2, "accelerator": "cpu", "devices": 1}
    folder.mkdir()
    (folder / "pictures.yaml").write_text(yaml.safe_dump(recipe))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sixty_photographs_and_ten_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = make_samples(tmp_path / "made", ["image"], count=70)
    rows = [json.loads(line) for line in (made / "manifest.jsonl").read_text().splitlines()]
    for folder in ("photos", "new_photos"):
        (tmp_path / folder).mkdir()
    with (tmp_path / "captions.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "caption"])
        for row in rows[:60]:
            (made / row["image"]).rename(tmp_path / "photos" / row["image"])
            writer.writerows([row["image"], text] for text in row["captions"])
    for row in rows[60:]:
        (made / row["image"]).rename(tmp_path / "new_photos" / row["image"])
    small_recipe(tmp_path / "recipes")

    text = pages.block("docs/own_pictures.md", "photographs")
    assert text == pages.block("README.md", "photographs")
    commands = text.splitlines()
    assert len(commands) <= 4
    for command in commands:
        assert main(shlex.split(command, comments=True)[1:]) == 0, command

    counts = [len((tmp_path / "data" / f"{split}.jsonl").read_text().splitlines()) for split in ("train", "val")]
    assert counts == [54, 6]
    with (tmp_path / "new.csv").open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert sorted(Path(line["file"]).name for line in written) == sorted(row["image"] for row in rows[60:])
    assert all(line["caption"].strip() for line in written)
