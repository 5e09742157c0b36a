"""Fusion: the context changes the prefix, padding does not, an empty context is learned, and UAPT's whole line runs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.fusion import Fusion
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.mappers.query_guided import QueryGuided
from mmprefix.parts import builder_from_recipe, to_recipe
from mmprefix.types import Features

pytestmark = pytest.mark.numeric

SIZES = Sizes(12, 20, 32, 2, 2, 8, context_frames=6, context_summary=4)


def features(lengths: list[int], frames: int, summary: int, seed: int) -> Features:
    torch.manual_seed(seed)
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return Features(torch.randn(len(lengths), longest, frames), mask, torch.randn(len(lengths), summary))


@pytest.fixture
def fusion() -> Fusion:
    torch.manual_seed(0)
    return Fusion(SIZES, mapper=partial(QueryGuided, length=3, heads=4), heads=4, hidden=16).eval()


OWN = features([5, 2, 4], 12, 20, seed=1)
WORDS = features([3, 6, 1], 6, 4, seed=2)


def test_the_context_changes_the_prefix_and_only_that_of_its_row(fusion: Fusion) -> None:
    before = fusion(OWN, WORDS).embeds
    other = replace(WORDS, frames=WORDS.frames * torch.tensor([-1.0, 1, 1])[:, None, None])
    after = fusion(OWN, other).embeds
    assert (before[0] - after[0]).abs().max() > 1e-3
    assert torch.allclose(before[1:], after[1:], atol=1e-6)


def test_a_batch_equals_its_items_whatever_stands_in_the_padding(fusion: Fusion) -> None:
    dirty = replace(WORDS, frames=WORDS.frames.masked_fill(~WORDS.mask[..., None], 1e3))
    together = fusion(OWN, dirty).embeds
    for row, (length, words) in enumerate(zip((5, 2, 4), (3, 6, 1), strict=True)):
        own = Features(OWN.frames[row : row + 1, :length], OWN.mask[row : row + 1, :length], OWN.pooled[row : row + 1])
        beside = Features(
            WORDS.frames[row : row + 1, :words], WORDS.mask[row : row + 1, :words], WORDS.pooled[row : row + 1]
        )
        assert torch.allclose(together[row], fusion(own, beside).embeds[0], atol=1e-5)


def test_a_user_without_history_has_the_learned_empty_context(fusion: Fusion) -> None:
    absent = WORDS.mask_rows(torch.tensor([False, True, False]))
    prefix = fusion(OWN, absent)
    none = Features.empty(3, frames=6, summary=4)
    assert torch.allclose(prefix.embeds[1], fusion(OWN, none).embeds[1], atol=1e-5)
    fusion.train()
    fusion(OWN, none).embeds.sum().backward()
    assert fusion.empty.grad is not None
    assert fusion.empty.grad.abs().max() > 0


def test_hidden_contexts_train_the_empty_one(fusion: Fusion) -> None:
    fusion.train()
    fusion.context_dropout = 1.0
    assert torch.allclose(
        fusion(OWN, WORDS).embeds, fusion(OWN, Features.empty(3, frames=6, summary=4)).embeds, atol=1e-5
    )


def test_a_recipe_builds_it_again_and_deep_makes_keys_of_it(fusion: Fusion) -> None:
    recipe = to_recipe(fusion)
    rebuilt = builder_from_recipe(recipe, Fusion)(SIZES).eval()
    rebuilt.load_state_dict(fusion.state_dict())
    assert torch.allclose(rebuilt(OWN, WORDS).embeds, fusion(OWN, WORDS).embeds, atol=1e-6)
    deep = Deep(SIZES, mapper=partial(Fusion, mapper=partial(MLP, length=2), heads=4))
    assert deep.reads_context
    assert deep(OWN, WORDS).keys.shape == (2, 3, 2, 2, 8)


def test_misfits_are_refused() -> None:
    with pytest.raises(InputError, match="heads=5 does not divide the width 32"):
        Fusion(SIZES, mapper=partial(MLP, length=2), heads=5)
    with pytest.raises(InputError, match="put Fusion inside it"):
        Fusion(SIZES, mapper=partial(Deep, mapper=partial(MLP, length=2)))
    with pytest.raises(InputError, match="reads a context and got none"):
        Fusion(SIZES, mapper=partial(MLP, length=2))(OWN)


def test_a_context_of_a_summary_alone_is_read(fusion: Fusion) -> None:
    alone = replace(Features.empty(3, frames=6), pooled=WORDS.pooled)
    absent = Features.empty(3, frames=6, summary=4)
    assert (fusion(OWN, alone).embeds - fusion(OWN, absent).embeds).abs().max() > 1e-3
    hidden = alone.mask_rows(torch.tensor([True, True, True]))
    assert torch.allclose(fusion(OWN, hidden).embeds, fusion(OWN, absent).embeds, atol=1e-6)


def test_rows_without_a_real_frame_have_numbers() -> None:
    torch.manual_seed(0)
    mapper = QueryGuided(Sizes(12, 0, 32), length=3, heads=4).eval()
    own = replace(features([5, 2], 12, 0, seed=1), mask=torch.tensor([[True] * 5, [False] * 5]))
    prefix = mapper(own).embeds
    prefix.square().sum().backward()
    assert prefix.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mapper.parameters())
    dirty = replace(own, frames=own.frames.masked_fill(~own.mask[..., None], 1e3))
    assert torch.allclose(mapper(dirty).embeds, prefix, atol=1e-5)
    assert torch.allclose(mapper(Features.empty(2, frames=12)).embeds[0], prefix[1], atol=1e-5)


def test_the_scale_of_the_context_does_not_matter(fusion: Fusion) -> None:
    """Encoders of sentences give vectors of length 1, others numbers around 1."""
    small = replace(WORDS, frames=WORDS.frames * 0.05, pooled=WORDS.pooled * 0.05)
    torch.testing.assert_close(fusion(OWN, small).embeds, fusion(OWN, WORDS).embeds, rtol=0, atol=0.01)
