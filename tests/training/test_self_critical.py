"""Self-critical training: the baseline, the gradient it stands for, a reward that rises, and refused settings."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from mmprefix.decoders.base import TextLoss
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError
from mmprefix.kv_cache.state import State
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.model import PrefixLM
from mmprefix.training.self_critical import SelfCritical, advantages, caption_reward
from mmprefix.training.task import PrefixTask
from mmprefix.types import Batch
from tiny.batches import make_batch
from tiny.captioning_system import CaptioningSystem, metric_values, quietly, run
from tiny.decoders import save_decoder

pytestmark = quietly

CAPTIONS = [["a dog barks loudly.", "the dog barks."], ["rain falls on the roof.", "some rain falls."]]


def test_the_baseline_is_the_mean_of_the_other_samples() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    assert advantages(rewards).tolist() == [[1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5]]
    assert advantages(torch.full((2, 4), 3.0)).abs().max() == 0


@pytest.fixture
def model(tmp_path: Path) -> PrefixLM:
    torch.manual_seed(0)
    decoder = CausalDecoder(save_decoder(tmp_path / "gpt2", "gpt2"), frozen=False)
    return PrefixLM({}, decoder, partial(DeepTable, length=4))


def two_prompts() -> Batch:
    return replace(make_batch({}, ["one:", "two:"]), targets=CAPTIONS)


def test_the_reward_of_what_is_written_rises(model: PrefixLM) -> None:
    batch, reward = two_prompts(), caption_reward(CAPTIONS)
    optimizer = torch.optim.Adam(model.trained_parameters().values(), lr=3e-3)
    for _ in range(30):  # on the captions first, until it writes some of them
        optimizer.zero_grad()
        model.text_loss(batch).mean().backward()
        optimizer.step()
    rewards: list[float] = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, mean = SelfCritical(samples=8, max_new_tokens=16).loss(model, batch, reward)
        loss.backward()
        optimizer.step()
        rewards.append(mean)
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 1


def test_the_loss_is_that_of_the_tokens_that_were_drawn(model: PrefixLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that is cut has no end to learn, and one may be written in other tokens than a tokenizer would."""
    decoder, seen = model.decoder, list[list[list[int]]]()
    assert isinstance(decoder, ComposedDecoder)
    token_loss = decoder.token_loss

    def spy(state: State, ids: list[list[list[int]]]) -> TextLoss:
        seen.extend(ids)
        return token_loss(state, ids)

    monkeypatch.setattr(decoder, "token_loss", spy)
    torch.manual_seed(0)
    SelfCritical(samples=8, max_new_tokens=3).loss(model, two_prompts(), caption_reward(CAPTIONS))
    torch.manual_seed(0)
    state = decoder.append(model.prefill(two_prompts()), model.prompts(two_prompts()))
    drawn = decoder.search_tokens(state, SelfCritical(samples=8, max_new_tokens=3).draws, decoder.stop_ids())
    assert seen == [[ids for ids, _ in row] for row in drawn]
    assert any(len(ids) == 3 and ids[-1] not in decoder.stop_ids() for row in seen for ids in row)


def test_too_few_samples_or_captions_are_refused() -> None:
    with pytest.raises(InputError, match=r"self_critical\.samples 1: draw at least 2"):
        SelfCritical(samples=1)
    with pytest.raises(InputError, match=r"self_critical: temperature=0.0: must be above 0"):
        SelfCritical(temperature=0.0)
    with pytest.raises(InputError, match=r"self_critical: max_new_tokens=0"):
        SelfCritical(max_new_tokens=0)
    with pytest.raises(InputError, match="training rows with captions"):
        caption_reward([["a dog"], []])


def test_a_recipe_trains_on_rewards_from_a_saved_model(tiny: CaptioningSystem, tmp_path: Path) -> None:
    config = tiny.config()
    assert run("fit", tiny.recipe(config, tmp_path / "first"), save_to=tmp_path / "model") == 0
    config["model"]["start_from"] = str(tmp_path / "model")
    config["model"]["self_critical"] = {"samples": 3, "max_new_tokens": 5}
    assert run("fit", tiny.recipe(config, tmp_path / "second"), save_to=tmp_path / "better") == 0
    rewards = metric_values(tmp_path / "second", "train/reward")
    assert rewards
    assert all(0 <= value <= 10 for value in rewards)


def test_a_task_without_it_is_trained_on_captions(model: PrefixLM) -> None:
    task = PrefixTask({}, model.decoder, prefix=partial(DeepTable, length=4))
    assert task.self_critical is None


def test_answers_to_questions_are_refused(model: PrefixLM) -> None:
    asked = replace(two_prompts(), questions=[["what?", "who?"], ["what?", "who?"]])
    with pytest.raises(InputError, match="not on answers to questions"):
        SelfCritical().loss(model, asked, caption_reward(CAPTIONS))
