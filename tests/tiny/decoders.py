"""Tiny random language models of the real classes, with a real tokenizer, saved to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.types import Prefix

TEXT = ["a dog barks loudly. the cat runs over a green hill; some rain falls on the old roof, and a bell rings twice."]
END = "<|endoftext|>"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE tokenizer trained on a line of text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXT * 3,
        trainers.BpeTrainer(vocab_size=320, special_tokens=[END], initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, bos_token=END)


def _config(kind: str, vocabulary: int) -> PreTrainedConfig:
    if kind == "gpt2":
        return GPT2Config(
            vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0
        )
    size: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if kind == "opt":
        narrow: dict[str, Any] = {
            "ffn_dim": 64,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 24,
            "do_layer_norm_before": False,
        }
        return OPTConfig(**size, **narrow, **ends)
    grouped: dict[str, Any] = {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 128}
    options: dict[str, Any] = {**size, **grouped, **ends}
    if kind == "deepseek":
        widths = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
        return DeepseekV3Config(**{**options, **widths, "num_key_value_heads": 4}, first_k_dense_replace=2)
    if kind == "mistral":
        return MistralConfig(**options, sliding_window=6)
    if kind == "gemma2":
        return Gemma2Config(**options, head_dim=8, sliding_window=5, final_logit_softcapping=20.0)
    return LlamaConfig(**options) if kind == "llama" else Qwen2Config(**options)


KINDS = ("gpt2", "opt", "llama", "qwen")
WINDOWED = ("mistral", "gemma2")  # their windows are shorter than a prefix and its text


CHAT_TEMPLATE = (  # SmolLM2's, with a shorter system message
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\na bell<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_chat_tokenizer(**special: str | None) -> PreTrainedTokenizerFast:
    """Tokenizer of a chat model as SmolLM2's; ``special`` changes its special tokens or its ``chat_template``."""
    core = make_tokenizer().backend_tokenizer
    options = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": END, "chat_template": CHAT_TEMPLATE}
    words: Any = PreTrainedTokenizerFast(tokenizer_object=core, **{**options, **special})
    words.add_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")], special_tokens=True)
    return words


def save_decoder(
    folder: Path,
    kind: str = "gpt2",
    seed: int = 0,
    sharp: float = 6.0,
    *,
    words: PreTrainedTokenizerFast | None = None,
) -> str:
    """Save a random model of ``kind`` to ``folder``, weights scaled to make its choices clear; return the folder."""
    words = words or make_tokenizer()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(_config(kind, len(words)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(sharp)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def ragged_prefix(decoder: ComposedDecoder, lengths: list[int], seed: int = 0) -> Prefix:
    """Random prefix whose rows have ``lengths`` real positions."""
    torch.manual_seed(seed)
    embeds = torch.randn(len(lengths), max(lengths), decoder.width)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Prefix(embeds, mask)
