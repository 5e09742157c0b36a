"""A batch's prefix cut into those of its inputs: real positions alone, of either kind, and nothing shared with it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.inspection.prefix_rows import split_rows
from mmprefix.mappers.base import Sizes, join_layers
from mmprefix.mappers.dept import DecomposedPrompt
from mmprefix.mappers.ntk import NTKAttention
from mmprefix.types import AnyPrefix, DeepPrefix, Features, MixedPrefix, Prefix, concat_prefixes

L, H, K, E, B = 2, 3, 4, 8, 3
SIZES = Sizes(0, 0, E, L, H, K)


def deep(lengths: tuple[int, ...] = (2, 0, 1)) -> DeepPrefix:
    torch.manual_seed(0)
    keys, values = torch.randn(2, L, B, H, 2, K)
    return DeepPrefix(keys, values, torch.arange(2) < torch.tensor(lengths)[:, None])


def soft(lengths: tuple[int, ...] = (3, 1, 0)) -> Prefix:
    torch.manual_seed(1)
    return Prefix(torch.randn(B, 3, E), torch.arange(3) < torch.tensor(lengths)[:, None])


def test_rows_hold_their_real_positions_in_order() -> None:
    keys, words = deep(), soft()
    rows = split_rows(MixedPrefix(keys, words), ["a", "b", "c"])
    assert [row.lengths for row in rows] == [(2, 3), (0, 1), (1, 0)]
    assert [row.prompt for row in rows] == ["a", "b", "c"]
    joined = join_layers(keys)
    for b, row in enumerate(rows):
        expected: list[Tensor] = [*joined[b][keys.mask[b]], *words.embeds[b][words.mask[b]]]
        assert len(row.vectors) == len(expected)
        assert all(torch.equal(own, other) for own, other in zip(row.vectors, expected, strict=True))
    assert isinstance(rows[0].prefix(), MixedPrefix)
    assert isinstance(rows[1].prefix(), Prefix)
    last = rows[2].prefix()
    assert isinstance(last, DeepPrefix)
    assert last.mask.all()


@pytest.mark.parametrize("prefix", [deep((0, 1, 0)), soft((0, 1, 0))])
def test_an_input_without_positions_is_refused_when_it_is_read(prefix: AnyPrefix) -> None:
    rows = split_rows(prefix, [""] * B)
    assert rows[0].lengths == (0, 0)
    assert rows[0].vectors == []
    rows[1].prefix()
    with pytest.raises(InputError, match="has no position"):
        rows[0].prefix()


def test_a_row_is_a_copy() -> None:
    words = soft()
    row = split_rows(words, [""] * B)[0]
    before = row.vectors[0].clone()
    words.embeds.zero_()
    assert torch.equal(row.vectors[0], before)


@pytest.mark.parametrize("build", [NTKAttention, partial(DecomposedPrompt, length=3)])
def test_what_stands_at_no_position_is_told_of(build: type[NTKAttention]) -> None:
    beside = build(SIZES)(Features.empty(B))
    rows = split_rows(concat_prefixes([soft((3, 3, 3)), beside]), [""] * B)
    assert all(row.has_more for row in rows)
    gated = replace(soft(), gates=torch.zeros(B, 3, 2, L, E))
    assert all(row.has_more for row in split_rows(gated, [""] * B))
    assert not any(row.has_more for row in split_rows(soft(), [""] * B))
