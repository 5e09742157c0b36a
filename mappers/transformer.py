"""ClipCap's transformer mapper: summary tokens and learned constants attend to each other; the constants are kept.

ClipCap: CLIP Prefix for Image Captioning (Mokady, Hertz, Bermano), https://arxiv.org/abs/2111.09734
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes, need_summary, split_heads
from mmprefix.types import Features, Prefix, all_real


class SelfAttention(nn.Module):
    """Multi-head attention among all positions; keys and values come from one matrix, only the output has a bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B N E) → (B N E); ``mask`` (B N) is True at positions that may be attended to, None: all."""
        q = split_heads(self.to_queries(x), self.heads)  # (B H N K)
        k, v = (split_heads(part, self.heads) for part in self.to_keys_values(x).chunk(2, dim=-1))
        visible = None if mask is None else mask[:, None, None]
        return self.project(F.scaled_dot_product_attention(q, k, v, attn_mask=visible).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B N E) → (B N E)."""
        return self.fc2(F.relu(self.fc1(x)))


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), SelfAttention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), FeedForward(width, int(width * ratio))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B N E) → (B N E)."""
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class TransformerStack(nn.Module):
    """Layers one after the other, with no final norm."""

    def __init__(self, width: int, heads: int, layers: int, ratio: float = 2.0) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"heads={heads} does not divide the decoder's width {width}")
        self.layers = nn.ModuleList(TransformerLayer(width, heads, ratio) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B N E) → (B N E); ``mask`` (B N) is True at positions that may be attended to, None: all."""
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Transformer(Mapper):
    """Prefix (B P E) read off ``length`` learned constants that attend to the summary (B G).

    The summary becomes ``clip_length`` tokens; the constants follow them through ``layers`` transformer layers without
    positions or mask; the outputs at the constants are the prefix.

    The published run has 40 + 40 positions, 8 layers of 8 heads.

    Args:
        length: positions of the prefix.
        clip_length: tokens that the summary becomes.
        layers: layers of the transformer.
        heads: attention heads of each layer; they divide the decoder's width.
    """

    def __init__(
        self, sizes: Sizes, *, length: int = 40, clip_length: int = 40, layers: int = 8, heads: int = 8
    ) -> None:
        super().__init__(sizes)
        need_summary(self)
        self.clip_length = clip_length
        self.linear = nn.Linear(sizes.summary, clip_length * sizes.width)
        self.prefix_const = nn.Parameter(torch.randn(length, sizes.width))
        self.transformer = TransformerStack(sizes.width, heads, layers)

    @property
    def reads_frames(self) -> bool:
        """Always False: it reads the summary."""
        return False

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Features with a summary (B G) → embeddings (B P E), all real."""
        tokens = self.linear(features.pooled).unflatten(1, (self.clip_length, self.sizes.width))
        constants = self.prefix_const.expand(len(tokens), -1, -1)
        embeds = self.transformer(torch.cat([tokens, constants], dim=1))[:, self.clip_length :]
        return Prefix(embeds, all_real(embeds))
