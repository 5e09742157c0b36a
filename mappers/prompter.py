"""Prompter: a deep prefix made from a description, for a task that was never trained (zero shots).

Prompter: Zero-shot Adaptive Prefixes for Dialogue State Tracking Domain Adaptation (Aksu, Kan, Chen 2023),
https://arxiv.org/abs/2306.04724: a global prompt attends to the description, and one small adapter a layer for keys and
one for values, LN, linear, ReLU, linear, and the way around them, give the prefix of that layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import DeepMapper, Sizes, need_frames, need_length
from mmprefix.types import DeepPrefix, Features, all_real


class Prompter(DeepMapper):
    """``length`` learned queries read the frames (B T D) of a description → keys and values (L B H P K).

    Read the description by ``mmprefix.encoders.text.Text``. The paper reads it with the language model itself, whose
    layers are as wide as their keys; where widths differ, a linear layer goes between (chosen here), as for the number
    of heads of the attention. In a row without a description the adapters read the queries.

    Args:
        length: positions of the prefix.
        heads: heads of the attention to the description; they divide the decoder's width.
        bottleneck: width inside an adapter.
        dropout: probability of zeroing a number of the attention's weights and of the adapters' inside in training.
    """

    def __init__(
        self, sizes: Sizes, *, length: int = 10, heads: int = 1, bottleneck: int = 128, dropout: float = 0.2
    ) -> None:
        super().__init__(sizes)
        need_length(self, length)
        need_frames(self)
        if sizes.width % heads:
            raise InputError(f"Prompter: heads={heads} does not divide the width {sizes.width}")
        width, inner = sizes.width, sizes.heads * sizes.head_width
        self.queries = nn.Parameter(torch.randn(length, width) * 0.02)
        self.from_frames = nn.Linear(sizes.frames, width) if sizes.frames != width else nn.Identity()
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.to_layer = nn.Linear(width, inner) if inner != width else nn.Identity()
        self.adapters = nn.ModuleList(  # all layers' of keys, then all layers' of values
            nn.Sequential(
                nn.LayerNorm(inner), nn.Linear(inner, bottleneck), nn.ReLU(), nn.Dropout(dropout),
                nn.Linear(bottleneck, inner),
            )
            for _ in range(2 * sizes.layers)
        )  # fmt: skip

    def forward(self, features: Features, context: Features | None = None) -> DeepPrefix:
        """Frames of a description (B T D) with mask → keys and values (L B H P K), all real."""
        prompt = self.to_layer(self._read(features))  # (B P H*K)
        vectors = torch.cat([prompt + adapter(prompt) for adapter in self.adapters], dim=2)
        return self.split_layers(vectors, all_real(vectors))

    def _read(self, features: Features) -> Tensor:
        """Sight of each query of the description, (B P E)."""
        queries = self.queries.expand(len(features.mask), -1, -1)
        if not features.mask.shape[1]:
            return queries
        present = features.mask.any(1)
        frames = self.from_frames(features.frames)
        seen, _ = self.attention(queries, frames, frames, ~features.mask & present[:, None], need_weights=False)
        return torch.where(present[:, None, None], seen, queries)
