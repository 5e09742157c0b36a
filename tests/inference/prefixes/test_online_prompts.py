"""Online prompts: a step lowers the entropy of the surest views, the buffer stays small, the model keeps its bits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.inference.prefixes.addition import moved, prefix_of
from mmprefix.inference.prefixes.online_prompts import OnlinePrompts, entropy_of
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


def test_the_entropy_of_a_step_is_that_of_the_mean_of_the_surest_views(model: PrefixLM) -> None:
    rows = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.34, 0.33, 0.33], [0.1, 0.8, 0.1]])
    each = OnlinePrompts(model, CHOICES, surest=0.5)
    mean = (rows[1] + rows[3]) / 2  # the two of the lowest entropy
    assert torch.allclose(each.mean(rows.log()).exp(), mean)
    assert float(entropy_of(mean.log())) == pytest.approx(float(-(mean * mean.log()).sum()), rel=1e-5)


def test_a_prompt_is_measured_by_all_views_and_by_the_first_against_the_others(model: PrefixLM) -> None:
    rows = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]])
    entropy, difference = OnlinePrompts(model, CHOICES).measures(rows.log())
    assert float(entropy) == pytest.approx(float(-(rows * rows.log()).sum(1).mean()), rel=1e-5)
    assert float(difference) == pytest.approx(0.5 - (0.8 + 0.5) / 2, abs=1e-6)
    assert float(OnlinePrompts(model, CHOICES).measures(rows[:1].log())[1]) == 0  # there are no others


def test_a_step_lowers_the_entropy_and_the_buffer_keeps_its_size(model: PrefixLM) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    each = OnlinePrompts(model, CHOICES, buffer=2, surest=0.5, lr=0.05)
    first = views("the cat", "the cat runs", "a cat", "cat")
    prefix = prefix_of(model, first)
    with torch.no_grad():
        start = entropy_of(each.mean(each.log_probs(first, prefix)))
    answer = each.choose(first)
    assert float(answer.exp().sum()) == pytest.approx(1)
    with torch.no_grad():
        learned = each.log_probs(first, moved(prefix, each.prompts[0]))
    assert entropy_of(each.mean(learned)) < start
    assert torch.allclose(answer, learned[0], atol=1e-5)  # the input itself is answered, not the mean of its views
    for text in ("a bell", "the old roof falls", "rain rain on", "hill", "loudly a dog"):
        each.choose(views(text, f"{text} {text}"))
        assert len(each.prompts) <= 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Directed(OnlinePrompts):
    """Prompts that help where the test says so, by the order in which they entered."""

    helps: tuple[int, ...] = ()
    asked = 0

    def measures(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        self.asked += 1
        number = self.asked - 2  # -1: the trained prefix
        return torch.tensor(-float(number in self.helps)), torch.tensor(float(number in self.helps))

    def choose(self, views: Batch) -> Tensor:
        self.asked = 0
        return super().choose(views)


def test_prompts_that_help_go_to_the_end_and_the_longest_unused_leaves(model: PrefixLM) -> None:
    each, text = Directed(model, CHOICES, buffer=3, lr=0.0), views("the cat", "a cat")
    for _ in range(3):
        each.choose(text)
    _, second, third = each.prompts
    each.helps = (0,)
    each.choose(text)
    assert [psi.data_ptr() for psi in each.prompts[:2]] == [second.data_ptr(), third.data_ptr()]
    assert len(each.prompts) == 3
    each.helps = ()
    each.choose(text)  # a new one, for the second, which helped longest ago
    assert len(each.prompts) == 3
    assert each.prompts[0] is third


def test_options_are_refused_by_name(model: PrefixLM) -> None:
    with pytest.raises(InputError, match="buffer 0"):
        OnlinePrompts(model, CHOICES, buffer=0)
    with pytest.raises(InputError, match="two or more"):
        OnlinePrompts(model, ["a"])
