"""Commands of the README and of docs/own_sounds.md in order; a hub cache holds tiny models under the recipes' names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from mmprefix.world.generate import make_samples
from tiny import decoders as tiny_decoders
from tiny import encoders as tiny_encoders
from tiny import pages
from tiny.hub import COMMIT, hub_model

ROOT = Path(__file__).resolve().parents[2]
SOUNDS = "docs/own_sounds.md"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """Block of the README that ``<!-- run: NAME -->``, or ``<!-- NAME -->``, stands above."""
    return pages.block("README.md", name)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Empty working directory, with a hub cache of tiny models under the names that the recipes load."""
    directory, cache, tiny = (tmp_path_factory.mktemp(name) for name in ("work", "hub", "tiny"))
    hub_model(cache, "laion/clap-htsat-unfused", tiny_encoders.save_clap(tiny / "clap", fused=False))
    hub_model(cache, "openai-community/gpt2", Path(tiny_decoders.save_decoder(tiny / "gpt2")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield directory


@pytest.fixture(scope="module")
def trained(workplace: Path) -> Path:
    """Run of the quick start's command, on fewer scenes."""
    command = block("quickstart").strip().split(" && ")[-1].removeprefix(".venv/bin/")
    less = "--data.scenes 24 --data.val_scenes 4 --data.test_scenes 6 --trainer.max_epochs 1"
    pages.run(f"{command} {less}")
    return workplace / "runs" / "quickstart"


@pytest.mark.slow
def test_quick_start_and_captions(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (trained / "model" / "model.safetensors").is_file()
    rows = [json.loads(line) for line in (trained / "samples" / "manifest.jsonl").read_text().splitlines()]
    assert {"image", "audio"} <= {key for row in rows for key in row}
    capsys.readouterr()
    pages.run(block("caption"))
    lines = capsys.readouterr().out.splitlines()
    sounds, pictures = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    assert all(line.startswith("runs/quickstart/samples/audio-") for line in sounds)
    assert all(len(json.loads(line)["candidates"]) == 1 for line in pictures)
    pages.run(block("folder"))
    table = Path("captions.csv").read_text(encoding="utf-8").splitlines()
    assert (table[0], len(table)) == ("file,caption,score", 1 + len(rows))


@pytest.mark.slow
def test_python(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block("python"), "README.md", "exec"), {})
    assert "Candidate(text=" in capsys.readouterr().out


@pytest.mark.slow
def test_own_folder(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (workplace / "runs/quickstart/samples").is_dir():
        make_samples(workplace / "runs/quickstart/samples")
    pages.run(pages.block(SOUNDS, "own"))
    output = capsys.readouterr().out
    assert "sounds/audio-0006.wav: " in output
    assert len((workplace / "runs/sounds/predictions.jsonl").read_text().splitlines()) == 2
    saved = (workplace / "runs/sounds/model/mmprefix.yaml").read_text()
    assert "openai-community/gpt2" in saved
    assert COMMIT in saved  # the revision of the loaded decoder
    pages.run(pages.block(SOUNDS, "encode"))
    (shard,) = (workplace / "features").rglob("*.safetensors")
    with safe_open(shard, "pt") as kept:
        assert len(kept.get_tensor("keys")) == 6  # each sound once


def test_evaluate(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages.run(block("evaluate"))
    assert "cider_d" in capsys.readouterr().out


def test_every_file_that_is_named_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_shipped_recipe_is_in_the_table() -> None:
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert f"(recipes/{recipe.name})" in README, recipe.name


def test_ci_and_readme_name_the_same_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for mark in ("quickstart", "test"):
        assert f"command {mark}" in script
        assert len(block(mark).strip().splitlines()) == 1
