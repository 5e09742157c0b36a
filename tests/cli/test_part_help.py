"""``--help`` of a training verb, and of the options that take a part."""

from __future__ import annotations

import pytest

from mmprefix.cli.main import main
from mmprefix.cli.parts import parts_table
from mmprefix.cli.training.class_names import full_name, with_class_paths, with_full_names, wrong_class


def joined(text: str) -> str:
    """``text`` without spaces: a parser breaks lines at hyphens too."""
    return "".join(text.split())


@pytest.mark.parametrize("verb", ["fit", "encode"])
def test_help_of_a_training_verb_lists_every_part(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: mmprefix {verb} RECIPE.yaml [--OPTION VALUE ...] Runs the f")
    for row in parts_table():
        if row["kind"] not in ("task", "settings"):
            assert f"{row['name']} {row['summary']}".replace("``", "`") in text
    assert "known subclasses: mmprefix" not in text
    assert "known subclasses: torch.optim" in text
    for row in parts_table():  # options of the model itself are the parser's
        if row["name"] in ("PrefixTask", "GenerateOptions", "PromptTemplate"):
            place = row["place"]
            for option in row["options"]:
                assert f"--{place}.{option['name']}" in text
                if not option["type"].endswith(("Options", "Template")):  # groups: their own options follow
                    assert joined(option["help"]) in joined(text)


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ("model.branches.image.encoder", "encoder"),
        ("model.branches.mapper", "mapper"),
        ("model.prefix", "mapper"),
        ("model.decoder", "decoder"),
        ("model.transcriber", "transcriber"),
        ("data", "data"),
    ],
)
def test_an_option_that_takes_a_part_lists_all_with_their_options(
    option: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", f"--{option}.help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    rows = [row for row in parts_table() if row["kind"] == kind]
    assert rows
    for row in rows:
        assert f"{row['name']} {row['summary']}".replace("``", "`") in text
        for part in row["options"]:
            assert f"{part['name']}: {part['type']}, " in text
            assert " ".join(part["help"].replace("``", "`").split()) in text


@pytest.mark.parametrize(
    "words", [["--model.prefix.help", "MLP"], ["--model.branches.mapper.help=mmprefix.mappers.mlp.MLP"]]
)
def test_sizes_that_the_model_gives_are_no_options(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *words]) == 0
    output = capsys.readouterr().out
    assert "hidden: int or null" in output
    for name in ("sizes", "dim:", "summary:", "required"):
        assert name not in output


def test_help_of_an_unknown_part_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model.decoder.help", "Causal"]) == 2
    assert "--model.decoder.help: no part 'Causal'; did you mean 'CausalDecoder'?" in capsys.readouterr().err


def test_help_of_a_foreign_class_is_the_parser_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model.optimizer.help", "torch.optim.AdamW"]) == 0
    assert "--model.optimizer.lr" in capsys.readouterr().out


def test_parts_are_named_with_or_without_their_module() -> None:
    assert full_name("MLP") == full_name(full_name("MLP")) == "mmprefix.mappers.mlp.MLP"
    assert full_name("my.MLP") == "my.MLP"
    recipe = {"mapper": [{"class_path": "MLP", "init_args": {"x": "MLP"}}, "MLP"]}
    named = {"mapper": [{"class_path": "mmprefix.mappers.mlp.MLP", "init_args": {"x": "MLP"}}, "MLP"]}
    assert with_class_paths(recipe) == named  # a text that happens to be a name stays
    words = ["--model.prefix", "Learned", "--data=PairData", "--save_to", "MLP"]
    learned = "mmprefix.mappers.learned.Learned"
    assert with_full_names(words) == ["--model.prefix", learned, "--data=mmprefix.data.PairData", "--save_to", "MLP"]


@pytest.mark.parametrize("row", parts_table(), ids=[row["name"] for row in parts_table()])
def test_every_name_of_a_part_is_right_for_its_kind_alone(row: dict[str, str]) -> None:
    for name in (row["name"], row["class_path"], row["file_path"]):
        assert not wrong_class(name, row["kind"])
    other = "mapper" if row["kind"] != "mapper" else "encoder"
    assert f"no {other}; " in wrong_class(row["name"], other)
    assert not wrong_class("my_module.Own", other)
