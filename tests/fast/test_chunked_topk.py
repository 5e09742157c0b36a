"""Top-k by chunks equals ``torch.topk``, excluded values included."""

from __future__ import annotations

import pytest
import torch

from mmprefix.fast.chunked_topk import chunked_topk


@pytest.mark.parametrize("size", [1, 7, 300, 2560, 5003])
@pytest.mark.parametrize("count", [1, 2, 10])
def test_top_k_by_chunks_equals_top_k(size: int, count: int) -> None:
    values = torch.randn(3, 5, size, generator=torch.Generator().manual_seed(size))
    count = min(count, size)
    top, expected = chunked_topk(values, count), values.topk(count)
    assert torch.equal(top[0], expected.values)
    assert torch.equal(top[1], expected.indices)


def test_excluded_tokens_come_last() -> None:
    values = torch.full((2, 5000), float("-inf"))
    values[0, [3, 4999]] = torch.tensor([1.0, 2.0])
    top, ids = chunked_topk(values, 4)
    assert ids[0, :2].tolist() == [4999, 3]
    assert top[0, 2:].isinf().all()
    assert top[1].isinf().all()
    assert len(set(ids[1].tolist())) == 4
