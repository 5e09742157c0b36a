"""The program that tunes a Mamba by state offsets: it learns, is saved, and loads to the same losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmprefix.errors import InputError
from mmprefix.recipes.state_offset.train import PUBLISHED, as_text, load_offset, loss_of, main, random_mamba
from mmprefix.world.manners import rows

PLAN = {"texts": 8, "held": 4, "steps": 12, "batch_size": 4}


@pytest.mark.parametrize("kind", ["state", "output"])
def test_it_learns_is_saved_and_loads_to_the_same_loss(kind: str, tmp_path: Path) -> None:
    figures = main(["--plan", json.dumps(PLAN | {"kind": kind}), "--out", str(tmp_path / "out")])
    assert figures["tuned"] < figures["frozen"] - 0.05
    assert figures["trained"] == 2 * 64 * (8 if kind == "state" else 1)
    lm = random_mamba(0)
    held = [as_text(None, f"{row['context']}\n", str(row["captions"][0])) for row in rows("train", 12)][8:]
    with torch.no_grad():
        assert loss_of(lm, held).item() == pytest.approx(figures["frozen"], rel=1e-5)
        offset = load_offset(tmp_path / "out", lm)
        assert loss_of(lm, held).item() == pytest.approx(figures["tuned"], rel=1e-5)
        offset.remove()
        assert loss_of(lm, held).item() == pytest.approx(figures["frozen"], rel=1e-5)


def test_the_loss_is_that_of_the_targets_alone() -> None:
    lm = random_mamba(1)
    text, longer = as_text(None, "ab", "c"), as_text(None, "a", "bcdef")
    assert text == ([97, 98, 99, 256], 2)
    with torch.no_grad():
        log_probs = lm(torch.tensor([text[0]])).logits[0].log_softmax(-1)
        expected = -(log_probs[1, 99] + log_probs[2, 256]).item() / 2
        assert loss_of(lm, [text]).item() == pytest.approx(expected, rel=1e-5)
        both = (2 * expected + 6 * loss_of(lm, [longer]).item()) / 8  # padding behind a text changes nothing
        assert loss_of(lm, [text, longer]).item() == pytest.approx(both, rel=1e-4)


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_dry_run_counts_the_trained_numbers_of_published_sizes(size: str) -> None:
    layers, width = PUBLISHED[size]
    words = ["--model", f"state-spaces/mamba-{size}-hf", "--dry_run"]
    assert main(words) == {"trained": layers * 2 * width * 16}
    assert main([*words, "--plan", '{"kind": "output"}']) == {"trained": layers * 2 * width}


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a dry run knows the sizes 130m"):
        main(["--model", "gpt2", "--dry_run"])
    with pytest.raises(InputError, match="there are 2 texts"):
        main(["--plan", json.dumps(PLAN | {"texts": 2})])
    main(["--plan", json.dumps(PLAN | {"steps": 1}), "--out", str(tmp_path / "out")])
    from transformers import MambaConfig, MambaForCausalLM

    other = MambaForCausalLM(MambaConfig(vocab_size=257, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(InputError, match="this model's another"):
        load_offset(tmp_path / "out", other)
