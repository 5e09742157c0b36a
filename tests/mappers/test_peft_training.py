"""Training of prefixes against PEFT's: from equal numbers on a padded batch equal losses, gradients and steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import peft
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.model import PrefixLM
from mmprefix.types import Batch
from tiny import decoders as tiny_decoders

P = 5
PROMPTS = ["the", "a green hill", "some rain falls", "a bell"]
TARGETS = ["a dog barks", "the cat.", "rain falls loudly over a hill", "the old roof rings"]


def padded(decoder: CausalDecoder) -> dict[str, Tensor]:
    """Ids, mask and labels (B N) of prompts and targets for Transformers' model."""
    codec = decoder.codec
    prompts = [codec.prompt_ids(prompt, first=False) for prompt in PROMPTS]
    targets = [codec.target_ids(prompt, text) for prompt, text in zip(PROMPTS, TARGETS, strict=True)]
    longest = max(len(a) + len(b) for a, b in zip(prompts, targets, strict=True))
    rows: list[tuple[list[int], list[int], list[int]]] = []
    for before, after in zip(prompts, targets, strict=True):
        real, free = len(before) + len(after), longest - len(before) - len(after)
        labels = [-100] * len(before) + after + [-100] * free
        rows.append((before + after + [0] * free, [1] * real + [0] * free, labels))
    ids, mask, labels = (torch.tensor(part) for part in zip(*rows, strict=True))
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def ours(decoder: CausalDecoder, deep: bool) -> tuple[PrefixLM, torch.nn.Parameter]:
    """Model of a prefix alone, and the numbers that are trained."""
    model = PrefixLM({}, decoder, lambda sizes: (DeepTable if deep else Learned)(sizes, length=P))
    (parameter,) = model.trained_parameters().values()
    return model.train(), parameter


def theirs(decoder: CausalDecoder, deep: bool) -> tuple[Any, torch.nn.Parameter]:
    """PEFT's model of the same language model, and its numbers; dropout is 0, as that of a frozen decoder."""
    options: dict[str, Any] = {"task_type": peft.TaskType.CAUSAL_LM, "num_virtual_tokens": P}
    settings = peft.PrefixTuningConfig(**options) if deep else peft.PromptTuningConfig(**options)
    lm = AutoModelForCausalLM.from_pretrained(decoder.identity.source)
    wrapped = cast(Any, peft.get_peft_model(lm, settings)).eval()
    return wrapped, wrapped.prompt_encoder["default"].embedding.weight


@pytest.mark.parametrize(("kind", "deep"), [("gpt2", True), ("gpt2", False), ("llama", False)])
def test_each_step_has_pefts_loss_and_gradient(kind: str, deep: bool, tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, kind))
    torch.manual_seed(0)
    (model, table), (wrapped, weight) = ours(decoder, deep), theirs(decoder, deep)

    def in_our_order(numbers: Tensor) -> Tensor:
        """PEFT's order (layer, key or value, head, number) → ours."""
        shape = (decoder.layers, 2, decoder.heads, decoder.head_width)
        return numbers.unflatten(-1, shape).transpose(-4, -3).flatten(-4) if deep else numbers

    with torch.no_grad():
        table.copy_(in_our_order(weight))
    batch = Batch({}, PROMPTS, [[text] for text in TARGETS], [""] * 4, list("abcd"))
    optimizers = [torch.optim.AdamW([numbers], lr=0.05) for numbers in (table, weight)]
    losses: list[float] = []
    for _ in range(4):
        loss, expected = model.text_loss(batch).mean(), wrapped(**padded(decoder)).loss
        assert_close(loss, expected, atol=1e-4, rtol=1e-5)
        loss.backward()
        expected.backward()
        assert table.grad is not None
        assert weight.grad is not None
        assert_close(table.grad, in_our_order(weight.grad), atol=1e-3 * float(weight.grad.abs().max()), rtol=0)
        losses.append(float(loss.detach()))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.01
