"""Recipes as models: their frozen parts as they come, without prefix and mappers, in Python and from the shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import mmprefix
from mmprefix import InputError, Predictor
from mmprefix.decoders import CausalDecoder, CrossDecoder
from mmprefix.encoders.whisper import Whisper
from mmprefix.features.neighbours import Neighbours
from mmprefix.model import Branch, PrefixLM
from mmprefix.saved_model import ModelSettings
from tiny import slu_system as tiny_slu_system
from tiny.captioning_system import quietly
from tiny.shell import Shell
from tiny.slu_system import OPTIONS, WORDING, SluSystem

pytestmark = quietly


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> SluSystem:
    return tiny_slu_system.build(tmp_path_factory.mktemp("system"))


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def write(folder: Path, recipe: dict[str, Any]) -> Path:
    """Recipe as a file."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return file


def test_a_recipe_is_its_whisper_without_the_prefix(system: SluSystem, tmp_path: Path) -> None:
    model = mmprefix.load(write(tmp_path, system.config("whisper")), device="cpu")
    encoder, decoder = Whisper(system.path("whisper"), window="whole"), CrossDecoder(system.path("whisper"))
    plain = Predictor(PrefixLM({"audio": Branch(encoder)}, decoder), ModelSettings(OPTIONS))
    assert model.model.task_prefix is None
    assert not model.model.trained
    answers = model.understand(system.sounds[:3])  # by the recipe's own schema
    for answer, other in zip(
        answers, plain.understand(system.sounds[:3], schema=system.path("home.yaml")), strict=True
    ):
        assert (answer["intent"], answer["slots"]) == (other["intent"], other["slots"])
        assert answer["scores"]["intent"] == pytest.approx(other["scores"]["intent"], abs=1e-4)
    assert model.options.max_new_tokens == 6
    assert model(system.sounds[:2]) == plain(system.sounds[:2], max_new_tokens=6)


def test_a_recipe_has_neighbours_too(system: SluSystem, tmp_path: Path) -> None:
    recipe, sounds = write(tmp_path, system.config("whisper")), system.sounds[:3]
    plain = mmprefix.load(recipe, device="cpu").candidates(sounds, num_beams=5, num_return=5)
    encoder = Whisper(system.path("whisper"), window="whole")
    vectors = Neighbours(encoder, torch.zeros(1, encoder.pooled_dim), [["a"]], 1, 1).embed(sounds)
    captions = [[f"{texts[-1].text} {word}"] for texts, word in zip(plain, "abc", strict=True)]
    neighbours = Neighbours(encoder, vectors, captions, 1, 1, judges=1)
    neighbours.save(tmp_path / "neighbours")
    model = mmprefix.load(recipe, device="cpu", neighbours=tmp_path / "neighbours")
    assert model(sounds) == [texts[0].text for texts in neighbours.best_first(vectors, plain)]


def test_a_recipe_without_slots_asks_about_intents_alone(system: SluSystem, tmp_path: Path) -> None:
    model = mmprefix.load(write(tmp_path, system.config("whisper", slots=False)), device="cpu")
    (answer,) = model.understand(system.sounds[:1])
    assert answer["slots"] == answer["scores"]["slots"] == {}
    assert len(answer["scores"]["intent"]) > 1


def test_a_language_model_that_reads_text_needs_no_branch(system: SluSystem, tmp_path: Path) -> None:
    model = mmprefix.load(write(tmp_path, system.config("text")), device="cpu")
    plain = Predictor(PrefixLM({}, CausalDecoder(system.path("decoder")), wording=WORDING), ModelSettings(OPTIONS))
    texts = [row["transcript"] for row in system.rows[:3]]
    answers = model.understand(context=texts)
    expected = plain.understand(context=texts, schema=system.path("home.yaml"))
    assert [answer["intent"] for answer in answers] == [answer["intent"] for answer in expected]


def test_the_shell_takes_a_recipe_and_says_that_nothing_is_trained(
    system: SluSystem, tmp_path: Path, shell: Shell
) -> None:
    recipe = system.config("whisper")
    recipe["model"]["branches"]["audio"]["encoder"]["class_path"] = "Whisper"  # a name without its module
    file = write(tmp_path, recipe)
    code, out, err = shell("understand", file, *system.sounds[:2], "--json", "--device", "cpu")
    assert code == 0
    assert f"{file}: a recipe, so that nothing is trained; without the prefix" in err
    results = [json.loads(line) for line in out.splitlines()]
    expected = mmprefix.load(write(tmp_path, system.config("whisper")), device="cpu").understand(system.sounds[:2])
    assert [result["intent"] for result in results] == [result["intent"] for result in expected]
    out_file, words = tmp_path / "texts.jsonl", ("--device", "cpu", "--out", tmp_path / "texts.jsonl")
    assert shell("caption", file, system.sounds[0], *words)[0] == 0
    assert json.loads(out_file.read_text())["caption"]
    recipe["model"]["generate"] = {"max_new_tokens": 3}
    write(tmp_path, recipe)  # another model: its rows do not go on in the file
    assert "--overwrite" in shell.refuses("caption", file, system.sounds[0], system.sounds[1], *words)


def test_what_cannot_do_without_training_is_refused(system: SluSystem, tmp_path: Path, shell: Shell) -> None:
    encoder = system.config("whisper")["model"]["branches"]["audio"]["encoder"]
    mapper = {"class_path": "mmprefix.mappers.mlp.MLP", "init_args": {"length": 2}}
    recipe = system.config("text")
    recipe["model"]["branches"] = {"audio": {"encoder": encoder, "mapper": mapper}}
    file = write(tmp_path, recipe)
    with pytest.raises(InputError, match="reads audio through its mapper alone, which is untrained; train it with"):
        mmprefix.load(file, device="cpu")
    recipe["model"]["branches"]["audio"]["encoder"]["class_path"] = "mmprefix.encoders.whisper.Whispr"
    message = shell.refuses("caption", write(tmp_path, recipe), system.sounds[0])
    assert "did you mean 'mmprefix.encoders.whisper.Whisper'" in message
    assert "names no model with a decoder" in shell.refuses("caption", write(tmp_path, {"data": {}}), system.sounds[0])
