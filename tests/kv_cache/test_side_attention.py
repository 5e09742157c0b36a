"""Vectors that pass a layer's own projections become the keys and values that its cache would hold of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.kv_cache.side_attention import attention_modules
from mmprefix.mappers.aligner import Aligner
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.llama_adapter import LlamaAdapter
from mmprefix.mappers.unipelt import UniPELTPrefix
from mmprefix.model import PrefixLM
from mmprefix.types import Batch
from tiny.decoders import make_tokenizer, save_decoder

NORMED: dict[str, dict[str, Any]] = {  # families that normalise queries and keys, each in its own place
    "qwen3": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "olmo2": {},
    "phi": {"qk_layernorm": True},
    "stablelm": {"qk_layernorm": True},
    "cohere": {"use_qk_norm": True},
}
PLAIN = ["gpt2", "opt", "llama", "qwen"]


def decoder_of(kind: str, folder: Path) -> CausalDecoder:
    """Tiny decoder of a family."""
    if kind in PLAIN:
        return CausalDecoder(save_decoder(folder, kind))
    words, sizes = make_tokenizer(), {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=len(words), hidden_size=32, intermediate_size=64, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=0, pad_token_id=None, **sizes, **NORMED[kind],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)  # norms, too
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return CausalDecoder(str(folder))


@pytest.mark.parametrize("kind", [*PLAIN, *NORMED])
def test_projected_vectors_are_the_keys_and_values_of_a_first_position(kind: str, tmp_path: Path) -> None:
    """A first position is not rotated, so that its keys in the cache are those of the projections alone."""
    decoder = decoder_of(kind, tmp_path)
    read: dict[int, Tensor] = {}

    def keep(module: Any, args: Any, kwargs: dict[str, Tensor]) -> None:
        read[module.layer_idx] = args[0] if args else kwargs["hidden_states"]

    handles = [m.register_forward_pre_hook(keep, with_kwargs=True) for m in attention_modules(decoder.lm)]
    with torch.enable_grad():  # no fused layer goes round the hooks
        cache = decoder.language_model.key_values([7])
    for handle in handles:
        handle.remove()
    for layer in range(decoder.layers):
        keys, values = decoder.language_model.project_tokens(layer, read[layer])
        assert_close(keys.detach(), cache.keys[layer], rtol=1e-4, atol=1e-5)
        assert_close(values.detach(), cache.values[layer], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [
    partial(Aligner, length=2, first=0), partial(LlamaAdapter, length=2, first=0), partial(UniPELTPrefix, length=2)
])  # fmt: skip
def test_layers_wider_than_the_embeddings_have_vectors_of_their_width(build: Any, tmp_path: Path) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path, "opt"))
    assert (decoder.width, decoder.hidden_width) == (24, 32)
    torch.manual_seed(0)
    model = PrefixLM({}, decoder, build)
    parameters = list(model.trained_parameters().values())
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter))
    loss = model.text_loss(Batch({}, ["a dog"], [["the cat runs"]], [""], ["0"])).mean()
    assert all(bool(gradient.any()) for gradient in torch.autograd.grad(loss, parameters))


def test_embeddings_are_not_added_to_vectors_of_another_width() -> None:
    sizes = Sizes(0, 0, 24, 2, 4, 8, query_heads=4, hidden=32)
    with pytest.raises(InputError, match="makes embeddings of 24 numbers, and the decoder's layers are 32 wide"):
        LlamaAdapter(sizes, first=0, mapper=Learned)
