"""Prompt gating against its formula by hand, alone and composed, and what it must not touch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.parallel import Parallel
from mmprefix.mappers.prompt_gating import GatedPrompt, PromptGating
from mmprefix.model import PrefixLM
from mmprefix.types import Batch, Features, MixedPrefix, Prefix, concat_prefixes
from tiny import decoders as tiny_decoders
from tiny.by_hand import log_probs

PROMPTS = ["the", "a green", "some rain"]
TARGETS = [["a dog barks"], ["rain falls loudly over a hill"], ["the old roof rings"]]
BUILD = partial(PromptGating, length=3, hidden=8)


def texts() -> Batch:
    return Batch({}, PROMPTS, TARGETS, [""] * 3, ["0", "1", "2"])


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(tiny_decoders.save_decoder(tmp_path_factory.mktemp(request.param), request.param))


def model_of(decoder: CausalDecoder, build: Any = BUILD, seed: int = 0) -> PrefixLM:
    torch.manual_seed(seed)
    model = PrefixLM({}, decoder, build)
    with torch.no_grad():
        for parameter in model.task_prefix.parameters():  # pyright: ignore[reportOptionalMemberAccess]
            parameter.add_(torch.randn(parameter.shape) * 0.6)
    return model


def nll_by_hand(decoder: CausalDecoder, prefix: Prefix, prompt: str, ids: list[int]) -> float:
    """Negative log-likelihood of ``ids`` after the gated prefix and the prompt."""
    before = decoder.codec.prompt_ids(prompt, False)
    gates = None if prefix.gates is None else prefix.gates[0]
    scores = log_probs(decoder.lm, before + ids[:-1], before=prefix.embeds[0], gates=gates)[-len(ids) :]
    return -float(scores[torch.arange(len(ids)), ids].sum())


@torch.no_grad()
def test_loss_and_search_equal_the_formula(decoder: CausalDecoder) -> None:
    model = model_of(decoder)
    prefix = model.build_prefix({}, count=1)
    assert isinstance(prefix, Prefix)
    nll = model.text_loss(texts()).nll.tolist()
    state = decoder.append(model.prefill(texts()), PROMPTS)
    written = decoder.search_tokens(state, GenerateOptions(max_new_tokens=5), torch.tensor([0]))
    for prompt, (target,), loss, (best, *_) in zip(PROMPTS, TARGETS, nll, written, strict=True):
        expected = nll_by_hand(decoder, prefix, prompt, decoder.codec.target_ids(prompt, target))
        assert loss == pytest.approx(expected, abs=2e-3)
        assert best[1] * len(best[0]) == pytest.approx(-nll_by_hand(decoder, prefix, prompt, best[0]), abs=2e-3)
    bare = Prefix(prefix.embeds.expand(3, -1, -1), prefix.mask.expand(3, -1))
    assert (decoder.text_loss(decoder.prefill(bare), PROMPTS, TARGETS).nll - torch.tensor(nll)).abs().min() > 1e-2


@torch.no_grad()
def test_plug_ins_of_several_attributes_stand_in_a_row_each_with_its_gates(decoder: CausalDecoder) -> None:
    both = model_of(decoder, partial(Parallel, mappers=[BUILD, partial(Learned, length=2, std=1.0), BUILD]))
    prefix = both.build_prefix({}, count=1)
    assert isinstance(prefix, Prefix)
    assert prefix.gates is not None
    assert prefix.gates.shape == (1, 8, 2, 2, 32)
    assert torch.equal(prefix.gates[0, 3:5, 0], torch.ones(2, 2, 32))  # a plain prompt has none
    assert torch.equal(prefix.gates[0, 3:5, 1], torch.zeros(2, 2, 32))
    for prompt, (target,), loss in zip(PROMPTS, TARGETS, both.text_loss(texts()).nll.tolist(), strict=True):
        expected = nll_by_hand(decoder, prefix, prompt, decoder.codec.target_ids(prompt, target))
        assert loss == pytest.approx(expected, abs=2e-3)


def test_neutral_gates_change_nothing_and_gradients_pass(decoder: CausalDecoder) -> None:
    model = PrefixLM({}, decoder, partial(GatedPrompt, length=3))
    mapper = cast(GatedPrompt, model.task_prefix)
    prefix = Prefix(mapper.embeds[None].expand(3, -1, -1), torch.ones(3, 3, dtype=torch.bool))
    plain = decoder.text_loss(decoder.prefill(prefix), PROMPTS, TARGETS).nll
    loss = model.text_loss(texts()).nll
    assert torch.allclose(loss, plain, atol=1e-3)
    for gradient in torch.autograd.grad(loss.sum(), list(mapper.parameters())):
        assert gradient.abs().sum() > 0


def test_a_deep_prefix_may_stand_before_and_recomputed_layers_give_the_same_gradients(tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, "llama"))
    model = model_of(decoder, partial(Parallel, mappers=[partial(DeepTable, length=2), BUILD]))
    assert isinstance(model.build_prefix({}, count=1), MixedPrefix)
    parameters = list(cast(Any, model.task_prefix).parameters())
    before = torch.autograd.grad(model.text_loss(texts()).nll.sum(), parameters)
    decoder.recompute_layers()
    again = torch.autograd.grad(model.text_loss(texts()).nll.sum(), parameters)
    for a, b in zip(before, again, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * float(b.abs().max() + 1))


def test_rows_without_an_input_have_no_plug_in() -> None:
    mapper = PromptGating(Sizes(0, 0, 32, 2, 4, 8), length=3, hidden=8)
    prefix = mapper(Features.empty(2)).mask_rows(torch.tensor([True, False]))
    assert prefix.mask.tolist() == [[False] * 3, [True] * 3]
    joined = concat_prefixes([prefix, prefix])
    assert isinstance(joined, Prefix)
    assert joined.gates is not None
    assert joined.gates.shape[:2] == (2, 6)


def test_layers_with_norms_behind_their_sums_are_refused_by_name(tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, "opt"))
    with pytest.raises(InputError, match="OPTDecoderLayer is not a norm and attention"):
        PrefixLM({}, decoder, BUILD).text_loss(texts())
