"""Model card: its example code runs, its metrics and tags are those of the task."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmprefix.model import PrefixLM
from mmprefix.saved_model import Captioning, Detection, ModelSettings, TrainingRecord, Understanding
from mmprefix.slu.schema import portable
from tiny import models as tiny_models
from tiny import slu_system as tiny_slu_system
from tiny.slu_system import SluSystem

FIGURES = {
    "loss": 0.5, "eer": 0.125, "auc": 0.875, "threshold": -0.25, "exact_match": 0.75, "cider_d": 1.5,
    "audio+text/eer": 0.0625, "shuffle_gap": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> SluSystem:
    return tiny_slu_system.build(tmp_path_factory.mktemp("orders"))


def model_of(orders: SluSystem, parts: dict[str, Path], kind: str) -> PrefixLM:
    """Model of a case: captioning (image, audio, both) or understanding and detection over ``orders``."""
    if kind in ("image", "audio", "both"):
        return tiny_models.build_model(parts, *(("image", "audio") if kind == "both" else (kind,)))
    return {
        "hears": orders.whisper_model,
        "reads": orders.text_model,
        "modular": lambda: orders.text_model(transcribes=True),
        "detects": orders.detection_model,
    }[kind]()


CASES: list[tuple[str, str, str, str]] = [
    ("image", "captioning", 'model("picture.jpg")', ""),
    ("audio", "captioning", 'model("sound.wav")', ""),
    ("both", "captioning", 'model("sound.wav")', ""),
    ("reads", "captioning", 'model({}, context="what was said")', ""),
    ("hears", "spoken-language-understanding", 'model.understand("sound.wav")', "light_on"),
    ("reads", "spoken-language-understanding", 'model.understand(context="what was said")', "light_on"),
    ("modular", "spoken-language-understanding", 'model.understand("sound.wav")', "light_on"),
    (
        "detects",
        "speech-detection",
        'model.detect({"audio": "sound.wav", "signals": [0.5, 0.5, 0.5, 0.5]}, context="what was said")',
        "[",
    ),
    ("audio", "speech-detection", 'model.detect("sound.wav")', "["),
]


@pytest.mark.parametrize(("kind", "tag", "call", "output"), CASES)
def test_the_example_on_the_card_runs(
    kind: str, tag: str, call: str, output: str, orders: SluSystem, parts: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: Any,
) -> None:  # fmt: skip
    task = {
        "captioning": Captioning(),
        "spoken-language-understanding": Understanding(portable(orders.path("home.yaml")), "yesno"),
        "speech-detection": Detection(("true", "false")),
    }[tag]
    settings = ModelSettings(trained=TrainingRecord(["train.jsonl"], "test", FIGURES), task=task)
    directory = orders.save(tmp_path / "this directory", model_of(orders, parts, kind), settings)
    card = (directory / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1]) == {
        "library_name": "mmprefix",
        "tags": ["mmprefix", "prefix-tuning", tag],
    }
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert f"print({call})" in code
    shutil.copy(orders.sounds[0], tmp_path / "sound.wav")
    tiny_models.random_picture(0).save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(code, {})
    assert output in capsys.readouterr().out
    shown = dict(re.findall(r"^\| (\S+) \| (-?\d+\.\d+) \|$", card, re.MULTILINE))
    kept = {
        "captioning": {"loss", "cider_d", "exact_match"},
        "spoken-language-understanding": {"loss", "exact_match"},
        "speech-detection": {"loss", "eer", "auc", "threshold", "exact_match", "audio+text/eer"},
    }[tag]
    assert shown == {name: f"{value:.4f}" for name, value in FIGURES.items() if name in kept}
    assert "Measured on test" in card
    if tag == "spoken-language-understanding":
        assert "Schema: home; intents are asked for by yesno." in card
    if tag == "speech-detection":
        assert "the log odds of 'true' against 'false'" in card
