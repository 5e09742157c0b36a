"""Robust prefix: projections by the formula, psi that lowers the distance, the plain model at no step."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.inference.prefixes.robust import RobustPrefix
from mmprefix.kv_cache.cache import cache_over
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.model import PrefixLM
from mmprefix.types import Batch
from tiny.decoders import save_decoder
from tiny.fits import text_batch

CHOICES = ["a dog", "some rain"]
PROMPTS = ["the cat", "a bell rings", "the old roof", "on a hill runs", "loudly", "twice a dog"]


@pytest.fixture(scope="module", params=["deep", "soft"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PrefixLM:
    decoder = CausalDecoder(save_decoder(tmp_path_factory.mktemp("decoder"), "llama", sharp=3.0)).eval()
    torch.manual_seed(0)
    prefix: Any = DeepTable if request.param == "deep" else Learned
    return PrefixLM({}, decoder, partial(prefix, length=3, std=0.5))


def batch_of(model: PrefixLM, prompts: list[str], wrong: int = 1) -> Batch:
    """Rows whose targets are what the model chooses, the last ``wrong`` but the other answer."""
    batch = replace(text_batch(["-"] * len(prompts)), prompts=prompts)
    with torch.no_grad():
        scores = model.decoder.score_choices(
            model.decoder.append_prompts(model.prefill(batch), prompts), prompts, CHOICES
        )
    best = scores.argmax(-1).tolist()
    targets = [[CHOICES[n if row < len(prompts) - wrong else 1 - n]] for row, n in enumerate(best)]
    return replace(batch, targets=targets)


def hidden_by_hand(model: PrefixLM, prompt: str, count: int) -> list[Tensor]:
    """Hidden states of one prompt's last token after each of the first layers, from a plain run of the network."""
    decoder: Any = model.decoder
    state = decoder.prefill(model.build_prefix({}, count=1))
    ids = decoder.codec.prompt_ids(prompt, state.last_hidden is None)
    out = decoder.language_model.stack(
        input_ids=torch.tensor([ids]), past_key_values=cache_over(state.cache), output_hidden_states=True
    )
    return [out.hidden_states[number + 1][0, -1] for number in range(count)]


def test_the_projection_is_that_of_the_paper(model: PrefixLM) -> None:
    guard = RobustPrefix(model, CHOICES, layers=1, mass=0.8)
    guard.fit([batch_of(model, PROMPTS)])
    with torch.no_grad():
        states = torch.stack([hidden_by_hand(model, prompt, 1)[0] for prompt in PROMPTS[:-1]])
    mean = states.mean(0)
    values, vectors = torch.linalg.eigh((states - mean).T @ (states - mean))
    order = values.clamp(min=0).sqrt().flip(0)
    count = next(n for n in range(1, 9) if order[:n].sum() >= 0.8 * order.sum())
    directions = vectors.flip(1)[:, :count]
    assert torch.allclose(guard.mean[0], mean, atol=1e-3)
    assert torch.allclose(guard.projection[0], directions @ directions.T, atol=2e-2)
    by_hand = ((states - mean) @ directions @ directions.T + mean - states).square().mean()
    assert float(guard.distance([states])) == pytest.approx(float(by_hand), rel=0.02)
    guard.center = "batch"  # as in the published code: the mean of the rows at hand, none for one row
    few, own = states[:3] + 1, states[:3].mean(0) + 1
    by_hand = ((few - own) @ directions @ directions.T + own - few).square().mean()
    assert float(guard.distance([few])) == pytest.approx(float(by_hand), rel=0.02)
    alone = (few[:1] @ directions @ directions.T - few[:1]).square().mean()
    assert float(guard.distance([few[:1]])) == pytest.approx(float(alone), rel=0.02)


def test_psi_lowers_the_distance_and_no_step_is_the_plain_model(model: PrefixLM) -> None:
    known, other = batch_of(model, PROMPTS), batch_of(model, ["rains hill fall", "run run bell"])
    plain = RobustPrefix(model, CHOICES, layers=2, mass=0.7, steps=0)
    guard = RobustPrefix(model, CHOICES, layers=2, mass=0.7, steps=8)
    for each in (plain, guard):
        each.fit([known])
    scores = model.decoder.score_choices(
        model.decoder.append_prompts(model.prefill(other), other.prompts), other.prompts, CHOICES
    )
    assert torch.allclose(plain.choose(other), scores, atol=1e-4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    distances: list[float] = []
    measure = guard.distance

    def noted(hidden: Any) -> Tensor:
        distances.append(float(measure(hidden).detach()))
        return measure(hidden)

    guard.distance = noted  # type: ignore[method-assign]
    moved = guard.choose(other)
    assert len(distances) == 8
    assert distances[-1] < 0.9 * distances[0]
    assert not torch.allclose(moved, scores, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_guarded_is_refused(model: PrefixLM, tmp_path: Path) -> None:
    guard = RobustPrefix(model, CHOICES)
    with pytest.raises(InputError, match="call fit first"):
        guard.choose(batch_of(model, PROMPTS))
    with pytest.raises(InputError, match="no row rightly"):
        guard.fit([batch_of(model, PROMPTS, wrong=len(PROMPTS))])
    bare = batch_of(model, PROMPTS)
    with pytest.raises(InputError, match="no row rightly"):
        guard.fit([replace(bare, targets=[[] for _ in bare.targets])])
    with pytest.raises(InputError, match="mass"):
        RobustPrefix(model, CHOICES, mass=0.0)
