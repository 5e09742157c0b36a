"""The teacher: logits against Transformers' own, the likeliest tokens, the loss against the formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from mmprefix.decoders import CausalDecoder
from mmprefix.distillation.teacher import ask_teacher, distillation_loss, mean_loss
from mmprefix.types import Prefix
from tiny import decoders as tiny_decoders

pytestmark = pytest.mark.numeric
CONTEXT = "some rain falls on the old roof"
TEXTS = ["a dog barks", ("; the", "cat runs over a green hill"), (" and", "")]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_expectations_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, kind))
    expected = ask_teacher(decoder, CONTEXT, TEXTS, top=5, batch_size=2)
    for text, own in zip(TEXTS, expected, strict=True):
        prompt, target = ("", text) if isinstance(text, str) else text
        before = [*decoder.codec.marked_ids(CONTEXT), *decoder.codec.marked_ids(prompt)]
        ids = decoder.codec.target_ids(prompt, target)
        assert own.ids == ids
        logits = cast(Any, decoder.lm)(torch.tensor([[*before, *ids[:-1]]])).logits[0, len(before) - 1 :]
        best = logits.log_softmax(-1).topk(5)
        assert own.tokens.tolist() == best.indices.tolist()
        assert torch.allclose(own.log_probs, best.values, atol=1e-3)


def test_the_loss_is_the_formula_over_all_tokens(tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, "llama"))
    expected = ask_teacher(decoder, CONTEXT, TEXTS, top=3)
    torch.manual_seed(0)
    logits = torch.randn(len(expected[1].ids), 320)
    losses = distillation_loss(logits, expected[1])
    for n, loss in enumerate(losses.tolist()):
        pairs = zip(expected[1].tokens[n].tolist(), expected[1].log_probs[n].exp().tolist(), strict=True)
        assert loss == pytest.approx(-sum(p * float(logits[n].log_softmax(-1)[token]) for token, p in pairs), abs=1e-4)

    state = decoder.prefill(Prefix.empty(len(TEXTS), decoder.width))
    state = decoder.append_prompts(state, [CONTEXT] * len(TEXTS))
    of_itself = mean_loss(decoder, state, expected)  # behind the context the teacher meets itself
    entropy = torch.cat([-(own.log_probs.exp() * own.log_probs).sum(1) for own in expected]).mean()
    assert float(of_itself) == pytest.approx(float(entropy), abs=1e-3)
