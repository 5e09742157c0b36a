"""One system with every part, trained, saved, loaded: two branches, a deep task prefix, a template, a transcriber."""

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

from mmprefix.cli.main import main
from mmprefix.errors import InputError
from mmprefix.inference.loading import load
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.model import Branch, PrefixLM
from mmprefix.prompt_template import PromptTemplate
from mmprefix.saved_model import Detection
from tiny import speech_system as tiny_speech_system
from tiny.captioning_system import checkpoint_tensors, error_message, quietly, run, same_tensors, training_record
from tiny.speech_system import PHRASES, SpeechSystem, recipe_part

pytestmark = quietly


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> SpeechSystem:
    return tiny_speech_system.build(tmp_path_factory.mktemp("spoken"), taught=True)


def recipe_of_all_parts(spoken: SpeechSystem) -> dict[str, Any]:
    """Recipe of all parts: sounds, signals and transcripts to GPT-2, a deep task prefix, modality dropout."""
    audio = {
        "encoder": recipe_part("encoders.whisper.Whisper", model=spoken.path("whisper")),
        "mapper": recipe_part("mappers.mlp.MLP", length=2, hidden=8),
    }
    scaled = recipe_part("mappers.minmax.MinMax", mapper=recipe_part("mappers.mlp.MLP", length=1, hidden=8, layers=3))
    signals = {"encoder": recipe_part("encoders.signals.Signals", names=["a", "b", "c"]), "mapper": scaled}
    config = spoken.config(
        branches={"audio": audio, "signals": signals},
        decoder=recipe_part("decoder.CausalDecoder", model=spoken.path("decoder")),
        prefix=recipe_part("mappers.deep.Deep", mapper=recipe_part("mappers.learned.Learned", length=3), hidden=8),
        wording={"context": "said: {context}\ndecision:"},
        transcriber=recipe_part(
            "transcriber.Transcriber", model=spoken.path("whisper"), num_beams=1, max_new_tokens=12
        ),
        modality_dropout=0.4,
        answers=["directed", "other"],
    )
    labels = [json.loads(line) for line in Path(spoken.path("train.jsonl")).read_text().splitlines()]
    for number, row in enumerate(labels):
        row["target"] = ["directed", "other"][number % 2]
    Path(spoken.path("labelled.jsonl")).write_text("".join(json.dumps(row) + "\n" for row in labels))
    config["data"]["init_args"] |= {"train": [spoken.path("labelled.jsonl")], "val": [spoken.path("labelled.jsonl")]}
    return config


@pytest.fixture(scope="module")
def fitted(spoken: SpeechSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fit")
    recipe = spoken.recipe(recipe_of_all_parts(spoken), root)
    assert run("fit", recipe, save_to=root / "model", trainer__max_epochs=2) == 0
    return root


def test_training_touches_mappers_and_task_prefix_only(fitted: Path) -> None:
    training = training_record(fitted)
    moved = {name for name, tensor in training.after.items() if not torch.equal(tensor, training.before[name])}
    own = {name for name in training.after if name.startswith(("model.mappers.", "model.task_prefix."))}
    ranges = {f"model.mappers.signals.{name}" for name in ("low", "high")}
    assert moved == own - ranges == set(training.gradients)
    assert {name.split(".")[1] for name in training.after} == {
        "decoder", "encoders", "mappers", "task_prefix", "transcriber"
    }  # fmt: skip
    assert checkpoint_tensors(fitted / "checkpoints" / "last.ckpt").keys() == own


def test_the_saved_model_is_the_trained_one(spoken: SpeechSystem, fitted: Path, tmp_path: Path) -> None:
    saved = yaml.safe_load((fitted / "model" / "mmprefix.yaml").read_text())
    assert saved["recipe"].keys() == {"branches", "decoder", "prefix", "wording", "transcriber"}
    assert saved["parts"].keys() == {"audio", "signals", "decoder", "transcriber"}
    assert saved["parts"]["transcriber"]["sha256"] == saved["parts"]["audio"]["sha256"]
    state = load_file(fitted / "model" / "model.safetensors")
    assert {name for name in state if name.startswith("task_prefix")} == {"task_prefix.table"}
    assert not any(name.startswith(("transcriber", "decoder", "encoders")) for name in state)
    loaded = load(fitted / "model", device="cpu")
    assert loaded.model.wording == PromptTemplate("said: {context}\ndecision:")
    assert loaded.settings.task == Detection(("directed", "other"))
    files = [{"audio": spoken.path(f"{n}.wav"), "signals": (float(n), 1.0, 7.0)} for n in range(3)]
    contexts = list(PHRASES)[:3]
    odds = loaded.detect(files, context=contexts)
    assert loaded.detect(files) == pytest.approx(odds, abs=1e-4)  # the transcriber writes the same contexts
    assert loaded.detect(files, context=contexts[::-1]) != pytest.approx(odds, abs=1e-4)
    # The tensors at the end of training, in a model built from the recipe, give the same.
    trained = PrefixLM.from_recipe(loaded.model.recipe())
    after = {name.removeprefix("model."): tensor for name, tensor in training_record(fitted).after.items()}
    deep = partial(Deep, mapper=partial(Learned, length=3), hidden=8)
    whole = PrefixLM(
        {name: Branch(trained.encoder(name), partial(mapper_of, trained, name)) for name in trained.encoders},
        trained.decoder, deep, wording=trained.wording, transcriber=trained.transcriber,
    )  # fmt: skip
    whole.load_state_dict(after)
    again = Predictor(whole, loaded.settings)
    assert again.detect(files, context=contexts) == pytest.approx(odds, abs=1e-4)
    again.save(tmp_path / "again")
    folded = load_file(tmp_path / "again" / "model.safetensors")
    assert folded.keys() == state.keys()
    assert all(torch.allclose(folded[name], state[name], atol=1e-6) for name in state)
    loaded.save(tmp_path / "once more")
    assert same_tensors(load_file(tmp_path / "once more" / "model.safetensors"), state)


def mapper_of(model: PrefixLM, name: str, sizes: Sizes) -> Mapper:
    """Mapper of the branch ``name``, as a builder that ignores ``sizes``."""
    mapper = model.mappers[name]
    assert isinstance(mapper, Mapper)
    return mapper


def test_the_transcriber_may_be_moved_but_not_changed(spoken: SpeechSystem, fitted: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(spoken.path("whisper"), tmp_path / "moved")
    files = {"audio": spoken.path("0.wav"), "signals": (0.0, 1.0, 7.0)}
    relocated = load(fitted / "model", device="cpu", parts={"transcriber": str(moved)})
    assert relocated.model.frozen_parts["transcriber"].identity.source == str(moved)
    assert relocated.detect([files]) == load(fitted / "model", device="cpu").detect([files])
    weights = load_file(moved / "model.safetensors")
    name = "model.decoder.layers.0.fc1.weight"
    save_file({**weights, name: weights[name] + 1}, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"was trained with the transcriber '.*whisper' \(sha256 .*; use the same"):
        load(fitted / "model", device="cpu", parts={"transcriber": str(moved)})
    model = shutil.copytree(fitted / "model", tmp_path / "model")
    file = model / "mmprefix.yaml"
    saved = yaml.safe_load(file.read_text())
    saved["recipe"]["transcriber"]["init_args"]["model"] = str(tmp_path / "gone")
    file.write_text(yaml.safe_dump(saved))
    with pytest.raises(InputError, match=r"the transcriber is not at .*gone; .*--part transcriber=PLACE"):
        load(model, device="cpu")
    del saved["recipe"]["transcriber"]
    file.write_text(yaml.safe_dump(saved))
    with pytest.raises(InputError, match="was trained with the transcriber, which this model does not have"):
        load(model, device="cpu")
    with pytest.raises(InputError, match="part 'transcriber': this model has audio, signals, decoder"):
        load(model, device="cpu", parts={"transcriber": str(moved)})


def test_the_command_line_takes_the_folder_of_the_transcriber(
    spoken: SpeechSystem, fitted: Path, tmp_path: Path, capsys: Any
) -> None:
    moved = shutil.copytree(spoken.path("whisper"), tmp_path / "moved")
    words = ["caption", str(fitted / "model"), spoken.path("0.wav"), "--device", "cpu", "--part"]
    assert main([*words, f"transcriber={moved}"]) == 0
    capsys.readouterr()
    assert main([*words, f"transcriber={tmp_path}/nowhere"]) == 2
    assert "the transcriber is not at" in capsys.readouterr().err


def test_a_checkpoint_of_another_transcriber_or_task_prefix_is_refused(
    spoken: SpeechSystem, fitted: Path, tmp_path: Path, capfd: Any
) -> None:
    last = fitted / "checkpoints" / "last.ckpt"

    def message_of(change: Callable[[dict[str, Any]], Any]) -> str:
        config = recipe_of_all_parts(spoken)
        change(config["model"])
        return error_message("validate", spoken.recipe(config, tmp_path), capfd, ckpt_path=last)

    text = message_of(lambda model: model.pop("transcriber"))
    assert text == f"{last}: was trained with the transcriber, which this model does not have"
    text = message_of(lambda model: model["transcriber"]["init_args"].update(num_beams=2))
    assert text == f"{last}: the transcriber was trained with num_beams=1, but this one has num_beams=2"
    text = message_of(lambda model: model.pop("prefix"))
    assert f"{last}: holds a tensor 'task_prefix." in text


def test_a_dry_run_counts_the_parameters_of_every_part(spoken: SpeechSystem, tmp_path: Path, capfd: Any) -> None:
    assert run("fit", spoken.recipe(recipe_of_all_parts(spoken), tmp_path), dry_run=True) == 0
    output = capfd.readouterr()
    lines = {line[:24].strip(): line.split() for line in (output.out + output.err).splitlines()}
    assert lines["task prefix"][2:] == ["Deep", "1,512", "1,512"]  # 3 * 32, 33 * 8, 9 * 2 * 2 * 32
    assert lines["transcriber"][1] == "Transcriber"
    assert lines["transcriber"][-1] == lines["decoder"][-1] == "0"
    trained = [int(lines[name][-1].replace(",", "")) for name in ("audio mapper", "signals mapper", "task prefix")]
    assert int(lines["all"][-1].replace(",", "")) == sum(trained)
    assert not list(tmp_path.rglob("*.ckpt"))
