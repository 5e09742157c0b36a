"""Parser of recipes: names of parts and of earlier versions become class paths, errors are one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import get_loader

from mmprefix.cli.training.recipe_parser import RecipeParser
from mmprefix.errors import InputError
from mmprefix.trust.plain_yaml import parse_yaml

RECIPE = """
decoder: {class_path: mmprefix.decoder.CausalDecoder, init_args: {model: a}}
mappers: [{class_path: MLP}, {class_path: torch.nn.Linear, init_args: {a: 1}}]
count: 3
"""


def parser() -> RecipeParser:
    made = RecipeParser(exit_on_error=False)
    made.add_argument("--length", type=int, default=1)
    made.add_argument("--lr", type=float, default=0.1)
    return made


def test_names_of_parts_and_of_earlier_versions_become_class_paths() -> None:
    read = get_loader("yaml")(RECIPE)
    assert read["decoder"] == {"class_path": "mmprefix.decoders.CausalDecoder", "init_args": {"model": "a"}}
    assert [part["class_path"] for part in read["mappers"]] == ["mmprefix.mappers.mlp.MLP", "torch.nn.Linear"]
    assert read["count"] == parse_yaml(RECIPE, "recipe")["count"] == 3


def test_options_are_read_from_words() -> None:
    assert parser().parse_args(["--length", "7", "--lr=1e-3"]).as_dict() == {"length": 7, "lr": 1e-3}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lenght", "7"], "option 'lenght' is not known; did you mean 'length'?"),
        (["--length", "many"], "option length: expected int, got many"),
    ],
)
def test_an_error_is_one_line_that_names_the_option(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        parser().parse_args(words)
    assert str(error.value) == message
