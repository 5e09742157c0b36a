"""Training step with all fast paths against a plain one: loss to 2e-6, gradients to 5e-6, relative, in float32.

Plain: each caption alone after its own copy of the prefix, one pass of the Hugging Face model, logits at all positions,
cross-entropy. Fast: one prefill for all captions of an input with its last layer at one position, captions packed into
one row, logits at predicted tokens and a few rows at a time.
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


def prefix_tensors(decoder: CausalDecoder, kind: str) -> list[Tensor]:
    """Output of a mapper of a kind: embeddings, keys and values, or all three."""
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
    """Negative log-likelihood of one caption by the Hugging Face model alone."""
    tokenizer, lm, n = decoder.tokenizer, decoder.lm, LENGTHS[b]
    soft = parts[-1][b : b + 1, :n] if len(parts) != 2 else None
    before = tokenizer(prompt)["input_ids"] if prompt else [decoder.codec.eos] if soft is None else []
    after = [*tokenizer((" " if prompt else "") + text)["input_ids"], decoder.codec.eos]
    ids = torch.tensor([[*before, *after]])
    embeds = lm.get_input_embeddings()(ids)
    embeds = embeds if soft is None else torch.cat([soft, embeds], dim=1)
    past: Any = None
    if len(parts) > 1:
        past = DynamicCache(
            [(parts[0][i, b : b + 1, :, :n], parts[1][i, b : b + 1, :, :n]) for i in range(decoder.layers)]
        )
    logits = lm(inputs_embeds=embeds, past_key_values=past).logits[0, -len(after) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(after), reduction="sum")


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("kind", ["soft", "deep", "mixed"])
def test_the_fast_step_equals_the_plain_step(decoder: CausalDecoder, kind: str, prompts: str) -> None:
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    prompt_texts = PROMPTS[prompts]
    fast, plain = ([part.clone().requires_grad_() for part in prefix_tensors(decoder, kind)] for _ in range(2))
    losses = decoder.text_loss(decoder.prefill(prefix(fast, mask)), prompt_texts, TEXTS)
    expected = [plain_nll(decoder, plain, b, prompt_texts[b], text) for b, texts in enumerate(TEXTS) for text in texts]
    assert torch.allclose(losses.nll.detach(), torch.stack(expected).detach(), rtol=2e-6, atol=0)
    losses.mean().backward()
    (torch.stack(expected).sum() / losses.tokens.sum()).backward()
    for part, other in zip(fast, plain, strict=True):
        assert part.grad is not None
        assert other.grad is not None
        assert (part.grad - other.grad).norm() <= 5e-6 * other.grad.norm()
