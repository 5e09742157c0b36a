"""Examples of docs/writing_a_*.md and CONTRIBUTING.md: a mapper, an encoder, a decoder, an input kind, a verb, used."""

from __future__ import annotations

import importlib
import re
import sys
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmprefix import Predictor
from mmprefix.cli.main import VERBS, main
from mmprefix.decoders import CausalDecoder
from mmprefix.generation.options import GenerateOptions
from mmprefix.mappers.mlp import MLP
from mmprefix.media.kinds import KINDS, kind_of
from mmprefix.model import Branch, PrefixLM
from mmprefix.saved_model import ModelSettings
from mmprefix.types import Batch
from tiny.decoders import save_decoder

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/writing_a_mapper.md", "docs/writing_an_encoder.md", "docs/writing_a_decoder.md", "CONTRIBUTING.md")
TEXT = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
SETTINGS = ModelSettings(GenerateOptions(max_new_tokens=4))


def block(mark: str) -> str:
    """Fenced block below the comment ``mark``."""
    match = re.search(rf"<!-- run: {mark} -->\n```python\n(.*?)```", TEXT, re.DOTALL)
    assert match, f"no page has a block {mark!r}"
    return match[1]


@pytest.fixture
def page_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder with the modules of the page, on the import path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MMPREFIX_ALLOW", "low_rank,colours,lower_case")
    for mark in ("mapper low_rank.py", "encoder colours.py", "decoder lower_case.py"):
        (tmp_path / mark.split()[1]).write_text(block(mark))
    yield tmp_path
    for name in ("low_rank", "colours", "lower_case"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_decoder(tmp_path_factory.mktemp("gpt2"))


def texts(*targets: str) -> Batch:
    count = len(targets)
    return Batch({}, [""] * count, [[text] for text in targets], [""] * count, [str(n) for n in range(count)])


def test_a_mapper(page_modules: Path, gpt2: str) -> None:
    low_rank = importlib.import_module("low_rank").LowRank
    model = PrefixLM({}, CausalDecoder(gpt2), partial(low_rank, length=3, rank=2))
    model.text_loss(texts("a dog", "rain falls")).mean().backward()
    assert model.trained.keys() == {"task_prefix.left", "task_prefix.right"}
    assert all(parameter.grad is not None for parameter in model.trained_parameters().values())
    again = PrefixLM.from_recipe(model.recipe())
    assert again.recipe()["prefix"] == {
        "class_path": "low_rank.LowRank",
        "init_args": {"length": 3, "rank": 2, "std": 0.02},
    }


def test_an_encoder(page_modules: Path, gpt2: str) -> None:
    colours = importlib.import_module("colours").Colours
    model = PrefixLM({"image": Branch(colours(2), partial(MLP, length=2, hidden=4))}, CausalDecoder(gpt2))
    Predictor(model, SETTINGS).save(page_modules / "model")
    Image.new("RGB", (40, 30), (255, 0, 0)).save(page_modules / "red.png")
    saved: Any = Predictor(PrefixLM.from_recipe(model.recipe()), SETTINGS)
    assert isinstance(saved(page_modules / "red.png"), str)
    pixels = colours(2).preprocess(page_modules / "red.png", 0.0, None)
    assert torch.allclose(pixels.mean((1, 2)), torch.tensor([1.0, 0.0, 0.0]), atol=0.01)


def test_a_decoder(page_modules: Path, gpt2: str) -> None:
    decoder = importlib.import_module("lower_case").LowerCaseDecoder(gpt2)
    model = PrefixLM({}, decoder, partial(importlib.import_module("low_rank").LowRank, length=2))
    with torch.no_grad():
        assert torch.equal(model.text_loss(texts("A Dog")).nll, model.text_loss(texts("a dog")).nll)
        ((candidate,),) = model.generate(texts(""), SETTINGS.generate)
    assert candidate.text == candidate.text.lower()


def test_an_input_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    exec(compile(block("kind"), "CONTRIBUTING.md", "exec"), names)
    monkeypatch.setitem(KINDS, "points", names["points"])  # pyright: ignore[reportArgumentType]
    (tmp_path / "good.xyz").write_text("0 0 1\n1 0 1\n")
    (tmp_path / "bad.xyz").write_text("0 0\n")
    assert kind_of(tmp_path / "good.xyz") == "points"
    infos = [KINDS["points"].inspect(tmp_path / name, 0.0, None, False).fault for name in ("good.xyz", "bad.xyz")]
    assert infos == [None, f"{tmp_path / 'bad.xyz'}: no points"]


def test_a_verb(tmp_path: Path, gpt2: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = types.ModuleType("mmprefix_size")
    exec(compile(block("verb"), "CONTRIBUTING.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "mmprefix_size", module)
    monkeypatch.setitem(VERBS, "size", ("mmprefix_size", "how much was trained"))
    model = PrefixLM({}, CausalDecoder(gpt2), partial(importlib.import_module("mmprefix.mappers.learned").Learned))
    Predictor(model, SETTINGS).save(tmp_path / "model")
    assert main(["size", str(tmp_path / "model")]) == 0
    assert capsys.readouterr().out == f"{10 * model.decoder.width:,} trained parameters\n"
