"""What a search is offered, a few lines at a time: the same as all of it at once."""

from __future__ import annotations

import pytest
import torch

from mmprefix.fast.chunked_topk import chunked_topk
from mmprefix.generation import next_tokens as module
from mmprefix.generation.next_tokens import NextTokens, NoRepeatNgram, SuppressTokens


@pytest.mark.parametrize("wide", [1, 7, 300, 2560, 5003])
@pytest.mark.parametrize("count", [1, 2, 10])
def test_the_largest_are_topk(wide: int, count: int) -> None:
    values = torch.randn(3, 5, wide, generator=torch.Generator().manual_seed(wide))
    count = min(count, wide)
    found, wanted = chunked_topk(values, count), values.topk(count)
    assert torch.equal(found[0], wanted.values)
    assert torch.equal(found[1], wanted.indices)


def test_tokens_that_are_not_offered_come_last() -> None:
    values = torch.full((2, 5000), float("-inf"))
    values[0, [3, 4999]] = torch.tensor([1.0, 2.0])
    found, places = chunked_topk(values, 4)
    assert places[0, :2].tolist() == [4999, 3]
    assert found[0, 2:].isinf().all()
    assert found[1].isinf().all()
    assert len(set(places[1].tolist())) == 4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("numbers", [1, 20_000, 1 << 20])
@pytest.mark.parametrize("first", [True, False])
def test_blocks_give_what_the_whole_gives(
    temperature: float, numbers: int, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LOGITS", numbers)
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 1 if first else 3, 3001, generator=random)
    lines = torch.randint(0, 5, (6, 3, 4), generator=random)
    lines = lines[:, :1].expand(-1, 3, -1) if first else lines
    rules = [NoRepeatNgram(2), SuppressTokens(torch.tensor([1, 2]))]
    whole = logits.log_softmax(-1).expand(-1, 3, -1)
    for rule in rules:
        whole = rule(whole, lines)
    whole = whole if temperature == 1 else (whole / temperature).log_softmax(-1)
    offer = NextTokens(logits, lines, rules)
    assert torch.equal(offer.log_probs(temperature), whole)
    for count in (1, 6):
        values, tokens = offer.top(count, temperature)
        assert torch.equal(values, whole.topk(count).values)
        assert torch.equal(tokens, whole.topk(count).indices)
