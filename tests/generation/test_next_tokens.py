"""Next-token log-probabilities by blocks of inputs equal those of all hypotheses at once."""

from __future__ import annotations

import pytest
import torch

from mmprefix.generation import next_tokens as module
from mmprefix.generation.next_tokens import NextTokens, NoRepeatNgram, SuppressTokens


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
