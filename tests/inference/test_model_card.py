"""Model card: its example code runs, its metrics and tags are those of the task."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from mmprefix.inference.model_card import model_card
from mmprefix.model import PrefixLM
from mmprefix.saved_model import Captioning, Detection, ModelSettings, TrainingRecord, Understanding
from mmprefix.slu.schema import portable
from mmprefix.weights.source import Provenance
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


PIPELINES = {
    ("image", "captioning"): "image-to-text",
    ("audio", "captioning"): "automatic-speech-recognition",
    ("both", "captioning"): "image-to-text",
    ("reads", "captioning"): "text-generation",
    ("hears", "spoken-language-understanding"): "automatic-speech-recognition",
    ("reads", "spoken-language-understanding"): "text-generation",
    ("modular", "spoken-language-understanding"): "automatic-speech-recognition",
    ("detects", "speech-detection"): "audio-classification",
    ("audio", "speech-detection"): "audio-classification",
}


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
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "mmprefix"
    assert front["tags"] == ["mmprefix", "prefix-tuning", tag]
    assert front["pipeline_tag"] == PIPELINES[kind, tag]
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


def test_the_model_hub_s_own_reader_reads_the_card(parts: dict[str, Path], tmp_path: Path) -> None:
    """``huggingface_hub`` parses licence, base models, languages and results as they were written."""
    model = tiny_models.build_model(parts, "image")
    model.decoder.identity = Provenance("openai-community/gpt2", "a1" * 20, "0" * 64)
    samples = [{"input": "a.jpg", "written": "a dog | a cat\nruns", "reference": "ein Hund läuft"}]
    figures = {"loss": 0.5, "cider_d": float("nan"), "bleu_4": 0.25}
    record = TrainingRecord(["train: a.jsonl", "val.jsonl"], "test", figures, samples)
    settings = ModelSettings(trained=record, license="cc-by-4.0", language=["en", "de"])
    text = model_card(model, settings)
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    data: Any = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.language, data.library_name) == ("cc-by-4.0", ["en", "de"], "mmprefix")
    assert (data.base_model, data.pipeline_tag) == (["openai-community/gpt2"], "image-to-text")
    results = {result.metric_name: result.metric_value for result in data.eval_results}
    assert results == {"loss": 0.5, "bleu_4": 0.25}
    assert {result.dataset_name for result in data.eval_results} == {"train: a.jsonl, val.jsonl"}
    assert "| a.jpg | a dog \\| a cat runs | ein Hund läuft |" in text
    assert "Licence of the trained tensors: cc-by-4.0" in text


def test_a_card_of_nothing_known_is_valid(parts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(model_card(tiny_models.build_model(parts, "audio"), ModelSettings()))
    data: Any = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.license_name, data.language, data.eval_results) == ("other", "not-stated", None, None)
