"""What was saved with the code of commit 80e4e2b loads, answers and trains on as it did (see ``saved/README.md``)."""

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

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning, about small trainings
SAVED = Path(__file__).resolve().parent / "saved"
ANSWERS: dict[str, Any] = json.loads((SAVED / "answers.json").read_text())
CAPTIONS = ("picture", "sound", "clipcap", "prefix_aac")
RECIPES = ("picture", "sound", "whisper", "detection", "clipcap", "prefix_aac")


def near(values: Any) -> Any:
    """Equal within a ten-thousandth; log-probabilities next to zero within the last digits of float32."""
    return pytest.approx(values, rel=1e-4, abs=2e-5)


def parts(name: str) -> dict[str, str]:
    """Where the frozen parts of a model are now."""
    return {part: str(SAVED / place) for part, place in ANSWERS[name]["parts"].items()}


def load(name: str) -> Any:
    """A saved model, its frozen parts found where they are now."""
    return mmprefix.load(SAVED / "models" / name, device="cpu", parts=parts(name))


def files(name: str) -> list[str]:
    """The inputs of a model, in order."""
    return [str(SAVED / "data" / f"{n}.{'png' if name in ('picture', 'clipcap') else 'wav'}") for n in range(4)]


def orders() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SAVED / "data" / "orders.jsonl").read_text().splitlines()]


def shell(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of ``python -m mmprefix WORDS``, run in this process."""
    monkeypatch.setattr(sys, "argv", ["mmprefix", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("mmprefix", run_name="__main__")
    return int(end.value.code or 0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, and the current directory: recipes name data and parts from there."""
    shutil.copytree(SAVED, tmp_path / "saved")
    monkeypatch.chdir(tmp_path / "saved")
    return tmp_path / "saved"


# ------------------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions(name: str, tmp_path: Path) -> None:
    model, inputs = load(name), files(name)
    wanted = list(ANSWERS[name]["captions"].values())
    texts = [row["text"] for row in wanted]
    found = model.candidates(inputs, num_return=1)
    assert [row[0].text for row in found] == texts
    assert [row[0].score for row in found] == near([row["score"] for row in wanted])
    assert model(inputs) == texts
    for file, scores in zip(inputs, ANSWERS[name]["scores"].values(), strict=True):
        assert model(file) == texts[inputs.index(file)]
        assert model.score(file, list(scores)) == near(list(scores.values()))
    model.save(tmp_path / "again")
    assert mmprefix.load(tmp_path / "again", device="cpu")(inputs) == texts


def test_understanding(tmp_path: Path) -> None:
    model, inputs = load("whisper"), files("whisper")
    wanted = list(ANSWERS["whisper"]["understood"].values())
    same_meaning(model.understand(inputs), wanted)
    same_meaning([model.understand(inputs[2])], wanted[2:3])
    same_meaning(model.understand(inputs, schema=SAVED / "data" / "home.yaml"), wanted)
    model.save(tmp_path / "again")
    same_meaning(mmprefix.load(tmp_path / "again", device="cpu").understand(inputs), wanted)


def same_meaning(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert (one["intent"], one["slots"]) == (other["intent"], other["slots"])
        assert one["scores"].keys() == other["scores"].keys()
        for kind, scores in other["scores"].items():
            assert one["scores"][kind] == near(scores)


def test_detection(tmp_path: Path) -> None:
    model, wanted = load("detection"), ANSWERS["detection"]["odds"]
    inputs, said = files("detection"), [row["transcript"] for row in orders()]
    numbers = [{"signals": row["signals"]} for row in orders()]
    both = [{"audio": file, **row} for file, row in zip(inputs, numbers, strict=True)]
    assert model.detect(inputs) == near(wanted["audio"])
    assert model.detect(numbers) == near(wanted["signals"])
    assert model.detect(context=said) == near(wanted["text"])
    assert model.detect(both, context=said) == near(wanted["audio+signals+text"])
    model.save(tmp_path / "again")
    assert mmprefix.load(tmp_path / "again", device="cpu").detect(inputs) == near(wanted["audio"])


@pytest.mark.parametrize(("verb", "name"), [("caption", "clipcap"), ("understand", "whisper"), ("detect", "detection")])
def test_the_shell_says_the_same(
    verb: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = [word for part, there in parts(name).items() for word in ("--part", f"{part}={there}")]
    assert shell(monkeypatch, verb, SAVED / "models" / name, *files(name), *moved, "--json", "--device", "cpu") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    if verb == "caption":
        texts = [line["candidates"][0]["text"] for line in lines]
        assert texts == [row["text"] for row in ANSWERS[name]["captions"].values()]
    elif verb == "understand":
        same_meaning(lines, list(ANSWERS[name]["understood"].values()))
    else:
        assert [line["score"] for line in lines] == near(ANSWERS[name]["odds"]["audio"])


# ---------------------------------------------------------------------------------------------------------- training


def column(name: str) -> list[float]:
    """Figures of the run below the current directory, first to last."""
    with Path("runs/training/logs/version_0/metrics.csv").open() as lines:
        return [float(row[name]) for row in csv.DictReader(lines) if row.get(name)]


def same_tensors(found: dict[str, Tensor], wanted: list[dict[str, Any]]) -> None:
    """Each recorded tensor is there, under whatever name."""
    left = list(found.values())
    for record in wanted:
        places = [at for at, tensor in enumerate(left) if agrees(tensor, record)]
        assert places, record
        left.pop(places[0])
    assert not left


def agrees(tensor: Tensor, record: dict[str, Any]) -> bool:
    """Whether shape, Euclidean length, and eight numbers at equal distances are the recorded ones."""
    flat = tensor.flatten()
    numbers = flat[torch.linspace(0, len(flat) - 1, 8, dtype=torch.float64).long()].tolist()
    pairs = zip([float(flat.norm()), *numbers], [record["norm"], *record["values"]], strict=True)
    return list(tensor.shape) == record["shape"] and all(
        math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4) for a, b in pairs
    )


def test_the_stopped_training_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six of its twelve steps were made: the other six are, and end where they ended."""
    wanted = ANSWERS["training"]
    words = ("--config", "recipes/training.yaml", "--ckpt_path", "stopped.ckpt")
    assert shell(monkeypatch, "fit", *words) == 0
    assert len(wanted["train/loss"]) == 6
    assert column("train/loss") == pytest.approx(wanted["train/loss"], rel=1e-4)
    assert column("val/loss") == pytest.approx(wanted["val/loss"], rel=1e-4)
    same_tensors(load_file("runs/training/model/model.safetensors"), wanted["tensors"])


def test_the_whole_training_ends_there_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ANSWERS["training"]
    assert shell(monkeypatch, "fit", "--config", "recipes/training.yaml") == 0
    assert len(column("train/loss")) == 12
    assert column("train/loss")[6:] == pytest.approx(wanted["train/loss"], rel=1e-4)
    same_tensors(load_file("runs/training/model/model.safetensors"), wanted["tensors"])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_with_the_class_paths_of_then_runs(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", "--save_to=runs/model")
    assert shell(monkeypatch, "fit", "--config", f"recipes/{name}.yaml", *words) == 0
    assert mmprefix.load("runs/model", device="cpu").device.type == "cpu"


def test_the_other_class_paths(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell(monkeypatch, "fit", "--config", "recipes/others.yaml", "--dry_run") == 0
