"""Windows and sizes of configurations, and decoders with windows against generation of Transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.model_config import causal_sizes, first_of, reaches_of
from mmprefix.generation.options import GenerateOptions
from mmprefix.kv_cache.windows import Reach, Reaches
from mmprefix.types import Prefix
from tiny.decoders import WINDOWED, ragged_prefix, save_decoder

WINDOWS: dict[str, tuple[Any, Reaches]] = {
    "llama": (hf.LlamaConfig(), Reaches()),
    "mistral": (hf.MistralConfig(sliding_window=4096), Reaches(Reach(4096))),
    "mistral without one": (hf.MistralConfig(sliding_window=None), Reaches()),
    "qwen 2 that uses none": (
        hf.Qwen2Config(sliding_window=4096, use_sliding_window=False),
        Reaches(by_kind={"full_attention": Reach()}),
    ),
    "gemma 3": (
        hf.Gemma3TextConfig(sliding_window=512),
        Reaches(by_kind={"sliding_attention": Reach(512), "full_attention": Reach()}),
    ),
    "llama 4": (
        hf.Llama4TextConfig(attention_chunk_size=8192),
        Reaches(by_kind={"chunked_attention": Reach(8192, chunked=True), "full_attention": Reach()}),
    ),
    "gpt-neo": (hf.GPTNeoConfig(window_size=256), Reaches(by_kind={"global": Reach(), "local": Reach(256)})),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_of_a_configuration(name: str) -> None:
    config, expected = WINDOWS[name]
    assert reaches_of(config) == expected


def test_sizes_of_a_configuration() -> None:
    sizes = causal_sizes(hf.GPT2Config(n_layer=3, n_head=4, n_embd=64, n_positions=99))
    assert (sizes.layers, sizes.heads, sizes.head_width, sizes.max_positions) == (3, 4, 16, 99)
    sizes = causal_sizes(hf.Gemma2Config(num_key_value_heads=2, head_dim=256))
    assert (sizes.heads, sizes.head_width) == (2, 256)
    sizes = causal_sizes(hf.FalconConfig(multi_query=True, new_decoder_architecture=False))
    assert sizes.heads == 1
    assert causal_sizes(hf.XLNetConfig()).max_positions == 0  # it says -1
    assert first_of(hf.Gemma4TextConfig(), "head_dim") == 0  # layers differ


@pytest.mark.numeric
@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize("beams", [1, 3])
def test_texts_behind_a_window_equal_transformers(kind: str, beams: int, tmp_path: Path) -> None:
    """Windows are shorter than a prefix and its text; the ragged batch equals each input in Transformers alone."""
    decoder = CausalDecoder(save_decoder(tmp_path, kind, sharp=4.0))
    lm: Any = hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prefix = ragged_prefix(decoder, [9, 3, 6])
    options = GenerateOptions(max_new_tokens=12, num_beams=beams, num_return=beams)
    groups = decoder.search_tokens(decoder.prefill(prefix), options, torch.tensor([1]))
    for b, group in enumerate(groups):
        rows = prefix.embeds[b : b + 1, prefix.mask[b]]
        output: Any = lm.generate(
            inputs_embeds=rows, attention_mask=torch.ones(rows.shape[:2], dtype=torch.long), max_new_tokens=12,
            num_beams=beams, num_return_sequences=beams, length_penalty=1.0, do_sample=False, eos_token_id=1,
            pad_token_id=0, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        for i, (ids, score) in enumerate(group):
            assert output.sequences[i, : len(ids)].tolist() == ids
            if beams > 1:
                assert score == pytest.approx(float(output.sequences_scores[i]), abs=1e-3)


@pytest.mark.numeric
@pytest.mark.parametrize("kind", [*WINDOWED, "deepseek"])
def test_gradients_and_choices_behind_a_window(kind: str, tmp_path: Path) -> None:
    """Training packs texts in a row, choices share a trie: both equal a plain pass over each text."""
    decoder = CausalDecoder(save_decoder(tmp_path, kind, sharp=2.0))
    lm = hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval().requires_grad_(False)
    prefix, texts = ragged_prefix(decoder, [7, 3]), ["a dog barks loudly and a bell rings", "a dog", "some rain falls"]
    shared, plain = (prefix.embeds.clone().requires_grad_() for _ in range(2))
    state = decoder.prefill(Prefix(shared, prefix.mask))
    losses = decoder.text_loss(state, ["the", ""], [texts, texts])
    choices = decoder.choice_log_probs(decoder.append(state, ["the", ""]), texts, "")
    expected: list[torch.Tensor] = []
    for b, prompt in enumerate(("the", "")):
        for text in texts:
            before, ids = decoder.codec.prompt_ids(prompt, False), decoder.codec.target_ids(prompt, text)
            tokens = lm.get_input_embeddings()(torch.tensor([*before, *ids]))
            inputs = torch.cat([plain[b][prefix.mask[b]], tokens])[None]
            log_probs = lm(inputs_embeds=inputs).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
            expected.append(-log_probs.gather(1, torch.tensor(ids)[:, None]).sum())
    assert torch.allclose(losses.nll, torch.stack(expected), atol=1e-3)
    losses.nll.sum().backward()
    torch.stack(expected).sum().backward()
    assert shared.grad is not None
    assert plain.grad is not None
    assert (shared.grad - plain.grad).abs().max() <= 1e-4 * plain.grad.abs().max()
    assert torch.allclose(choices[1], -torch.stack(expected[3:]).detach(), atol=1e-3)
