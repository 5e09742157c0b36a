"""Study of device-directed speech: inputs by subset, from its command line to its table, on tiny parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.studies import device_directed
from tiny import speech_system
from tiny.speech_system import recipe_part

LABELS = ("directed", "non-directed")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with the data set ``spoken``, whose recipe stands where the study looks for recipes."""
    spoken = speech_system.build(tmp_path / "spoken")
    rows = [json.loads(line) for line in (spoken.folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        row["signals"].append(1.5)
        row |= {"label": LABELS[number % 2], "split": "train" if number < 4 else "test"}
    transcribed = [row | {"asr": row["context"]} for row in rows]
    plain = [{name: row[name] for name in ("id", "audio", "label", "split")} for row in rows]
    for file, content in (("spoken", plain), ("spoken_asr", transcribed)):
        (tmp_path / file).mkdir(exist_ok=True)
        content = [row | {"audio": str(spoken.folder / row["audio"])} for row in content]
        (tmp_path / file / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    config = spoken.config(**model_options(spoken))
    config["data"]["init_args"] = {"root": "spoken", "target": "label", "context": ["asr"], "batch_size": 4}
    (tmp_path / "spoken.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.setattr(device_directed, "RECIPES", tmp_path)
    return tmp_path


def model_options(spoken: speech_system.SpeechSystem) -> dict[str, Any]:
    """Options of a model that reads sound, signals and a transcript, and would transcribe by itself."""
    hears = recipe_part("encoders.whisper.Whisper", model=spoken.path("whisper"))
    mapper = recipe_part("mappers.mlp.MLP", length=1, hidden=4, layers=2)
    return {
        "branches": {
            "audio": {"encoder": hears, "mapper": mapper},
            "signals": {"encoder": recipe_part("encoders.signals.Signals"), "mapper": mapper},
        },
        "decoder": recipe_part("decoders.CausalDecoder", model=spoken.path("decoder")),
        "wording": {"context": "said: {context}\nanswer:"},
        "transcriber": recipe_part("transcriber.Transcriber", model=spoken.path("whisper")),
        "modality_dropout": 0.3,
        "answers": list(LABELS),
    }


def run(data: Path, *words: str) -> dict[str, Any]:
    """Results of the study for one seed."""
    return device_directed.main([str(data), "--sets", "spoken", "--seeds", "0", *words])["spoken"]


def test_sound_alone_needs_no_transcript(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(data, "--models", "own", "--only", "audio", "--out", str(data / "figures.json"))
    assert json.loads((data / "figures.json").read_text(encoding="utf-8"))["spoken"] == results
    assert (results["test"], results["targets"]) == (4, 2)
    assert list(results["runs"]) == ["own audio"]
    assert list(results["logistic_regression"]) == ["spectrum"]
    assert 0 <= results["runs"]["own audio"][0]["eer"] <= 1
    assert "spoken: 4 test rows, 2 of them targets" in capsys.readouterr().out


def test_one_model_is_tested_on_every_subset(data: Path) -> None:
    results = run(data, "--models", "one", "--transcripts", str(data))
    assert list(results["runs"]) == [f"one {subset}" for subset in device_directed.SUBSETS]
    assert set(results["logistic_regression"]) == {"words", "spectrum"}


def test_what_a_subset_does_without_is_not_in_its_recipe(data: Path) -> None:
    recipe = yaml.safe_load((data / "spoken.yaml").read_text(encoding="utf-8"))
    changed = device_directed.change_recipe(recipe, ["audio"])
    assert list(changed["model"]["branches"]) == ["audio"]
    assert "transcriber" not in changed["model"]
    assert "context" not in changed["data"]["init_args"]
    assert "transcriber" in recipe["model"]  # the recipe itself stays
