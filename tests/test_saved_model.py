"""Checkpoints and saved models: trained tensors only; those of another model are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.inference.loading import load
from mmprefix.mappers.learned import Learned
from mmprefix.model import PrefixLM
from mmprefix.saved_model import (
    Captioning,
    Detection,
    ModelSettings,
    TrainingRecord,
    Understanding,
    load_trained,
)
from tiny.captioning_system import (
    CaptioningSystem,
    checkpoint_tensors,
    error_message,
    quietly,
    run,
    same_tensors,
    training_record,
)

pytestmark = quietly
KB = 1024


@pytest.fixture(scope="module")
def fitted(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of one training: checkpoints/last.ckpt, a weights-only checkpoint, model/."""
    root = tmp_path_factory.mktemp("fit")
    config = tiny.config()
    init_args = {"every_n_train_steps": 4, "save_weights_only": True, "filename": "weights"}
    config["trainer"]["callbacks"] = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": init_args},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}},
    ]
    assert run("fit", tiny.recipe(config, root), save_to=root / "model", trainer__max_epochs=1) == 0
    return root


@pytest.fixture
def model(fitted: Path, tmp_path: Path) -> Path:
    """Copy of the saved model."""
    return Path(shutil.copytree(fitted / "model", tmp_path / "model"))


# ---------------------------------------------------------------------------------------------------------- contents


def test_a_checkpoint_holds_the_trained_tensors_only(fitted: Path) -> None:
    trained = {
        name: tensor for name, tensor in training_record(fitted).after.items() if name.startswith("model.mappers.")
    }
    size = 4 * sum(tensor.numel() for tensor in trained.values())
    assert size > 30 * KB  # so that the size limit below means something
    weights = fitted / "checkpoints" / "weights.ckpt"
    assert same_tensors(checkpoint_tensors(weights), trained)
    assert same_tensors(checkpoint_tensors(fitted / "checkpoints" / "last.ckpt"), trained)
    assert size < weights.stat().st_size <= size + 64 * KB
    saved = fitted / "model" / "model.safetensors"
    assert same_tensors({f"model.{name}": tensor for name, tensor in load_file(saved).items()}, trained)
    assert size < saved.stat().st_size <= size + 64 * KB


def test_the_saved_model_predicts_as_the_checkpoint(tiny: CaptioningSystem, fitted: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(tiny.config(), tmp_path)
    assert run("predict", recipe, ckpt_path=fitted / "checkpoints" / "last.ckpt") == 0
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    files = [str(tiny.folder / f"{row['id'][1:]}.{'png' if row['id'][0] == 'p' else 'wav'}") for row in rows]
    predictor = load(fitted / "model", device="cpu")
    assert predictor(files) == [row["prediction"] for row in rows]
    assert (fitted / "model" / "README.md").read_text().count("mmprefix.load") == 1


def test_saving_over_a_saved_model_replaces_it_whole(fitted: Path, model: Path) -> None:
    (model / "left-over.txt").write_text("of an earlier version")
    load(model, device="cpu").save(model)
    assert sorted(file.name for file in model.iterdir()) == ["README.md", "mmprefix.yaml", "model.safetensors"]
    assert same_tensors(load_file(model / "model.safetensors"), load_file(fitted / "model" / "model.safetensors"))
    assert [file.name for file in model.parent.iterdir()] == ["model"]


def test_a_run_packs_its_parts_and_its_card_shows_samples(tiny: CaptioningSystem, tmp_path: Path) -> None:
    recipe = tiny.recipe(tiny.config(["image"]), tmp_path)
    options = {"trainer__max_epochs": 1, "pack": "true", "license": "mit", "language": "[en]"}
    assert run("fit", recipe, save_to=tmp_path / "model", **options) == 0
    assert sorted(folder.name for folder in (tmp_path / "model" / "parts").iterdir()) == ["decoder", "pictures"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "license: mit" in card
    predictor = load(tmp_path / "model", device="cpu")
    samples = predictor.settings.trained.samples if predictor.settings.trained else []
    assert len(samples) == 3
    for sample in samples:
        assert f"| {sample['input']} | {sample['written']} | {sample['reference']} |" in card
        assert predictor(str(tiny.folder / sample["input"])) == sample["written"]


# ---------------------------------------------------------------------------------------------------------- refusals


def test_a_checkpoint_with_other_tensors_than_were_written_is_refused(
    tiny: CaptioningSystem, fitted: Path, tmp_path: Path, capfd: Any
) -> None:
    recipe = tiny.recipe(tiny.config(), tmp_path)
    content = torch.load(fitted / "checkpoints" / "last.ckpt", weights_only=True)
    content["state_dict"]["model.mappers.image.queries"][0, 0] += 1e-3
    torch.save(content, tmp_path / "other.ckpt")
    message = error_message("validate", recipe, capfd, ckpt_path=tmp_path / "other.ckpt")
    assert message.startswith(f"{tmp_path / 'other.ckpt'}: its trained tensors are not those that were written")
    del content["mmprefix"]["sha256"]  # of an earlier version
    torch.save(content, tmp_path / "other.ckpt")
    assert run("validate", recipe, ckpt_path=tmp_path / "other.ckpt") == 0


def test_a_model_with_another_file_of_tensors_is_refused(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["mappers.image.queries"][0, 0] += 1e-3
    save_file(tensors, model / "model.safetensors")
    assert "model.safetensors: is not the file that was saved here" in load_error(model)
    edit_yaml(model, lambda saved: saved.pop("sha256"))  # of an earlier version
    load(model, device="cpu")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s["parts"]["decoder"].update(sha256=None), "parts.decoder: sha256: None is no str"),
        (lambda s: s["parts"]["decoder"].pop("sha256"), "parts.decoder needs source, revision and sha256"),
        (lambda s: s["parts"].update(image="hello"), "parts.image needs source, revision and sha256"),
        (lambda s: s.update(sha256=5), "mmprefix.yaml: sha256: 5 is no dict[str, str]"),
        (lambda s: s["recipe"]["branches"]["image"]["mapper"]["init_args"].update(hidden=10**9), "sizes"),
        (lambda s: s["recipe"]["branches"]["image"]["mapper"]["init_args"].update(layers=10**6), "asks for more than"),
        (lambda s: s["recipe"]["decoder"]["init_args"].update(lora_rank=10**9), "lora_rank=1000000000: no tensor"),
        (lambda s: s["recipe"]["decoder"]["init_args"].update(stop=5), "stop: 5 is no str or None"),
        (lambda s: s["recipe"]["decoder"].update(init_args=[1]), "lacks branches"),
        (lambda s: s["generate"].update(length_penalty="x"), "mmprefix.yaml: length_penalty: 'x' is no float"),
        (lambda s: s.update(generate=[1]), "its settings were changed"),
        (lambda s: s.update(prompt=["a"]), "mmprefix.yaml: prompt: ['a'] is no str or None"),
        (lambda s: s.update(schema=5), "mmprefix.yaml: schema: 5 is no str or dict[str, Any]"),
        (lambda s: s.update(trained={"data": 5}), "mmprefix.yaml: data: 5 is no list[str]"),
    ],
)
def test_edits_of_a_model_s_yaml_are_refused_in_one_line(edit: Any, message: str, model: Path) -> None:
    edit_yaml(model, edit)
    assert message in load_error(model)


@pytest.mark.parametrize(
    "settings",
    [
        {"generate": {"num_beams": "many"}},
        {"generate": ["num_beams"]},
        {"trained": {"files": 3, "figures": 4, "unknown": 5}, "answers": ["yes"]},
        {"answers": ["yes", "no", "perhaps"]},
        {"imported": "ClipCap"},
    ],
)
def test_settings_that_no_model_can_have_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ModelSettings.from_dict(settings)


def test_settings_are_restored_from_their_dict() -> None:
    for task in (Captioning(), Understanding({"name": "home"}, "yesno"), Detection(("yes", "no"))):
        settings = ModelSettings(prompt="a", trained=TrainingRecord(["x.jsonl"], "val", {"loss": 1.0}), task=task)
        later = {**settings.to_dict(), "key_of_a_later_version": 1}
        assert ModelSettings.from_dict(yaml.safe_load(yaml.safe_dump(later))) == settings


def load_error(directory: Path, parts: dict[str, str] | None = None) -> str:
    """Message, one line, of a model that is not loaded."""
    with pytest.raises(InputError) as caught:
        load(directory, device="cpu", parts=parts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_yaml(directory: Path, edit: Any) -> None:
    """Change mmprefix.yaml of a saved model by the function ``edit``."""
    file = directory / "mmprefix.yaml"
    saved = yaml.safe_load(file.read_text())
    edit(saved)
    file.write_text(yaml.safe_dump(saved))


def test_other_frozen_parts_are_refused_by_name(tiny: CaptioningSystem, model: Path, tmp_path: Path) -> None:
    message = load_error(model, {"decoder": tiny.path("another")})
    assert f"{model}: was trained with the decoder 'decoder' (sha256" in message
    assert tiny.path("another") in message
    other = shutil.copytree(tiny.path("sounds"), tmp_path / "sounds")
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, other / "model.safetensors")
    assert "was trained with the encoder of branch 'audio' 'sounds'" in load_error(model, {"audio": str(other)})
    assert "part 'video': this model has image, audio, decoder" in load_error(model, {"video": str(other)})


def test_frozen_parts_may_move(tiny: CaptioningSystem, fitted: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(tiny.path("decoder"), tmp_path / "moved"))
    file = str(tiny.folder / "0.png")
    assert load(fitted / "model", parts={"decoder": str(moved)})(file) == load(fitted / "model")(file)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda saved: saved["recipe"]["decoder"].update(class_path="os.system"),
            "'os.system': not imported",
        ),
        (
            lambda saved: saved["recipe"]["decoder"].update(
                class_path="subprocess.Popen", init_args={"args": ["touch", "ran"]}
            ),
            "'subprocess.Popen': not imported",
        ),
        (
            lambda saved: saved["recipe"]["branches"]["image"].update(
                mapper={"class_path": "mmprefix.encoders.cnn.Cnn", "init_args": {"model": "x"}}
            ),
            "'mmprefix.encoders.cnn.Cnn' is not a subclass of Mapper",
        ),
        (lambda saved: saved["recipe"]["decoder"].update(class_path="no.such.Thing"), "'no.such.Thing': not imported"),
        (lambda saved: saved["recipe"]["branches"].pop("audio"), "encoder of branch 'audio'"),
        (lambda saved: saved.pop("recipe"), "has no recipe"),
        (lambda saved: saved.update(format=2), "is not of format 1"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(
    edit: Any, message: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    edit_yaml(model, edit)
    assert message in load_error(model)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]  # no command was run


def test_directories_that_are_no_model_are_load_error(model: Path, tmp_path: Path) -> None:
    (model / "mmprefix.yaml").rename(model / "recipe.yaml")
    assert f"{model}: is no saved model (it has no mmprefix.yaml)" in load_error(model)
    (model / "mmprefix.yaml").write_text("{a: [")
    assert "mmprefix.yaml: not YAML" in load_error(model)


def test_tensors_that_do_not_fit_are_refused_by_name(model: Path) -> None:
    file = model / "model.safetensors"
    whole = load_file(file)
    name = "mappers.image.out.weight"
    save_file({key: tensor for key, tensor in whole.items() if key != name}, file)
    assert f"{file}: holds no tensor '{name}'" in load_error(model)
    save_file({**whole, "mappers.image.more": torch.ones(1)}, file)
    assert f"{file}: holds a tensor 'mappers.image.more', which this model does not have" in load_error(model)
    save_file({**whole, name: whole[name][:5].clone()}, file)
    assert f"{file}: tensor '{name}' has the shape (5, 16), this model's (64, 16)" in load_error(model)
    save_file(whole, file)
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{file}: cannot be read" in load_error(model)
    file.unlink()
    assert f"{file}: cannot be read" in load_error(model)


def test_the_command_line_refuses_checkpoints_of_other_models(
    tiny: CaptioningSystem, fitted: Path, tmp_path: Path, capfd: Any
) -> None:
    last = fitted / "checkpoints" / "last.ckpt"

    def message_of(change: Any, verb: str = "validate") -> str:
        config = tiny.config()
        change(config["model"])
        return error_message(verb, tiny.recipe(config, tmp_path), capfd, ckpt_path=last)

    other = tiny.path("another")
    message = message_of(lambda model: model["decoder"]["init_args"].update(model=other), "fit")
    assert message.startswith(f"{last}: was trained with the decoder '{tiny.path('decoder')}'")
    message = message_of(lambda model: model["decoder"]["init_args"].update(stop="."))
    assert message == f"{last}: the decoder was trained with stop=None, but this one has stop='.'"
    message = message_of(lambda model: model["branches"]["image"]["encoder"]["init_args"].update(normalize=True))
    assert "encoder of branch 'image' was trained with normalize=False, but this one has normalize=True" in message
    message = message_of(lambda model: model["branches"].pop("audio"))
    assert message == f"{last}: was trained with the encoder of branch 'audio', which this model does not have"
    message = message_of(lambda model: model["branches"]["image"]["mapper"]["init_args"].update(length=5))
    assert f"{last}: tensor 'mappers.image.queries' has the shape (3, 16), this model's (5, 16)" in message


def test_the_command_line_refuses_files_that_are_no_checkpoint(
    tiny: CaptioningSystem, fitted: Path, tmp_path: Path, capfd: Any
) -> None:
    recipe = tiny.recipe(tiny.config(["image"]), tmp_path)
    file = tmp_path / "other.ckpt"
    for content in ({"weight": torch.ones(2)}, {"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, [1]):
        torch.save(content, file)
        assert error_message("validate", recipe, capfd, ckpt_path=file).startswith(
            f"{file}: was not written by mmprefix"
        )
    torch.save(Path("an object that is no plain value"), file)
    assert error_message("fit", recipe, capfd, ckpt_path=file).startswith(f"{file}: is no checkpoint that can be read")
    file.write_bytes((fitted / "checkpoints" / "last.ckpt").read_bytes()[:20000])
    assert error_message("fit", recipe, capfd, ckpt_path=file).startswith(f"{file}: is no checkpoint that can be read")
    file.unlink()
    assert error_message("test", recipe, capfd, ckpt_path=file) == f"{file}: no such checkpoint"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t * float("nan"), "holds NaN or infinity"),
        (lambda t: t + float("inf"), "holds NaN or infinity"),
        (lambda t: t.to(torch.int32), "is of type int32, this model's float32"),
        (lambda t: t > 0, "is of type bool, this model's float32"),
        (lambda t: t.to(torch.complex64), "is of type complex64, this model's float32"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(change: Callable[[Tensor], Tensor], message: str) -> None:
    """Each of these loaded, and the model wrote nonsense."""
    model = PrefixLM({}, CausalDecoder("mmprefix:world/frozen/decoder"), partial(Learned, length=2))
    tensors = {name: tensor.detach().clone() for name, tensor in model.trained.items()}
    load_trained(model, tensors, "model.safetensors")
    load_trained(model, {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, "model.safetensors")
    name = min(tensors)
    before = model.trained[name].detach().clone()
    with pytest.raises(InputError, match=message):
        load_trained(model, tensors | {name: change(tensors[name])}, "model.safetensors")
    assert torch.equal(model.trained[name], before)
