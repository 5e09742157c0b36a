"""Adversarial texts: the loss at changed embeddings of the prompts by hand, the ball, what such training gives."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.kv_cache.cache import cache_over
from mmprefix.mappers.dept import DecomposedPrompt
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.model import PrefixLM
from mmprefix.training.methods.adversarial_texts import AdversarialTexts
from mmprefix.types import Batch
from mmprefix.world.manners import rows
from tiny.captioning_system import quietly
from tiny.decoders import save_decoder
from tiny.fits import fit, prefix_task, text_batch

pytestmark = quietly
PROMPTS = ["the cat", "a bell rings twice", "on", "the old roof"]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(save_decoder(tmp_path_factory.mktemp("decoder"), "llama", sharp=2.0)).eval()


def batch_of(prompts: list[str] = PROMPTS) -> Batch:
    return text_batch(["a dog barks", "rain falls", "a hill", "loudly"][: len(prompts)], prompts=prompts)


def model_of(decoder: CausalDecoder, prefix: Any = DeepTable) -> PrefixLM:
    torch.manual_seed(0)
    return PrefixLM({}, decoder, partial(prefix, length=3, std=0.5))


def loss_by_hand(model: PrefixLM, batch: Batch, change: Tensor) -> Tensor:
    """Loss over all target tokens, each row alone through the network itself, its prompt's embeddings changed."""
    decoder: Any = model.decoder
    lm, losses = decoder.language_model.lm, list[Tensor]()
    for row, (prompt, (target,)) in enumerate(zip(batch.prompts, batch.targets, strict=True)):
        state = decoder.prefill(model.build_prefix({}, count=1))
        before = decoder.codec.prompt_ids(prompt, state.last_hidden is None)
        ids = before + decoder.codec.target_ids(prompt, target)
        embeds = lm.get_input_embeddings()(torch.tensor([ids]))
        embeds[:, : len(before)] += change[row, : len(before)]
        logits = lm(inputs_embeds=embeds, past_key_values=cache_over(state.cache)).logits[0]
        losses.append(cross_entropy(logits[len(before) - 1 : -1], torch.tensor(ids[len(before) :]), reduction="none"))
    return torch.cat(losses).mean()


def unit_of(decoder: Any) -> float:
    return float(decoder.language_model.lm.get_input_embeddings().weight.norm(dim=1).mean())


@pytest.mark.parametrize("prefix", [DeepTable, Learned])
def test_the_loss_is_that_of_the_changed_prompts(prefix: Any, decoder: CausalDecoder) -> None:
    model, batch = model_of(decoder, prefix), batch_of()
    each = AdversarialTexts(radius=0.4, steps=2)
    torch.manual_seed(1)
    change = each.worst(model, batch)
    torch.manual_seed(1)
    loss, figures = each.loss(model, batch, 0.0)
    if prefix is DeepTable:
        assert float(loss.detach()) == pytest.approx(float(loss_by_hand(model, batch, change).detach()), rel=1e-4)
    lengths = change.norm(dim=2) / (0.4 * unit_of(decoder))
    assert float(figures["change"]) == pytest.approx(float(lengths.sum() / (lengths > 0).sum()), rel=1e-3)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.trained_parameters().values())
    assert all(p.grad is None for p in decoder.parameters())


def test_one_step_goes_along_the_slope_of_each_word(decoder: CausalDecoder) -> None:
    model, batch = model_of(decoder), batch_of()
    change = AdversarialTexts(radius=0.4, steps=1).worst(model, batch)
    at = torch.zeros_like(change).requires_grad_()
    (slope,) = torch.autograd.grad(loss_by_hand(model, batch, at), [at])
    real = slope.norm(dim=2) > 0
    cosine = torch.cosine_similarity(change[real], slope[real], dim=-1)
    assert cosine.min() > 0.97  # but for the small noise at the beginning
    assert torch.allclose(change[real].norm(dim=1), torch.tensor(0.1 * unit_of(decoder)), rtol=0.02)


@pytest.mark.parametrize(("ball", "dims"), [("word", (2,)), ("text", (1, 2))])
def test_more_steps_do_more_harm_and_stay_in_the_ball(ball: Any, dims: tuple[int, ...], decoder: CausalDecoder) -> None:
    model, batch = model_of(decoder), batch_of()
    none = torch.zeros(4, 5, decoder.width)
    losses = [float(loss_by_hand(model, batch, none).detach())]
    for steps in (1, 4, 12):
        torch.manual_seed(2)
        each = AdversarialTexts(radius=0.5, ball=ball, steps=steps)
        change = each.worst(model, batch)
        assert change.norm(dim=dims).max() <= 0.5 * unit_of(decoder) * 1.001
        counts = [len(decoder.codec.prompt_ids(prompt, first=True)) for prompt in PROMPTS]
        assert not any(change[row, count:].any() for row, count in enumerate(counts))  # the caption stays as it is
        losses.append(float(loss_by_hand(model, batch, change).detach()))
    assert losses == sorted(losses)
    assert losses[-1] > losses[0] + 0.1


def test_updates_of_the_prefix_stay_beside_the_change(decoder: CausalDecoder) -> None:
    model = model_of(decoder, DecomposedPrompt)
    prefix = cast(DecomposedPrompt, model.task_prefix)
    torch.nn.init.normal_(prefix.right, std=0.3)
    batch, each = batch_of(), AdversarialTexts(radius=1e-6, steps=1)
    loss, _ = each.loss(model, batch, 0.0)
    assert float(loss.detach()) == pytest.approx(float(model.text_loss(batch).mean().detach()), rel=1e-4)


def test_training_at_the_worst_change_makes_it_less_bad(tmp_path: Path) -> None:
    decoder, attack = CausalDecoder("mmprefix:world/frozen/decoder").eval(), AdversarialTexts(radius=0.3, steps=6)
    scenes = rows("train", 8)
    prompts, captions = [f" {row['context']}\n" for row in scenes], [row["captions"][0] for row in scenes]
    batch, harm = text_batch(captions, prompts=prompts), list[float]()
    for objective in (None, AdversarialTexts(radius=0.3, steps=2)):
        task = prefix_task(decoder, partial(DeepTable, length=6, std=0.3), rate=0.1, objective=objective)
        fit(task, tmp_path, [batch] * 12, epochs=2)
        assert float(task.model.text_loss(batch).mean().detach()) < 2.0  # both learn the captions
        torch.manual_seed(3)
        harm.append(float(attack.loss(task.model, batch, 0.0)[0].detach()))
    assert harm[1] < harm[0] - 0.5


def test_what_cannot_be_changed_is_refused(decoder: CausalDecoder) -> None:
    with pytest.raises(InputError, match="radius 0"):
        AdversarialTexts(radius=0.0)
    with pytest.raises(InputError, match=r"AdversarialTexts\.ball"):
        AdversarialTexts(ball=cast(Any, "sentence"))
    batch = replace(batch_of(), prompts=["the cat", "", "on", "a"])
    with pytest.raises(InputError, match="a row has no prompt to change"):
        AdversarialTexts().loss(model_of(decoder), batch, 0.0)
