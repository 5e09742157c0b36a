"""Masks of GPT-Neo: global and local layers read their own part of one mask, and the model's window is off."""

from __future__ import annotations

import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from mmprefix.decoders.gpt_neo import hook_masks, join_masks

WINDOW, TOKENS = 3, 7


def model(window: int) -> GPTNeoForCausalLM:
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=20, hidden_size=8, num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=2,
        window_size=window, max_position_embeddings=16, intermediate_size=8,
    )  # fmt: skip
    return GPTNeoForCausalLM(config).eval()


def causal(window: int) -> torch.Tensor:
    """Additive mask (1 1 N N) of a causal window."""
    at = torch.arange(TOKENS)
    seen = (at[None] <= at[:, None]) & (at[None] > at[:, None] - window)
    return torch.zeros(TOKENS, TOKENS).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]


@pytest.mark.numeric
def test_the_window_of_a_mask_is_that_of_the_model() -> None:
    ids = torch.arange(TOKENS)[None]
    own, hooked = model(WINDOW), model(WINDOW)
    hook_masks(hooked)
    mask = join_masks({"global": causal(TOKENS), "local": causal(WINDOW)})
    assert mask.shape == (1, 2, TOKENS, TOKENS)
    with torch.no_grad():
        expected = own(ids).logits
        torch.testing.assert_close(hooked(ids, attention_mask=mask).logits, expected, atol=1e-4, rtol=1e-4)
        everything = hooked(ids, attention_mask=join_masks(causal(TOKENS))).logits
    assert (everything - expected).abs().max() > 1e-3  # one mask for all layers: no window is left


def test_one_mask_for_all_layers_stays_as_it_is() -> None:
    mask = causal(TOKENS)
    assert join_masks(mask) is mask
