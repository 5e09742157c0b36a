"""Forward passes of GPT-2 and LLaMA written out step by step, without a cache, with a hook into each attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Attention = Callable[[int, Tensor, Tensor, Tensor, Tensor, Any], Tensor]
"""(layer, queries, keys, values (H' N K) of one text, what the attention reads (N E), its module) → (H' N K)"""


def causal_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Scores (H' N N) of a text's own keys, minus infinity where a key is later."""
    scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
    return scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)


def plain(layer: int, queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, module: Any) -> Tensor:
    """Attention of the text alone."""
    return causal_scores(queries, keys).softmax(-1) @ values


def heads(x: Tensor, count: int) -> Tensor:
    """(N H*K) → (H N K)."""
    return x.view(len(x), count, -1).transpose(0, 1)


def log_probs(
    lm: Any,
    ids: list[int],
    attention: Attention = plain,
    *,
    before: Tensor | None = None,
    gates: Tensor | None = None,
) -> Tensor:
    """Log-probabilities (P+N V) after each of the P embeddings ``before`` (P E) and the N tokens ``ids``.

    ``gates`` (P 2 L E) are factors and shifts of the first P positions behind the attention of each layer.
    """
    words = lm.get_input_embeddings().weight[torch.tensor(ids)]
    x = words if before is None else torch.cat([before, words])

    def gated(x: Tensor, layer: int) -> Tensor:
        if gates is None:
            return x
        return torch.cat([x[: len(gates)] * gates[:, 0, layer] + gates[:, 1, layer], x[len(gates) :]])

    run = _gpt2 if lm.config.model_type == "gpt2" else _llama
    return run(lm, x, attention, gated).log_softmax(-1)


def _gpt2(lm: Any, x: Tensor, attention: Attention, gated: Callable[[Tensor, int], Tensor]) -> Tensor:
    model, count = lm.transformer, lm.config.n_head
    x = x + model.wpe.weight[: len(x)]
    for number, layer in enumerate(model.h):
        hidden = layer.ln_1(x)
        q, k, v = (hidden @ layer.attn.c_attn.weight + layer.attn.c_attn.bias).chunk(3, -1)
        mixed = attention(number, heads(q, count), heads(k, count), heads(v, count), hidden, layer.attn)
        x = gated(x + mixed.transpose(0, 1).flatten(1) @ layer.attn.c_proj.weight + layer.attn.c_proj.bias, number)
        x = x + layer.mlp(layer.ln_2(x))
    return model.ln_f(x) @ lm.lm_head.weight.T


def _llama(lm: Any, x: Tensor, attention: Attention, gated: Callable[[Tensor, int], Tensor]) -> Tensor:
    model, config = lm.model, lm.config
    width = config.hidden_size // config.num_attention_heads
    angles = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)

    def rotate(part: Tensor) -> Tensor:
        first, second = part.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    group = config.num_attention_heads // config.num_key_value_heads
    for number, layer in enumerate(model.layers):
        hidden, own = layer.input_layernorm(x), layer.self_attn
        q = rotate(heads(hidden @ own.q_proj.weight.T, config.num_attention_heads))
        k = rotate(heads(hidden @ own.k_proj.weight.T, config.num_key_value_heads)).repeat_interleave(group, 0)
        v = heads(hidden @ own.v_proj.weight.T, config.num_key_value_heads).repeat_interleave(group, 0)
        mixed = attention(number, q, k, v, hidden, own)
        x = gated(x + mixed.transpose(0, 1).flatten(1) @ own.o_proj.weight.T, number)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.norm(x) @ lm.lm_head.weight.T
