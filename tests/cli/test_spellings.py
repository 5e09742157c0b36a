"""Dashes and underscores in options, and recipes named without ``--config``."""

from __future__ import annotations

import importlib
import re

import pytest

from mmprefix.cli.main import VERBS, CommandParser, main
from mmprefix.cli.spellings import known_spelling, recipe_as_option, with_known_spellings, with_underscores


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_option_of_every_verb_may_be_spelled_both_ways(verb: str) -> None:
    parser = CommandParser(f"mmprefix {verb}")
    importlib.import_module(VERBS[verb][0]).add_arguments(parser)
    known = parser.known_options()
    options = [option for option in known if option.startswith("--")]
    assert options
    for option in options:
        plain = option[2:]
        for other in (plain.replace("-", "_"), plain.replace("_", "-")):
            assert known_spelling(f"--{other}", known) == option


def test_values_and_unknown_words_stay() -> None:
    known = ["--num-beams", "--to"]
    words = ["caption", "my_file-1.wav", "--num_beams=3", "--no_such", "--to", "a_b", "--", "--num_beams"]
    spelled = ["caption", "my_file-1.wav", "--num-beams=3", "--no_such", "--to", "a_b", "--", "--num_beams"]
    assert with_known_spellings(words, known) == spelled


def test_a_verb_may_be_spelled_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for verb in ("check-data", "check_data"):
        assert main([verb]) == 2
        lines.append(capsys.readouterr().err)
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("word", "spelled"),
    [
        ("--trainer.max-epochs=3", "--trainer.max_epochs=3"),
        ("--dry-run", "--dry_run"),
        ("--data.batch-size", "--data.batch_size"),
        ("--data.init-args.max-tokens=a-b", "--data.init_args.max_tokens=a-b"),
        ("--model.branches.my-mic.encoder.init-args.the-model", "--model.branches.my-mic.encoder.init_args.the_model"),
        ("--data.where.is-ok=true", "--data.where.is-ok=true"),
        ("--ckpt-path=my-file-1.ckpt", "--ckpt_path=my-file-1.ckpt"),
        ("my-recipe.yaml", "my-recipe.yaml"),
        ("-1", "-1"),
    ],
)
def test_options_of_a_training_verb_get_underscores(word: str, spelled: str) -> None:
    assert with_underscores([word]) == [spelled]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("r.yaml", "--config r.yaml"),
        ("r.yaml s.yaml", "--config r.yaml --config s.yaml"),
        ("r.yaml --trainer.max_epochs 3", "--config r.yaml --trainer.max_epochs 3"),
        ("--trainer.max_epochs 3 r.yaml", "--trainer.max_epochs 3 --config r.yaml"),
        ("--trainer.max_epochs=3 r.yaml", "--trainer.max_epochs=3 --config r.yaml"),
        ("--seed -1 r.yaml", "--seed -1 --config r.yaml"),
        ("--dry_run r.yaml", "--dry_run --config r.yaml"),
        ("--dry_run true r.yaml", "--dry_run true --config r.yaml"),
        ("--config r.yaml", "--config r.yaml"),
        ("-c r.yaml --data.train a.csv", "-c r.yaml --data.train a.csv"),
        ("--config=r.yaml --ckpt_path last", "--config=r.yaml --ckpt_path last"),
        ("", ""),
    ],
)
def test_a_bare_word_is_a_recipe(words: str, options: str) -> None:
    assert recipe_as_option(words.split()) == options.split()


def test_a_training_verb_without_recipe_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("fit", "validate", "test", "predict", "encode"):
        assert main([verb]) == 2
        line = capsys.readouterr().err
        assert re.match(
            rf"mmprefix: {verb}: no recipe; give one, as mmprefix {verb} RECIPE.yaml; shipped: alfred_steps, clip", line
        )


@pytest.mark.parametrize("name", ["slu-whisper", "slu_whisper", "slu-whisper.yaml"])
def test_a_shipped_recipe_may_be_spelled_both_ways(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe is read: its wrong option is named, and nothing else is wrong."""
    assert main(["fit", name, "--model.decodr", "x"]) == 2
    assert "option 'model.decodr' is not known; did you mean 'model.decoder'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["caption", "m", "f", "--num_beam", "3"],
        ["import", "clipcap", "a", "b", "--encodr", "x"],
        ["check-data", "m", "--shcema", "s"],
    ],
)
def test_an_unknown_option_names_the_nearest(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    wrong = next(word for word in words if word.startswith("--"))
    assert re.search(rf"unrecognized arguments: .*{wrong}.*; did you mean '--\w+", capsys.readouterr().err)
