"""Every recipe of ``recipes/methods/speech`` trains on a tiny speech system, is saved, and scores the same loaded."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import mmprefix
from mmprefix.cli.main import main
from mmprefix.decoders.composed import ComposedDecoder
from tiny.encoders import save_ast
from tiny.speech_system import SpeechSystem, recipe_part

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "methods" / "speech"
BASES = {"cross_prefix": "whisper", "deep_prompts_whisper": "whisper", "deep_prompts_ast": "decoder"}
TRAINED = {  # starts of the names of what is trained
    "cross_prefix": {"task_prefix"},
    "deep_prompts_whisper": {"encoders.audio.prompts", "task_prefix"},
    "deep_prompts_ast": {"encoders.audio.prompts", "mappers.audio"},
}


def base_of(name: str, spoken: SpeechSystem) -> dict[str, Any]:
    """Recipe that a method's overlay is read after, on tiny parts."""
    whisper = recipe_part("encoders.whisper.Whisper", model=spoken.path("whisper"))
    if BASES[name] == "whisper":
        decoder = recipe_part("decoders.CrossDecoder", model=spoken.path("whisper"))
        table = recipe_part("mappers.p_tuning_v2.DeepTable", length=2)
        return spoken.config(branches={"audio": {"encoder": whisper}}, decoder=decoder, prefix=table)
    mapper = recipe_part("mappers.mlp.MLP", length=2, hidden=4)
    decoder = recipe_part("decoders.CausalDecoder", model=spoken.path("decoder"))
    return spoken.config(branches={"audio": {"encoder": whisper, "mapper": mapper}}, decoder=decoder)


def overlay_of(name: str, spoken: SpeechSystem, folder: Path) -> Path:
    """The method's own file, with tiny parts in the place of those of the hub."""
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    if "AST" in text:
        text = text.replace("MIT/ast-finetuned-audioset-10-10-0.4593", str(save_ast(folder / "ast")))
    file = folder / f"{name}.yaml"
    file.write_text(text.replace("openai/whisper-small", spoken.path("whisper")), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.yaml")))
def test_a_method_of_speech_trains_and_is_saved(name: str, spoken: SpeechSystem, tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.yaml", overlay_of(name, spoken, tmp_path)
    config: dict[str, Any] = base_of(name, spoken) | {"no_report": True}
    config["trainer"] |= {"default_root_dir": str(tmp_path / "run")}
    base.write_text(yaml.safe_dump(config), encoding="utf-8")
    saved = tmp_path / "model"
    assert main(["fit", "--config", str(base), "--config", str(overlay), "--save_to", str(saved)]) == 0
    model = mmprefix.load(saved, device="cpu")
    starts = TRAINED[name]
    assert {start for start in starts for key in model.model.trained if key.startswith(start)} == starts
    assert all(key.startswith(tuple(starts)) for key in model.model.trained)
    rows = [json.loads(line) for line in (spoken.folder / "val.jsonl").read_text().splitlines()]
    texts = [row["target"] for row in rows]
    scores = model.score([spoken.path(row["audio"]) for row in rows], texts)
    decoder = model.model.decoder
    assert isinstance(decoder, ComposedDecoder)
    tokens = sum(len(decoder.codec.target_ids("", text)) for text in texts)
    (metrics,) = (tmp_path / "run").rglob("metrics.csv")
    with metrics.open() as lines:
        (logged,) = [float(row["val/loss"]) for row in csv.DictReader(lines) if row["val/loss"]]
    assert -sum(scores) / tokens == pytest.approx(logged, rel=1e-3)
