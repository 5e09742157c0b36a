"""Teacher: the decoder with a long text in its prompt; what it expects at each token of other texts is kept.

The likeliest tokens and their probabilities are computed once, so that the teacher does not run in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.kv_cache.cache import cache_over, causal_mask
from mmprefix.kv_cache.packing import pad_ids
from mmprefix.kv_cache.state import State
from mmprefix.types import AnyPrefix, Prefix

Text = str | tuple[str, str]
"""A text, or a prompt and the text behind it."""


@dataclass(frozen=True)
class Expected:
    """One text with the ``top`` likeliest tokens (N top) at each of its N tokens, and their log-probabilities."""

    prompt: str
    ids: list[int]
    tokens: Tensor
    log_probs: Tensor


def text_logits(decoder: ComposedDecoder, state: State, prompts: list[str], ids: list[list[int]]) -> list[Tensor]:
    """Logits (N V) of the N tokens of each text after ``state`` (B) and a prompt: the n-th predicts token n."""
    state = decoder.append(state, prompts)
    padded, mask = (part.to(state.mask.device) for part in pad_ids([row[:-1] for row in ids]))
    hidden = decoder.language_model.last_hidden(state)[:, None]
    if mask.shape[1]:
        decoder.language_model.require_room(state, mask.shape[1] + 1)
        offset = (mask.cumsum(1) - 1).clamp(min=0)
        places = {"visible": causal_mask(mask), "position_ids": decoder.position_ids(state, offset)}
        output = decoder.forward_tokens(state, cache_over(state.cache), decoder.embed(padded), **places)
        hidden = torch.cat([hidden, output], dim=1)
    real = torch.cat([hidden[b, : len(row)] for b, row in enumerate(ids)])
    return list(decoder.logits(real).float().split([len(row) for row in ids]))


@torch.no_grad()
def ask_teacher(
    decoder: ComposedDecoder,
    context: str,
    texts: Sequence[Text],
    *,
    top: int = 20,
    batch_size: int = 16,
    front: AnyPrefix | None = None,
    behind: Prefix | None = None,
) -> list[Expected]:
    """Expectations of ``decoder`` with ``front``, ``context``, ``behind`` and a prompt before each of ``texts``.

    ``front`` and ``behind`` are of one input. Updates of the latter belong to prompt and text, not to the context.
    """
    expected: list[Expected] = []
    pairs = [("", text) if isinstance(text, str) else text for text in texts]
    nothing = Prefix.empty(1, decoder.width, decoder.language_model.device)
    state = decoder.append_prompts(decoder.prefill(nothing if front is None else front), [context])
    if behind is not None:
        state = decoder.prefill_plain(behind, state).begin_text(behind)
    for start in range(0, len(pairs), batch_size):
        chunk = pairs[start : start + batch_size]
        prompts = [prompt for prompt, _ in chunk]
        ids = [decoder.codec.target_ids(prompt, text) for prompt, text in chunk]
        rows = state.select(torch.zeros(len(chunk), dtype=torch.long, device=state.mask.device))
        for prompt, own, logits in zip(prompts, ids, text_logits(decoder, rows, prompts, ids), strict=True):
            best = logits.log_softmax(-1).topk(min(top, logits.shape[1]))
            expected.append(Expected(prompt, own, best.indices.int().cpu(), best.values.cpu()))
    return expected


def distillation_loss(logits: Tensor, expected: Expected) -> Tensor:
    """Minus the sum over the teacher's likeliest tokens of p_teacher * log q_student, for each token (N,).

    p is not renormalised.
    """
    tokens, log_probs = expected.tokens.long().to(logits.device), expected.log_probs.to(logits.device)
    return -(log_probs.exp() * logits.log_softmax(-1).gather(1, tokens)).sum(1)


def mean_loss(decoder: ComposedDecoder, state: State, texts: list[Expected]) -> Tensor:
    """Mean ``distillation_loss`` over all tokens of ``texts``, each after its row of ``state``."""
    logits = text_logits(decoder, state, [text.prompt for text in texts], [text.ids for text in texts])
    losses = [distillation_loss(own, text) for own, text in zip(logits, texts, strict=True)]
    return torch.cat(losses).mean()
