"""Recipes of pretrained parts from the shell, with few rows: untrained, trained, saved, used on new inputs, scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from PIL import Image

from tiny.media import tone
from tiny.shell import Shell

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
RECIPES = ROOT / "recipes"
MODELS = ("efficientnet-lite2", "smollm2-135m-instruct", "all-minilm-l6-v2", "whisper-base")
FITTED = ("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--data.batch_size", "4")

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, real_model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Working folder of its own; the test skips by name where a model or the data are not there."""
    for name in MODELS:
        real_model(name)
    if not DATA.is_dir():
        pytest.skip("../shared/data is not there")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def _few(name: str, counts: dict[str, int]) -> Path:
    """Manifest of the first rows of each split of a data set, with the columns ``split`` and their own."""
    kept: list[dict[str, Any]] = []
    for line in (DATA / name / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if sum(row["split"] == other["split"] for other in kept) < counts.get(row["split"], 0):
            kept.append(row)
    file = Path("manifest.jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return file


def _lines(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def test_photographs_to_captions(shell: Shell) -> None:
    rows = _few("flickr8k_mini", {"train": 4, "val": 1, "test": 1})
    place = ("--media-root", DATA / "flickr8k_mini")
    assert shell("prepare", rows, *place, "--full-stop", "--out", "data")[0] == 0
    recipe, encoder = RECIPES / "flickr8k_mini.yaml", "models:all-minilm-l6-v2"
    more = (
        "--model.sentence_encoder",
        encoder,
        "--model.generate.num_beams",
        "1",
        "--model.generate.max_new_tokens",
        "8",
    )
    code, out, err = shell("fit", "--config", recipe, "--data.root", "data", *FITTED, *more)
    assert code == 0, err
    assert "sbert_sim" in out + err
    model = Path("runs/flickr8k_mini/model")
    assert sum(file.stat().st_size for file in model.rglob("*")) < 12e6

    picture = Image.open(DATA / "flickr8k_mini" / _lines("manifest.jsonl")[-1]["image"])
    for name, mode in (("grey.png", "L"), ("print.jpg", "CMYK")):
        picture.convert(mode).save(name)
    soundfile.write("sound.wav", tone(), 16000)
    Path("empty.jpg").touch()
    assert "reads image through its mapper alone" in shell.refuses("caption", recipe, "grey.png")
    code, out, err = shell("caption", model, "grey.png", "print.jpg", "sound.wav", "empty.jpg")
    assert code == 3
    assert [line.partition(":")[0] for line in out.splitlines()] == ["grey.png", "print.jpg"]
    assert "sound.wav: is a sound, but this model reads a picture" in err
    assert "empty.jpg: is empty" in err

    assert shell("caption", model, "--manifest", "data/test.jsonl", "--out", "captions.jsonl")[0] == 0
    assert all(line["caption"] for line in _lines("captions.jsonl"))
    words = ("captions.jsonl", "--metrics", "rouge_l,sbert_sim", "--sentence-encoder", encoder, "--json")
    code, out, err = shell("evaluate", *words)
    assert (code, set(json.loads(out)["scores"])) == (0, {"rouge_l", "sbert_sim"})


def test_speech_to_intents(shell: Shell) -> None:
    rows = _few("slurp_tts", {"train": 8, "val": 1, "test": 3})
    place, recipe = ("--media-root", DATA / "slurp_tts"), RECIPES / "slu_whisper_tts.yaml"
    asked = ("--manifest", rows, "--split", "test", *place)
    assert shell("understand", recipe, *asked, "--out", "untrained.jsonl")[0] == 0
    code, _, err = shell("fit", "--config", recipe, "--data.root", ".", *place, *FITTED)
    assert code == 0, err
    model = Path("runs/slu_whisper_tts/model")
    assert shell("understand", model, *asked, "--out", "trained.jsonl")[0] == 0
    before, after = _lines("untrained.jsonl"), _lines("trained.jsonl")
    assert [line["reference"] for line in before] == [line["reference"] for line in after]
    assert [line["scores"] for line in before] != [line["scores"] for line in after]
    alone = [shell("understand", model, DATA / "slurp_tts" / row["audio"])[1] for row in _lines(rows.name)[-3:]]
    assert [text.rpartition(": ")[2].partition("(")[0] for text in alone] == [line["intent"] for line in after]
    code, out, _ = shell("evaluate", "trained.jsonl", "--task", "slu", "--json")
    assert (code, json.loads(out)["items"]) == (0, 3)
