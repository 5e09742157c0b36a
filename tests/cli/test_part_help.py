"""``--help`` of a training verb, and of the options that take a part."""

from __future__ import annotations

import argparse
import re
from typing import Any, ClassVar

import pytest
from lightning.pytorch.cli import LightningArgumentParser

from mmprefix.cli.class_names import full_name, with_class_paths, with_full_names, wrong_class
from mmprefix.cli.main import TRAINING, main
from mmprefix.cli.parts import PLAIN, _as_yaml, parts_table
from mmprefix.cli.training.encode import EncodeCLI
from mmprefix.cli.training.lightning_cli import PrefixCLI
from mmprefix.cli.training.train import train


class ParserOnly(PrefixCLI):
    """Run that ends with its parser."""

    parsers: ClassVar[dict[str, Any]] = {}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.parsers[self.verb] = parser
        raise SystemExit(0)


class EncodeParserOnly(ParserOnly, EncodeCLI):
    """Run of encode that ends with its parser."""


def parser_of(verb: str) -> dict[str, Any]:
    """Options of the parser of a training verb by name."""
    train([verb], EncodeParserOnly if verb == "encode" else ParserOnly)
    actions = ParserOnly.parsers["fit" if verb == "encode" else verb]._actions
    shown = [action for action in actions if action.help != argparse.SUPPRESS]
    return {action.dest: action for action in shown if not action.dest.endswith("help")}


def test_a_verb_has_one_parser_in_a_process() -> None:
    parsers = list[Any]()
    for verb, run in (("fit", ParserOnly), ("encode", EncodeParserOnly), ("fit", ParserOnly), ("test", ParserOnly)):
        train([verb], run)
        parsers.append(ParserOnly.parsers["fit" if verb == "encode" else verb])
    fit, encode, again, test = parsers
    assert fit is again
    assert len({id(fit), id(encode), id(test)}) == 3


@pytest.mark.parametrize("verb", TRAINING)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_of_a_training_verb_lists_every_part(verb: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "some.yaml", word]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(
        f"usage: mmprefix {verb} RECIPE.yaml [--OPTION VALUE ...] {TRAINING[verb][0].upper()}{TRAINING[verb][1:]}."
    )
    for row in parts_table():
        if row["kind"] not in PLAIN:
            assert f"{row['name']} {row['summary']}".replace("``", "`") in text
        elif row["name"] not in ("Branch", "EncodeOptions"):
            for option in row["options"]:
                if option["name"] not in ("generate", "wording"):  # groups: their own options follow
                    assert " ".join(option["help"].replace("``", "`").split()) in text


@pytest.mark.parametrize("verb", TRAINING)
def test_help_of_a_training_verb_is_that_of_its_parser(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option of the parser is there with its default, and no other but those that are read before it."""
    assert main([verb, "--help"]) == 0
    lines = re.findall(r"^  --([\w.]+): (.*)$", capsys.readouterr().out, flags=re.MULTILINE)
    shown = {name: rest for name, rest in lines if not name.startswith("data.")}
    assert len(shown) == len({name for name, _ in lines}) - sum(name.startswith("data.") for name, _ in lines)
    taken = parser_of(verb)
    before = {"allow", "media_root", "verbose", "debug"} | ({"model"} & shown.keys())
    groups = {"trainer", "model", "model.generate", "model.wording", "data"}
    assert shown.keys() - before == taken.keys() - groups - {"return_predictions", "verbose"}
    assert ("model" in shown) == (verb in ("validate", "test", "predict"))
    for name in (shown.keys() & taken.keys()) - {"model", "print_config", "verbose"}:
        default = "required" if taken[name].required else f"default {_as_yaml(taken[name].default)}"
        assert shown[name].endswith(f", {default}"), name


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


PARTS = [row for row in parts_table() if row["kind"] not in ("trainer", "run")]


@pytest.mark.parametrize("row", PARTS, ids=[row["name"] for row in PARTS])
def test_every_name_of_a_part_is_right_for_its_kind_alone(row: dict[str, str]) -> None:
    for name in (row["name"], row["class_path"], row["file_path"]):
        assert not wrong_class(name, row["kind"])
    other = "mapper" if row["kind"] != "mapper" else "encoder"
    assert f"no {other}; " in wrong_class(row["name"], other)
    assert not wrong_class("my_module.Own", other)
