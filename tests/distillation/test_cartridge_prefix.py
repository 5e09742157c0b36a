"""Cartridges by their file: in a recipe, in training, in a saved model that needs the file no more."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml

import mmprefix
from mmprefix.decoders import CausalDecoder
from mmprefix.distillation import Cartridge, CartridgePrefix, compose, distil
from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.model import PrefixLM
from tiny import decoders as tiny_decoders
from tiny.captioning_system import CaptioningSystem, quietly, run

pytestmark = [pytest.mark.numeric, *quietly]
CONTEXT = "some rain falls on the old roof, and a bell rings twice."


def parts(folder: Path, seed: int = 0) -> tuple[CausalDecoder, str]:
    """Decoder in ``folder``, and the file of a cartridge of it."""
    decoder = CausalDecoder(tiny_decoders.save_decoder(folder / f"llama{seed}", "llama", seed=seed))
    file = folder / f"rain{seed}.safetensors"
    distil(decoder, CONTEXT, [], positions=5, steps=0).half().save(file)
    return decoder, str(file)


def test_a_saved_model_holds_it_without_the_file(tmp_path: Path) -> None:
    decoder, file = parts(tmp_path)
    cartridge = Cartridge.load(file)
    Predictor(PrefixLM({}, decoder, partial(CartridgePrefix, file=file))).save(tmp_path / "model")
    Path(file).unlink()
    loaded = mmprefix.load(tmp_path / "model", device="cpu").model
    assert type(loaded.task_prefix) is DeepTable
    assert loaded.task_prefix.frozen == 1
    prefix: Any = loaded.build_prefix({}, count=1)
    assert torch.equal(prefix.keys[:, 0], cartridge.keys.float())
    assert torch.equal(prefix.values[:, 0], cartridge.values.float())


def test_a_recipe_with_it_writes_without_training(tmp_path: Path) -> None:
    decoder, file = parts(tmp_path)
    recipe: dict[str, Any] = {
        "decoder": {"class_path": "mmprefix.decoders.CausalDecoder", "init_args": {"model": decoder.identity.source}},
        "prefix": {"class_path": "mmprefix.distillation.CartridgePrefix", "init_args": {"file": file}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"model": recipe}))
    model = mmprefix.load(tmp_path / "recipe.yaml", device="cpu").model
    by_recipe = model.decoder.score(model.decoder.prefill(model.build_prefix({}, count=1)), ["the"], [["a dog"]])
    by_file = decoder.score(decoder.prefill(Cartridge.load(file).prefix()), ["the"], [["a dog"]])
    assert by_recipe[0] == pytest.approx(by_file[0], abs=1e-3)
    recipe["prefix"]["init_args"]["file"] = parts(tmp_path, seed=1)[1]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"model": recipe}))
    with pytest.raises(InputError, match=r"model.prefix: .*rain1.safetensors: cartridge: was made for weights"):
        mmprefix.load(tmp_path / "recipe.yaml", device="cpu")


def test_several_files_are_joined(tmp_path: Path) -> None:
    decoder, file = parts(tmp_path)
    second, other = str(tmp_path / "bell.safetensors"), parts(tmp_path, seed=1)[1]
    distil(decoder, "a bell rings twice.", [], positions=3, steps=0).save(second)
    model = PrefixLM({}, decoder, partial(CartridgePrefix, file=[file, second]))
    both, prefix = compose(Cartridge.load(file), Cartridge.load(second)), cast(Any, model.build_prefix({}, count=1))
    assert torch.equal(prefix.keys[:, 0], both.keys)
    assert torch.equal(prefix.values[:, 0], both.values)
    for files, message in (
        ([file, other], r"rain1.safetensors: is of another decoder than .*rain0.safetensors"),
        ([file, str(tmp_path / "none")], "none: cannot be read as a cartridge"),
        ([], "cartridges: no file"),
    ):
        with pytest.raises(InputError, match=message):
            PrefixLM({}, decoder, partial(CartridgePrefix, file=files))


def test_decoders_of_other_sizes_are_refused_when_it_is_built(tmp_path: Path) -> None:
    _, file = parts(tmp_path)
    gpt2 = CausalDecoder(tiny_decoders.save_decoder(tmp_path / "gpt2", "gpt2"))
    with pytest.raises(InputError, match=r"has layers, heads and width \(2, 2, 8\), the decoder \(2, 4, 8\)"):
        PrefixLM({}, gpt2, partial(CartridgePrefix, file=file))
    with pytest.raises(InputError, match=r"none.safetensors: cannot be read as a cartridge"):
        PrefixLM({}, gpt2, partial(CartridgePrefix, file=str(tmp_path / "none.safetensors")))


def test_training_goes_on_from_it(tiny: CaptioningSystem, tmp_path: Path) -> None:
    file = tmp_path / "hill.safetensors"
    distil(CausalDecoder(tiny.path("decoder")), "the red hill\na hill 2 is blue.\n", [], positions=4, steps=0).save(
        file
    )
    cartridge, config = Cartridge.load(file), tiny.config(("image",))
    config["model"]["prefix"] = {"class_path": "CartridgePrefix", "init_args": {"file": str(file)}}
    recipe = tiny.recipe(config, tmp_path / "run")
    assert run("fit", recipe, save_to=tmp_path / "saved", trainer__max_steps=2) == 0
    prefix: Any = mmprefix.load(tmp_path / "saved", device="cpu").model.task_prefix
    assert torch.equal(prefix.sink, cartridge.mapper(prefix.sizes).sink)
    moved = (prefix.table - cartridge.mapper(prefix.sizes).table).abs()
    assert 0 < moved.max() < 0.1
    distil(CausalDecoder(tiny.path("another")), "the red hill\na hill 2 is blue.\n", [], positions=4, steps=0).save(
        file
    )
    assert run("fit", recipe, save_to=tmp_path / "other", trainer__max_steps=1) == 2
