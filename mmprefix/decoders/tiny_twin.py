"""Tiny twin of a language model: its class and every switch of its configuration, with small sizes and random weights.

A twin runs the same code as the model (windows, positions, shared heads, soft caps), so what holds for the twin's
scores holds for the model's. It is built in a few hundredths of a second, whatever the size of the model.
"""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import torch
from transformers import PreTrainedConfig

SPAN = 4  # positions of a sliding window, a chunk or a block of a twin
POSITIONS = 64
VOCABULARY = 96
HEADS, HEAD_WIDTH = 4, 8
MAX_PARAMETERS = 1 << 24  # a twin with more is not tiny

_SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "input_embedding_size"), 32),
    **dict.fromkeys(("output_embedding_size", "word_embed_proj_dim", "d_inner", "attention_hidden_size"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), HEADS),
    **dict.fromkeys(("head_dim", "kv_channels", "d_head", "dim_head"), HEAD_WIDTH),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), HEAD_WIDTH),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head"), 8),
    "qk_head_dim": 2 * HEAD_WIDTH,
    "rotary_dim": 4,
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "dff", "dim_ff"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "emb_dim", "intermediate_size_mlp"), 64),
    **dict.fromkeys(("dense_intermediate_size", "shared_intermediate_size", "prompt_mid_dim"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), POSITIONS),
    **dict.fromkeys(("max_target_positions", "original_max_position_embeddings"), POSITIONS),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    "hidden_size_per_layer_input": HEAD_WIDTH,
    **dict.fromkeys(("encoder_layers", "num_encoder_layers"), 1),
}
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "num_query_groups")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id")
_ROPE = ("rope_theta", "partial_rotary_factor")
_SPAN = re.compile("window|chunk|block_size|blocks|topk$|floor|^local_attention$")  # what a layer attends to


def tiny_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Copy of ``config`` with small sizes. Two layers, or one of each kind where layers are of several kinds."""
    tiny = deepcopy(config)
    for name, value in list(vars(tiny).items()):
        if isinstance(value, PreTrainedConfig):
            setattr(tiny, name, tiny_config(value) if name.startswith("text") else _tiny_encoder(value))
    text = vars(tiny)
    layers = next((text[name] for name in _LAYERS if isinstance(text.get(name), int)), 0)
    kept = _kept_layers(text, layers)
    heads = next((text[name] for name in _SIZES if _SIZES[name] == HEADS and "head" in name and text.get(name)), 1)
    for name, value in list(text.items()):
        small = _small(name, value, heads)
        if name in _LAYERS and isinstance(value, int):
            small = len(kept)
        elif isinstance(value, list) and layers and len(value) == layers:
            small = [value[i] for i in kept]
        if small is not value:
            setattr(tiny, name, small)
    return tiny


def _tiny_encoder(config: PreTrainedConfig) -> PreTrainedConfig:
    """Small configuration of an encoder beside a language model; its one layer is told from those of the model."""
    tiny = tiny_config(config)
    for name in _LAYERS:
        if name in vars(tiny):
            setattr(tiny, name, 1)
    return tiny


def _kept_layers(values: dict[str, Any], layers: int) -> list[int]:
    """Indices of the layers of a twin: the first of each kind, two at least."""
    kinds = values.get("layer_types") or values.get("attention_layers") or [None] * layers
    if len(kinds) != layers or not layers:
        return list(range(min(layers, 2)))
    first = sorted({kind: i for i, kind in reversed(list(enumerate(kinds)))}.values())
    return first if len(first) > 1 else list(range(min(layers, 2)))


def _small(name: str, value: Any, heads: int) -> Any:
    """Small value of the option ``name``; ``value`` itself for an option that is no size."""
    if name == "rope_parameters" and isinstance(value, dict):
        return _plain_rope(value)
    if name in _TOKENS:
        return None if value is None else 0
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return value
    if name not in _SIZES and _SPAN.search(name):
        return min(value, SPAN)
    if name in _KEY_VALUE_HEADS:
        return HEADS if value == heads else min(value, 2)
    return min(_SIZES.get(name, value), value)


def _plain_rope(value: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters without scaling for long texts, whose lists depend on the width of a head."""
    if any(isinstance(part, dict) for part in value.values()):
        return {name: _plain_rope(part) if isinstance(part, dict) else part for name, part in value.items()}
    if any(isinstance(part, list) for part in value.values()):
        return {**{name: value[name] for name in _ROPE if name in value}, "rope_type": "default"}
    return value


def build_twin(lm: Any, seed: int = 0) -> Any:
    """Tiny twin of ``lm``, in float32, in evaluation mode, with the same random weights for the same ``seed``.

    Raises ValueError if it is not tiny, or whatever its class raises if it cannot be built from small sizes.
    """
    return build_tiny(type(lm), tiny_config(lm.config), seed)


def build_tiny(cls: Any, config: PreTrainedConfig, seed: int) -> Any:
    """Model of class ``cls`` with sharp random weights: what a position attends to counts. See ``build_twin``."""
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in cls(deepcopy(config)).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"a small {cls.__name__} has {size} parameters")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = cls(config).float().eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1.5 / parameter.shape[-1] ** 0.5)
    return model
