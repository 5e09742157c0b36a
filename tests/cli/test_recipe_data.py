"""Data of a recipe for check-data: its manifests, columns and the decoder's room, without any weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from fuzz.seeds import recipe
from mmprefix.cli.training.recipe_data import RecipeData, recipe_data
from tiny.captioning_system import quietly

pytestmark = quietly


def write(folder: Path, data: dict[str, Any], **changes: Any) -> str:
    """Write a recipe with ``data`` in the place of its own, and the manifest that it names."""
    (folder / "pictures.jsonl").write_text(json.dumps({"image": "a.png", "captions": ["a dog"]}) + "\n")
    made = recipe(folder) | changes
    made["data"]["init_args"] |= data
    made["trainer"]["default_root_dir"] = str(folder / "run")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(made))
    return str(folder / "recipe.yaml")


def test_a_recipe_s_own_manifests_with_their_splits(tmp_path: Path) -> None:
    config = write(tmp_path, {"prompt": "say:", "media_root": str(tmp_path), "context": ["history"]})
    data = recipe_data(config)
    assert isinstance(data, RecipeData)
    manifest = str(tmp_path / "pictures.jsonl")
    assert data.manifests == [(manifest, None), (manifest, None)]
    assert (data.prompt, data.media_root, tuple(data.columns.context)) == ("say:", str(tmp_path), ("history",))
    assert data.room is not None
    assert not (tmp_path / "run").exists()  # nothing was trained


def test_other_manifests_stand_in_the_place_of_those_to_train_on(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"image": "b.png", "captions": ["a cat"]}) + "\n")
    files = [file for file, _ in recipe_data(write(tmp_path, {"val": []}), [str(other)]).manifests]
    assert files == [str(other)]
