"""Every start of a learned prefix trains from a recipe: drawn ones at the input, those of tokens in every layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmprefix
from mmprefix.cli.main import main
from mmprefix.mappers.base import join_layers
from mmprefix.mappers.starts import Start
from mmprefix.types import Prefix

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "methods"
DRAWN: dict[str, dict[str, object]] = {"Normal": {"std": 0.3}, "Uniform": {"scale": 0.4}, "Zeros": {}}
TOKENS: dict[str, dict[str, object]] = {
    "TextTokens": {"text": "a large red circle"},
    "Words": {"most": 50, "first": "a blue square", "seed": 3},
}


def fit(recipe: str, folder: Path, name: str, options: Mapping[str, object]) -> Tensor:
    """One step of a vanishing rate from a start → the numbers (P n) of the prefix as it was saved."""
    data = ["--data.directory", str(folder / "data"), "--data.scenes", "8", "--data.batch_size", "8"]
    data += ["--data.val_scenes", "2", "--data.test_scenes", "2", "--model.optimizer.init_args.lr", "1e-12"]
    run = ["--trainer.default_root_dir", str(folder / name), "--trainer.max_steps", "1", "--test_after_fit", "false"]
    run += ["--trainer.limit_val_batches", "0", "--trainer.accelerator", "cpu", "--no_report", "true"]
    start = {"class_path": f"mmprefix.mappers.starts.{name}", "init_args": dict(options)}
    prefix = ["--model.prefix.init_args.length", "4", "--model.prefix.init_args.start", json.dumps(start)]
    configs = [word for file in ("base", recipe) for word in ("--config", str(FOLDER / f"{file}.yaml"))]
    assert main(["fit", *configs, *data, *run, *prefix, "--save_to", str(folder / name / "model")]) == 0
    made: Any = mmprefix.load(folder / name / "model", device="cpu").model.build_prefix({})
    return (made.embeds if isinstance(made, Prefix) else join_layers(made))[0].detach()


def test_drawn_starts_train_from_a_recipe(tmp_path: Path) -> None:
    numbers = {name: fit("prompt_tuning", tmp_path, name, options) for name, options in DRAWN.items()}
    assert not numbers["Zeros"].round(decimals=6).any()
    assert numbers["Normal"].std() == pytest.approx(0.3, rel=0.2)
    assert 0.35 < numbers["Uniform"].abs().max() <= 0.4001


def test_tokens_and_an_average_of_saved_prefixes_train_from_a_recipe(tmp_path: Path) -> None:
    numbers = {name: fit("p_tuning_v2", tmp_path, name, options) for name, options in TOKENS.items()}
    assert not torch.allclose(numbers["TextTokens"], numbers["Words"], atol=0.1)
    models = [str(tmp_path / name / "model") for name in TOKENS]
    mean = fit("p_tuning_v2", tmp_path, "Average", {"models": models})
    torch.testing.assert_close(mean, (numbers["TextTokens"] + numbers["Words"]) / 2, atol=1e-5, rtol=1e-4)


def test_the_table_has_every_start() -> None:
    def below(part: type[Start]) -> set[str]:
        return {name for child in part.__subclasses__() for name in ({child.__name__} | below(child))}

    assert below(Start) - {"Drawn", "Tokens"} == {*DRAWN, *TOKENS, "Average"}
