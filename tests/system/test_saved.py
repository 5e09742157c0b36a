"""Backward compatibility: models and a checkpoint saved by the code of commit 80e4e2b give the recorded results.

``tests/saved/README.md`` describes them.
"""

from __future__ import annotations

import csv
import json
import math
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mmprefix

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning warns about trainings this small
SAVED = Path(__file__).resolve().parents[1] / "saved"
ANSWERS: dict[str, Any] = json.loads((SAVED / "answers.json").read_text())
CAPTIONS = ("picture", "sound", "clipcap", "prefix_aac")
RECIPES = ("picture", "sound", "whisper", "detection", "clipcap", "prefix_aac")


def near(values: Any) -> Any:
    """Value that compares equal within 5e-4 of it; near zero, within the rounding error of float32.

    Spectra of silence are logarithms of rounding errors, which differ from processor to processor (3.5e-4 was seen).
    """
    return pytest.approx(values, rel=5e-4, abs=2e-5)


def part_folders(name: str) -> dict[str, str]:
    """Present folder of each frozen part of a model."""
    return {part: str(SAVED / folder) for part, folder in ANSWERS[name]["parts"].items()}


def load_saved(name: str) -> Any:
    """Predictor of a saved model, its frozen parts loaded from their present folders."""
    return mmprefix.load(SAVED / "models" / name, device="cpu", parts=part_folders(name))


def input_files(name: str) -> list[str]:
    """Four input files of a model, in the order of the recorded answers."""
    return [str(SAVED / "data" / f"{n}.{'png' if name in ('picture', 'clipcap') else 'wav'}") for n in range(4)]


def manifest_rows() -> list[dict[str, Any]]:
    """Rows of the manifest of spoken orders."""
    return [json.loads(line) for line in (SAVED / "data" / "orders.jsonl").read_text().splitlines()]


def run_cli(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit code of ``python -m mmprefix WORDS``, run in this process."""
    monkeypatch.setattr(sys, "argv", ["mmprefix", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("mmprefix", run_name="__main__")
    return int(end.value.code or 0)


@pytest.fixture
def working_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy of the folder as the current directory: recipes name data and parts relative to it."""
    shutil.copytree(SAVED, tmp_path / "saved")
    monkeypatch.chdir(tmp_path / "saved")


# ------------------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions(name: str, tmp_path: Path) -> None:
    model, inputs = load_saved(name), input_files(name)
    expected = list(ANSWERS[name]["captions"].values())
    texts = [row["text"] for row in expected]
    candidates = model.candidates(inputs, num_return=1)
    assert [row[0].text for row in candidates] == texts
    assert [row[0].score for row in candidates] == near([row["score"] for row in expected])
    assert model(inputs) == texts
    for file, scores in zip(inputs, ANSWERS[name]["scores"].values(), strict=True):
        assert model(file) == texts[inputs.index(file)]
        assert model.score(file, list(scores)) == near(list(scores.values()))
    model.save(tmp_path / "again")
    assert mmprefix.load(tmp_path / "again", device="cpu")(inputs) == texts


def test_understanding(tmp_path: Path) -> None:
    model, inputs = load_saved("whisper"), input_files("whisper")
    expected = list(ANSWERS["whisper"]["understood"].values())
    assert_same_meanings(model.understand(inputs), expected)
    assert_same_meanings([model.understand(inputs[2])], expected[2:3])
    assert_same_meanings(model.understand(inputs, schema=SAVED / "data" / "home.yaml"), expected)
    model.save(tmp_path / "again")
    assert_same_meanings(mmprefix.load(tmp_path / "again", device="cpu").understand(inputs), expected)


def assert_same_meanings(actual: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Assert equal intents and slots, and equal scores up to rounding."""
    for meaning, recorded in zip(actual, expected, strict=True):
        assert (meaning["intent"], meaning["slots"]) == (recorded["intent"], recorded["slots"])
        assert meaning["scores"].keys() == recorded["scores"].keys()
        for kind, scores in recorded["scores"].items():
            assert meaning["scores"][kind] == near(scores)


def test_detection(tmp_path: Path) -> None:
    model, expected = load_saved("detection"), ANSWERS["detection"]["odds"]
    sounds, transcripts = input_files("detection"), [row["transcript"] for row in manifest_rows()]
    signals = [{"signals": row["signals"]} for row in manifest_rows()]
    both = [{"audio": file, **row} for file, row in zip(sounds, signals, strict=True)]
    assert model.detect(sounds) == near(expected["audio"])
    assert model.detect(signals) == near(expected["signals"])
    assert model.detect(context=transcripts) == near(expected["text"])
    assert model.detect(both, context=transcripts) == near(expected["audio+signals+text"])
    model.save(tmp_path / "again")
    assert mmprefix.load(tmp_path / "again", device="cpu").detect(sounds) == near(expected["audio"])


@pytest.mark.parametrize(("verb", "name"), [("caption", "clipcap"), ("understand", "whisper"), ("detect", "detection")])
def test_the_command_line_prints_the_recorded_answers(
    verb: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = [word for part, folder in part_folders(name).items() for word in ("--part", f"{part}={folder}")]
    words = (SAVED / "models" / name, *input_files(name), *moved, "--json", "--device", "cpu")
    assert run_cli(monkeypatch, verb, *words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    if verb == "caption":
        texts = [line["candidates"][0]["text"] for line in lines]
        assert texts == [row["text"] for row in ANSWERS[name]["captions"].values()]
    elif verb == "understand":
        assert_same_meanings(lines, list(ANSWERS[name]["understood"].values()))
    else:
        assert [line["score"] for line in lines] == near(ANSWERS[name]["odds"]["audio"])


# ---------------------------------------------------------------------------------------------------------- training


def metric(name: str) -> list[float]:
    """Column ``name`` of the training's metrics.csv in the current directory, first step to last."""
    with Path("runs/training/logs/version_0/metrics.csv").open() as lines:
        return [float(row[name]) for row in csv.DictReader(lines) if row.get(name)]


def assert_same_tensors(actual: dict[str, Tensor], expected: list[dict[str, Any]]) -> None:
    """Assert that each recorded tensor occurs once, under any name, and no other tensor does."""
    left = list(actual.values())
    for record in expected:
        matches = [number for number, tensor in enumerate(left) if equals_record(tensor, record)]
        assert matches, record
        left.pop(matches[0])
    assert not left


def equals_record(tensor: Tensor, record: dict[str, Any]) -> bool:
    """Return True if shape, Euclidean norm and eight evenly spaced elements are the recorded ones."""
    flat = tensor.flatten()
    elements = flat[torch.linspace(0, len(flat) - 1, 8, dtype=torch.float64).long()].tolist()
    pairs = zip([float(flat.norm()), *elements], [record["norm"], *record["values"]], strict=True)
    return list(tensor.shape) == record["shape"] and all(
        math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4) for a, b in pairs
    )


@pytest.mark.usefixtures("working_copy")
def test_a_stopped_training_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint holds step 6 of 12; the other six end with the recorded losses and tensors."""
    expected = ANSWERS["training"]
    words = ("--config", "recipes/training.yaml", "--ckpt_path", "stopped.ckpt")
    assert run_cli(monkeypatch, "fit", *words) == 0
    assert len(expected["train/loss"]) == 6
    assert metric("train/loss") == pytest.approx(expected["train/loss"], rel=1e-4)
    assert metric("val/loss") == pytest.approx(expected["val/loss"], rel=1e-4)
    assert_same_tensors(load_file("runs/training/model/model.safetensors"), expected["tensors"])


@pytest.mark.usefixtures("working_copy")
def test_an_uninterrupted_training_ends_with_the_same_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ANSWERS["training"]
    assert run_cli(monkeypatch, "fit", "--config", "recipes/training.yaml") == 0
    assert len(metric("train/loss")) == 12
    assert metric("train/loss")[6:] == pytest.approx(expected["train/loss"], rel=1e-4)
    assert_same_tensors(load_file("runs/training/model/model.safetensors"), expected["tensors"])


@pytest.mark.usefixtures("working_copy")
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_with_old_class_paths_trains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", "--save_to=runs/model")
    assert run_cli(monkeypatch, "fit", "--config", f"recipes/{name}.yaml", *words) == 0
    assert mmprefix.load("runs/model", device="cpu").device.type == "cpu"


@pytest.mark.usefixtures("working_copy")
def test_a_recipe_of_further_old_class_paths_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_cli(monkeypatch, "fit", "--config", "recipes/others.yaml", "--dry_run") == 0
