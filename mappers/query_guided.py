"""Query-guided mapping: learned queries attend to each other, then to the frames, and become the prefix.

The visual half of UAPT, User-Aware Prefix-Tuning (Wang et al. 2023), https://arxiv.org/abs/2312.04793: "learnable query
vectors" guide the mapping from CLIP's features to the space of words. Its depth, heads and number of queries are not
known; here the layers are those of a transformer decoder, as in the Q-Former of BLIP-2, https://arxiv.org/abs/2301.12597.
"""

from __future__ import annotations

import torch
from torch import nn

from mmprefix.mappers.base import Mapper, Sizes, feature_tokens, need_frames, need_length
from mmprefix.mappers.query_layers import query_layers
from mmprefix.types import Features, Prefix, all_real


class QueryGuided(Mapper):
    """``length`` learned queries read frames (B T D) through ``layers`` transformer decoder layers → prefix (B P E).

    A summary, where the encoder has one, is read as one more frame. Without any real frame the queries read zeros.

    Args:
        length: positions of the prefix, the number of queries.
        layers: decoder layers: attention among the queries, attention to the frames, a feed-forward network.
        heads: attention heads; they divide ``hidden``.
        hidden: width inside; None: the decoder's.
        dropout: probability of zeroing a number of each layer's parts in training.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 10,
        layers: int = 2,
        heads: int = 8,
        hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(sizes)
        need_length(self, length)
        if not sizes.summary:
            need_frames(self)
        inner = hidden or sizes.width
        self.queries = nn.Parameter(torch.randn(length, inner) * inner**-0.5)
        self.from_frames = nn.Linear(sizes.frames, inner) if sizes.frames else None
        self.from_summary = nn.Linear(sizes.summary, inner) if sizes.summary else None
        self.layers = query_layers(self, inner, heads, layers=layers, dropout=dropout)
        self.out = nn.Linear(inner, sizes.width)

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Frames (B T D) with mask, summary (B G) → embeddings (B P E), all real."""
        b = len(features.mask)
        frames, mask = feature_tokens(features, self.from_frames, self.from_summary)  # (B 1+T D'), (B 1+T)
        if not mask.shape[1]:
            frames, mask = frames.new_zeros(b, 1, frames.shape[2]), mask.new_zeros(b, 1)
        frames = frames.masked_fill(~mask[..., None], 0)  # a row without a real frame reads zeros: no key is no number
        hidden = ~mask & mask.any(1, keepdim=True)
        queries = self.layers(self.queries.expand(b, -1, -1), frames, memory_key_padding_mask=hidden)
        embeds = self.out(queries)
        return Prefix(embeds, all_real(embeds))
