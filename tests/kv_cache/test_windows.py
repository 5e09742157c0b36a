"""Windows and chunks of packed, padded positions against the distances of their positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmprefix.kv_cache.cache import attention_mask, causal_mask, text_mask
from mmprefix.kv_cache.packing import pack_texts
from mmprefix.kv_cache.windows import Reach, Reaches

PAST = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)  # padding within


def packed() -> tuple[Tensor, Tensor]:
    """Mask (B N N) of three texts that share a row, and the offset (B N) of each token in its text."""
    texts = [
        [[1, 2, 3, 4, 5], [6, 7], [8, 9, 1]],
        [[1], [2, 3, 4], [5, 6, 7, 8, 9, 1]],
        [[2, 3, 4, 5], [1, 2, 3, 4, 5, 6]],
    ]
    _, text, offset = pack_texts(texts).unbind()
    return text_mask(text, offset), offset


def positions_and_keys() -> tuple[Tensor, Tensor, Tensor]:
    """Keys that each query attends to (B N M), positions of keys (B M) and of queries (B N), by counting."""
    visible, offset = packed()
    before = PAST.sum(1, keepdim=True)
    keys = torch.cat([PAST.cumsum(1) - 1, before + offset], dim=1)
    everything = torch.cat([PAST[:, None].expand(-1, visible.shape[1], -1), visible], dim=-1)
    return everything, keys, before + offset


@pytest.mark.parametrize("length", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("chunked", [False, True])
def test_reach_counts_positions_and_not_places_in_the_cache(length: int, chunked: bool) -> None:
    everything, keys, queries = positions_and_keys()
    distance = queries[:, :, None] - keys[:, None]
    near = queries[:, :, None] // length == keys[:, None] // length if chunked else distance < length
    assert torch.equal(Reach(length, chunked).limit(everything), everything & near)


def test_each_kind_of_layers_has_its_mask() -> None:
    visible, _ = packed()
    reaches = Reaches(by_kind={"full": Reach(), "near": Reach(3), "chunk": Reach(2, chunked=True)})
    masks = reaches.masks(PAST, visible, torch.float32)
    assert isinstance(masks, dict)
    everything, _, _ = positions_and_keys()
    assert torch.equal(masks["full"], attention_mask(PAST, visible, torch.float32))
    for kind, reach in reaches.by_kind.items():
        assert torch.equal(masks[kind][:, 0] == 0, reach.limit(everything))
    window = Reaches(Reach(3)).masks(PAST, visible, torch.float32)
    assert isinstance(window, Tensor)
    assert torch.equal(window, masks["near"])


def test_no_work_is_done_while_no_window_is_shorter_than_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    visible = causal_mask(torch.ones(3, 4, dtype=torch.bool))
    limited: list[Reach] = []
    limit = Reach.limit
    monkeypatch.setattr(Reach, "limit", lambda self, keys: [limited.append(self), limit(self, keys)][1])
    plain = attention_mask(PAST, visible, torch.float32)
    for reaches in (Reaches(), Reaches(Reach(10)), Reaches(by_kind={"full": Reach(), "near": Reach(10)})):
        mask = reaches.masks(PAST, visible, torch.float32)
        assert isinstance(mask, Tensor)
        assert torch.equal(mask, plain)
    assert not limited
    Reaches(Reach(9)).masks(PAST, visible, torch.float32)
    assert limited
