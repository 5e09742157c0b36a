"""Layers of a Q-Former beside BERT's in Transformers, and what queries and text see of each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from mmprefix.mappers.qformer_layers import FormerLayer

WIDTH, FRAMES, HEADS, INNER = 16, 12, 4, 24


def layer_of(*, cross: bool, text: bool) -> FormerLayer:
    torch.manual_seed(0)
    return FormerLayer(WIDTH, FRAMES, HEADS, inner=INNER, dropout=0.3, cross=cross, text=text).eval()


def run(layer: FormerLayer, x: Tensor, mask: Tensor, frames: Tensor, seen: Tensor, length: int) -> Tensor:
    return layer(x, mask, frames, seen, length=length)


def shown(count: int = 2, positions: int = 7, times: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, mask, frames and what is seen of them, ragged."""
    torch.manual_seed(1)
    mask = torch.arange(positions) < torch.tensor([positions, 5])[:, None]
    seen = torch.arange(times) < torch.tensor([times, 2])[:, None]
    return torch.randn(count, positions, WIDTH), mask, torch.randn(count, times, FRAMES), seen


def test_without_frames_it_is_a_layer_of_bert() -> None:
    config: Any = BertConfig(hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=INNER)
    config._attn_implementation = "eager"
    theirs: Any = BertLayer(config).eval()
    ours = layer_of(cross=False, text=False)
    own, feed = ours.attention, ours.of_queries
    pairs = [
        (own.query, theirs.attention.self.query), (own.key, theirs.attention.self.key),
        (own.value, theirs.attention.self.value), (own.out, theirs.attention.output.dense),
        (own.norm, theirs.attention.output.LayerNorm), (feed.rise, theirs.intermediate.dense),
        (feed.fall, theirs.output.dense), (feed.norm, theirs.output.LayerNorm),
    ]  # fmt: skip
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    x, mask, frames, seen = shown()
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[:, None, None]
    expected = theirs(x, attention_mask=bias)
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert_close(run(ours, x, mask, frames, seen, x.shape[1])[mask], expected[mask], rtol=1e-4, atol=1e-5)


def test_queries_alone_see_the_frames_and_padding_is_seen_by_none() -> None:
    layer = layer_of(cross=True, text=True)
    x, mask, frames, seen = shown()
    out = run(layer, x, mask, frames, seen, 3)
    moved = run(layer, x, mask, frames + 1, seen, 3)
    assert torch.equal(moved[:, 3:], out[:, 3:])
    assert (moved[:, :3] - out[:, :3]).abs().amin(-1).max() > 1e-4
    dirty = run(layer, torch.where(mask[..., None], x, 1e3), mask, torch.where(seen[..., None], frames, 1e3), seen, 3)
    assert_close(dirty[mask], out[mask], rtol=1e-4, atol=1e-5)


def test_text_has_a_feed_forward_network_of_its_own_or_passes_by() -> None:
    x, mask, frames, seen = shown()
    layer = layer_of(cross=False, text=True)
    attended = layer.attention(x, x, mask)
    assert layer.of_text is not None
    out = run(layer, x, mask, frames, seen, 3)
    assert_close(out[:, :3], layer.of_queries(attended[:, :3]))
    assert_close(out[:, 3:], layer.of_text(attended[:, 3:]))
    last = layer_of(cross=False, text=False)
    assert_close(run(last, x, mask, frames, seen, 3)[:, 3:], last.attention(x, x, mask)[:, 3:])


def test_dropout_only_in_training() -> None:
    layer = layer_of(cross=True, text=True).train()
    x, mask, frames, seen = shown()
    assert not torch.equal(run(layer, x, mask, frames, seen, 3), run(layer, x, mask, frames, seen, 3))
    layer.eval()
    assert torch.equal(run(layer, x, mask, frames, seen, 3), run(layer, x, mask, frames, seen, 3))
