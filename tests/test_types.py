"""Prefix values: masked rows, and one row expanded to a batch."""

from __future__ import annotations

import torch

from mmprefix.types import DeepPrefix, MixedPrefix, Prefix


def test_masked_rows_of_a_prefix_have_no_real_position() -> None:
    prefix = Prefix(torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, True, True]]))
    shape = (2, 2, 2, 3, 2)
    deep = DeepPrefix(torch.randn(shape), torch.randn(shape), prefix.mask)
    rows = torch.tensor([False, True])
    expected = [[True, True, False], [False] * 3]
    assert prefix.mask_rows(rows).mask.tolist() == deep.mask_rows(rows).mask.tolist() == expected
    both = MixedPrefix(deep, prefix).mask_rows(rows)
    assert both.deep.mask.tolist() == both.soft.mask.tolist() == expected


def test_a_mixed_prefix_of_one_row_is_expanded_to_a_batch() -> None:
    mask = torch.tensor([[True, True, False]])
    deep = DeepPrefix(torch.randn(2, 1, 2, 3, 2), torch.randn(2, 1, 2, 3, 2), mask)
    expanded = MixedPrefix(deep, Prefix(torch.randn(1, 3, 4), mask)).expand(3)
    assert expanded.deep.keys.shape == (2, 3, 2, 3, 2)
    assert torch.equal(expanded.deep.values[:, 2], deep.values[:, 0])
    assert expanded.soft.embeds.shape == (3, 3, 4)
    assert expanded.soft.mask.tolist() == expanded.deep.mask.tolist() == [[True, True, False]] * 3
