"""Learned keys and values before the frames of a decoder's cross-attention: Whisper, and BART."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.kv_cache.side_terms import CrossKeyValues
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.cross_prefix import CrossPrefix
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.parallel import Parallel
from mmprefix.model import PrefixLM
from mmprefix.types import Batch, Features, Prefix, SidePrefix
from tiny import decoders as tiny_decoders
from tiny import whisper as tiny_whisper
from tiny.speech_system import SpeechSystem

TEXTS = [["a dog", "the cat runs"], ["some rain"]]


def frames(count: int, seed: int) -> Features:
    """Frames of two inputs; the second has one less."""
    torch.manual_seed(seed)
    mask = torch.arange(count) < torch.tensor([[count], [count - 1]])
    return Features(torch.randn(2, count, 32), mask, torch.zeros(2, 0))


def projected(decoder: Any, more: Tensor) -> CrossKeyValues:
    """The term that frames (T D) themselves would be, by the weights of each layer's cross-attention."""
    parts: list[list[Tensor]] = [[], []]
    for layer in decoder.lm.get_decoder().layers:
        own = layer.encoder_attn
        parts[0].append((more @ own.k_proj.weight.T).view(len(more), decoder.heads, -1).transpose(0, 1))
        parts[1].append(
            (more @ own.v_proj.weight.T + own.v_proj.bias).view(len(more), decoder.heads, -1).transpose(0, 1)
        )
    return CrossKeyValues(torch.stack(parts[0])[None], torch.stack(parts[1])[None])


@torch.no_grad()
def test_whisper_reads_them_as_it_would_read_frames(spoken: SpeechSystem) -> None:
    decoder = CrossDecoder(spoken.path("whisper"))
    own, more = frames(6, 0), torch.randn(3, 32)
    prefix = SidePrefix.alone(projected(decoder, more), 2, decoder.width, "cpu")
    longer = Features(torch.cat([more.expand(2, -1, -1), own.frames], 1),
                      torch.cat([torch.ones(2, 3, dtype=torch.bool), own.mask], 1), own.pooled)  # fmt: skip
    expected = decoder.prefill(Prefix.empty(2, decoder.width), longer)
    state = decoder.prefill(prefix, own)
    loss = [decoder.text_loss(one, ["", ""], TEXTS).nll for one in (state, expected)]
    assert torch.allclose(loss[0], loss[1], atol=1e-3)
    options = GenerateOptions(max_new_tokens=5, num_beams=2)
    written = [decoder.generate(one, ["", ""], options) for one in (state, expected)]
    assert [[c.text for c in row] for row in written[0]] == [[c.text for c in row] for row in written[1]]
    absent = decoder.prefill(prefix.mask_rows(torch.tensor([True, False])), own)
    plain = decoder.prefill(Prefix.empty(2, decoder.width), own)
    rows = [decoder.text_loss(one, ["", ""], TEXTS).nll for one in (absent, plain, state)]
    assert torch.allclose(rows[0], torch.stack([rows[1][0], rows[1][1], rows[2][2]]), atol=1e-3)
    assert (rows[1] - rows[2]).abs().min() > 1e-3


@torch.no_grad()
def test_bart_has_them_before_its_encoders_output(tmp_path: Path) -> None:
    decoder = CrossDecoder(tiny_whisper.save_bart(tmp_path))
    more = torch.randn(3, decoder.width)
    term = projected(decoder, more)
    prompts, empty = ["a dog", "rain"], Prefix.empty(2, decoder.width)
    prefix = SidePrefix.alone(term, 2, decoder.width, "cpu")
    state, plain = (decoder.append_prompts(decoder.prefill(one), prompts) for one in (prefix, empty))
    assert state.memory is not None
    assert plain.memory is not None
    assert torch.equal(state.memory.mask, torch.cat([torch.ones(2, 3, dtype=torch.bool), plain.memory.mask], 1))
    for n, ((keys, values), (own_keys, own_values)) in enumerate(
        zip(state.memory.layers, plain.memory.layers, strict=True)
    ):
        assert torch.equal(keys, torch.cat([term.keys[:, n].expand(2, -1, -1, -1), own_keys], 2))
        assert torch.equal(values, torch.cat([term.values[:, n].expand(2, -1, -1, -1), own_values], 2))
    losses = [decoder.text_loss(decoder.prefill(one), prompts, TEXTS).nll for one in (prefix, empty)]
    assert (losses[0] - losses[1]).abs().min() > 1e-4


def test_training_moves_both_prefixes(spoken: SpeechSystem) -> None:
    decoder = CrossDecoder(spoken.path("whisper"))
    torch.manual_seed(0)
    mappers = [partial(DeepTable, length=2), partial(CrossPrefix, length=2)]
    mapper = Parallel(Sizes(0, 0, decoder.width, decoder.layers, decoder.heads, decoder.head_width), mappers=mappers)
    loss = decoder.text_loss(decoder.prefill(mapper(Features.empty(2)), frames(6, 0)), ["", ""], TEXTS).nll.sum()
    gradients = torch.autograd.grad(loss, list(mapper.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_a_decoder_without_cross_attention_refuses_them_by_name(tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path))
    with pytest.raises(InputError, match="has no cross-attention, so no keys and values"):
        PrefixLM({}, decoder, CrossPrefix).text_loss(Batch({}, [""], [["a dog"]], [""], ["0"]))
