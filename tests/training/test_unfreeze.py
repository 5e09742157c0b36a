"""UnfreezeUntil: an encoder trained for some epochs, saved, resumed, and used as the start of another training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmprefix.encoders.panns import Cnn14
from mmprefix.inference.loading import load
from mmprefix.types import Features, Media
from tiny import encoders as tiny_encoders
from tiny.captioning_system import (
    CaptioningSystem,
    build,
    checkpoint_tensors,
    error_message,
    quietly,
    report_rows,
    run,
    same_tensors,
    training_record,
)

pytestmark = quietly
ENCODER, MAPPER = "model.encoders.audio.", "model.mappers.audio."


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> CaptioningSystem:
    made = build(tmp_path_factory.mktemp("tiny"))
    torch.manual_seed(4)
    tiny_encoders.save_panns(made.folder / "cnn14.pth")
    return made


def config(tiny: CaptioningSystem, **callback: Any) -> dict[str, Any]:
    """Recipe of sounds through a Cnn14, two mappers of Prefix-AAC, and the callback."""
    made = tiny.config(("audio",))
    aac = "mmprefix.mappers.prefix_aac.PrefixAAC"
    mappers = [
        {"class_path": aac, "init_args": {"reads": reads, "length": 2, "layers": 1, "heads": 4, "pieces": 3}}
        for reads in ("frames", "summary")
    ]
    made["model"]["branches"]["audio"] = {
        "encoder": {
            "class_path": "mmprefix.encoders.panns.Cnn14",
            "init_args": {"model": str(tiny.folder / "cnn14.pth"), **sizes()},
        },
        "mapper": {"class_path": "mmprefix.mappers.parallel.Parallel", "init_args": {"mappers": mappers}},
    }
    made["trainer"]["callbacks"] = [{"class_path": "mmprefix.training.UnfreezeUntil", "init_args": callback}]
    return made


def sizes() -> dict[str, Any]:
    return {**tiny_encoders.PANNS, "channels": [4, 6, 8], "reading": "prefix-aac", "seconds": 0.5}


def part(state: dict[str, Any], start: str) -> dict[str, Any]:
    return {name: tensor for name, tensor in state.items() if name.startswith(start)}


@pytest.fixture(scope="module")
def fitted(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training of three epochs, the encoder in the first only; a checkpoint of each."""
    root = tmp_path_factory.mktemp("fit")
    made = config(tiny, branch="audio", epochs=1)
    keep = {"filename": "{epoch}", "save_top_k": -1, "save_last": True}
    made["trainer"]["callbacks"].append(
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keep}
    )
    assert run("fit", tiny.recipe(made, root), save_to=root / "model", trainer__max_epochs=3) == 0
    return root


def test_it_is_trained_for_the_given_epochs_and_saved(fitted: Path) -> None:
    first, second, third = (checkpoint_tensors(fitted / "checkpoints" / f"epoch={n}.ckpt") for n in range(3))
    before = training_record(fitted).before
    own = part(first, ENCODER)
    assert own.keys() == part(before, ENCODER).keys() - {f"{ENCODER}net.window"}
    learned = [n for n in own if "num_batches" not in n and "mel" not in n]
    assert len(learned) > 30
    assert all(not torch.equal(own[name], before[name]) for name in learned if name.endswith("weight"))
    assert same_tensors(part(first, ENCODER), part(second, ENCODER))  # frozen, statistics of batches too
    assert not same_tensors(part(first, MAPPER), part(second, MAPPER))
    assert not same_tensors(part(second, MAPPER), part(third, MAPPER))
    assert not any(name.startswith("model.decoder.") for name in third)


def test_it_is_in_training_mode_while_it_is_trained(
    tiny: CaptioningSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In other steps it is not: the Trainer does not change the modes of parts."""
    seen: list[tuple[bool, bool]] = []
    encode = Cnn14.encode

    def watching(self: Cnn14, media: Media) -> Features:
        seen.append((self.net.bn0.training, torch.is_grad_enabled()))
        return encode(self, media)

    monkeypatch.setattr(Cnn14, "encode", watching)
    learns, looks, quiet = (True, True), (False, False), (False, False)
    recipe = tiny.recipe(config(tiny, branch="audio", epochs=1), tmp_path)
    assert run("fit", recipe, trainer__max_epochs=2) == 0
    steps = len(seen) // 2
    assert seen == [learns, learns] + [looks] * (steps - 2) + [quiet] * steps


def test_the_saved_model_needs_no_file_of_weights(tiny: CaptioningSystem, fitted: Path, tmp_path: Path) -> None:
    saved = yaml.safe_load((fitted / "model" / "mmprefix.yaml").read_text())
    assert saved["recipe"]["branches"]["audio"]["tuned"] is True
    assert saved["recipe"]["branches"]["audio"]["encoder"]["init_args"]["model"] is None
    assert saved["parts"]["audio"]["source"].endswith("cnn14.pth")  # where it came from is still told
    recipe = tiny.recipe(config(tiny, branch="audio", epochs=1), tmp_path)
    assert run("predict", recipe, ckpt_path=fitted / "checkpoints" / "last.ckpt") == 0
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    moved = tiny.folder / "cnn14.pth"
    away = moved.rename(tmp_path / "away.pth")
    try:
        model = load(fitted / "model", device="cpu")
        assert not any(p.requires_grad for p in model.model.encoder("audio").parameters())
        assert model([str(tiny.folder / f"{row['id'][1:]}.wav") for row in rows]) == [r["prediction"] for r in rows]
        model.save(tmp_path / "again")
        assert same_tensors(
            load_file(tmp_path / "again" / "model.safetensors"), load_file(fitted / "model/model.safetensors")
        )
    finally:
        away.rename(moved)


def test_every_verb_reads_the_checkpoint(tiny: CaptioningSystem, fitted: Path, tmp_path: Path, capfd: Any) -> None:
    recipe = tiny.recipe(config(tiny, branch="audio", epochs=1), tmp_path)
    last = fitted / "checkpoints" / "last.ckpt"
    assert run("validate", recipe, ckpt_path=last) == 0
    assert report_rows(tmp_path, "val") == report_rows(fitted, "val")
    plain = config(tiny, branch="audio", epochs=1)
    plain["trainer"]["callbacks"] = []
    message = error_message("validate", tiny.recipe(plain, tmp_path / "plain"), capfd, ckpt_path=last)
    assert "encoders.audio.net" in message
    assert "which this model does not have" in message


@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_run_equals_the_uninterrupted_one(
    after: int, tiny: CaptioningSystem, fitted: Path, tmp_path: Path
) -> None:
    """From a checkpoint taken while it was just frozen, and resumed epoch later."""
    recipe = tiny.recipe(config(tiny, branch="audio", epochs=1), tmp_path)
    ckpt = fitted / "checkpoints" / f"epoch={after - 1}.ckpt"
    assert run("fit", recipe, ckpt_path=ckpt, trainer__max_epochs=3, save_to=tmp_path / "model") == 0
    resumed, whole = (load_file(root / "model" / "model.safetensors") for root in (tmp_path, fitted))
    assert same_tensors(resumed, whole)


def test_noise_of_a_frozen_encoder_is_an_option(tiny: CaptioningSystem, tmp_path: Path) -> None:
    recipe = tiny.recipe(config(tiny, branch="audio", epochs=1, noisy=True), tmp_path)
    assert run("fit", recipe, save_to=tmp_path / "model", trainer__max_epochs=2) == 0
    state = load_file(tmp_path / "model" / "model.safetensors")
    assert state["encoders.audio.net.bn0.num_batches_tracked"] == 4  # two steps an epoch, in both
    recipe = tiny.recipe(config(tiny, branch="audio", epochs=1), tmp_path / "quiet")
    assert run("fit", recipe, save_to=tmp_path / "quiet" / "model", trainer__max_epochs=2) == 0
    state = load_file(tmp_path / "quiet" / "model" / "model.safetensors")
    assert state["encoders.audio.net.bn0.num_batches_tracked"] == 2


@pytest.mark.slow
def test_several_processes(tiny: CaptioningSystem, tmp_path: Path) -> None:
    recipe = tiny.recipe(config(tiny, branch="audio", epochs=1), tmp_path)
    more = {"trainer__devices": 2, "trainer__strategy": "ddp_fork", "trainer__max_epochs": 2}
    assert run("fit", recipe, save_to=tmp_path / "model", **more) == 0
    first, second = (training_record(tmp_path, process).after for process in (0, 1))
    names = [name for name in first if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(first[name], second[name]) for name in names)
    assert not torch.equal(
        first[f"{ENCODER}net.fc1.weight"], training_record(tmp_path).before[f"{ENCODER}net.fc1.weight"]
    )


def test_wrong_options_are_refused(tiny: CaptioningSystem, tmp_path: Path, capfd: Any) -> None:
    message = error_message("fit", tiny.recipe(config(tiny, branch="sound", epochs=1), tmp_path / "a"), capfd)
    assert message == "UnfreezeUntil.branch 'sound': the branches of this model are audio"
    message = error_message("fit", tiny.recipe(config(tiny, branch="audio", epochs=0), tmp_path / "b"), capfd)
    assert "UnfreezeUntil.epochs 0: give a number from 1 on" in message


# ------------------------------------------------------------------------------------------------------- start_from


def test_a_training_starts_from_a_saved_model(tiny: CaptioningSystem, fitted: Path, tmp_path: Path) -> None:
    made = config(tiny, branch="audio", epochs=1)
    made["model"]["start_from"] = str(fitted / "model")
    made["model"]["branches"]["audio"]["encoder"]["init_args"]["seconds"] = 1.0  # as Clotho hears more than AudioCaps
    assert run("fit", tiny.recipe(made, tmp_path), trainer__max_epochs=1) == 0
    before, saved = training_record(tmp_path).before, load_file(fitted / "model" / "model.safetensors")
    assert all(torch.equal(before[f"model.{name}"], value) for name, value in saved.items())
    assert len(saved) > 60


def test_only_common_parts_are_taken(tiny: CaptioningSystem, fitted: Path, tmp_path: Path) -> None:
    """One mapper of two."""
    made = config(tiny, branch="audio", epochs=1)
    made["model"]["start_from"] = str(fitted / "model")
    mapper = made["model"]["branches"]["audio"]["mapper"]["init_args"]
    mapper["mappers"] = mapper["mappers"][:1]
    assert run("fit", tiny.recipe(made, tmp_path), trainer__max_epochs=1) == 0
    before, saved = training_record(tmp_path).before, load_file(fitted / "model" / "model.safetensors")
    own = part(before, MAPPER)
    assert all(torch.equal(value, saved[name.removeprefix("model.")]) for name, value in own.items())
    assert len(own) < len(part(saved, "mappers."))


def test_unusable_models_to_start_from_are_refused(
    tiny: CaptioningSystem, fitted: Path, tmp_path: Path, capfd: Any
) -> None:
    def message_of(change: Any, name: str) -> str:
        made = config(tiny, branch="audio", epochs=1)
        made["model"]["start_from"] = str(fitted / "model")
        change(made["model"])
        return error_message("fit", tiny.recipe(made, tmp_path / name), capfd)

    mappers = "branches", "audio", "mapper"

    def longer(model: dict[str, Any]) -> None:
        model[mappers[0]][mappers[1]][mappers[2]]["init_args"]["mappers"][0]["init_args"]["length"] = 3

    def another(model: dict[str, Any]) -> None:
        model["decoder"]["init_args"]["model"] = tiny.path("another")

    def nowhere(model: dict[str, Any]) -> None:
        model["start_from"] = str(tmp_path / "none")

    def no_model(model: dict[str, Any]) -> None:
        model["start_from"] = str(tiny.folder)

    assert "prefix_const' has the shape (2, 64), this model's (3, 64)" in message_of(longer, "a")
    assert "was trained with another decoder than" in message_of(another, "b")
    assert "no such folder" in message_of(nowhere, "c")
    assert "is no saved model" in message_of(no_model, "d")
    plain = config(tiny, branch="audio", epochs=1)
    plain["trainer"]["callbacks"] = []
    plain["model"]["start_from"] = str(fitted / "model")
    frozen = error_message("fit", tiny.recipe(plain, tmp_path / "e"), capfd)
    assert "its encoder 'audio' was tuned; tune it here too (UnfreezeUntil)" in frozen


def test_random_frozen_weights_are_refused(tiny: CaptioningSystem, fitted: Path, tmp_path: Path, capfd: Any) -> None:
    """They are not saved, so a loaded model would have others."""
    made = config(tiny, branch="audio", epochs=1)
    made["trainer"]["callbacks"] = []
    made["model"]["branches"]["audio"]["encoder"]["init_args"]["model"] = None
    message = error_message("fit", tiny.recipe(made, tmp_path), capfd)
    assert "has random weights (model: null) that nobody trains" in message
    made["trainer"]["callbacks"] = [
        {"class_path": "mmprefix.training.UnfreezeUntil", "init_args": {"branch": "audio", "epochs": 1}}
    ]
    assert run("fit", tiny.recipe(made, tmp_path / "tuned"), save_to=tmp_path / "m", trainer__max_epochs=1) == 0
    first, second = (load(tmp_path / "m", device="cpu")(str(tiny.folder / "0.wav")) for _ in range(2))
    assert first == second


def test_a_resumed_run_does_not_start_again(tiny: CaptioningSystem, fitted: Path, tmp_path: Path) -> None:
    """``start_from`` has no effect on a resumed run: the checkpoint holds the trained tensors."""
    made = config(tiny, branch="audio", epochs=1)
    made["model"]["start_from"] = str(tmp_path / "gone")
    recipe = tiny.recipe(made, tmp_path)
    ckpt = fitted / "checkpoints" / "epoch=1.ckpt"
    assert run("fit", recipe, ckpt_path=ckpt, trainer__max_epochs=3, save_to=tmp_path / "model") == 0
    assert same_tensors(*(load_file(root / "model" / "model.safetensors") for root in (tmp_path, fitted)))
    shutil.rmtree(tmp_path / "model")
