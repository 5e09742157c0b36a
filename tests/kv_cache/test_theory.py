"""Reach and limits of a prefix in a layer of attention, on tiny models.

When Do Prompting and Prefix-Tuning Work? A Theory of Capabilities and Limitations (Petrov, Torr, Bibi),
https://arxiv.org/abs/2310.19698: over a deep prefix, the output of an attention head is a * (a mixture of the prefix's
values) + (1 - a) * (the output without it). The weights of the content keep their ratios.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.kv_cache.recorded_attention import recorded_attention
from mmprefix.kv_cache.side_attention import plain_attention
from mmprefix.kv_cache.side_terms import AttentionCall
from mmprefix.mappers.aligner import Aligner
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.model import PrefixLM
from mmprefix.types import Prefix
from tiny import decoders as tiny_decoders

P = 4
TEXT = "a dog barks loudly. the cat runs over a green hill"


def first_layer(decoder: CausalDecoder, prefix: Any) -> AttentionCall:
    """Call of the first layer's attention while the text is read after ``prefix``."""
    state = decoder.prefill(prefix)
    with recorded_attention(decoder.language_model.stack) as calls:
        decoder.append_ids(state, [decoder.codec.subword_ids(TEXT)])
    return calls[0]


def weights_of(call: AttentionCall) -> Tensor:
    """Attention weights (H' N T)."""
    return call.masked_scores().softmax(-1)[0]


@pytest.fixture(params=["gpt2", "llama"])
def calls(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[AttentionCall, AttentionCall]:
    """Attention of the text's queries, with keys and values of a deep prefix before the text's own, and without.

    The content has the same positions in both: those behind the prefix.
    """
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, request.param))
    torch.manual_seed(0)
    model = PrefixLM({}, decoder, partial(DeepTable, length=P, std=2.0))
    own = first_layer(decoder, model.build_prefix({}, count=1))
    mask = None if own.mask is None else own.mask[..., P:]
    alone = AttentionCall(own.queries, own.keys[:, :, P:], own.values[:, :, P:], own.scale, own.softcap, mask)
    return own, alone


def test_weights_of_the_content_keep_their_ratios(calls: tuple[AttentionCall, AttentionCall]) -> None:
    own, alone = calls
    with_prefix, without = weights_of(own), weights_of(alone)
    share = with_prefix[..., :P].sum(-1, keepdim=True)
    assert share.min() > 1e-4  # the prefix draws attention everywhere
    assert (1 - share).min() > 1e-6
    content = with_prefix[..., P:]
    assert torch.allclose(content / content.sum(-1, keepdim=True), without, atol=1e-5)


def test_the_output_is_the_old_one_made_smaller_plus_a_bias_from_the_prefix_alone(
    calls: tuple[AttentionCall, AttentionCall],
) -> None:
    own, alone = calls
    share = weights_of(own)[..., :P].sum(-1).transpose(0, 1)[None, ..., None]  # (1 N H' 1)
    prefix = AttentionCall(own.queries, own.keys[:, :, :P], own.values[:, :, :P], own.scale, own.softcap)
    mixture = plain_attention(prefix)  # depends on the query, never on the content
    assert torch.allclose(plain_attention(own), share * mixture + (1 - share) * plain_attention(alone), atol=1e-4)
    values = own.for_queries(own.values)[0, :, :P]  # (H' P K)
    low, high = values.amin(1), values.amax(1)
    assert bool(((mixture[0] >= low - 1e-4) & (mixture[0] <= high + 1e-4)).all())  # within the prefix's values


def test_one_position_adds_one_direction_whatever_the_query(tmp_path: Path) -> None:
    """With P = 1 the mixture is the prefix's value itself: the bias has a fixed direction."""
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path))
    torch.manual_seed(1)
    model = PrefixLM({}, decoder, partial(DeepTable, length=1, std=2.0))
    own = first_layer(decoder, model.build_prefix({}, count=1))
    mask = None if own.mask is None else own.mask[..., 1:]
    alone = AttentionCall(own.queries, own.keys[:, :, 1:], own.values[:, :, 1:], own.scale, own.softcap, mask)
    share = weights_of(own)[..., 0].transpose(0, 1)[None, ..., None]
    moved = (plain_attention(own) - (1 - share) * plain_attention(alone)) / share
    assert torch.allclose(moved, own.values[:, :, 0][:, None].expand_as(moved), atol=1e-2)


def test_a_term_beside_the_softmax_leaves_the_old_output_whole(tmp_path: Path) -> None:
    """Aligner adds a bias and takes no weight from the content."""
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path))
    torch.manual_seed(2)
    model = PrefixLM({}, decoder, partial(Aligner, length=2, first=0))
    plain = first_layer(decoder, Prefix.empty(1, decoder.width))
    with_term = first_layer(decoder, model.build_prefix({}, count=1))
    assert torch.equal(weights_of(with_term), weights_of(plain))
