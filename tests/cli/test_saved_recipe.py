"""``--model DIR`` in the words of a training verb, and the recipe that takes its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mmprefix import InputError
from mmprefix.cli.training.saved_recipe import copy_of, recipe_words, split_model
from tiny import models as tiny_models


def test_a_directory_is_taken_out_of_the_words(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    model = str(tmp_path)
    for words in (["--model", model, "--out", "x"], ["--out", "x", f"--model={model}"]):
        assert split_model(words) == (tmp_path, ["--out", "x"])
    for words in ([], ["--model", str(tmp_path / "recipe.yaml")], ["--model.start_from", model]):  # of a recipe
        assert split_model(words) == (None, words)
    with pytest.raises(InputError, match="--model none: no such directory; mmprefix fit saves one"):
        split_model(["--model", "none"])


@pytest.mark.parametrize(
    ("word", "copy"),
    [("r.yaml", "c"), ("--config=r.yaml", "--config=c"), ("-c=r.yaml", "-c=c"), ("--out=r.yaml", "--out=r.yaml")],
)
def test_a_recipe_is_replaced_where_it_is_named(word: str, copy: str) -> None:
    assert copy_of(word, "r.yaml", "c") == copy


def test_the_model_of_a_recipe_gives_way_to_the_saved_one(tmp_path: Path) -> None:
    model = tiny_models.save_model(tmp_path / "m", tiny_models.frozen_parts(tmp_path), "image")
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"model": {"decoder": "other"}, "trainer": {"devices": 1}}))
    with recipe_words(model, ["predict", "--config", str(own), "--out", "x"]) as words:
        assert (words[0], words[1], words[3], words[5:]) == ("predict", "--config", "--config", ["--out", "x"])
        saved, rest = (yaml.safe_load(Path(words[at]).read_text()) for at in (2, 4))
    assert rest == {"trainer": {"devices": 1}}
    assert set(saved["model"]["branches"]) == {"image"}
    assert not Path(words[2]).exists()
    with pytest.raises(InputError, match="is no saved model"), recipe_words(tmp_path, ["predict"]):
        pass
