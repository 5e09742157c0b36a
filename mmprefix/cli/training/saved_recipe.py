"""``--model DIR`` of predict, validate and test: a saved model in the place of the recipe's model and a checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mmprefix.cli.training.recipe_errors import recipes_of
from mmprefix.encoders.base import EncoderMode
from mmprefix.errors import InputError
from mmprefix.model import PrefixLM
from mmprefix.saved_model import WEIGHTS, load_trained, read_recipe, read_tensors, require_same_parts
from mmprefix.trust.plain_yaml import read_yaml
from mmprefix.weights import frozen_parts, part_places

OPTION = "--model"


def split_model(words: list[str]) -> tuple[Path | None, list[str]]:
    """Directory that ``--model DIR`` names, and the other ``words``; ``--model FILE`` stays an option of the recipe."""
    for at, word in enumerate(words):
        flag, equals, value = word.partition("=")
        value = value if equals else next(iter(words[at + 1 :]), "")
        if flag == OPTION and value and not Path(value).is_file():
            if not Path(value).is_dir():
                raise InputError(f"--model {value}: no such directory; mmprefix fit saves one")
            return Path(value), words[:at] + words[at + (1 if equals else 2) :]
    return None, words


@contextmanager
def recipe_words(model: Path, words: list[str]) -> Generator[list[str], None, None]:
    """``words`` with the model of the saved ``model``, and of their own recipes all but the model.

    Raises InputError for a directory that is no saved model.
    """
    saved = read_recipe(model)
    part_places.locate(saved, model)
    frozen_parts.require_present(saved["recipe"], model)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "model.yaml"
        recipe.write_text(yaml.safe_dump(_as_recipe(saved), sort_keys=False), encoding="utf-8")
        replaced = list(words)
        for number, file in enumerate(recipes_of(words)):
            data = read_yaml(file)
            rest = {key: value for key, value in data.items() if key != "model"} if isinstance(data, dict) else data
            copy = Path(folder) / str(number) / file.name
            copy.parent.mkdir()
            copy.write_text(yaml.safe_dump(rest, sort_keys=False), encoding="utf-8")
            replaced = [copy_of(word, str(file), str(copy)) for word in replaced]
        yield [replaced[0], "--config", str(recipe), *replaced[1:]]


def copy_of(word: str, file: str, copy: str) -> str:
    """``word`` of a command line with ``copy`` where it names ``file`` as its recipe."""
    flag, equals, name = word.partition("=")
    if equals and flag in ("--config", "-c") and name == file:
        return f"{flag}={copy}"
    return copy if word == file else word


def load_saved(model: PrefixLM, directory: Path) -> None:
    """Give ``model`` the trained tensors in ``directory``; InputError where its frozen parts are others."""
    saved = read_recipe(directory)
    part_places.locate(saved, directory)
    for name in (name for name, branch in saved["recipe"]["branches"].items() if branch.get("tuned")):
        model.encoder(name).set_mode(EncoderMode.TUNED)
    require_same_parts(model, saved, directory)
    load_trained(model, read_tensors(directory, saved.get("sha256")), directory / WEIGHTS)


def _as_recipe(saved: dict[str, Any]) -> dict[str, Any]:
    """Recipe of a training whose model and options are those of a saved one."""
    model = dict(saved["recipe"])
    model["branches"] = {
        name: {key: part for key, part in branch.items() if key != "tuned"}
        for name, branch in model["branches"].items()
    }
    model |= {key: saved[key] for key in ("generate", "answers") if saved.get(key)}
    data = {"class_path": "mmprefix.data.PairData", "init_args": {"prompt": saved.get("prompt") or ""}}
    return {"model": model, "data": data}
