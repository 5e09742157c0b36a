"""Next-token log-probabilities by blocks equal those of all hypotheses at once; top-k by chunks equals top-k."""

from __future__ import annotations

import pytest
import torch

from mmprefix.fast.chunked_topk import chunked_topk
from mmprefix.generation import next_tokens as module
from mmprefix.generation.next_tokens import NextTokens, NoRepeatNgram, SuppressTokens


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


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("max_logits", [1, 20_000, 1 << 20])
@pytest.mark.parametrize("first", [True, False])
def test_blocks_equal_the_whole(
    temperature: float, max_logits: int, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LOGITS", max_logits)
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 1 if first else 3, 3001, generator=random)
    hypotheses = torch.randint(0, 5, (6, 3, 4), generator=random)
    hypotheses = hypotheses[:, :1].expand(-1, 3, -1) if first else hypotheses
    processors = [NoRepeatNgram(2), SuppressTokens(torch.tensor([1, 2]))]
    expected = logits.log_softmax(-1).expand(-1, 3, -1)
    for processor in processors:
        expected = processor(expected, hypotheses)
    expected = expected if temperature == 1 else (expected / temperature).log_softmax(-1)
    next_tokens = NextTokens(logits, hypotheses, processors)
    assert torch.equal(next_tokens.log_probs(temperature), expected)
    for count in (1, 6):
        values, tokens = next_tokens.top(count, temperature)
        assert torch.equal(values, expected.topk(count).values)
        assert torch.equal(tokens, expected.topk(count).indices)
