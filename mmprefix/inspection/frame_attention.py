"""Weights with which the queries of a mapper read the frames of its encoder.

They are caught where the mapper calls attention, by a torch-function mode: it belongs to one thread, puts no hook on
the model, and ends with the call. The mean is taken over layers and heads, as in the maps of Perceiver-like models;
layers mix what they read, so a weight says where a query looked, not what it took from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper
from mmprefix.mappers.prefix_aac import PrefixAAC
from mmprefix.mappers.query_guided import QueryGuided
from mmprefix.mappers.resampler import Resampler
from mmprefix.types import Features

Weights = list[Tensor]
"""Attention weights (B N K) of each call, N queries over K keys, mean over heads."""


class _CaughtAttention(TorchFunctionMode):
    """Within it, every attention of this thread adds its weights to ``caught``; results stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.caught: Weights = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is F.multi_head_attention_forward:
            result = func(*args, **options)
            self.caught.append(func(*args, **{**options, "need_weights": True, "average_attn_weights": True})[1])
            return result
        if func is F.scaled_dot_product_attention:
            self.caught.append(_weights(*args, **options))
        return func(*args, **options)


def _weights(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **_: Any
) -> Tensor:
    """Weights (B N K), mean over heads, of queries (B H N C), keys (B H K C) and a mask, True or 0 where read."""
    scores = query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1).mean(1)


def frame_attention(mapper: Mapper | None, features: Features) -> tuple[Tensor, Tensor]:
    """Features of B inputs → weights (B P T) of each position over its real frames, and their share (B P).

    Weights of a position sum to 1 over the real frames and are 0 at padding; ``share`` is how much of all its
    attention went to real frames, before (the rest went to other queries and to the summary). Mappers that read frames
    by attention are Resampler, QueryGuided and PrefixAAC, also inside Fusion and other combinators. Raises InputError
    for another mapper, several of those in one, and inputs without frames.
    """
    reader = _reader(mapper)
    if not features.frames.shape[1]:
        raise InputError("kind 'attention': this input has no frames; use kind='occlusion'")
    features = features.to_dtype(next(reader.parameters()).dtype)
    with torch.no_grad(), _CaughtAttention() as mode:
        reader(features)
    frames = features.frames.shape[1]
    weights = torch.stack(_READERS[type(reader)](reader, mode.caught, frames)).mean(0)  # (B P T)
    weights = weights * features.mask[:, None]
    share = weights.sum(2)
    return weights / share[..., None].clamp(min=1e-12), share


def _reader(mapper: Mapper | None) -> Mapper:
    parts = [] if mapper is None else [part for part in mapper.modules() if type(part) in _READERS]
    readers = [part for part in parts if not isinstance(part, PrefixAAC) or part.reads_frames]
    if len(readers) != 1:
        name = "this branch" if mapper is None else type(mapper).__name__
        what = f"has {len(readers)} mappers that read" if readers else "reads no"
        raise InputError(f"kind 'attention': {name} {what} frames by attention; use kind='occlusion'")
    return cast(Mapper, readers[0])


def _of_resampler(_: Mapper, caught: Weights, frames: int) -> Weights:
    return [weights[..., -frames:] for weights in caught]  # keys: queries, summary, frames


def _of_query_guided(_: Mapper, caught: Weights, frames: int) -> Weights:
    return [weights[..., -frames:] for weights in caught[1::2]]  # each layer: among the queries, then to the frames


def _of_prefix_aac(mapper: Mapper, caught: Weights, frames: int) -> Weights:
    return [weights[:, frames:, :frames] for weights in caught]  # keys and queries: frames, constants


_READERS: dict[type, Callable[[Mapper, Weights, int], Weights]] = {
    Resampler: _of_resampler,
    QueryGuided: _of_query_guided,
    PrefixAAC: _of_prefix_aac,
}
