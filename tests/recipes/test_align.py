"""Alignment by contrast: CLIP's loss written out, the pairs of an epoch, a training that finds its pairs again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch.nn.functional import normalize

from mmprefix.encoders.aligned import AlignedSpace
from mmprefix.errors import InputError
from mmprefix.recipes.align import train
from mmprefix.recipes.align.train import AlignPlan, Pairs, contrastive_loss, draw, fit, measure
from tiny.encoders import save_timm
from tiny.texts import save_sentence_encoder


def synthetic(count: int = 60) -> Pairs:
    """Pictures and two texts of each, all linear views of the same five hidden numbers."""
    torch.manual_seed(1)
    hidden, owner = torch.randn(count, 5), torch.arange(count).repeat_interleave(2)
    image = hidden @ torch.randn(5, 12) + 0.05 * torch.randn(count, 12)
    text = (hidden @ torch.randn(5, 9))[owner] + 0.05 * torch.randn(2 * count, 9)
    return Pairs(image, text, owner)


def test_the_loss_is_clip_s_written_out() -> None:
    torch.manual_seed(0)
    image, text, scale = normalize(torch.randn(4, 3)), normalize(torch.randn(4, 3)), torch.tensor(7.0)
    total = 0.0
    for number in range(4):
        cosines = [7.0 * float(image[number] @ text[other]) for other in range(4)]
        total += math.log(sum(map(math.exp, cosines))) - cosines[number]
        cosines = [7.0 * float(image[other] @ text[number]) for other in range(4)]
        total += math.log(sum(map(math.exp, cosines))) - cosines[number]
    assert float(contrastive_loss(image, text, scale)) == pytest.approx(total / 8, abs=1e-6)


def test_an_epoch_has_each_picture_once_with_a_text_of_its_own() -> None:
    pairs = Pairs(torch.arange(10.0)[:, None], torch.arange(20.0)[:, None], torch.arange(10).repeat_interleave(2))
    batches = list(draw(pairs, AlignPlan(epochs=3, batch_size=5)))
    assert len(batches) == 6
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert sorted(torch.cat([first[0], second[0]]).flatten().tolist()) == list(range(10))
    assert all(torch.equal(text // 2, image) for image, text in batches)
    assert len({tuple(text.flatten().tolist()) for _, text in batches}) == 6


def test_a_training_finds_its_pairs_again() -> None:
    pairs = synthetic()
    plan = AlignPlan(width=8, drop=0.1, epochs=60, batch_size=30, lr=1e-2)
    before = measure(fit(pairs, AlignPlan(width=8, drop=0.1, epochs=1, batch_size=60, lr=1e-9)), pairs)
    after = measure(fit(pairs, plan), pairs)
    assert before["text_to_image/r@1"] < 0.2
    assert after["text_to_image/r@1"] > 0.9
    assert after["image_to_text/r@1"] > 0.9
    again = fit(pairs, plan)
    assert measure(again, pairs) == after
    rows = again.of("image")(pairs.image)
    assert torch.allclose(again.of("image").centre, rows.mean(0), atol=1e-6)


def test_a_batch_beyond_the_data_is_refused() -> None:
    with pytest.raises(InputError, match=r"plan\.batch_size 61: give a number from 2 to 60"):
        fit(synthetic(), AlignPlan(batch_size=61))


def test_the_program_writes_a_space_and_keeps_its_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for number, colour in enumerate(("red", "green", "blue", "white", "black", "gray")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{number}.png")
        captions = ["a dog runs", f"the {'cat' * (number + 1)} ."]
        rows.append({"image": f"{number}.png", "captions": captions, "split": ("train", "val")[number % 2]})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    timm, text = save_timm(tmp_path / "timm", "efficientnet"), save_sentence_encoder(tmp_path / "text")
    senses = {
        "image": {"class_path": "mmprefix.encoders.timm.Timm", "init_args": {"model": str(timm)}},
        "text": {"class_path": "mmprefix.encoders.text.Text", "init_args": {"model": str(text)}},
    }
    recipe = {"senses": senses, "plan": {"width": 4, "epochs": 2, "batch_size": 3}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    words = ["--config", "recipe.yaml", "--manifest", "manifest.jsonl", "--out", "space", "--plan", '{"epochs": 3}']
    train.main(words)
    figures = json.loads(capsys.readouterr().out)
    assert figures["plan"] == {**vars(AlignPlan()), "width": 4, "epochs": 3, "batch_size": 3}
    assert figures["pictures"] == 3
    assert set(figures["val"]) > {"text_to_image/r@1", "image_to_text/r@10", "gap"}
    shards = {file: file.stat().st_mtime_ns for file in (tmp_path / "features").rglob("*.safetensors")}
    first = AlignedSpace.load(tmp_path / "space").projections.state_dict()
    train.main(words)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "features").rglob("*.safetensors")} == shards
    second = AlignedSpace.load(tmp_path / "space").projections.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
