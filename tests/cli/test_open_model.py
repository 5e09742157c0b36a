"""The model that a command line names: a saved folder, or a recipe with names of parts."""

from __future__ import annotations

import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
import yaml

from mmprefix.cli.inference.open_model import open_model
from mmprefix.cli.model_inputs import add_model
from mmprefix.errors import InputError
from tiny import models as tiny_models


def words(*options: object) -> Namespace:
    parser = ArgumentParser()
    add_model(parser)
    return parser.parse_args([*map(str, options), "--device", "cpu"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the frozen parts and of a saved model over them."""
    root = tmp_path_factory.mktemp("open")
    tiny_models.save_model(root / "model", tiny_models.frozen_parts(root / "parts"), "image")
    return root


def test_a_saved_model_and_its_moved_part(folder: Path, tmp_path: Path) -> None:
    file = tiny_models.media_files(tmp_path / "media")
    picture = next(path for path in file if path.suffix == ".png")
    expected = open_model(words(folder / "model"))(picture)
    moved = shutil.copytree(tiny_models.frozen_parts(folder / "parts")["decoder"], tmp_path / "moved")
    assert open_model(words(folder / "model", "--part", f"decoder={moved}"))(picture) == expected


def test_a_recipe_names_its_parts_without_their_modules(tmp_path: Path) -> None:
    frozen = "mmprefix:world/frozen"
    image = {
        "encoder": {"class_path": "ViT", "init_args": {"model": f"{frozen}/vision"}},
        "mapper": {"class_path": "MLP", "init_args": {"length": 2, "hidden": 8}},
    }
    decoder = {"class_path": "CausalDecoder", "init_args": {"model": f"{frozen}/decoder"}}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"model": {"branches": {"image": image}, "decoder": decoder}}))
    with pytest.raises(InputError, match="reads image through its mapper alone, which is untrained"):
        open_model(words(file))  # all of its parts were built
    image["mapper"]["class_path"] = "MLPP"
    file.write_text(yaml.safe_dump({"model": {"branches": {"image": image}, "decoder": decoder}}))
    with pytest.raises(InputError, match=r"MLPP: no such class; did you mean 'mmprefix\.mappers\.mlp\.MLP'"):
        open_model(words(file))


def test_a_part_without_a_place_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"^--part decoder: expected NAME=PLACE, such as decoder=models/gpt2$"):
        open_model(words(folder / "model", "--part", "decoder"))
