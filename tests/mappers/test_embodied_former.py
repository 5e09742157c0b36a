"""Embodied-former: the published layers' numbers, what it reads of video and instruction, its sizes, its errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.embodied_former import EmbodiedFormer
from mmprefix.types import Features

D, E, C = 12, 16, 10
SIZES = Sizes(D, 0, E, context_frames=C)


def features(frames: int, width: int, rows: int = 2, seed: int = 0) -> Features:
    torch.manual_seed(seed)
    mask = torch.ones(rows, frames, dtype=torch.bool)
    return Features(torch.randn(rows, frames, width), mask, torch.zeros(rows, 0))


def former(**options: float) -> EmbodiedFormer:
    torch.manual_seed(1)
    return EmbodiedFormer(SIZES, **{"length": 3, "layers": 2, "heads": 4, "hidden": 24, **options}).eval()


def pairs(own: Any, theirs: Any) -> Iterator[tuple[Any, Any]]:
    """Modules of the same part in both."""
    yield own.norm, theirs.layernorm
    for mine, layer in zip(own.layers, theirs.encoder.layer, strict=True):
        blocks = [(mine.attention, layer.attention)]
        blocks += [(mine.cross, layer.crossattention)] if layer.has_cross_attention else []
        for block, other in blocks:
            yield from ((block.query, other.attention.query), (block.key, other.attention.key))
            yield from ((block.value, other.attention.value), (block.out, other.output.dense))
            yield block.norm, other.output.LayerNorm
        yield from ((mine.of_queries.rise, layer.intermediate_query.dense),)
        yield from (
            (mine.of_queries.fall, layer.output_query.dense),
            (mine.of_queries.norm, layer.output_query.LayerNorm),
        )
        if mine.of_text is not None:
            yield from ((mine.of_text.rise, layer.intermediate.dense), (mine.of_text.fall, layer.output.dense))
            yield mine.of_text.norm, layer.output.LayerNorm


def test_its_layers_are_those_of_the_published_q_former():
    """Queries and text through Transformers' own Q-Former with the same weights give the same numbers."""
    own = former(layers=4)
    config = Blip2QFormerConfig(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=96,
        encoder_hidden_size=D,
        cross_attention_frequency=2,
        use_qformer_text_input=True,
    )
    theirs = Blip2QFormerModel(config).eval()
    for mine, other in pairs(own, theirs):
        other.load_state_dict(mine.state_dict())
    video, text = features(5, D), features(4, C, seed=1)
    text.mask[1, 2:] = False
    assert own.from_text is not None
    both = torch.cat([own.queries.expand(2, -1, -1), own.from_text(text.frames)], dim=1)
    mask = torch.cat([torch.ones(2, 3, dtype=torch.bool), text.mask], dim=1)
    frames = own.norm_frames(video.frames)
    output = theirs(both, query_length=3, attention_mask=mask.long(), encoder_hidden_states=frames)
    assert_close(own(video, text).embeds, own.out(output.last_hidden_state[:, :3]))


def test_the_instruction_changes_what_is_read_and_padding_does_not():
    own, video, text = former(), features(6, D), features(4, C, seed=1)
    prefix = own(video, text)
    assert prefix.embeds.shape == (2, 3, E)
    assert prefix.mask.all()
    assert (own(video, features(4, C, seed=2)).embeds - prefix.embeds).abs().amax() > 1e-3
    longer = Features(torch.cat([text.frames, torch.full((2, 2, C), 50.0)], 1), torch.ones(2, 6).bool(), text.pooled)
    longer.mask[:, 4:] = False
    assert_close(own(video, longer).embeds, prefix.embeds)


def test_it_reads_a_video_alone_where_there_is_no_instruction():
    alone = EmbodiedFormer(Sizes(D, 0, E), length=3, layers=1, heads=2, hidden=8)
    assert not alone.reads_context
    assert former().reads_context
    assert alone(features(6, D)).embeds.shape == (2, 3, E)
    nothing = Features.empty(2, "cpu", D)
    assert alone(nothing).embeds.isfinite().all()
    assert former()(features(6, D), Features.empty(2, "cpu", C)).embeds.isfinite().all()


def shuffled(video: Features, order: list[int], cells: int) -> Features:
    frames: Tensor = video.frames.unflatten(1, (-1, cells))[:, order].flatten(1, 2)
    return Features(frames, video.mask, video.pooled)


def test_it_sees_the_order_of_frames_by_positions_or_by_what_was_before():
    video, text = features(8, D), features(2, C)
    turned = shuffled(video, [2, 1, 0, 3], cells=2)
    bag, timed, spanning = former(cells=2), former(cells=2, frames=4), former(cells=2, span=2)
    assert_close(bag(video, text).embeds, bag(turned, text).embeds)
    for own in (timed, spanning):
        assert (own(video, text).embeds - own(turned, text).embeds).abs().amax() > 1e-4


def test_positions_and_the_sharpness_of_attention_before_training():
    """Logits of the attention to frames are ``sharpness`` times those of 1, positions as wide as ``spread``."""
    plain, own, video = former(cells=2, frames=4), former(cells=2, frames=4, spread=0.5, sharpness=4.0), features(8, D)
    for name in ("times", "places"):
        assert_close(getattr(own, name), getattr(plain, name) * 25)
    before: Any = plain.layers[0]
    after: Any = own.layers[0]
    x = torch.randn(2, 3, 24)
    logits = [layer.cross.query(x) @ layer.cross.key(video.frames).mT for layer in (before, after)]
    assert_close(logits[1], logits[0] * 4)
    assert_close(after.cross.value.weight, before.cross.value.weight)


def test_positions_of_neighbouring_cells_begin_alike_with_a_patch():
    """A corner and its neighbours share most of a position, the corner across nothing; the spread is what was asked."""
    torch.manual_seed(0)
    own = EmbodiedFormer(
        Sizes(2000, 0, E), length=2, layers=1, heads=2, hidden=8, frames=1, cells=64, spread=0.5, patch=3
    )
    assert own.places is not None
    places = own.places.detach()
    alike = torch.cosine_similarity(places[:1], places)
    assert alike[[1, 8, 9]].amin() > 0.6
    assert alike[[7, 56, 63]].abs().amax() < 0.15
    assert_close(places.std(), torch.tensor(0.5))
    x = places.view(8, 8, -1)
    assert_close(x[0, 0] + x[0, 2], 2 * x[0, 1])  # on a line between two of the few


def test_a_shorter_video_in_a_batch_is_read_as_if_alone():
    own, video, text = former(cells=2, frames=4, span=2), features(8, D), features(2, C)
    video.mask[1, 4:] = False
    video.frames[1, 4:] = 50.0
    short = Features(video.frames[1:, :4], video.mask[1:, :4], video.pooled[1:])
    alone = own(short, Features(text.frames[1:], text.mask[1:], text.pooled[1:]))
    assert_close(own(video, text).embeds[1:], alone.embeds)


def test_released_sizes_are_those_of_bert_base_with_six_cross_attentions():
    """12 layers of 768 over features of 1408; the sum is written out from the released configuration."""
    with torch.device("meta"):
        own = EmbodiedFormer(Sizes(1408, 0, 4096, context_frames=768))
    h, inner, norm = 768, 3072, 2 * 768
    attention = 4 * (h * h + h) + norm
    cross = 2 * (h * h + h) + 2 * (1408 * h + h) + norm
    feed = h * inner + inner + inner * h + h + norm
    layers = 12 * (attention + feed) + 6 * cross + 11 * feed  # text's networks but the last
    around = 32 * h + norm + 2 * 1408 + (h * h + h) + (h * 4096 + 4096)  # queries, norms, text, language projection
    assert sum(value.numel() for value in own.parameters()) == layers + around


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "heads=5 does not divide"),
        ({"layers": 0}, "layers 0"),
        ({"span": 0}, "span 0"),
        ({"length": 0}, "length 0"),
        ({"sharpness": 0.0}, "sharpness 0.0"),
        ({"frames": 4, "cells": 9, "patch": 3}, "patch 3"),
        ({"frames": 4, "cells": 6, "patch": 2}, r"a square of cells \(6\)"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, float], message: str):
    with pytest.raises(InputError, match=message):
        former(**options)


def test_a_video_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="no multiple"):
        former(cells=5)(features(6, D), features(2, C))
    with pytest.raises(InputError, match="a video has 6 frames"):
        former(frames=4)(features(6, D), features(2, C))
    with pytest.raises(InputError, match="frames"):
        EmbodiedFormer(Sizes(0, 4, E))
