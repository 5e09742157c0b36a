"""The training step as it is against the plain one: loss to 2e-6 and gradients to 5e-6, relative, in float32.

Plain is: each caption alone behind a prefix of its own, one pass of the Hugging Face model, logits of all positions,
cross-entropy. Fast is: a prefix read once for all captions of an input, its last layer at one position, captions packed
into one row, logits where a token is predicted and a few rows at a time.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.types import AnyPrefix, DeepPrefix, MixedPrefix, Prefix
from tiny.decoders import KINDS, save_decoder

TEXTS = [
    ["a dog barks"],
    ["rain falls loudly over a hill", "the cat.", "a"],
    ["some rain", "the old roof rings twice", "a bell", "a dog runs over the green hill", "the"],
    ["", "a green bell"],
]
LENGTHS = [5, 1, 3, 4]
PROMPTS = {"no prompts": ["", "", "", ""], "prompts": ["the", "", "a green hill:", "look"]}


@pytest.fixture(scope="module", params=KINDS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(save_decoder(tmp_path_factory.mktemp(request.param), request.param, sharp=2.0))


def numbers(decoder: CausalDecoder, kind: str) -> list[Tensor]:
    """What a mapper would give: embeddings, keys and values, or all three."""
    torch.manual_seed(0)
    soft = torch.randn(len(LENGTHS), max(LENGTHS), decoder.width)
    deep = torch.randn(2, decoder.layers, len(LENGTHS), decoder.heads, max(LENGTHS), decoder.head_width)
    return {"soft": [soft], "deep": [*deep], "mixed": [*deep, soft]}[kind]


def prefix(parts: list[Tensor], mask: Tensor) -> AnyPrefix:
    if len(parts) == 1:
        return Prefix(parts[0], mask)
    deep = DeepPrefix(parts[0], parts[1], mask)
    return deep if len(parts) == 2 else MixedPrefix(deep, Prefix(parts[2], mask))


def plain_nll(decoder: CausalDecoder, parts: list[Tensor], b: int, prompt: str, text: str) -> Tensor:
    """Of one caption, with nothing of ours but the words."""
    words, lm, n = decoder.tokenizer, decoder.lm, LENGTHS[b]
    soft = parts[-1][b : b + 1, :n] if len(parts) != 2 else None
    before = words(prompt)["input_ids"] if prompt else [decoder.codec.eos] if soft is None else []
    said = [*words((" " if prompt else "") + text)["input_ids"], decoder.codec.eos]
    ids = torch.tensor([[*before, *said]])
    embeds = lm.get_input_embeddings()(ids)
    embeds = embeds if soft is None else torch.cat([soft, embeds], dim=1)
    past: Any = None
    if len(parts) > 1:
        past = DynamicCache(
            [(parts[0][i, b : b + 1, :, :n], parts[1][i, b : b + 1, :, :n]) for i in range(decoder.layers)]
        )
    logits = lm(inputs_embeds=embeds, past_key_values=past).logits[0, -len(said) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(said), reduction="sum")


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("kind", ["soft", "deep", "mixed"])
def test_the_fast_step_is_the_plain_step(decoder: CausalDecoder, kind: str, prompts: str) -> None:
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    asked = PROMPTS[prompts]
    fast, plain = ([part.clone().requires_grad_() for part in numbers(decoder, kind)] for _ in range(2))
    found = decoder.text_loss(decoder.prefill(prefix(fast, mask)), asked, TEXTS)
    wanted = [plain_nll(decoder, plain, b, asked[b], text) for b, texts in enumerate(TEXTS) for text in texts]
    assert torch.allclose(found.nll.detach(), torch.stack(wanted).detach(), rtol=2e-6, atol=0)
    found.mean().backward()
    (torch.stack(wanted).sum() / found.tokens.sum()).backward()
    for one, other in zip(fast, plain, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).norm() <= 5e-6 * other.grad.norm()
