"""Learned queries attend to all frames and become a prefix of fixed length.

The Perceiver resampler of Flamingo (https://arxiv.org/abs/2204.14198): in every layer the queries attend to the
frames and to themselves. Here each layer has its own norm for frames and queries, and a last norm and projection
bring the result to the decoder's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes, feature_tokens, need_frames, split_heads
from mmprefix.types import Features, Prefix, all_real


class CrossLayer(nn.Module):
    """Queries attend to frames and to each other, then a feed-forward network; both pre-norm with residuals."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_frames, self.norm_queries, self.norm_mlp = (nn.LayerNorm(hidden) for _ in range(3))
        self.query = nn.Linear(hidden, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))

    def forward(self, queries: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """Queries (B P D'), frames (B T D'), mask (B P+T, True where a key may be read) → queries (B P D')."""
        x = self.norm_queries(queries)
        k, v = self.key_value(torch.cat([x, self.norm_frames(frames)], dim=1)).chunk(2, dim=-1)
        q, k, v = (split_heads(part, self.heads) for part in (self.query(x), k, v))
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], dropout_p=dropout)
        queries = queries + self.out(attended.transpose(1, 2).flatten(2))
        return queries + F.dropout(self.mlp(self.norm_mlp(queries)), self.dropout, self.training)


class Resampler(Mapper):
    """``length`` learned queries read frames (B T D) through ``layers`` layers and become the prefix (B P E).

    A summary, where the encoder has one, is read as one more frame; an input without frames is then read by its summary
    alone.

    Args:
        length: positions of the prefix.
        layers: layers of cross-attention and feed-forward network.
        heads: attention heads of each layer; they divide ``hidden``.
        hidden: width inside; None: the decoder's.
        dropout: probability of zeroing an attention weight, and a number of each layer's output, in training.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 16,
        layers: int = 2,
        heads: int = 8,
        hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(sizes)
        if not sizes.summary:
            need_frames(self)
        inner = hidden or sizes.width
        if inner % heads:
            raise InputError(f"Resampler: heads={heads} does not divide the width {inner}")
        self.queries = nn.Parameter(torch.randn(length, inner) * inner**-0.5)
        self.from_frames = nn.Linear(sizes.frames, inner) if sizes.frames else None
        self.from_summary = nn.Linear(sizes.summary, inner) if sizes.summary else None
        self.layers = nn.ModuleList(CrossLayer(inner, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(inner)
        self.out = nn.Linear(inner, sizes.width)

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Frames (B T D) with mask, summary (B G) → embeddings (B P E), all real."""
        b, p = len(features.mask), len(self.queries)
        frames, mask = feature_tokens(features, self.from_frames, self.from_summary)
        mask = torch.cat([mask.new_ones(b, p), mask], dim=1)  # (B P+1+T)
        queries = self.queries.expand(b, -1, -1)
        for layer in self.layers:
            queries = layer(queries, frames, mask)
        embeds = self.out(self.norm(queries))
        return Prefix(embeds, all_real(embeds))
