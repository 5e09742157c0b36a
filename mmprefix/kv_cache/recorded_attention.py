"""Queries, keys and values of every attention layer of a run, through the attention interface of Transformers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from mmprefix.kv_cache.side_attention import call_of, plain_attention, with_terms
from mmprefix.kv_cache.side_terms import AttentionCall

_NAME = "mmprefix_recorded"


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
    call = call_of(query, key, value, *masks, **options)
    if (calls := _calls.get()) is not None:
        calls.append(call)
    return with_terms(module, call, plain_attention(call)), None


AttentionInterface.register(_NAME, _attend)  # pyright: ignore[reportUnknownMemberType]
