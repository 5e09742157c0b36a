"""A retriever tuned by deep prompts: its loss by hand, what it learns on a tiny BERT, and what it writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmprefix.encoders.prompted import Prompted
from mmprefix.encoders.text import Text
from mmprefix.errors import InputError
from mmprefix.recipes.retrieve.train import RetrievePlan, contrast, draw, embed, fit, main, measure
from tiny.texts import save_sentence_encoder, save_text

GROUPS = [  # a tiny random BERT has no reason to put these together
    ["a dog runs", "the cat ."], ["a cat sleeps", "runs dog dog"], ["the dog sleeps .", "a a cat"],
    ["cat cat runs", ". the"], ["sleeps", "dog a ."], ["the the dog", "sleeps runs cat"],
]  # fmt: skip
PLAN = RetrievePlan(length=4, steps=80, batch_size=6, lr=0.03)


def test_the_loss_is_the_mean_of_each_pairs_share() -> None:
    torch.manual_seed(0)
    queries, passages = torch.randn(3, 5), torch.randn(3, 5)
    expected = 0.0
    for b in range(3):
        cosines = [float(queries[b] @ passages[n] / queries[b].norm() / passages[n].norm()) for n in range(3)]
        shares = [math.exp(cosine / 0.1) for cosine in cosines]
        expected -= math.log(shares[b] / sum(shares)) / 3
    assert contrast(queries, passages, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_prompts_alone_teach_a_frozen_encoder_what_belongs_together(tmp_path: Path) -> None:
    folder = str(save_text(tmp_path / "bert", "bert"))
    alone = Text(folder)
    torch.manual_seed(1)
    encoder = Prompted(Text(folder), PLAN.length)

    def loss() -> float:
        sides = [embed(encoder, [texts[n] for texts in GROUPS]) for n in range(2)]
        return contrast(sides[0], sides[1], PLAN.temperature).item()

    before, recall = loss(), measure(encoder, GROUPS)["r@1"]
    fit(encoder, GROUPS, PLAN)
    assert loss() < before - 0.03  # a random encoder has little that prompts could call up
    assert measure(encoder, GROUPS)["r@1"] >= recall
    bare = encoder.encoder.state_dict()
    assert all(torch.equal(bare[name], value) for name, value in alone.state_dict().items())
    assert not embed(encoder, ["a dog"]).requires_grad


def test_the_program_writes_prompts_and_figures(tmp_path: Path) -> None:
    folder = str(save_sentence_encoder(tmp_path / "bert"))
    rows = [
        {"id": f"{split}{n}", "split": split, "context": "a dog", "captions": texts}
        for split in ("train", "test")
        for n, texts in enumerate(GROUPS)
    ]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    plan = json.dumps({"length": 2, "steps": 3, "batch_size": 4})
    figures = main(["--manifest", str(manifest), "--encoder", folder, "--plan", plan, "--out", str(tmp_path / "out")])
    assert set(figures) == {"frozen", "prompted"}
    assert load_file(tmp_path / "out" / "prompts.safetensors")["prompts"].shape == (2, 2, 16)
    assert json.loads((tmp_path / "out" / "retriever.json").read_text())["test"] == figures


def test_too_few_texts_for_a_batch_are_refused() -> None:
    with pytest.raises(InputError, match="there are 6 groups of texts"):
        next(draw(GROUPS, RetrievePlan(batch_size=7)))
