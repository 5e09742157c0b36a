"""Attention masks of layers that look back a limited way: sliding windows and chunks.

Texts share rows and prefixes are padded, so the distance of two positions in the cache says nothing. What counts is the
order of the keys that a query attends to: a window keeps the last of them, a chunk those of the query's own chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmprefix.kv_cache.cache import additive_mask, attention_mask


@dataclass(frozen=True)
class Reach:
    """How far back a layer attends: ``length`` positions, the query's own included (0: all).

    ``chunked``: positions are cut into chunks of this length, and a query attends within its own.
    """

    length: int = 0
    chunked: bool = False

    def limit(self, visible: Tensor) -> Tensor:
        """Keys that each query attends to without a limit (B N T), its own last → those within reach (B N T)."""
        if not self.length:
            return visible
        rank = visible.cumsum(-1)  # 1 for the first key of a query
        last = rank[..., -1:]
        if self.chunked:
            return visible & ((rank - 1) // self.length == (last - 1) // self.length)
        return visible & (rank > last - self.length)


@dataclass(frozen=True)
class Reaches:
    """Reach of all layers (``every``), or of each kind of layers by the name that Transformers gives it."""

    every: Reach = Reach()
    by_kind: dict[str, Reach] = field(default_factory=dict[str, Reach])

    @property
    def limited(self) -> bool:
        """True if a layer does not attend to all positions."""
        return any(reach.length for reach in (self.every, *self.by_kind.values()))

    def masks(self, past: Tensor, visible: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """Attention bias (B 1 N T+M), or one for each kind of layers; see ``attention_mask``.

        While no window is shorter than the cache this is ``attention_mask`` itself.
        """
        total = past.shape[1] + visible.shape[2]
        if not any(0 < reach.length < total for reach in (self.every, *self.by_kind.values())):
            return attention_mask(past, visible, dtype)
        keys = torch.cat([past[:, None].expand(-1, visible.shape[1], -1), visible], dim=-1)
        if not self.by_kind:
            return additive_mask(self.every.limit(keys), dtype)
        unique = {reach: additive_mask(reach.limit(keys), dtype) for reach in set(self.by_kind.values())}
        return {kind: unique[reach] for kind, reach in self.by_kind.items()}
