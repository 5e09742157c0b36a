"""LAE's calibrated prefix in a forward pass by hand: loss, search, and a text that is written piece by piece."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.compensated_prefix import CompensatedPrefix
from mmprefix.model import PrefixLM
from mmprefix.types import Batch
from tiny.by_hand import Attention, causal_scores, log_probs, plain
from tiny.decoders import save_decoder

PROMPTS, TARGETS = ["the", "a green"], [["a dog barks"], ["rain falls loudly over a hill"]]


def by_hand(mapper: Any, group: int) -> Attention:
    """Softmax over prefix and text, whose weights on the prefix are divided by their sum."""

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, module: Any) -> Tensor:
        if layer >= mapper.key_values.shape[1]:
            return plain(layer, q, k, v, hidden, module)
        own_k, own_v = (part[layer].repeat_interleave(group, 0) for part in mapper.key_values)
        scores = torch.cat([q @ own_k.transpose(-1, -2) / q.shape[-1] ** 0.5, causal_scores(q, k)], -1)
        prefix, text = scores.softmax(-1).split([own_k.shape[1], k.shape[1]], -1)
        return prefix / prefix.sum(-1, keepdim=True) @ own_v + text @ v

    return attention


@pytest.mark.parametrize(("kind", "group"), [("gpt2", 1), ("llama", 2)])
@pytest.mark.parametrize("layers", [None, 1])
def test_loss_and_search_equal_the_formula(kind: str, group: int, layers: int | None, tmp_path: Path) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path, kind))
    torch.manual_seed(0)
    model = PrefixLM({}, decoder, partial(CompensatedPrefix, length=3, layers=layers, std=1.0))
    attention = by_hand(model.task_prefix, group)

    def nll(prompt: list[int], ids: list[int]) -> float:
        scores = log_probs(decoder.lm, prompt + ids[:-1], attention)[len(prompt) - 1 :]
        return -float(scores[torch.arange(len(ids)), ids].sum())

    batch = Batch({}, PROMPTS, TARGETS, [""] * 2, ["0", "1"])
    with torch.no_grad():
        losses = model.text_loss(batch).nll.tolist()
        state = decoder.append(model.prefill(batch), PROMPTS)
        written = decoder.search_tokens(state, GenerateOptions(max_new_tokens=5, num_beams=3), torch.tensor([0]))
        for prompt, (target,), loss, (best, *_) in zip(PROMPTS, TARGETS, losses, written, strict=True):
            before = decoder.codec.prompt_ids(prompt, True)
            assert loss == pytest.approx(nll(before, decoder.codec.target_ids(prompt, target)), abs=2e-3)
            ids, mean = best[0], best[1]
            assert mean * len(ids) == pytest.approx(-nll(before, ids), abs=2e-3)


def test_layers_that_there_are_not_are_refused() -> None:
    for layers in (0, 3):
        with pytest.raises(InputError, match=rf"CompensatedPrefix.layers {layers}: the decoder has 2"):
            CompensatedPrefix(Sizes(0, 0, 16, 2, 2, 8), layers=layers)
