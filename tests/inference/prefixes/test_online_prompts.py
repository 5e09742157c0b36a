"""Online prompts: a step lowers the entropy of the surest views, the buffer stays small, the model keeps its bits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.inference.prefixes.addition import moved, prefix_of
from mmprefix.inference.prefixes.online_prompts import OnlinePrompts
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.model import PrefixLM
from mmprefix.types import Batch
from tiny.decoders import save_decoder
from tiny.fits import text_batch

CHOICES = ["a dog", "some rain", "the roof"]


def views(*prompts: str) -> Batch:
    return replace(text_batch(["-"] * len(prompts)), prompts=list(prompts))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PrefixLM:
    decoder = CausalDecoder(save_decoder(tmp_path_factory.mktemp("decoder"), "llama", sharp=2.0)).eval()
    torch.manual_seed(0)
    return PrefixLM({}, decoder, partial(DeepTable, length=3, std=0.5))


def test_the_entropy_is_that_of_the_mean_of_the_surest_views(model: PrefixLM) -> None:
    rows = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.34, 0.33, 0.33], [0.1, 0.8, 0.1]])
    each = OnlinePrompts(model, CHOICES, surest=0.5)
    mean = (rows[1] + rows[3]) / 2  # the two of the lowest entropy
    entropy, gap = each.measures(rows.log())
    assert torch.allclose(each.mean(rows.log()).exp(), mean)
    assert float(entropy) == pytest.approx(float(-(mean * mean.log()).sum()), rel=1e-5)
    assert float(gap) == pytest.approx(0.5 - 0.425, abs=1e-5)


def test_a_step_lowers_the_entropy_and_the_buffer_keeps_its_size(model: PrefixLM) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    each = OnlinePrompts(model, CHOICES, buffer=2, surest=0.5, lr=0.05)
    first = views("the cat", "the cat runs", "a cat", "cat")
    prefix = prefix_of(model, first)
    with torch.no_grad():
        start, _ = each.measures(each.log_probs(first, prefix))
    answer = each.choose(first)
    assert float(answer.exp().sum()) == pytest.approx(1)
    with torch.no_grad():
        after, _ = each.measures(each.log_probs(first, moved(prefix, each.prompts[0])))
    assert after < start
    assert each.uses == [1]
    each.choose(first)  # the prompt is surer of the same input than the trained prefix is
    assert each.uses == [2]
    for text in ("a bell", "the old roof falls", "rain rain on", "hill", "loudly a dog"):
        each.choose(views(text, f"{text} {text}"))
    assert len(each.prompts) == len(each.uses) <= 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_options_are_refused_by_name(model: PrefixLM) -> None:
    with pytest.raises(InputError, match="buffer 0"):
        OnlinePrompts(model, CHOICES, buffer=0)
    with pytest.raises(InputError, match="two or more"):
        OnlinePrompts(model, ["a"])
