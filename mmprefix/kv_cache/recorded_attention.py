"""Queries, keys and values of every attention layer of a run, through the attention interface of Transformers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

_NAME = "mmprefix_recorded"


@dataclass(frozen=True)
class AttentionCall:
    """One layer's attention: queries (B H' N K), keys and values (B H T K); H' is a multiple of H.

    Scores are products of queries and keys times ``scale``, bent by ``softcap`` (Gemma 2) where there is one.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    scale: float
    softcap: float | None

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Queries (... N K), keys (... T K) → attention scores (... N T) before any mask."""
        scores = queries @ keys.transpose(-1, -2) * self.scale
        return scores if self.softcap is None else (scores / self.softcap).tanh() * self.softcap


_calls: ContextVar[list[AttentionCall] | None] = ContextVar("calls", default=None)


@contextmanager
def recorded_attention(stack: Any) -> Generator[list[AttentionCall]]:
    """Within this context a run of ``stack``, a model of Transformers, appends an ``AttentionCall`` a layer.

    The list stays empty for models that have an attention of their own. Runs of other threads are not recorded; they
    pass through plain attention meanwhile. Fused layers (``mmprefix.fast``) are not taken while gradients are enabled,
    so the run needs that.
    """
    calls: list[AttentionCall] = []
    before, token = stack.config._attn_implementation, _calls.set(calls)
    stack.config._attn_implementation = _NAME
    try:
        yield calls
    finally:
        stack.config._attn_implementation = before
        _calls.reset(token)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *masks: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Plain attention of Transformers' interface: (B H' N K), additive mask (B 1 N T) → (B N H' K)."""
    (attention_mask,) = masks
    scale = options.get("scaling")
    call = AttentionCall(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale, options.get("softcap"))
    if (calls := _calls.get()) is not None:
        calls.append(call)
    group = query.shape[1] // key.shape[1]
    scores = call.scores(query, key.repeat_interleave(group, 1))
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    weights = torch.softmax(scores.float(), dim=-1).to(query.dtype)
    return (weights @ value.repeat_interleave(group, 1)).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attend)  # pyright: ignore[reportUnknownMemberType]
