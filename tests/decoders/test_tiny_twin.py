"""Tiny twins: small sizes, the switches of the configuration, the same weights each time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from mmprefix.decoders.tiny_twin import HEADS, MAX_PARAMETERS, SPAN, VOCABULARY, build_tiny, build_twin, tiny_config


def test_switches_stay_and_sizes_do_not() -> None:
    config = hf.Gemma2Config(num_hidden_layers=26, final_logit_softcapping=30.0, sliding_window=4096)
    tiny: Any = tiny_config(config)
    assert (tiny.final_logit_softcapping, tiny.attn_logit_softcapping) == (30.0, config.attn_logit_softcapping)
    assert (tiny.hidden_size, tiny.vocab_size, tiny.sliding_window) == (32, VOCABULARY, SPAN)
    assert tiny.layer_types == ["sliding_attention", "full_attention"]  # one layer of each kind
    assert tiny.num_hidden_layers == 2
    assert (config.num_hidden_layers, config.sliding_window) == (26, 4096)


@pytest.mark.parametrize(("heads", "shared", "tiny_shared"), [(32, 32, HEADS), (32, 8, 2), (32, 1, 1)])
def test_shared_heads_stay_shared(heads: int, shared: int, tiny_shared: int) -> None:
    tiny: Any = tiny_config(hf.LlamaConfig(num_attention_heads=heads, num_key_value_heads=shared))
    assert (tiny.num_attention_heads, tiny.num_key_value_heads) == (HEADS, tiny_shared)


def test_layers_beyond_the_first_kinds_are_kept() -> None:
    kinds = ["full_attention"] * 5 + ["sliding_attention"] * 3
    tiny: Any = tiny_config(hf.Qwen2Config(num_hidden_layers=8, use_sliding_window=True, layer_types=kinds))
    assert tiny.layer_types == ["full_attention", "sliding_attention"]
    plain: Any = tiny_config(hf.Qwen2Config(num_hidden_layers=8))
    assert plain.num_hidden_layers == len(plain.layer_types) == 2


def test_the_encoder_beside_a_language_model_has_one_layer() -> None:
    tiny: Any = tiny_config(hf.Gemma3Config())
    assert (tiny.text_config.num_hidden_layers, tiny.vision_config.num_hidden_layers) == (2, 1)


def test_weights_are_the_same_and_the_seed_is_kept() -> None:
    with torch.device("meta"):
        lm = hf.AutoModelForCausalLM.from_config(hf.MistralConfig())  # of 7 billion parameters
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    one, other = build_twin(lm), build_twin(lm)
    assert torch.equal(torch.randn(2), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert sum(parameter.numel() for parameter in one.parameters()) < 100_000
    assert not one.training
    assert one.dtype == torch.float32


def test_what_is_not_tiny_is_not_built() -> None:
    with pytest.raises(ValueError, match="a small LlamaForCausalLM has"):
        build_tiny(hf.LlamaForCausalLM, hf.LlamaConfig(vocab_size=MAX_PARAMETERS), 0)
