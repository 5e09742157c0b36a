"""Heads: output matrices, scales, soft caps and inner layers, against the logits of the whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.language_model import causal_model
from mmprefix.decoders.model_head import WholeHead
from mmprefix.errors import InputError
from tiny.decoders import make_tokenizer

pytestmark = pytest.mark.numeric
SIZE: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
MODELS: dict[str, tuple[Any, bool]] = {  # configuration, and whether its output matrix alone computes the logits
    "llama": (hf.LlamaConfig(**SIZE), True),
    "granite that scales nothing": (hf.GraniteConfig(**SIZE, logits_scaling=1.0), True),
    "granite": (hf.GraniteConfig(**SIZE, logits_scaling=8.0), False),
    "cohere": (hf.CohereConfig(**SIZE, logit_scale=0.25), False),
    "gemma 2": (hf.Gemma2Config(**SIZE, head_dim=8, final_logit_softcapping=3.0), False),
    "gemma 2 without a cap": (hf.Gemma2Config(**SIZE, head_dim=8, final_logit_softcapping=None), True),
    "bert": (hf.BertConfig(**SIZE, is_decoder=True), False),
    "opt with a narrow output": (hf.OPTConfig(**SIZE, ffn_dim=64, word_embed_proj_dim=16), True),
    "phi, which has a bias": (hf.PhiConfig(**SIZE), True),
}


def build(config: Any) -> Any:
    torch.manual_seed(0)
    lm = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return lm


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_whole_model(name: str) -> None:
    config, plain = MODELS[name]
    lm = build(config)
    model = causal_model(lm, name)
    assert (model.whole_head is None) is plain
    assert (model.output_matrix() is not None) is plain
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    hidden = model.stack(input_ids=ids, use_cache=False).last_hidden_state
    assert hidden.shape[-1] == model.hidden_width
    expected = lm(input_ids=ids, use_cache=False).logits
    assert torch.allclose(model.logits(hidden), expected, atol=1e-5)
    assert torch.allclose(WholeHead(lm, model.stack)(hidden[:, -1]), expected[:, -1], atol=1e-5)


def test_the_model_stays_whole_and_gradients_pass() -> None:
    lm = build(MODELS["gemma 2"][0])
    model = causal_model(lm, "gemma2")
    hidden = torch.randn(3, 32, requires_grad=True)
    model.logits(hidden).logsumexp(-1).sum().backward()
    assert hidden.grad is not None
    assert bool(hidden.grad.abs().sum() > 0)
    assert lm.model is model.stack
    assert sorted(name for name, _ in lm.named_children()) == ["lm_head", "model"]


def test_a_head_that_is_more_than_a_matrix_cannot_be_copied(tmp_path: Any) -> None:
    words = make_tokenizer()
    lm = hf.AutoModelForCausalLM.from_config(hf.CohereConfig(**{**SIZE, "vocab_size": len(words)}))
    lm.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    assert CausalDecoder(str(tmp_path)).output_matrix() is None
    with pytest.raises(InputError, match="train_head copies an output matrix"):
        CausalDecoder(str(tmp_path), train_head=True)
