"""Attention of mappers over frames: weights against a mapper's own, padding, and places of a grid."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mmprefix import InputError, Predictor
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.vit import ViT
from mmprefix.encoders.whisper import Whisper
from mmprefix.inspection import attention_maps
from mmprefix.inspection.frame_attention import frame_attention
from mmprefix.inspection.frame_places import picture_cells
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.fusion import Fusion
from mmprefix.mappers.prefix_aac import PrefixAAC
from mmprefix.mappers.query_guided import QueryGuided
from mmprefix.mappers.resampler import Resampler
from mmprefix.mappers.transformer import Transformer
from mmprefix.model import Branch, PrefixLM
from mmprefix.types import Features
from tiny.models import RATE, random_picture, tone

SIZES = Sizes(12, 20, 32, 2, 2, 8, context_frames=6, context_summary=4)
MAPPERS = {
    "resampler": partial(Resampler, length=3, heads=4, layers=2),
    "query guided": partial(QueryGuided, length=3, heads=4, layers=2),
    "prefix-aac": partial(PrefixAAC, length=3, heads=4, layers=2),
    "fusion": partial(Fusion, mapper=partial(QueryGuided, length=3, heads=4), heads=4),
}


def features(lengths: list[int]) -> Features:
    torch.manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Features(torch.randn(len(lengths), max(lengths), 12), mask, torch.randn(len(lengths), 20))


def made(name: str) -> Mapper:
    torch.manual_seed(0)
    mapper = MAPPERS[name](SIZES).eval()
    for parameter in mapper.parameters():
        parameter.data += torch.randn(parameter.shape) * 0.3
    return mapper


@pytest.mark.parametrize("name", MAPPERS)
def test_weights_sum_to_one_over_real_frames_and_are_zero_in_padding(name: str) -> None:
    value = features([7, 3, 5])
    weights, share = frame_attention(made(name), value)
    assert weights.shape == (3, 3, 7)
    assert torch.allclose(weights.sum(2), torch.ones(3, 3), atol=1e-5)
    assert not weights.masked_select(~value.mask[:, None].expand_as(weights)).any()
    assert ((share > 0) & (share <= 1.00001)).all()
    assert weights.std() > 0.01
    own = Features(value.frames[1:2, :3], value.mask[1:2, :3], value.pooled[1:2])
    assert torch.allclose(frame_attention(made(name), own)[0][0], weights[1, :, :3], atol=1e-5)


def test_weights_are_those_that_attention_itself_gives() -> None:
    mapper, value, caught = made("query guided"), features([7, 3, 5]), list[Tensor]()
    assert isinstance(mapper, QueryGuided)

    def keep(module: nn.Module, args: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
        assert isinstance(module, nn.MultiheadAttention)
        caught.append(nn.MultiheadAttention.forward(module, *args, **{**options, "need_weights": True})[1])  # pyright: ignore

    hooks = [
        layer.multihead_attn.register_forward_pre_hook(keep, with_kwargs=True)  # pyright: ignore
        for layer in mapper.layers.layers
    ]
    before = mapper(value)
    for hook in hooks:
        hook.remove()
    weights, share = frame_attention(mapper, value)
    expected = torch.stack(caught).mean(0)[..., 1:]  # the first key is the summary
    assert torch.allclose(weights * share[..., None], expected, atol=1e-5)
    assert torch.equal(mapper(value).embeds, before.embeds)


def test_a_resampler_whose_queries_match_one_frame_looks_at_it() -> None:
    mapper = Resampler(Sizes(8, 0, 8), length=1, layers=1, heads=1)
    for part in (mapper.layers[0].query, mapper.layers[0].key_value, mapper.from_frames):
        nn.init.zeros_(part.bias)  # pyright: ignore
    eye = torch.eye(8)
    mapper.from_frames.weight.data = eye  # pyright: ignore
    mapper.layers[0].query.weight.data = 30 * eye  # pyright: ignore
    mapper.layers[0].key_value.weight.data = torch.cat([30 * eye, eye])  # pyright: ignore
    mapper.queries.data = eye[3:4]
    frames = eye[None, :6]
    value = Features(frames, torch.ones(1, 6, dtype=torch.bool), torch.zeros(1, 0))
    weights, _ = frame_attention(mapper, value)
    assert weights[0, 0].argmax() == 3
    assert weights[0, 0, 3] > 0.99


def test_mappers_without_attention_to_frames_are_refused() -> None:
    for mapper in (Transformer(SIZES, length=2, clip_length=2, layers=1, heads=4), None):
        with pytest.raises(InputError, match="reads no frames by attention; use kind='occlusion'"):
            frame_attention(mapper, features([2]))
    with pytest.raises(InputError, match="this input has no frames"):
        frame_attention(made("resampler"), Features.empty(1, frames=12, summary=20))


def test_cells_lie_on_the_part_of_the_picture_that_is_seen(parts: dict[str, Path]) -> None:
    encoder = ViT(str(parts["image"]))
    for size in ((96, 48), (48, 96), (60, 60)):
        side = int(encoder.preprocess(random_picture(0).resize(size), 0.0, None).shape[1])
        before, x, y = picture_cells(encoder, random_picture(0).resize(size), 17)
        assert (before, len(x), len(y)) == (1, 5, 5)
        for edges, whole in ((x, size[0]), (y, size[1])):
            assert edges[0] + edges[-1] == pytest.approx(whole, abs=1.5)  # in the middle
            assert edges[-1] - edges[0] <= whole
            assert side > 0
    with pytest.raises(InputError, match="8 frames are no square grid"):
        picture_cells(encoder, random_picture(0), 8)


def test_maps_of_attention_cover_frames_of_pictures_and_sounds(tiny_model: Predictor, parts: dict[str, Path]) -> None:
    maps = attention_maps(tiny_model, random_picture(0), kind="attention")
    assert maps.method == "attention"
    assert maps.values.shape[0] == 3
    assert maps.values.shape[1] == maps.values.shape[2] == len(maps.x) - 1
    assert maps.values.reshape(3, -1).max(1).tolist() == [1.0] * 3
    assert ((maps.strength > 0) & (maps.strength < 1)).all()
    from mmprefix.inspection import heat_picture

    assert isinstance(heat_picture(random_picture(0), maps, 1), Image.Image)
    torch.manual_seed(0)
    branch = Branch(Whisper(str(parts["audio"])), partial(Resampler, length=2, heads=2))
    hears = Predictor(PrefixLM({"audio": branch}, CausalDecoder(str(parts["decoder"]))))
    listened = attention_maps(hears, (tone(0.8, 300.0), RATE), kind="attention")
    assert listened.x[-1] == pytest.approx(0.8)
    assert listened.values.shape == (2, len(listened.x) - 1)
    assert np.diff(listened.x) == pytest.approx([listened.x[1]] * (len(listened.x) - 1))
